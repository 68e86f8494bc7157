package lockbox

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// A Context says what a share is a share of. Whoever opens one rebuilds it from
// what was displayed and verified, never from the ciphertext's surroundings.
type Context struct {
	Charter [32]byte
	Object  [32]byte // object id
	Side    Side
	Epoch   uint32   // of the dealing, from 1
	Index   uint16   // of the holder, from 1
	Holder  [32]byte // fingerprint of the holder's key
}

// String names the share without any secret.
func (c Context) String() string {
	return fmt.Sprintf("the share of %s holder %d (key sha256:%x) of object sha256:%x in epoch %d", c.Side, c.Index, c.Holder, c.Object, c.Epoch)
}

// Check refuses a context with anything missing.
func (c Context) Check() error {
	if err := c.Side.check(); err != nil {
		return err
	}
	if c.Charter == [32]byte{} || c.Object == [32]byte{} || c.Holder == [32]byte{} || c.Epoch == 0 || c.Index == 0 {
		return fmt.Errorf("lockbox: %s: charter, object, holder, epoch or index is missing", c)
	}
	return nil
}

func (c Context) fields() [][]byte {
	return [][]byte{
		c.Charter[:], c.Object[:], []byte(c.Side),
		binary.BigEndian.AppendUint32(nil, c.Epoch),
		binary.BigEndian.AppendUint16(nil, c.Index),
		c.Holder[:],
	}
}

// dealInfo is the HPKE info of a deal.
func (c Context) dealInfo() []byte { return join("keyturn/deal/v1", c.fields()...) }

// A ReleaseContext is the context of a share on its way to a recipient.
type ReleaseContext struct {
	Context
	Request   [32]byte // digest of the request that the release answers
	Recipient [32]byte // fingerprint of the recipient's key
}

// Check refuses a context with anything missing.
func (c ReleaseContext) Check() error {
	if err := c.Context.Check(); err != nil {
		return err
	}
	if c.Request == [32]byte{} || c.Recipient == [32]byte{} {
		return fmt.Errorf("lockbox: release %s: request or recipient is missing", c.Context)
	}
	return nil
}

// info is the HPKE info of a release.
func (c ReleaseContext) info() []byte {
	return join("keyturn/release/v1", append(c.fields(), c.Request[:], c.Recipient[:])...)
}

// join concatenates a label and fields, each after its length as a 32-bit
// big-endian number, so that no two lists of fields give the same bytes.
func join(label string, fields ...[]byte) []byte {
	out := appendField(nil, []byte(label))
	for _, f := range fields {
		out = appendField(out, f)
	}
	return out
}

func appendField(dst, f []byte) []byte {
	return append(binary.BigEndian.AppendUint32(dst, uint32(len(f))), f...)
}

// A Fault is the way in which a share is bad. It is an error, so that
// errors.Is(err, lockbox.Replayed) asks for it.
type Fault string

// The ways in which a share is bad.
const (
	// Malformed: lengths, points or scalars do not decode.
	Malformed Fault = "malformed"
	// Foreign: it says that it belongs to another object, side, holder, dealer
	// or recipient.
	Foreign Fault = "foreign"
	// Replayed: it says that it belongs to another epoch.
	Replayed Fault = "replayed"
	// Unopened: it says what it should, but HPKE does not open it so.
	Unopened Fault = "unopened"
	// Wrong: it opens, and does not match the commitments.
	Wrong Fault = "wrong"
)

// Error returns the fault's name.
func (f Fault) Error() string { return "lockbox: " + string(f) + " share" }

// A ShareError says whose share was bad, and how. Context is what was expected.
// Dealer is the index of the old holder who dealt a sub-share, 0 elsewhere.
type ShareError struct {
	Fault   Fault
	Context Context
	Dealer  uint16
	Err     error
}

// Error names fault, share and reason; it never carries a secret.
func (e *ShareError) Error() string {
	from := ""
	if e.Dealer != 0 {
		from = fmt.Sprintf(", dealt by old holder %d", e.Dealer)
	}
	return fmt.Sprintf("lockbox: %s is %s%s: %v", e.Context, string(e.Fault), from, e.Err)
}

// Unwrap gives errors.Is the fault and the reason.
func (e *ShareError) Unwrap() []error { return []error{e.Fault, e.Err} }

func (c Context) fault(f Fault, err error) error {
	return &ShareError{Fault: f, Context: c, Err: err}
}

// dealtBy adds the dealer to a ShareError and leaves other errors alone.
func dealtBy(dealer uint16, err error) error {
	var bad *ShareError
	if errors.As(err, &bad) {
		bad.Dealer = dealer
	}
	return err
}
