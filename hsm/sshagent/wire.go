package sshagent

import (
	"context"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"slices"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"github.com/keyturn/keyturn/hsm"
)

// do runs op against the agent over a connection of its own, which is cut when
// ctx or the timeout ends: a hung agent holds up nobody else.
func (k *key) do(ctx context.Context, op func(agent.ExtendedAgent) error) error {
	ctx, cancel := context.WithTimeout(ctx, k.cfg.Timeout)
	defer cancel()
	if err := hsm.ContextError(ctx); err != nil {
		return err
	}
	conn, err := new(net.Dialer).DialContext(ctx, "unix", k.cfg.Socket)
	if err != nil {
		return lost(ctx, err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })()

	// The client's errors are texts, so whether the connection or the agent
	// failed is noted below it.
	pipe := &noting{rw: conn}
	err = op(agent.NewClient(pipe))
	if err != nil && pipe.failed != nil {
		return lost(ctx, pipe.failed)
	}
	return err
}

// lost says why the connection ended.
func lost(ctx context.Context, err error) error {
	if late := hsm.ContextError(ctx); late != nil {
		return late
	}
	return fmt.Errorf("%w: no agent answers: %w", hsm.ErrGone, err)
}

// noting keeps the first error of a connection. It has no Close, so that the
// client above starts no goroutine.
type noting struct {
	rw     io.ReadWriter
	failed error
}

func (n *noting) Read(b []byte) (int, error) {
	c, err := n.rw.Read(b)
	n.note(err)
	return c, err
}

func (n *noting) Write(b []byte) (int, error) {
	c, err := n.rw.Write(b)
	n.note(err)
	return c, err
}

func (n *noting) note(err error) {
	if n.failed == nil {
		n.failed = err
	}
}

// convert turns the signature of a key of the given type into the form that
// documents carry: 64 bytes for Ed25519 (RFC 8709, section 6), and for P-256
// the DER of an Ecdsa-Sig-Value (RFC 3279, section 2.2.3), which SSH writes as
// two mpints (RFC 5656, section 3.1.2). A FIDO key's flags and counter, 5 bytes
// (PROTOCOL.u2f, "SSH U2F Signatures"), stand behind it.
func convert(keyType string, sig *ssh.Signature) ([]byte, error) {
	rest := 0
	if isFIDO(keyType) {
		rest = 5
	}
	if sig.Format != keyType || len(sig.Rest) != rest {
		return nil, fmt.Errorf("signature of format %q with %d trailing bytes by a key of type %s", sig.Format, len(sig.Rest), keyType)
	}
	if keyType == ssh.KeyAlgoED25519 || keyType == ssh.KeyAlgoSKED25519 {
		return append(slices.Clone(sig.Blob), sig.Rest...), nil
	}
	var rs struct{ R, S *big.Int }
	if err := ssh.Unmarshal(sig.Blob, &rs); err != nil {
		return nil, fmt.Errorf("signature of %d bytes does not parse: %w", len(sig.Blob), err)
	}
	if rs.R.Sign() <= 0 || rs.S.Sign() <= 0 {
		return nil, errors.New("signature with a number that is not positive")
	}
	der, err := asn1.Marshal(rs)
	return append(der, sig.Rest...), err
}
