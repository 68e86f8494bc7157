// Package proof verifies what the log says without asking the log.
//
// The log is a Merkle tree over its entries (RFC 6962). Its head at one moment
// is a [Checkpoint], signed by the log as a note (c2sp.org/tlog-checkpoint,
// c2sp.org/signed-note). Notaries that followed the log to that head and came
// to the same state add a cosignature with their time
// (c2sp.org/tlog-cosignature). A checkpoint is only a claim of the log until
// enough notaries cosigned the same bytes; then it is final, and so is every
// entry below it. [Trust] says who may sign and how many must: [Open] reads a
// claim, [OpenFinal] insists on the quorum, and [VerifyLeaf] does so for one
// entry from a small file (c2sp.org/tlog-proof) with no network at all.
//
// Beside the three lines of every checkpoint, keyturn's has exactly one more,
// the digest of the state that folding the entries gives. It is covered by the
// log's signature and by every cosignature, so who trusts the quorum need not
// fold.
//
// [Tree] is the same Merkle tree over any list in memory: lease roots, share
// sets. Everything here is pure; errors mean no.
package proof

// MaxSize bounds the number of entries of a log or leaves of a tree. It is far
// above what a log can hold and far below where the arithmetic of package tlog
// on int64 ends.
const MaxSize = 1 << 48

// Bounds on text from outside, in bytes. A cosignature line takes about 200,
// and package note refuses a note with more than 100 signatures.
const (
	maxName  = 255
	maxNote  = 64 << 10
	maxProof = maxNote + 8<<10
	maxPath  = 48 // log2(MaxSize)
)
