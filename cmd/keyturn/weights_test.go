package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/cmd/internal/keys"
	"github.com/keyturn/keyturn/cmd/internal/ui"
	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/hsm/file"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/dsse"
	"github.com/keyturn/keyturn/signoff/signofftest"
)

// A desk is a running cluster and a configuration for each of its people.
type desk struct {
	*signofftest.Cluster
	t    *testing.T
	work string
}

func newDesk(t *testing.T) *desk {
	t.Helper()
	return newDeskWith(t, nil)
}

func newDeskWith(t *testing.T, edit func(*signoff.Charter)) *desk {
	t.Helper()
	d := &desk{Cluster: signofftest.Start(t, edit), t: t, work: t.TempDir()}
	d.Tick()
	genesis, err := signoff.ReadLine(d.Genesis[0])
	if err != nil {
		t.Fatal(err)
	}
	d.write("charter.json", genesis.Payload)
	d.write("policy.yaml", []byte(signofftest.Policy))
	for _, name := range []string{"alice", "bob", "carol", "dave", "erin"} {
		d.configure(name, name)
	}
	return d
}

// configure writes the configuration of whoever uses a token: a person's name
// is the token's, but for spares.
func (d *desk) configure(token, person string) {
	d.t.Helper()
	config := fmt.Appendf(nil, "charter: %s\ncharterFile: charter.json\nname: %s\nsigning: file:%s\nexchange: file:%s\nstate: state-%s\n",
		d.ID, person, filepath.Join(d.Dir, token+".pem"), filepath.Join(d.Dir, token+"-x.pem"), token)
	if x := d.People[token].Doc.Exchange; x.Hybrid() {
		config = fmt.Appendf(config, "mlkem768: %s.seed\nseal: %s\n", token, d.keepSeed(token, x))
	}
	d.write(token+".yaml", config)
}

// keepSeed writes the seed file of a hybrid key and says what seals it.
func (d *desk) keepSeed(token string, x signoff.PublicKey) (seal string) {
	d.t.Helper()
	seal = "file:" + filepath.Join(d.Dir, token+"-seal.pem")
	_, err := file.Generate(seal, hsm.KindSeal)
	if err != nil {
		d.t.Fatal(err)
	}
	sealer, err := file.OpenSealer(seal)
	if err != nil {
		d.t.Fatal(err)
	}
	if err := keys.KeepSeed(context.Background(), sealer, x, signofftest.Seed(x), d.path(token+".seed")); err != nil {
		d.t.Fatal(err)
	}
	return seal
}

func (d *desk) writeJSON(name string, v any) {
	d.t.Helper()
	b, err := dsse.Encode(v)
	if err != nil {
		d.t.Fatal(err)
	}
	d.write(name, b)
}

func (d *desk) path(name ...string) string {
	return filepath.Join(append([]string{d.work}, name...)...)
}

func (d *desk) write(name string, data []byte) string {
	d.t.Helper()
	if err := os.MkdirAll(filepath.Dir(d.path(name)), 0o755); err != nil {
		d.t.Fatal(err)
	}
	if err := os.WriteFile(d.path(name), data, 0o644); err != nil {
		d.t.Fatal(err)
	}
	return d.path(name)
}

// An outcome is what a run of the command line wrote and returned.
type outcome struct {
	out, err string
	code     int
}

// as runs the command line as a person, who types answer; "" is somebody
// without a configuration.
func (d *desk) as(person, answer string, args ...string) outcome {
	d.t.Helper()
	var out, errs bytes.Buffer
	a := &app{Printer: &ui.Printer{Out: &out, Err: &errs, In: strings.NewReader(answer + "\n")}}
	defer a.close()
	root := rootCmd(a)
	config := d.path("nobody.yaml")
	if person != "" {
		config = d.path(person + ".yaml")
	}
	root.SetArgs(append([]string{"--config", config}, args...))
	root.SetOut(&out)
	root.SetErr(&errs)
	code := a.Report("keyturn", root.ExecuteContext(context.Background()))
	return outcome{out.String(), errs.String(), code}
}

// does wants success.
func (d *desk) does(person, answer string, args ...string) string {
	d.t.Helper()
	r := d.as(person, answer, args...)
	if r.code != 0 {
		d.t.Fatalf("%s: keyturn %s: exit %d: %s", person, strings.Join(args, " "), r.code, r.err)
	}
	return r.out
}

// refused wants exit code 1 and the reason.
func (d *desk) refused(reason, person string, args ...string) {
	d.t.Helper()
	if r := d.as(person, "", args...); r.code != ui.ExitRefused || !strings.Contains(r.err, reason) {
		d.t.Fatalf("%s: keyturn %s: exit %d: %s; want 1 and %q", person, strings.Join(args, " "), r.code, r.err, reason)
	}
}

func (d *desk) answer(v any, person string, args ...string) {
	d.t.Helper()
	out := d.does(person, "", append(args, "--json")...)
	if err := dsse.Decode([]byte(strings.TrimSpace(out)), v); err != nil {
		d.t.Fatalf("keyturn %s answered %q: %v", strings.Join(args, " "), out, err)
	}
}

// model writes a small model, different each time.
func (d *desk) model(name string) string {
	const n = 50_000
	header := fmt.Appendf(nil, `{"w":{"dtype":"BF16","shape":[%d],"data_offsets":[0,%d]}}`, n, 2*n)
	tensors := append(binary.LittleEndian.AppendUint64(nil, uint64(len(header))), header...)
	data := make([]byte, 2*n)
	rand.Read(data)
	d.write(name+"/model.safetensors", append(tensors, data...))
	d.write(name+"/deep/config.json", []byte(`{"layers":1}`))
	return d.path(name)
}

func (d *desk) seal(person, name string, more ...string) weightsView {
	d.t.Helper()
	var v weightsView
	d.answer(&v, person, append([]string{"weights", "seal", d.model(name), "--out", d.path(name + ".sealed"), "--name", "test " + name}, more...)...)
	return v
}

// recipient makes a software key and returns its URI and public key file.
func (d *desk) recipient(name string) (uri, public string) {
	d.t.Helper()
	d.does("", "", "weights", "recipient", "--out", d.path(name+".key"), "--public", d.path(name+".pub"))
	return "file:" + d.path(name+".key"), d.path(name + ".pub")
}

func (d *desk) askExport(object dsse.Digest, public string) string {
	d.t.Helper()
	return strings.TrimSpace(d.does("alice", "", "request", "export", "--purpose", "a joint test", "--object", object.String(),
		"--recipient", "partner", "--recipient-key", public, "--destination", "disk 1"))
}

func (d *desk) approve(request string, people ...string) {
	d.t.Helper()
	for _, p := range people {
		d.does(p, "approve", "approve", request, "--reason", "agreed")
	}
}

// The whole way of an export, from plaintext to plaintext.
func TestExportFromSealToOpen(t *testing.T) {
	d := newDesk(t)
	v := d.seal("erin", "model")
	if v.Files != 2 || v.Tensors != 1 || v.Parameters != 50_000 || strings.Join(v.DTypes, " ") != "BF16" || v.Sealer != "erin" || v.Registered == nil || !*v.Registered {
		t.Fatalf("sealed %+v", v)
	}
	var info weightsView
	d.answer(&info, "carol", "weights", "info", d.path("model.sealed"), "--log")
	if info.Object != v.Object || info.People != (sideView{3, 5, 5, 3}) || info.Machines != (sideView{3, 4, 4, 3}) || info.Epoch != 1 || !*info.Registered || info.Quantum == nil || *info.Quantum {
		t.Fatalf("info says %+v", info)
	}
	d.does("carol", "", "weights", "drill", v.Object.Hex()[:8])
	d.refused("no object", "carol", "weights", "drill", "ffffffff")

	uri, public := d.recipient("partner")
	id := d.askExport(v.Object, public)
	export := []string{"weights", "export", id, "--sealed", d.path("model.sealed"), "--out", d.path("exported")}
	d.refused("not satisfied", "alice", export...)
	d.approve(id, "bob", "carol")
	d.refused("not satisfied", "alice", export...)
	d.approve(id, "dave")
	d.does("alice", "", "warrant", "get", id, "--out", d.path("warrant.json"))
	d.refused("whoever asked exports", "bob", export...)
	d.refused("exists", "alice", "weights", "export", id, "--sealed", d.path("model.sealed"), "--out", d.path("model"))
	d.does("alice", "", export...)
	d.refused("was used", "alice", "weights", "export", id, "--sealed", d.path("model.sealed"), "--out", d.path("exported-2"))

	t.Run("recipient", func(t *testing.T) { d.t = t; d.receive(t, uri) })
	t.Run("age", func(t *testing.T) { d.t = t; d.receiveByAge(t, uri) })
	t.Run("attacks", func(t *testing.T) { d.t = t; d.attackRecipient(uri) })
}

// What is dealt to hybrid keys withstands a quantum computer until enough of it
// was released to keys that do not; without the log nobody can say that it was not.
func TestHybridHolders(t *testing.T) {
	d := newDeskWith(t, func(c *signoff.Charter) {
		for i := range c.People[:3] { // alice, bob, carol
			c.People[i].Exchange = signofftest.Hybrid(c.People[i].Exchange)
		}
	})
	v := d.seal("erin", "model")
	if v.Quantum != nil {
		t.Fatalf("sealing knows what the log says: %+v", v)
	}
	withstands := func(classic int, want string) {
		t.Helper()
		var info weightsView
		d.answer(&info, "dave", "weights", "info", d.path("model.sealed"), "--log")
		if out := d.does("dave", "", "weights", "info", d.path("model.sealed"), "--log"); !strings.Contains(out, want) {
			t.Fatalf("info says\n%swant %q", out, want)
		}
		if info.Quantum == nil || *info.Quantum != strings.HasPrefix(want, "a ") || info.People != (sideView{3, 5, classic, 3}) || info.Machines != (sideView{3, 4, 4, 3}) {
			t.Fatalf("info says %+v", info)
		}
	}
	withstands(2, "a quantum computer to which a copy is shown later, until it is released")
	if out := d.does("dave", "", "weights", "info", d.path("model.sealed")); !strings.Contains(out, "what was released since, the log knows") {
		t.Fatalf("info without the log says\n%s", out)
	}
	for _, person := range []string{"alice", "carol", "dave"} {
		d.does(person, "", "weights", "drill", v.Object.Hex()[:8])
	}
	whole, err := os.ReadFile(d.path("carol.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	half, _, _ := bytes.Cut(whole, []byte("mlkem768"))
	d.write("carol.yaml", half)
	d.refused("as hybrid; name the file of its ML-KEM-768 half", "carol", "weights", "drill", v.Object.Hex()[:8])
	d.write("carol.yaml", whole)

	uri, public := d.recipient("partner")
	id := d.askExport(v.Object, public)
	d.approve(id, "dave") // whose share stands under P-256 anyhow, like erin's
	withstands(2, "a quantum computer")
	d.approve(id, "bob", "carol")
	withstands(4, "no quantum computer: under P-256 alone stand 4 people's shares where 3 open it")
	d.does("alice", "", "warrant", "get", id, "--out", d.path("warrant.json"))
	d.does("alice", "", "weights", "export", id, "--sealed", d.path("model.sealed"), "--out", d.path("exported"))
	d.receive(t, uri)
}

// receive opens the export with nothing but the directory, the key and the
// charter's digest.
func (d *desk) receive(t *testing.T, uri string) {
	anchor := []string{"--charter", d.ID.String()}
	d.does("", "", append([]string{"weights", "info", d.path("exported")}, anchor...)...)
	open := append([]string{"weights", "open", d.path("exported"), "--key", uri, "--out", d.path("opened")}, anchor...)
	d.does("", "", open...)
	d.refused("exists", "", open...)
	d.does("", "", append([]string{"weights", "verify", d.path("opened"), "--sealed", d.path("exported")}, anchor...)...)
	d.does("bob", "", "weights", "verify", d.path("opened"), "--manifest", d.path("exported", "manifest.json"))
	if diff, err := exec.Command("diff", "-r", d.path("model"), d.path("opened")).CombinedOutput(); err != nil {
		t.Fatalf("opened is not what was sealed: %s", diff)
	}
	d.write("opened/deep/config.json", []byte(`{"layers":2}`))
	d.refused("not what the signed manifest says", "bob", "weights", "verify", d.path("opened"), "--manifest", d.path("exported", "manifest.json"))
}

func (d *desk) receiveByAge(t *testing.T, uri string) {
	if _, err := exec.LookPath("age"); err != nil {
		t.Skip("needs age on the PATH; install the Debian package age")
	}
	bin := t.TempDir()
	if out, err := exec.Command("go", "build", "-o", bin, "../age-plugin-keyturn").CombinedOutput(); err != nil {
		t.Fatalf("build age-plugin-keyturn: %s", out)
	}
	d.does("", "", "weights", "identity", "--release", d.path("exported", "release.json"), "--key", uri, "--charter", d.ID.String(), "--out", d.path("identity.txt"))
	for _, name := range []string{"model.safetensors", "deep/config.json"} {
		out := d.path("aged", name)
		if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("age", "-d", "-i", d.path("identity.txt"), "-o", out, d.path("exported", "files", name+".age"))
		cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
		if text, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("age -d %s: %v: %s", name, err, text)
		}
	}
	sums := exec.Command("sha256sum", "--strict", "-c", d.path("exported", "SHA256SUMS"))
	sums.Dir = d.path("aged")
	if text, err := sums.CombinedOutput(); err != nil {
		t.Fatalf("sha256sum -c: %s", text)
	}
}

// attackRecipient hands the recipient what is not the export.
func (d *desk) attackRecipient(uri string) {
	open := func(dir string, more ...string) []string {
		return append([]string{"weights", "open", dir, "--charter", d.ID.String(), "--out", d.path("never")}, more...)
	}
	stolen, _ := d.recipient("thief")
	d.refused("not the pinned key", "", open(d.path("exported"), "--key", stolen)...)
	d.refused("do not go on", "", "weights", "open", d.path("exported"), "--charter", dsse.Sum("other").String(), "--key", uri, "--out", d.path("never"))
	bundle, err := os.ReadFile(d.path("exported", "release.json"))
	if err != nil {
		d.t.Fatal(err)
	}
	forged := d.write("forged.json", bytes.Replace(bundle, []byte("keyturn release 1"), []byte("keyturn release 2"), 1))
	d.refused("version", "", open(d.path("exported"), "--key", uri, "--release", forged)...)
	other := d.seal("erin", "second")
	if other.Object.IsZero() {
		d.t.Fatal("no second object")
	}
	d.refused("the release is of", "", open(d.path("second.sealed"), "--key", uri, "--release", d.path("exported", "release.json"))...)
	if _, err := os.Lstat(d.path("never")); err == nil {
		d.t.Fatal("something was opened")
	}
}

// Sealing without a network and putting it into the log later, also after
// being interrupted in between.
func TestSealOfflineThenRegister(t *testing.T) {
	d := newDesk(t)
	v := d.seal("erin", "model", "--offline")
	if v.Registered == nil || *v.Registered {
		t.Fatalf("offline, yet registered: %+v", v)
	}
	d.refused("exists", "erin", "weights", "seal", d.path("model"), "--out", d.path("model.sealed"))
	d.refused("no object", "carol", "weights", "drill", v.Object.Hex())
	d.does("erin", "", "submit", d.path("model.sealed", objectFile))
	d.refused("not dealt", "carol", "weights", "drill", v.Object.Hex())
	for range 2 {
		d.does("erin", "", "weights", "register", d.path("model.sealed"))
	}
	for _, p := range []string{"alice", "bob", "carol", "dave", "erin"} {
		d.does(p, "", "weights", "drill", v.Object.Hex())
	}
	if r := d.as("erin", "", "weights", "seal", d.path("model"), "--out", d.path("x"), "--name", "evil\x1b[2Jname"); r.code != 1 || strings.Contains(r.err, "\x1b") {
		t.Fatalf("a name with an escape: exit %d, %q", r.code, r.err)
	}
	if r := d.as("erin", "", "weights", "seal", d.path("model")); r.code != ui.ExitUsage {
		t.Fatalf("no --out: exit %d: %s", r.code, r.err)
	}
}

// A directory whose documents were exchanged is refused before anything else
// is done with it.
func TestAttackSealedDirectory(t *testing.T) {
	d := newDesk(t)
	d.seal("erin", "one", "--offline")
	d.seal("erin", "two", "--offline")
	d.seal("bob", "three", "--offline")
	swap := func(file, from, want string) {
		t.Helper()
		good, err := os.ReadFile(d.path("one.sealed", file))
		if err != nil {
			t.Fatal(err)
		}
		bad, err := os.ReadFile(d.path(from+".sealed", file))
		if err != nil {
			t.Fatal(err)
		}
		d.write("one.sealed/"+file, bad)
		d.refused(want, "carol", "weights", "info", d.path("one.sealed"))
		d.refused(want, "erin", "weights", "register", d.path("one.sealed"))
		d.write("one.sealed/"+file, good)
	}
	swap(manifestFile, "two", "the object names")
	swap(manifestFile, "three", "the object names")
	swap(objectFile, "two", "the object names")
	swap(dealsFile, "two", "does not belong to object")
	swap(sharesFile, "two", "names")
	d.does("carol", "", "weights", "info", d.path("one.sealed"))
	swapFile := func(name string) {
		t.Helper()
		bad, err := os.ReadFile(d.path("two.sealed", "files", name))
		if err != nil {
			t.Fatal(err)
		}
		d.write("one.sealed/files/"+name, bad)
		d.refused("put under another file", "carol", "weights", "info", d.path("one.sealed"))
	}
	swapFile("model.safetensors.age")
}

// Nobody's key stands behind a snapshot but the log: a directory that only says
// that it is one does not make plaintext what was signed.
func TestAttackPretendedSnapshot(t *testing.T) {
	d := newDesk(t)
	d.seal("erin", "one")
	d.does("carol", "", "weights", "verify", d.path("one"), "--sealed", d.path("one.sealed"))
	line, err := os.ReadFile(d.path("one.sealed", objectFile))
	if err != nil {
		t.Fatal(err)
	}
	real, err := signoff.ReadLine(bytes.TrimSuffix(line, []byte("\n")))
	if err != nil {
		t.Fatal(err)
	}
	forged := *real.Doc.(*signoff.Object)
	forged.Sealer, forged.Claim = dsse.Digest{1}, dsse.Digest{2}
	d.write("one.sealed/"+objectFile, append(d.Sign("bob", &forged).Line(), '\n'))
	d.refused("the log has no such object", "carol", "weights", "verify", d.path("one"), "--sealed", d.path("one.sealed"))
}

// An export that a halt stands against does not happen, warrant or not; with
// the notaries away it is not final, and says so by its exit code.
func TestExportStopsForHaltAndMissingNotaries(t *testing.T) {
	d := newDesk(t)
	v := d.seal("erin", "model")
	_, public := d.recipient("partner")
	id := d.askExport(v.Object, public)
	d.approve(id, "bob", "carol", "dave")
	d.does("alice", "", "warrant", "get", id, "--out", d.path("warrant.json"))
	d.does("dave", "", "halt", "--request", id, "--reason", "wait")
	d.refused("halt", "alice", "weights", "export", id, "--sealed", d.path("model.sealed"), "--out", d.path("exported"))

	second := d.askExport(v.Object, public)
	d.approve(second, "bob", "carol")
	for _, n := range d.Notaries[:2] {
		n.Stop()
	}
	start := time.Now()
	r := d.as("dave", "approve", "approve", second, "--reason", "agreed", "--wait", "1s")
	if r.code == 0 || time.Since(start) > 20*time.Second {
		t.Fatalf("approved without a quorum: exit %d: %s", r.code, r.err)
	}
	if r := d.as("alice", "", "weights", "export", second, "--sealed", d.path("model.sealed"), "--out", d.path("exported"), "--wait", "1s"); r.code == 0 {
		t.Fatal("exported without a quorum of notaries")
	}
	if _, err := os.Lstat(d.path("exported")); err == nil {
		t.Fatal("something was exported")
	}
}

// What was sealed before the notaries changed is exported after it, with the one
// that left gone and the one that came needed; those who stay changed places.
func TestExportAfterTheNotariesChanged(t *testing.T) {
	d := newDesk(t)
	v := d.seal("erin", "model")
	n5 := d.Newcomer("n5")
	d.writeJSON("n5.json", n5.Doc)
	d.StartNotary(n5)
	id := strings.TrimSpace(d.does("alice", "", "request", "notaries", "--purpose", "n2 moves on", "--add", d.path("n5.json"), "--remove", "n2"))
	d.approve(id, "bob", "carol", "dave")
	d.does("alice", "", "warrant", "get", id, "--out", d.path("warrant.json"))
	d.Wait("shares to follow", func(s *authority.State) bool { return s.Objects[v.Object].Machines.Epoch == 2 })
	d.Notaries[1].Stop()
	d.Notaries[3].Stop()

	var info weightsView
	d.answer(&info, "carol", "weights", "info", d.path("model.sealed"), "--log")
	if info.Term != 2 || info.Notaries != 2 || info.Handover != nil || info.Machines != (sideView{3, 4, 4, 3}) || info.Epoch != 1 {
		t.Fatalf("info says %+v", info)
	}
	uri, public := d.recipient("partner")
	id = d.askExport(v.Object, public)
	d.approve(id, "bob", "carol", "dave")
	d.does("alice", "", "warrant", "get", id, "--out", d.path("warrant-2.json"))
	d.does("alice", "", "weights", "export", id, "--sealed", d.path("model.sealed"), "--out", d.path("exported"))
	d.receive(t, uri)
	if out := d.does("alice", "", "status"); strings.Contains(out, "on their way") {
		t.Errorf("shares have moved, and the status says\n%s", out)
	}
}
