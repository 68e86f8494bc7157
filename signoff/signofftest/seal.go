package signofftest

import (
	"crypto/rand"
	"crypto/sha256"
	"time"

	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/dsse"
	"github.com/keyturn/keyturn/signoff/lockbox"
)

// Seal puts objects with their deals into the log, as alice would who sealed
// weights for the people and notaries of now. There are no weights.
func (c *Cluster) Seal(names ...string) (ids []signoff.Digest) {
	c.T.Helper()
	ctx := c.T.Context()
	alice, last := c.People["alice"].Doc.ID(), uint64(0)
	for _, name := range names {
		doc, secrets := c.Object(name)
		deals, err := secrets.Deal(doc.Digest(), 1)
		c.must(err)
		secrets.Wipe()
		blob, err := dsse.Encode(deals)
		c.must(err)
		digest, err := c.Client.PutBlob(ctx, blob)
		c.must(err)
		_, err = c.Client.Append(ctx, doc.Line())
		c.must(err)
		out, err := c.Client.Append(ctx, c.Sign("alice", &signoff.Deals{Charter: c.ID, Sealer: alice, Object: doc.Digest(), Epoch: 1, Blob: digest}).Line())
		c.must(err)
		ids, last = append(ids, doc.Digest()), out.Index
	}
	c.Sync(last + 1)
	return ids
}

// Object is an object of alice's, not yet in the log, and the secrets that its deals
// are made of: wipe them.
func (c *Cluster) Object(name string) (*signoff.Signed, *lockbox.Secrets) {
	c.T.Helper()
	var params lockbox.Params
	c.State(func(_ *authority.Authority, s *authority.State) {
		var err error
		params, err = s.Holders()
		c.must(err)
	})
	sharing := func(s lockbox.Sharing) signoff.Sharing {
		return signoff.Sharing{Threshold: s.Threshold(), Commitments: s.Bytes()}
	}
	secrets, box, err := lockbox.New(rand.Reader, params)
	c.must(err)
	return c.Sign("alice", &signoff.Object{Charter: c.ID, Sealer: c.People["alice"].Doc.ID(), Name: name, Manifest: sha256.Sum256([]byte(name)), Created: time.Now().Unix(),
		Lockbox: signoff.Lockbox{Salt: box.Salt[:], People: sharing(box.People), Machines: sharing(box.Machines)},
		Summary: signoff.Summary{Files: 1, Bytes: 1, Tensors: 1, Parameters: 1, DTypes: []string{"BF16"}}}), secrets
}
