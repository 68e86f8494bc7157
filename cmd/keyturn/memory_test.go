package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/keyturn/keyturn/cmd/internal/ui"
	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/hsm/secret"
	"github.com/keyturn/keyturn/hsm/secret/secrettest"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/lockbox"
	"github.com/keyturn/keyturn/signoff/proof"
	"github.com/keyturn/keyturn/signoff/signofftest"
)

// A running is keyturn as people start it, in a process of its own.
type running struct {
	t   *testing.T
	cmd *exec.Cmd
	err *os.File
}

// starts runs the program that build gave with input, and files from
// descriptor 3 on.
func starts(t *testing.T, program, input string, files []*os.File, args ...string) *running {
	t.Helper()
	r := &running{t: t, cmd: exec.Command(program, args...)}
	r.cmd.ExtraFiles = files
	log, err := os.Create(filepath.Join(t.TempDir(), "stderr"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { log.Close() })
	r.err, r.cmd.Stderr = log, log
	stdin, err := r.cmd.StdinPipe() // stays open: it goes on waiting for an answer
	if err != nil {
		t.Fatal(err)
	}
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.cmd.Process.Kill(); r.cmd.Wait() })
	if _, err := stdin.Write([]byte(input)); err != nil {
		t.Fatal(err)
	}
	return r
}

// says waits until it said something.
func (r *running) says(text string) {
	r.t.Helper()
	var said []byte
	for deadline := time.Now().Add(60 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		said, _ = os.ReadFile(r.err.Name())
		if bytes.Contains(said, []byte(text)) {
			return
		}
	}
	r.t.Fatalf("keyturn did not say %q: %s", text, said)
}

// has counts a needle in its memory.
func (r *running) has(needle secrettest.Needle) int {
	r.t.Helper()
	n, err := secrettest.Count(r.cmd.Process.Pid, needle)
	if err != nil {
		r.t.Fatal(err)
	}
	return n
}

// kept wants the process locked in memory and without core dumps.
func (r *running) kept() {
	r.t.Helper()
	proc := fmt.Sprintf("/proc/%d/", r.cmd.Process.Pid)
	status, err := os.ReadFile(proc + "status")
	limits, err2 := os.ReadFile(proc + "limits")
	if err := errors.Join(err, err2); err != nil {
		r.t.Fatal(err)
	}
	kilobytes := func(what string) (n int) {
		if m := regexp.MustCompile(what + `:\s+(\d+) kB`).FindSubmatch(status); m != nil {
			n, _ = strconv.Atoi(string(m[1]))
		}
		return n
	}
	if size, locked := kilobytes("VmSize"), kilobytes("VmLck"); size == 0 || locked < size*9/10 {
		r.t.Errorf("%d of %d kB are locked", locked, size)
	}
	if !regexp.MustCompile(`Max core file size\s+1\s+1\s`).Match(limits) {
		r.t.Errorf("it dumps core:\n%s", limits)
	}
}

// programs builds keyturn and its helper for tokens, side by side.
func programs(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to read the memory of a process that is undumpable")
	}
	dir := t.TempDir()
	for name, cgo := range map[string]string{"keyturn": "0", "keyturn-token": "1"} {
		build := exec.Command("go", "build", "-o", filepath.Join(dir, name), "github.com/keyturn/keyturn/cmd/"+name)
		build.Env = append(os.Environ(), "CGO_ENABLED="+cgo)
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("build %s: %v\n%s", name, err, out)
		}
	}
	return filepath.Join(dir, "keyturn")
}

// An approver's share is opened, sealed to the recipient and gone, while the
// program still waits for the approval to be final.
func TestAttackApproversShareInMemory(t *testing.T) {
	program := programs(t)
	d := newDesk(t)
	v := d.seal("erin", "model")
	_, public := d.recipient("partner")
	id := d.askExport(v.Object, public)
	forms := d.shareOf("bob", v.Object)
	d.Tick()
	size := d.size()
	for _, n := range d.Notaries {
		n.Stop()
	}
	const reason = "a reason to look for in its memory"
	r := starts(t, program, "approve\n", nil, "--config", d.path("bob.yaml"), "--wait", "60s", "approve", id, "--reason", reason)
	if _, err := d.Client.Checkpoint(t.Context(), false, size+1, 30*time.Second); err != nil {
		t.Fatalf("the approval did not reach the log: %v", err)
	}
	if r.has(secrettest.Hide([]byte(reason))) == 0 {
		t.Error("the memory that is read has not the reason of the approval")
	}
	for form, needle := range forms {
		if n := r.has(needle); n != 0 {
			t.Errorf("the %s of the share was found %d times, want none", form, n)
		}
	}
	r.kept()
}

// size is that of the log that everybody knows.
func (d *desk) size() (size uint64) {
	d.t.Helper()
	note, err := d.Client.Checkpoint(context.Background(), false, 1, 10*time.Second)
	if err != nil {
		d.t.Fatal(err)
	}
	if _, err := fmt.Sscanf(strings.SplitN(string(note), "\n", 3)[1], "%d", &size); err != nil {
		d.t.Fatal(err)
	}
	return size
}

// shareOf opens somebody's share and says what it looks like.
func (d *desk) shareOf(person string, object signoff.Digest) map[string]secrettest.Needle {
	d.t.Helper()
	ctx, p := context.Background(), d.People[person]
	identity, err := lockbox.TokenIdentity(p.Exchange)
	if err != nil {
		d.t.Fatal(err)
	}
	d.Wait("the object", func(s *authority.State) bool { o, ok := s.Objects[object]; return ok && !o.People.Deals.IsZero() })
	var share *lockbox.Share
	err = d.Follower.View(func(a *authority.Authority, _ proof.Checkpoint, _ []byte) error {
		o := a.State().Objects[object]
		m, _ := a.State().Person(p.Doc.ID())
		digest, _ := o.People.DealsOf(m.Index)
		blob, err := d.Client.Blob(ctx, digest)
		if err != nil {
			return err
		}
		deals, err := lockbox.ParseDeals(blob)
		if err != nil {
			return err
		}
		holder := identity.Recipient().ID()
		deal, err := deals.Find(lockbox.People, holder)
		if err != nil {
			return err
		}
		sharing, err := o.People.Sharing(1)
		if err != nil {
			return err
		}
		share, err = lockbox.OpenShare(ctx, identity, lockbox.Context{Charter: d.ID, Object: object, Side: lockbox.People, Epoch: 1, Index: m.Index, Holder: holder}, sharing, deal)
		return err
	})
	if err != nil {
		d.t.Fatal(err)
	}
	forms := map[string]secrettest.Needle{}
	secret := reflect.ValueOf(share).Elem().FieldByName("secret")
	for _, name := range []string{"value", "blind"} {
		field := secret.FieldByName(name)
		scalar := reflect.NewAt(field.Type(), unsafe.Pointer(field.UnsafeAddr())).Elem().Interface().(interface{ MarshalBinary() ([]byte, error) })
		b, err := scalar.MarshalBinary()
		if err != nil {
			d.t.Fatal(err)
		}
		forms[name] = secrettest.Hide(b)
	}
	return forms
}

// A PIN that came by a descriptor has opened the token and is gone, while the
// program still waits for a person to answer.
func TestAttackPINInMemory(t *testing.T) {
	if _, err := os.Stat(softHSM); err != nil {
		t.Skip("needs SoftHSM2 (package softhsm2)")
	}
	program := programs(t)
	dir := t.TempDir()
	conf := filepath.Join(dir, "softhsm2.conf")
	tokens := filepath.Join(dir, "tokens")
	if err := errors.Join(os.Mkdir(tokens, 0o700), os.WriteFile(conf, []byte("directories.tokendir = "+tokens+"\nlog.level = ERROR\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SOFTHSM2_CONF", conf)
	raw := make([]byte, 12)
	rand.Read(raw)
	pin := []byte(hex.EncodeToString(raw))
	needle := secrettest.Hide(pin)
	file := func(name string, lines ...string) *os.File {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	run := func(f *os.File, args ...string) []byte {
		t.Helper()
		cmd := exec.Command(program, append([]string{"--pin-fd", "3"}, args...)...)
		cmd.ExtraFiles = []*os.File{f}
		out, err := cmd.Output()
		if err != nil {
			var x *exec.ExitError
			errors.As(err, &x)
			t.Fatalf("keyturn %v: %v: %s", args, err, x.Stderr)
		}
		return out
	}
	uri := "pkcs11:token=bob;object=sign?module-path=" + softHSM
	run(file("new", "officer-1", string(pin)), "key", "init", "--module", softHSM, "--label", "bob")
	var key signoff.PublicKey
	if err := key.UnmarshalJSON(run(file("pin", string(pin)), "key", "new", "--kind", "p256", uri)); err != nil {
		t.Fatal(err)
	}
	charter := signofftest.Keys(t, nil).Charter
	charter.People[1].Signing = signoff.PublicKey{Encoded: key.Encoded, Class: hsm.ClassSoftware}
	payload, err := signoff.Write(charter)
	if err != nil {
		t.Fatal(err)
	}
	file("charter.json")
	if err := os.WriteFile(filepath.Join(dir, "charter.json"), payload, 0o600); err != nil {
		t.Fatal(err)
	}
	r := starts(t, program, "", []*os.File{file("pin-again", string(pin))}, "--pin-fd", "3", "accept", filepath.Join(dir, "charter.json"), "--key", uri, "--genesis", filepath.Join(dir, "genesis"))
	r.says("Accept this charter as bob?")
	if r.has(secrettest.Hide([]byte("object=sign"))) == 0 {
		t.Error("the memory that is read has not the name of the key")
	}
	if n := r.has(needle); n != 0 {
		t.Errorf("the PIN was found %d times, want none", n)
	}
	r.kept()
}

// A production charter's shares are opened in no memory that may be swapped out.
func TestUnswapped(t *testing.T) {
	d := newDesk(t)
	var said bytes.Buffer
	a := &app{Printer: &ui.Printer{Out: &said, Err: &said}, configFile: d.path("bob.yaml"), wait: 20 * time.Second}
	defer a.close()
	if err := a.sync(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	if err := a.unswapped(nil); err != nil || said.Len() != 0 {
		t.Errorf("without swap: %v, %q", err, &said)
	}
	if err := a.unswapped(secret.ErrLimit); err != nil || !strings.Contains(said.String(), secret.ErrLimit.Error()) {
		t.Errorf("under a development charter: %v, %q", err, &said)
	}
	if err := a.view(func(_ *authority.Authority, s *authority.State) error { s.Charter.Development = false; return nil }); err != nil {
		t.Fatal(err)
	}
	if err := a.unswapped(secret.ErrLimit); !errors.Is(err, secret.ErrLimit) {
		t.Errorf("under a production charter: %v, want ErrLimit", err)
	}
}
