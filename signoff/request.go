package signoff

import (
	"errors"
	"fmt"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/signoff/dsse"
)

// The actions a request can ask for. They are the policy's action names.
const (
	ActionExport       = "weights.export"
	ActionLaunch       = "training.launch"
	ActionEnrol        = "node.enrol"
	ActionRetire       = "node.retire"
	ActionPolicyChange = "policy.change"
	ActionResume       = "resume"

	ActionReferenceAdopt    = "reference.adopt"
	ActionReferenceWithdraw = "reference.withdraw"
	ActionNotaries          = "notaries.change"
	ActionEKRoots           = "ekroots.change"
)

// Seen is a checkpoint of the log that a signer had before its eyes. An entry
// whose Seen is not a prefix of the log is void and proves a fork.
type Seen struct {
	Size uint64 `json:"size"`
	Root Digest `json:"root"`
}

func (s Seen) check() error {
	if s.Size == 0 || s.Root.IsZero() {
		return missing("the checkpoint seen")
	}
	return nil
}

// A Request says exactly what is asked. Exactly one of the parts is present,
// and it decides the action.
type Request struct {
	Charter   Digest `json:"charter"`
	Action    string `json:"action"`
	Requester Digest `json:"requester"` // fingerprint of a person's signing key
	Purpose   string `json:"purpose"`
	Created   int64  `json:"created"`
	Expiry    int64  `json:"expiry"`
	Nonce     []byte `json:"nonce"` // 16 random bytes
	Seen      Seen   `json:"seen"`

	Export *Export       `json:"export,omitzero"`
	Launch *Launch       `json:"launch,omitzero"`
	Enrol  *Enrol        `json:"enrol,omitzero"`
	Retire *Retire       `json:"retire,omitzero"`
	Policy *PolicyChange `json:"policy,omitzero"`
	Resume *Resume       `json:"resume,omitzero"`
	People *PeopleChange `json:"people,omitzero"`

	Adopt    *ReferenceAdopt    `json:"adopt,omitzero"`
	Withdraw *ReferenceWithdraw `json:"withdraw,omitzero"`

	Notaries *NotaryChange  `json:"notaries,omitzero"`
	EKRoots  *EKRootsChange `json:"ekRoots,omitzero"`
}

// An Export releases one object to one outside key.
type Export struct {
	Object       Digest    `json:"object"`
	Recipient    string    `json:"recipient"`    // name people know the recipient by
	RecipientKey PublicKey `json:"recipientKey"` // P-256, self-declared or software: shares are sealed to it
	Destination  string    `json:"destination"`  // media serial or place, as text
}

// A Launch starts one executable, exactly, on nodes of one pool.
type Launch struct {
	Name       string   `json:"name"`
	Executable Digest   `json:"executable"` // SHA-256 of its bytes
	Argv       []string `json:"argv"`
	Env        []string `json:"env"`             // complete environment, NAME=value
	Objects    []Digest `json:"objects"`         // opened read-only for the run; at least one
	Pool       []Digest `json:"pool"`            // node ids
	Uses       int      `json:"uses"`            // starts in all, over all nodes
	Seconds    int64    `json:"seconds"`         // wall-clock limit of each use
	Output     int64    `json:"output,omitzero"` // bytes of memory for snapshots, which are sealed; 0: none are made
}

// An Enrol admits one node with the keys in its enrolment (a blob). A node that is
// enrolled already, and lost its keys with a disk, gets new ones: the TPM is the
// same, and so is the name.
type Enrol struct {
	Name      string `json:"name"`
	Node      Digest `json:"node"`              // attest node id
	Enrolment Digest `json:"enrolment"`         // SHA-256 of the enrolment blob
	Replaces  Digest `json:"replaces,omitzero"` // the enrolment in force, zero for a new node
}

// A Retire puts a node out for good.
type Retire struct {
	Node Digest `json:"node"`
}

// A PolicyChange replaces the policy, judged under the old one.
type PolicyChange struct {
	Policy string `json:"policy"` // YAML, verbatim
}

// A Resume lifts exactly the halts it names.
type Resume struct {
	Halts []Digest `json:"halts"`
}

// A ReferenceAdopt puts a reference set, by which nodes are judged, into force.
type ReferenceAdopt struct {
	Name    string `json:"name"`    // of the set, as in it
	Version uint64 `json:"version"` // of the set, as in it
	Set     Digest `json:"set"`     // SHA-256 of the set (a blob, JSON as package attest reads it)
}

// A ReferenceWithdraw ends reference sets before their time.
type ReferenceWithdraw struct {
	Sets []Digest `json:"sets"`
}

// Kind is KindRequest.
func (r *Request) Kind() Kind { return KindRequest }

// Cluster is the charter the request belongs to.
func (r *Request) Cluster() Digest { return r.Charter }

func (r *Request) subjects() []dsse.Subject {
	var out []dsse.Subject
	add := func(name string, d Digest) { out = append(out, dsse.About(name, d)) }
	switch {
	case r.Export != nil:
		add("object", r.Export.Object)
		add("recipient", r.Export.RecipientKey.Fingerprint())
	case r.Launch != nil:
		add("executable", r.Launch.Executable)
		for _, o := range r.Launch.Objects {
			add("object", o)
		}
	case r.Enrol != nil:
		add("node", r.Enrol.Node)
		add("enrolment", r.Enrol.Enrolment)
	case r.Retire != nil:
		add("node", r.Retire.Node)
	case r.Policy != nil:
		add("policy", dsse.Sum("keyturn/policy/v1", []byte(r.Policy.Policy)))
	case r.Resume != nil:
		for _, h := range r.Resume.Halts {
			add("halt", h)
		}
	case r.Adopt != nil:
		add("reference set", r.Adopt.Set)
	case r.Withdraw != nil:
		for _, set := range r.Withdraw.Sets {
			add("reference set", set)
		}
	case r.People != nil:
		out = r.People.subjects()
		if r.People.Threshold != 0 {
			add("charter", r.Charter)
		}
	case r.Notaries != nil:
		for _, n := range r.Notaries.Notaries {
			add("notary", n.ID())
		}
	case r.EKRoots != nil:
		out = r.EKRoots.subjects()
	}
	return out
}

// Objects lists the objects whose shares an approval must carry.
func (r *Request) Objects() []Digest {
	switch {
	case r.Export != nil:
		return []Digest{r.Export.Object}
	case r.Launch != nil:
		return r.Launch.Objects
	}
	return nil
}

// Validate checks the form of the request and of its one part.
func (r *Request) Validate() error {
	if r.Requester.IsZero() {
		return missing("requester")
	}
	if err := CheckText("purpose", r.Purpose); err != nil {
		return err
	}
	if err := checkLife(r.Created, r.Expiry, r.Nonce); err != nil {
		return err
	}
	if err := r.Seen.check(); err != nil {
		return err
	}
	action, part, err := r.part()
	if err != nil {
		return err
	}
	if action != r.Action {
		return fmt.Errorf("action %.80q, but its part is of %q", r.Action, action)
	}
	return part.check()
}

type part interface{ check() error }

// part returns the request's only part and the action it belongs to.
func (r *Request) part() (string, part, error) {
	var action string
	var found part
	n := 0
	see := func(present bool, a string, p part) {
		if present {
			action, found = a, p
			n++
		}
	}
	see(r.Export != nil, ActionExport, r.Export)
	see(r.Launch != nil, ActionLaunch, r.Launch)
	see(r.Enrol != nil, ActionEnrol, r.Enrol)
	see(r.Retire != nil, ActionRetire, r.Retire)
	see(r.Policy != nil, ActionPolicyChange, r.Policy)
	see(r.People != nil, ActionPeopleChange, r.People)
	see(r.Resume != nil, ActionResume, r.Resume)
	see(r.Adopt != nil, ActionReferenceAdopt, r.Adopt)
	see(r.Withdraw != nil, ActionReferenceWithdraw, r.Withdraw)
	see(r.Notaries != nil, ActionNotaries, r.Notaries)
	see(r.EKRoots != nil, ActionEKRoots, r.EKRoots)
	if n != 1 {
		return "", nil, fmt.Errorf("%d parts, want exactly one of export, launch, enrol, retire, policy, resume, people, adopt, withdraw, notaries, ekRoots", n)
	}
	return action, found, nil
}

func checkLife(created, expiry int64, nonce []byte) error {
	if created <= 0 || expiry <= created {
		return fmt.Errorf("created %d and expiry %d: want a positive time and a later one", created, expiry)
	}
	if len(nonce) != 16 {
		return fmt.Errorf("nonce of %d bytes, want 16", len(nonce))
	}
	return nil
}

func (e *Export) check() error {
	if e.Object.IsZero() {
		return missing("object")
	}
	if err := errors.Join(CheckText("recipient", e.Recipient), CheckText("destination", e.Destination)); err != nil {
		return err
	}
	if err := e.RecipientKey.check("recipient key", false); err != nil {
		return err
	}
	if c := e.RecipientKey.Class; c.AtLeast(hsm.ClassSealed) {
		return fmt.Errorf("recipient key: class %q; what nobody of this cluster looked at is %s, or %s", c, hsm.ClassSelfDeclared, hsm.ClassSoftware)
	}
	_, err := e.RecipientKey.ECDH()
	return err
}

// Bounds of a launch.
const (
	MaxWords       = 256
	MaxPool        = 128
	MaxUses        = 1 << 20
	MaxRunSeconds  = 400 * 24 * 3600
	MaxRunObjects  = 32
	MaxOutput      = 1 << 46 // bytes
	MaxSnapshots   = 4096    // of one use
	MaxResumeHalts = 32
)

func (l *Launch) check() error {
	if err := CheckName("name", l.Name); err != nil {
		return err
	}
	if l.Executable.IsZero() {
		return missing("executable")
	}
	if n := len(l.Argv); n == 0 || n > MaxWords {
		return fmt.Errorf("%d arguments, want 1 to %d (the first is the program's name)", n, MaxWords)
	}
	if len(l.Env) > MaxWords {
		return fmt.Errorf("%d environment entries, at most %d", len(l.Env), MaxWords)
	}
	for _, w := range append(append([]string{}, l.Argv...), l.Env...) {
		if err := checkWord("argument or environment", w); err != nil {
			return err
		}
	}
	if err := checkDigests("objects", l.Objects, MaxRunObjects); err != nil {
		return err
	}
	if err := checkDigests("pool", l.Pool, MaxPool); err != nil {
		return err
	}
	if n := len(l.Objects) * len(l.Pool); n > MaxShares {
		return fmt.Errorf("%d objects for %d nodes: an approval would carry %d shares, at most %d fit; ask for a smaller pool at a time", len(l.Objects), len(l.Pool), n, MaxShares)
	}
	if l.Uses < 1 || l.Uses > MaxUses {
		return fmt.Errorf("uses %d, want 1 to %d", l.Uses, MaxUses)
	}
	if l.Seconds < 1 || l.Seconds > MaxRunSeconds {
		return fmt.Errorf("time limit %d s, want 1 to %d", l.Seconds, MaxRunSeconds)
	}
	if l.Output < 0 || l.Output > MaxOutput {
		return fmt.Errorf("output of %d bytes, want 0 to %d", l.Output, int64(MaxOutput))
	}
	return nil
}

// checkDigests wants one to max distinct digests.
func checkDigests(field string, ds []Digest, max int) error {
	if len(ds) == 0 || len(ds) > max {
		return fmt.Errorf("%d %s, want 1 to %d", len(ds), field, max)
	}
	seen := map[Digest]bool{}
	for _, d := range ds {
		if d.IsZero() {
			return missing("one of " + field)
		}
		if seen[d] {
			return fmt.Errorf("%s names %s twice", field, d)
		}
		seen[d] = true
	}
	return nil
}

func (e *Enrol) check() error {
	if err := CheckName("node name", e.Name); err != nil {
		return err
	}
	if e.Node.IsZero() || e.Enrolment.IsZero() {
		return missing("node or enrolment")
	}
	return nil
}

func (r *Retire) check() error {
	if r.Node.IsZero() {
		return missing("node")
	}
	return nil
}

func (p *PolicyChange) check() error {
	if n := len(p.Policy); n == 0 || n > MaxPolicy {
		return fmt.Errorf("policy of %d bytes, want 1 to %d", n, MaxPolicy)
	}
	return nil
}

func (a *ReferenceAdopt) check() error {
	if err := CheckText("name of the reference set", a.Name); err != nil {
		return err
	}
	if a.Version == 0 || a.Set.IsZero() {
		return missing("version or reference set")
	}
	return nil
}

func (w *ReferenceWithdraw) check() error {
	return checkDigests("reference sets", w.Sets, MaxReferences)
}

func (r *Resume) check() error { return checkDigests("halts", r.Halts, MaxResumeHalts) }
