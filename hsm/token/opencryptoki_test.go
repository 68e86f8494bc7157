package token_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto"
	"crypto/ecdh"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/hsm/hsmtest"
	"github.com/keyturn/keyturn/hsm/secret"
	"github.com/keyturn/keyturn/hsm/token"
)

// Opencryptoki, as make unpacks it from Debian 13: the soft token of Debian 12
// has neither EC nor AES-GCM.
const (
	unpacked     = "../../build/opencryptoki"
	openCryptoki = "/usr/lib/x86_64-linux-gnu/pkcs11/libopencryptoki.so" // in there
	cryptokiSO   = "40861000"                                            // it takes 4 to 8 digits
	cryptokiPIN  = "73192000"
)

// cryptoki is opencryptoki with one soft token, "alice", in a root and in
// namespaces of its own.
type cryptoki struct {
	*store
	enter  string // the command that enters the namespaces
	daemon int    // process id of the slot daemon
	stop   func() // kills it
}

func newOpenCryptoki(t *testing.T) *cryptoki {
	t.Helper()
	usr, err := filepath.Abs(unpacked)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(usr); err != nil {
		t.Skip("needs opencryptoki (make build/opencryptoki)")
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root, to run opencryptoki in namespaces of its own")
	}
	if out, err := exec.Command("unshare", "--mount", "--ipc", "mount", "--make-rprivate", "/").CombinedOutput(); err != nil {
		t.Skipf("needs the right to make mount and IPC namespaces: %v: %s", err, out)
	}
	c := &cryptoki{store: &store{t.TempDir(), token.Config{Module: openCryptoki}}}
	holder := exec.Command("unshare", "--mount", "--ipc", "sh", "testdata/opencryptoki.sh", usr, helperPath)
	var said bytes.Buffer
	holder.Stderr = &said
	in, err := holder.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := holder.StdoutPipe()
	if err == nil {
		err = holder.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); holder.Wait() })
	if line, _ := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		holder.Wait()
		t.Fatalf("opencryptoki.sh: %s\n%s", holder.ProcessState, said.String())
	}
	proc := fmt.Sprintf("/proc/%d/ns/", holder.Process.Pid)
	c.enter = fmt.Sprintf("nsenter --mount=%smnt --ipc=%sipc ", proc, proc)
	c.start(t)
	c.configure(t, "-P -S 87654321 -n "+cryptokiSO) // from the factory's PIN
	c.initialise(t)
	c.cfg.Helper = filepath.Join(c.dir, "keyturn-token")
	script := fmt.Sprintf("#!/bin/sh\nexec %s chroot /mnt /keyturn-token\n", c.enter)
	if err := os.WriteFile(c.cfg.Helper, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	return c
}

// pkcsconf runs opencryptoki's tool, which asks only for a label.
func (c *cryptoki) pkcsconf(arguments string) ([]byte, error) {
	tool := exec.Command("sh", "-c", fmt.Sprintf("exec %s chroot /mnt /usr/sbin/pkcsconf %s", c.enter, arguments))
	tool.Stdin = strings.NewReader("alice\n")
	return tool.CombinedOutput()
}

// initialise makes the token an empty one, with our label and PINs.
func (c *cryptoki) initialise(t *testing.T) {
	t.Helper()
	c.configure(t, "-I -S "+cryptokiSO)
	c.configure(t, "-u -S "+cryptokiSO+" -n "+cryptokiPIN)
}

func (c *cryptoki) configure(t *testing.T, step string) {
	t.Helper()
	if out, err := c.pkcsconf("-c 0 " + step); err != nil {
		t.Fatalf("pkcsconf %s: %v\n%s", step, err, out)
	}
}

// start starts the slot daemon, as the user that it would turn into by itself:
// that would cost it the signal by which it ends with us.
func (c *cryptoki) start(t *testing.T) {
	t.Helper()
	daemon := exec.Command("sh", "-c", fmt.Sprintf(`exec %s setpriv --reuid 60123 --regid 0 --clear-groups \
		--inh-caps +sys_chroot --ambient-caps +sys_chroot --pdeathsig keep chroot /mnt /usr/sbin/pkcsslotd -f`, c.enter))
	daemon.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var said bytes.Buffer
	daemon.Stdout, daemon.Stderr = &said, &said
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { daemon.Wait(); close(ended) }()
	c.daemon = daemon.Process.Pid
	c.stop = func() { daemon.Process.Kill(); <-ended }
	t.Cleanup(c.stop)
	waitFor(t, "the slot daemon", func() bool {
		select {
		case <-ended:
			t.Fatalf("pkcsslotd: %s\n%s", daemon.ProcessState, said.String())
		default:
		}
		_, err := c.pkcsconf("-t")
		return err == nil
	})
}

// open opens the token, to be closed with the test.
func (c *cryptoki) open(t *testing.T) *token.Token {
	t.Helper()
	tok, err := token.Open(t.Context(), c.cfg, "pkcs11:token=alice", pin(cryptokiPIN))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tok.Close() })
	return tok
}

func (s *store) info(t *testing.T) token.TokenInfo {
	t.Helper()
	tokens, err := token.Tokens(context.Background(), s.cfg)
	if err != nil || len(tokens) == 0 {
		t.Fatalf("%d tokens: %v", len(tokens), err)
	}
	return tokens[0]
}

func TestConformanceOpenCryptoki(t *testing.T) {
	tok := newOpenCryptoki(t).open(t)
	keyFlags(t, tok, hsm.KindP256, hsm.KindECDH, hsm.KindSeal)
	generate(t, tok, "other", hsm.KindSeal)
	sealer := func(label string) func(context.Context) (hsm.Sealer, error) {
		return func(ctx context.Context) (hsm.Sealer, error) { return tok.Sealer(ctx, label) }
	}
	hsmtest.Run(t, hsmtest.Backend{
		Class: hsm.ClassSoftware,
		P256: func(ctx context.Context, pinned crypto.PublicKey) (hsm.Key, error) {
			return tok.Key(ctx, "p256", pinned)
		},
		Decrypter: func(ctx context.Context, pinned *ecdh.PublicKey) (hsm.Decrypter, error) {
			return tok.Decrypter(ctx, "ecdh", pinned)
		},
		Sealer:      sealer("seal"),
		OtherSealer: sealer("other"),
	})
}

// A module of opencryptoki has to find the slot daemon when it starts, and not
// afterwards: a helper that runs does without, a new one says what it misses,
// and works again with the next daemon. One that hangs is given up in time.
func TestFaultSlotDaemonKilledUnderLoad(t *testing.T) {
	c := newOpenCryptoki(t)
	tok := c.open(t)
	generate(t, tok, "p256", hsm.KindP256)
	k := openKey(t, tok, "p256", nil)
	l := startLoad(k)
	l.await(t, "signatures", &l.signed)
	c.stop()
	l.await(t, "signatures without the daemon", &l.signed)
	kill(t, theHelper(t), syscall.SIGKILL)
	l.await(t, "refusals without the daemon", &l.gone)
	if err := sign(k); !errors.Is(err, hsm.ErrGone) || !strings.Contains(err.Error(), "does the service run") {
		t.Errorf("a new helper without the daemon: %v, want ErrGone that says so", err)
	}
	c.start(t)
	l.await(t, "signatures with the next daemon", &l.signed)
	c.stop()
	c.start(t)
	l.await(t, "signatures with the one after that", &l.signed)
	l.end(t)
	hsmtest.Stop(t, c.daemon)
	c.cfg.Timeout = time.Second
	if err := c.try(pin(cryptokiPIN)); !errors.Is(err, hsm.ErrTimeout) {
		t.Errorf("a new helper while the daemon is stopped: %v, want ErrTimeout", err)
	}
	c.cfg.Timeout = 0
	kill(t, c.daemon, syscall.SIGCONT)
	if err := c.try(pin(cryptokiPIN)); err != nil {
		t.Errorf("a new helper once it goes on: %v", err)
	}
}

// The processes of opencryptoki's clients share memory and locks. One that is
// killed must not hold up the others.
func TestFaultOneOfManyHelpersKilled(t *testing.T) {
	c := newOpenCryptoki(t)
	tok := c.open(t)
	generate(t, tok, "p256", hsm.KindP256)
	k := openKey(t, tok, "p256", nil)
	loads := []*load{startLoad(k)}
	for range 2 {
		loads = append(loads, startLoad(openKey(t, c.open(t), "p256", k.Public())))
	}
	all := func() {
		t.Helper()
		for _, l := range loads {
			l.await(t, "signatures of each client", &l.signed)
		}
	}
	all()
	for _, pid := range helpers(t) {
		kill(t, pid, syscall.SIGKILL)
		all()
	}
	other := c.open(t) // meanwhile keys come and go
	for range 3 {
		for _, kind := range []hsm.Kind{hsm.KindP256, hsm.KindECDH, hsm.KindSeal} {
			generate(t, other, "new", kind)
			if err := other.Destroy(t.Context(), "new"); err != nil {
				t.Fatal(err)
			}
		}
	}
	all()
	for _, l := range loads {
		l.end(t)
	}
}

// The soft token has no serial number, so a token that was initialised again is
// the same by all that it says of itself, and told by its keys alone.
func TestAttackInitialisedAgainWithoutSerial(t *testing.T) {
	c := newOpenCryptoki(t)
	tok := c.open(t)
	ctx := t.Context()
	kinds := []hsm.Kind{hsm.KindP256, hsm.KindECDH, hsm.KindSeal}
	for _, kind := range kinds {
		generate(t, tok, string(kind), kind)
	}
	honest, err := tok.Info(ctx)
	if err != nil {
		t.Fatal(err)
	}
	k := openKey(t, tok, "p256", nil)
	d, errD := tok.Decrypter(ctx, "ecdh", nil)
	s, errS := tok.Sealer(ctx, "seal")
	if err := errors.Join(errD, errS); err != nil {
		t.Fatal(err)
	}
	kill(t, theHelper(t), syscall.SIGKILL)
	c.stop() // it counts the sessions of a killed helper as open
	c.start(t)
	c.initialise(t)
	impostor := c.open(t)
	for _, kind := range kinds {
		generate(t, impostor, string(kind), kind)
	}
	if now, err := impostor.Info(ctx); err != nil || now != honest {
		t.Fatalf("the token says %+v (%v), said %+v: this is not the attack that is meant", now, err, honest)
	}
	for what, use := range map[string]func() error{
		"sign":  func() error { return sign(k) },
		"agree": func() error { _, err := d.ECDHContext(ctx, d.PublicKey()); return err },
		"seal":  func() error { _, err := s.Seal(ctx, []byte("secret"), nil); return err },
	} {
		if err := use(); !errors.Is(err, hsm.ErrWrongIdentity) {
			t.Errorf("%s: %v, want ErrWrongIdentity", what, err)
		}
	}
	if _, err := impostor.Key(ctx, "p256", k.Public()); !errors.Is(err, hsm.ErrWrongIdentity) {
		t.Errorf("open key: %v, want ErrWrongIdentity", err)
	}
	if _, err := impostor.Decrypter(ctx, "ecdh", d.PublicKey()); !errors.Is(err, hsm.ErrWrongIdentity) {
		t.Errorf("open agreement key: %v, want ErrWrongIdentity", err)
	}
}

// Opencryptoki shows in its flags what the next wrong PIN costs: nobody is
// there, so the last try stays unused; somebody is, so it is theirs to spend.
func TestFaultLockOutOpenCryptoki(t *testing.T) {
	s := newOpenCryptoki(t)
	wrong := pin("00000000")
	for i, want := range []func(token.TokenInfo) bool{
		func(info token.TokenInfo) bool { return info.PINCountLow && !info.PINFinalTry },
		func(info token.TokenInfo) bool { return info.PINFinalTry && !info.PINLocked },
	} {
		if err := s.try(wrong); !errors.Is(err, hsm.ErrWrongPIN) {
			t.Fatalf("wrong PIN %d: %v, want ErrWrongPIN", i+1, err)
		}
		if info := s.info(t); !want(info) {
			t.Fatalf("after wrong PIN %d the token says %+v", i+1, info)
		}
	}
	for range 5 {
		for _, p := range []hsm.PIN{wrong, pin(cryptokiPIN)} {
			if err := s.try(p); !errors.Is(err, hsm.ErrLocked) {
				t.Errorf("the last try, unattended: %v, want ErrLocked", err)
			}
		}
	}
	if info := s.info(t); info.PINLocked {
		t.Fatal("the last try was spent unattended")
	}
	s.cfg.Interactive = true
	var prompt string
	err := s.try(func(_ context.Context, p string) (*secret.Buffer, error) {
		prompt = p
		return secret.Take([]byte("00000000"))
	})
	if !errors.Is(err, hsm.ErrLocked) || !strings.Contains(prompt, "LAST TRY") {
		t.Errorf("the last try, wrong: %v after the prompt %q, want ErrLocked", err, prompt)
	}
	if info := s.info(t); !info.PINLocked {
		t.Errorf("after three wrong PINs the token says %+v", info)
	}
	if err := s.try(func(context.Context, string) (*secret.Buffer, error) {
		t.Error("a locked token asked for its PIN")
		return nil, nil
	}); !errors.Is(err, hsm.ErrLocked) {
		t.Errorf("locked: %v, want ErrLocked", err)
	}
}

// A token that was brought to its last try while the program runs is not tried
// by the next helper: the right PIN would clear that, a wrong one lock it.
func TestFaultFinalTryOnRestart(t *testing.T) {
	c := newOpenCryptoki(t)
	tok := c.open(t)
	generate(t, tok, "p256", hsm.KindP256)
	k, first := openKey(t, tok, "p256", nil), theHelper(t)
	for range 2 {
		if err := c.try(pin("00000000")); !errors.Is(err, hsm.ErrWrongPIN) {
			t.Fatal(err)
		}
	}
	if err := sign(k); err != nil {
		t.Errorf("by the helper that is logged in: %v", err)
	}
	kill(t, first, syscall.SIGKILL)
	for range 3 {
		if err := sign(k); !errors.Is(err, hsm.ErrLocked) {
			t.Errorf("by the next helper: %v, want ErrLocked", err)
		}
	}
	if info := c.info(t); !info.PINFinalTry || info.PINLocked {
		t.Errorf("the last try was used: the token says %+v", info)
	}
	c.cfg.Interactive = true
	if err := c.try(pin(cryptokiPIN)); err != nil {
		t.Fatal(err)
	}
	if err := sign(k); err != nil {
		t.Errorf("after somebody gave the right PIN elsewhere: %v", err)
	}
}

// The right PIN on the last try clears the count.
func TestLastTryRight(t *testing.T) {
	s := newOpenCryptoki(t)
	for range 2 {
		if err := s.try(pin("00000000")); !errors.Is(err, hsm.ErrWrongPIN) {
			t.Fatal(err)
		}
	}
	s.cfg.Interactive = true
	if err := s.try(pin(cryptokiPIN)); err != nil {
		t.Fatal(err)
	}
	if info := s.info(t); info.PINCountLow || info.PINFinalTry || info.PINLocked {
		t.Errorf("after the right PIN the token says %+v", info)
	}
}
