package lockbox

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/hpke"
	"crypto/mlkem"
	"crypto/sha3"
	"encoding/json"
	"os"
	"testing"
)

// A hybrid identity with its P-256 half behind hsm.Decrypter is MLKEM768-P256 as
// published. testdata/hpke-pq.json is the vector of KEM 0x0050 with HKDF-SHA256
// of draft-ietf-hpke-pq, as Go 1.26 ships it with crypto/hpke, its first three
// messages; taken on 2026-11-26.
func TestHybridPublishedVector(t *testing.T) {
	data, err := os.ReadFile("testdata/hpke-pq.json")
	if err != nil {
		t.Fatal(err)
	}
	var v struct {
		KEM         uint16 `json:"kem_id"`
		KDF         uint16 `json:"kdf_id"`
		AEAD        uint16 `json:"aead_id"`
		Info        string `json:"info"`
		Private     string `json:"skRm"`
		Public      string `json:"pkRm"`
		Enc         string `json:"enc"`
		Encryptions []struct{ AAD, CT, Nonce, PT string }
	}
	if err := json.Unmarshal(data, &v); err != nil {
		t.Fatal(err)
	}
	id, key := splitHybrid(t, unhex(t, v.Private))
	if got := id.recipient.key.Bytes(); !bytes.Equal(got, unhex(t, v.Public)) || id.recipient.key.KEM().ID() != v.KEM {
		t.Fatalf("public key\n%x of KEM %#x, published\n%s of %#x", got, id.recipient.key.KEM().ID(), v.Public, v.KEM)
	}
	private, err := id.private(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	kdf, err := hpke.NewKDF(v.KDF)
	if err != nil {
		t.Fatal(err)
	}
	aead, err := hpke.NewAEAD(v.AEAD)
	if err != nil {
		t.Fatal(err)
	}
	opener, err := hpke.NewRecipient(unhex(t, v.Enc), private, kdf, aead, unhex(t, v.Info))
	if err != nil {
		t.Fatal(err)
	}
	for i, m := range v.Encryptions {
		plain, err := opener.Open(unhex(t, m.AAD), unhex(t, m.CT))
		if err != nil || !bytes.Equal(plain, unhex(t, m.PT)) {
			t.Fatalf("message %d opens to %x, %v", i, plain, err)
		}
	}
	if len(v.Encryptions) == 0 || key.operations != 1 {
		t.Fatalf("%d messages with %d agreements of the token", len(v.Encryptions), key.operations)
	}
}

// splitHybrid gives the two halves of a private key as the draft derives them
// from 32 bytes: SHAKE256, 64 bytes of ML-KEM-768 seed, then P-256 scalars until
// one is in range.
func splitHybrid(t *testing.T, seed []byte) (*Identity, *countedKey) {
	t.Helper()
	s := sha3.NewSHAKE256()
	s.Write(seed)
	half := make([]byte, mlkem.SeedSize)
	s.Read(half)
	pq, err := mlkem.NewDecapsulationKey768(half)
	if err != nil {
		t.Fatal(err)
	}
	for {
		scalar := make([]byte, 32)
		s.Read(scalar)
		private, err := ecdh.P256().NewPrivateKey(scalar)
		if err != nil {
			continue
		}
		key := &countedKey{PrivateKey: private}
		id, err := HybridIdentity(key, pq)
		if err != nil {
			t.Fatal(err)
		}
		return id, key
	}
}
