package notary_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/hsm/file"
	"github.com/keyturn/keyturn/hsm/tpm"
	"github.com/keyturn/keyturn/hsm/tpm/swtpm"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/api"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/notary"
	"github.com/keyturn/keyturn/signoff/proof"
	"github.com/keyturn/keyturn/signoff/signofftest"
)

const (
	fuseIndex     = 0x01800100
	ccNVIncrement = 0x134
	ccNVRead      = 0x14e
)

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func openTPM(t *testing.T, path string) *tpm.TPM {
	t.Helper()
	d, err := tpm.Open(path)
	check(t, err)
	t.Cleanup(func() { d.Close() })
	return d
}

// lone is a notary with a fuse and its key files, of a charter that nobody has.
func lone(t *testing.T, d *tpm.TPM) notary.Config {
	t.Helper()
	dir := t.TempDir()
	for name, kind := range map[string]hsm.Kind{"sign": hsm.KindP256, "seal": hsm.KindSeal} {
		_, err := file.Generate("file:"+filepath.Join(dir, name), kind)
		check(t, err)
	}
	cfg := loneConfig(t, dir, d)
	check(t, notary.InitFused(t.Context(), cfg))
	return cfg
}

func loneConfig(t testing.TB, dir string, d *tpm.TPM) notary.Config {
	cfg, err := readLone(dir, d)
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

func readLone(dir string, d *tpm.TPM) (cfg notary.Config, err error) {
	cfg = notary.Config{Charter: sha256.Sum256([]byte("charter")), Dir: filepath.Join(dir, "notary"), Log: slog.New(slog.DiscardHandler), Fuse: &notary.Fuse{TPM: d, Index: fuseIndex}}
	if cfg.Signing, err = file.Open("file:"+filepath.Join(dir, "sign"), nil); err != nil {
		return cfg, err
	}
	cfg.Sealer, err = file.OpenSealer("file:" + filepath.Join(dir, "seal"))
	return cfg, err
}

// armed starts a notary as far as the fuse goes.
func armed(t *testing.T, cfg notary.Config) *notary.Notary {
	t.Helper()
	n, err := notary.New(cfg)
	check(t, err)
	t.Cleanup(func() { n.Close() })
	check(t, n.Arm(t.Context()))
	return n
}

// refused wants the directory not to be used, for a reason with these words.
func refused(t *testing.T, what string, cfg notary.Config, words string) {
	t.Helper()
	n, err := notary.New(cfg)
	check(t, err)
	defer n.Close()
	before := readDir(t, cfg.Dir)
	err = n.Arm(t.Context())
	if !errors.Is(err, notary.ErrFuse) || !strings.Contains(err.Error(), words) || !strings.Contains(err.Error(), cfg.Dir) {
		t.Errorf("%s: %v, want a refusal with %q", what, err, words)
	}
	if err := n.Hold(t.Context()); err == nil {
		t.Errorf("%s: it would sign", what)
	}
	if after := readDir(t, cfg.Dir); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("%s: the refused directory was changed", what)
	}
}

func readDir(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	entries, err := os.ReadDir(dir)
	check(t, err)
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if errors.Is(err, fs.ErrNotExist) || strings.HasSuffix(e.Name(), ".tmp") {
			continue // of a notary that runs
		}
		check(t, err)
		files[e.Name()] = string(b)
	}
	return files
}

// backup copies a directory, of a notary that may run, and restores it.
func backup(t *testing.T, dir string) (restore func(to string)) {
	t.Helper()
	files := readDir(t, dir)
	return func(to string) {
		t.Helper()
		check(t, os.RemoveAll(to))
		check(t, os.MkdirAll(to, 0o700))
		for name, b := range files {
			check(t, os.WriteFile(filepath.Join(to, name), []byte(b), 0o600))
		}
	}
}

// A backup that was made while the notary ran, a moment before it gave its share
// for a warrant, does not run again. Where it was left off, it does.
func TestAttackBackupRestoredToSignTwice(t *testing.T) {
	d := openTPM(t, swtpm.New(t).Path)
	c := signofftest.Keys(t, nil)
	n := c.Notaries[0]
	n.Fuse = &notary.Fuse{TPM: d, Index: fuseIndex}
	c.Found()
	for _, n := range c.Notaries {
		c.StartNotary(n)
	}
	c.Wait("a group key", func(s *authority.State) bool { return s.Group != nil })
	c.Tick()
	c.Notaries[3].Stop() // so that the share of the first is needed
	req := c.Request("alice", signoff.ActionPolicyChange, func(r *signoff.Request) {
		r.Policy = &signoff.PolicyChange{Policy: signofftest.Policy + "# changed\n"}
	})
	check(t, c.Append(req))
	for _, p := range []string{"bob", "carol", "dave"} {
		check(t, c.Append(c.Decide(p, req.Digest(), signoff.Approve)))
	}
	restore := backup(t, n.Dir)
	check(t, c.Append(c.Decide("erin", req.Digest(), signoff.Approve)))
	c.Wait("the warrant", func(s *authority.State) bool { return !s.Requests[req.Digest()].Warrant.IsZero() })
	n.Stop()
	newest := backup(t, n.Dir)

	restore(n.Dir)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	err := c.OpenNotary(n).Run(ctx)
	if !errors.Is(err, notary.ErrFuse) || !strings.Contains(err.Error(), "a copy of an older state") || !strings.Contains(err.Error(), "keyturn request notaries") {
		t.Errorf("the backup ran: %v", err)
	}
	stating := c.OpenNotary(n)
	if _, err := stating.StatePosition(t.Context(), signoff.Digest{1}); !errors.Is(err, notary.ErrFuse) {
		t.Errorf("the backup stated its position: %v", err)
	}
	check(t, stating.Close())

	// A restart on what was left is no restore. Two others cosign, so the first
	// is needed for anything to be final.
	newest(n.Dir)
	c.StartNotary(n)
	check(t, c.Append(c.Request("bob", signoff.ActionPolicyChange, func(r *signoff.Request) {
		r.Policy = &signoff.PolicyChange{Policy: signofftest.Policy + "# again\n"}
	})))
}

// A backup that is younger than the counter's last move is refused once the notary
// is shown a cosignature of its own that the backup does not know: by the newest
// checkpoint, or, when the log went on without it, by a notary that saw it.
func TestAttackYoungBackup(t *testing.T) {
	for name, on := range map[string]bool{"the log stands": false, "the log went on": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := signofftest.Keys(t, nil)
			n, fourth := c.Notaries[0], c.Notaries[3]
			n.Fuse = &notary.Fuse{TPM: openTPM(t, swtpm.New(t).Path), Index: fuseIndex}
			c.Found()
			for _, n := range c.Notaries {
				c.StartNotary(n)
			}
			c.Wait("a group key", func(s *authority.State) bool { return s.Group != nil })
			propose := func(mark string) {
				check(t, c.Append(c.Request("alice", signoff.ActionPolicyChange, func(r *signoff.Request) {
					r.Policy = &signoff.PolicyChange{Policy: signofftest.Policy + "# " + mark + "\n"}
				})))
			}
			fourth.Stop() // so that nothing is final without the first
			c.Tick()
			propose("known to the backup")
			restore := backup(t, n.Dir)
			at := value(t, readDir(t, n.Dir)["position.json"])
			propose("cosigned since")
			remembered(c, n, c.Follower.Seen().Size)
			n.Stop()
			if on {
				c.StartNotary(fourth)
				propose("without the first")
			}
			restore(n.Dir)
			if got := value(t, readDir(t, n.Dir)["position.json"]); got != at {
				t.Fatalf("the counter moved from %d to %d", at, got)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			err := c.OpenNotary(n).Run(ctx)
			if !errors.Is(err, notary.ErrFuse) || !strings.Contains(err.Error(), "this notary's cosignature at") || !strings.Contains(err.Error(), "keyturn request notaries") {
				t.Errorf("the backup ran: %v", err)
			}
			// And if nobody remembered: for good.
			if err := c.OpenNotary(n).Run(ctx); !errors.Is(err, notary.ErrFuse) || !strings.Contains(err.Error(), "it was written when") {
				t.Errorf("the backup ran again: %v", err)
			}
		})
	}
}

// remembered asks in a notary's name until the two others that run remind it of
// that size or of one above.
func remembered(c *signofftest.Cluster, n *signofftest.Notary, size uint64) {
	c.T.Helper()
	box := api.NewReader(api.TopicPositions)
	for deadline := time.Now().Add(c.Patience); ; {
		nonce := signofftest.Nonce()
		check(c.T, c.Client.Send(context.Background(), api.TopicPositions, fmt.Appendf(nil, `{"notary":"%s","nonce":"%s"}`, n.Doc.ID(), base64.StdEncoding.EncodeToString(nonce))))
		reminded := 0
		for answers := 0; answers < 2; {
			if time.Now().After(deadline) {
				c.T.Fatal("the others never saw the cosignature")
			}
			msgs, err := box.Receive(context.Background(), c.Client, time.Second)
			check(c.T, err)
			for _, m := range msgs {
				var r struct{ Cosigned string }
				if doc, err := signoff.ReadLine(m); err == nil {
					if p, ok := doc.Doc.(*signoff.Position); ok && bytes.Equal(p.Answer, nonce) {
						answers++
					}
				} else if json.Unmarshal(m, &r) == nil {
					if seen, err := proof.Unverified([]byte(r.Cosigned)); err == nil && seen.Size >= size {
						reminded++
					}
				}
			}
		}
		if reminded == 2 {
			return
		}
	}
}

// Where a copy of a running notary's directory runs, beside the same TPM, one of
// the two goes on: the original finds out before it signs anything more.
func TestAttackClonedDirectory(t *testing.T) {
	d := openTPM(t, swtpm.New(t).Path)
	c := signofftest.Keys(t, nil)
	n := c.Notaries[0]
	n.Fuse = &notary.Fuse{TPM: d, Index: fuseIndex}
	c.Found()
	for _, n := range c.Notaries[1:] {
		c.StartNotary(n)
	}
	original := c.OpenNotary(n)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- original.Run(ctx) }()
	c.Wait("a group key", func(s *authority.State) bool { return s.Group != nil })

	clone := *n
	clone.Dir = filepath.Join(t.TempDir(), "clone")
	backup(t, n.Dir)(clone.Dir)
	c.StartNotary(&clone)
	var err error
	for over := false; !over; { // it is asked for the time, or for a cosignature, soon
		select {
		case err = <-ended:
			over = true
		default:
			c.Tick()
		}
	}
	if !errors.Is(err, notary.ErrFuse) || !strings.Contains(err.Error(), "a copy of this notary runs") {
		t.Errorf("the original ran on beside its clone: %v", err)
	}
	clone.Stop()
	original = c.OpenNotary(n)
	if err := original.Run(ctx); !errors.Is(err, notary.ErrFuse) {
		t.Errorf("the original ran again after its clone: %v", err)
	}
}

// On another host there is another TPM, whatever its counter says.
func TestAttackCloneOnAnotherHost(t *testing.T) {
	cfg := lone(t, openTPM(t, swtpm.New(t).Path))
	there := openTPM(t, swtpm.New(t).Path)
	lone(t, there) // has a counter at this index, just as new
	cfg.Fuse = &notary.Fuse{TPM: there, Index: fuseIndex}
	refused(t, "on another host", cfg, "another TPM")
}

// What is on disk and what the configuration says must be what was made: nothing
// is mended by leaving something out or by writing another number.
func TestAttackFuseFiles(t *testing.T) {
	d := openTPM(t, swtpm.New(t).Path)
	cfg := lone(t, d)
	old := readDir(t, cfg.Dir)
	check(t, armed(t, cfg).Close())
	n := armed(t, cfg)
	check(t, n.Cosigned(t.Context(), time.Now(), 5))
	check(t, n.Close())
	put := backup(t, cfg.Dir)
	now := readDir(t, cfg.Dir)

	const position, sealed = "position.json", "fuse.sealed"
	for what, x := range map[string]struct {
		change func()
		words  string
	}{
		"an old position":            {func() { check(t, os.WriteFile(filepath.Join(cfg.Dir, position), []byte(old[position]), 0o600)) }, "a copy of an older state"},
		"no fuse.sealed":             {func() { check(t, os.Remove(filepath.Join(cfg.Dir, sealed))) }, "fuse.sealed is not there"},
		"the value left out":         {func() { edit(t, cfg.Dir, func(p map[string]any) { delete(p, "fuse") }) }, "was changed"},
		"a smaller size":             {func() { edit(t, cfg.Dir, func(p map[string]any) { p["seen"].(map[string]any)["size"] = 4 }) }, "was changed"},
		"as if about to be moved on": {func() { edit(t, cfg.Dir, func(p map[string]any) { p["burning"] = true }) }, "was changed"},
		"an old position with the value of now": {func() {
			check(t, os.WriteFile(filepath.Join(cfg.Dir, position), []byte(old[position]), 0o600))
			edit(t, cfg.Dir, func(p map[string]any) { p["fuse"] = value(t, now[position]) })
		}, "was changed"},
		"no configured fuse": {func() { cfg.Fuse = nil }, "the configuration names none"},
		"no configured fuse, nothing sealed, nothing written": {func() {
			cfg.Fuse = nil
			check(t, os.Remove(filepath.Join(cfg.Dir, sealed)))
			edit(t, cfg.Dir, func(p map[string]any) { delete(p, "fuse") })
		}, "the configuration names none"},
		"another index": {func() { cfg.Fuse = &notary.Fuse{TPM: d, Index: fuseIndex + 1} }, "the configuration names 0x01800101"},
	} {
		good := cfg
		x.change()
		refused(t, what, cfg, x.words)
		cfg = good
		put(cfg.Dir)
	}
	// None of these had it blown.
	check(t, armed(t, cfg).Close())

	bare := cfg
	bare.Dir = filepath.Join(t.TempDir(), "bare")
	check(t, notary.Init(bare.Dir, bare.Charter))
	refused(t, "made without a fuse", bare, "it was made without")
	bare.Fuse = nil
	check(t, armed(t, bare).Close())
	if err := notary.InitFused(t.Context(), cfg); err == nil {
		t.Error("a notary's memory was made twice")
	}
	cfg.Dir = filepath.Join(t.TempDir(), "second")
	if err := notary.InitFused(t.Context(), cfg); !errors.Is(err, tpm2.TPMRCNVDefined) || !strings.Contains(err.Error(), "tpm2_nvundefine") {
		t.Errorf("two notaries on one counter: %v", err)
	}
}

func value(t *testing.T, position string) uint64 {
	t.Helper()
	var p struct{ Fuse uint64 }
	check(t, json.Unmarshal([]byte(position), &p))
	return p.Fuse
}

func edit(t *testing.T, dir string, change func(map[string]any)) {
	t.Helper()
	path := filepath.Join(dir, "position.json")
	b, err := os.ReadFile(path)
	check(t, err)
	var p map[string]any
	check(t, json.Unmarshal(b, &p))
	change(p)
	b, err = json.Marshal(p)
	check(t, err)
	check(t, os.WriteFile(path, b, 0o600))
}

// A counter that was deleted, and one that was defined in its place, are not the
// counter; nor can one in its place reach the old one's value.
func TestAttackFuseDefinedAnew(t *testing.T) {
	d := openTPM(t, swtpm.New(t).Path)
	cfg := lone(t, d)
	check(t, armed(t, cfg).Close())
	check(t, d.Run(t.Context(), "delete", func(tr transport.TPM) error {
		public, err := tpm2.NVReadPublic{NVIndex: tpm2.TPMHandle(fuseIndex)}.Execute(tr)
		if err != nil {
			return err
		}
		_, err = tpm2.NVUndefineSpace{
			AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
			NVIndex:    tpm2.NamedHandle{Handle: tpm2.TPMHandle(fuseIndex), Name: public.NVName},
		}.Execute(tr)
		return err
	}))
	refused(t, "deleted", cfg, "it was deleted")
	lone(t, d)
	refused(t, "defined anew", cfg, "defined anew")
}

// Something between the notary and its TPM that knows the value the backup wants
// cannot say it.
func TestAttackInterposerOnFuse(t *testing.T) {
	bus := swtpm.NewBus(t, swtpm.New(t))
	cfg := lone(t, openTPM(t, bus.Path))
	old := backup(t, cfg.Dir)
	wanted := value(t, readDir(t, cfg.Dir)["position.json"])
	check(t, armed(t, cfg).Close())
	old(cfg.Dir)
	changed := 0
	bus.Change(func(code uint32, answer []byte) {
		if code == ccNVRead && len(answer) > 24 {
			binary.BigEndian.PutUint64(answer[16:], wanted) // behind tag, size, code, size of parameters and its own size
			changed++
		}
	})
	refused(t, "told what it wants", cfg, "HMAC")
	if changed == 0 {
		t.Error("the interposer saw nothing to change")
	}
	bus.Change(nil)
	refused(t, "told the truth", cfg, "a copy of an older state")
}

// A notary that runs for long without a start or a warrant moves its counter on
// all the same, so that last night's backup is worth nothing.
func TestFuseMovesEachHour(t *testing.T) {
	cfg := lone(t, openTPM(t, swtpm.New(t).Path))
	n := armed(t, cfg)
	at, began := n.FuseValue(), time.Now()
	check(t, n.Cosigned(t.Context(), began.Add(59*time.Minute), 1))
	if got := n.FuseValue(); got != at {
		t.Errorf("within the hour it went from %d to %d", at, got)
	}
	nightly := backup(t, cfg.Dir)
	check(t, n.Cosigned(t.Context(), began.Add(61*time.Minute), 2))
	check(t, n.Cosigned(t.Context(), began.Add(62*time.Minute), 3))
	if got := n.FuseValue(); got != at+1 {
		t.Errorf("after the hour it went from %d to %d", at, got)
	}
	check(t, n.Close())
	newest := backup(t, cfg.Dir)
	nightly(cfg.Dir)
	refused(t, "a backup older than an hour", cfg, "a copy of an older state")
	newest(cfg.Dir)
	check(t, armed(t, cfg).Close())
}

// fusedEnv makes the test binary a notary that dies while its fuse burns.
const fusedEnv = "KEYTURN_TEST_FUSED"

type fused struct {
	Dir, TPM string
	Die      int // at this step, from 1
}

func armAndDie(spec string) error {
	var f fused
	if err := json.Unmarshal([]byte(spec), &f); err != nil {
		return err
	}
	d, err := tpm.Open(f.TPM)
	if err != nil {
		return err
	}
	cfg, err := readLone(f.Dir, d)
	if err != nil {
		return err
	}
	n, err := notary.New(cfg)
	if err != nil {
		return err
	}
	steps := 0
	n.OnStep(func(string, string, []byte) {
		if steps++; steps == f.Die {
			syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	})
	if err := n.Arm(context.Background()); err != nil {
		return err
	}
	return errors.New("all steps taken")
}

// A notary that is killed at any step of moving its fuse on, and once more at any
// step of the start after, starts again by itself. A backup from before it was
// killed starts only as long as the counter was not moved.
func TestFaultKilledAtEveryStepOfFuse(t *testing.T) {
	e := swtpm.New(t)
	cfg := lone(t, openTPM(t, e.Path))
	check(t, cfg.Fuse.TPM.Close())
	dir := filepath.Dir(cfg.Dir)
	die := func(step int) (all bool) {
		t.Helper()
		spec, err := json.Marshal(fused{dir, e.Path, step})
		check(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, os.Args[0])
		cmd.Env = append(os.Environ(), fusedEnv+"="+string(spec))
		said, _ := cmd.CombinedOutput()
		if strings.Contains(string(said), "all steps taken") {
			return true
		}
		if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || status.Signal() != syscall.SIGKILL || ctx.Err() != nil {
			t.Fatalf("step %d: it ended by itself: %v\n%s", step, cmd.ProcessState, said)
		}
		return false
	}
	// alive starts the notary and stops it, and returns its fuse's value.
	alive := func() uint64 {
		t.Helper()
		d, err := tpm.Open(e.Path)
		check(t, err)
		defer d.Close()
		n := armed(t, loneConfig(t, dir, d))
		check(t, n.Hold(t.Context()))
		defer n.Close()
		return n.FuseValue()
	}
	first := 1
	for ; ; first++ {
		before := backup(t, cfg.Dir)
		at := alive()
		was := backup(t, cfg.Dir)
		if die(first) {
			break
		}
		killed := backup(t, cfg.Dir)
		for second := 1; !die(second); second++ {
			if second > 20 {
				t.Fatal("no end of steps")
			}
		}
		if got := alive(); got <= at {
			t.Errorf("killed at step %d: the fuse went from %d to %d", first, at, got)
		}
		newest := backup(t, cfg.Dir)
		d, err := tpm.Open(e.Path)
		check(t, err)
		for what, restore := range map[string]func(string){"before the start": before, "before the kill": was, "at the kill": killed} {
			restore(cfg.Dir)
			refused(t, fmt.Sprintf("killed at step %d, a backup from %s", first, what), loneConfig(t, dir, d), "a copy of an older state")
		}
		check(t, d.Close())
		newest(cfg.Dir)
	}
	if first != 10 { // four for each file written, one for the counter
		t.Errorf("%d steps, want 9", first-1)
	}
}

// A TPM that loses power before it counts, or after it counted and before it could
// say so, stops the notary, which starts again with it.
func TestFaultTPMKilledWhileFuseBurns(t *testing.T) {
	for name, counted := range map[string]bool{"before it counted": false, "after it counted": true} {
		t.Run(name, func(t *testing.T) {
			e := swtpm.New(t)
			bus := swtpm.NewBus(t, e)
			d := openTPM(t, bus.Path)
			cfg := lone(t, d)
			n := armed(t, cfg)
			at := n.FuseValue()
			old := backup(t, cfg.Dir)
			check(t, n.Close())
			if n, err := notary.New(cfg); err != nil {
				t.Fatal(err)
			} else {
				bus.Change(func(code uint32, answer []byte) {
					if counted && code == ccNVIncrement {
						_ = e.Kill()
						answer[2] = 0xff // a length that no answer has: what came is no answer
					}
				})
				n.OnStep(func(done, _ string, _ []byte) {
					if !counted && done == "renamed" {
						_ = e.Kill()
					}
				})
				if err := n.Arm(t.Context()); !errors.Is(err, notary.ErrFuse) || !errors.Is(err, hsm.ErrGone) {
					t.Errorf("a TPM that died: %v", err)
				}
				if err := n.Hold(t.Context()); err == nil {
					t.Error("it would sign")
				}
				n.Close() // says that the TPM is gone
			}
			bus.Change(nil)
			e.Reset(t)
			cfg.Fuse = &notary.Fuse{TPM: openTPM(t, bus.Path), Index: fuseIndex}
			n = armed(t, cfg)
			if want := at + 1; !counted && n.FuseValue() != want || counted && n.FuseValue() != want+1 {
				t.Errorf("the fuse went from %d to %d", at, n.FuseValue())
			}
			check(t, n.Close())
			old(cfg.Dir)
			refused(t, "a backup from before", cfg, "a copy of an older state")
		})
	}
}

// A TPM that goes while the notary runs ends it: nothing more is signed.
func TestFaultTPMGone(t *testing.T) {
	e := swtpm.New(t)
	cfg := lone(t, openTPM(t, e.Path))
	n := armed(t, cfg)
	check(t, n.Hold(t.Context()))
	check(t, e.Kill())
	if err := n.Hold(t.Context()); !errors.Is(err, notary.ErrFuse) || !errors.Is(err, hsm.ErrGone) {
		t.Errorf("without a TPM: %v", err)
	}
	if err := n.Cosigned(t.Context(), time.Now(), 1); !errors.Is(err, notary.ErrFuse) {
		t.Errorf("cosigned without a TPM: %v", err)
	}
}

// A disk that fills between the counter's move and the file's ends the notary,
// which starts again once there is room.
func TestFaultDiskFullWhileFuseBurns(t *testing.T) {
	cfg := lone(t, openTPM(t, swtpm.New(t).Path))
	put := backup(t, cfg.Dir)
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Skip("mounting a small tmpfs needs root: " + err.Error())
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	cfg.Dir = filepath.Join(dir, "notary")
	put(cfg.Dir)
	filler := filepath.Join(dir, "filler")
	n, err := notary.New(cfg)
	check(t, err)
	n.OnStep(func(done, _ string, _ []byte) {
		if done != "counted" {
			return
		}
		if err := os.WriteFile(filler, make([]byte, 1<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("the disk did not fill: %v", err)
		}
	})
	if err := n.Arm(t.Context()); !errors.Is(err, notary.ErrFuse) || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("on a full disk: %v", err)
	}
	if err := n.Hold(t.Context()); err == nil {
		t.Error("it would sign")
	}
	check(t, n.Close())
	check(t, os.Remove(filler))
	check(t, armed(t, cfg).Close())
	put(cfg.Dir)
	refused(t, "a backup from before", cfg, "a copy of an older state")
}
