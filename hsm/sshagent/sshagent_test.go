package sshagent_test

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/hsm/hsmtest"
	"github.com/keyturn/keyturn/hsm/sshagent"
)

// opensshAgent is OpenSSH's own agent.
type opensshAgent struct {
	dir     string
	options []string
	process *exec.Cmd
}

func (a *opensshAgent) socket() string { return filepath.Join(a.dir, "agent") }

func startAgent(t testing.TB, options ...string) *opensshAgent {
	t.Helper()
	for _, tool := range []string{"ssh-agent", "ssh-add", "ssh-keygen"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip("needs " + tool + " of openssh-client")
		}
	}
	// A socket's path is short; the test's own directory may not be.
	dir, err := os.MkdirTemp("", "agent")
	check(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	a := &opensshAgent{dir: dir, options: options}
	a.start(t)
	t.Cleanup(func() { a.stop(t) })
	return a
}

func (a *opensshAgent) start(t testing.TB) {
	t.Helper()
	a.process = exec.Command("ssh-agent", append(a.options, "-D", "-a", a.socket())...)
	check(t, a.process.Start())
	for range 500 {
		if conn, err := net.Dial("unix", a.socket()); err == nil {
			conn.Close()
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("ssh-agent does not listen after 5 s")
}

func (a *opensshAgent) stop(t testing.TB) {
	t.Helper()
	if err := a.process.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Error(err)
	}
	a.process.Wait() // killed, by intent
	os.Remove(a.socket())
}

// run runs one of OpenSSH's programs against the agent.
func (a *opensshAgent) run(t testing.TB, env []string, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(append(os.Environ(), "SSH_AUTH_SOCK="+a.socket()), env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
	return string(out)
}

// add makes a key of the given type, gives it to the agent with ssh-add's
// options, and returns its URI.
func (a *opensshAgent) add(t testing.TB, keyType string, options ...string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "key")
	a.run(t, nil, "ssh-keygen", "-q", "-t", keyType, "-N", "", "-C", "test", "-f", file)
	a.run(t, nil, "ssh-add", append(options, "-q", file)...)
	fields := strings.Fields(a.run(t, nil, "ssh-keygen", "-l", "-f", file)) // 256 SHA256:… test (ECDSA)
	return "ssh-agent:" + fields[1]
}

func (a *opensshAgent) config() sshagent.Config { return sshagent.Config{Socket: a.socket()} }

func (a *opensshAgent) open(t testing.TB, uri string) hsm.MessageSigner {
	t.Helper()
	k, err := sshagent.Open(context.Background(), a.config(), uri, nil)
	check(t, err)
	return k
}

func sign(k hsm.Key) error {
	_, err := hsm.SignMessage(context.Background(), k, []byte("message"))
	return err
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestConformance(t *testing.T) {
	a := startAgent(t)
	key := func(uri string) func(context.Context, crypto.PublicKey) (hsm.Key, error) {
		return func(ctx context.Context, pinned crypto.PublicKey) (hsm.Key, error) {
			return sshagent.Open(ctx, a.config(), uri, pinned)
		}
	}
	hsmtest.Run(t, hsmtest.Backend{
		Class:   hsm.ClassSoftware,
		P256:    key(a.add(t, "ecdsa")),
		Ed25519: key(a.add(t, "ed25519")),
	})
}

// A token behind the agent, as a YubiKey's PIV slot would be.
func TestTokenBehindAgent(t *testing.T) {
	const module = "/usr/lib/softhsm/libsofthsm2.so"
	for _, tool := range []string{"softhsm2-util", "pkcs11-tool", "/usr/lib/openssh/ssh-pkcs11-helper"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip("needs " + tool)
		}
	}
	dir := t.TempDir()
	conf, ask := filepath.Join(dir, "softhsm2.conf"), filepath.Join(dir, "askpass")
	check(t, os.WriteFile(conf, []byte("directories.tokendir = "+dir+"\n"), 0o600))
	check(t, os.WriteFile(ask, []byte("#!/bin/sh\necho 1234\n"), 0o700))
	t.Setenv("SOFTHSM2_CONF", conf)
	a := startAgent(t)
	a.run(t, nil, "softhsm2-util", "--init-token", "--free", "--label", "alice", "--so-pin", "12345678", "--pin", "1234")
	a.run(t, nil, "pkcs11-tool", "--module", module, "--token-label", "alice", "--login", "--pin", "1234",
		"--keypairgen", "--key-type", "EC:prime256v1", "--label", "sign", "--id", "01", "--usage-sign")
	a.run(t, []string{"SSH_ASKPASS=" + ask, "SSH_ASKPASS_REQUIRE=force", "DISPLAY=:none"}, "ssh-add", "-s", module)
	uri := "ssh-agent:" + strings.Fields(a.run(t, nil, "ssh-add", "-l"))[1]
	k := a.open(t, uri)
	check(t, sign(k))
	a.run(t, nil, "ssh-add", "-e", module)
	if err := sign(k); err == nil || !errors.Is(err, hsm.ErrLocked) && !errors.Is(err, hsm.ErrGone) {
		t.Errorf("the token was taken out: %v, want ErrLocked or ErrGone", err)
	}
}

// An agent that is given a digest would sign the digest of the digest.
func TestDigestRefused(t *testing.T) {
	a := startAgent(t)
	k := a.open(t, a.add(t, "ecdsa"))
	if sig, err := k.SignContext(context.Background(), make([]byte, 32), crypto.SHA256); sig != nil || err == nil || !strings.Contains(err.Error(), "hsm.SignMessage") {
		t.Errorf("a digest: %x, %v", sig, err)
	}
	if sig, err := k.Sign(rand.Reader, make([]byte, 32), crypto.SHA256); sig != nil || err == nil {
		t.Errorf("a digest: %x, %v", sig, err)
	}
	ed := a.open(t, a.add(t, "ed25519"))
	sig, err := ed.Sign(rand.Reader, []byte("message"), crypto.Hash(0))
	check(t, err)
	check(t, hsm.VerifyMessage(ed.Public(), []byte("message"), sig))
}

func TestSocketOfTheEnvironment(t *testing.T) {
	a := startAgent(t)
	uri := a.add(t, "ed25519")
	t.Setenv("SSH_AUTH_SOCK", a.socket())
	k, err := sshagent.Open(context.Background(), sshagent.Config{}, uri, nil)
	check(t, err)
	check(t, sign(k))
	t.Setenv("SSH_AUTH_SOCK", "")
	if _, err := sshagent.Open(context.Background(), sshagent.Config{}, uri, nil); !errors.Is(err, hsm.ErrGone) {
		t.Errorf("without an agent: %v, want ErrGone", err)
	}
}

func TestRefused(t *testing.T) {
	a := startAgent(t)
	good := a.add(t, "ed25519")
	for name, uri := range map[string]string{"RSA": a.add(t, "rsa"), "P-384": a.add(t, "ecdsa-sha2-nistp384"), "a file": "file:/key", "empty": ""} {
		if _, err := sshagent.Open(context.Background(), a.config(), uri, nil); err == nil {
			t.Errorf("%s: opened", name)
		}
	}
	for name, c := range map[string]sshagent.Config{
		"a relative socket": {Socket: "agent"},
		"negative timeout":  {Socket: a.socket(), Timeout: -1},
	} {
		if _, err := sshagent.Open(context.Background(), c, good, nil); err == nil {
			t.Errorf("%s: opened", name)
		}
	}
	if _, err := hsm.SignMessage(context.Background(), a.open(t, good), make([]byte, 1<<17+1)); err == nil {
		t.Error("signed a message that is too long")
	}
	if _, err := hsm.SignMessage(context.Background(), a.open(t, good), make([]byte, 1<<17)); err != nil {
		t.Errorf("the longest message: %v", err)
	}
}

func TestFaultAgentGone(t *testing.T) {
	a := startAgent(t)
	uri := a.add(t, "ecdsa")
	k := a.open(t, uri)
	a.stop(t)
	if err := sign(k); !errors.Is(err, hsm.ErrGone) {
		t.Errorf("no agent: %v, want ErrGone", err)
	}
	a.start(t)
	if err := sign(k); !errors.Is(err, hsm.ErrLocked) {
		t.Errorf("an empty agent: %v, want ErrLocked", err)
	}
	a.add(t, "ecdsa")
	if err := sign(k); !errors.Is(err, hsm.ErrGone) {
		t.Errorf("an agent with another key: %v, want ErrGone", err)
	}
	if _, err := sshagent.Open(context.Background(), a.config(), uri, nil); !errors.Is(err, hsm.ErrGone) {
		t.Errorf("open: %v, want ErrGone", err)
	}
}

func TestFaultAgentLocked(t *testing.T) {
	a := startAgent(t)
	uri := a.add(t, "ecdsa")
	k := a.open(t, uri)
	raw := a.raw(t)
	check(t, raw.Lock([]byte("passphrase")))
	if err := sign(k); !errors.Is(err, hsm.ErrLocked) {
		t.Errorf("locked: %v, want ErrLocked", err)
	}
	if _, err := sshagent.Open(context.Background(), a.config(), uri, nil); !errors.Is(err, hsm.ErrLocked) {
		t.Errorf("open: %v, want ErrLocked", err)
	}
	check(t, raw.Unlock([]byte("passphrase")))
	if err := sign(k); err != nil {
		t.Errorf("unlocked: %v", err)
	}
}

// A key that asks before each use is refused by its user.
func TestFaultUserRefuses(t *testing.T) {
	dir := t.TempDir()
	ask := filepath.Join(dir, "askpass")
	check(t, os.WriteFile(ask, []byte("#!/bin/sh\nexit 1\n"), 0o700))
	t.Setenv("SSH_ASKPASS", ask)
	t.Setenv("SSH_ASKPASS_REQUIRE", "force")
	t.Setenv("DISPLAY", ":none")
	a := startAgent(t)
	k := a.open(t, a.add(t, "ecdsa", "-c"))
	if err := sign(k); !errors.Is(err, hsm.ErrLocked) {
		t.Errorf("refused by its user: %v, want ErrLocked", err)
	}
	check(t, os.WriteFile(ask, []byte("#!/bin/sh\nexit 0\n"), 0o700))
	if err := sign(k); err != nil {
		t.Errorf("allowed by its user: %v", err)
	}
}

func TestFaultKeyExpired(t *testing.T) {
	a := startAgent(t)
	a.add(t, "ed25519")
	k := a.open(t, a.add(t, "ecdsa", "-t", "5"))
	check(t, sign(k))
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		if err := sign(k); errors.Is(err, hsm.ErrGone) {
			return
		} else if err != nil {
			t.Fatalf("after its life in the agent: %v, want ErrGone", err)
		}
	}
	t.Error("signs a minute after its life in the agent")
}

// An agent that hangs holds a caller up until its deadline, and nobody longer.
func TestFaultAgentHangs(t *testing.T) {
	a := startAgent(t)
	uri := a.add(t, "ecdsa")
	short := a.config()
	short.Timeout = 300 * time.Millisecond
	k, err := sshagent.Open(context.Background(), short, uri, nil)
	check(t, err)
	hsmtest.Stop(t, a.process.Process.Pid)
	var all sync.WaitGroup
	for range 16 {
		all.Go(func() {
			start := time.Now()
			if err := sign(k); !errors.Is(err, hsm.ErrTimeout) {
				t.Errorf("stopped: %v, want ErrTimeout", err)
			}
			if took := time.Since(start); took < 250*time.Millisecond || took > 5*time.Second {
				t.Errorf("gave up after %v, want 300ms", took)
			}
		})
	}
	all.Wait()
	ctx, cancel := context.WithCancel(context.Background())
	time.AfterFunc(50*time.Millisecond, cancel)
	if _, err := hsm.SignMessage(ctx, k, []byte("m")); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v, want context.Canceled", err)
	}
	check(t, a.process.Process.Signal(syscall.SIGCONT))
	if err := sign(k); err != nil {
		t.Errorf("going on: %v", err)
	}
}

// raw speaks to the agent without keyturn.
func (a *opensshAgent) raw(t testing.TB) agent.ExtendedAgent {
	t.Helper()
	conn, err := net.Dial("unix", a.socket())
	check(t, err)
	t.Cleanup(func() { conn.Close() })
	return agent.NewClient(conn)
}

// hostile is an agent that answers as it likes.
type hostile struct {
	agent.ExtendedAgent
	keys   []*agent.Key
	answer func(data []byte) *ssh.Signature
}

func (h *hostile) List() ([]*agent.Key, error) { return h.keys, nil }

func (h *hostile) SignWithFlags(_ ssh.PublicKey, data []byte, _ agent.SignatureFlags) (*ssh.Signature, error) {
	return h.answer(data), nil
}

func (h *hostile) Sign(k ssh.PublicKey, data []byte) (*ssh.Signature, error) {
	return h.SignWithFlags(k, data, 0)
}

// serve makes it answer at a socket.
func (h *hostile) serve(t testing.TB) sshagent.Config {
	t.Helper()
	h.ExtendedAgent = agent.NewKeyring().(agent.ExtendedAgent)
	return listen(t, func(conn net.Conn) { agent.ServeAgent(h, conn) })
}

// listen serves each connection at a socket.
func listen(t testing.TB, serve func(net.Conn)) sshagent.Config {
	t.Helper()
	dir, err := os.MkdirTemp("", "agent")
	check(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	check(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() { defer conn.Close(); serve(conn) }()
		}
	}()
	return sshagent.Config{Socket: l.Addr().String(), Timeout: 5 * time.Second}
}

// blobOf is a key as agents list it.
func blobOf(k ssh.PublicKey) *agent.Key { return &agent.Key{Format: k.Type(), Blob: k.Marshal()} }

func TestAttackForgedSignatures(t *testing.T) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	check(t, err)
	holder, err := ssh.NewPublicKey(public)
	check(t, err)
	right := func(data []byte) *ssh.Signature {
		return &ssh.Signature{Format: ssh.KeyAlgoED25519, Blob: ed25519.Sign(private, data)}
	}
	h := &hostile{keys: []*agent.Key{blobOf(holder)}, answer: right}
	k, err := sshagent.Open(context.Background(), h.serve(t), "ssh-agent:"+ssh.FingerprintSHA256(holder), public)
	check(t, err)
	check(t, sign(k))
	for name, answer := range map[string]func([]byte) *ssh.Signature{
		"over another message": func(data []byte) *ssh.Signature { return right(append(data, 0)) },
		"of another format": func(data []byte) *ssh.Signature {
			return &ssh.Signature{Format: ssh.KeyAlgoECDSA256, Blob: ed25519.Sign(private, data)}
		},
		"with trailing bytes": func(data []byte) *ssh.Signature { s := right(data); s.Rest = []byte{1}; return s },
		"cut short":           func(data []byte) *ssh.Signature { s := right(data); s.Blob = s.Blob[:63]; return s },
		"empty":               func([]byte) *ssh.Signature { return &ssh.Signature{Format: ssh.KeyAlgoED25519} },
	} {
		h.answer = answer
		if sig, err := k.SignMessageContext(context.Background(), []byte("message")); sig != nil || !errors.Is(err, hsm.ErrWrongIdentity) {
			t.Errorf("%s: %x, %v, want ErrWrongIdentity", name, sig, err)
		}
	}
}

// What comes over the socket instead of the protocol.
func TestAttackGarbage(t *testing.T) {
	uri := "ssh-agent:SHA256:" + strings.Repeat("A", 43)
	for name, answer := range map[string]string{
		"nothing":              "",
		"half a length":        "\x00\x00",
		"an endless answer":    "\xff\xff\xff\xff",
		"an empty answer":      "\x00\x00\x00\x00",
		"another message":      "\x00\x00\x00\x01\x06",
		"more keys than bytes": "\x00\x00\x00\x05\x0c\x00\x00\xff\xff",
		"a cut answer":         "\x00\x00\x00\x05\x0c",
	} {
		config := listen(t, func(conn net.Conn) {
			request := make([]byte, 5)
			if _, err := io.ReadFull(conn, request); err == nil {
				io.WriteString(conn, answer)
			}
		})
		if _, err := sshagent.Open(context.Background(), config, uri, nil); !errors.Is(err, hsm.ErrGone) {
			t.Errorf("%s: %v, want ErrGone", name, err)
		}
	}
}
