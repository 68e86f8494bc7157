// Package etcd decides the order of the log: which entry has which index. One
// [Order] speaks to an etcd through clientv3, either one that runs inside this
// process on a unix socket ([OpenEmbedded], nothing to set up) or three or five
// members elsewhere ([Dial]). The code that appends is the same.
//
// Under one prefix, so that one etcd serves one log, there are four kinds of
// keys:
//
//	head        number of entries, 8 bytes big-endian
//	e/<index>   the entry, 16 hex digits of index
//	i/<id>      index (8 bytes) and SHA-256 of the entry that was appended as id
//	checkpoint  the checkpoint that was signed last
//
// An append is one transaction that compares the head with what the writer saw
// and then writes entry, id and head together; whoever loses the race looks
// again and retries. Appends that wait at the same time share a transaction.
// Nothing is ever changed or deleted, and nothing but the transaction decides,
// so any number of coordinators may append at once.
//
// # Unknown outcomes
//
// [ErrTimeout] and [ErrUnavailable] do not say that an entry was not appended.
// The caller appends it again under the same id and gets the index it has,
// whether it was given the first time or now.
//
// # What is not promised
//
// An etcd that was restored from an older state looks shorter and knows
// nothing of it. The caller compares [Order.Head] and [Order.Entries] with the
// archive and with what notaries cosigned before it signs; [Order.Restore]
// rebuilds a lost etcd from the archive.
package etcd

import (
	"errors"
	"time"
)

var (
	// ErrUnavailable: etcd was not reached or has no leader. An append may
	// have happened.
	ErrUnavailable = errors.New("order unavailable")
	// ErrTimeout: no answer in time. An append may have happened.
	ErrTimeout = errors.New("timed out")
	// ErrNoSpace: the disk or etcd's quota is nearly full. Nothing was
	// written.
	ErrNoSpace = errors.New("no space left for the order")
	// ErrTooLarge: the value is above its bound. Nothing was written.
	ErrTooLarge = errors.New("too large")
	// ErrConflict: the id was used for another entry, or the head is not
	// where the caller said. Nothing was written.
	ErrConflict = errors.New("conflict")
	// ErrCorrupt: what etcd holds is not what this package writes. Stop, and
	// compare with the archive.
	ErrCorrupt = errors.New("corrupt order")
)

const (
	// MaxLeaf bounds an entry, in bytes, as tlog-tiles does.
	MaxLeaf = 65535
	// maxCheckpoint bounds a signed note, in bytes.
	maxCheckpoint = 64 << 10

	// etcd takes 128 operations and 1.5 MiB in one transaction. An append
	// is two puts, and the head one more.
	maxGroup      = 59
	maxGroupBytes = 1 << 20
	// maxRead bounds the entries of one answer.
	maxRead = 256

	// opTimeout bounds one transaction with etcd and its retries.
	opTimeout = 5 * time.Second

	prefix        = "keyturn/log/v1/"
	headKey       = prefix + "head"
	checkpointKey = prefix + "checkpoint"
	entryPrefix   = prefix + "e/"
	idPrefix      = prefix + "i/"
)
