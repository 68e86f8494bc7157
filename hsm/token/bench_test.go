//go:build cgo

package token_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"crypto"

	"github.com/miekg/pkcs11"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"github.com/keyturn/keyturn/hsm"
)

// BenchmarkSign makes P-256 signatures with one key of one SoftHSM token: here,
// by the module in this process, and by OpenSSH's agent. The ratios are of
// signatures per second, so above 1 is faster than the peer; clients sign one
// after the other, each on its own connection to the agent.
func BenchmarkSign(b *testing.B) {
	s, tok := newToken(b, "alice")
	k := openKey(b, tok, "p256", nil)
	digest := sha256.Sum256([]byte("m"))
	ours := func() (func() error, func()) {
		return func() error { _, err := k.SignContext(context.Background(), digest[:], crypto.SHA256); return err }, func() {}
	}
	inside, finish := inProcess(b, digest[:])
	defer finish()
	theirs := newAgent(b, s, k)
	for _, clients := range []int{1, 50} {
		b.Run(fmt.Sprint(clients), func(b *testing.B) {
			var took [3][]time.Duration
			peers := []func() (func() error, func()){ours, inside, theirs}
			const rounds = 15 // in turn, and of each the median, so that a busy moment decides nothing
			n := max(b.N/rounds, clients)
			for range rounds {
				for i, peer := range peers {
					took[i] = append(took[i], signAll(b, clients, n, peer))
				}
			}
			median := func(i int) float64 {
				slices.Sort(took[i])
				return took[i][rounds/2].Seconds()
			}
			b.ReportMetric(float64(n)/median(0), "sign/s")
			b.ReportMetric(median(0)/float64(n)*float64(clients)*1e6, "µs-latency")
			b.ReportMetric(median(1)/median(0), "x-in-process")
			b.ReportMetric(median(2)/median(0), "x-ssh-agent")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// signAll makes n signatures by clients and returns what it took.
func signAll(b *testing.B, clients, n int, peer func() (func() error, func())) time.Duration {
	var left atomic.Int64
	left.Store(int64(n))
	signs, ends := make([]func() error, clients), make([]func(), clients)
	for i := range signs {
		signs[i], ends[i] = peer()
	}
	var all sync.WaitGroup
	start := time.Now()
	for _, sign := range signs {
		all.Go(func() {
			for left.Add(-1) >= 0 {
				if err := sign(); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
	took := time.Since(start)
	for _, end := range ends {
		end()
	}
	return took
}

// inProcess signs by the module, loaded here, with a session for each client.
func inProcess(b *testing.B, digest []byte) (client func() (func() error, func()), finish func()) {
	p := pkcs11.New(softHSM)
	must := func(err error) {
		if err != nil {
			b.Fatal(err)
		}
	}
	must(p.Initialize())
	slots, err := p.GetSlotList(true)
	must(err)
	var slot uint
	for _, id := range slots {
		if info, err := p.GetTokenInfo(id); err == nil && info.Label == "alice" {
			slot = id
		}
	}
	base, err := p.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION)
	must(err)
	must(p.Login(base, pkcs11.CKU_USER, userPIN))
	must(p.FindObjectsInit(base, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_CLASS, uint(pkcs11.CKO_PRIVATE_KEY)), pkcs11.NewAttribute(pkcs11.CKA_LABEL, "p256")}))
	found, _, err := p.FindObjects(base, 1)
	must(err)
	must(p.FindObjectsFinal(base))
	client = func() (func() error, func()) {
		session, err := p.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION)
		must(err)
		return func() error {
			if err := p.SignInit(session, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_ECDSA, nil)}, found[0]); err != nil {
				return err
			}
			_, err := p.Sign(session, digest)
			return err
		}, func() { p.CloseSession(session) }
	}
	return client, func() { p.Finalize(); p.Destroy() }
}

// newAgent has OpenSSH's agent hold the token.
func newAgent(b *testing.B, s *store, k hsm.Key) func() (func() error, func()) {
	for _, tool := range []string{"ssh-agent", "ssh-add", "/usr/lib/openssh/ssh-pkcs11-helper"} {
		if _, err := exec.LookPath(tool); err != nil {
			b.Skipf("needs %s (package openssh-client), to compare with", tool)
		}
	}
	dir, err := os.MkdirTemp("", "agent") // a socket's path is short
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { os.RemoveAll(dir) })
	socket, ask := filepath.Join(dir, "s"), filepath.Join(dir, "ask")
	if err := os.WriteFile(ask, []byte("#!/bin/sh\necho "+userPIN+"\n"), 0o700); err != nil {
		b.Fatal(err)
	}
	process := exec.Command("ssh-agent", "-D", "-a", socket)
	process.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := process.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { process.Process.Kill(); process.Wait() })
	dial := func() agent.ExtendedAgent {
		for range 1000 {
			if conn, err := net.Dial("unix", socket); err == nil {
				return agent.NewClient(conn)
			}
			time.Sleep(10 * time.Millisecond)
		}
		b.Fatal("ssh-agent does not listen")
		return nil
	}
	dial()
	add := exec.Command("ssh-add", "-s", softHSM)
	add.Env = append(os.Environ(), "SSH_AUTH_SOCK="+socket, "SSH_ASKPASS="+ask, "SSH_ASKPASS_REQUIRE=force", "DISPLAY=:none")
	if out, err := add.CombinedOutput(); err != nil {
		b.Fatalf("ssh-add: %v\n%s", err, strings.TrimSpace(string(out)))
	}
	public, err := ssh.NewPublicKey(k.Public())
	if err != nil {
		b.Fatal(err)
	}
	return func() (func() error, func()) {
		client := dial()
		return func() error { _, err := client.Sign(public, []byte("m")); return err }, func() {}
	}
}
