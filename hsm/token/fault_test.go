package token_test

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/hsm/hsmtest"
	"github.com/keyturn/keyturn/hsm/secret"
	"github.com/keyturn/keyturn/hsm/token"
)

// helpers returns the process ids of our children that run keyturn-token.
func helpers(t testing.TB) []int {
	t.Helper()
	tasks, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, task := range tasks {
		children, _ := os.ReadFile(task) // a thread may have ended
		for _, c := range strings.Fields(string(children)) {
			pid, err := strconv.Atoi(c)
			if err != nil {
				t.Fatal(err)
			}
			if name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); strings.HasPrefix("keyturn-token", strings.TrimSpace(string(name))) && len(name) > 1 {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// theHelper returns the one helper that runs.
func theHelper(t testing.TB) int {
	t.Helper()
	pids := helpers(t)
	if len(pids) != 1 {
		t.Fatalf("%d helpers run, want one", len(pids))
	}
	return pids[0]
}

// kill sends a signal. Killing a helper that has just ended by itself, as one does
// whose PIN was refused, is no failure.
func kill(t testing.TB, pid int, signal syscall.Signal) {
	t.Helper()
	err := syscall.Kill(pid, signal)
	if gone := errors.Is(err, syscall.ESRCH) && signal == syscall.SIGKILL; err != nil && !gone {
		t.Fatal(err)
	}
}

// load signs from 50 goroutines until end is called, and counts outcomes.
type load struct {
	done                chan struct{}
	all                 sync.WaitGroup
	signed, gone, other atomic.Int64
	otherErr            atomic.Value
}

func startLoad(k hsm.Key) *load {
	l := &load{done: make(chan struct{})}
	for range 50 {
		l.all.Go(func() {
			for {
				select {
				case <-l.done:
					return
				default:
				}
				switch err := sign(k); {
				case err == nil:
					l.signed.Add(1)
				case errors.Is(err, hsm.ErrGone):
					l.gone.Add(1)
				default:
					l.other.Add(1)
					l.otherErr.Store(err)
				}
			}
		})
	}
	return l
}

// await waits for 50 more of what is counted.
func (l *load) await(t *testing.T, what string, counter *atomic.Int64) {
	t.Helper()
	before := counter.Load()
	waitFor(t, what, func() bool { return counter.Load() > before+50 })
}

// end ends the load, of which each call must have ended in a signature or ErrGone.
func (l *load) end(t *testing.T) {
	t.Helper()
	close(l.done)
	l.all.Wait()
	if l.other.Load() != 0 {
		t.Errorf("%d calls ended in neither a signature nor ErrGone, the last in: %v", l.other.Load(), l.otherErr.Load())
	}
}

// waitFor polls until ok or fails the test.
func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for range 1000 {
		if ok() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("waited in vain: %s", what)
}

func TestFaultTokenPulledUnderLoad(t *testing.T) {
	s, tok := newToken(t, "alice")
	k := openKey(t, tok, "p256", nil)
	l := startLoad(k)
	for range 3 {
		l.await(t, "signatures before the pull", &l.signed)
		if err := os.Rename(s.dir, s.dir+".pulled"); err != nil {
			t.Fatal(err)
		}
		l.await(t, "refusals while it is gone", &l.gone)
		if err := sign(k); !errors.Is(err, hsm.ErrGone) {
			t.Errorf("signing without a token: %v, want ErrGone", err)
		}
		if err := os.Rename(s.dir+".pulled", s.dir); err != nil {
			t.Fatal(err)
		}
	}
	l.await(t, "signatures after the token came back", &l.signed)
	l.end(t)
	if err := sign(k); err != nil {
		t.Errorf("after the load: %v", err)
	}
}

func TestFaultHelperKilledUnderLoad(t *testing.T) {
	_, tok := newToken(t, "alice")
	k := openKey(t, tok, "p256", nil)
	l := startLoad(k)
	for range 4 {
		l.await(t, "signatures", &l.signed)
		kill(t, theHelper(t), syscall.SIGKILL)
	}
	l.await(t, "signatures after the last kill", &l.signed)
	l.end(t)
	kill(t, theHelper(t), syscall.SIGKILL)
	if err := sign(k); err != nil {
		t.Errorf("the call after a kill: %v", err)
	}
}

func TestFaultHelperStopped(t *testing.T) {
	_, tok := newToken(t, "alice")
	k := openKey(t, tok, "p256", nil)
	stopped := theHelper(t)
	hsmtest.Stop(t, stopped)
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	start := time.Now()
	_, err := hsm.SignMessage(ctx, k, []byte("message"))
	if took := time.Since(start); !errors.Is(err, hsm.ErrTimeout) || took < 250*time.Millisecond || took > 5*time.Second {
		t.Errorf("a stopped helper: %v after %v, want ErrTimeout after 300ms", err, took)
	}
	if err := sign(k); err != nil {
		t.Errorf("the next call: %v", err)
	}
	if now := theHelper(t); now == stopped {
		t.Error("the stopped helper was kept")
	}
}

// A stopped helper also stops reading: requests larger than the socket's buffer
// must not block past the deadline either.
func TestFaultHelperStoppedWhileWriting(t *testing.T) {
	_, tok := newToken(t, "alice")
	generate(t, tok, "ed25519", hsm.KindEd25519)
	k := openKey(t, tok, "ed25519", nil)
	hsmtest.Stop(t, theHelper(t))
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
			defer cancel()
			if _, err := hsm.SignMessage(ctx, k, make([]byte, 100_000)); err != nil && !errors.Is(err, hsm.ErrTimeout) && !errors.Is(err, hsm.ErrGone) {
				t.Errorf("a stopped helper: %v, want ErrTimeout, ErrGone by another's deadline, or a signature by the next helper", err)
			}
		})
	}
	all.Wait()
	if err := sign(k); err != nil {
		t.Errorf("the next call: %v", err)
	}
}

func TestDefaultTimeoutBoundsEveryCall(t *testing.T) {
	s, first := newToken(t, "alice")
	first.Close()
	s.cfg.Timeout = 300 * time.Millisecond
	k := openKey(t, s.open(t, "alice"), "p256", nil)
	hsmtest.Stop(t, theHelper(t))
	if _, err := hsm.SignMessage(context.Background(), k, []byte("m")); !errors.Is(err, hsm.ErrTimeout) {
		t.Errorf("a stopped helper and no deadline: %v, want ErrTimeout", err)
	}
}

// A call that is cancelled costs the others nothing.
func TestCancelKeepsTheHelper(t *testing.T) {
	_, tok := newToken(t, "alice")
	k := openKey(t, tok, "p256", nil)
	pid := theHelper(t)
	hsmtest.Stop(t, pid)
	ctx, cancel := context.WithCancel(context.Background())
	time.AfterFunc(100*time.Millisecond, cancel)
	if _, err := hsm.SignMessage(ctx, k, []byte("m")); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	kill(t, pid, syscall.SIGCONT)
	if err := sign(k); err != nil {
		t.Error(err)
	}
	if theHelper(t) != pid {
		t.Error("the helper was replaced")
	}
}

func TestFaultModuleMissing(t *testing.T) {
	s := newStore(t)
	for name, change := range map[string]func(*token.Config){
		"module that is not there": func(c *token.Config) { c.Module = "/nowhere/module.so" },
		"module that is no module": func(c *token.Config) { c.Module = helperPath },
		"helper that is not there": func(c *token.Config) { c.Helper = "/nowhere/keyturn-token" },
		"helper that says nothing": func(c *token.Config) { c.Helper = "/bin/true" },
		"token that is not there":  func(*token.Config) {},
	} {
		cfg := s.cfg
		change(&cfg)
		if _, err := token.Open(context.Background(), cfg, "pkcs11:token=alice", pin(userPIN)); !errors.Is(err, hsm.ErrGone) {
			t.Errorf("%s: %v, want ErrGone", name, err)
		}
	}
	cfg := s.cfg
	cfg.Timeout = 300 * time.Millisecond
	cfg.Helper = "/bin/cat" // waits for its standard input, which is empty: ends at once
	if _, err := token.Open(context.Background(), cfg, "pkcs11:token=alice", pin(userPIN)); err == nil {
		t.Error("opened a token through cat")
	}
}

func TestCloseEndsTheHelper(t *testing.T) {
	_, tok := newToken(t, "alice")
	k := openKey(t, tok, "p256", nil)
	pid := theHelper(t)
	if err := tok.Close(); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("helper %d after Close: %v, want no such process", pid, err)
	}
	if err := sign(k); !errors.Is(err, hsm.ErrGone) {
		t.Errorf("signing after Close: %v, want ErrGone", err)
	}
	if len(helpers(t)) != 0 {
		t.Error("a helper was started after Close")
	}
}

func TestRestartsLeakNothing(t *testing.T) {
	_, tok := newToken(t, "alice")
	k := openKey(t, tok, "p256", nil)
	count := func() (files, goroutines int) {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries), runtime.NumGoroutine()
	}
	if err := sign(k); err != nil {
		t.Fatal(err)
	}
	files, goroutines := count()
	for range 20 {
		kill(t, theHelper(t), syscall.SIGKILL)
		if err := sign(k); err != nil {
			t.Fatal(err)
		}
	}
	waitFor(t, "as many open files and goroutines as before", func() bool {
		f, g := count()
		return f <= files && g <= goroutines
	})
}

func TestWrongPIN(t *testing.T) {
	s, _ := newToken(t, "alice")
	_, err := token.Open(context.Background(), s.cfg, "pkcs11:token=alice", pin("wrong-pin"))
	if !errors.Is(err, hsm.ErrWrongPIN) {
		t.Errorf("a wrong PIN: %v, want ErrWrongPIN", err)
	}
	if err != nil && (strings.Contains(err.Error(), "wrong-pin") || !strings.Contains(err.Error(), "alice")) {
		t.Errorf("error must name the token and not the PIN: %v", err)
	}
	for name, p := range map[string]hsm.PIN{
		"too long": pin(strings.Repeat("1", 256)),
		"nothing":  func(context.Context, string) (*secret.Buffer, error) { return nil, nil },
		"refused":  func(context.Context, string) (*secret.Buffer, error) { return nil, errors.New("nobody there") },
	} {
		if _, err := token.Open(context.Background(), s.cfg, "pkcs11:token=alice", p); err == nil {
			t.Errorf("%s: opened", name)
		}
	}
}

// The PIN is asked for again when the helper is replaced. Once it was refused,
// it is not asked for and not sent again, whatever the source would say.
func TestRefusedPINIsNeverTriedAgain(t *testing.T) {
	s, first := newToken(t, "alice")
	first.Close()
	var asked atomic.Int64
	source := func(context.Context, string) (*secret.Buffer, error) {
		if asked.Add(1) == 2 {
			return secret.Take([]byte("wrong-pin"))
		}
		return secret.Take([]byte(userPIN))
	}
	tok, err := token.Open(context.Background(), s.cfg, "pkcs11:token=alice", source)
	if err != nil {
		t.Fatal(err)
	}
	defer tok.Close()
	k := openKey(t, tok, "p256", nil)
	kill(t, theHelper(t), syscall.SIGKILL)
	for range 5 {
		if err := sign(k); !errors.Is(err, hsm.ErrWrongPIN) {
			t.Errorf("after a refused PIN: %v, want ErrWrongPIN", err)
		}
	}
	if n := asked.Load(); n != 2 {
		t.Errorf("the PIN was asked for %d times, want 2", n)
	}
}

func TestPINIsWiped(t *testing.T) {
	s, _ := newToken(t, "alice")
	given, err := secret.Take([]byte(userPIN))
	if err != nil {
		t.Fatal(err)
	}
	tok, err := token.Open(context.Background(), s.cfg, "pkcs11:token=alice", func(context.Context, string) (*secret.Buffer, error) { return given, nil })
	if err != nil {
		t.Fatal(err)
	}
	defer tok.Close()
	if given.Bytes() != nil {
		t.Error("the PIN was not wiped after use")
	}
}

// The helper must show a PIN to nobody who looks at the process from outside.
func TestAttackPINInProcess(t *testing.T) {
	t.Setenv("KEYTURN_TEST_SECRET", "not-for-vendor-code")
	_, _ = newToken(t, "alice")
	pid := theHelper(t)
	for _, file := range []string{"cmdline", "environ"} {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, file))
		if errors.Is(err, os.ErrPermission) {
			continue // undumpable: not even its owner may look
		}
		if err != nil {
			t.Fatal(err)
		}
		if len(text) == 0 {
			t.Errorf("%s is empty: nothing was checked", file)
		}
		for _, secret := range []string{userPIN, soPIN, "not-for-vendor-code"} {
			if strings.Contains(string(text), secret) {
				t.Errorf("%s holds %q", file, secret)
			}
		}
	}
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(string(limits), "\n") {
		if fields := strings.Fields(line); strings.HasPrefix(line, "Max core file size") && (fields[4] != "1" || fields[5] != "1") {
			t.Errorf("helper may write core files: %s", line)
		}
	}
	// The kernel gives the files of an undumpable process to root.
	stat, err := os.Stat(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil {
		t.Fatal(err)
	}
	if owner := stat.Sys().(*syscall.Stat_t).Uid; owner != 0 {
		t.Errorf("files of the helper belong to %d: it is dumpable", owner)
	}
}

// impostor initialises the token of s anew with the same label, PINs and key
// labels, as somebody would who had it in hand for a minute.
func (s *store) impostor(t *testing.T, label string) {
	t.Helper()
	if err := os.Rename(s.dir, s.dir+".honest"); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(s.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	s.init(t, label)
	tok := s.open(t, label)
	defer tok.Close()
	for _, kind := range []hsm.Kind{hsm.KindP256, hsm.KindECDH, hsm.KindSeal} {
		generate(t, tok, string(kind), kind)
	}
}

func TestAttackTokenReplacedByImpostor(t *testing.T) {
	s, tok := newToken(t, "alice")
	ctx := context.Background()
	generate(t, tok, "ecdh", hsm.KindECDH)
	generate(t, tok, "seal", hsm.KindSeal)
	k := openKey(t, tok, "p256", nil)
	d, err := tok.Decrypter(ctx, "ecdh", nil)
	if err != nil {
		t.Fatal(err)
	}
	sealer, err := tok.Sealer(ctx, "seal")
	if err != nil {
		t.Fatal(err)
	}
	s.impostor(t, "alice")

	// Opened before: the swap is seen, at the latest when the helper starts anew.
	for _, when := range []string{"at once", "after a restart"} {
		for what, use := range map[string]func() error{
			"sign":  func() error { return sign(k) },
			"agree": func() error { _, err := d.ECDHContext(ctx, d.PublicKey()); return err },
			"seal":  func() error { _, err := sealer.Seal(ctx, []byte("secret"), nil); return err },
		} {
			if err := use(); !errors.Is(err, hsm.ErrWrongIdentity) {
				t.Errorf("%s, %s: %v, want ErrWrongIdentity", what, when, err)
			}
		}
		for _, pid := range helpers(t) {
			kill(t, pid, syscall.SIGKILL)
		}
	}

	// Opened after: the pinned public keys tell.
	after := s.open(t, "alice")
	if _, err := after.Key(ctx, "p256", k.Public()); !errors.Is(err, hsm.ErrWrongIdentity) {
		t.Errorf("open key: %v, want ErrWrongIdentity", err)
	}
	if _, err := after.Decrypter(ctx, "ecdh", d.PublicKey()); !errors.Is(err, hsm.ErrWrongIdentity) {
		t.Errorf("open agreement key: %v, want ErrWrongIdentity", err)
	}
	if _, err := after.Key(ctx, "p256", nil); err != nil {
		t.Errorf("enrolling the impostor's key: %v", err)
	}
}

// softhsm2-util initialises the very token that is open, so that its serial
// number stays and only its keys differ.
func TestAttackTokenInitialisedAgainInPlace(t *testing.T) {
	s, tok := newToken(t, "alice")
	honest := openKey(t, tok, "p256", nil)
	info, err := tok.Info(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	reinitialise(t, info.Serial, "alice")
	other := s.open(t, "alice")
	generate(t, other, "p256", hsm.KindP256)
	if now, err := other.Info(context.Background()); err != nil || now.Serial != info.Serial {
		t.Fatalf("serial is %q (%v), was %q: this is not the attack that is meant", now.Serial, err, info.Serial)
	}
	other.Close()
	if err := sign(honest); !errors.Is(err, hsm.ErrWrongIdentity) {
		t.Errorf("signing at once: %v, want ErrWrongIdentity", err)
	}
	for _, pid := range helpers(t) {
		kill(t, pid, syscall.SIGKILL)
	}
	if err := sign(honest); !errors.Is(err, hsm.ErrWrongIdentity) {
		t.Errorf("signing after a restart: %v, want ErrWrongIdentity", err)
	}
}

// A signature and its mirror are both valid: who counts must count keys.
func TestAttackMirroredSignature(t *testing.T) {
	_, tok := newToken(t, "alice")
	k := openKey(t, tok, "p256", nil)
	sig, err := hsm.SignMessage(context.Background(), k, []byte("m"))
	if err != nil {
		t.Fatal(err)
	}
	mirrored := mirror(t, sig)
	if string(mirrored) == string(sig) {
		t.Fatal("the mirrored signature is the same")
	}
	if err := hsm.VerifyMessage(k.Public(), []byte("m"), mirrored); err != nil {
		t.Errorf("the mirrored signature does not verify: %v", err)
	}
	a, errA := hsm.Fingerprint(k.Public())
	b, errB := hsm.Fingerprint(crypto.PublicKey(openKey(t, tok, "p256", k.Public()).Public()))
	if a != b || errA != nil || errB != nil {
		t.Errorf("one key has two fingerprints: %x and %x", a, b)
	}
}
