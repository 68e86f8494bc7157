package attest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/attest/ima"
)

// A runningNode has the recorded boot of testdata/local-boot and a kernel that
// measures files. Its attestation key is in software, its quotes are as a TPM
// writes them.
type runningNode struct {
	*Node
	*forger
	log   []byte
	boot  map[int]Digest
	clock Clock
	list  []byte
	pcr   Digest // 10
}

func running(t *testing.T) *runningNode {
	t.Helper()
	f := newForger(t, elliptic.P256(), akAttributes, algSHA256)
	ak, err := ParsePublic(f.public)
	if err != nil {
		t.Fatal(err)
	}
	n := &runningNode{Node: &Node{ID: Digest{1}, AK: ak, AKName: ak.Name(), TLSName: []byte("tls")}, forger: f, clock: someClock,
		log: read(t, "testdata/local-boot/secureboot-shim-grub.bios"), boot: map[int]Digest{}}
	var boots map[string]map[string]string
	if err := json.Unmarshal(read(t, "testdata/local-boot/expected-sha256.json"), &boots); err != nil {
		t.Fatal(err)
	}
	var aggregate []byte
	for pcr := range 10 {
		v, err := hex.DecodeString(boots["secureboot-shim-grub"][itoa(pcr)])
		if err != nil {
			t.Fatal(err)
		}
		n.boot[pcr] = Digest(v)
		aggregate = append(aggregate, v...)
	}
	n.measures("boot_aggregate", sha256.Sum256(aggregate))
	return n
}

// measures appends an ima-ng entry and extends it.
func (n *runningNode) measures(path string, digest [32]byte) { n.appends("ima-ng", path, digest) }

// appends appends an entry, of ima-sig with a signature, and extends it.
func (n *runningNode) appends(name, path string, digest [32]byte, signature ...byte) {
	sized := func(dst, b []byte) []byte {
		return append(binary.LittleEndian.AppendUint32(dst, uint32(len(b))), b...)
	}
	data := sized(nil, append([]byte("sha256:\x00"), digest[:]...))
	data = sized(data, append([]byte(path), 0))
	if name == "ima-sig" {
		data = sized(data, signature)
	}
	template := sha1.Sum(data)
	n.list = binary.LittleEndian.AppendUint32(n.list, 10)
	n.list = sized(sized(append(n.list, template[:]...), []byte(name)), data)
	extended := sha256.Sum256(data)
	n.pcr = sha256.Sum256(slices.Concat(n.pcr[:], extended[:]))
}

func digestOfFile(content string) [32]byte { return sha256.Sum256([]byte(content)) }

var domainExpectation = Expectation{Domain: DomainEpoch, Nonce: []byte("a nonce of the verifier"), Now: 1000}

// proves makes evidence with the part of the list, which begins at from.
func (n *runningNode) proves(t *testing.T, part []byte, from uint64) *Evidence {
	t.Helper()
	ev := &Evidence{Node: n.ID, AKName: n.AKName, PCRs: map[int]Digest{10: n.pcr}, EventLog: sha256.Sum256(n.log), IMAFrom: from, TLSName: n.TLSName, AgentNonce: []byte("a nonce of the agent")}
	if len(part) > 0 {
		ev.IMA = sha256.Sum256(part)
	}
	var values [][]byte
	for pcr, v := range n.boot {
		ev.PCRs[pcr] = v
	}
	pcrs := []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10}
	for _, pcr := range pcrs {
		v := ev.PCRs[pcr]
		values = append(values, v[:])
	}
	extra := Binding{Domain: DomainEpoch, Nonce: domainExpectation.Nonce, AgentNonce: ev.AgentNonce, TLSName: n.TLSName, EventLog: ev.EventLog, IMA: ev.IMA, IMAFrom: from}.Digest()
	h := sha256.New()
	for _, v := range values {
		h.Write(v)
	}
	ev.Quote = appendSized(append(header(magicGenerated, stQuote, []byte("signer"), extra[:], n.clock), selection(Bank{algSHA256, pcrs})...), h.Sum(nil))
	ev.Signature = n.sign(t, ev.Quote)
	return ev
}

func (n *runningNode) judged(t *testing.T, part []byte, from uint64, previous *Past, sets ...*ReferenceSet) Verdict {
	t.Helper()
	exp := domainExpectation
	exp.Previous = previous
	return Appraise(n.proves(t, part, from), Logs{ReadBootLog(n.log), part}, n.Node, sets, exp)
}

// allows is a set that accepts the boot and these files.
func (n *runningNode) allows(version uint64, files map[string]string) *ReferenceSet {
	r := &ReferenceSet{Name: "rack", Version: version, NotBefore: 1, NotAfter: 2000, PCRs: map[int][]Digest{4: {n.boot[4]}}}
	if files != nil {
		r.IMA = &ima.Rules{Files: map[string][]string{}}
		for path, content := range files {
			r.IMA.Files[path] = []string{fmt.Sprintf("sha256:%x", digestOfFile(content))}
		}
	}
	return r
}

func refused(t *testing.T, v Verdict, part string) {
	t.Helper()
	if v.Passed() || !strings.Contains(v.Reason, part) || v.Remedy == "" || !v.Proved() || v.IMA != nil {
		t.Errorf("verdict %s %q, want a refusal with %q", v.Status, v.Reason, part)
	}
}

func TestFilesByRules(t *testing.T) {
	n := running(t)
	n.measures("/usr/bin/train", digestOfFile("train"))
	set, none := n.allows(1, map[string]string{"/usr/bin/train": "train"}), n.allows(1, nil)
	v := n.judged(t, n.list, 0, nil, set)
	if !v.Passed() || v.IMA == nil || v.IMA.Entries != 2 || v.IMA.Offset != uint64(len(n.list)) || v.IMA.PCR != n.pcr || v.IMA.Rules.IsZero() {
		t.Fatalf("verdict %+v %+v", v, v.IMA)
	}
	// A set without rules passes over PCR 10 and the list, whatever it is.
	if v := n.judged(t, []byte("no list"), 0, nil, none); !v.Passed() || v.IMA != nil {
		t.Errorf("a set without rules: %s", v.Reason)
	}
	refused(t, n.judged(t, nil, 0, nil, set), "no prefix of 0 entries")
	// Of two sets each judges for itself.
	none.Version = 2
	if v := n.judged(t, nil, 0, nil, set, none); !v.Passed() || v.Reason != "matches reference set rack version 2" || v.IMA != nil {
		t.Errorf("verdict %+v", v)
	}
	// The list grows after the quote.
	before := n.pcr
	n.measures("/usr/bin/late", digestOfFile("late"))
	n.pcr = before
	if v := n.judged(t, n.list, 0, nil, set); !v.Passed() || v.IMA.Entries != 2 {
		t.Errorf("a list that grew: %s", v.Reason)
	}
}

func TestFilesFromAnOffset(t *testing.T) {
	n := running(t)
	n.measures("/usr/bin/train", digestOfFile("train"))
	files := map[string]string{"/usr/bin/train": "train"}
	set := n.allows(1, files)
	first := n.judged(t, n.list, 0, nil, set)
	past, offset := first.Past(), first.IMA.Offset
	n.clock.Milliseconds++
	if v := n.judged(t, nil, offset, &past, set); !v.Passed() || *v.IMA != *first.IMA {
		t.Errorf("nothing new: %s %+v", v.Reason, v.IMA)
	}
	n.measures("/usr/bin/train", digestOfFile("train"))
	v := n.judged(t, n.list[offset:], offset, &past, set)
	if !v.Passed() || v.IMA.Entries != 3 || v.IMA.Offset != uint64(len(n.list)) {
		t.Fatalf("one more: %s %+v", v.Reason, v.IMA)
	}
	// The whole list does as well, and after a reboot nothing else does.
	if v := n.judged(t, n.list, 0, &past, set); !v.Passed() || v.IMA.Entries != 3 {
		t.Errorf("the whole list: %s", v.Reason)
	}
	refused(t, n.judged(t, n.list[offset:], offset, nil, set), "was not proved in this boot")
	refused(t, n.judged(t, n.list[offset+1:], offset+1, &past, set), "was not proved in this boot")
	rebooted := past
	rebooted.Clock.ResetCount--
	refused(t, n.judged(t, n.list[offset:], offset, &rebooted, set), "was not proved in this boot")
	if v := n.judged(t, n.list, 0, &rebooted, set); !v.Passed() || !v.Rebooted {
		t.Errorf("the whole list after a reboot: %s", v.Reason)
	}
	// Other rules did not judge what came before.
	files["/usr/bin/other"] = "other"
	refused(t, n.judged(t, n.list[offset:], offset, &past, n.allows(2, files)), "did not judge what is before byte")
	refs := NewReferences([]*ReferenceSet{n.allows(2, files)}, 1000)
	if list, onlyNew := refs.WantIMA(past.IMA); !list || onlyNew {
		t.Errorf("an agent would send only what is new under other rules")
	}
	if list, onlyNew := NewReferences([]*ReferenceSet{set}, 1000).WantIMA(past.IMA); !list || !onlyNew {
		t.Errorf("an agent would send all of its list again")
	}
	// What leads to the quote is what an agent sends.
	pcrs := n.proves(t, nil, 0).PCRs
	if !LeadsTo(n.list[offset:], past.IMA, pcrs) || !LeadsTo(n.list, nil, pcrs) || LeadsTo(n.list[:offset], nil, pcrs) || LeadsTo(nil, past.IMA, pcrs) {
		t.Error("LeadsTo does not say what Appraise says")
	}
}

func TestAttackFileThatNoRuleAllows(t *testing.T) {
	n := running(t)
	n.measures("/usr/bin/train", digestOfFile("train"))
	set := n.allows(1, map[string]string{"/usr/bin/train": "train"})
	for name, c := range map[string]struct{ path, content string }{
		"another file":                   {"/usr/bin/nc", "nc"},
		"another content":                {"/usr/bin/train", "changed"},
		"a file called as the aggregate": {"boot_aggregate", "train"},
	} {
		m := *n
		m.measures(c.path, digestOfFile(c.content))
		t.Run(name, func(t *testing.T) { refused(t, m.judged(t, m.list, 0, nil, set), "no rule allows it") })
	}
}

// Files that a vendor signed pass below the vendor's path, and nothing else does.
func TestFilesBySignature(t *testing.T) {
	vendor, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(vendor.Public())
	if err != nil {
		t.Fatal(err)
	}
	signed := func(content string) []byte { // struct signature_v2_hdr of the kernel
		d := digestOfFile(content)
		sig, err := ecdsa.SignASN1(rand.Reader, vendor, d[:])
		if err != nil {
			t.Fatal(err)
		}
		return append([]byte{3, 2, 4, 0, 0, 0, 0, 0, byte(len(sig))}, sig...)
	}
	n := running(t)
	set := n.allows(1, map[string]string{"/usr/bin/train": "train"})
	set.IMA.Signed = []ima.Signed{{Below: "/opt/vendor/", Keys: [][]byte{der}}}
	text, err := set.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if set, err = ParseReferenceSet(text); err != nil {
		t.Fatal(err)
	}
	n.measures("/usr/bin/train", digestOfFile("train"))
	n.appends("ima-sig", "/opt/vendor/lib/a.so", digestOfFile("a"), signed("a")...)
	if v := n.judged(t, n.list, 0, nil, set); !v.Passed() || v.IMA.Entries != 3 {
		t.Fatalf("a signed file: %s", v.Reason)
	}
	for name, c := range map[string]struct {
		path, content string
		signature     []byte
		want          string
	}{
		"AttackUnsigned":                  {"/opt/vendor/lib/b.so", "b", nil, "has none"},
		"AttackSignatureOfAnotherFile":    {"/opt/vendor/lib/b.so", "b", signed("a"), "none of 1 keys made it"},
		"AttackSignedOutsideTheirPath":    {"/usr/bin/b", "b", signed("b"), "no rule allows it"},
		"AttackSignedUnderAnApprovedPath": {"/usr/bin/train", "b", signed("b"), "no rule allows it"},
	} {
		m := *n
		m.appends("ima-sig", c.path, digestOfFile(c.content), c.signature...)
		t.Run(name, func(t *testing.T) { refused(t, m.judged(t, m.list, 0, nil, set), c.want) })
	}
}

// Root removes from the list what it did, or shows the list of before.
func TestAttackListEditedOrShrunk(t *testing.T) {
	n := running(t)
	n.measures("/usr/bin/train", digestOfFile("train"))
	set := n.allows(1, map[string]string{"/usr/bin/train": "train"})
	good, goodPCR := slices.Clone(n.list), n.pcr
	first := n.judged(t, n.list, 0, nil, set)
	n.measures("/usr/bin/nc", digestOfFile("nc"))
	refused(t, n.judged(t, good, 0, nil, set), "no prefix")
	refused(t, n.judged(t, nil, 0, nil, set), "no prefix")

	// A TPM that shows an earlier PCR 10 in the same boot is another TPM.
	ahead := first.Past()
	m := *ahead.IMA
	m.Offset += 100
	ahead.IMA = &m
	n.list, n.pcr = good, goodPCR
	refused(t, n.judged(t, good, 0, &ahead, set), "shrank within one boot")
}

func TestAttackListOfAnotherBoot(t *testing.T) {
	n := running(t)
	set := n.allows(1, map[string]string{"/usr/bin/train": "train"})
	n.list, n.pcr = nil, Digest{}
	n.measures("boot_aggregate", digestOfFile("another boot"))
	refused(t, n.judged(t, n.list, 0, nil, set), "from another boot")
	n.list, n.pcr = nil, Digest{}
	n.measures("/usr/bin/train", digestOfFile("train"))
	refused(t, n.judged(t, n.list, 0, nil, set), "the first entry is")
}

func TestReferenceSetRules(t *testing.T) {
	n := running(t)
	good := n.allows(1, map[string]string{"/a": "a"})
	text, err := good.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if again, err := ParseReferenceSet(text); err != nil || again.IMA == nil || len(again.IMA.Files) != 1 {
		t.Fatalf("%s: %v", text, err)
	}
	for name, c := range map[string]struct {
		edit func(*ReferenceSet)
		part string
	}{
		"a value for PCR 10": {func(r *ReferenceSet) { r.PCRs = map[int][]Digest{10: {{1}}} }, "grows while a machine runs"},
		"empty rules":        {func(r *ReferenceSet) { r.IMA = &ima.Rules{} }, "allow nothing"},
		"SHA-1":              {func(r *ReferenceSet) { r.IMA = &ima.Rules{Digests: []string{"sha1:" + strings.Repeat("0", 40)}} }, "want sha256"},
		"signed, no keyring": {func(r *ReferenceSet) { r.IMA = &ima.Rules{Signed: []ima.Signed{{Below: "/"}}} }, "a keyring of 0 keys"},
	} {
		r := *good
		c.edit(&r)
		t.Run(name, func(t *testing.T) { wantError(t, r.Validate(), c.part) })
	}
}
