package tpm

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/keyturn/keyturn/hsm"
)

// An Object is a key that is in the TPM, or outside as a context that this TPM
// encrypted and loads again until its next reset.
type Object struct {
	public  tpm2.TPMTPublic
	name    tpm2.TPM2BName
	context *tpm2.TPMSContext // nil while handle is used
	handle  tpm2.TPMHandle    // loaded for as long as the object lives
	gone    bool
}

// Public returns the TPMT_PUBLIC.
func (o *Object) Public() []byte { return tpm2.Marshal(o.public) }

// Name returns the TPM name, recomputed from the public area.
func (o *Object) Name() []byte { return bytes.Clone(o.name.Buffer) }

// newObject recomputes the name, so that nothing is believed that only travelled
// on the bus.
func newObject(public tpm2.TPMTPublic) (*Object, error) {
	name, err := tpm2.ObjectName(&public)
	if err != nil {
		return nil, err
	}
	return &Object{public: public, name: *name}, nil
}

// NewPrimary makes the primary key that a template stands for in a hierarchy
// with an empty auth value, and keeps its context.
func NewPrimary(tr transport.TPM, hierarchy tpm2.TPMHandle, template tpm2.TPMTPublic) (*Object, error) {
	o, err := loadPrimary(tr, hierarchy, template)
	if err != nil {
		return nil, err
	}
	return o, o.save(tr)
}

// loadPrimary makes a primary key and leaves it loaded.
func loadPrimary(tr transport.TPM, hierarchy tpm2.TPMHandle, template tpm2.TPMTPublic) (*Object, error) {
	rsp, err := tpm2.CreatePrimary{
		PrimaryHandle: tpm2.AuthHandle{Handle: hierarchy, Auth: tpm2.PasswordAuth(nil)},
		InPublic:      tpm2.New2B(template),
	}.Execute(tr)
	if err != nil {
		return nil, err
	}
	public, err := rsp.OutPublic.Contents()
	if err != nil {
		return nil, errors.Join(err, flush(tr, rsp.ObjectHandle))
	}
	o, err := newObject(*public)
	if err != nil {
		return nil, errors.Join(err, flush(tr, rsp.ObjectHandle))
	}
	o.handle = rsp.ObjectHandle
	return o, nil
}

// save moves a loaded object out of the TPM.
func (o *Object) save(tr transport.TPM) error {
	rsp, err := tpm2.ContextSave{SaveHandle: o.handle}.Execute(tr)
	if err := errors.Join(err, flush(tr, o.handle)); err != nil {
		return err
	}
	o.context, o.handle = &rsp.Context, 0
	return nil
}

func flush(tr transport.TPM, h tpm2.TPMHandle) error {
	_, err := tpm2.FlushContext{FlushHandle: h}.Execute(tr)
	return err
}

// Use calls f with the object loaded. Call it within [TPM.Run].
func (o *Object) Use(tr transport.TPM, f func(h tpm2.NamedHandle) error) error {
	if o.gone {
		return fmt.Errorf("%w: the key was flushed", hsm.ErrGone)
	}
	if o.context == nil {
		return f(tpm2.NamedHandle{Handle: o.handle, Name: o.name})
	}
	rsp, err := tpm2.ContextLoad{Context: *o.context}.Execute(tr)
	if err != nil {
		return fmt.Errorf("load key (after a TPM reset it must be opened again): %w", err)
	}
	return errors.Join(f(tpm2.NamedHandle{Handle: rsp.LoadedHandle, Name: o.name}), flush(tr, rsp.LoadedHandle))
}

// UseWithAuth is Use for an object that is used by its empty auth value.
func (o *Object) UseWithAuth(tr transport.TPM, f func(h tpm2.AuthHandle) error) error {
	return o.Use(tr, func(h tpm2.NamedHandle) error {
		return f(tpm2.AuthHandle{Handle: h.Handle, Name: h.Name, Auth: tpm2.PasswordAuth(nil)})
	})
}

// A Blob is a key as it is kept outside its TPM: useless anywhere else.
type Blob struct {
	Public  []byte `json:"public"`  // TPMT_PUBLIC
	Private []byte `json:"private"` // content of a TPM2B_PRIVATE, encrypted by the TPM
}

// create makes a key under the storage root.
func (t *TPM) create(ctx context.Context, what string, template tpm2.TPMTPublic) (Blob, error) {
	var b Blob
	err := t.Run(ctx, what, func(tr transport.TPM) error {
		root, err := t.storageRoot(tr)
		if err != nil {
			return err
		}
		return root.UseWithAuth(tr, func(parent tpm2.AuthHandle) error {
			rsp, err := tpm2.Create{ParentHandle: parent, InPublic: tpm2.New2B(template)}.Execute(tr)
			if err != nil {
				return err
			}
			b = Blob{Public: rsp.OutPublic.Bytes(), Private: rsp.OutPrivate.Buffer}
			return nil
		})
	})
	return b, err
}

// load brings a blob back under the storage root.
func (t *TPM) load(ctx context.Context, what string, b Blob) (*Object, error) {
	return t.loadUnder(ctx, what, b, t.storageRoot)
}

func (t *TPM) loadUnder(ctx context.Context, what string, b Blob, parent func(transport.TPM) (*Object, error)) (*Object, error) {
	var o *Object
	err := t.Run(ctx, what, func(tr transport.TPM) error {
		root, err := parent(tr)
		if err != nil {
			return err
		}
		public, err := tpm2.Unmarshal[tpm2.TPMTPublic](b.Public)
		if err != nil {
			return fmt.Errorf("public area: %w", err)
		}
		if o, err = newObject(*public); err != nil {
			return err
		}
		err = root.UseWithAuth(tr, func(parent tpm2.AuthHandle) error {
			rsp, err := tpm2.Load{ParentHandle: parent, InPublic: tpm2.New2B(*public), InPrivate: tpm2.TPM2BPrivate{Buffer: b.Private}}.Execute(tr)
			if err != nil {
				return err
			}
			o.handle = rsp.ObjectHandle
			return o.save(tr)
		})
		if err != nil {
			return fmt.Errorf("%w: it is not a key of this TPM, or was damaged: %w", hsm.ErrGone, err)
		}
		return nil
	})
	return o, err
}
