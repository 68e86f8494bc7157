package tpm

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"testing"

	"github.com/google/go-tpm/tpm2/transport"

	"github.com/keyturn/keyturn/attest"
)

// TestAttackResettablePCR: PCR 16 and 23 are for anybody to reset and to extend with
// what a set names, and for anybody to log, so a set that names one accepts every boot.
func TestAttackResettablePCR(t *testing.T) {
	b := newBench(t)
	approved := Measured{PCR: 23, Type: EventIPL, Data: []byte("the approved boot")}
	digest := sha256.Sum256(approved.Data)
	set := &attest.ReferenceSet{
		Name: "test", Version: 1, NotBefore: now.Unix() - 1, NotAfter: now.Unix() + 1,
		PCRs: map[int][]attest.Digest{23: {sha256.Sum256(append(make([]byte, 32), digest[:]...))}},
	}

	if err := Extend(t.Context(), b.device, 23, [32]byte{0xee}); err != nil { // another boot says so
		t.Fatal(err)
	}
	reset, err := hex.DecodeString("8002" + "0000001b" + "0000013d" + "00000017" + "00000009" + "40000009" + "0000" + "00" + "0000")
	if err != nil {
		t.Fatal(err)
	}
	if err := b.device.Run(t.Context(), "reset PCR 23", func(tr transport.TPM) error {
		answer, err := tr.Send(reset)
		if err == nil && !slices.Equal(answer[6:10], make([]byte, 4)) {
			t.Fatalf("TPM2_PCR_Reset: %x", answer)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if err := Extend(t.Context(), b.device, 23, digest); err != nil {
		t.Fatal(err)
	}
	b.log = appendEvent(b.log, approved, digest)

	exp := expectation()
	exp.PCRs = []int{23}
	ev, err := b.identity.Evidence(t.Context(), attest.Binding{
		Domain: exp.Domain, Nonce: exp.Nonce, AgentNonce: agentNonce, EventLog: sha256.Sum256(b.log),
	}, append(slices.Clone(defaultPCRs), 23), nil)
	if err != nil {
		t.Fatal(err)
	}
	wantRefusal(t, attest.Appraise(ev, b.logs(), b.node, []*attest.ReferenceSet{set}, exp), "no current reference set")
	wantError(t, set.Validate(), "whoever runs on the machine")
	delete(set.PCRs, 23)
	set.PCRs[16] = []attest.Digest{digest}
	wantError(t, set.Validate(), "whoever runs on the machine")
}

// TestAttackPCRsOfTheSystemAlone: another system than the approved one measures
// nothing into PCR 11, and then extends it as the approved one would have been.
func TestAttackPCRsOfTheSystemAlone(t *testing.T) {
	b := newBench(t)
	approved := Measured{PCR: 11, Type: EventIPL, Data: []byte("section .linux of the approved image")}
	digest := sha256.Sum256(approved.Data)
	set := &attest.ReferenceSet{
		Name: "test", Version: 1, NotBefore: now.Unix() - 1, NotAfter: now.Unix() + 1,
		PCRs: map[int][]attest.Digest{11: {sha256.Sum256(append(make([]byte, 32), digest[:]...))}, 12: {{}}},
	}
	if err := Extend(t.Context(), b.device, 11, digest); err != nil {
		t.Fatal(err)
	}
	b.log = appendEvent(b.log, approved, digest)
	exp := expectation()
	ev, err := b.identity.Evidence(t.Context(), attest.Binding{
		Domain: exp.Domain, Nonce: exp.Nonce, AgentNonce: agentNonce, EventLog: sha256.Sum256(b.log),
	}, append(slices.Clone(defaultPCRs), 11, 12), nil)
	if err != nil {
		t.Fatal(err)
	}
	wantRefusal(t, attest.Appraise(ev, b.logs(), b.node, []*attest.ReferenceSet{set}, exp), "no current reference set")
	wantError(t, set.Validate(), "name PCR 4")
	set.PCRs[4] = []attest.Digest{{1}}
	wantRefusal(t, attest.Appraise(ev, b.logs(), b.node, []*attest.ReferenceSet{set}, exp), "PCR 4 is")
}
