package tpm

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/keyturn/keyturn/hsm"
)

// The NV indices that belong to a TPM's owner (TCG Registry of Reserved TPM 2.0
// Handles and Localities, section 2.2).
const (
	minIndex = 0x01800000
	maxIndex = 0x01bfffff
)

// A CounterKey is what it takes to use a counter. Whoever has it can move the
// counter on, and nobody can move it back.
type CounterKey struct {
	Index uint32 `json:"index"` // NV index, 0x01800000 to 0x01bfffff
	Auth  []byte `json:"auth"`  // auth value, 32 bytes, none of them zero; secret
	Root  []byte `json:"root"`  // name of the TPM's storage root key, 34 bytes
}

// A Counter is an NV counter (Part 3, section 31): 64 bits that only grow, in one
// TPM, for good. One that was deleted and defined again begins above every
// counter that the TPM ever had.
//
// A Counter holds one salted session for as long as it is open, and every command
// rolls that session's nonces. Of two copies of a process, as a restored snapshot
// of its memory makes them, the one that comes second is refused by the TPM, and
// so are both after a TPM reset.
type Counter struct {
	tpm     *TPM
	index   uint32
	session tpm2.Session
	end     func() error
}

// NewCounter defines a counter at an NV index of the owner's, under a new secret,
// and gives it its first value. The index must be free.
func (t *TPM) NewCounter(ctx context.Context, index uint32) (CounterKey, error) {
	if err := checkIndex(index); err != nil {
		return CounterKey{}, fmt.Errorf("tpm: define counter: %w", err)
	}
	root, err := t.StorageRoot(ctx)
	if err != nil {
		return CounterKey{}, err
	}
	// In hex, because go-tpm cuts an auth value at its first zero byte.
	random := make([]byte, 16)
	rand.Read(random)
	key := CounterKey{Index: index, Auth: []byte(hex.EncodeToString(random)), Root: root}
	err = t.Run(ctx, fmt.Sprintf("define counter 0x%08x", index), func(tr transport.TPM) error {
		err := t.session(tr, encryptIn, nil, func(s tpm2.Session) error {
			_, err := tpm2.NVDefineSpace{
				AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Name: tpm2.HandleName(tpm2.TPMRHOwner), Auth: s},
				Auth:       tpm2.TPM2BAuth{Buffer: key.Auth},
				PublicInfo: tpm2.New2B(counterPublic(index, false)),
			}.Execute(tr)
			return err
		})
		if errors.Is(err, tpm2.TPMRCNVDefined) {
			return fmt.Errorf("the index is taken: name another, or, if nothing depends on what is there, delete it (tpm2_nvundefine -C o 0x%08x): %w", index, err)
		}
		if err != nil {
			return err
		}
		return t.counterSession(tr, key.Auth, func(s tpm2.Session, end func() error) error {
			return errors.Join(increment(tr, s, index, false), end())
		})
	})
	if err != nil {
		return CounterKey{}, err
	}
	return key, nil
}

func checkIndex(index uint32) error {
	if index < minIndex || index > maxIndex {
		return fmt.Errorf("NV index 0x%08x is not the owner's: 0x%08x to 0x%08x are", index, minIndex, maxIndex)
	}
	return nil
}

// Counter opens a counter that NewCounter made, and pins the storage root to the
// one of then. The caller closes it.
func (t *TPM) Counter(ctx context.Context, key CounterKey) (*Counter, error) {
	what := fmt.Sprintf("open counter 0x%08x", key.Index)
	err := checkIndex(key.Index)
	if err == nil && (len(key.Auth) != 32 || bytes.IndexByte(key.Auth, 0) >= 0) {
		err = errors.New("its auth value is not 32 bytes without a zero")
	}
	if err != nil {
		return nil, fmt.Errorf("tpm: %s: %w", what, err)
	}
	if err := t.PinStorageRoot(key.Root); err != nil {
		return nil, err
	}
	c := &Counter{tpm: t, index: key.Index}
	err = t.Run(ctx, what, func(tr transport.TPM) error {
		return t.counterSession(tr, key.Auth, func(s tpm2.Session, end func() error) error {
			c.session, c.end = s, end
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	return c, nil
}

// counterSession gives f a salted session that knows the auth value. What is read
// is no secret, so nothing is encrypted; all of it is authenticated.
func (t *TPM) counterSession(tr transport.TPM, auth []byte, f func(s tpm2.Session, end func() error) error) error {
	var s tpm2.Session
	var end func() error
	err := t.salted(tr, func(opts []tpm2.AuthOption) (err error) {
		s, end, err = tpm2.HMACSession(tr, tpm2.TPMAlgSHA256, nonceSize, append(opts, tpm2.Auth(auth))...)
		return err
	})
	if err != nil {
		return err
	}
	return f(s, end)
}

// Read returns the counter's value.
func (c *Counter) Read(ctx context.Context) (value uint64, err error) {
	err = c.run(ctx, "read", func(tr transport.TPM) error {
		value, err = read(tr, c.session, c.index)
		return err
	})
	return value, err
}

// Increment moves the counter on by one and returns its value then. After an
// error it may have been moved or not.
func (c *Counter) Increment(ctx context.Context) (value uint64, err error) {
	err = c.run(ctx, "increment", func(tr transport.TPM) error {
		if err := increment(tr, c.session, c.index, true); err != nil {
			return err
		}
		value, err = read(tr, c.session, c.index)
		return err
	})
	return value, err
}

func (c *Counter) run(ctx context.Context, what string, f func(transport.TPM) error) error {
	what = fmt.Sprintf("%s counter 0x%08x", what, c.index)
	return c.tpm.Run(ctx, what, func(tr transport.TPM) error {
		switch err := f(tr); {
		case errors.Is(err, tpm2.TPMRCHandle):
			return fmt.Errorf("%w: it was deleted, or the TPM was cleared: %w", hsm.ErrGone, err)
		case errors.Is(err, tpm2.TPMRCAuthFail), errors.Is(err, tpm2.TPMRCBadAuth):
			// In other words than package tpm2's: no PIN is concerned.
			return fmt.Errorf("%w: the TPM does not know who asks: the counter was deleted and defined anew, or another copy of this process used it (%v)", hsm.ErrWrongIdentity, err)
		default:
			return err
		}
	})
}

// Close ends the session. The counter stays.
func (c *Counter) Close() error {
	return c.tpm.Run(context.Background(), fmt.Sprintf("close counter 0x%08x", c.index), func(transport.TPM) error { return c.end() })
}

// counterPublic is the index's public area, from which its name is computed here:
// an answer counts only if the TPM's is the same. The first increment sets written.
func counterPublic(index uint32, written bool) tpm2.TPMSNVPublic {
	return tpm2.TPMSNVPublic{
		NVIndex: tpm2.TPMHandle(index), NameAlg: tpm2.TPMAlgSHA256, DataSize: 8,
		Attributes: tpm2.TPMANV{NT: tpm2.TPMNTCounter, AuthRead: true, AuthWrite: true, NoDA: true, Written: written},
	}
}

func counterHandle(index uint32, written bool) (tpm2.NamedHandle, error) {
	public := counterPublic(index, written)
	name, err := tpm2.NVName(&public)
	if err != nil {
		return tpm2.NamedHandle{}, err
	}
	return tpm2.NamedHandle{Handle: tpm2.TPMHandle(index), Name: *name}, nil
}

func increment(tr transport.TPM, s tpm2.Session, index uint32, written bool) error {
	h, err := counterHandle(index, written)
	if err != nil {
		return err
	}
	_, err = tpm2.NVIncrement{AuthHandle: tpm2.AuthHandle{Handle: h.Handle, Name: h.Name, Auth: s}, NVIndex: h}.Execute(tr)
	return err
}

func read(tr transport.TPM, s tpm2.Session, index uint32) (uint64, error) {
	h, err := counterHandle(index, true)
	if err != nil {
		return 0, err
	}
	rsp, err := tpm2.NVRead{AuthHandle: tpm2.AuthHandle{Handle: h.Handle, Name: h.Name, Auth: s}, NVIndex: h, Size: 8}.Execute(tr)
	if err != nil {
		return 0, err
	}
	if len(rsp.Data.Buffer) != 8 {
		return 0, fmt.Errorf("a counter of %d bytes, want 8", len(rsp.Data.Buffer))
	}
	return binary.BigEndian.Uint64(rsp.Data.Buffer), nil
}
