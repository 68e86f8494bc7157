package authority_test

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/hsm/frost"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/dsse"
	"github.com/keyturn/keyturn/signoff/lockbox"
	"github.com/keyturn/keyturn/signoff/signofftest"
)

type Digest = signoff.Digest

// began is when the charters of these tests were made.
const began = 1_790_000_000

// blobs are the large parts a test put forward.
type blobs map[Digest][]byte

func (b blobs) Blob(d Digest) ([]byte, error) {
	if data, ok := b[d]; ok {
		return data, nil
	}
	return nil, authority.ErrMissingBlob
}

func (b blobs) put(data []byte) Digest {
	d := Digest(sha256.Sum256(data))
	b[d] = data
	return d
}

// A log is a fold under construction, told in the words of the domain. People
// are alice (research), bob (security), carol (leadership), dave (safety, with
// a veto) and erin (security, research).
type log struct {
	*signofftest.Cluster
	t      testing.TB
	fold   *authority.Authority
	blobs  blobs
	lines  [][]byte
	group  *frost.Group
	shares []*frost.KeyShare // of all notaries, in order
}

// newLog makes people, notaries and a charter. Nothing is folded yet.
func newLog(t testing.TB, edits ...func(*signoff.Charter)) *log {
	t.Helper()
	return newLogWith(t, nil, edits...)
}

// newLogWith has further people, of research.
func newLogWith(t testing.TB, more []string, edits ...func(*signoff.Charter)) *log {
	t.Helper()
	keys := signofftest.Keys(t, func(c *signoff.Charter) {
		c.Created = began
		for _, edit := range edits {
			edit(c)
		}
	}, more...)
	fold, err := authority.New(keys.ID)
	if err != nil {
		t.Fatal(err)
	}
	return &log{Cluster: keys, t: t, fold: fold, blobs: blobs{}}
}

// ready is a log whose notaries have their group key.
func ready(t testing.TB, edits ...func(*signoff.Charter)) *log {
	t.Helper()
	return newLog(t, edits...).founded().keygen()
}

func readyWith(t testing.TB, more []string, edits ...func(*signoff.Charter)) *log {
	t.Helper()
	return newLogWith(t, more, edits...).founded().keygen()
}

func (l *log) must(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

func (l *log) state() *authority.State { return l.fold.State() }

// line folds one leaf, whatever it is.
func (l *log) line(line []byte) authority.Outcome {
	l.t.Helper()
	out, err := l.fold.Apply(line, l.blobs)
	l.must(err)
	l.lines = append(l.lines, line)
	return out
}

// takes folds a document that must take effect.
func (l *log) takes(doc *signoff.Signed) Digest {
	l.t.Helper()
	if out := l.line(doc.Line()); out.Void != nil {
		l.t.Fatalf("%s is void: %v", doc.Doc.Kind(), out.Void)
	}
	return doc.Digest()
}

// voids folds a document that must be without effect, for the reason given.
func (l *log) voids(doc *signoff.Signed, reason string) {
	l.t.Helper()
	l.voidLine(doc.Line(), reason)
}

func (l *log) voidLine(line []byte, reason string) {
	l.t.Helper()
	out := l.line(line)
	if out.Void == nil {
		l.t.Fatalf("took effect, want it void: %s", reason)
	}
	if !strings.Contains(out.Void.Error(), reason) {
		l.t.Fatalf("void: %v\nwant: %s", out.Void, reason)
	}
	if len(out.Changes) > 0 {
		l.t.Fatalf("a void entry changed %v", out.Changes)
	}
}

func (l *log) signed(k hsm.Key, d signoff.Document) *signoff.Signed {
	l.t.Helper()
	s, err := signoff.Sign(context.Background(), k, d)
	l.must(err)
	return s
}

func (l *log) founded() *log {
	l.t.Helper()
	for _, line := range l.Genesis {
		if out := l.line(line); out.Void != nil {
			l.t.Fatal(out.Void)
		}
	}
	return l
}

// firstDealt has every notary deal for the first group key.
func (l *log) firstDealt() (ceremony *frost.Ceremony, dealings []*frost.Dealing, round1s []frost.Round1) {
	l.t.Helper()
	ceremony, err := l.state().Ceremony()
	l.must(err)
	n, attempt := len(l.Notaries), l.state().Keygen.Attempt
	dealings, round1s = make([]*frost.Dealing, n), make([]frost.Round1, n)
	for i, y := range l.Notaries {
		dealings[i], err = ceremony.Deal(rand.Reader, uint16(i+1))
		l.must(err)
		round1s[i] = dealings[i].Round1()
		c := &signoff.Commitment{Charter: l.ID, Notary: y.Doc.ID(), Term: 1, Attempt: attempt, Proof: round1s[i].Proof[:]}
		for _, p := range round1s[i].Commitments {
			c.Commitments = append(c.Commitments, bytesOf(p))
		}
		l.takes(l.signed(y.Signing, c))
	}
	for _, y := range l.Notaries {
		d := &signoff.Dealing{Charter: l.ID, Notary: y.Doc.ID(), Term: 1, Attempt: attempt}
		for range n {
			d.Shares = append(d.Shares, []byte("sealed to its notary, which the fold cannot open"))
		}
		l.takes(l.signed(y.Signing, d))
	}
	return ceremony, dealings, round1s
}

// keygen lets the notaries make their group key.
func (l *log) keygen() *log {
	l.t.Helper()
	ceremony, dealings, round1s := l.firstDealt()
	n, attempt := len(l.Notaries), l.state().Keygen.Attempt
	digest := l.state().Keygen.Digest(l.ID)
	for i, y := range l.Notaries {
		received := make([][32]byte, n)
		for j := range dealings {
			var err error
			received[j], err = dealings[j].Share(uint16(i + 1))
			l.must(err)
		}
		share, group, err := ceremony.Finish(uint16(i+1), round1s, received)
		l.must(err)
		l.group, l.shares = group, append(l.shares, share)
		l.takes(l.signed(y.Signing, &signoff.Transcript{Charter: l.ID, Notary: y.Doc.ID(), Term: 1, Attempt: attempt, Digest: digest, Group: group.PublicKey[:]}))
	}
	return l
}

func bytesOf(p [32]byte) []byte { return p[:] }

// tick lets a quorum of notaries say what time it is.
func (l *log) tick(at int64) *log {
	l.t.Helper()
	round := l.state().Ticks.Round
	for _, y := range l.Notaries[:l.Charter.Quorum()] {
		l.takes(l.signed(y.Signing, &signoff.Tick{Charter: l.ID, Notary: y.Doc.ID(), Round: round, Time: at}))
	}
	return l
}

func (l *log) seen() signoff.Seen {
	return signoff.Seen{Size: l.fold.Size(), Root: l.fold.Root()}
}

// sealed puts an object and its deals into the log.
func (l *log) sealed(name string) Digest {
	l.t.Helper()
	id, secrets := l.object(name)
	defer secrets.Wipe()
	deals, err := secrets.Deal(id, 1)
	l.must(err)
	l.takes(l.dealt(id, deals))
	return id
}

// object puts an object into the log whose shares are not dealt yet.
func (l *log) object(name string) (Digest, *lockbox.Secrets) {
	l.t.Helper()
	doc, secrets := l.statement(name)
	return l.takes(l.signed(l.People["alice"].Signing, doc)), secrets
}

// statement is what alice would sign of weights that she sealed.
func (l *log) statement(name string) (*signoff.Object, *lockbox.Secrets) {
	l.t.Helper()
	secrets, box, err := lockbox.New(rand.Reader, l.holders())
	l.must(err)
	sharing := func(s lockbox.Sharing) signoff.Sharing {
		return signoff.Sharing{Threshold: s.Threshold(), Commitments: s.Bytes()}
	}
	return &signoff.Object{
		Charter: l.ID, Sealer: l.People["alice"].Doc.ID(), Name: name, Manifest: sha256.Sum256([]byte(name)), Created: began,
		Lockbox: signoff.Lockbox{Salt: box.Salt[:], People: sharing(box.People), Machines: sharing(box.Machines)},
		Summary: signoff.Summary{Files: 2, Bytes: 1 << 40, Tensors: 3, Parameters: 7, DTypes: []string{"BF16"}},
	}, secrets
}

// dealt is the sealer's deals of an object.
func (l *log) dealt(object Digest, deals lockbox.Deals) *signoff.Signed {
	l.t.Helper()
	alice := l.People["alice"]
	return l.dealtBy(alice.Signing, alice.Doc.ID(), object, deals)
}

func (l *log) dealtBy(key hsm.Key, sealer, object Digest, deals lockbox.Deals) *signoff.Signed {
	l.t.Helper()
	blob, err := dsse.Encode(deals)
	l.must(err)
	return l.signed(key, &signoff.Deals{Charter: l.ID, Sealer: sealer, Object: object, Epoch: 1, Blob: l.blobs.put(blob)})
}

// holders are the people and notaries as they are.
func (l *log) holders() lockbox.Params {
	l.t.Helper()
	p, err := l.state().Holders()
	l.must(err)
	return p
}

// asks is a person's signed request. Fill the part in edit.
func (l *log) asks(person, action string, edit func(*signoff.Request)) *signoff.Signed {
	l.t.Helper()
	now := l.state().Time
	r := &signoff.Request{Charter: l.ID, Action: action, Requester: l.People[person].Doc.ID(), Purpose: "a test", Created: now,
		Expiry: now + 3600, Nonce: signofftest.Nonce(), Seen: l.seen()}
	edit(r)
	return l.signed(l.People[person].Signing, r)
}

// export asks for an object to be released to alice's exchange key.
func (l *log) export(person string, object Digest) *signoff.Signed {
	l.t.Helper()
	return l.asks(person, signoff.ActionExport, func(r *signoff.Request) {
		r.Export = &signoff.Export{Object: object, Recipient: "an evaluator", RecipientKey: l.People["alice"].Doc.Exchange, Destination: "disk 7"}
	})
}

func (l *log) policy(person, text string) *signoff.Signed {
	l.t.Helper()
	return l.asks(person, signoff.ActionPolicyChange, func(r *signoff.Request) { r.Policy = &signoff.PolicyChange{Policy: text} })
}

// decides is a person's signed decision with everything that it must carry;
// edits spoil it.
func (l *log) decides(person string, d signoff.Decision, request Digest, edits ...func(*signoff.Approval)) *signoff.Signed {
	l.t.Helper()
	s, p := l.state(), l.People[person]
	r := s.Requests[request]
	rule, _, err := s.Evaluate(r)
	l.must(err)
	text, err := s.Display(request)
	l.must(err)
	a := &signoff.Approval{Charter: l.ID, Request: request, Person: p.Doc.ID(), Decision: d, Rule: s.RuleDigest(rule), Reason: "a test",
		Created: s.Time, Expiry: s.Time + 3600, Nonce: signofftest.Nonce(), Display: sha256.Sum256([]byte(text)), Seen: l.seen()}
	if d == signoff.Approve {
		m, _ := s.Person(p.Doc.ID())
		for _, o := range r.Doc.Objects() {
			for _, to := range s.Recipients(r.Doc) {
				a.Shares = append(a.Shares, signoff.Share{Object: o, Epoch: s.Objects[o].People.Epoch, Index: m.Index, Recipient: to, Sealed: []byte("sealed")})
			}
		}
	}
	for _, edit := range edits {
		edit(a)
	}
	return l.signed(p.Signing, a)
}

func (l *log) approves(request Digest, people ...string) *log {
	l.t.Helper()
	for _, p := range people {
		l.takes(l.decides(p, signoff.Approve, request))
	}
	return l
}

func (l *log) satisfied(request Digest) bool { return l.state().Requests[request].Satisfied != nil }

// byNotaries signs a payload with the group key: q notaries, two rounds.
func (l *log) byNotaries(payload []byte) *signoff.Signed {
	l.t.Helper()
	msg, q := dsse.PAE(payload), l.Charter.Quorum()
	nonces, list := make([]*frost.Nonce, q), make([]frost.Commitment, q)
	var err error
	for i := range q {
		nonces[i], list[i], err = l.shares[i].Commit(rand.Reader)
		l.must(err)
	}
	given := map[uint16][32]byte{}
	for i := range q {
		given[uint16(i+1)], err = l.shares[i].Sign(nonces[i], l.group, msg, list)
		l.must(err)
	}
	sig, err := frost.Aggregate(l.group, msg, list, given)
	l.must(err)
	hint, err := hsm.Fingerprint(crypto.PublicKey(l.group.Ed25519()))
	l.must(err)
	doc, err := signoff.Read(payload)
	l.must(err)
	return &signoff.Signed{Envelope: &dsse.Envelope{Payload: payload, Sig: sig[:], Hint: hint}, Doc: doc}
}

// warrant is the notaries' joint act on a satisfied request.
func (l *log) warrant(request Digest) *signoff.Signed {
	l.t.Helper()
	_, payload, err := l.state().DeriveWarrant(request)
	l.must(err)
	return l.byNotaries(payload)
}

// forged is a warrant that a hostile quorum makes up, good signature and all.
func (l *log) forged(w *signoff.Warrant) *signoff.Signed {
	l.t.Helper()
	payload, err := signoff.Write(w)
	l.must(err)
	return l.byNotaries(payload)
}

// again folds the same leaves anew.
func (l *log) again() *authority.Authority {
	l.t.Helper()
	fold, err := authority.New(l.ID)
	l.must(err)
	for _, line := range l.lines {
		_, err := fold.Apply(line, l.blobs)
		l.must(err)
	}
	return fold
}
