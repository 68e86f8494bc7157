package tpm

import (
	"bytes"
	"context"
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/hsm/secret"
)

const ccPolicyAuthValue uint32 = 0x0000016b

// A Guard is what it takes to use a key of a key file.
type Guard struct {
	PIN  []byte // up to 32 bytes; empty: none. The caller wipes it
	PCRs []int  // of bank sha256, ascending: their values must be those of the key's making; empty: any
}

// Generate makes a key in a new key file (tpm:PATH) that only its owner reads,
// and returns its public key: *ecdsa.PublicKey for [hsm.KindP256],
// *ecdh.PublicKey for [hsm.KindECDH], nil for [hsm.KindSeal]. TPMs have no
// Ed25519. Neither the key nor its PIN crosses the bus in the clear. The file
// keeps the name of the storage root key, so that whoever comes to sit on the bus
// after the making cannot offer another.
func (t *TPM) Generate(ctx context.Context, uri string, kind hsm.Kind, g Guard) (any, error) {
	what := fmt.Sprintf("make key %s (%s)", uri, kind)
	path, err := pathOf(uri)
	if err != nil {
		return nil, err
	}
	f := &keyFile{sealed: kind == hsm.KindSeal, emptyAuth: len(g.PIN) == 0, pcrs: g.PCRs}
	if !f.emptyAuth {
		if err := checkPIN(g.PIN); err != nil {
			return nil, fmt.Errorf("tpm: %s: %w", what, err)
		}
	}
	template, err := f.template(kind)
	if err != nil {
		return nil, fmt.Errorf("tpm: %s: %w", what, err)
	}
	if err := t.Run(ctx, what, func(tr transport.TPM) error { return t.fill(tr, f, template, g.PIN) }); err != nil {
		return nil, err
	}
	public, err := f.publicKey(kind)
	if err == nil {
		err = f.write(path, true)
	}
	if err != nil {
		return nil, fmt.Errorf("tpm: %s: %w", what, err)
	}
	return public, nil
}

func pathOf(uri string) (string, error) {
	u, err := hsm.ParseURI(uri)
	if err != nil {
		return "", err
	}
	if u.Scheme != hsm.SchemeTPM {
		return "", fmt.Errorf("tpm: %s is not a tpm: URI", uri)
	}
	return u.Path, nil
}

// template is the public area to ask for. Without a PIN wrong tries mean
// nothing; with one they count.
func (f *keyFile) template(kind hsm.Kind) (tpm2.TPMTPublic, error) {
	attributes := tpm2.TPMAObject{
		FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: len(f.pcrs) == 0, NoDA: f.emptyAuth,
	}
	switch kind {
	case hsm.KindP256:
		attributes.SignEncrypt = true
	case hsm.KindECDH:
		attributes.Decrypt = true
	case hsm.KindSeal:
		attributes.SensitiveDataOrigin = false // the data comes with the command
		return tpm2.TPMTPublic{
			Type: tpm2.TPMAlgKeyedHash, NameAlg: tpm2.TPMAlgSHA256, ObjectAttributes: attributes,
			Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgKeyedHash, &tpm2.TPMSKeyedHashParms{Scheme: tpm2.TPMTKeyedHashScheme{Scheme: tpm2.TPMAlgNull}}),
			Unique:     tpm2.NewTPMUPublicID(tpm2.TPMAlgKeyedHash, &tpm2.TPM2BDigest{}),
		}, nil
	default:
		return tpm2.TPMTPublic{}, fmt.Errorf("a TPM has no keys of this kind: p256, ecdh or seal")
	}
	return p256Template(attributes), nil
}

// fill has the TPM make the key.
func (t *TPM) fill(tr transport.TPM, f *keyFile, template tpm2.TPMTPublic, pin []byte) error {
	if len(f.pcrs) > 0 {
		policy, err := f.policyNow(tr)
		if err != nil {
			return err
		}
		template.AuthPolicy = tpm2.TPM2BDigest{Buffer: policy}
	}
	create := tpm2.TPMSSensitiveCreate{UserAuth: tpm2.TPM2BAuth{Buffer: pin}, Data: tpm2.NewTPMUSensitiveCreate(&tpm2.TPM2BSensitiveData{})}
	if f.sealed {
		key, err := secret.New(32)
		if err != nil {
			return err
		}
		defer key.Wipe()
		rand.Read(key.Bytes())
		create.Data = tpm2.NewTPMUSensitiveCreate(&tpm2.TPM2BSensitiveData{Buffer: key.Bytes()})
	}
	root, err := t.fileRoot(tr)
	if err != nil {
		return err
	}
	return t.session(tr, encryptIn, nil, func(s tpm2.Session) error {
		f.root = t.root.Name()
		return root.Use(tr, func(h tpm2.NamedHandle) error {
			rsp, err := tpm2.Create{
				ParentHandle: tpm2.AuthHandle{Handle: h.Handle, Name: h.Name, Auth: s},
				InSensitive:  tpm2.TPM2BSensitiveCreate{Sensitive: &create}, InPublic: tpm2.New2B(template),
			}.Execute(tr)
			if err != nil {
				return err
			}
			public, err := rsp.OutPublic.Contents()
			if err != nil {
				return err
			}
			f.public, f.private = *public, rsp.OutPrivate.Buffer
			return nil
		})
	})
}

// policyNow is the policy that the PCRs are what they are now, and that the PIN
// is right if there is one.
func (f *keyFile) policyNow(tr transport.TPM) ([]byte, error) {
	if err := checkPCRs(f.pcrs); err != nil {
		return nil, err
	}
	values := map[int][32]byte{}
	for _, pcr := range f.pcrs {
		rsp, err := tpm2.PCRRead{PCRSelectionIn: Selection([]int{pcr})}.Execute(tr)
		if err != nil {
			return nil, err
		}
		if len(rsp.PCRValues.Digests) != 1 || len(rsp.PCRValues.Digests[0].Buffer) != 32 {
			return nil, fmt.Errorf("the TPM has no PCR %d in bank sha256", pcr)
		}
		values[pcr] = [32]byte(rsp.PCRValues.Digests[0].Buffer)
	}
	policy, err := pcrPolicy(f.pcrs, values)
	if err != nil || f.emptyAuth {
		return policy, err
	}
	both := sha256.Sum256(binary.BigEndian.AppendUint32(policy, ccPolicyAuthValue))
	return both[:], nil
}

// publicKey returns the key in the type that kind has.
func (f *keyFile) publicKey(kind hsm.Kind) (any, error) {
	if kind == hsm.KindSeal {
		return nil, nil
	}
	o, err := newObject(f.public)
	if err != nil {
		return nil, err
	}
	public, err := o.publicKey()
	if err != nil || kind == hsm.KindP256 {
		return public, err
	}
	return public.ECDH()
}

// Which parameter a session encrypts: the first of the command, or of the answer.
// One that is no sized buffer cannot be encrypted.
var (
	encryptIn  = tpm2.AESEncryption(128, tpm2.EncryptIn)
	encryptOut = tpm2.AESEncryption(128, tpm2.EncryptOut)
)

// session runs f with a session that is salted to the storage root and knows the
// auth value.
func (t *TPM) session(tr transport.TPM, encrypt tpm2.AuthOption, auth []byte, f func(tpm2.Session) error) error {
	var s tpm2.Session
	var end func() error
	err := t.salted(tr, func(opts []tpm2.AuthOption) (err error) {
		s, end, err = tpm2.HMACSession(tr, tpm2.TPMAlgSHA256, nonceSize, append(opts, encrypt, tpm2.Auth(auth))...)
		return err
	})
	if err != nil {
		return err
	}
	return errors.Join(f(s), end())
}

// guarded is a key of a key file.
type guarded struct {
	tpm    *TPM
	file   *keyFile
	path   string
	object *Object
	kind   hsm.Kind
	pins   *pins
	info   hsm.Info
}

// Info describes the key.
func (g *guarded) Info() hsm.Info { return g.info }

// open loads a key file.
func (t *TPM) open(ctx context.Context, uri string, a Access, kinds ...hsm.Kind) (*guarded, error) {
	path, err := pathOf(uri)
	if err != nil {
		return nil, err
	}
	f, err := readKeyFile(path)
	if err != nil {
		return nil, fmt.Errorf("tpm: open %s: %w: %w", uri, hsm.ErrGone, err)
	}
	kind, err := f.kind()
	if err == nil && !slices.Contains(kinds, kind) {
		err = fmt.Errorf("it is a key of kind %s, not %s", kind, kinds[0])
	}
	if err != nil {
		return nil, fmt.Errorf("tpm: open %s: %w", uri, err)
	}
	if err := t.hasRoot(ctx, f.root); err != nil {
		return nil, fmt.Errorf("tpm: open %s: %w", uri, err)
	}
	o, err := t.loadUnder(ctx, "open "+uri, Blob{Public: tpm2.Marshal(f.public), Private: f.private}, t.fileRoot)
	if err != nil {
		return nil, err
	}
	return &guarded{t, f, path, o, kind, newPINs(a, "TPM key "+path), t.info(uri)}, nil
}

// hasRoot refuses a TPM with another storage root key than a key file names.
func (t *TPM) hasRoot(ctx context.Context, name []byte) error {
	if name == nil {
		return nil
	}
	found, err := t.StorageRoot(ctx)
	if err == nil && !bytes.Equal(found, name) {
		err = notRoot(found, name)
	}
	return err
}

// kind says what a key file's key is for, and refuses one that its TPM would
// give away, or whose guard would guard nothing. The TPM binds the attributes to
// the private half, so a file that lies about them does not load.
func (f *keyFile) kind() (hsm.Kind, error) {
	a := f.public.ObjectAttributes
	switch {
	case !a.FixedTPM || !a.FixedParent || !f.sealed && !a.SensitiveDataOrigin || a.Restricted:
		return "", errors.New("it was not made in the TPM, or may leave it, or is restricted; make another")
	case f.emptyAuth != a.NoDA:
		return "", errors.New("wrong pins are counted though its file says that it has none, or it has one and they are not; make another")
	case a.UserWithAuth != (len(f.pcrs) == 0) || len(f.pcrs) > 0 && len(f.public.AuthPolicy.Buffer) != sha256.Size:
		return "", errors.New("its file and its attributes name different guards")
	case f.sealed && f.public.Type == tpm2.TPMAlgKeyedHash && !a.SignEncrypt && !a.Decrypt:
		return hsm.KindSeal, nil
	case !f.sealed && f.public.Type == tpm2.TPMAlgECC && a.SignEncrypt && !a.Decrypt:
		return hsm.KindP256, nil
	case !f.sealed && f.public.Type == tpm2.TPMAlgECC && a.Decrypt && !a.SignEncrypt:
		return hsm.KindECDH, nil
	}
	return "", errors.New("it neither signs, nor agrees on secrets, nor seals")
}

// use runs f with a session in which the key may be used, after asking for its
// PIN if it has one.
func (g *guarded) use(ctx context.Context, what string, encrypt tpm2.AuthOption, f func(tr transport.TPM, s tpm2.Session) error) error {
	what += " by " + g.info.URI
	return g.withAuth(ctx, what, func(auth []byte) error {
		return g.tpm.Run(ctx, what, func(tr transport.TPM) error {
			if len(g.file.pcrs) > 0 {
				return g.policySession(tr, encrypt, auth, f)
			}
			return g.tpm.session(tr, encrypt, auth, func(s tpm2.Session) error { return f(tr, s) })
		})
	})
}

// withAuth calls f with the key's auth value: its PIN, or nothing.
func (g *guarded) withAuth(ctx context.Context, what string, f func(auth []byte) error) error {
	if g.file.emptyAuth {
		return f(nil)
	}
	return g.pins.with(ctx, g.tpm, what, f)
}

// policySession is session for a key that is bound to PCRs. The PIN is not sent
// if they are others.
func (g *guarded) policySession(tr transport.TPM, encrypt tpm2.AuthOption, auth []byte, f func(transport.TPM, tpm2.Session) error) error {
	var s tpm2.Session
	var end func() error
	err := g.tpm.salted(tr, func(opts []tpm2.AuthOption) (err error) {
		s, end, err = tpm2.PolicySession(tr, tpm2.TPMAlgSHA256, nonceSize, append(opts, encrypt, tpm2.Auth(auth))...)
		return err
	})
	if err != nil {
		return err
	}
	if err = g.satisfy(tr, s); err == nil {
		err = f(tr, s)
	}
	return errors.Join(err, end())
}

func (g *guarded) satisfy(tr transport.TPM, s tpm2.Session) error {
	if _, err := (tpm2.PolicyPCR{PolicySession: s.Handle(), Pcrs: Selection(g.file.pcrs)}).Execute(tr); err != nil {
		return err
	}
	if !g.file.emptyAuth {
		if _, err := (tpm2.PolicyAuthValue{PolicySession: s.Handle()}).Execute(tr); err != nil {
			return err
		}
	}
	rsp, err := tpm2.PolicyGetDigest{PolicySession: s.Handle()}.Execute(tr)
	if err != nil {
		return err
	}
	if !bytes.Equal(rsp.PolicyDigest.Buffer, g.object.public.AuthPolicy.Buffer) {
		return fmt.Errorf("%w: PCRs %v are not what they were when the key was made; boot what was booted then, or make another key", hsm.ErrDenied, g.file.pcrs)
	}
	return nil
}

// Close forgets the PIN.
func (g *guarded) Close() {
	g.pins.turn <- struct{}{}
	defer func() { <-g.pins.turn }()
	g.pins.close(fmt.Errorf("%w: %s was closed", hsm.ErrGone, g.info.URI))
}

// ChangePIN gives the key at uri another PIN. Its file is replaced; older copies
// of it still open with the old PIN. A wrong old PIN costs a try.
func (t *TPM) ChangePIN(ctx context.Context, uri string, old, new []byte) error {
	g, err := t.open(ctx, uri, Access{}, hsm.KindP256, hsm.KindECDH, hsm.KindSeal)
	if err != nil {
		return err
	}
	if g.file.emptyAuth {
		return fmt.Errorf("tpm: change the pin of %s: it has none; make another key", uri)
	}
	if err := errors.Join(checkPIN(old), checkPIN(new)); err != nil {
		return fmt.Errorf("tpm: change the pin of %s: %w", uri, err)
	}
	err = t.Run(ctx, "change the pin of "+uri, func(tr transport.TPM) error {
		root, err := t.fileRoot(tr)
		if err != nil {
			return err
		}
		return t.session(tr, encryptIn, old, func(s tpm2.Session) error {
			return root.Use(tr, func(parent tpm2.NamedHandle) error {
				return g.object.Use(tr, func(h tpm2.NamedHandle) error {
					rsp, err := tpm2.ObjectChangeAuth{
						ObjectHandle: tpm2.AuthHandle{Handle: h.Handle, Name: h.Name, Auth: s},
						ParentHandle: parent, NewAuth: tpm2.TPM2BAuth{Buffer: new},
					}.Execute(tr)
					if err != nil {
						return err
					}
					g.file.private = rsp.OutPrivate.Buffer
					return nil
				})
			})
		})
	})
	if err != nil {
		return t.triesLeft(ctx, err)
	}
	return g.file.write(g.path, false)
}

// Key opens a signing key. pinned is its public key as recorded at enrolment;
// nil takes what is there and is for enrolment only. The PIN is asked for at the
// first signature.
func (t *TPM) Key(ctx context.Context, uri string, pinned crypto.PublicKey, a Access) (hsm.Key, error) {
	g, err := t.open(ctx, uri, a, hsm.KindP256)
	if err != nil {
		return nil, err
	}
	public, err := g.object.publicKey()
	if err == nil && pinned != nil {
		err = hsm.SamePublic(pinned, public)
	}
	if err != nil {
		return nil, fmt.Errorf("tpm: open %s: %w", uri, err)
	}
	return &guardedKey{g, public}, nil
}

type guardedKey struct {
	*guarded
	public crypto.PublicKey
}

func (k *guardedKey) Public() crypto.PublicKey { return k.public }

func (k *guardedKey) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return k.SignContext(context.Background(), digest, opts)
}

func (k *guardedKey) SignContext(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if err := hsm.CheckInput(k.public, digest, opts); err != nil {
		return nil, err
	}
	var sig []byte
	err := k.use(ctx, "sign", encryptIn, func(tr transport.TPM, s tpm2.Session) error {
		return k.object.Use(tr, func(h tpm2.NamedHandle) (err error) {
			sig, err = signDigest(tr, tpm2.AuthHandle{Handle: h.Handle, Name: h.Name, Auth: s}, digest)
			return err
		})
	})
	if err != nil {
		return nil, err
	}
	if err := hsm.VerifySignature(k.public, digest, sig, opts); err != nil {
		return nil, fmt.Errorf("tpm: %w: %s returned a signature that its public key refuses", hsm.ErrWrongIdentity, k.info.URI)
	}
	return sig, nil
}

// Decrypter opens an agreement key. pinned is as for Key.
func (t *TPM) Decrypter(ctx context.Context, uri string, pinned *ecdh.PublicKey, a Access) (hsm.Decrypter, error) {
	g, err := t.open(ctx, uri, a, hsm.KindECDH)
	if err != nil {
		return nil, err
	}
	k, err := t.exchangeKey(g.object, uri)
	if err == nil && pinned != nil {
		err = hsm.SamePublic(pinned, k.public)
	}
	if err != nil {
		return nil, fmt.Errorf("tpm: open %s: %w", uri, err)
	}
	return &guardedDecrypter{g, k}, nil
}

type guardedDecrypter struct {
	*guarded
	key exchangeKey
}

func (d *guardedDecrypter) PublicKey() *ecdh.PublicKey { return d.key.public }
func (d *guardedDecrypter) Curve() ecdh.Curve          { return ecdh.P256() }

func (d *guardedDecrypter) ECDH(peer *ecdh.PublicKey) ([]byte, error) {
	return d.ECDHContext(context.Background(), peer)
}

func (d *guardedDecrypter) ECDHContext(ctx context.Context, peer *ecdh.PublicKey) ([]byte, error) {
	if err := checkPeer(peer); err != nil {
		return nil, err
	}
	var z []byte
	err := d.use(ctx, "agree on a secret", encryptOut, func(tr transport.TPM, s tpm2.Session) (err error) {
		z, err = d.key.zgen(tr, s, peer)
		return err
	})
	return z, err
}

// Sealer opens a sealing key: 32 bytes that the TPM keeps and gives out to one
// who satisfies their guard, in a session that nobody on the bus follows. With
// them AES-256-GCM seals here; they are wiped after each use.
func (t *TPM) Sealer(ctx context.Context, uri string, a Access) (hsm.Sealer, error) {
	g, err := t.open(ctx, uri, a, hsm.KindSeal)
	if err != nil {
		return nil, err
	}
	return &guardedSealer{g}, nil
}

// The bounds of what is sealed, in bytes, as on a token.
const (
	maxSecret = 4 << 10
	maxAD     = 1 << 16
	overhead  = 12 + 16 // nonce and tag
)

type guardedSealer struct{ *guarded }

// withKey calls f with the cipher, for one use.
func (s *guardedSealer) withKey(ctx context.Context, what string, f func(cipher.AEAD) error) error {
	var key []byte
	defer func() { clear(key) }()
	err := s.use(ctx, what, encryptOut, func(tr transport.TPM, session tpm2.Session) error {
		return s.object.Use(tr, func(h tpm2.NamedHandle) error {
			rsp, err := tpm2.Unseal{ItemHandle: tpm2.AuthHandle{Handle: h.Handle, Name: h.Name, Auth: session}}.Execute(tr)
			if err == nil {
				key = rsp.OutData.Buffer
			}
			return err
		})
	})
	if err != nil {
		return err
	}
	if len(key) != 32 {
		return fmt.Errorf("tpm: %s keeps %d bytes, a sealing key has 32", s.info.URI, len(key))
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return err
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return err
	}
	return f(aead)
}

func (s *guardedSealer) Seal(ctx context.Context, plaintext, ad []byte) (sealed []byte, err error) {
	if len(plaintext) == 0 || len(plaintext) > maxSecret || len(ad) > maxAD {
		return nil, fmt.Errorf("tpm: a secret has 1 to %d bytes, not %d, and its associated data up to %d, not %d", maxSecret, len(plaintext), maxAD, len(ad))
	}
	err = s.withKey(ctx, "seal", func(aead cipher.AEAD) error {
		sealed = aead.Seal(nil, nil, plaintext, ad)
		return nil
	})
	return sealed, err
}

func (s *guardedSealer) Unseal(ctx context.Context, sealed, ad []byte) (plaintext []byte, err error) {
	if len(sealed) <= overhead || len(sealed) > maxSecret+overhead || len(ad) > maxAD {
		return nil, fmt.Errorf("tpm: sealed secret of %d bytes or associated data of %d is out of bounds", len(sealed), len(ad))
	}
	err = s.withKey(ctx, "unseal", func(aead cipher.AEAD) error {
		plaintext, err = aead.Open(nil, nil, sealed, ad)
		if err != nil {
			return fmt.Errorf("tpm: unseal by %s: another key sealed it, or for another use, or it was changed: %w", s.info.URI, err)
		}
		return nil
	})
	return plaintext, err
}

// A Description is what a key file says of its key, after the TPM took it for a
// key of its own.
type Description struct {
	Kind   hsm.Kind
	Public any   // as from Generate
	PIN    bool  // it has one
	PCRs   []int // it is bound to
}

// Describe loads the key at uri and says what it is. It refuses a key that was
// not made in this TPM or may leave it.
func (t *TPM) Describe(ctx context.Context, uri string) (Description, error) {
	g, err := t.open(ctx, uri, Access{}, hsm.KindP256, hsm.KindECDH, hsm.KindSeal)
	if err != nil {
		return Description{}, err
	}
	public, err := g.file.publicKey(g.kind)
	return Description{g.kind, public, !g.file.emptyAuth, g.file.pcrs}, err
}

// WithKey calls f with the key at uri loaded and authorised by its auth value,
// the PIN if it has one. That is enough for what proves where a key is
// (TPM2_ActivateCredential); of a key bound to PCRs it is not enough to use it.
func (t *TPM) WithKey(ctx context.Context, uri string, a Access, what string, f func(tr transport.TPM, key tpm2.AuthHandle) error) error {
	g, err := t.open(ctx, uri, a, hsm.KindP256, hsm.KindECDH, hsm.KindSeal)
	if err != nil {
		return err
	}
	defer g.Close()
	return g.withAuth(ctx, what, func(auth []byte) error {
		return t.Run(ctx, what, func(tr transport.TPM) error {
			return t.session(tr, encryptIn, auth, func(s tpm2.Session) error {
				return g.object.Use(tr, func(h tpm2.NamedHandle) error {
					return f(tr, tpm2.AuthHandle{Handle: h.Handle, Name: h.Name, Auth: s})
				})
			})
		})
	})
}
