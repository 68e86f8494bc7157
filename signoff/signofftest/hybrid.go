package signofftest

import (
	"crypto/mlkem"
	"crypto/sha512"
	"testing"

	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/lockbox"
)

// Seed is the ML-KEM-768 seed that goes with an exchange key in tests.
func Seed(k signoff.PublicKey) []byte {
	seed := sha512.Sum512(k.Encoded)
	return seed[:mlkem.SeedSize]
}

// Hybrid is the key with that half beside it.
func Hybrid(k signoff.PublicKey) signoff.PublicKey {
	k.MLKEM768 = pq(k).EncapsulationKey().Bytes()
	return k
}

func pq(k signoff.PublicKey) *mlkem.DecapsulationKey768 {
	key, err := mlkem.NewDecapsulationKey768(Seed(k))
	if err != nil {
		panic(err)
	}
	return key
}

// Identity opens what is dealt to the person's first token.
func (p *Person) Identity(t testing.TB) *lockbox.Identity {
	t.Helper()
	id, err := lockbox.TokenIdentity(p.Exchange)
	if p.Doc.Exchange.Hybrid() {
		id, err = lockbox.HybridIdentity(p.Exchange, pq(p.Doc.Exchange))
	}
	if err != nil {
		t.Fatal(err)
	}
	return id
}
