package attest

import (
	"bytes"
	"crypto/ecdh"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/keyturn/keyturn/attest/ima"
)

// The two statuses of a verdict. Everything else means no as well.
const (
	StatusPass = "pass"
	StatusFail = "fail"
)

// pcrIMA holds the kernel's integrity measurements, which have their own list.
const pcrIMA = 10

// An Expectation is what the verifier knows on its own.
type Expectation struct {
	Domain     string // what the quote is for, one of the Domain constants
	Nonce      []byte // the verifier's, 16 to 64 bytes
	Request    Digest // zero for none
	NeedsFresh bool   // a key made for this use must come with the evidence
	PCRs       []int  // to be quoted beyond 0 to 7 and what the sets name
	Now        int64  // Unix seconds, decides which sets count
	Previous   *Past  // of the last evidence that passed; nil only for a node's first
}

// A Past is what a node's last passing evidence proved. The next may not go
// behind it.
type Past struct {
	Clock Clock     `json:"clock"`
	IMA   *Measured `json:"ima"` // null unless rules judged the kernel's list in this boot
}

// Consulted is a reference set that was compared with the evidence.
type Consulted struct {
	Name    string `json:"name"`
	Version uint64 `json:"version"`
	PCRs    []int  `json:"pcrs"`    // that it judges
	IMA     bool   `json:"ima"`     // whether it has rules for files
	Matches bool   `json:"matches"` // in all of it
}

// A Verdict is the result of one appraisal.
type Verdict struct {
	Node       Digest         `json:"node"`
	Status     string         `json:"status"` // pass or fail
	Reason     string         `json:"reason"` // why it is as it is, one line
	Remedy     string         `json:"remedy"` // what a person can do about a fail, one line
	References []Consulted    `json:"references"`
	PCRs       map[int]Digest `json:"pcrs"`     // as proved by the quote, empty before that
	Clock      Clock          `json:"clock"`    // of the quote, zero if it did not verify
	IMA        *Measured      `json:"ima"`      // how far the kernel's list was allowed, null for not judged
	Rebooted   bool           `json:"rebooted"` // since the previous evidence
	Emulated   bool           `json:"emulated"` // the TPM is software or nobody known made it

	Fresh *ecdh.PublicKey `json:"-"` // the key made for this use; nil for none, and once a judgement refused
}

// Passed reports whether the verdict is a pass.
func (v Verdict) Passed() bool { return v.Status == StatusPass && len(v.References) > 0 }

// Proved reports whether the evidence, as a whole, is the node's own answer to
// what was expected: its TPM signed the nonce, the values, the digests of the
// logs and the agent's nonce together. A refusal of evidence that is not proved
// says nothing of the node: anyone can write it.
func (v Verdict) Proved() bool { return len(v.PCRs) > 0 }

// Past is what the next evidence may not go behind.
func (v Verdict) Past() Past { return Past{v.Clock, v.IMA} }

// refusal is a reason with the way out.
type refusal struct {
	err    error
	remedy string
}

func refuse(remedy, format string, args ...any) *refusal {
	return &refusal{fmt.Errorf(format, args...), remedy}
}

// Appraise judges evidence of an enrolled node. It depends on its arguments
// alone, so that whoever has them comes to the same verdict. It is [Verify],
// and then [Verdict.Judge] of the sets that count at the time expected.
func Appraise(ev *Evidence, logs Logs, node *Node, sets []*ReferenceSet, exp Expectation) Verdict {
	v := Verify(ev, node, exp)
	if !v.Proved() {
		return v
	}
	if len(sets) > maxSets {
		v.Fresh = nil
		return v.fail(refuse("retire reference sets", "%d reference sets are more than %d", len(sets), maxSets))
	}
	return v.Judge(ev, logs, NewReferences(sets, exp.Now), exp)
}

// Verify finds out whether the evidence is the node's own. In this order: it
// names this node; the fresh key is certified; the AK signed the PCRs over this
// nonce, these keys and the digests of these logs. The verdict is a fail in
// either case, since nothing is judged yet: ask it whether it is proved.
func Verify(ev *Evidence, node *Node, exp Expectation) Verdict {
	var v Verdict
	if node == nil || node.AK == nil {
		return v.fail(refuse("enrol it", "the node is not enrolled"))
	}
	v.Node, v.Emulated = node.ID, node.Emulated
	no := checkShape(ev, node, exp)
	if no == nil {
		no = v.checkQuote(ev, node, exp)
	}
	if no == nil {
		no = refuse("appraise it", "the evidence was not judged")
	}
	return v.fail(no)
}

// Judge judges evidence that is proved. In this order: the PCRs that policy and
// reference sets ask for were quoted; the TPM's clock only grew; the boot was
// measured; the event log explains every quoted PCR; at least one reference set
// was consulted and one of them matches.
func (v Verdict) Judge(ev *Evidence, logs Logs, refs *References, exp Expectation) Verdict {
	if !v.Proved() {
		return v
	}
	v.Status, v.Reason, v.Remedy = StatusPass, "", ""
	if no := v.judge(ev, logs, refs, exp); no != nil {
		v.Fresh = nil
		return v.fail(no)
	}
	return v
}

func (v Verdict) fail(no *refusal) Verdict {
	v.Status, v.Reason, v.Remedy = StatusFail, no.err.Error(), no.remedy
	return v
}

func (v *Verdict) judge(ev *Evidence, logs Logs, refs *References, exp Expectation) *refusal {
	for _, pcr := range refs.Selection(exp.PCRs) {
		if _, given := v.PCRs[pcr]; !given {
			return refuse("let the agent quote the PCRs that policy and reference sets ask for", "PCR %d was not quoted", pcr)
		}
	}
	if no := v.checkClock(v.Clock, exp.Previous); no != nil {
		return no
	}
	if no := checkMeasured(v.PCRs); no != nil {
		return no
	}
	if no := checkExplained(ev, logs.Boot, v.PCRs); no != nil {
		return no
	}
	return v.consult(&listed{ev: ev, list: logs.IMA, pcrs: v.PCRs, before: v.measuredBefore(exp.Previous)}, refs)
}

// measuredBefore is how far the kernel's list was proved in the boot that was
// quoted now.
func (v *Verdict) measuredBefore(previous *Past) *Measured {
	if previous == nil || v.Rebooted {
		return nil
	}
	return previous.IMA
}

// checkShape refuses evidence that is not this node's or not made of the right
// parts, before any signature is looked at.
func checkShape(ev *Evidence, node *Node, exp Expectation) *refusal {
	const again = "let the agent send its evidence again; if this repeats, look for something that relays or edits it"
	switch {
	case ev == nil:
		return refuse("start the agent on the node", "there is no evidence")
	case exp.Domain == "" || len(exp.Nonce) < 16 || len(exp.Nonce) > maxNonce:
		return refuse("give the appraiser a domain and a nonce of 16 to 64 bytes", "the appraiser expected no nonce of its own, so any replay would do")
	case exp.Now <= 0:
		return refuse("give the appraiser the time", "the appraiser was given no time")
	case ev.Node != node.ID:
		return refuse(again, "the evidence names node %v, not %v", ev.Node, node.ID)
	case !bytes.Equal(ev.AKName, node.AKName):
		return refuse("enrol the node again if its TPM or its keys were replaced", "the evidence names attestation key %x, enrolled is %x", ev.AKName, node.AKName)
	case !bytes.Equal(ev.TLSName, node.TLSName):
		return refuse("enrol the node again if its keys were replaced", "the evidence names TLS key %x, enrolled is %x", ev.TLSName, node.TLSName)
	case len(ev.AgentNonce) < 16 || len(ev.AgentNonce) > maxNonce:
		return refuse(again, "the agent's nonce has %d bytes, wanted 16 to %d", len(ev.AgentNonce), maxNonce)
	case exp.NeedsFresh && ev.Fresh == nil:
		return refuse(again, "the evidence brings no key made for this use")
	}
	return nil
}

// checkQuote verifies fresh key and quote, and records what they prove. More than
// asked for may be quoted, so that a node which follows the sets a little later or
// earlier than its judge stays in. All of it must be signed.
func (v *Verdict) checkQuote(ev *Evidence, node *Node, exp Expectation) *refusal {
	const again = "let the agent answer the current nonce; if this repeats, treat the node as compromised"
	fresh, freshName, freshClock, err := ev.verifyFresh(node)
	if err != nil {
		return &refusal{err, again}
	}
	extra := Binding{
		Domain: exp.Domain, Nonce: exp.Nonce, AgentNonce: ev.AgentNonce,
		TLSName: node.TLSName, FreshName: freshName, Request: exp.Request,
		EventLog: ev.EventLog, IMA: ev.IMA, IMAFrom: ev.IMAFrom,
	}.Digest()
	want := QuoteExpectation{ExtraData: extra[:], PCRs: make(map[int][32]byte, len(ev.PCRs))}
	for pcr, value := range ev.PCRs {
		want.PCRs[pcr] = value
	}
	quote, err := verifyQuote(node.AK, ev.Quote, ev.Signature, want)
	if err != nil {
		return &refusal{err, again}
	}
	if fresh != nil && (freshClock.ResetCount != quote.Clock.ResetCount || freshClock.RestartCount != quote.Clock.RestartCount) {
		return refuse(again, "the key made for this use is from another boot than the quote")
	}
	v.Fresh, v.Clock = fresh, quote.Clock
	v.PCRs = make(map[int]Digest, len(quote.PCRs))
	for pcr, value := range quote.PCRs {
		v.PCRs[pcr] = value
	}
	return nil
}

// checkClock refuses a TPM whose counters went back: a restored snapshot of a
// virtual TPM, or another TPM with the same key.
func (v *Verdict) checkClock(now Clock, previous *Past) *refusal {
	const remedy = "treat the node as restored from a snapshot: retire it, and enrol it anew after you know why"
	if previous == nil {
		return nil
	}
	last := previous.Clock
	v.Rebooted = now.ResetCount != last.ResetCount || now.RestartCount != last.RestartCount
	switch {
	case now.ResetCount < last.ResetCount:
		return refuse(remedy, "the TPM's reset count went back from %d to %d", last.ResetCount, now.ResetCount)
	case now.ResetCount == last.ResetCount && now.RestartCount < last.RestartCount:
		return refuse(remedy, "the TPM's restart count went back from %d to %d", last.RestartCount, now.RestartCount)
	// After an unclean shutdown a TPM may show times again; it then says that
	// its clock is not safe. Within one boot time never goes back.
	case now.Milliseconds < last.Milliseconds && (now.Safe || !v.Rebooted):
		return refuse(remedy, "the TPM's clock went back from %d to %d ms", last.Milliseconds, now.Milliseconds)
	}
	return nil
}

// checkMeasured refuses a boot in which the firmware measured nothing: on a
// measured boot, PCR 0 to 7 each hold at least a separator.
func checkMeasured(pcrs map[int]Digest) *refusal {
	for _, pcr := range slices.Sorted(maps.Keys(pcrs)) {
		if pcr <= 7 && pcrs[pcr] == (Digest{}) {
			return refuse("turn on the TPM and its sha256 bank in the firmware set-up, then boot again",
				"PCR %d is all zeros: there was no measured boot", pcr)
		}
	}
	return nil
}

// checkExplained asks that the event log leads to every quoted PCR but the
// kernel's own.
func checkExplained(ev *Evidence, log *BootLog, pcrs map[int]Digest) *refusal {
	const again = "let the agent send its evidence again; if this repeats, look for something that relays or edits it"
	if log == nil || log.digest != ev.EventLog {
		return refuse(again, "the event log %v that the evidence names is not there", ev.EventLog)
	}
	boot := make(map[int][]byte, len(pcrs))
	for pcr, value := range pcrs {
		if pcr != pcrIMA {
			boot[pcr] = value[:]
		}
	}
	if err := log.explain(boot); err != nil {
		return &refusal{err, "boot again; if this repeats, something measured what it did not log: update the firmware or reinstall the node"}
	}
	return nil
}

// listed is the kernel's measurement list, proved when the first set asks.
type listed struct {
	ev     *Evidence
	list   []byte
	pcrs   map[int]Digest
	before *Measured

	asked   bool
	entries []ima.Entry
	now     *Measured
	no      *refusal
}

// allowed returns how far the list is allowed by the set's rules.
func (l *listed) allowed(r reference) (*Measured, *refusal) {
	if !l.asked {
		l.asked = true
		l.no = l.prove()
	}
	if l.no != nil {
		return nil, l.no
	}
	rules := r.files()
	if rules.err != nil {
		return nil, refuse("adopt a set whose rules can be read", "reference set %s version %d: %w", r.Name, r.Version, rules.err)
	}
	if l.ev.IMAFrom > 0 && l.before.Rules != rules.digest {
		return nil, refuse("let the agent send the whole list", "reference set %s version %d did not judge what is before byte %d of the measurement list", r.Name, r.Version, l.ev.IMAFrom)
	}
	entries := l.entries
	if l.ev.IMAFrom == 0 {
		entries = entries[1:] // the boot_aggregate, which was checked
	}
	if err := rules.judge.Check(entries); err != nil {
		return nil, refuse("find out why the node uses this file; reinstall it, or adopt a set that allows the file and boot the node again",
			"reference set %s version %d: %w", r.Name, r.Version, err)
	}
	m := *l.now
	m.Rules = rules.digest
	return &m, nil
}

func (l *listed) prove() *refusal {
	const again = "let the agent send the kernel's measurement list again; if this repeats, reinstall the node"
	if len(l.list) > maxIMA {
		return refuse(again, "the measurement list has %d bytes, more than %d", len(l.list), maxIMA)
	}
	if len(l.list) == 0 && !l.ev.IMA.IsZero() || len(l.list) > 0 && sha256.Sum256(l.list) != l.ev.IMA {
		return refuse(again, "the measurement list %v that the evidence names is not there", l.ev.IMA)
	}
	var err error
	l.entries, l.now, err = proveIMA(l.list, l.ev.IMAFrom, l.before, l.pcrs)
	if err != nil {
		return refuse(again, "PCR %d: %w", pcrIMA, err)
	}
	return nil
}

// consult compares PCRs and files with every current set and passes if one matches.
// If none describes the boot and one does that no longer counts, it says so.
func (v *Verdict) consult(files *listed, refs *References) *refusal {
	no := v.consultCurrent(files, refs)
	describes := func(r reference) bool { return r.differs(v.PCRs) == nil }
	if no == nil || slices.ContainsFunc(refs.sets, describes) {
		return no
	}
	for _, r := range refs.ended {
		if describes(r) {
			return refuse("boot what a set in force describes, or adopt a newer version that describes this boot",
				"%w; the boot is that of reference set %s version %d, which no longer counts", no.err, r.Name, r.Version)
		}
	}
	return no
}

func (v *Verdict) consultCurrent(files *listed, refs *References) *refusal {
	if len(refs.sets) == 0 {
		return &refusal{errors.New("no current reference set was consulted"), "adopt reference values for this node, or renew those that ran out"}
	}
	var first *refusal
	for _, r := range refs.sets {
		measured, no := v.match(files, r)
		v.References = append(v.References, Consulted{r.Name, r.Version, r.pcrs, r.files != nil, no == nil})
		switch {
		case no == nil && v.Reason == "":
			v.Reason, v.IMA = fmt.Sprintf("matches reference set %s version %d", r.Name, r.Version), measured
		case no != nil && first == nil:
			first = no
		}
	}
	switch {
	case v.Reason != "":
		return nil
	case len(refs.sets) > 1:
		return refuse(first.remedy, "none of %d reference sets matches; %w", len(refs.sets), first.err)
	}
	return first
}

// match returns why the set does not match, or how far it allowed the kernel's list.
func (v *Verdict) match(files *listed, r reference) (*Measured, *refusal) {
	if differs := r.differs(v.PCRs); differs != nil {
		more := ""
		for _, pcr := range differs[1:] {
			more += fmt.Sprintf(", nor PCR %d", pcr)
		}
		return nil, refuse("boot what the set describes, or adopt a set that describes this boot",
			"PCR %d is %v, which reference set %s version %d does not allow%s", differs[0], v.PCRs[differs[0]], r.Name, r.Version, more)
	}
	if r.files == nil {
		return nil, nil
	}
	return files.allowed(r)
}
