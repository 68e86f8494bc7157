package signofftest

import (
	"crypto/hpke"
	"fmt"
	"net/http"

	"github.com/keyturn/keyturn/hsm/frost"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/dsse"
)

// A CrookedDealer is a notary, in league with its coordinator, that deals one
// member a wrong sub-share, sealed as it should be, in the first attempt.
type CrookedDealer struct {
	Cluster  *Cluster
	From, To uint16 // the dealer and the member, from 1
	Lies     bool   // when it is accused, too
}

// FirstCeremony is the first attempt of the first term, by docs/formats.md.
func (c *Cluster) FirstCeremony() (*frost.Ceremony, error) {
	context := dsse.Sum("keyturn/dkg-context/v1", c.ID[:], []byte("1"), []byte("1"), make([]byte, 32))
	return frost.NewKeyGen(frost.Params{Threshold: 3, Members: 4}, context[:])
}

// Meddle stands before the coordinator and changes what the dealer says.
func (d *CrookedDealer) Meddle(next http.Handler) http.Handler {
	dealer := d.Cluster.Notaries[d.From-1]
	return Rewrite(next, func(s *signoff.Signed) signoff.Document {
		switch doc := s.Doc.(type) {
		case *signoff.Dealing:
			if doc.Notary == dealer.Doc.ID() && doc.Attempt == 1 {
				sealed, err := d.wrong()
				if err != nil {
					panic(http.ErrAbortHandler)
				}
				doc.Shares[d.To-1] = sealed
				return doc
			}
		case *signoff.DealerAnswer:
			if doc.Notary == dealer.Doc.ID() && doc.Attempt == 1 && d.Lies {
				doc.Share = append([]byte{7}, make([]byte, 31)...)
				return doc
			}
		}
		return nil
	}, dealer.Signing)
}

func (d *CrookedDealer) wrong() ([]byte, error) {
	ceremony, err := d.Cluster.FirstCeremony()
	if err != nil {
		return nil, err
	}
	digest := ceremony.Digest()
	info := dsse.Sum("keyturn/dkg-share/v1", d.Cluster.ID[:], digest[:], fmt.Append(nil, d.From), fmt.Append(nil, d.To))
	key, err := d.Cluster.Notaries[d.To-1].Doc.Exchange.ECDH()
	if err != nil {
		return nil, err
	}
	recipient, err := hpke.NewDHKEMPublicKey(key)
	if err != nil {
		return nil, err
	}
	return hpke.Seal(recipient, hpke.HKDFSHA256(), hpke.ChaCha20Poly1305(), info[:], append([]byte{9}, make([]byte, 31)...))
}
