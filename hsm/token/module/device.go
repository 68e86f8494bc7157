package module

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"unsafe"

	"github.com/go-json-experiment/json"
	"github.com/miekg/pkcs11"

	"github.com/keyturn/keyturn/hsm/token/internal/wire"
)

// poolSize bounds the read-only sessions that work at one time. Two per core of
// a large host; a token itself does one or two things at a time.
const poolSize = 16

// slot is a place with a token in it.
type slot struct {
	id    uint
	flags uint
	info  wire.TokenInfo
}

func listSlots(p *pkcs11.Ctx) ([]slot, error) {
	ids, err := p.GetSlotList(true)
	if err != nil {
		return nil, fmt.Errorf("list slots: %w", err)
	}
	var slots []slot
	for _, id := range ids {
		s, err := readSlot(p, id)
		if err != nil {
			return nil, err
		}
		slots = append(slots, s)
	}
	return slots, nil
}

func readSlot(p *pkcs11.Ctx, id uint) (slot, error) {
	info, err := p.GetTokenInfo(id)
	if err != nil {
		return slot{}, fmt.Errorf("read token info: %w", err)
	}
	has := func(flag uint) bool { return info.Flags&flag != 0 }
	text := func(s string) string { return strings.TrimRight(s, " \x00") } // the standard pads with blanks, some with zeros
	return slot{id, info.Flags, wire.TokenInfo{
		Label:        text(info.Label),
		Serial:       text(info.SerialNumber),
		Manufacturer: text(info.ManufacturerID),
		Model:        text(info.Model),
		Initialized:  has(pkcs11.CKF_TOKEN_INITIALIZED),
		PINSet:       has(pkcs11.CKF_USER_PIN_INITIALIZED),
		PINCountLow:  has(pkcs11.CKF_USER_PIN_COUNT_LOW),
		PINFinalTry:  has(pkcs11.CKF_USER_PIN_FINAL_TRY),
		PINLocked:    has(pkcs11.CKF_USER_PIN_LOCKED),
	}}, nil
}

// device is one open token. Sessions are read-only, except while a key is made
// or the PIN changed.
type device struct {
	p    *pkcs11.Ctx
	slot uint
	base pkcs11.SessionHandle // stays open, for a token logs out with its last session

	working chan struct{}             // one value for each session at work
	idle    chan pkcs11.SessionHandle // sessions at rest

	mu      sync.Mutex
	handles map[name]pkcs11.ObjectHandle // of keys that were checked
}

// present says which tokens there are, the first few of many.
func present(slots []slot) string {
	var names []string
	for _, s := range slots {
		if s.info.Initialized {
			names = append(names, fmt.Sprintf("%q", s.info.Label))
		}
	}
	switch n := len(names); {
	case n == 0:
		return "is none that was initialised"
	case n > 6:
		return fmt.Sprintf("are %s and %d more", strings.Join(names[:6], ", "), n-6)
	}
	return "is " + strings.Join(names, ", ")
}

func openDevice(p *pkcs11.Ctx, want wire.Selector) (*device, error) {
	if want == (wire.Selector{}) {
		return nil, errors.New("no token named")
	}
	slots, err := listSlots(p)
	if err != nil {
		return nil, err
	}
	var found []slot
	for _, s := range slots {
		if s.info.Initialized && matches(want, s.info) {
			found = append(found, s)
		}
	}
	switch {
	case len(found) == 0:
		return nil, coded{wire.CodeAbsent, fmt.Errorf("no token matches; there %s", present(slots))}
	case len(found) > 1:
		return nil, fmt.Errorf("%d tokens match; name one by serial=", len(found))
	}
	base, err := p.OpenSession(found[0].id, pkcs11.CKF_SERIAL_SESSION)
	if err != nil {
		return nil, fmt.Errorf("open session: %w", err)
	}
	return &device{
		p: p, slot: found[0].id, base: base,
		working: make(chan struct{}, poolSize),
		idle:    make(chan pkcs11.SessionHandle, poolSize),
		handles: make(map[name]pkcs11.ObjectHandle),
	}, nil
}

func matches(want wire.Selector, have wire.TokenInfo) bool {
	for _, pair := range [][2]string{
		{want.Token, have.Label}, {want.Serial, have.Serial}, {want.Manufacturer, have.Manufacturer}, {want.Model, have.Model},
	} {
		if pair[0] != "" && pair[0] != pair[1] {
			return false
		}
	}
	return true
}

// session runs do in a read-only session. One in which something failed is not
// used again: an operation may still be active in it.
func (d *device) session(do func(pkcs11.SessionHandle) error) error {
	d.working <- struct{}{}
	defer func() { <-d.working }()
	var s pkcs11.SessionHandle
	select {
	case s = <-d.idle:
	default:
		var err error
		if s, err = d.p.OpenSession(d.slot, pkcs11.CKF_SERIAL_SESSION); err != nil {
			return fmt.Errorf("open session: %w", err)
		}
	}
	err := do(s)
	if err != nil {
		d.p.CloseSession(s)
		return err
	}
	d.idle <- s
	return nil
}

// writing runs do in a session that may change the token.
func (d *device) writing(do func(pkcs11.SessionHandle) error) error {
	s, err := d.p.OpenSession(d.slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
	if err != nil {
		return fmt.Errorf("open session: %w", err)
	}
	defer d.p.CloseSession(s)
	return do(s)
}

func (d *device) describe([][]byte) ([]byte, error) {
	s, err := readSlot(d.p, d.slot)
	if err != nil {
		return nil, err
	}
	return json.Marshal(s.info)
}

// login sends the PIN once.
func (d *device) login(fields [][]byte) ([]byte, error) {
	if err := d.mayTry(fields[0], fields[1]); err != nil {
		return nil, missing(err)
	}
	if err := d.p.Login(d.base, pkcs11.CKU_USER, borrow(fields[0])); err != nil {
		err = d.triesLeft(fmt.Errorf("log in: %w", err))
		if silent := d.session(d.answers); silent == nil || errors.Is(silent, pkcs11.Error(pkcs11.CKR_USER_NOT_LOGGED_IN)) {
			return nil, err // the token has seen the PIN, and may have counted a try
		}
		return nil, missing(err)
	}
	return nil, nil
}

// triesLeft adds to a refused PIN what the token says of the next one.
func (d *device) triesLeft(err error) error {
	s, e := readSlot(d.p, d.slot)
	if e != nil || codeOf(err) != wire.CodeWrongPIN {
		return err
	}
	switch {
	case s.info.PINLocked:
		return coded{wire.CodeLocked, fmt.Errorf("%w: that was the last try", err)}
	case s.info.PINFinalTry:
		return fmt.Errorf("%w; ONE TRY IS LEFT", err)
	case s.info.PINCountLow:
		return fmt.Errorf("%w; the token counts wrong pins", err)
	}
	return fmt.Errorf("%w; the token does not tell how many tries are left", err)
}

func (d *device) changePIN(fields [][]byte) ([]byte, error) {
	if err := errors.Join(d.mayTry(fields[0], fields[2]), checkPIN(fields[1])); err != nil {
		return nil, err
	}
	return nil, d.writing(func(s pkcs11.SessionHandle) error {
		if err := d.p.SetPIN(s, borrow(fields[0]), borrow(fields[1])); err != nil {
			return d.triesLeft(fmt.Errorf("set pin: %w", err))
		}
		return d.provePIN(fields[1])
	})
}

// provePIN tries the new PIN where nobody is logged in. Tpm2-pkcs11 1.9 says
// there that it changed the PIN when the old one was wrong, and did not.
func (d *device) provePIN(pin []byte) error {
	err := d.p.Login(d.base, pkcs11.CKU_USER, borrow(pin))
	if errors.Is(err, pkcs11.Error(pkcs11.CKR_USER_ALREADY_LOGGED_IN)) {
		return nil
	}
	if err != nil {
		return d.triesLeft(fmt.Errorf("the token said that the pin was changed, and does not take the new one: %w", err))
	}
	if err := d.p.Logout(d.base); err != nil {
		return fmt.Errorf("log out: %w", err)
	}
	return nil
}

// mayTry refuses a PIN that the token would not take, or whose failure would
// lock it with nobody there.
func (d *device) mayTry(pin, interactive []byte) error {
	if err := checkPIN(pin); err != nil {
		return err
	}
	s, err := readSlot(d.p, d.slot)
	if err != nil {
		return missing(err) // no pin was sent
	}
	attended := len(interactive) == 1 && interactive[0] == 1
	switch {
	case s.info.PINLocked:
		return coded{wire.CodeLocked, errors.New("the token takes no pin any more")}
	case s.info.PINFinalTry && !attended:
		return coded{wire.CodeLocked, errors.New("one more wrong pin locks the token, so none is tried unattended")}
	case s.flags&pkcs11.CKF_PROTECTED_AUTHENTICATION_PATH != 0:
		return errors.New("the token wants its pin on its own pad, which is not supported")
	}
	return nil
}

func checkPIN(pin []byte) error {
	if len(pin) == 0 || len(pin) > wire.MaxPIN {
		return fmt.Errorf("a pin has 1 to %d bytes, not %d", wire.MaxPIN, len(pin))
	}
	return nil
}

// borrow lends bytes that will be wiped to a function that wants a string and
// does not keep it.
func borrow(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }
