package module

import (
	"bytes"
	"crypto/rand"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"github.com/go-json-experiment/json"
	"github.com/miekg/pkcs11"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/hsm/token/internal/wire"
)

// Ed25519 came with PKCS #11 3.0, which the binding does not know.
const (
	ckkECEdwards           = 0x40
	ckmECEdwardsKeyPairGen = 0x1055
	ckmEdDSA               = 0x1057
)

// DER of the object identifiers in CKA_EC_PARAMS (RFC 5480, RFC 8410). Some
// tokens name the curve of Ed25519 by a PrintableString instead (PKCS #11 3.0,
// section 6.3.3).
var (
	oidP256       = []byte{0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07}
	oidEd25519    = []byte{0x06, 0x03, 0x2b, 0x65, 0x70}
	stringEd25519 = []byte("\x13\x0cedwards25519")
)

// name names a key: the label, the kind, and what tells it from an impostor,
// the public point or, for a sealing key, a witness.
type name struct {
	kind     hsm.Kind
	label    string
	identity string
}

// use runs do with the handle of a key whose identity was checked. When an
// error leaves open what happened, it looks for the key again: a stale handle
// is replaced, a lost token reported as lost, another key as such. Another key
// must show itself twice: a token on its way out can answer with blanks.
func (d *device) use(n name, do func(pkcs11.SessionHandle, pkcs11.ObjectHandle) error) error {
	attempt := func(s pkcs11.SessionHandle) error {
		h, err := d.handle(s, n)
		if err != nil {
			return err
		}
		return do(s, h)
	}
	err := d.session(attempt)
	another := errors.Is(err, errIdentity)
	if !another && !unclear(err) {
		return err
	}
	d.forget(n)
	if silent := d.session(d.answers); silent != nil {
		return coded{wire.CodeLost, fmt.Errorf("the token does not answer: %w", silent)}
	}
	if another || stale(err) {
		err = d.session(attempt)
	} else if probe := d.session(func(s pkcs11.SessionHandle) error { _, e := d.handle(s, n); return e }); probe != nil {
		err = probe
	}
	return err
}

// answers asks the token for a random byte: some modules know their keys without
// it, and call all that they cannot do without it a general error.
func (d *device) answers(s pkcs11.SessionHandle) error {
	_, err := d.p.GenerateRandom(s, 1)
	if err == nil || errors.Is(err, pkcs11.Error(pkcs11.CKR_RANDOM_NO_RNG)) || errors.Is(err, pkcs11.Error(pkcs11.CKR_FUNCTION_NOT_SUPPORTED)) {
		return nil
	}
	return err
}

func (d *device) forget(n name) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.handles, n)
}

// handle returns the key that n names, after checking that it is that key.
func (d *device) handle(s pkcs11.SessionHandle, n name) (pkcs11.ObjectHandle, error) {
	d.mu.Lock()
	h, known := d.handles[n]
	d.mu.Unlock()
	if known {
		return h, nil
	}
	candidates, err := d.find(s, attributesOf(n.kind, n.label)...)
	if err != nil {
		return 0, err
	}
	if len(candidates) == 0 {
		return 0, errLost
	}
	for _, h := range candidates {
		if err := d.check(s, h, n); errors.Is(err, errIdentity) {
			continue
		} else if err != nil {
			return 0, err
		}
		d.mu.Lock()
		d.handles[n] = h
		d.mu.Unlock()
		return h, nil
	}
	return 0, errIdentity
}

// check returns errIdentity unless h is the key that n names.
func (d *device) check(s pkcs11.SessionHandle, h pkcs11.ObjectHandle, n name) error {
	if n.kind == hsm.KindSeal {
		plaintext, err := d.decrypt(s, h, []byte(n.identity), witnessAD)
		if err != nil || !bytes.Equal(plaintext, witnessText) {
			return errIdentity
		}
		return nil
	}
	k, err := d.read(s, h)
	if err != nil {
		return err
	}
	if k.Kind != n.kind || len(k.Point) == 0 || !bytes.Equal(k.Point, []byte(n.identity)) {
		return errIdentity
	}
	return nil
}

// attributesOf selects the keys of one kind, of one label if it is not empty.
func attributesOf(kind hsm.Kind, label string) []*pkcs11.Attribute {
	class, keyType, use := uint(pkcs11.CKO_PRIVATE_KEY), uint(pkcs11.CKK_EC), uint(pkcs11.CKA_SIGN)
	switch kind {
	case hsm.KindEd25519:
		keyType = ckkECEdwards
	case hsm.KindECDH:
		use = pkcs11.CKA_DERIVE
	case hsm.KindSeal:
		class, keyType, use = pkcs11.CKO_SECRET_KEY, pkcs11.CKK_AES, pkcs11.CKA_DECRYPT
	}
	return []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, class),
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true),
		pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, keyType),
		pkcs11.NewAttribute(use, true),
		pkcs11.NewAttribute(pkcs11.CKA_LABEL, label),
	}
}

func (d *device) find(s pkcs11.SessionHandle, template ...*pkcs11.Attribute) ([]pkcs11.ObjectHandle, error) {
	if err := d.p.FindObjectsInit(s, template); err != nil {
		return nil, fmt.Errorf("find objects: %w", err)
	}
	found, _, err := d.p.FindObjects(s, wire.MaxKeys)
	if err := errors.Join(err, d.p.FindObjectsFinal(s)); err != nil {
		return nil, fmt.Errorf("find objects: %w", err)
	}
	return found, nil
}

func (d *device) list([][]byte) ([]byte, error) {
	keys := []wire.KeyInfo{}
	err := d.session(func(s pkcs11.SessionHandle) error {
		for _, class := range []uint{pkcs11.CKO_PRIVATE_KEY, pkcs11.CKO_SECRET_KEY} {
			found, err := d.find(s, pkcs11.NewAttribute(pkcs11.CKA_CLASS, class), pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true))
			if err != nil {
				return err
			}
			for _, h := range found {
				k, err := d.read(s, h)
				if err != nil {
					return err
				}
				keys = append(keys, k)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return json.Marshal(keys)
}

// read returns what the token says of a private or secret key.
func (d *device) read(s pkcs11.SessionHandle, h pkcs11.ObjectHandle) (wire.KeyInfo, error) {
	values, err := d.attributes(s, h, pkcs11.CKA_CLASS, pkcs11.CKA_KEY_TYPE, pkcs11.CKA_LABEL, pkcs11.CKA_ID)
	if err != nil {
		return wire.KeyInfo{}, err
	}
	var failed error
	said := func(attribute uint) []byte {
		v, err := d.said(s, h, attribute)
		if err != nil && failed == nil {
			failed = err
		}
		return v
	}
	is := func(attribute uint) bool { return bytes.Equal(said(attribute), []byte{1}) }
	k := wire.KeyInfo{
		Label:            string(values[2]),
		ID:               hex.EncodeToString(values[3]),
		Sign:             is(pkcs11.CKA_SIGN),
		Derive:           is(pkcs11.CKA_DERIVE),
		Sensitive:        is(pkcs11.CKA_SENSITIVE),
		AlwaysSensitive:  is(pkcs11.CKA_ALWAYS_SENSITIVE),
		NeverExtractable: is(pkcs11.CKA_NEVER_EXTRACTABLE),
		Local:            is(pkcs11.CKA_LOCAL),
	}
	// Not saying so counts as extractable.
	k.Extractable = !bytes.Equal(said(pkcs11.CKA_EXTRACTABLE), []byte{0})
	switch number(values[1]) {
	case pkcs11.CKK_AES:
		if number(said(pkcs11.CKA_VALUE_LEN)) == 32 && is(pkcs11.CKA_DECRYPT) {
			k.Kind = hsm.KindSeal
		}
	case pkcs11.CKK_EC, ckkECEdwards:
		if k.Point, k.Kind, err = d.point(s, h, number(values[1]), values[3]); err != nil {
			return wire.KeyInfo{}, err
		}
		if k.Kind == hsm.KindP256 && !k.Sign && k.Derive {
			k.Kind = hsm.KindECDH
		} else if !k.Sign {
			k.Kind = ""
		}
	}
	if failed != nil {
		return wire.KeyInfo{}, failed
	}
	return k, nil
}

// point returns the public point of a private key, from its public key object
// or from the private one where the token keeps it there too, and the kind that
// its curve allows, empty if the curve is not ours.
func (d *device) point(s pkcs11.SessionHandle, private pkcs11.ObjectHandle, keyType uint, id []byte) ([]byte, hsm.Kind, error) {
	objects := []pkcs11.ObjectHandle{private}
	if len(id) > 0 {
		public, err := d.find(s, pkcs11.NewAttribute(pkcs11.CKA_CLASS, uint(pkcs11.CKO_PUBLIC_KEY)), pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, keyType), pkcs11.NewAttribute(pkcs11.CKA_ID, id))
		if err != nil {
			return nil, "", err
		}
		objects = append(public, private)
	}
	for _, h := range objects {
		curve, err := d.said(s, h, pkcs11.CKA_EC_PARAMS)
		if err != nil {
			return nil, "", err
		}
		point, err := d.said(s, h, pkcs11.CKA_EC_POINT)
		if err != nil {
			return nil, "", err
		}
		switch p := unwrap(point); {
		case keyType == pkcs11.CKK_EC && bytes.Equal(curve, oidP256) && len(p) == 65:
			return p, hsm.KindP256, nil
		case keyType == ckkECEdwards && len(p) == 32 && (bytes.Equal(curve, oidEd25519) || bytes.Equal(curve, stringEd25519)):
			return p, hsm.KindEd25519, nil
		}
	}
	return nil, "", nil
}

// unwrap takes a point out of the OCTET STRING around it, which some tokens
// leave out.
func unwrap(point []byte) []byte {
	var inner []byte
	if rest, err := asn1.Unmarshal(point, &inner); err == nil && len(rest) == 0 {
		return inner
	}
	return point
}

// said returns one attribute, nil if the token has it not or keeps it to itself.
func (d *device) said(s pkcs11.SessionHandle, h pkcs11.ObjectHandle, attribute uint) ([]byte, error) {
	values, err := d.attributes(s, h, attribute)
	var native pkcs11.Error
	if errors.As(err, &native) && (native == pkcs11.CKR_ATTRIBUTE_TYPE_INVALID || native == pkcs11.CKR_ATTRIBUTE_SENSITIVE) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return values[0], nil
}

func (d *device) attributes(s pkcs11.SessionHandle, h pkcs11.ObjectHandle, types ...uint) ([][]byte, error) {
	template := make([]*pkcs11.Attribute, len(types))
	for i, t := range types {
		template[i] = pkcs11.NewAttribute(t, nil)
	}
	found, err := d.p.GetAttributeValue(s, h, template)
	if err != nil {
		return nil, fmt.Errorf("read attributes: %w", err)
	}
	values := make([][]byte, len(types))
	for i := range found {
		values[i] = found[i].Value
	}
	return values, nil
}

// number reads a CK_ULONG, which has the byte order of the host.
func number(b []byte) uint {
	for _, known := range []uint{pkcs11.CKK_EC, ckkECEdwards, pkcs11.CKK_AES, 32} {
		if bytes.Equal(b, pkcs11.NewAttribute(0, known).Value) {
			return known
		}
	}
	return ^uint(0)
}

// mechanisms are what a key of each kind is made with and then used by.
var mechanisms = map[hsm.Kind][]struct {
	id   uint
	name string
}{
	hsm.KindP256:    {{pkcs11.CKM_EC_KEY_PAIR_GEN, "CKM_EC_KEY_PAIR_GEN"}, {pkcs11.CKM_ECDSA, "CKM_ECDSA"}},
	hsm.KindEd25519: {{ckmECEdwardsKeyPairGen, "CKM_EC_EDWARDS_KEY_PAIR_GEN"}, {ckmEdDSA, "CKM_EDDSA"}},
	hsm.KindECDH:    {{pkcs11.CKM_EC_KEY_PAIR_GEN, "CKM_EC_KEY_PAIR_GEN"}, {pkcs11.CKM_ECDH1_DERIVE, "CKM_ECDH1_DERIVE"}},
	hsm.KindSeal:    {{pkcs11.CKM_AES_KEY_GEN, "CKM_AES_KEY_GEN"}, {pkcs11.CKM_AES_GCM, "CKM_AES_GCM"}},
}

// offers refuses a kind of key that the token cannot make or could not use
// afterwards.
func (d *device) offers(kind hsm.Kind) error {
	needed, known := mechanisms[kind]
	if !known {
		return fmt.Errorf("unknown kind of key %q", kind)
	}
	offered, err := d.p.GetMechanismList(d.slot)
	if err != nil {
		return fmt.Errorf("list mechanisms: %w", err)
	}
	for _, m := range needed {
		if !slices.ContainsFunc(offered, func(o *pkcs11.Mechanism) bool { return o.Mechanism == m.id }) {
			return fmt.Errorf("the token has no %s, which a key of kind %s needs: keep that key on another token", m.name, kind)
		}
	}
	return nil
}

// generate makes a key that stays where it is and does one thing.
func (d *device) generate(fields [][]byte) ([]byte, error) {
	kind, label := hsm.Kind(fields[0]), string(fields[1])
	if label == "" || len(label) > wire.MaxLabel {
		return nil, fmt.Errorf("a label has 1 to %d bytes, not %d", wire.MaxLabel, len(label))
	}
	if err := d.offers(kind); err != nil {
		return nil, err
	}
	id := make([]byte, 16)
	rand.Read(id)
	var point []byte
	err := d.writing(func(s pkcs11.SessionHandle) error {
		for _, class := range []uint{pkcs11.CKO_PRIVATE_KEY, pkcs11.CKO_SECRET_KEY} {
			same, err := d.find(s, pkcs11.NewAttribute(pkcs11.CKA_CLASS, class), pkcs11.NewAttribute(pkcs11.CKA_LABEL, label))
			if err != nil {
				return err
			}
			if len(same) > 0 {
				return errors.New("the token has a key of this label already; choose another")
			}
		}
		var err error
		if kind == hsm.KindSeal {
			return d.generateSeal(s, label, id)
		}
		point, err = d.generatePair(s, kind, label, id)
		return err
	})
	return point, err
}

// private returns the attributes of every key that is made here.
func private(label string, id []byte, use ...*pkcs11.Attribute) []*pkcs11.Attribute {
	return append([]*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true),
		pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, true),
		pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, true),
		pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, false),
		pkcs11.NewAttribute(pkcs11.CKA_LABEL, label),
		pkcs11.NewAttribute(pkcs11.CKA_ID, id),
	}, use...)
}

func (d *device) generateSeal(s pkcs11.SessionHandle, label string, id []byte) error {
	mechanism := []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_KEY_GEN, nil)}
	_, err := d.p.GenerateKey(s, mechanism, private(label, id,
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, uint(pkcs11.CKO_SECRET_KEY)),
		pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, uint(pkcs11.CKK_AES)),
		pkcs11.NewAttribute(pkcs11.CKA_VALUE_LEN, 32),
		pkcs11.NewAttribute(pkcs11.CKA_ENCRYPT, true),
		pkcs11.NewAttribute(pkcs11.CKA_DECRYPT, true),
		pkcs11.NewAttribute(pkcs11.CKA_SIGN, false),
		pkcs11.NewAttribute(pkcs11.CKA_VERIFY, false),
		pkcs11.NewAttribute(pkcs11.CKA_DERIVE, false),
		pkcs11.NewAttribute(pkcs11.CKA_WRAP, false),
		pkcs11.NewAttribute(pkcs11.CKA_UNWRAP, false),
	))
	if err != nil {
		return fmt.Errorf("generate AES key: %w", err)
	}
	return nil
}

// generatePair makes a key pair and returns its public point. A pair that does
// not read back as what was asked for is destroyed.
func (d *device) generatePair(s pkcs11.SessionHandle, kind hsm.Kind, label string, id []byte) ([]byte, error) {
	mechanism, curve, keyType := uint(pkcs11.CKM_EC_KEY_PAIR_GEN), oidP256, uint(pkcs11.CKK_EC)
	switch kind {
	case hsm.KindP256, hsm.KindECDH:
	case hsm.KindEd25519:
		mechanism, curve, keyType = ckmECEdwardsKeyPairGen, oidEd25519, ckkECEdwards
	default:
		return nil, fmt.Errorf("unknown kind of key %q", kind)
	}
	agrees := kind == hsm.KindECDH
	publicHandle, privateHandle, err := d.p.GenerateKeyPair(s, []*pkcs11.Mechanism{pkcs11.NewMechanism(mechanism, nil)},
		[]*pkcs11.Attribute{
			pkcs11.NewAttribute(pkcs11.CKA_CLASS, uint(pkcs11.CKO_PUBLIC_KEY)),
			pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, keyType),
			pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true),
			pkcs11.NewAttribute(pkcs11.CKA_VERIFY, !agrees),
			pkcs11.NewAttribute(pkcs11.CKA_EC_PARAMS, curve),
			pkcs11.NewAttribute(pkcs11.CKA_LABEL, label),
			pkcs11.NewAttribute(pkcs11.CKA_ID, id),
		},
		private(label, id,
			pkcs11.NewAttribute(pkcs11.CKA_CLASS, uint(pkcs11.CKO_PRIVATE_KEY)),
			pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, keyType),
			pkcs11.NewAttribute(pkcs11.CKA_SIGN, !agrees),
			pkcs11.NewAttribute(pkcs11.CKA_DERIVE, agrees),
		))
	if err != nil {
		return nil, fmt.Errorf("generate %s key pair: %w", kind, err)
	}
	k, err := d.read(s, privateHandle)
	if err == nil && (k.Kind != kind || k.Extractable || !k.Sensitive) {
		err = fmt.Errorf("the token made a key of kind %q, extractable %v, sensitive %v", k.Kind, k.Extractable, k.Sensitive)
	}
	if err != nil {
		return nil, errors.Join(err, d.p.DestroyObject(s, privateHandle), d.p.DestroyObject(s, publicHandle))
	}
	return k.Point, nil
}

// destroy destroys the one key that is named, and its public half.
func (d *device) destroy(fields [][]byte) ([]byte, error) {
	n := name{hsm.Kind(fields[0]), string(fields[1]), string(fields[2])}
	return nil, d.writing(func(s pkcs11.SessionHandle) error {
		found, err := d.find(s, attributesOf(n.kind, n.label)...)
		if err != nil {
			return err
		}
		if len(found) != 1 {
			return coded{wire.CodeAbsent, fmt.Errorf("the token has %d keys of this kind and label, not one", len(found))}
		}
		k, err := d.read(s, found[0])
		if err != nil {
			return err
		}
		if k.Kind != n.kind || string(k.Point) != n.identity {
			return errIdentity
		}
		doomed := found
		if id, err := hex.DecodeString(k.ID); err == nil && len(id) > 0 && len(k.Point) > 0 {
			public, err := d.find(s, pkcs11.NewAttribute(pkcs11.CKA_CLASS, uint(pkcs11.CKO_PUBLIC_KEY)),
				pkcs11.NewAttribute(pkcs11.CKA_ID, id), pkcs11.NewAttribute(pkcs11.CKA_LABEL, n.label))
			if err != nil {
				return err
			}
			doomed = append(doomed, public...)
		}
		d.mu.Lock()
		clear(d.handles)
		d.mu.Unlock()
		for _, h := range doomed { // the private half first
			if err := d.p.DestroyObject(s, h); err != nil {
				return fmt.Errorf("destroy: %w", err)
			}
		}
		return nil
	})
}
