package signoff

import (
	"fmt"

	"github.com/keyturn/keyturn/signoff/dsse"
)

// An Object is sealed weights. Its id is the digest of this document, so an
// approval of the id covers the plaintext's manifest, the lockbox and who has
// to agree. The shares are in Deals, apart, so dealing again keeps the id.
type Object struct {
	Charter  Digest  `json:"charter"`
	Sealer   Digest  `json:"sealer"` // person whose key signs this document; of a snapshot, the node
	Name     string  `json:"name"`
	Manifest Digest  `json:"manifest"` // of the OMS manifest's payload
	Lockbox  Lockbox `json:"lockbox"`
	Summary  Summary `json:"summary"`
	Created  int64   `json:"created"`
	Claim    Digest  `json:"claim,omitzero"` // of a snapshot: the use of a launch that made it
}

// A Lockbox is the public part of the two shared secrets.
type Lockbox struct {
	Salt     []byte  `json:"salt"` // 32 bytes
	People   Sharing `json:"people"`
	Machines Sharing `json:"machines"`
}

// A Sharing states a threshold and the Pedersen commitments of one secret.
type Sharing struct {
	Threshold   int      `json:"threshold"`
	Commitments [][]byte `json:"commitments"` // as many as the threshold, 32 bytes each
}

// A Summary is what approvers are shown of the weights. It is the sealer's
// word; the manifest is what is checked.
type Summary struct {
	Files      int      `json:"files"`
	Bytes      int64    `json:"bytes"`
	Tensors    int      `json:"tensors"`
	Parameters int64    `json:"parameters"`
	DTypes     []string `json:"dtypes"`
}

// Kind is KindObject.
func (o *Object) Kind() Kind { return KindObject }

// Cluster is the charter the object belongs to.
func (o *Object) Cluster() Digest { return o.Charter }

func (o *Object) subjects() []dsse.Subject {
	return []dsse.Subject{dsse.About("manifest", o.Manifest)}
}

// Validate checks the form of an object.
func (o *Object) Validate() error {
	if o.Sealer.IsZero() || o.Manifest.IsZero() || o.Created <= 0 {
		return missing("sealer, manifest or created")
	}
	if err := CheckText("name", o.Name); err != nil {
		return err
	}
	if len(o.Lockbox.Salt) != 32 {
		return fmt.Errorf("lockbox salt of %d bytes, want 32", len(o.Lockbox.Salt))
	}
	for _, s := range []Sharing{o.Lockbox.People, o.Lockbox.Machines} {
		if s.Threshold < 2 || s.Threshold > MaxPeople || len(s.Commitments) != s.Threshold {
			return fmt.Errorf("sharing with threshold %d and %d commitments, want 2 to %d and as many", s.Threshold, len(s.Commitments), MaxPeople)
		}
		for _, c := range s.Commitments {
			if len(c) != 32 {
				return fmt.Errorf("a commitment of %d bytes, want 32", len(c))
			}
		}
	}
	if o.Summary.Files < 1 || o.Summary.Bytes < 0 || o.Summary.Tensors < 0 || o.Summary.Parameters < 0 || len(o.Summary.DTypes) > 32 {
		return fmt.Errorf("summary %+v has numbers out of range", o.Summary)
	}
	for _, t := range o.Summary.DTypes {
		if err := CheckText("dtype", t); err != nil {
			return err
		}
	}
	return nil
}

// Deals says where one dealing of an object's shares lies: a blob of
// HPKE-sealed shares, one for each person and each notary.
type Deals struct {
	Charter Digest `json:"charter"`
	Sealer  Digest `json:"sealer"` // the object's
	Object  Digest `json:"object"`
	Epoch   uint32 `json:"epoch"` // from 1
	Blob    Digest `json:"blob"`
}

// Kind is KindDeals.
func (d *Deals) Kind() Kind { return KindDeals }

// Cluster is the charter the deals belong to.
func (d *Deals) Cluster() Digest { return d.Charter }

func (d *Deals) subjects() []dsse.Subject {
	return []dsse.Subject{dsse.About("object", d.Object), dsse.About("deals", d.Blob)}
}

// Validate refuses missing members.
func (d *Deals) Validate() error {
	if d.Sealer.IsZero() || d.Object.IsZero() || d.Blob.IsZero() || d.Epoch == 0 {
		return missing("sealer, object, blob or epoch")
	}
	return nil
}

// A Release is one notary's share of an object, re-sealed to a recipient
// after the warrant was final. For a launch it answers one claim and the
// recipient is the claim's fresh key.
type Release struct {
	Charter Digest `json:"charter"`
	Notary  Digest `json:"notary"`
	Warrant Digest `json:"warrant"`
	Claim   Digest `json:"claim"` // empty for an export
	Share   Share  `json:"share"`
}

// Kind is KindRelease.
func (r *Release) Kind() Kind { return KindRelease }

// Cluster is the charter the release belongs to.
func (r *Release) Cluster() Digest { return r.Charter }

func (r *Release) subjects() []dsse.Subject {
	return []dsse.Subject{dsse.About("warrant", r.Warrant)}
}

// Validate refuses missing members.
func (r *Release) Validate() error {
	if r.Notary.IsZero() || r.Warrant.IsZero() {
		return missing("notary or warrant")
	}
	return r.Share.check()
}
