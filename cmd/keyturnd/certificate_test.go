package main

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"log/slog"
	"math/big"
	"path/filepath"
	"testing"
	"time"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/hsm/file"
)

// A certificate is renewed before its end, and served on if that fails.
func TestRenewedCertificate(t *testing.T) {
	uri := "file:" + filepath.Join(t.TempDir(), "tls.pem")
	if _, err := file.Generate(uri, hsm.KindP256); err != nil {
		t.Fatal(err)
	}
	key, err := file.Open(uri, nil)
	if err != nil {
		t.Fatal(err)
	}
	issue := func(serial int64, life time.Duration) ([][]byte, error) {
		template := &x509.Certificate{SerialNumber: big.NewInt(serial), NotAfter: time.Now().Add(life)}
		der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
		return [][]byte{der}, err
	}
	asked, serial := make(chan int64), int64(0)
	r := &renewed{log: slog.New(slog.DiscardHandler), key: key, issue: func(context.Context) ([][]byte, error) {
		if serial++; serial > 1 {
			asked <- serial
		}
		if serial == 3 {
			return nil, errors.New("sealed")
		}
		return issue(serial, 2*time.Second)
	}}
	wait, err := r.renew(t.Context())
	if err != nil || wait > 2*time.Second || r.current.Load().Leaf.SerialNumber.Int64() != 1 {
		t.Fatalf("asked for the next after %v: %v", wait, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); r.run(ctx, 0) }()
	<-asked
	<-asked // the second is in place, the third fails
	cancel()
	<-done
	if got := r.current.Load().Leaf.SerialNumber.Int64(); got != 2 {
		t.Errorf("certificate %d is served, want the second", got)
	}
	if wait, err := (&renewed{issue: func(context.Context) ([][]byte, error) { return nil, errors.New("sealed") }}).renew(t.Context()); err == nil || wait != retryRenewal {
		t.Errorf("a failure is tried again after %v: %v", wait, err)
	}
}
