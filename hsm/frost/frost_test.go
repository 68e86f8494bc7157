package frost

import (
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"testing"
)

// club is a finished group whose members are all in this process.
type club struct {
	*Group
	shares []*KeyShare // of members 1, 2, ...
}

// keygen runs a key generation among honest members.
func keygen(t testing.TB, threshold, members uint16) club {
	t.Helper()
	c := ceremony(t, threshold, members)
	var dealings []*Dealing
	for id := range members {
		d, err := c.Deal(rand.Reader, id+1)
		if err != nil {
			t.Fatal(err)
		}
		dealings = append(dealings, d)
	}
	return finish(t, c, dealings)
}

func ceremony(t testing.TB, threshold, members uint16) *Ceremony {
	t.Helper()
	c, err := NewKeyGen(Params{threshold, members}, []byte(t.Name()))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// finish lets every member of the new group finish, and wants them to agree.
func finish(t testing.TB, c *Ceremony, dealings []*Dealing) club {
	t.Helper()
	round1s := published(dealings)
	derived, err := c.Group(round1s)
	if err != nil {
		t.Fatal(err)
	}
	all := club{Group: derived}
	for id := uint16(1); id <= c.Params().Members; id++ {
		k, g, err := c.Finish(id, round1s, dealtTo(t, dealings, id))
		if err != nil {
			t.Fatalf("member %d: %v", id, err)
		}
		if g.Digest() != derived.Digest() {
			t.Fatalf("member %d finished with another group", id)
		}
		all.shares = append(all.shares, k)
	}
	return all
}

func published(dealings []*Dealing) []Round1 {
	var rs []Round1
	for _, d := range dealings {
		rs = append(rs, d.Round1())
	}
	return rs
}

func dealtTo(t testing.TB, dealings []*Dealing, to uint16) [][32]byte {
	t.Helper()
	var subshares [][32]byte
	for _, d := range dealings {
		s, err := d.Share(to)
		if err != nil {
			t.Fatal(err)
		}
		subshares = append(subshares, s)
	}
	return subshares
}

// reshare deals the key of old, by the given members, to a new group.
func (old club) reshare(t testing.TB, threshold, members uint16, dealers ...uint16) club {
	t.Helper()
	c, err := NewReshare(old.Group, dealers, Params{threshold, members}, []byte(t.Name()))
	if err != nil {
		t.Fatal(err)
	}
	var dealings []*Dealing
	for _, id := range dealers {
		d, err := c.Redeal(rand.Reader, old.shares[id-1])
		if err != nil {
			t.Fatal(err)
		}
		dealings = append(dealings, d)
	}
	return finish(t, c, dealings)
}

// commit is the first round of signing by the given members, ascending.
func (c club) commit(t testing.TB, ids ...uint16) (map[uint16]*Nonce, []Commitment) {
	t.Helper()
	nonces := map[uint16]*Nonce{}
	var list []Commitment
	for _, id := range ids {
		n, com, err := c.shares[id-1].Commit(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		nonces[id] = n
		list = append(list, com)
	}
	return nonces, list
}

// sign is the second round.
func (c club) sign(t testing.TB, nonces map[uint16]*Nonce, msg []byte, list []Commitment) map[uint16][32]byte {
	t.Helper()
	shares := map[uint16][32]byte{}
	for _, com := range list {
		z, err := c.shares[com.ID-1].Sign(nonces[com.ID], c.Group, msg, list)
		if err != nil {
			t.Fatal(err)
		}
		shares[com.ID] = z
	}
	return shares
}

// signature runs both rounds and wants a signature that stands alone.
func (c club) signature(t testing.TB, msg []byte, ids ...uint16) [64]byte {
	t.Helper()
	nonces, list := c.commit(t, ids...)
	sig, err := Aggregate(c.Group, msg, list, c.sign(t, nonces, msg, list))
	if err != nil {
		t.Fatal(err)
	}
	if !ed25519.Verify(c.Ed25519(), msg, sig[:]) {
		t.Fatal("crypto/ed25519 refuses the signature")
	}
	return sig
}

func TestEveryQuorumSigns(t *testing.T) {
	for _, p := range []Params{{2, 2}, {2, 3}, {3, 4}, {5, 7}} {
		t.Run(fmt.Sprintf("%d of %d", p.Threshold, p.Members), func(t *testing.T) {
			c := keygen(t, p.Threshold, p.Members)
			if err := c.Validate(); err != nil {
				t.Fatal(err)
			}
			for mask := range 1 << p.Members {
				if ids := members(mask); len(ids) >= int(p.Threshold) {
					c.signature(t, fmt.Appendf(nil, "signed by %v", ids), ids...)
				}
			}
		})
	}
}

// members lists the set bits of a mask, counted from 1.
func members(mask int) []uint16 {
	var ids []uint16
	for id := uint16(1); mask != 0; id, mask = id+1, mask>>1 {
		if mask&1 == 1 {
			ids = append(ids, id)
		}
	}
	return ids
}
