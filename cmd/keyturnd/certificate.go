package main

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"math/big"
	"net/url"
	"slices"
	"sync/atomic"
	"time"

	"github.com/keyturn/keyturn/cmd/internal/config"
	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/dsse"
)

// tlsKey opens the key that is served under, which must be one that the charter
// gives a coordinator: clients pin it. It returns the hosts of that coordinator.
func (s *server) tlsKey(ctx context.Context, uri string, charter *signoff.Charter) (hsm.Key, []string, error) {
	key, err := s.ring.Key(ctx, uri, nil)
	if err != nil {
		return nil, nil, err
	}
	fp, err := hsm.Fingerprint(key.Public())
	if err != nil {
		return nil, nil, err
	}
	var hosts []string
	for _, c := range charter.Coordinators {
		if u, err := url.Parse(c.URL); err == nil && c.TLS == dsse.Digest(fp) && !slices.Contains(hosts, u.Hostname()) {
			hosts = append(hosts, u.Hostname())
		}
	}
	if len(hosts) == 0 {
		return nil, nil, fmt.Errorf("TLS key %s is no coordinator's in the charter: nobody would speak to it", dsse.Digest(fp))
	}
	return key, hosts, nil
}

// certificate returns the certificate to serve under: one that the key signed
// itself, or, where the configuration names a role of Vault's PKI engine, one
// that Vault signed, renewed until ctx ends. Programs of keyturn pin the key and
// look at nothing else in it.
func (s *server) certificate(ctx context.Context, conf *config.Coordinator, charter *signoff.Charter) (func() *tls.Certificate, error) {
	key, hosts, err := s.tlsKey(ctx, conf.TLSKey, charter)
	if err != nil {
		return nil, err
	}
	if conf.TLSVaultRole == "" {
		own, err := selfSigned(key)
		return func() *tls.Certificate { return own }, err
	}
	store, err := s.ring.Vault(ctx)
	if err != nil {
		return nil, err
	}
	r := &renewed{log: s.logger, issue: func(ctx context.Context) ([][]byte, error) {
		return store.Certificate(ctx, conf.TLSVaultRole, key, hosts...)
	}, key: key}
	wait, err := r.renew(ctx)
	if err != nil {
		return nil, err
	}
	go r.run(ctx, wait)
	return r.current.Load, nil
}

func selfSigned(key hsm.Key) (*tls.Certificate, error) {
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}

// A renewed certificate is asked for anew when two thirds of its life are over.
// If that fails the old one goes on being served, past its end too: who pins
// the key does not mind, and others are told by the date.
type renewed struct {
	log     *slog.Logger
	key     hsm.Key
	issue   func(context.Context) ([][]byte, error)
	current atomic.Pointer[tls.Certificate]
}

// retryRenewal is the pause after a failure.
const retryRenewal = time.Minute

// renew asks once and returns when to ask again.
func (r *renewed) renew(ctx context.Context) (time.Duration, error) {
	chain, err := r.issue(ctx)
	if err != nil {
		return retryRenewal, err
	}
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		return retryRenewal, err
	}
	r.current.Store(&tls.Certificate{Certificate: chain, PrivateKey: r.key, Leaf: leaf})
	return max(time.Until(leaf.NotAfter)*2/3, time.Second), nil
}

func (r *renewed) run(ctx context.Context, wait time.Duration) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		var err error
		if wait, err = r.renew(ctx); err != nil && ctx.Err() == nil {
			r.log.Warn("the TLS certificate was not renewed, the old one is served on", "until", r.current.Load().Leaf.NotAfter, "err", err)
		}
	}
}
