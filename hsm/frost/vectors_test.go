package frost

import (
	"bytes"
	"encoding/hex"
	"io"
	"os"
	"testing"

	"filippo.io/edwards25519"
	"github.com/go-json-experiment/json"
)

// hexBytes is hexadecimal in JSON.
type hexBytes []byte

func (h *hexBytes) UnmarshalText(text []byte) (err error) {
	*h, err = hex.DecodeString(string(text))
	return err
}

// vectors are the facts of RFC 9591 appendix E.1.
type vectors struct {
	Suite        string     `json:"suite"`
	Threshold    uint16     `json:"threshold"`
	Members      uint16     `json:"members"`
	Coefficients []hexBytes `json:"coefficients"`
	PublicKey    hexBytes   `json:"publicKey"`
	Message      hexBytes   `json:"message"`
	Shares       []hexBytes `json:"shares"`
	Signature    hexBytes   `json:"signature"`
	Signers      []struct {
		ID          uint16       `json:"id"`
		Hiding      nonceVectors `json:"hiding"`
		Binding     nonceVectors `json:"binding"`
		FactorInput hexBytes     `json:"factorInput"`
		Factor      hexBytes     `json:"factor"`
		Share       hexBytes     `json:"share"`
	} `json:"signers"`
}

type nonceVectors struct {
	Random     hexBytes `json:"random"`
	Nonce      hexBytes `json:"nonce"`
	Commitment hexBytes `json:"commitment"`
}

func readVectors(t testing.TB) (v vectors) {
	t.Helper()
	b, err := os.ReadFile("testdata/rfc9591.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &v, json.RejectUnknownMembers(true)); err != nil {
		t.Fatal(err)
	}
	if v.Suite != "FROST(Ed25519, SHA-512)" || len(v.Signers) != 2 || len(v.Shares) != 3 {
		t.Fatalf("these are other vectors: %s, %d signers, %d shares", v.Suite, len(v.Signers), len(v.Shares))
	}
	return v
}

// polynomial is the trusted dealer's; [vectors.club] the group it makes.
func (v vectors) polynomial(t testing.TB) (p polynomial) {
	t.Helper()
	for _, c := range v.Coefficients {
		s, err := decodeScalar([32]byte(c))
		if err != nil {
			t.Fatal(err)
		}
		p = append(p, s)
	}
	return p
}

func (v vectors) club(t testing.TB) club {
	t.Helper()
	p := v.polynomial(t)
	f := p.commit()
	c := club{Group: &Group{Params: Params{v.Threshold, v.Members}, PublicKey: encodePoint(f[0])}}
	for id := uint16(1); id <= v.Members; id++ {
		c.PublicShares = append(c.PublicShares, encodePoint(f.at(id)))
	}
	for id := uint16(1); id <= v.Members; id++ {
		k, err := newKeyShare(c.Group, id, p.at(id))
		if err != nil {
			t.Fatal(err)
		}
		c.shares = append(c.shares, k)
	}
	return c
}

func same(t testing.TB, what string, got, want []byte) {
	t.Helper()
	if !bytes.Equal(got, want) {
		t.Errorf("%s\n got %x\nwant %x", what, got, want)
	}
}

func TestVectorsDealer(t *testing.T) {
	v := readVectors(t)
	c := v.club(t)
	same(t, "group public key", c.PublicKey[:], v.PublicKey)
	for i, want := range v.Shares {
		same(t, "share", c.shares[i].secret.Bytes(), want)
	}
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
	secret := edwards25519.NewScalar()
	for _, id := range []uint16{1, 3} {
		secret.MultiplyAdd(lagrange([]uint16{1, 3}, id, 0), c.shares[id-1].secret, secret)
	}
	same(t, "interpolated secret", secret.Bytes(), v.Coefficients[0])
}

func TestVectorsSign(t *testing.T) {
	v := readVectors(t)
	c := v.club(t)
	nonces, list := map[uint16]*Nonce{}, []Commitment{}
	for _, s := range v.Signers {
		n, com, err := c.shares[s.ID-1].Commit(io.MultiReader(bytes.NewReader(s.Hiding.Random), bytes.NewReader(s.Binding.Random)))
		if err != nil {
			t.Fatal(err)
		}
		same(t, "hiding nonce", n.hiding.Bytes(), s.Hiding.Nonce)
		same(t, "binding nonce", n.binding.Bytes(), s.Binding.Nonce)
		same(t, "hiding commitment", com.Hiding[:], s.Hiding.Commitment)
		same(t, "binding commitment", com.Binding[:], s.Binding.Commitment)
		nonces[s.ID], list = n, append(list, com)
	}
	inputs := bindingInputs(c.PublicKey, v.Message, list)
	ses, err := newSession(c.Group, v.Message, list)
	if err != nil {
		t.Fatal(err)
	}
	shares := c.sign(t, nonces, v.Message, list)
	for i, s := range v.Signers {
		same(t, "binding factor input", inputs[i], s.FactorInput)
		same(t, "binding factor", ses.factors[i].Bytes(), s.Factor)
		z := shares[s.ID]
		same(t, "signature share", z[:], s.Share)
		if err := VerifyShare(c.Group, s.ID, z, v.Message, list); err != nil {
			t.Error(err)
		}
	}
	sig, err := Aggregate(c.Group, v.Message, list, shares)
	if err != nil {
		t.Fatal(err)
	}
	same(t, "signature", sig[:], v.Signature)
}
