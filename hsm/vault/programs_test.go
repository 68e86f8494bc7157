package vault_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/api"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/dsse"
	"github.com/keyturn/keyturn/signoff/signofftest"
)

// A site is a cluster of keyturn's own programs beside a Vault that signs the
// coordinator's certificate and seals for the notary n1.
type site struct {
	*signofftest.Cluster
	t     testing.TB
	vault *server
	bin   string
	addr  string            // of the coordinator
	env   map[string]string // how its programs find Vault and log in
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{t: t, vault: startServer(t), bin: t.TempDir()}
	build := exec.Command("go", "build", "-o", s.bin, "github.com/keyturn/keyturn/cmd/keyturnd", "github.com/keyturn/keyturn/cmd/keyturn-notary")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the programs: %v\n%s", err, out)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	s.addr = l.Addr().String()
	check(t, l.Close())
	s.Cluster = signofftest.Keys(t, func(c *signoff.Charter) { c.Coordinators[0].URL = "https://" + s.addr })
	s.Client, err = api.NewClient([]api.Endpoint{{URL: "https://" + s.addr, TLS: s.Charter.Coordinators[0].TLS}}, nil)
	check(t, err)
	s.Follower = s.NewFollower(s.Client)
	founding, err := dsse.Parse(s.Genesis[0])
	check(t, err)
	check(t, os.WriteFile(s.path("charter.json"), founding.Payload, 0o600))
	check(t, os.WriteFile(s.path("genesis.jsonl"), append(bytes.Join(s.Genesis, []byte("\n")), '\n'), 0o600))
	role, secret := s.vault.roleFiles(t, "keyturn", nil)
	s.env = map[string]string{"VAULT_ADDR": s.vault.url(), "VAULT_CACERT": s.vault.path("ca.pem"),
		"KEYTURN_VAULT_ROLE_ID_FILE": role, "KEYTURN_VAULT_SECRET_ID_FILE": secret}
	return s
}

func (s *site) path(name string) string { return filepath.Join(s.Dir, name) }

// A program is one that runs, and what it has said.
type program struct {
	cmd  *exec.Cmd
	mu   sync.Mutex
	said bytes.Buffer
	done chan struct{}
}

func (p *program) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.said.Write(b)
}

func (p *program) text() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.said.String()
}

// stop asks the program to end and waits until it has.
func (p *program) stop() {
	p.cmd.Process.Signal(os.Interrupt)
	<-p.done
}

// start runs a program with this configuration, under the cluster's anchor.
func (s *site) start(name string, config map[string]string, args ...string) *program {
	s.t.Helper()
	text := fmt.Sprintf("charter: %s\ncharterFile: %s\n", s.ID, s.path("charter.json"))
	for k, v := range config {
		text += k + ": " + v + "\n"
	}
	file := filepath.Join(s.t.TempDir(), "config.yaml")
	check(s.t, os.WriteFile(file, []byte(text), 0o600))
	p := &program{cmd: exec.Command(filepath.Join(s.bin, name), append([]string{"--config", file}, args...)...), done: make(chan struct{})}
	p.cmd.Env, p.cmd.Stdout, p.cmd.Stderr = os.Environ(), p, p
	for k, v := range s.env {
		p.cmd.Env = append(p.cmd.Env, k+"="+v)
	}
	check(s.t, p.cmd.Start())
	go func() { p.cmd.Wait(); close(p.done) }()
	s.t.Cleanup(func() {
		p.stop()
		if s.t.Failed() {
			s.t.Logf("%s %v said: %s", name, args, p.text())
		}
	})
	return p
}

// ends waits for a program that ends by itself.
func (s *site) ends(p *program) {
	s.t.Helper()
	select {
	case <-p.done:
	case <-time.After(2 * time.Minute):
		s.t.Fatalf("it runs on: %s", p.text())
	}
}

// refuses wants a program to end by itself, with words in what it says.
func (s *site) refuses(p *program, words string) {
	s.t.Helper()
	s.ends(p)
	if p.cmd.ProcessState.Success() || !strings.Contains(p.text(), words) {
		s.t.Errorf("%v, want a refusal with %q: %s", p.cmd.ProcessState, words, p.text())
	}
}

// coordinator starts keyturnd with a certificate by this role.
func (s *site) coordinator(role string) *program {
	return s.start("keyturnd", map[string]string{"listen": s.addr, "dir": s.path("coordinator"), "genesis": s.path("genesis.jsonl"),
		"logKey": "file:" + s.path("log.pem"), "tlsKey": "file:" + s.path("tls.pem"), "tlsVaultRole": role})
}

// notary starts keyturn-notary with this sealing key.
func (s *site) notary(name, seal string, args ...string) *program {
	return s.start("keyturn-notary", map[string]string{"name": name, "dir": s.path(name), "signing": "file:" + s.path(name+".pem"),
		"exchange": "file:" + s.path(name+"-x.pem"), "witness": "file:" + s.path(name+"-w.pem"), "seal": seal}, args...)
}

// until waits for what must come by itself.
func (s *site) until(what string, ok func() bool) {
	s.t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatalf("waited 2 min for %s", what)
		}
	}
}

// browser speaks to the coordinator as tools that look at certificates do, over
// a new connection each time or over one that stays.
func (s *site) browser(roots *x509.CertPool, stays bool) *http.Client {
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: !stays, TLSClientConfig: &tls.Config{
		InsecureSkipVerify: true, // for the time, which is the certificate's here: this machine may be busy for as long as it lives
		VerifyConnection: func(state tls.ConnectionState) error {
			leaf := state.PeerCertificates[0]
			_, err := leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: "127.0.0.1", CurrentTime: leaf.NotAfter.Add(-time.Second)})
			return err
		},
	}}}
}

// served fetches the checkpoint and returns the certificate it came under.
func (s *site) served(c *http.Client) *x509.Certificate {
	s.t.Helper()
	answer, err := c.Get("https://" + s.addr + "/v1/checkpoint?size=0&wait=0")
	check(s.t, err)
	_, err = io.Copy(io.Discard, answer.Body)
	check(s.t, errors.Join(err, answer.Body.Close()))
	if answer.StatusCode != http.StatusOK {
		s.t.Fatalf("the coordinator answers %s", answer.Status)
	}
	return answer.TLS.PeerCertificates[0]
}

// keyturnd serves under certificates of Vault's PKI, which it renews while it
// serves, and keyturn-notary keeps its share by Vault's transit engine: both
// refuse a Vault of another authority, and what a sealed one has to say.
func TestFaultProgramsOnVault(t *testing.T) {
	s := newSite(t)
	roots := newAuthority(t, s.vault)
	s.vault.must(t, "pki/roles/coordinator", map[string]any{"allow_ip_sans": true, "allow_any_name": true, "key_type": "ec", "key_bits": 256, "ttl": "6s"})
	seal := s.vault.newKey(t, "north", "aes256-gcm96")

	s.env["VAULT_CACERT"] = newPKI(t).path("ca.pem")
	n1 := s.notary("n1", seal, "run")
	s.ends(n1)
	if strings.Contains(n1.text(), "lock the process in memory") {
		t.Skip("needs memory that can be locked without a limit")
	}
	s.refuses(n1, "the server's certificate")
	s.refuses(s.coordinator("pki/sign/coordinator"), "the server's certificate")
	s.env["VAULT_CACERT"] = s.vault.path("ca.pem")
	s.refuses(s.coordinator("pki/sign/other"), "permission denied")

	coordinator := s.coordinator("pki/sign/coordinator")
	s.until("the coordinator", func() bool { return strings.Contains(coordinator.text(), "msg=serving") })
	running := map[string]*program{}
	for name, seal := range map[string]string{"n1": seal, "n2": "file:" + s.path("n2-s.pem"), "n3": "file:" + s.path("n3-s.pem"), "n4": "file:" + s.path("n4-s.pem")} {
		s.ends(s.notary(name, seal, "init"))
		running[name] = s.notary(name, seal, "run")
	}
	s.Wait("a group key", func(s *authority.State) bool { return s.Group != nil })

	stays, fresh := s.browser(roots, true), s.browser(roots, false)
	first := s.served(stays)
	s.until("another certificate", func() bool {
		s.served(stays)
		return s.served(fresh).SerialNumber.Cmp(first.SerialNumber) != 0
	})
	if again := s.served(stays); again.SerialNumber.Cmp(first.SerialNumber) != 0 {
		t.Error("the renewal ended a connection")
	}
	if _, err := s.browser(x509.NewCertPool(), false).Get("https://" + s.addr); err == nil {
		t.Error("the certificate is good for whoever trusts another authority")
	}

	check(t, s.vault.root.Sys().Seal())
	s.until("the renewal to fail", func() bool { return strings.Contains(coordinator.text(), "was not renewed") })
	s.served(fresh)
	running["n1"].stop()
	s.refuses(s.notary("n1", seal, "run"), "key store sealed")

	s.vault.open(t)
	running["n4"].stop() // so that the share of n1 is needed
	s.notary("n1", seal, "run")
	s.Tick()
	req := s.Request("alice", signoff.ActionPolicyChange, func(r *signoff.Request) {
		r.Policy = &signoff.PolicyChange{Policy: signofftest.Policy + "# changed\n"}
	})
	check(t, s.Append(req))
	for _, p := range []string{"bob", "carol", "dave", "erin"} {
		check(t, s.Append(s.Decide(p, req.Digest(), signoff.Approve)))
	}
	s.Wait("the warrant", func(s *authority.State) bool { return !s.Requests[req.Digest()].Warrant.IsZero() })
}
