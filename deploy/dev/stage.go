package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	attesttpm "github.com/keyturn/keyturn/attest/tpm"
	"github.com/keyturn/keyturn/deploy/dev/vm"
	"github.com/keyturn/keyturn/hsm/tpm/swtpm"
	"github.com/keyturn/keyturn/signoff"
)

// module is where Debian's softhsm2 puts its PKCS#11 module.
const module = "/usr/lib/softhsm/libsofthsm2.so"

// A stage is one cluster on this machine.
type stage struct {
	bin, train, dir string
	start           time.Time

	host       string // of the coordinator, as the charter names it
	nodes      []string
	leases     string        // of the policy
	modelBytes int           // that the weights have, about
	patience   time.Duration // with what must come by itself

	mu      sync.Mutex
	pins    map[string]string // by holder
	daemons []*daemon
	tpms    map[string]*swtpm.Process
	machine *vm.Machine // nil while none runs

	charter string
	url     string
	object  string // id of the sealed weights
	export  string // digest of the export request
	warrant string // of the guest's launch
	steps   []step
}

// A daemon is a program that runs until the stage is struck.
type daemon struct {
	name string
	cmd  *exec.Cmd
	done chan struct{}
}

// people are the founders: name, organisation, roles.
var people = []struct {
	name, org string
	roles     []string
}{
	{"alice", "lab", []string{"research"}},
	{"bob", "lab", []string{"security"}},
	{"carol", "lab", []string{"leadership"}},
	{"dave", "institute", []string{"safety"}},
	{"erin", "institute", []string{"security", "research"}},
}

var notaries = []string{"north", "east", "south", "west"}

func (s *stage) path(parts ...string) string {
	return filepath.Join(append([]string{s.dir}, parts...)...)
}

// clear empties the directory, if it is one that this program made.
func (s *stage) clear() error {
	if entries, err := os.ReadDir(s.dir); err == nil && len(entries) > 0 {
		if _, err := os.Stat(s.path("stage")); err != nil {
			return fmt.Errorf("%s is not empty and not a stage of this program; name another --dir", s.dir)
		}
	}
	if err := os.RemoveAll(s.dir); err != nil {
		return err
	}
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(s.path("stage"), nil, 0o644)
}

func (s *stage) say(format string, args ...any) {
	fmt.Printf("%6.1f s  %s\n", time.Since(s.start).Seconds(), fmt.Sprintf(format, args...))
}

// setUp makes tokens, machines and charter, and starts the daemons. machines
// adds what it knows of them to the charter.
func (s *stage) setUp(ctx context.Context, machines func(context.Context, *founding) error) error {
	s.say("tokens: %d people, %d notaries, a coordinator, a boot ceremony (SoftHSM2: EMULATED hardware)", len(people), len(notaries))
	f, err := s.makeTokens(ctx)
	if err != nil {
		return err
	}
	if err := machines(ctx, f); err != nil {
		return err
	}
	if err := s.found(f); err != nil {
		return err
	}
	s.say("charter %s, accepted by all %d founders", s.charter, len(people))
	if err := s.startDaemons(ctx); err != nil {
		return err
	}
	if err := s.await(ctx, "a group key", func(v statusView) bool { return v.GroupKey }); err != nil {
		return err
	}
	s.say("coordinator and %d notaries run; they made their group key without a dealer", len(notaries))
	return nil
}

// A founding mirrors the file that keyturn init reads.
type founding struct {
	Name         string              `json:"name"`
	Development  bool                `json:"development"`
	People       []foundingPerson    `json:"people"`
	Threshold    int                 `json:"threshold"`
	Notaries     []foundingNotary    `json:"notaries"`
	Faults       int                 `json:"faults"`
	Log          json.RawMessage     `json:"log"`
	Coordinators []map[string]string `json:"coordinators"`
	EKRoots      [][]byte            `json:"ekRoots"`
	BootPolicy   json.RawMessage     `json:"bootPolicy"`
	References   []string            `json:"references"`
}

type foundingPerson struct {
	Name         string          `json:"name"`
	Organisation string          `json:"organisation"`
	Roles        []string        `json:"roles"`
	Signing      json.RawMessage `json:"signing"`
	Exchange     json.RawMessage `json:"exchange"`
}

type foundingNotary struct {
	Name         string          `json:"name"`
	Organisation string          `json:"organisation"`
	Signing      json.RawMessage `json:"signing"`
	Exchange     json.RawMessage `json:"exchange"`
	Witness      json.RawMessage `json:"witness"`
}

// uri names a key on a holder's token.
func uri(holder, object string) string {
	return "pkcs11:token=" + holder + ";object=" + object + "?module-path=" + module
}

// env is the environment in which a holder's token is plugged in.
func (s *stage) env(holder string) []string {
	return append(os.Environ(), "SOFTHSM2_CONF="+s.path("tokens", holder, "softhsm2.conf"), "NO_COLOR=1")
}

func (s *stage) makeTokens(ctx context.Context) (*founding, error) {
	f := &founding{Name: "demo-cluster", Development: true, Threshold: 3, Faults: 1}
	holders := map[string]map[string]string{
		"coordinator": {"log": "ed25519", "tls": "p256"}, "ceremony": {"boot": "p256"}, "partner": {"exchange": "ecdh"},
	}
	for _, p := range people {
		holders[p.name] = map[string]string{"sign": "p256", "exchange": "ecdh"}
	}
	for _, n := range notaries {
		holders[n] = map[string]string{"sign": "p256", "exchange": "ecdh", "witness": "ed25519", "seal": "seal"}
	}
	keys := map[string]json.RawMessage{}
	var wg sync.WaitGroup
	var errs []error
	sem := make(chan struct{}, 4)
	for holder, objects := range holders {
		wg.Go(func() {
			sem <- struct{}{}
			defer func() { <-sem }()
			made, err := s.makeToken(ctx, holder, objects)
			s.mu.Lock()
			defer s.mu.Unlock()
			errs = append(errs, err)
			for k, v := range made {
				keys[holder+"/"+k] = v
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	for _, p := range people {
		f.People = append(f.People, foundingPerson{p.name, p.org, p.roles, keys[p.name+"/sign"], keys[p.name+"/exchange"]})
	}
	for _, n := range notaries {
		f.Notaries = append(f.Notaries, foundingNotary{n, "team-" + n, keys[n+"/sign"], keys[n+"/exchange"], keys[n+"/witness"]})
	}
	f.Log, f.BootPolicy = keys["coordinator/log"], keys["ceremony/boot"]
	if err := os.WriteFile(s.path("partner.pub.json"), keys["partner/exchange"], 0o644); err != nil {
		return nil, err
	}
	return f, s.address(f, keys["coordinator/tls"])
}

// makeToken initialises a token of its own for the holder and makes its keys
// on it, by the same commands that a person would type.
func (s *stage) makeToken(ctx context.Context, holder string, objects map[string]string) (map[string]json.RawMessage, error) {
	dir := s.path("tokens", holder)
	if err := os.MkdirAll(filepath.Join(dir, "tokens"), 0o700); err != nil {
		return nil, err
	}
	conf := "directories.tokendir = " + filepath.Join(dir, "tokens") + "\nobjectstore.backend = file\nlog.level = ERROR\n"
	if err := os.WriteFile(filepath.Join(dir, "softhsm2.conf"), []byte(conf), 0o600); err != nil {
		return nil, err
	}
	pin, err := randomPIN()
	if err != nil {
		return nil, err
	}
	so, err := randomPIN()
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, "pin"), []byte(pin+"\n"), 0o600); err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.pins[holder] = pin
	s.mu.Unlock()
	if r := s.exec(ctx, holder, so+"\n"+pin+"\n", "", "key", "init", "--module", module, "--label", holder); r.code != 0 {
		return nil, fmt.Errorf("token of %s: %s", holder, r.err)
	}
	out := map[string]json.RawMessage{}
	for object, kind := range objects {
		r := s.exec(ctx, holder, pin+"\n", "", "key", "new", "--kind", kind, uri(holder, object))
		if r.code != 0 {
			return nil, fmt.Errorf("key %s of %s: %s", object, holder, r.err)
		}
		if kind != "seal" {
			out[object] = json.RawMessage(strings.TrimSpace(r.out))
		}
	}
	return out, nil
}

func randomPIN() (string, error) {
	n, err := rand.Int(rand.Reader, big.NewInt(100_000_000))
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%08d", n), nil
}

// address finds a free port for the coordinator and pins its key.
func (s *stage) address(f *founding, tlsKey json.RawMessage) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	s.url = fmt.Sprintf("https://%s:%d", s.host, l.Addr().(*net.TCPAddr).Port)
	if err := l.Close(); err != nil {
		return err
	}
	var key signoff.PublicKey
	if err := json.Unmarshal(tlsKey, &key); err != nil {
		return err
	}
	f.Coordinators = []map[string]string{{"url": s.url, "tls": key.Fingerprint().String()}}
	return nil
}

// A result is what a program printed and how it ended.
type result struct {
	out, err string
	code     int
}

// reason is the first line of what a refused program said, without its name.
func (r result) reason() string {
	for line := range strings.Lines(r.err) {
		if program, why, _ := strings.Cut(strings.TrimSpace(line), ": "); strings.HasPrefix(program, "keyturn") || program == "age" {
			return why
		}
	}
	return strings.TrimSpace(r.err)
}

// exec runs keyturn with a PIN on descriptor 3 and stdin as the answers.
func (s *stage) exec(ctx context.Context, holder, pins, stdin string, args ...string) result {
	cmd := exec.CommandContext(ctx, filepath.Join(s.bin, "keyturn"), append([]string{"--pin-fd", "3"}, args...)...)
	cmd.Env = s.env(holder)
	return runCommand(cmd, pins, stdin)
}

// program runs another of keyturn's programs.
func (s *stage) program(ctx context.Context, holder, program string, args ...string) result {
	cmd := exec.CommandContext(ctx, filepath.Join(s.bin, program), args...)
	cmd.Env = s.env(holder)
	return runCommand(cmd, "", "")
}

func runCommand(cmd *exec.Cmd, pins, stdin string) result {
	r, w, err := os.Pipe()
	if err != nil {
		return result{err: err.Error(), code: -1}
	}
	defer r.Close()
	if _, err := io.WriteString(w, pins); err != nil {
		return result{err: err.Error(), code: -1}
	}
	w.Close()
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = strings.NewReader(stdin), &stdout, &stderr, []*os.File{r}
	err = cmd.Run()
	out := result{out: stdout.String(), err: stderr.String(), code: cmd.ProcessState.ExitCode()}
	if err != nil && out.err == "" {
		out.err = err.Error()
	}
	return out
}

// as runs keyturn as a person of the charter.
func (s *stage) as(ctx context.Context, person, stdin string, args ...string) result {
	return s.exec(ctx, person, s.pins[person]+"\n", stdin, append([]string{"--config", s.path("people", person, "keyturn.yaml")}, args...)...)
}

func (s *stage) makeMachines(ctx context.Context, f *founding) error {
	s.say("machines: %s, each with a TPM (swtpm: EMULATED, synthetic boot)", strings.Join(s.nodes, " and "))
	ca := s.path("tpm-ca")
	s.tpms = map[string]*swtpm.Process{}
	for _, n := range s.nodes {
		if err := swtpm.Setup(s.path("nodes", n, "tpm"), ca); err != nil {
			return err
		}
		if err := s.boot(ctx, n, "kernel 6.1, as approved"); err != nil {
			return err
		}
	}
	roots, err := swtpm.Roots(ca)
	if err != nil {
		return err
	}
	f.EKRoots = roots
	r := s.program(ctx, s.nodes[0], "keyturn", "reference", "from-eventlog", s.path("nodes", s.nodes[0], "eventlog"), "--name", "demo-nodes")
	if r.code != 0 {
		return fmt.Errorf("reference values: %s", r.err)
	}
	f.References = []string{strings.TrimSpace(r.out)}
	if err := os.WriteFile(s.path("reference.json"), []byte(r.out), 0o644); err != nil {
		return err
	}
	line, err := s.approveBoot(ctx, s.path("reference.json"))
	if err != nil {
		return err
	}
	return os.WriteFile(s.path("boot-approval.json"), []byte(line), 0o644)
}

// approveBoot has the ceremony's key sign the boot that a reference set
// describes, and returns the line for the node.
func (s *stage) approveBoot(ctx context.Context, set string) (string, error) {
	r := s.exec(ctx, "ceremony", s.pins["ceremony"]+"\n", "", "reference", "approve-boot", set, "--key", uri("ceremony", "boot"))
	if r.code != 0 {
		return "", fmt.Errorf("boot approval: %s", r.err)
	}
	return r.out, nil
}

// boot starts a node's TPM afresh and measures the given kernel into it.
func (s *stage) boot(ctx context.Context, node, kernel string) error {
	if p := s.tpms[node]; p != nil {
		if err := shutDown(ctx, p); err != nil {
			return err
		}
	}
	socket := filepath.Join(os.TempDir(), fmt.Sprintf("keyturn-%d-%s.sock", os.Getpid(), node))
	p, err := swtpm.Start(s.path("nodes", node, "tpm"), socket)
	if err != nil {
		return err
	}
	s.tpms[node] = p
	dev, err := attesttpm.Open(p.Path)
	if err != nil {
		return err
	}
	defer dev.Close()
	log, err := attesttpm.SyntheticBoot(ctx, dev, []attesttpm.Measured{
		{PCR: 0, Type: attesttpm.EventSCRTMVersion, Data: []byte("synthetic firmware 1")},
		{PCR: 4, Type: attesttpm.EventBootApplication, Data: []byte(kernel)},
	})
	if err != nil {
		return err
	}
	return os.WriteFile(s.path("nodes", node, "eventlog"), log, 0o644)
}

// shutDown ends a TPM in order, so that it keeps its clock. One that was cut
// off shows times again, and evidence with them is refused until it caught up.
func shutDown(ctx context.Context, p *swtpm.Process) error {
	dev, err := attesttpm.Open(p.Path)
	if err != nil {
		return err
	}
	err = dev.Run(ctx, "shut down", func(t transport.TPM) error {
		_, err := tpm2.Shutdown{ShutdownType: tpm2.TPMSUClear}.Execute(t)
		return err
	})
	return errors.Join(err, dev.Close(), p.Kill())
}

// found writes the charter and has every founder accept it.
func (s *stage) found(f *founding) error {
	ctx := context.Background()
	b, err := json.Marshal(f)
	if err != nil {
		return err
	}
	if err := errors.Join(os.WriteFile(s.path("founding.json"), b, 0o644), os.WriteFile(s.path("policy.yaml"), fmt.Appendf(nil, policy, s.leases), 0o644)); err != nil {
		return err
	}
	r := s.exec(ctx, people[0].name, "", "", "init", "--founding", s.path("founding.json"), "--policy", s.path("policy.yaml"), "--out", s.dir)
	if r.code != 0 {
		return fmt.Errorf("init: %s", r.err)
	}
	s.charter = strings.TrimSpace(r.out)
	for _, p := range people {
		if err := s.writeConfig(filepath.Join("people", p.name, "keyturn.yaml"), map[string]string{
			"name": p.name, "signing": uri(p.name, "sign"), "exchange": uri(p.name, "exchange"), "state": "state"}); err != nil {
			return err
		}
		r := s.as(ctx, p.name, "accept\n", "accept", s.path("charter.json"), "--key", uri(p.name, "sign"), "--genesis", s.path("genesis.jsonl"))
		if r.code != 0 {
			return fmt.Errorf("%s accepts: %s", p.name, r.err)
		}
	}
	return nil
}

// writeConfig writes a configuration file with the anchor and these keys.
func (s *stage) writeConfig(name string, values map[string]string) error {
	path := s.path(name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	text := "charter: " + s.charter + "\ncharterFile: " + s.path("charter.json") + "\n"
	for k, v := range values {
		text += k + ": " + v + "\n"
	}
	return os.WriteFile(path, []byte(text), 0o644)
}

func (s *stage) startDaemons(ctx context.Context) error {
	if err := s.writeConfig("coordinator/keyturnd.yaml", map[string]string{"listen": strings.TrimPrefix(s.url, "https://"), "dir": ".",
		"genesis": "../genesis.jsonl", "logKey": uri("coordinator", "log"), "tlsKey": uri("coordinator", "tls")}); err != nil {
		return err
	}
	if err := s.daemon("coordinator", "keyturnd", "--config", s.path("coordinator", "keyturnd.yaml")); err != nil {
		return err
	}
	for _, n := range notaries {
		if err := s.startNotary(ctx, n, nil); err != nil {
			return err
		}
	}
	return os.Symlink(filepath.Join("coordinator", "log"), s.path("log"))
}

// daemon starts a program that reads its PIN from descriptor 3 and keeps its
// output in a file.
func (s *stage) daemon(holder, program string, args ...string) error {
	if err := os.MkdirAll(s.path("output"), 0o755); err != nil {
		return err
	}
	out, err := os.OpenFile(s.path("output", holder+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer out.Close()
	pin, err := os.Open(s.path("tokens", holder, "pin"))
	if errors.Is(err, os.ErrNotExist) {
		pin, err = os.Open(os.DevNull)
	} else {
		args = append([]string{"--pin-fd", "3"}, args...)
	}
	if err != nil {
		return err
	}
	defer pin.Close()
	cmd := exec.Command(filepath.Join(s.bin, program), args...)
	cmd.Env, cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = s.env(holder), out, out, []*os.File{pin}
	cmd.SysProcAttr = ownGroup()
	if err := cmd.Start(); err != nil {
		return err
	}
	d := &daemon{holder, cmd, make(chan struct{})}
	go func() { cmd.Wait(); close(d.done) }()
	s.daemons = append(s.daemons, d)
	return nil
}

// find returns the running daemon of a name.
func (s *stage) find(name string) *daemon {
	for i := len(s.daemons) - 1; i >= 0; i-- {
		if s.daemons[i].name == name {
			return s.daemons[i]
		}
	}
	return nil
}

// stop ends what this program started, by process id.
func (s *stage) stop() {
	for i := len(s.daemons) - 1; i >= 0; i-- {
		d := s.daemons[i]
		d.cmd.Process.Signal(os.Interrupt)
		select {
		case <-d.done:
		case <-time.After(3 * time.Second):
			d.cmd.Process.Kill()
			<-d.done
		}
	}
	s.daemons = nil
	if s.machine != nil {
		s.machine.Kill()
		s.machine = nil
	}
	for _, p := range s.tpms {
		p.Kill()
	}
	s.tpms = nil
}

// statusView is what keyturn status --json answers, as far as it is used.
type statusView struct {
	Size     uint64 `json:"size"`
	GroupKey bool   `json:"groupKey"`
	Epoch    uint64 `json:"epoch"`
	Nodes    []struct {
		Name    string `json:"name"`
		Verdict string `json:"verdict"`
		Reason  string `json:"reason"`
	} `json:"nodes"`
	Waits []string `json:"waits"`
}

func (v statusView) verdict(node string) string {
	for _, n := range v.Nodes {
		if n.Name == node {
			return n.Verdict
		}
	}
	return ""
}

// await asks for the status until ok says so.
func (s *stage) await(ctx context.Context, what string, ok func(statusView) bool) error {
	deadline := time.Now().Add(s.patience)
	last := ""
	for time.Now().Before(deadline) && ctx.Err() == nil {
		r := s.as(ctx, people[0].name, "", "status", "--json")
		var v statusView
		if r.code == 0 && json.Unmarshal([]byte(r.out), &v) == nil && ok(v) {
			return nil
		}
		last = r.out + r.err
		time.Sleep(100 * time.Millisecond)
	}
	return fmt.Errorf("waited %v for %s; the last status was: %s; see %s", s.patience, what, last, s.path("output"))
}
