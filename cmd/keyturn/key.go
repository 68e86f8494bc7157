package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"github.com/spf13/cobra"

	attesttpm "github.com/keyturn/keyturn/attest/tpm"
	"github.com/keyturn/keyturn/cmd/internal/keys"
	"github.com/keyturn/keyturn/cmd/internal/ui"
	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/hsm/fido"
	"github.com/keyturn/keyturn/hsm/token"
	"github.com/keyturn/keyturn/hsm/yubikey"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/dsse"
)

func keyCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "key", Short: "make, look at, follow and destroy keys on your token or in your TPM"}
	cmd.AddCommand(keyInitCmd(a), keyNewCmd(a), keyListCmd(a), keyShowCmd(a), keyAttestCmd(a), keyRotateCmd(a), keyRetireCmd(a), keyPINCmd(a))
	return cmd
}

func keyInitCmd(a *app) *cobra.Command {
	var module, label string
	cmd := &cobra.Command{Use: "init", Short: "initialise an empty token: security officer's PIN, user PIN", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			so, err := a.newPIN()(ctx, "security officer's PIN for "+label)
			if err != nil {
				return err
			}
			defer so.Wipe()
			user, err := a.newPIN()(ctx, "user PIN for "+label)
			if err != nil {
				return err
			}
			defer user.Wipe()
			if err := token.Init(ctx, token.Config{Module: module}, label, so.Bytes(), user.Bytes()); err != nil {
				return err
			}
			a.Note("token %s is ready; make its keys with keyturn key new", label)
			return nil
		}}
	cmd.Flags().StringVar(&module, "module", "", "absolute path of the PKCS#11 module")
	cmd.Flags().StringVar(&label, "label", "", "label to give the token")
	return require(cmd, "module", "label")
}

func keyNewCmd(a *app) *cobra.Command {
	var kind, hybrid, seal string
	var pcrs []int
	var noPIN bool
	cmd := &cobra.Command{Use: "new URI", Short: "make a key on a token or in the TPM; it never leaves it", Args: cobra.ExactArgs(1),
		Long: `New makes one key. --kind is p256 (signs decisions), ecdh (receives shares),
ed25519 (signs checkpoints) or seal (keeps a notary's share, or the second half
of a hybrid key). It prints the public key as it goes into a charter.

With --hybrid an ecdh key gets an ML-KEM-768 key beside it, and what is dealt to
both withstands whoever breaks one (MLKEM768-P256, draft-ietf-hpke-pq). No
token holds such a key yet: its seed goes to FILE, sealed by the key that --seal
names, and is in this program's memory while a share is opened. FILE is mlkem768
and the sealing key seal in your configuration. Whoever loses FILE, or the
sealing key, cannot open their shares any more, as if the token were lost: keep
a copy of it.

A tpm:PATH key is kept in the file PATH, which is of use to this TPM only. It
gets a PIN of its own, and with --pcrs works only while these PCRs (bank
sha256) are what they are now. TPMs have no ed25519.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			pin := a.newPIN()
			if noPIN {
				pin = nil
			}
			if !slices.Contains([]hsm.Kind{hsm.KindP256, hsm.KindECDH, hsm.KindEd25519, hsm.KindSeal}, hsm.Kind(kind)) {
				return usage(fmt.Errorf("--kind %q: want p256, ecdh, ed25519 or seal", kind))
			}
			if (hybrid != "") != (seal != "") || hybrid != "" && hsm.Kind(kind) != hsm.KindECDH {
				return usage(errors.New("a hybrid key has --kind ecdh, --hybrid FILE and --seal URI"))
			}
			if hybrid != "" {
				_, key, err := a.keyring().GenerateHybrid(cmd.Context(), args[0], seal, hybrid, pcrs, pin)
				if err != nil {
					return err
				}
				return a.printPublic(key)
			}
			c, err := a.keyring().Generate(cmd.Context(), args[0], hsm.Kind(kind), pcrs, pin)
			if err != nil {
				return err
			}
			return a.printNew(c)
		}}
	cmd.Flags().StringVar(&kind, "kind", "", "p256, ecdh, ed25519 or seal")
	cmd.Flags().StringVar(&hybrid, "hybrid", "", "of an ecdh key: FILE to write its ML-KEM-768 half to")
	cmd.Flags().StringVar(&seal, "seal", "", "with --hybrid: URI of the key, of kind seal, that seals that half")
	cmd.Flags().IntSliceVar(&pcrs, "pcrs", nil, "tpm: only: PCRs to bind the key to, ascending, such as 4,7")
	cmd.Flags().BoolVar(&noPIN, "no-pin", false, "tpm: only: whoever may use the TPM may use the key")
	return require(cmd, "kind")
}

// newPIN asks for a new PIN: twice on a terminal, one line of --pin-fd.
func (a *app) newPIN() hsm.PIN {
	if a.pinFD > 0 {
		return a.pinSource()
	}
	return keys.Twice(a.pinSource())
}

func (a *app) printNew(c *keys.Custody) error {
	if c.Public == nil {
		a.Note("made sealing key %s", c.URI)
		return nil
	}
	return a.printKey(c)
}

// printKey prints a public key with the class that its holder allows.
func (a *app) printKey(c *keys.Custody) error {
	key, err := signoff.NewPublicKey(c.Public, c.Class)
	if err != nil {
		return err
	}
	return a.printPublic(key)
}

func (a *app) printPublic(key signoff.PublicKey) error {
	b, err := dsse.Encode(key)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(a.Out, "%s\n", b)
	return err
}

func keyListCmd(a *app) *cobra.Command {
	return &cobra.Command{Use: "list URI", Short: "list the keys on a token", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			t, _, err := a.keyring().Token(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			list, err := t.List(cmd.Context())
			if err != nil {
				return err
			}
			views := []keyView{}
			for _, k := range list {
				views = append(views, viewKey(k))
			}
			return a.Answer(views, func(w writer) {
				rows := [][]string{{"LABEL", "KIND", "LEAVES THE TOKEN"}}
				for _, v := range views {
					rows = append(rows, []string{v.Label, v.Kind, map[bool]string{true: "no", false: "YES"}[v.Kept]})
					if v.Fingerprint != "" {
						rows = append(rows, []string{"  " + v.Fingerprint})
					}
				}
				ui.Table(w, rows)
			})
		}}
}

type keyView struct {
	Label       string `json:"label"`
	Kind        string `json:"kind"`
	Fingerprint string `json:"fingerprint"`
	Kept        bool   `json:"kept"` // sensitive and not extractable
}

func viewKey(k token.KeyInfo) keyView {
	v := keyView{Label: k.Label, Kind: string(k.Kind), Kept: k.Sensitive && !k.Extractable}
	if v.Kind == "" {
		v.Kind = "other"
	}
	if fp, err := hsm.Fingerprint(k.Public); err == nil {
		v.Fingerprint = dsse.Digest(fp).String()
	}
	return v
}

func keyShowCmd(a *app) *cobra.Command {
	return &cobra.Command{Use: "show URI", Short: "print the public key of a key, as it goes into a charter", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			u, err := hsm.ParseURI(args[0])
			if err != nil {
				return err
			}
			c, err := a.describeKey(cmd.Context(), u)
			if err != nil {
				return err
			}
			if c.Public == nil {
				return fmt.Errorf("%s is a sealing key: it has no public half", args[0])
			}
			return a.printKey(c)
		}}
}

// custodyView is the answer of key attest.
type custodyView struct {
	URI         string `json:"uri"`
	Kind        string `json:"kind"`
	Fingerprint string `json:"fingerprint,omitempty"` // none of a sealing key
	Class       string `json:"class"`
	Holder      string `json:"holder"`
	Made        bool   `json:"made"`
	Stays       bool   `json:"stays"`
	Stayed      bool   `json:"stayed"`
	PIN         bool   `json:"pin"`
	Touch       string `json:"touch,omitempty"` // never, always or cached; none if the holder does not tell
	PCRs        []int  `json:"pcrs,omitempty"`
	TriesLeft   string `json:"triesLeft,omitempty"`
	Maker       string `json:"maker,omitempty"` // of the holder, by a certificate of its maker that was given
	EK          string `json:"ek,omitempty"`    // digest of a TPM's endorsement key
}

func keyAttestCmd(a *app) *cobra.Command {
	var p makersProof
	cmd := &cobra.Command{Use: "attest URI", Short: "say what a token or TPM says of a key: made there, cannot leave", Args: cobra.ExactArgs(1),
		Long: `Attest asks the token (CKA_LOCAL, CKA_SENSITIVE, CKA_EXTRACTABLE and their
histories) or the TPM (the attributes it bound to the key) what it says of a
key. That is its word to you, here and now, and PKCS#11 has no more to give.

A proof needs a certificate of the holder's maker, below a root in a directory:

- Of a tpm: key, --ek-roots DIR. The TPM must answer a challenge that only one
  with both its endorsement key and this very key can answer.
- Of a key in the PIV application of a YubiKey, --maker-roots DIR and
  --certificates FILE: the certificate that "yubico-piv-tool -a attest" gives for
  the slot, then that of slot f9, both PEM.
- Of a FIDO key, --maker-roots DIR, --attestation FILE and --challenge FILE: as
  ssh-keygen had and wrote them with -O challenge and -O write-attestation.

The proof is to this program, on this machine, so it makes no key "attested" in
a charter: there a key is "witnessed", by people who watched it made and saw
this answer.

It exits 1 if the holder does not say that it made the key and keeps it.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			v, err := a.attestKey(cmd.Context(), args[0], p)
			if err != nil {
				return err
			}
			if err := a.Answer(v, func(w writer) { v.write(w) }); err != nil {
				return err
			}
			if !v.Made || !v.Stays || !v.Stayed {
				return fmt.Errorf("%s does not say that it made this key and always kept it", v.Holder)
			}
			return nil
		}}
	f := cmd.Flags()
	f.StringVar(&p.ekRoots, "ek-roots", "", "tpm: only: directory with the certificates of TPM makers, PEM or DER")
	f.StringVar(&p.roots, "maker-roots", "", "directory with the certificates of token makers, PEM or DER")
	f.StringVar(&p.certificates, "certificates", "", "a YubiKey's certificates of a PIV key, PEM")
	f.StringVar(&p.attestation, "attestation", "", "a FIDO authenticator's attestation, as ssh-keygen wrote it")
	f.StringVar(&p.challenge, "challenge", "", "the file of the challenge that the FIDO key was made with")
	cmd.MarkFlagsMutuallyExclusive("ek-roots", "maker-roots")
	cmd.MarkFlagsMutuallyExclusive("certificates", "attestation")
	cmd.MarkFlagsRequiredTogether("attestation", "challenge")
	return cmd
}

// makersProof says where a proof by a holder's maker is to be found.
type makersProof struct{ ekRoots, roots, certificates, attestation, challenge string }

func (a *app) attestKey(ctx context.Context, uri string, p makersProof) (*custodyView, error) {
	if (p.roots == "") != (p.certificates == "" && p.attestation == "") {
		return nil, usage(errors.New("--maker-roots goes with --certificates or with --attestation"))
	}
	u, err := hsm.ParseURI(uri)
	if err != nil {
		return nil, err
	}
	switch {
	case p.ekRoots != "" && u.Scheme != hsm.SchemeTPM:
		return nil, usage(errors.New("--ek-roots is for tpm: keys; see --maker-roots"))
	case p.roots != "" && u.Scheme == hsm.SchemeTPM:
		return nil, usage(errors.New("--maker-roots is not for tpm: keys; see --ek-roots"))
	case p.roots == "" && u.Scheme == hsm.SchemeSSHAgent:
		return nil, usage(errors.New("an SSH agent says nothing of where a key is; --maker-roots has its maker prove it"))
	}
	c, err := a.describeKey(ctx, u)
	if err != nil {
		return nil, err
	}
	v := &custodyView{URI: c.URI, Kind: string(c.Kind), Class: string(c.Class), Holder: c.Holder(), Made: c.Made, Stays: c.Stays, Stayed: c.Stayed,
		PIN: c.PIN, PCRs: c.PCRs, TriesLeft: c.TriesLeft}
	if fp, err := hsm.Fingerprint(c.Public); err == nil {
		v.Fingerprint = dsse.Digest(fp).String()
	}
	switch {
	case p.ekRoots != "":
		v.Maker, v.EK, err = a.proveKey(ctx, uri, p.ekRoots)
	case p.roots != "":
		err = a.proveByMaker(v, c.Public, p)
	}
	return v, err
}

// describeKey asks the holder of a key. An agent tells the public key alone.
func (a *app) describeKey(ctx context.Context, u hsm.URI) (*keys.Custody, error) {
	if u.Scheme != hsm.SchemeSSHAgent {
		return a.keyring().Describe(ctx, u.String())
	}
	k, err := a.keyring().Key(ctx, u.String(), nil)
	if err != nil {
		return nil, err
	}
	return &keys.Custody{URI: u.String(), Public: k.Public(), Class: k.Info().Class}, nil
}

// proveByMaker puts what a maker's certificate proves in the place of what a holder says.
func (a *app) proveByMaker(v *custodyView, public any, p makersProof) error {
	roots, intermediates, err := a.readRoots(p.roots)
	if err != nil {
		return err
	}
	now := time.Now()
	if p.certificates != "" {
		b, err := readEvidence(p.certificates)
		if err != nil {
			return err
		}
		var chain []*x509.Certificate
		for _, der := range certificates(b) {
			c, err := x509.ParseCertificate(der)
			if err != nil {
				return fmt.Errorf("%s: %w", p.certificates, err)
			}
			chain = append(chain, c)
		}
		s, err := yubikey.Verify(chain, roots, intermediates, public, now)
		if err != nil {
			return err
		}
		v.Maker, v.PIN, v.Touch = s.Maker, s.PIN != "never", s.Touch
		v.Holder = fmt.Sprintf("YubiKey %d, firmware %s, PIV slot %s", s.Serial, s.Firmware, s.Slot)
	} else {
		k, ok := public.(*hsm.SecurityKey)
		if !ok {
			return usage(fmt.Errorf("--attestation is for FIDO keys, and %s is none", v.URI))
		}
		file, err := readEvidence(p.attestation)
		if err != nil {
			return err
		}
		challenge, err := readEvidence(p.challenge)
		if err != nil {
			return err
		}
		s, err := fido.Verify(file, challenge, roots, intermediates, k, now)
		if err != nil {
			return err
		}
		// That a PIN was checked when the key was made says nothing of its uses.
		v.Maker, v.Touch = s.Maker, "always"
		v.Holder = "FIDO authenticator of model " + s.Model
	}
	v.Made, v.Stays, v.Stayed = true, true, true
	return nil
}

// proveKey has the TPM prove that it holds a key, and names its maker.
func (a *app) proveKey(ctx context.Context, uri, dir string) (maker, ek string, err error) {
	roots, intermediates, err := a.readRoots(dir)
	if err != nil {
		return "", "", err
	}
	t, err := a.keyring().TPM()
	if err != nil {
		return "", "", err
	}
	proved, err := (&attesttpm.Device{TPM: t}).ProveKey(ctx, uri, a.keyring().Access(), roots, intermediates, time.Now())
	if err != nil {
		return "", "", err
	}
	maker = proved.Manufacturer
	if proved.Emulated {
		maker += ", EMULATED"
	}
	return maker, dsse.Digest(proved.ID).String(), nil
}

func (v *custodyView) write(w writer) {
	yes := map[bool]string{true: "yes", false: "NO"}
	by := v.Holder + ", and no certificate"
	switch {
	case v.EK != "":
		by = fmt.Sprintf("%s, proved by endorsement key %s of maker %s", v.Holder, v.EK, v.Maker)
	case v.Maker != "":
		by = fmt.Sprintf("%s, proved by a certificate under %s", v.Holder, v.Maker)
	}
	rows := [][]string{{"key", v.URI}, {"kind", v.Kind}, {"fingerprint", v.Fingerprint}, {"class", v.Class}, {"says so", by},
		{"made there", yes[v.Made]}, {"cannot leave", yes[v.Stays]}, {"never could", yes[v.Stayed]}, {"PIN", yes[v.PIN]}, {"touch", v.Touch}, {"tries left", v.TriesLeft}}
	if len(v.PCRs) > 0 {
		rows = append(rows, []string{"bound to PCRs", fmt.Sprint(v.PCRs)})
	}
	ui.Table(w, slices.DeleteFunc(rows, func(r []string) bool { return r[1] == "" }))
}

func keyRotateCmd(a *app) *cobra.Command {
	var out string
	cmd := &cobra.Command{Use: "rotate URI NEW-URI", Short: "make the key that is to follow one, beside it", Args: cobra.ExactArgs(2),
		Long: `Rotate makes a key of the same kind, and for a tpm: key bound to the same
PCRs, under another label or in another file, and prints its public key. The
old key goes on working and goes on counting: which keys count is decided by
people, in the log. Retire it once they took the new one.

A person's token is replaced as a whole. Of a key that the roster of your
configuration knows, rotate puts the new one into the token's file, which takes
the signing and the exchange key in any order, and once it has what the old token
has it prints the request that puts the new token in the old one's place. A
production charter takes class witnessed: see keyturn ceremony.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			old, err := a.keyring().Describe(ctx, args[0])
			if err != nil {
				return err
			}
			next, err := a.follows(old, out)
			if err != nil {
				return err
			}
			pin := a.newPIN()
			if !old.PIN {
				pin = nil
			}
			c, err := a.keyring().Generate(ctx, args[1], old.Kind, old.PCRs, pin)
			if err != nil {
				return err
			}
			if err := a.printNew(c); err != nil || next == nil {
				return err
			}
			return a.putNext(next, c)
		}}
	cmd.Flags().StringVar(&out, "token-file", "", "file of the new token (default NAME-token.json)")
	return cmd
}

// A nextToken is the file of the token that is to follow one of the roster's.
type nextToken struct {
	owner authority.Owned // the old one
	file  string
	token signoff.Token // what the file has so far
}

// place is where the key goes that follows old.
func (n *nextToken) place(old dsse.Digest) *signoff.PublicKey {
	if old == n.owner.ID() {
		return &n.token.Signing
	}
	return &n.token.Exchange
}

// follows reads the file that takes the key after old; nil if old is nobody's
// here and no file was named. It comes before the key is made.
func (a *app) follows(old *keys.Custody, file string) (*nextToken, error) {
	owner, err := a.ownerOf(old)
	if err != nil {
		return nil, err
	}
	if owner == nil {
		if file != "" {
			return nil, ui.WithHint(fmt.Errorf("--token-file %s: %s is in no token of the people that the configuration knows", file, old.URI), "keyturn people lists them")
		}
		return nil, nil
	}
	if old.Kind == hsm.KindECDH && owner.Exchange.Hybrid() {
		return nil, ui.WithHint(fmt.Errorf("%s is half of a hybrid key of %s, which a P-256 key does not follow", old.URI, owner.Name), "make the next one with keyturn key new --hybrid, and put it into the token's file as exchange")
	}
	n := &nextToken{owner: *owner, file: file}
	if file == "" {
		n.file = owner.Name + "-token.json"
	}
	b, err := readIfThere(n.file)
	if err != nil || b == nil {
		return n, err
	}
	if err := dsse.Decode(b, &n.token); err != nil {
		return nil, fmt.Errorf("%s: %w", n.file, err)
	}
	if key := n.place(fingerprint(old)); len(key.Encoded) > 0 {
		return nil, ui.WithHint(fmt.Errorf("%s: a key is in the place of this one already, %s", n.file, key.Fingerprint()), "it is of another rotation: move it away, or name another with --token-file")
	}
	return n, nil
}

// putNext puts the new key into the file, and says what comes next.
func (a *app) putNext(n *nextToken, c *keys.Custody) error {
	key, err := signoff.NewPublicKey(c.Public, c.Class)
	if err != nil {
		return err
	}
	missing := "signing"
	if c.Kind == hsm.KindECDH {
		n.token.Exchange = key
	} else {
		n.token.Signing, missing = key, "exchange"
	}
	b, err := dsse.Encode(n.token)
	if err != nil {
		return err
	}
	if err := writeFile(n.file, b); err != nil {
		return err
	}
	if len(n.token.Signing.Encoded) == 0 || n.token.HoldsShare() != n.owner.HoldsShare() {
		a.Note("next: keyturn key rotate URI NEW-URI --token-file %s, with the token's %s key", n.file, missing)
		return nil
	}
	a.Note("next: keyturn request people --purpose '...' --token %s=%s --retire %s=%s", n.owner.Name, n.file, n.owner.Name, n.owner.ID())
	return nil
}

// ownerOf finds the token of the roster that has a key; nil if there is none, or
// no configuration that tells.
func (a *app) ownerOf(c *keys.Custody) (*authority.Owned, error) {
	if c.Public == nil {
		return nil, nil
	}
	if err := a.load(); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		return nil, err
	}
	people, err := a.people()
	if err != nil {
		return nil, err
	}
	fp := fingerprint(c)
	for _, t := range people.Tokens() {
		if t.ID() == fp || t.HoldsShare() && t.Exchange.P256Half().Fingerprint() == fp {
			return &t, nil
		}
	}
	return nil, nil
}

// fingerprint is zero of a key without a public half.
func fingerprint(c *keys.Custody) dsse.Digest {
	fp, err := hsm.Fingerprint(c.Public)
	if err != nil {
		return dsse.Digest{}
	}
	return fp
}

func keyRetireCmd(a *app) *cobra.Command {
	return &cobra.Command{Use: "retire URI", Short: "destroy a key for good", Args: cobra.ExactArgs(1),
		Long: `Retire destroys a key: what was sealed to it cannot be opened with it again,
and its person cannot sign with it. The key that your configuration names is
refused. Of a tpm: key it removes the file; a copy of the file still works in
this TPM for whoever has the PIN.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.keyring().Describe(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if err := a.notMine(c); err != nil {
				return err
			}
			a.Note("%s key %s of %s", c.Kind, c.URI, c.Holder())
			if err := a.Confirm(cmd.Context(), "Destroy it for good?", "destroy"); err != nil {
				return err
			}
			if err := a.keyring().Destroy(cmd.Context(), args[0]); err != nil {
				return err
			}
			a.Note("the key is destroyed")
			return nil
		}}
}

// notMine refuses a key that counts, by its public half.
func (a *app) notMine(c *keys.Custody) error {
	owner, err := a.ownerOf(c)
	if err != nil || owner == nil {
		return err
	}
	return ui.WithHint(fmt.Errorf("%s is a key of %s, as the log was last seen: its vote and shares would be gone", c.URI, owner.Name),
		"have another key take its place first; keyturn people looks at the log again")
}

func keyPINCmd(a *app) *cobra.Command {
	return &cobra.Command{Use: "pin URI", Short: "change the PIN of a token, or of a tpm: key", Args: cobra.ExactArgs(1),
		Long: `Pin asks for the PIN and twice for the new one; with --pin-fd it reads two
lines. A wrong PIN costs a try. Of a tpm: key the file is replaced: older
copies of it open with the old PIN.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.keyring().ChangePIN(cmd.Context(), args[0], a.newPIN()); err != nil {
				return err
			}
			a.Note("the PIN was changed")
			return nil
		}}
}
