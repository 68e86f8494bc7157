package attest

import (
	"bytes"
	"crypto/ecdh"
	"errors"
	"fmt"
	"maps"
	"slices"
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
	Previous   *Clock // of the last evidence that passed; nil only for a node's first
}

// Consulted is a reference set that was compared with the evidence.
type Consulted struct {
	Name    string `json:"name"`
	Version uint64 `json:"version"`
	PCRs    []int  `json:"pcrs"`    // that it judges
	Matches bool   `json:"matches"` // all of them
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
	Rebooted   bool           `json:"rebooted"` // since the previous evidence
	Emulated   bool           `json:"emulated"` // the TPM is software or nobody known made it

	Fresh *ecdh.PublicKey `json:"-"` // the key made for this use, nil for none
}

// Passed reports whether the verdict is a pass.
func (v Verdict) Passed() bool { return v.Status == StatusPass && len(v.References) > 0 }

// refusal is a reason with the way out.
type refusal struct {
	err    error
	remedy string
}

func refuse(remedy, format string, args ...any) *refusal {
	return &refusal{fmt.Errorf(format, args...), remedy}
}

// Appraise judges evidence of an enrolled node. It depends on its arguments
// alone, so that whoever has them comes to the same verdict. The checks, in
// order: the evidence is this node's; the fresh key is certified; the AK signed
// the PCRs selected by policy and reference sets, over this nonce and these keys;
// the TPM's clock only grew; the boot was measured; the event log explains every
// quoted PCR; at least one reference set was consulted and one of them matches.
func Appraise(ev *Evidence, node *Node, sets []*ReferenceSet, exp Expectation) Verdict {
	v := Verdict{Status: StatusFail}
	if node == nil || node.AK == nil {
		v.Reason, v.Remedy = "the node is not enrolled", "enrol it"
		return v
	}
	v.Node, v.Emulated = node.ID, node.Emulated
	if no := v.appraise(ev, node, sets, exp); no != nil {
		v.Reason, v.Remedy, v.Fresh = no.err.Error(), no.remedy, nil
		return v
	}
	v.Status = StatusPass
	return v
}

func (v *Verdict) appraise(ev *Evidence, node *Node, sets []*ReferenceSet, exp Expectation) *refusal {
	if no := checkShape(ev, node, sets, exp); no != nil {
		return no
	}
	quote, no := v.checkQuote(ev, node, sets, exp)
	if no != nil {
		return no
	}
	if no := v.checkClock(quote.Clock, exp.Previous); no != nil {
		return no
	}
	if no := checkMeasured(v.PCRs); no != nil {
		return no
	}
	if no := checkExplained(ev, v.PCRs); no != nil {
		return no
	}
	return v.consult(Current(sets, exp.Now))
}

// checkShape refuses evidence that is not this node's or not made of the right
// parts, before any signature is looked at.
func checkShape(ev *Evidence, node *Node, sets []*ReferenceSet, exp Expectation) *refusal {
	const again = "let the agent send its evidence again; if this repeats, look for something that relays or edits it"
	switch {
	case ev == nil:
		return refuse("start the agent on the node", "there is no evidence")
	case exp.Domain == "" || len(exp.Nonce) < 16 || len(exp.Nonce) > maxNonce:
		return refuse("give the appraiser a domain and a nonce of 16 to 64 bytes", "the appraiser expected no nonce of its own, so any replay would do")
	case exp.Now <= 0:
		return refuse("give the appraiser the time", "the appraiser was given no time")
	case len(sets) > maxSets:
		return refuse("retire reference sets", "%d reference sets are more than %d", len(sets), maxSets)
	case ev.Node != node.ID:
		return refuse(again, "the evidence names node %v, not %v", ev.Node, node.ID)
	case !bytes.Equal(ev.AKName, node.AKName):
		return refuse("enrol the node again if its TPM or its keys were replaced", "the evidence names attestation key %x, enrolled is %x", ev.AKName, node.AKName)
	case !bytes.Equal(ev.TLSName, node.TLSName):
		return refuse("enrol the node again if its keys were replaced", "the evidence names TLS key %x, enrolled is %x", ev.TLSName, node.TLSName)
	case len(ev.AgentNonce) < 16 || len(ev.AgentNonce) > maxNonce:
		return refuse(again, "the agent's nonce has %d bytes, wanted 16 to %d", len(ev.AgentNonce), maxNonce)
	case len(ev.EventLog) > maxEventLog || len(ev.IMA) > maxIMA:
		return refuse(again, "logs of %d and %d bytes are longer than %d and %d", len(ev.EventLog), len(ev.IMA), maxEventLog, maxIMA)
	case exp.NeedsFresh && ev.Fresh == nil:
		return refuse(again, "the evidence brings no key made for this use")
	}
	return nil
}

// checkQuote verifies fresh key and quote, and records what they prove.
func (v *Verdict) checkQuote(ev *Evidence, node *Node, sets []*ReferenceSet, exp Expectation) (*Quote, *refusal) {
	const again = "let the agent answer the current nonce; if this repeats, treat the node as compromised"
	fresh, freshName, freshClock, err := ev.verifyFresh(node)
	if err != nil {
		return nil, &refusal{err, again}
	}
	extra := Binding{
		Domain: exp.Domain, Nonce: exp.Nonce, AgentNonce: ev.AgentNonce,
		TLSName: node.TLSName, FreshName: freshName, Request: exp.Request,
	}.Digest()
	for _, pcr := range Selection(sets, exp.PCRs, exp.Now) {
		if _, given := ev.PCRs[pcr]; !given {
			return nil, refuse("let the agent quote the PCRs that policy and reference sets ask for", "PCR %d was not quoted", pcr)
		}
	}
	// More than asked for may be quoted, so that a node which follows the sets a
	// little later or earlier than its judge stays in. All of it must be signed.
	want := QuoteExpectation{ExtraData: extra[:], PCRs: make(map[int][32]byte, len(ev.PCRs))}
	for pcr, value := range ev.PCRs {
		want.PCRs[pcr] = value
	}
	quote, err := verifyQuote(node.AK, ev.Quote, ev.Signature, want)
	if err != nil {
		return nil, &refusal{err, again}
	}
	if fresh != nil && (freshClock.ResetCount != quote.Clock.ResetCount || freshClock.RestartCount != quote.Clock.RestartCount) {
		return nil, refuse(again, "the key made for this use is from another boot than the quote")
	}
	v.Fresh, v.Clock = fresh, quote.Clock
	v.PCRs = make(map[int]Digest, len(quote.PCRs))
	for pcr, value := range quote.PCRs {
		v.PCRs[pcr] = value
	}
	return quote, nil
}

// checkClock refuses a TPM whose counters went back: a restored snapshot of a
// virtual TPM, or another TPM with the same key.
func (v *Verdict) checkClock(now Clock, previous *Clock) *refusal {
	const remedy = "treat the node as restored from a snapshot: retire it, and enrol it anew after you know why"
	if previous == nil {
		return nil
	}
	last := *previous
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

// checkExplained asks that the logs lead to every quoted PCR.
func checkExplained(ev *Evidence, pcrs map[int]Digest) *refusal {
	boot := make(map[int][]byte, len(pcrs))
	for pcr, value := range pcrs {
		boot[pcr] = value[:]
	}
	if _, quoted := boot[pcrIMA]; quoted {
		if err := explainIMA(ev.IMA, boot); err != nil {
			return refuse("let the agent send the kernel's measurement list again; if this repeats, reinstall the node",
				"PCR %d: %w", pcrIMA, err)
		}
		delete(boot, pcrIMA)
	}
	if err := explainBoot(ev.EventLog, boot); err != nil {
		return &refusal{err, "boot again; if this repeats, something measured what it did not log: update the firmware or reinstall the node"}
	}
	return nil
}

// consult compares the PCRs with every current set and passes if one matches.
func (v *Verdict) consult(sets []*ReferenceSet) *refusal {
	if len(sets) == 0 {
		return &refusal{errors.New("no current reference set was consulted"), "adopt reference values for this node, or renew those that ran out"}
	}
	for _, r := range sets {
		pcr, differs := r.mismatch(v.PCRs)
		v.References = append(v.References, Consulted{r.Name, r.Version, slices.Sorted(maps.Keys(r.PCRs)), !differs})
		switch {
		case !differs && v.Reason == "":
			v.Reason = fmt.Sprintf("matches reference set %s version %d", r.Name, r.Version)
		case differs && len(sets) == 1:
			return refuse("boot what the set describes, or adopt a set that describes this boot",
				"PCR %d is %v, which reference set %s version %d does not allow", pcr, v.PCRs[pcr], r.Name, r.Version)
		}
	}
	if v.Reason == "" {
		pcr, _ := sets[0].mismatch(v.PCRs)
		return refuse("boot what one of the sets describes, or adopt a set that describes this boot",
			"none of %d reference sets matches; %s version %d does not allow PCR %d to be %v", len(sets), sets[0].Name, sets[0].Version, pcr, v.PCRs[pcr])
	}
	return nil
}
