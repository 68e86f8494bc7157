package policy

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
)

func compareID(a, b [32]byte) int { return bytes.Compare(a[:], b[:]) }

// encoder writes canonical bytes: every field behind its length as a
// big-endian uint32, an integer as a field of eight big-endian bytes, a list
// behind its number of items as an integer.
type encoder []byte

func (e *encoder) bytes(b []byte) {
	*e = binary.BigEndian.AppendUint32(*e, uint32(len(b)))
	*e = append(*e, b...)
}

func (e *encoder) text(s string) { e.bytes([]byte(s)) }

func (e *encoder) integer(v int64) { e.bytes(binary.BigEndian.AppendUint64(nil, uint64(v))) }

func (e *encoder) list(items []string) {
	e.integer(int64(len(items)))
	for _, s := range items {
		e.text(s)
	}
}

func (e *encoder) tree(t Tree) {
	switch {
	case t.AtLeast != nil:
		e.text("atLeast")
		e.integer(int64(t.AtLeast.K))
		e.list(t.AtLeast.Roles)
	case len(t.All) > 0:
		e.branches("all", t.All)
	default:
		e.branches("any", t.Any)
	}
}

func (e *encoder) branches(kind string, branches []Tree) {
	e.text(kind)
	e.integer(int64(len(branches)))
	for _, b := range branches {
		e.tree(b)
	}
}

func (e *encoder) person(p Person, roles []string) {
	e.bytes(p.ID[:])
	e.text(p.Name)
	e.text(p.Organisation)
	e.list(roles)
	share := int64(0)
	if p.HoldsShare {
		share = 1
	}
	e.integer(share)
}

// Digest is the SHA-256 of the rule and of the people it speaks of: every
// field of the rule as written, then for each holder of one of its roles the
// id, name, organisation, those roles, and whether they hold a share. If it
// changes, an approval given under it no longer counts.
func (b *Bound) Digest() [32]byte { return b.digest }

// sum computes what Digest returns.
func (b *Bound) sum() [32]byte {
	var e encoder
	e.text("keyturn/policy/rule/v1")
	e.text(b.Name)
	e.text(string(b.Action))
	e.integer(int64(b.Quorum.Organisations))
	e.tree(b.Quorum.Tree)
	e.list(b.Veto)
	for _, v := range []int64{b.Expiry, b.ApprovalExpiry, b.CoolingOff, b.Uses} {
		e.integer(v)
	}
	e.integer(int64(len(b.people)))
	for _, s := range b.people {
		var held []string
		for i, r := range b.roles {
			if s.roles&(1<<i) != 0 {
				held = append(held, r)
			}
		}
		e.person(s.Person, held)
	}
	return sha256.Sum256(e)
}

// Digest is the SHA-256 of the whole compiled policy: the leases, every person
// of the roster, and every rule's digest in the order of the actions.
func (c *Compiled) Digest() [32]byte {
	var e encoder
	e.text("keyturn/policy/v1")
	for _, v := range []int64{Version, c.leases.Epoch, c.leases.Lease, c.leases.DrainGrace} {
		e.integer(v)
	}
	e.integer(int64(len(c.people)))
	for _, p := range c.people {
		e.person(p, p.Roles)
	}
	for _, a := range c.Actions() {
		d := c.rules[a].Digest()
		e.bytes(d[:])
	}
	return sha256.Sum256(e)
}
