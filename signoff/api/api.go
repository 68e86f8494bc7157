// Package api is how programs speak to a coordinator: the wire's types and
// errors, and the client.
//
// A coordinator is a mailbox. It orders entries, keeps blobs and passes
// messages on; it is trusted with none of them. Every document authenticates
// itself, blobs are named by their hash, and whoever reads the log folds it
// again. The connection is TLS 1.3 to a key that the charter pins; dates and
// names in certificates play no part.
//
//	GET  /v1/checkpoint?final=1&size=N&wait=S   a signed note; with final=1 the newest cosigned by a quorum
//	GET  /v1/entries?from=A&to=B                entries [A, B), or fewer from A on, one bundle a line
//	POST /v1/entries                            one bundle line; answers Appended
//	PUT  /v1/blobs                              any bytes; answers their digest
//	GET  /v1/blobs/<64 hex>                     the bytes
//	GET  /v1/void?from=A&to=B                   which of the entries [A, B) are epochs and claims without effect
//	GET  /v1/leases/<64 hex>?epoch=N            a node's leaf of epoch N, if that is in force or was when the log was last final, with its proof
//	POST /v1/cosignatures                       one cosignature line of a signed note
//	POST /v1/mail/<topic>                       a message, kept for a while, in memory
//	GET  /v1/mail/<topic>?after=N&wait=S        messages with a number above N
//
// Errors are JSON: {"error": "...", "hint": "..."}. 422 means the entry would
// be void where it stands now, and why; 429 that its signer has appended too much of
// late; 503 means try again, 507 that the disk has no room for blobs.
package api

import (
	"fmt"
	"time"

	"github.com/keyturn/keyturn/signoff/dsse"
)

// Digest is a SHA-256 value.
type Digest = dsse.Digest

// Bounds of the wire.
const (
	MaxBlob    = 8 << 20  // a quote with its event log and IMA list
	MaxMessage = 64 << 10 // one message of the mailbox
	MaxBatch   = 4096     // entries in one answer
	MaxAnswer  = 8 << 20  // bytes of entries after which an answer ends: as many as there may be would take 256 MiB
	MaxWait    = 30 * time.Second
)

// HeaderID carries the idempotency id of an append: 32 hex digits. The same
// id appends at most once; retry it after a timeout.
const HeaderID = "Keyturn-Id"

// Appended is the answer to an append.
type Appended struct {
	Index    uint64 `json:"index"`
	Document Digest `json:"document"`
	Void     string `json:"void,omitempty"` // why the entry has no effect; empty if it took effect
}

// Stored is the answer to a blob put.
type Stored struct {
	Digest Digest `json:"digest"`
}

// Mail is the answer to a read of a topic. Box changes when the mailbox was
// emptied (a restart): numbers then count anew.
type Mail struct {
	Box      string    `json:"box"`
	Messages []Message `json:"messages"`
}

// A Message is one piece of mail. Number counts from 1 within a topic.
type Message struct {
	Number uint64 `json:"number"`
	Body   []byte `json:"body"`
}

// An Error is a coordinator's refusal.
type Error struct {
	Status int    `json:"-"`
	Text   string `json:"error"`
	Hint   string `json:"hint,omitempty"`
}

// Error says what was refused and what to do.
func (e *Error) Error() string {
	if e.Hint == "" {
		return fmt.Sprintf("coordinator: %s", e.Text)
	}
	return fmt.Sprintf("coordinator: %s (%s)", e.Text, e.Hint)
}

// Topics of the mailbox.
const (
	TopicWake      = "wake"      // anyone asks the notaries to look (and tick) now
	TopicHalts     = "halts"     // halts, pushed before they are in the log
	TopicPositions = "positions" // notaries' questions and answers after a restart
	TopicEvidence  = "evidence"  // nodes' evidence for the next epoch, by blob digest
)

// TopicSign carries FROST messages about one warrant payload.
func TopicSign(payload Digest) string { return "sign-" + payload.Hex() }

// TopicEnrol carries challenges and answers for one enrolment request.
func TopicEnrol(request Digest) string { return "enrol-" + request.Hex() }
