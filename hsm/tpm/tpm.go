package tpm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/keyturn/keyturn/hsm"
)

// A TPM is a connection to one TPM. Its methods, and those of the keys in it,
// may be called from several goroutines: commands run one after another.
type TPM struct {
	path         string
	manufacturer string
	emulated     bool

	turn chan struct{} // holds one token: whose turn it is to talk to conn and to touch what follows
	conn *conn
	root *Object // storage root key, nil before its first use
	file *Object // parent of the keys of key files, nil before its first use
	pin  []byte  // name that root must have, nil before it is pinned
}

// Open connects to a TPM: path is a device such as /dev/tpmrm0, or unix:/PATH
// for the socket of an emulator, which then belongs to this connection: what
// others left loaded is flushed. The caller closes it.
func Open(path string) (*TPM, error) {
	c, err := dial(path)
	if err != nil {
		return nil, err
	}
	t := &TPM{path: path, conn: c, turn: make(chan struct{}, 1)}
	t.turn <- struct{}{}
	err = t.Run(context.Background(), "identify", func(tr transport.TPM) error {
		if c.stream {
			if err := flushAll(tr); err != nil {
				return err
			}
		}
		return t.identify(tr)
	})
	if err != nil {
		return nil, errors.Join(err, t.Close())
	}
	return t, nil
}

// Close ends the connection. Keys of t answer hsm.ErrGone afterwards.
func (t *TPM) Close() error {
	<-t.turn
	defer func() { t.turn <- struct{}{} }()
	if t.conn.broken != nil {
		return nil
	}
	t.conn.broken = fmt.Errorf("tpm: %w: the connection to %s was closed", hsm.ErrGone, t.path)
	return t.conn.rwc.Close()
}

// Emulated reports whether the TPM says of itself that it is a program.
func (t *TPM) Emulated() bool { return t.emulated }

// Manufacturer returns the maker's name as the TPM gives it.
func (t *TPM) Manufacturer() string { return t.manufacturer }

// Run calls f while nobody else talks to the TPM. It waits for its turn as long
// as ctx lives and gives the commands until ctx's deadline; what names the
// attempt in errors, which wrap those of package hsm where one fits.
func (t *TPM) Run(ctx context.Context, what string, f func(transport.TPM) error) error {
	if err := hsm.ContextError(ctx); err != nil {
		return fmt.Errorf("tpm: %s: %w", what, err)
	}
	select {
	case <-t.turn:
	case <-ctx.Done():
		return fmt.Errorf("tpm: %s: waiting for other commands: %w", what, hsm.ContextError(ctx))
	}
	defer func() { t.turn <- struct{}{} }()
	deadline := time.Now().Add(maxAnswer)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	t.conn.limit(deadline)
	if err := f(t.conn); err != nil {
		return fmt.Errorf("tpm: %s: %w", what, typed(err))
	}
	return nil
}

// typed adds the error of package hsm that a TPM's answer stands for.
func typed(err error) error {
	switch {
	case errors.Is(err, tpm2.TPMRCLockout):
		return fmt.Errorf("%w: %w", hsm.ErrLocked, err)
	case errors.Is(err, tpm2.TPMRCAuthFail), errors.Is(err, tpm2.TPMRCBadAuth):
		return fmt.Errorf("%w: %w", hsm.ErrWrongPIN, err)
	case errors.Is(err, tpm2.TPMRCReferenceH0), errors.Is(err, tpm2.TPMRCInitialize):
		return fmt.Errorf("%w: %w", hsm.ErrGone, err)
	}
	return err
}

// identify reads who made the TPM.
func (t *TPM) identify(tr transport.TPM) error {
	var text []byte
	for _, p := range []tpm2.TPMPT{tpm2.TPMPTManufacturer, tpm2.TPMPTVendorString1, tpm2.TPMPTVendorString2, tpm2.TPMPTVendorString3, tpm2.TPMPTVendorString4} {
		v, err := property(tr, p)
		if err != nil {
			return err
		}
		text = append(text, byte(v>>24), byte(v>>16), byte(v>>8), byte(v))
		if p == tpm2.TPMPTManufacturer {
			text = append(text, ' ')
		}
	}
	printable := func(r rune) rune {
		if r < ' ' || r > '~' {
			return -1
		}
		return r
	}
	t.manufacturer = strings.Join(strings.Fields(strings.Map(printable, string(text))), " ")
	// libtpms calls itself "SW   TPM", Microsoft's simulator "xCG fTPM" by MSFT.
	t.emulated = strings.HasPrefix(t.manufacturer, "IBM") || strings.Contains(t.manufacturer, "SW TPM") || strings.Contains(t.manufacturer, "xCG")
	return nil
}

// flushAll clears out transient objects and sessions of an earlier connection.
func flushAll(tr transport.TPM) error {
	for _, class := range []tpm2.TPMHandle{0x80000000, 0x02000000, 0x03000000} {
		rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: uint32(class), PropertyCount: 64}.Execute(tr)
		if err != nil {
			return err
		}
		handles, err := rsp.CapabilityData.Data.Handles()
		if err != nil {
			return err
		}
		for _, h := range handles.Handle {
			if _, err := (tpm2.FlushContext{FlushHandle: h}).Execute(tr); err != nil {
				return err
			}
		}
	}
	return nil
}

// info describes a key of this TPM. Nobody checked its word here: an enrolment
// that is verified elsewhere does that.
func (t *TPM) info(uri string) hsm.Info {
	class := hsm.ClassSelfDeclared
	if t.emulated {
		class = hsm.ClassSoftware
	}
	return hsm.Info{URI: uri, Class: class, Token: t.path, Manufacturer: t.manufacturer}
}

// nameSize is that of a name by SHA-256, in bytes, its algorithm included.
const nameSize = 34

// PinStorageRoot fixes the name of the storage root key (34 bytes, from
// [TPM.StorageRoot] at enrolment). Any other is refused from then on.
func (t *TPM) PinStorageRoot(name []byte) error {
	if len(name) != nameSize {
		return fmt.Errorf("tpm: storage root name of %d bytes, want %d", len(name), nameSize)
	}
	<-t.turn
	defer func() { t.turn <- struct{}{} }()
	if t.root != nil && !bytes.Equal(name, t.root.name.Buffer) {
		return fmt.Errorf("tpm: pin storage root: %w", notRoot(t.root.name.Buffer, name))
	}
	t.pin = bytes.Clone(name)
	return nil
}

func notRoot(found, pinned []byte) error {
	return fmt.Errorf("%w: storage root key %x, pinned %x: another TPM, a cleared one, or something on the bus", hsm.ErrWrongIdentity, found, pinned)
}

// StorageRoot returns the name of the storage root key: the parent of all keys
// here, and the key to which sessions are salted.
func (t *TPM) StorageRoot(ctx context.Context) (name []byte, err error) {
	err = t.Run(ctx, "storage root", func(tr transport.TPM) error {
		root, err := t.storageRoot(tr)
		if err != nil {
			return err
		}
		name = bytes.Clone(root.name.Buffer)
		return nil
	})
	return name, err
}

// fileRoot returns the parent of the keys of key files, as their format has it:
// the storage root's template with an empty unique field, where the provisioning
// guidance, which storageRoot follows, has zeros.
func (t *TPM) fileRoot(tr transport.TPM) (root *Object, err error) {
	if t.file == nil {
		template := tpm2.ECCSRKTemplate
		template.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{})
		if t.file, err = NewPrimary(tr, tpm2.TPMRHOwner, template); err != nil {
			return nil, fmt.Errorf("make the parent of key files: %w", err)
		}
	}
	return t.file, nil
}

// storageRoot returns the storage root key, made from its seed at first use.
func (t *TPM) storageRoot(tr transport.TPM) (*Object, error) {
	if t.root != nil {
		return t.root, nil
	}
	root, err := NewPrimary(tr, tpm2.TPMRHOwner, tpm2.ECCSRKTemplate)
	if err != nil {
		return nil, fmt.Errorf("make storage root key: %w", err)
	}
	if t.pin != nil && !bytes.Equal(t.pin, root.name.Buffer) {
		return nil, notRoot(root.name.Buffer, t.pin)
	}
	t.root = root
	return root, nil
}
