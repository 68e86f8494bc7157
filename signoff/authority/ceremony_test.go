package authority_test

import (
	"bytes"
	"context"
	"crypto/elliptic"
	"encoding/asn1"
	"fmt"
	"math/big"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/ceremony"
	"github.com/keyturn/keyturn/signoff/dsse"
)

// ceremonyScript is a drill that bob leads and alice holds something in.
// Carol, who is of the cluster, is the witness.
const ceremonyScript = `version: 1
name: drill
purpose: drill
title: A drill
charter: "%s"
people:
  - {name: bob, organisation: lab, roles: [master]}
  - {name: carol, organisation: lab, roles: [witness]}
  - {name: alice, organisation: lab, roles: [holder]}
steps:
  - {name: charter, do: verify-charter, file: charter.json, text: "The charter.", by: [bob, carol]}
  - {name: position, do: position, file: position.json, proves: "a notary states its position", text: "The position.", by: [alice, carol]}
`

// held is a transcript of the ceremony; as are people of the script who sign
// with the keys of others.
func (l *log) held(m ceremony.Mode, charter Digest, last ceremony.Outcome, as map[string]string) (script Digest, transcript []byte) {
	l.t.Helper()
	return l.follows(fmt.Appendf(nil, ceremonyScript, charter), m, charter, last, as)
}

func (l *log) follows(text []byte, m ceremony.Mode, charter Digest, last ceremony.Outcome, as map[string]string) (script Digest, transcript []byte) {
	l.t.Helper()
	chain, err := ceremony.Begin(m, text, []byte("0123456789abcdef"))
	l.must(err)
	for step := chain.Next(); step != nil; step = chain.Next() {
		outcome := ceremony.Passed
		if step.Name == "position" {
			outcome = last
		}
		r, err := chain.Draft(outcome)
		l.must(err)
		switch {
		case outcome != ceremony.Passed:
			r.Exceptions = append(r.Exceptions, ceremony.Exception{Kind: "failure", Text: "no position came", Decided: "bob"})
		case step.Name == "charter":
			r.Findings = append(r.Findings, ceremony.Finding{Name: "charter", Value: charter.String()})
		case step.Do == ceremony.VerifyKeygen:
			for name, value := range map[string]string{"charter": charter.String(), "entries": "1", "root": "1", "group": "1", "transcript": "1"} {
				r.Findings = append(r.Findings, ceremony.Finding{Name: name, Value: value})
			}
		default:
			for _, name := range []string{"notary", "size", "root", "answer"} {
				r.Findings = append(r.Findings, ceremony.Finding{Name: name, Value: "1"})
			}
		}
		r.Begun, r.Ended = began, began
		var signed []*dsse.Envelope
		names := chain.Script.Signers(step, outcome)
		for i, name := range names {
			if as[name] != "" {
				names[i] = as[name]
			}
			key, err := signoff.NewPublicKey(l.People[names[i]].Signing.Public(), "software")
			l.must(err)
			r.Signers = append(r.Signers, ceremony.Signer{Name: name, Key: key})
		}
		_, payload, err := chain.Finish(r)
		l.must(err)
		for _, name := range names {
			e, err := dsse.Sign(context.Background(), l.People[name].Signing, payload)
			l.must(err)
			signed = append(signed, e)
		}
		l.must(chain.Add(payload, signed))
	}
	b, err := chain.Transcript(text).Marshal()
	l.must(err)
	return chain.Digest, b
}

// registers is the entry that names a transcript, by dave.
func (l *log) registers(script Digest, transcript []byte) *signoff.Signed {
	l.t.Helper()
	return l.signed(l.People["dave"].Signing, &signoff.Ceremony{Charter: l.ID, Person: l.Charter.People[3].ID(), Script: script, Transcript: l.blobs.put(transcript)})
}

func TestCeremonyIsRegisteredOnce(t *testing.T) {
	l := ready(t)
	script, transcript := l.held(ceremony.Real, l.ID, ceremony.Passed, nil)
	doc := l.registers(script, transcript)
	delete(l.blobs, l.blobs.put(transcript))
	if _, err := l.fold.Apply(doc.Line(), l.blobs); err == nil || !strings.Contains(err.Error(), "blob") {
		t.Fatalf("the fold went on without the transcript: %v", err)
	}
	l.blobs.put(transcript)
	l.takes(doc)
	report, err := ceremony.Parse(transcript)
	l.must(err)
	if got := l.state().Ceremonies[report.Last()]; got == nil || got.Script != script || got.Document != doc.Digest() {
		t.Errorf("registered %+v", got)
	}
	l.voids(doc, "already took effect")
	l.voids(l.signed(l.People["alice"].Signing, &signoff.Ceremony{Charter: l.ID, Person: l.Charter.People[0].ID(), Script: script, Transcript: l.blobs.put(transcript)}), "is registered at entry")
}

// Anybody can turn an ECDSA signature into another that verifies, and so make
// another transcript of the same ceremony.
func TestAttackCeremonyRegisteredTwiceByMalleation(t *testing.T) {
	l := ready(t)
	script, transcript := l.held(ceremony.Real, l.ID, ceremony.Passed, nil)
	l.takes(l.registers(script, transcript))
	var x ceremony.Transcript
	l.must(dsse.Decode(transcript, &x))
	e, err := dsse.Parse([]byte(x.Records[0]))
	l.must(err)
	var sig struct{ R, S *big.Int }
	_, err = asn1.Unmarshal(e.Sig, &sig)
	l.must(err)
	sig.S.Sub(elliptic.P256().Params().N, sig.S)
	e.Sig, err = asn1.Marshal(sig)
	l.must(err)
	x.Records[0] = string(e.Line())
	other, err := x.Marshal()
	l.must(err)
	if _, err := ceremony.Parse(other); err != nil || bytes.Equal(other, transcript) {
		t.Fatalf("the other transcript: %v", err)
	}
	l.voids(l.registers(script, other), "is registered at entry")
}

// What is not a real ceremony of this charter, carried through by its people,
// does not stand in the log.
func TestAttackCeremonyRegistered(t *testing.T) {
	l := ready(t)
	script, transcript := l.held(ceremony.Rehearsal, l.ID, ceremony.Passed, nil)
	l.voids(l.registers(script, transcript), "this is a REHEARSAL")
	flipped := []byte(strings.Replace(string(transcript), "ceremony REHEARSAL transcript", "ceremony transcript", 1))
	l.voids(l.registers(script, flipped), "a rehearsal is never the real thing")

	script, transcript = l.held(ceremony.Real, l.ID, ceremony.Aborted, nil)
	l.voids(l.registers(script, transcript), "it was aborted in step position")
	script, transcript = l.held(ceremony.Real, Digest{1}, ceremony.Passed, nil)
	l.voids(l.registers(script, transcript), "it belongs to charter")
	script, transcript = l.held(ceremony.Real, l.ID, ceremony.Passed, map[string]string{"alice": "erin"})
	l.voids(l.registers(script, transcript), "alice signed with key")

	script, transcript = l.held(ceremony.Real, l.ID, ceremony.Passed, nil)
	l.voids(l.registers(Digest{1}, transcript), "the transcript is of script")
	l.voids(l.registers(script, []byte("{}")), "ceremony: read transcript")
	l.voids(l.signed(l.People["erin"].Signing, &signoff.Ceremony{Charter: l.ID, Person: l.Charter.People[3].ID(), Script: script, Transcript: l.blobs.put(transcript)}), "which is none of dave's")
	l.takes(l.registers(script, transcript))
}

// A witness from elsewhere, whom the log does not know by name, signs with a key
// that it knows as erin's.
func TestAttackCeremonyWitnessIsAnother(t *testing.T) {
	l := ready(t)
	text := strings.NewReplacer("version: 1", "version: 2", "purpose: drill", "purpose: notary-keys", "carol", "wanda",
		"name: position, do: position, file: position.json", "name: keys, do: verify-keygen, log: log").Replace(fmt.Sprintf(ceremonyScript, l.ID))
	script, transcript := l.follows([]byte(text), ceremony.Real, l.ID, ceremony.Passed, map[string]string{"wanda": "erin"})
	l.voids(l.registers(script, transcript), ", which is erin's")
	stranger := *l.People["erin"]
	stranger.Signing = l.NewPerson("wanda", "watch", "safety").Signing
	l.People["wanda"] = &stranger
	l.takes(l.registers(l.follows([]byte(text), ceremony.Real, l.ID, ceremony.Passed, nil)))
}
