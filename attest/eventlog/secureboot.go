package eventlog

import (
	"bytes"
	"fmt"
)

// A State is the answer to a question that a log may leave open.
type State uint8

// The zero State is unknown.
const (
	Unknown State = iota
	Off
	On
)

// String returns unknown, off or on.
func (s State) String() string { return [...]string{"unknown", "off", "on"}[s] }

// MarshalJSON writes null, false or true.
func (s State) MarshalJSON() ([]byte, error) {
	return []byte([...]string{"null", "false", "true"}[s]), nil
}

// SecureBoot is what PCR 7 says of UEFI secure boot. If State is Unknown, Reason
// says why and everything else is empty.
type SecureBoot struct {
	State  State
	Reason string // one line; empty unless State is Unknown

	PK, KEK, DB, DBX []Signature // the key databases at boot
	Variables        []Variable  // all that the firmware measured before the separator

	PreSeparator  []Authority // what verified images of the firmware's own boot, such as option ROMs
	PostSeparator []Authority // what verified boot loaders, and what these used in turn

	DMAProtectionOff bool // the firmware says that DMA protection was off
	ShimOff          bool // shim says, by MokSBState, that it verifies nothing
}

// An Authority is an EV_EFI_VARIABLE_AUTHORITY event of PCR 7: what an image was
// verified with.
type Authority struct {
	Event    int
	Digest   []byte
	Variable *Variable // nil unless the event's data hashes to the digest and is a variable
}

// SecureBoot draws the claim from PCR 7. It is proved only for a bank in which
// [Log.Explain] passed with PCR 7 among the quoted.
//
// Before the separator, every event must be of a type that the specification allows
// in PCR 7, hash to its digest, and be well-formed: one that is not could be a hidden
// SecureBoot variable. There must be one SecureBoot variable of one byte, 0 or 1,
// and one separator, told by its digest. After it, only authorities may follow; their
// data need not hash to the digest, since they cannot change the state any more.
// Whatever else is there ends the claim. What firmware measures of devices that prove
// themselves by SPDM are variables and authorities like the others (PFP 3.3.4.8).
func (l *Log) SecureBoot(bankName string) SecureBoot {
	b, err := l.bank(bankName)
	if err != nil {
		return SecureBoot{Reason: err.Error()}
	}
	w := &pcr7{Log: l, bank: b, seen: make(map[string]bool)}
	for i := range l.Events {
		e := &l.Events[i]
		if e.PCR != 7 || e.Type == NoAction {
			continue
		}
		if err := w.step(i, e); err != nil {
			return SecureBoot{Reason: fmt.Sprintf("eventlog: offset %d, event %d in PCR 7: %v", e.Offset, i, err)}
		}
	}
	if !w.separated {
		return SecureBoot{Reason: "eventlog: PCR 7 has no separator, so nothing tells the firmware's events from later ones"}
	}
	return w.claim
}

// pcr7 walks the events of PCR 7.
type pcr7 struct {
	*Log
	bank      bank
	claim     SecureBoot
	separated bool
	seen      map[string]bool
}

func (w *pcr7) step(i int, e *Event) error {
	if separator := w.isSeparator(e, w.bank); separator || e.Type == Separator {
		return w.separator(e, separator)
	}
	if e.Type == EFIVariableAuthority || e.Type == SPDMDeviceAuthority {
		return w.authority(i, e)
	}
	if w.separated {
		return fmt.Errorf("%v after the separator", e.Type)
	}
	if !w.hashes(e, w.bank, e.Data) {
		return fmt.Errorf("its data does not hash to its digest, so it could be anything")
	}
	switch e.Type {
	case EFIDriverConfig, SPDMDevicePolicy:
		return w.variable(e)
	case EFIAction:
		return w.action(e)
	}
	return fmt.Errorf("type %v does not belong there", e.Type)
}

// The data of a separator (PFP 10.4.4). A third value, 1, tells of an error.
var separators = [][]byte{{0, 0, 0, 0}, {0xff, 0xff, 0xff, 0xff}}

// isSeparator judges by the digest alone.
func (l *Log) isSeparator(e *Event, b bank) bool {
	for _, data := range separators {
		if l.hashes(e, b, data) {
			return true
		}
	}
	return false
}

func (w *pcr7) separator(e *Event, genuine bool) error {
	switch {
	case !genuine:
		return fmt.Errorf("it is called a separator and its digest is not one's")
	case e.Type != Separator:
		return fmt.Errorf("its digest is a separator's and it is called %v", e.Type)
	case w.separated:
		return fmt.Errorf("a second separator")
	case w.claim.State == Unknown:
		return fmt.Errorf("the separator comes before any SecureBoot variable")
	}
	w.separated = true
	return nil
}

// variable takes in one variable that the firmware measured.
func (w *pcr7) variable(e *Event) error {
	v, err := parseVariable(e.Data)
	if err != nil {
		return err
	}
	key := v.Vendor.String() + v.Name
	if w.seen[key] {
		return fmt.Errorf("variable %q was measured twice", v.Name)
	}
	w.seen[key] = true
	w.claim.Variables = append(w.claim.Variables, *v)
	switch {
	case v.is(globalVariable, "SecureBoot"):
		return w.state(v.Data)
	case v.is(globalVariable, "PK"):
		w.claim.PK, err = parseSignatures(v.Data)
	case v.is(globalVariable, "KEK"):
		w.claim.KEK, err = parseSignatures(v.Data)
	case v.is(imageSecurity, "db"):
		w.claim.DB, err = parseSignatures(v.Data)
	case v.is(imageSecurity, "dbx"):
		w.claim.DBX, err = parseSignatures(v.Data)
	}
	if err != nil {
		return fmt.Errorf("variable %q: %w", v.Name, err)
	}
	return nil
}

func (w *pcr7) state(data []byte) error {
	switch {
	case len(data) != 1:
		return fmt.Errorf("the SecureBoot variable has %d bytes, wanted 1", len(data))
	case data[0] == 0:
		w.claim.State = Off
	case data[0] == 1:
		w.claim.State = On
	default:
		return fmt.Errorf("the SecureBoot variable is %d, wanted 0 or 1", data[0])
	}
	return nil
}

func (w *pcr7) action(e *Event) error {
	switch text := string(bytes.TrimRight(e.Data, "\x00")); text {
	case "DMA Protection Disabled":
		w.claim.DMAProtectionOff = true
		return nil
	default:
		// "UEFI Debug Mode" is one: a debugger can say anything.
		return fmt.Errorf("the firmware says %.60q", text)
	}
}

func (w *pcr7) authority(i int, e *Event) error {
	a := Authority{Event: i, Digest: w.digest(e, w.bank)}
	data, proved := w.authorityData(e)
	if !proved && !w.separated {
		return fmt.Errorf("its data does not hash to its digest, so it could be anything")
	}
	if proved {
		a.Variable, _ = parseVariable(data)
	}
	if v := a.Variable; v != nil {
		switch {
		case v.Vendor.String() == globalVariable:
			return fmt.Errorf("variable %q is called an authority", v.Name)
		case v.is(shimLock, "MokSBState") && bytes.Equal(v.Data, []byte{1}):
			w.claim.ShimOff = true
		}
	}
	if w.separated {
		w.claim.PostSeparator = append(w.claim.PostSeparator, a)
	} else {
		w.claim.PreSeparator = append(w.claim.PreSeparator, a)
	}
	return nil
}

// authorityData returns the part of the event's data that hashes to its digest: all
// of it, or all but the last byte, which shim before version 15 logged and did not
// measure.
func (w *pcr7) authorityData(e *Event) ([]byte, bool) {
	if w.hashes(e, w.bank, e.Data) {
		return e.Data, true
	}
	if n := len(e.Data); n > 0 && w.hashes(e, w.bank, e.Data[:n-1]) {
		return e.Data[:n-1], true
	}
	return nil, false
}
