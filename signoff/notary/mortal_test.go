package notary_test

import (
	"context"
	"crypto"
	"crypto/ecdh"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/hsm/file"
	"github.com/keyturn/keyturn/hsm/secret"
	"github.com/keyturn/keyturn/hsm/token"
	"github.com/keyturn/keyturn/hsm/tpm"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/api"
	"github.com/keyturn/keyturn/signoff/notary"
	"github.com/keyturn/keyturn/signoff/signofftest"
)

// mortalEnv makes the test binary a notary's process.
const mortalEnv = "KEYTURN_TEST_MORTAL"

// mortal is a notary that runs in a process of its own.
type mortal struct {
	Charter signoff.Digest
	URL     string
	TLS     signoff.Digest
	Dir     string
	Files   string       // its key files' common beginning; empty: they are on a token
	Token   token.Config // where that is
	TPM     string       // where its fuse is; empty: it has none
	Ledger  string       // file: the steps at which it was killed already
	Phase   string       // file: what the cluster is about
	After   string       // the step at which the life before ended
	way
}

const (
	softHSM   = "/usr/lib/softhsm/libsofthsm2.so"
	tokenURI  = "pkcs11:token=victim"
	victimPIN = "victim-pin-58213"
)

func pin(context.Context, string) (*secret.Buffer, error) { return secret.Take([]byte(victimPIN)) }

// newToken makes a SoftHSM token that has the keys of a notary.
func newToken(t *testing.T) token.Config {
	t.Helper()
	if _, err := os.Stat(softHSM); err != nil {
		t.Skip("needs SoftHSM2 (package softhsm2)")
	}
	dir := t.TempDir()
	cfg := token.Config{Helper: filepath.Join(dir, "keyturn-token"), Module: softHSM, Env: []string{"SOFTHSM2_CONF=" + filepath.Join(dir, "softhsm2.conf")}}
	build := exec.Command("go", "build", "-o", cfg.Helper, "github.com/keyturn/keyturn/cmd/keyturn-token")
	build.Env = append(os.Environ(), "CGO_ENABLED=1")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build keyturn-token: %s", out)
	}
	check(t, os.Mkdir(filepath.Join(dir, "tokens"), 0o700))
	check(t, os.WriteFile(filepath.Join(dir, "softhsm2.conf"), fmt.Appendf(nil, "directories.tokendir = %s\nlog.level = ERROR\n", filepath.Join(dir, "tokens")), 0o600))
	check(t, token.Init(t.Context(), cfg, "victim", []byte("officer-pin-40861"), []byte(victimPIN)))
	tok, err := token.Open(t.Context(), cfg, tokenURI, pin)
	check(t, err)
	defer tok.Close()
	for label, kind := range map[string]hsm.Kind{"signing": hsm.KindP256, "witness": hsm.KindEd25519, "exchange": hsm.KindECDH, "seal": hsm.KindSeal} {
		_, err := tok.Generate(t.Context(), label, kind)
		check(t, err)
	}
	return cfg
}

// holdToken has a notary use the keys of a token, through one helper.
func holdToken(ctx context.Context, at token.Config, n *signofftest.Notary) (*token.Token, error) {
	tok, err := token.Open(ctx, at, tokenURI, pin)
	if err != nil {
		return nil, err
	}
	if n.Signing, err = tok.Key(ctx, "signing", nil); err != nil {
		return nil, err
	}
	if n.Witness, err = tok.Key(ctx, "witness", nil); err != nil {
		return nil, err
	}
	if n.Exchange, err = tok.Decrypter(ctx, "exchange", nil); err != nil {
		return nil, err
	}
	n.Sealer, err = tok.Sealer(ctx, "seal")
	return tok, err
}

// holdFiles has a notary use its key files.
func holdFiles(at string, n *signofftest.Notary) (err error) {
	if n.Signing, err = file.Open(at+".pem", nil); err != nil {
		return err
	}
	if n.Witness, err = file.Open(at+"-w.pem", nil); err != nil {
		return err
	}
	if n.Exchange, err = file.OpenDecrypter(at+"-x.pem", nil); err != nil {
		return err
	}
	n.Sealer, err = file.OpenSealer(at + "-s.pem")
	return err
}

// liveAndDie runs the notary until it has done something on its disk or with
// its TPM for the first time ever; there it kills itself, or has its disk full.
func liveAndDie(spec string) error {
	var m mortal
	if err := json.Unmarshal([]byte(spec), &m); err != nil {
		return err
	}
	f, err := newFate(&m)
	if err != nil {
		return err
	}
	client, err := api.NewClient([]api.Endpoint{{URL: m.URL, TLS: m.TLS}}, nil)
	if err != nil {
		return err
	}
	ctx := context.Background()
	cfg := notary.Config{Charter: m.Charter, Dir: m.Dir, Client: client, Log: slog.New(slog.NewTextHandler(os.Stderr, nil))}
	var keys signofftest.Notary
	if m.Files != "" {
		err = holdFiles(m.Files, &keys)
	} else {
		_, err = holdToken(ctx, m.Token, &keys)
	}
	if err != nil {
		return err
	}
	cfg.Signing, cfg.Witness, cfg.Exchange, cfg.Sealer = keys.Signing, keys.Witness, keys.Exchange, keys.Sealer
	if m.Files == "" && !m.Full {
		cfg.Signing, cfg.Witness, cfg.Exchange, cfg.Sealer = frailKey{keys.Signing, "sign", f}, frailKey{keys.Witness, "cosign", f}, frailDecrypter{keys.Exchange, f}, frailSealer{keys.Sealer, f}
	}
	if m.TPM != "" {
		d, err := tpm.Open(m.TPM)
		if err != nil {
			return err
		}
		cfg.Fuse = &notary.Fuse{TPM: d, Index: fuseIndex}
	}
	n, err := notary.New(cfg)
	if err != nil {
		return err
	}
	n.OnStep(f.step)
	return n.Run(ctx)
}

// A fate ends a life at the first step that no life before ended at.
type fate struct {
	m      *mortal
	ledger *os.File
	mu     sync.Mutex
	known  map[string]bool
	moving bool   // the counter has moved and the file does not say so
	armed  bool   // the fuse was moved on for this life's start
	full   string // the disk is full at this step of that file
}

func newFate(m *mortal) (*fate, error) {
	ledger, err := os.OpenFile(m.Ledger, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(ledger)
	if err != nil {
		return nil, err
	}
	f := &fate{m: m, ledger: ledger, known: map[string]bool{}, armed: m.TPM == ""}
	for line := range strings.Lines(string(b)) {
		f.known[strings.TrimSpace(line)] = true
	}
	return f, nil
}

// first writes down a step at which nothing has ended yet.
func (f *fate) first(step string) bool {
	if f.known[step] {
		return false
	}
	f.known[step] = true
	fmt.Fprintln(f.ledger, step)
	return true
}

func (f *fate) step(done, name string, data []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	step := f.name(done, name, data)
	switch {
	case !f.m.Full:
		if f.first(step) {
			syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	case f.full == "" && nextCall[done] != 0 && f.first(step):
		f.full = done + name
		time.AfterFunc(full, func() { syscall.Kill(os.Getpid(), syscall.SIGKILL) })
		fallthrough
	case f.full == "created"+name && done == "created": // again, to another descriptor
		if err := fill(nextCall[done], filepath.Join(f.m.Dir, name)); err != nil {
			panic(err)
		}
	}
}

// full is how long a life goes on with a full disk.
const full = 300 * time.Millisecond

// nextCall is the system call that comes after a step.
var nextCall = map[string]uint32{"created": unix.SYS_WRITE, "written": unix.SYS_FSYNC, "synced": unix.SYS_RENAMEAT, "renamed": unix.SYS_FSYNC}

// fill has a system call of this goroutine fail from here on as on a full disk: a
// write if it is to what will be the file at path, others always. The thread is
// this goroutine's for good, since no filter of calls is ever taken off.
func fill(call uint32, path string) error {
	runtime.LockOSThread()
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}, // the call's number in struct seccomp_data
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: call, Jt: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	if call == unix.SYS_WRITE {
		fd, err := temporary(path)
		if err != nil {
			return err
		}
		filter = append(filter,
			unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 16}, // its first argument
			unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: fd, Jt: 1},
			unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW})
	}
	filter = append(filter, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSPC)})
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	return unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&program)), 0, 0)
}

// temporary is the descriptor of the file that is being written for path.
func temporary(path string) (uint32, error) {
	links, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		return 0, err
	}
	for _, link := range links {
		at, _ := os.Readlink(link) // some are closed meanwhile
		if strings.HasPrefix(at, path+".") {
			fd, err := strconv.ParseUint(filepath.Base(link), 10, 32)
			return uint32(fd), err
		}
	}
	return 0, fmt.Errorf("nothing is open of %s", path)
}

// name is the same for the same step of another life. What is written of the
// fuse has another value in each.
func (f *fate) name(done, name string, data []byte) string {
	if done == "counted" {
		f.moving = true
		return f.ofFuse(done)
	}
	if name != "position.json" {
		return done + " " + name
	}
	var p struct {
		Seen    signoff.Seen
		Burning bool
	}
	if err := json.Unmarshal(data, &p); err != nil {
		panic(err)
	}
	switch {
	case p.Burning:
		return f.ofFuse(done + " intent")
	case f.moving:
		step := f.ofFuse(done + " count")
		if done == "renamed" {
			f.moving, f.armed = false, true
		}
		return step
	case !f.armed:
		return f.ofFuse(done + " count of the life before")
	case f.m.Every:
		return fmt.Sprintf("%s position.json at %d", done, p.Seen.Size)
	case f.m.Full:
		return done + " position.json"
	}
	return done + " position.json, " + f.phase()
}

func (f *fate) ofFuse(step string) string {
	switch {
	case f.m.Full && !f.armed:
		return "fuse, at a start: " + step
	case f.armed && f.m.Every:
		return "fuse, before a share: " + step + ", " + f.phase()
	case f.armed: // one that is not given costs all others their patience
		return "fuse, before a share: " + step
	case f.m.Every:
		return "fuse, at a start: " + step + ", after " + f.m.After
	}
	return "fuse, at a start: " + step + ", " + f.phase()
}

func (f *fate) phase() string {
	b, err := os.ReadFile(f.m.Phase)
	if err != nil {
		panic(err)
	}
	return string(b)
}

// strike kills the token's helper when an operation is asked of it, once for
// each operation in each phase. The notary lives on.
func (f *fate) strike(operation string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.first("helper, " + operation + ", " + f.phase()) {
		return
	}
	tasks, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		panic(err)
	}
	for _, task := range tasks {
		children, _ := os.ReadFile(task) // a thread may have ended
		for _, child := range strings.Fields(string(children)) {
			if pid, err := strconv.Atoi(child); err == nil {
				syscall.Kill(pid, syscall.SIGKILL)
			}
		}
	}
}

type frailKey struct {
	hsm.Key
	use  string
	fate *fate
}

func (k frailKey) SignContext(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	k.fate.strike(k.use)
	return k.Key.SignContext(ctx, digest, opts)
}

type frailDecrypter struct {
	hsm.Decrypter
	fate *fate
}

func (d frailDecrypter) ECDHContext(ctx context.Context, peer *ecdh.PublicKey) ([]byte, error) {
	d.fate.strike("agree")
	return d.Decrypter.ECDHContext(ctx, peer)
}

type frailSealer struct {
	hsm.Sealer
	fate *fate
}

func (s frailSealer) Seal(ctx context.Context, plaintext, ad []byte) ([]byte, error) {
	s.fate.strike("seal")
	return s.Sealer.Seal(ctx, plaintext, ad)
}

func (s frailSealer) Unseal(ctx context.Context, sealed, ad []byte) ([]byte, error) {
	s.fate.strike("unseal")
	return s.Sealer.Unseal(ctx, sealed, ad)
}
