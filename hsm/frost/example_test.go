package frost_test

import (
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"log"

	"github.com/keyturn/keyturn/hsm/frost"
)

// Three members make a key that none of them has, and two of them sign.
func Example() {
	c, err := frost.NewKeyGen(frost.Params{Threshold: 2, Members: 3}, []byte("our charter, first attempt"))
	check(err)

	// Each dealer seals its dealing, publishes its Round1, and sends every
	// member one subshare, encrypted.
	var round1s []frost.Round1
	dealt := map[uint16][][32]byte{} // receiver to subshares
	for _, id := range c.Dealers() {
		d, err := c.Deal(rand.Reader, id)
		check(err)
		round1s = append(round1s, d.Round1())
		for _, to := range []uint16{1, 2, 3} {
			s, err := d.Share(to)
			check(err)
			dealt[to] = append(dealt[to], s)
		}
	}
	shares := map[uint16]*frost.KeyShare{}
	for _, id := range []uint16{1, 2, 3} {
		shares[id], _, err = c.Finish(id, round1s, dealt[id])
		check(err)
	}
	group, err := c.Group(round1s) // no secret needed
	check(err)

	// Signing: commitments first, then shares for the list of them.
	msg := []byte("warrant")
	n1, c1, err := shares[1].Commit(rand.Reader)
	check(err)
	n3, c3, err := shares[3].Commit(rand.Reader)
	check(err)
	list := []frost.Commitment{c1, c3}
	z1, err := shares[1].Sign(n1, group, msg, list)
	check(err)
	z3, err := shares[3].Sign(n3, group, msg, list)
	check(err)
	sig, err := frost.Aggregate(group, msg, list, map[uint16][32]byte{1: z1, 3: z3})
	check(err)

	fmt.Println(ed25519.Verify(group.Ed25519(), msg, sig[:]))
	fmt.Println(shares[1])
	// Output:
	// true
	// frost.KeyShare(redacted)
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
