package signoff_test

import (
	"bytes"
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/mlkem"
	"crypto/sha256"
	"crypto/sha512"
	_ "embed"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/dsse"
)

type Digest = signoff.Digest

func digest(s string) Digest { return sha256.Sum256([]byte(s)) }

// p256 is a key that everybody knows: its private half is a hash of its name.
func p256(name string) signoff.PublicKey {
	secret := digest(name)
	k, err := ecdh.P256().NewPrivateKey(secret[:])
	if err != nil {
		panic(err)
	}
	return public(k.PublicKey())
}

func ed(name string) signoff.PublicKey {
	seed := digest(name)
	return public(ed25519.NewKeyFromSeed(seed[:]).Public())
}

func public(pub any) signoff.PublicKey {
	k, err := signoff.NewPublicKey(pub, hsm.ClassSoftware)
	if err != nil {
		panic(err)
	}
	return k
}

// fido is the key as if it were in an authenticator.
func fido(k signoff.PublicKey) signoff.PublicKey {
	pub, err := k.Public()
	if err != nil {
		panic(err)
	}
	return public(&hsm.SecurityKey{Key: pub, Application: "ssh:keyturn"})
}

func bytesOf(n int) []byte { return bytes.Repeat([]byte{7}, n) }

func list(n int) (out [][]byte) {
	for range n {
		out = append(out, bytesOf(32))
	}
	return out
}

// hybridToken has an ML-KEM-768 half, whose seed is SHA-512 of its name.
func hybridToken(name string) *signoff.Token {
	seed := sha512.Sum512([]byte(name + "-pq"))
	pq, err := mlkem.NewDecapsulationKey768(seed[:])
	if err != nil {
		panic(err)
	}
	t := &signoff.Token{Signing: p256(name), Exchange: p256(name + "-x")}
	t.Exchange.MLKEM768 = pq.EncapsulationKey().Bytes()
	return t
}

var (
	cluster = digest("cluster")
	seen    = signoff.Seen{Size: 12, Root: digest("root")}
	nonce   = bytesOf(16)
	share   = signoff.Share{Object: digest("object"), Epoch: 1, Index: 2, Recipient: digest("recipient"), Sealed: []byte("sealed")}
)

func charter() *signoff.Charter {
	c := &signoff.Charter{Name: "lab", Format: 1, Development: true, Created: 1_790_000_000, Threshold: 2, Faults: 1, Log: ed("log"), Policy: "version: 1\n",
		Coordinators: []signoff.Coordinator{{URL: "https://one.example", TLS: digest("tls")}}}
	for _, name := range []string{"alice", "bob", "carol"} {
		c.People = append(c.People, signoff.Person{Name: name, Organisation: "lab", Roles: []string{"security"}, Token: signoff.Token{Signing: p256(name), Exchange: p256(name + "-x")}})
	}
	for _, name := range []string{"n1", "n2", "n3", "n4"} {
		c.Notaries = append(c.Notaries, signoff.Notary{Name: name, Organisation: "org-" + name, Signing: p256(name), Exchange: p256(name + "-x"), Witness: ed(name)})
	}
	return c
}

// ekRoot is an authority's certificate, made with openssl on 2026-11-26.
//
//go:embed testdata/ekroot.der
var ekRoot []byte

func request(edit func(*signoff.Request)) *signoff.Request {
	r := &signoff.Request{Charter: cluster, Requester: digest("alice"), Purpose: "évaluation 42", Created: 1000, Expiry: 2000, Nonce: nonce, Seen: seen}
	edit(r)
	return r
}

func export() *signoff.Request {
	return request(func(r *signoff.Request) {
		r.Action = signoff.ActionExport
		r.Export = &signoff.Export{Object: digest("object"), Recipient: "an evaluator", RecipientKey: p256("recipient"), Destination: "disk 7"}
	})
}

func launch() *signoff.Request {
	return request(func(r *signoff.Request) {
		r.Action = signoff.ActionLaunch
		r.Launch = &signoff.Launch{Name: "run-1", Executable: digest("executable"), Argv: []string{"train", "--lr=\n"}, Env: []string{"A=b"},
			Objects: []Digest{digest("object")}, Pool: []Digest{digest("node")}, Uses: 4, Seconds: 60, Output: 1 << 37}
	})
}

func approval() *signoff.Approval {
	return &signoff.Approval{Charter: cluster, Request: digest("request"), Person: digest("bob"), Decision: signoff.Approve, Rule: digest("rule"), Reason: "looks right",
		Created: 1000, Expiry: 2000, Nonce: nonce, Display: digest("display"), Seen: seen, Shares: []signoff.Share{share}}
}

func object() *signoff.Object {
	return &signoff.Object{Charter: cluster, Sealer: digest("alice"), Name: "model 7", Manifest: digest("manifest"), Created: 1000,
		Lockbox: signoff.Lockbox{Salt: bytesOf(32), People: signoff.Sharing{Threshold: 2, Commitments: list(2)}, Machines: signoff.Sharing{Threshold: 3, Commitments: list(3)}},
		Summary: signoff.Summary{Files: 2, Bytes: 1 << 40, Tensors: 3, Parameters: 7, DTypes: []string{"BF16"}}}
}

func snapshot() *signoff.Object {
	o := object()
	o.Sealer, o.Claim = digest("node"), digest("claim")
	return o
}

func warrant() *signoff.Warrant {
	return &signoff.Warrant{Charter: cluster, Request: digest("request"), Action: signoff.ActionExport, Policy: digest("policy"), Rule: digest("rule"), Index: 9,
		Approvals: []Digest{digest("a"), digest("b")}, Issued: 1000, Expiry: 2000, Uses: 1}
}

func epoch() *signoff.Epoch {
	return &signoff.Epoch{Charter: cluster, Notary: digest("n1"), Number: 2, Previous: digest("previous"), Policy: digest("policy"),
		Evidence: digest("evidence"), Root: digest("leases")}
}

func claim() *signoff.Claim {
	return &signoff.Claim{Charter: cluster, Node: digest("node"), Warrant: digest("warrant"), Use: 2, Evidence: digest("evidence"), Created: 1000, Nonce: nonce, Resume: digest("snapshot")}
}

func receipt() *signoff.Receipt {
	return &signoff.Receipt{Charter: cluster, Signer: digest("node"), Warrant: digest("warrant"), Claim: digest("claim"), Event: signoff.EventEnded, Detail: "exit status 0", Bytes: 3, Created: 1000}
}

func halt() *signoff.Halt {
	return &signoff.Halt{Charter: cluster, Person: digest("bob"), Request: digest("request"), Reason: "smoke", Created: 1000, Nonce: nonce}
}

func commitment() *signoff.Commitment {
	return &signoff.Commitment{Charter: cluster, Notary: digest("n1"), Term: 1, Attempt: 1, Commitments: list(3), Proof: bytesOf(64)}
}

func dealing() *signoff.Dealing {
	return &signoff.Dealing{Charter: cluster, Notary: digest("n1"), Term: 1, Attempt: 1, Shares: list(4)}
}

func transcript() *signoff.Transcript {
	return &signoff.Transcript{Charter: cluster, Notary: digest("n1"), Term: 1, Attempt: 1, Digest: digest("transcript"), Group: bytesOf(32)}
}

func answer() *signoff.DealerAnswer {
	return &signoff.DealerAnswer{Charter: cluster, Notary: digest("n1"), Term: 1, Attempt: 1, Digest: digest("transcript"), Accuser: digest("n2"), Share: bytesOf(32)}
}

func signing() *signoff.Signing {
	return &signoff.Signing{Charter: cluster, Notary: digest("n1"), Payload: digest("payload"), Term: 1, Attempt: 1, Offer: bytesOf(66), Session: 2, List: digest("list"), Share: bytesOf(32)}
}

// signingFault shows a share, or with it left out the offer.
func signingFault(share bool) *signoff.SigningFault {
	f := &signoff.SigningFault{Charter: cluster, Notary: digest("n2"), Accused: digest("n1")}
	m := signing()
	m.Share = nil
	if share {
		f.Payload, f.List = []byte("what was to be signed"), [][]byte{bytesOf(66), bytesOf(66), bytesOf(66)}
		m.Payload, m.List, m.Share = sha256.Sum256(f.Payload), signoff.FrostList(f.List), bytesOf(32)
	}
	payload, err := signoff.Write(m)
	if err != nil {
		panic(err)
	}
	f.Message = string(line(payload))
	return f
}

func challenge() *signoff.Challenge {
	return &signoff.Challenge{Charter: cluster, Notary: digest("n1"), Request: digest("request"), Credential: bytesOf(64), Secret: bytesOf(64)}
}

func recovery() *signoff.Recovery {
	return &signoff.Recovery{Charter: cluster, Log: ed("log-2"), Base: seen, Positions: []string{"one", "two", "three"}}
}

func deals() *signoff.Deals {
	return &signoff.Deals{Charter: cluster, Sealer: digest("alice"), Object: digest("object"), Epoch: 1, Blob: digest("blob")}
}

func release() *signoff.Release {
	return &signoff.Release{Charter: cluster, Notary: digest("n1"), Warrant: digest("warrant"), Claim: digest("claim"), Share: share}
}

func activation() *signoff.Activation {
	return &signoff.Activation{Charter: cluster, Notary: digest("n1"), Request: digest("request"), Node: digest("node"), Enrolment: digest("enrolment")}
}

func tick() *signoff.Tick {
	return &signoff.Tick{Charter: cluster, Notary: digest("n1"), Round: 3, Time: 1000}
}

func position() *signoff.Position {
	return &signoff.Position{Charter: cluster, Notary: digest("n1"), Seen: seen, Answer: bytesOf(16)}
}

func people() *signoff.PeopleChange {
	return &signoff.PeopleChange{
		Add:    []signoff.Person{{Name: "frank", Organisation: "lab", Roles: []string{"security"}, Token: pair("frank"), Spares: []signoff.Token{pair("frank-2")}}},
		Remove: []Digest{digest("erin")},
		Tokens: []signoff.TokenChange{{Person: digest("bob"), Retire: digest("bob"), Add: new(pair("bob-2"))}},
	}
}

func pair(name string) signoff.Token {
	return signoff.Token{Signing: p256(name), Exchange: p256(name + "-x")}
}

// samples has one document of every kind and of every action.
func samples() map[string]signoff.Document {
	return map[string]signoff.Document{
		"acceptance-token": &signoff.Acceptance{Charter: cluster, Person: digest("frank"), Request: digest("request")},
		"request-people": request(func(r *signoff.Request) {
			r.Action, r.People = signoff.ActionPeopleChange, people()
		}),
		"request-people-fido": request(func(r *signoff.Request) {
			r.Action, r.People = signoff.ActionPeopleChange, &signoff.PeopleChange{
				Add:    []signoff.Person{{Name: "frank", Organisation: "lab", Roles: []string{"security"}, Token: signoff.Token{Signing: fido(p256("frank"))}}},
				Tokens: []signoff.TokenChange{{Person: digest("bob"), Retire: digest("bob"), Add: &signoff.Token{Signing: fido(ed("bob-2"))}}}}
		}),
		"request-people-threshold": request(func(r *signoff.Request) {
			r.Action, r.People = signoff.ActionPeopleChange, &signoff.PeopleChange{Threshold: 4,
				Roles: []signoff.RoleChange{{Person: digest("bob"), Roles: []string{"leadership", "safety"}}}}
		}),
		"request-people-hybrid": request(func(r *signoff.Request) {
			r.Action, r.People = signoff.ActionPeopleChange, &signoff.PeopleChange{Tokens: []signoff.TokenChange{{Person: digest("bob"), Add: hybridToken("bob-2")}}}
		}),
		"redealing": &signoff.Redealing{Charter: cluster, Person: digest("bob"), Roster: 40, Objects: []Digest{digest("one"), digest("two")}, Blob: digest("blob")},
		"custody": &signoff.Custody{Charter: cluster, Person: digest("frank"), Blob: digest("blob"), Shares: []signoff.Held{
			{Object: digest("one"), Epoch: 2, Sharing: digest("sharing")}, {Object: digest("two"), Epoch: 2, Sharing: digest("other"), Wrong: 3}}},
		"redealing-notary": &signoff.Redealing{Charter: cluster, Notary: digest("n1"), Roster: 40, Warrant: digest("warrant"), Objects: []Digest{digest("one"), digest("two")}, Blob: digest("blob")},
		"custody-notary":   &signoff.Custody{Charter: cluster, Notary: digest("n5"), Blob: digest("blob"), Shares: []signoff.Held{{Object: digest("one"), Epoch: 2, Sharing: digest("sharing")}}},
		"charter":          charter(), "acceptance": &signoff.Acceptance{Charter: cluster, Person: digest("alice")},
		"dkg-commitment": commitment(), "dkg-dealing": dealing(), "dkg-transcript": transcript(), "dkg-answer": answer(),
		"object": object(), "object-snapshot": snapshot(), "deals": deals(), "approval": approval(), "warrant": warrant(), "activation": activation(), "tick": tick(), "epoch": epoch(),
		"claim": claim(), "release": release(), "receipt": receipt(), "halt": halt(), "recovery": recovery(), "position": position(),
		"joining":  &signoff.Joining{Charter: cluster, Notary: digest("n5"), Request: digest("request"), Witness: bytesOf(64)},
		"takeover": &signoff.Takeover{Charter: cluster, Notary: digest("n1"), Term: 2, Checkpoint: "a signed checkpoint\n"},
		"signing":  signing(), "signing-fault": signingFault(true), "signing-fault-offer": signingFault(false),
		"ceremony": &signoff.Ceremony{Charter: cluster, Person: digest("alice"), Script: digest("script"), Transcript: digest("transcript")}, "challenge": challenge(), "request-export": export(), "request-launch": launch(),
		"request-enrol": request(func(r *signoff.Request) {
			r.Action = signoff.ActionEnrol
			r.Enrol = &signoff.Enrol{Name: "node-a", Node: digest("node"), Enrolment: digest("enrolment")}
		}),
		"request-retire": request(func(r *signoff.Request) {
			r.Action, r.Retire = signoff.ActionRetire, &signoff.Retire{Node: digest("node")}
		}),
		"request-policy": request(func(r *signoff.Request) {
			r.Action, r.Policy = signoff.ActionPolicyChange, &signoff.PolicyChange{Policy: "version: 1\n"}
		}),
		"request-resume": request(func(r *signoff.Request) {
			r.Action, r.Resume = signoff.ActionResume, &signoff.Resume{Halts: []Digest{digest("halt")}}
		}),
		"request-adopt": request(func(r *signoff.Request) {
			r.Action, r.Adopt = signoff.ActionReferenceAdopt, &signoff.ReferenceAdopt{Name: "rack-a", Version: 2, Set: digest("set")}
		}),
		"request-withdraw": request(func(r *signoff.Request) {
			r.Action, r.Withdraw = signoff.ActionReferenceWithdraw, &signoff.ReferenceWithdraw{Sets: []Digest{digest("set")}}
		}),
		"request-ekroots": request(func(r *signoff.Request) {
			r.Action, r.EKRoots = signoff.ActionEKRoots, &signoff.EKRootsChange{Add: [][]byte{ekRoot}, Remove: []Digest{digest("root")}}
		}),
		"request-notaries": request(func(r *signoff.Request) {
			c := charter()
			r.Action, r.Notaries = signoff.ActionNotaries, &signoff.NotaryChange{Term: 1, Notaries: c.Notaries, Faults: c.Faults}
		}),
	}
}

func write(t testing.TB, d signoff.Document) []byte {
	t.Helper()
	payload, err := signoff.Write(d)
	if err != nil {
		t.Fatalf("%s: %v", d.Kind(), err)
	}
	return payload
}

// line is a document as a log leaf, with a signature that no key made.
func line(payload []byte) []byte {
	return (&dsse.Envelope{Payload: payload, Sig: []byte("no signature"), Hint: digest("signer")}).Line()
}

var update = flag.Bool("update", false, "record the golden documents anew")

// TestGolden holds every kind of document to the bytes recorded on 2026-11-24,
// or 2026-11-26 for dkg-answer, signing-fault, keys in authenticators, hybrid keys and notaries' words on shares.
// They are what people and notaries sign: if this test fails, old documents no
// longer read and old signatures no longer verify.
func TestGolden(t *testing.T) {
	for name, d := range samples() {
		path := filepath.Join("testdata", name+".json")
		got := write(t, d)
		if *update {
			if err := os.WriteFile(path, got, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s: wrote\n%s\nrecorded\n%s", name, got, want)
		}
		if _, err := signoff.ReadLine(line(want)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A hybrid key stands where a person's exchange key does, whole or not at all.
func TestAttackHybridKeys(t *testing.T) {
	hybrid := hybridToken("x").Exchange
	if r, err := hybrid.Recipient(); err != nil || Digest(r.ID()) != hybrid.Fingerprint() || !r.Hybrid() {
		t.Fatalf("a hybrid key is %v, %v", r, err)
	}
	edited := func(edit func([]byte) []byte) signoff.PublicKey {
		k := hybrid
		k.MLKEM768 = edit(bytes.Clone(k.MLKEM768))
		return k
	}
	const elsewhere = "is hybrid; people's exchange keys may be, others may not"
	for name, x := range map[string]struct {
		edit   func(*signoff.Charter)
		reason string
	}{
		"a signing key":     {func(c *signoff.Charter) { c.People[0].Signing = hybrid }, elsewhere},
		"a notary's key":    {func(c *signoff.Charter) { c.Notaries[0].Exchange = hybrid }, elsewhere},
		"the log's key":     {func(c *signoff.Charter) { c.Log.MLKEM768 = hybrid.MLKEM768 }, elsewhere},
		"the boot policy's": {func(c *signoff.Charter) { c.BootPolicy = &hybrid }, elsewhere},
		"an empty half":     {func(c *signoff.Charter) { c.People[0].Exchange.MLKEM768 = []byte{} }, "ML-KEM-768 key of 0 bytes"},
		"a cut half":        {func(c *signoff.Charter) { c.People[0].Exchange = edited(func(b []byte) []byte { return b[1:] }) }, "ML-KEM-768 key of 1183 bytes"},
		"coefficients out of Zq": {func(c *signoff.Charter) {
			c.People[0].Exchange = edited(func(b []byte) []byte { b[0], b[1] = 0xff, 0xff; return b })
		}, "ML-KEM-768 key"},
		"no P-256 half": {func(c *signoff.Charter) { c.People[0].Exchange = signoff.PublicKey{MLKEM768: hybrid.MLKEM768} }, "exchange key is missing"},
		"two with one half": {func(c *signoff.Charter) {
			c.People[0].Exchange.MLKEM768, c.People[1].Exchange.MLKEM768 = hybrid.MLKEM768, hybrid.MLKEM768
		}, "shares a half with it"},
	} {
		c := charter()
		x.edit(c)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), x.reason) {
			t.Errorf("%s: %v; want %q", name, err, x.reason)
		}
	}
	to := export()
	to.Export.RecipientKey = hybrid
	if err := to.Validate(); err == nil || !strings.Contains(err.Error(), elsewhere) {
		t.Errorf("a recipient's key: %v", err)
	}
	c := charter()
	c.People[0].Exchange = hybrid
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
}

// Every kind that can be read has a sample, so no kind escapes these tests.
func TestSamplesHaveEveryKind(t *testing.T) {
	have := map[signoff.Kind]bool{}
	for name, d := range samples() {
		have[d.Kind()] = true
		if !strings.HasPrefix(name, string(d.Kind())) {
			t.Errorf("%s is a %s", name, d.Kind())
		}
	}
	source, err := os.ReadFile("doc.go")
	if err != nil {
		t.Fatal(err)
	}
	kinds := regexp.MustCompile(`Kind\w+\s+Kind = "([a-z-]+)"`).FindAllSubmatch(source, -1)
	if len(kinds) != len(have) || len(kinds) < 20 {
		t.Errorf("%d kinds, samples of %d", len(kinds), len(have))
	}
	for _, k := range kinds {
		if !have[signoff.Kind(k[1])] {
			t.Errorf("no sample of a %s", k[1])
		}
	}
}

var member = regexp.MustCompile(`"([a-zA-Z_0-9]+)":`)

// Members that are unknown, doubled, written in another case or escaped are
// refused, wherever they stand in whichever document.
func TestAttackMembers(t *testing.T) {
	for name, d := range samples() {
		payload := string(write(t, d))
		for _, at := range member.FindAllStringSubmatchIndex(payload, -1) {
			before, whole, word, after := payload[:at[0]], payload[at[0]:at[1]], payload[at[2]:at[3]], payload[at[1]:]
			for what, spoiled := range map[string]string{
				"unknown":  before + `"zzz":0,` + whole + after,
				"doubled":  before + whole + `null,` + whole + after,
				"upper":    before + `"` + strings.ToUpper(word[:1]) + word[1:] + `":` + after,
				"shouted":  before + `"` + strings.ToUpper(word) + `":` + after,
				"escaped":  before + `"\u00` + string("0123456789abcdef"[word[0]>>4]) + string("0123456789abcdef"[word[0]&15]) + word[1:] + `":` + after,
				"renamed":  before + `"` + word + `z":` + after,
				"spaced":   before + whole + " " + after,
				"tabbed":   before + "\t" + whole + after,
				"doubled'": before + `"` + strings.ToUpper(word) + `":null,` + whole + after,
			} {
				if spoiled == payload {
					continue
				}
				if _, err := signoff.Read([]byte(spoiled)); err == nil {
					t.Errorf("%s: member %q %s: read", name, word, what)
				}
			}
		}
	}
}

// A document says what it is about once: a subject that disagrees with the
// predicate is refused, and so is a predicate under another kind's name.
func TestAttackSubjectsAndKinds(t *testing.T) {
	all := samples()
	for name, d := range all {
		payload := string(write(t, d))
		end := strings.Index(payload, `"predicateType"`)
		sha := strings.Index(payload[:end], `"sha256":"`) + len(`"sha256":"`)
		flipped := []byte(payload)
		flipped[sha] = "0123456789abcdef"[(strings.IndexByte("0123456789abcdef", flipped[sha])+1)%16]
		for what, spoiled := range map[string]string{
			"another digest": string(flipped),
			"one more":       strings.Replace(payload, `"subject":[`, `"subject":[{"name":"x","digest":{"sha256":"00"}},`, 1),
			"another name":   strings.Replace(payload, `"subject":[{"name":"`, `"subject":[{"name":"x`, 1),
			"a second hash":  strings.Replace(payload, `{"sha256":`, `{"md5":"00","sha256":`, 1),
			"unknown kind":   strings.Replace(payload, `keyturn.dev/`+string(d.Kind()), `keyturn.dev/zzz`, 1),
			"no kind":        strings.Replace(payload, string(d.Kind())+`/v1"`, `/v1"`, 1),
			"newer version":  strings.Replace(payload, string(d.Kind())+`/v1"`, string(d.Kind())+`/v2"`, 1),
			"elsewhere":      strings.Replace(payload, `"predicateType":"https://keyturn.dev/`, `"predicateType":"https://keyturn.example/`, 1),
			"upper case":     strings.Replace(payload, `keyturn.dev/`+string(d.Kind()), `keyturn.dev/`+strings.ToUpper(string(d.Kind())), 1),
		} {
			if spoiled == payload {
				t.Fatalf("%s: %s was not spoiled", name, what)
			}
			if _, err := signoff.Read([]byte(spoiled)); err == nil {
				t.Errorf("%s: subject or kind with %s: read", name, what)
			}
		}
		for _, other := range all {
			if other.Kind() == d.Kind() {
				continue
			}
			as := strings.Replace(payload, d.Kind().PredicateType(), other.Kind().PredicateType(), 1)
			if got, err := signoff.Read([]byte(as)); err == nil {
				t.Errorf("a %s reads as a %s", d.Kind(), got.Kind())
			}
		}
	}
}

func TestAttackNoCluster(t *testing.T) {
	for name, d := range samples() {
		if d.Kind() == signoff.KindCharter {
			continue
		}
		payload := string(write(t, d))
		whose := d.Cluster().String()
		if d.Kind() == signoff.KindAcceptance {
			payload = strings.Replace(payload, d.Cluster().Hex()+`"}}]`, strings.Repeat("0", 64)+`"}}]`, 1)
		}
		none := strings.Replace(payload, `"charter":"`+whose+`"`, `"charter":""`, 1)
		zeros := strings.Replace(payload, `"charter":"`+whose+`"`, `"charter":"sha256:`+strings.Repeat("0", 64)+`"`, 1)
		for _, spoiled := range []string{none, zeros} {
			if spoiled == payload {
				t.Fatalf("%s names no charter", name)
			}
			if _, err := signoff.Read([]byte(spoiled)); err == nil {
				t.Errorf("%s without a charter: read", name)
			}
		}
	}
}

func FuzzReadLine(f *testing.F) {
	for _, d := range samples() {
		f.Add(line(write(f, d)))
	}
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, leaf []byte) {
		doc, err := signoff.ReadLine(leaf)
		if err != nil {
			return
		}
		if !bytes.Equal(doc.Line(), leaf) {
			t.Fatal("a second spelling of a line was read")
		}
		payload, err := signoff.Write(doc.Doc)
		if err != nil || !bytes.Equal(payload, doc.Payload) {
			t.Fatalf("what was read writes differently: %v", err)
		}
	})
}

// FuzzRead reaches the payload without the envelope's base64 in between.
func FuzzRead(f *testing.F) {
	for _, d := range samples() {
		f.Add(write(f, d))
	}
	f.Fuzz(func(t *testing.T, payload []byte) {
		d, err := signoff.Read(payload)
		if err != nil {
			return
		}
		again, err := signoff.Write(d)
		if err != nil || !bytes.Equal(again, payload) {
			t.Fatalf("what was read writes differently: %v", err)
		}
	})
}
