package tpm

import (
	"bytes"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/google/go-tpm/tpm2"
	"github.com/keyturn/keyturn/hsm/durable"
	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// A key file is a TPMKey (ASN.1 Specification for TPM 2.0 Key Files, the format
// of tpm2-openssl and tpm2-tss-engine) in PEM. The key in it is a child of a
// primary key of the owner hierarchy, and means nothing to another TPM.
//
//	TPMKey ::= SEQUENCE {
//	    type      OBJECT IDENTIFIER,
//	    emptyAuth [0] EXPLICIT BOOLEAN OPTIONAL,
//	    policy    [1] EXPLICIT SEQUENCE OF SEQUENCE {
//	        commandCode   [0] EXPLICIT INTEGER,
//	        commandPolicy [1] EXPLICIT OCTET STRING } OPTIONAL,
//	    parent    INTEGER,
//	    pubkey    OCTET STRING,   -- TPM2B_PUBLIC
//	    privkey   OCTET STRING }  -- TPM2B_PRIVATE
//
// The format's other members are refused: nothing here would follow them. In
// front of the PEM may stand one line (RFC 7468, section 5.2, has readers pass
// over it), the name of the storage root key in hexadecimal:
//
//	Keyturn-Storage-Root: 000b…
type keyFile struct {
	root      []byte // name of the TPM's storage root key, 34 bytes; nil if the file does not say
	sealed    bool   // data, not a key
	emptyAuth bool   // no PIN
	pcrs      []int
	public    tpm2.TPMTPublic
	private   []byte // content of the TPM2B_PRIVATE
}

const (
	keyFilePEM = "TSS2 PRIVATE KEY"
	maxKeyFile = 8 << 10 // bytes; one of ours has 600
	rootLine   = "Keyturn-Storage-Root: "
)

var (
	oidLoadable = asn1.ObjectIdentifier{2, 23, 133, 10, 1, 3}
	oidSealed   = asn1.ObjectIdentifier{2, 23, 133, 10, 1, 5}
)

// marshal writes the file.
func (f *keyFile) marshal() ([]byte, error) {
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		if f.sealed {
			b.AddASN1ObjectIdentifier(oidSealed)
		} else {
			b.AddASN1ObjectIdentifier(oidLoadable)
		}
		b.AddASN1(explicit(0), func(b *cryptobyte.Builder) { b.AddASN1Boolean(f.emptyAuth) })
		if len(f.pcrs) > 0 {
			b.AddASN1(explicit(1), func(b *cryptobyte.Builder) { b.AddASN1(cbasn1.SEQUENCE, f.addPolicy) })
		}
		b.AddASN1Int64(int64(tpm2.TPMRHOwner))
		b.AddASN1OctetString(tpm2.Marshal(tpm2.New2B(f.public)))
		b.AddASN1OctetString(tpm2.Marshal(tpm2.TPM2BPrivate{Buffer: f.private}))
	})
	der, err := b.Bytes()
	if err != nil {
		return nil, err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: keyFilePEM, Bytes: der})
	if f.root == nil {
		return text, nil
	}
	return fmt.Appendf(nil, "%s%x\n%s", rootLine, f.root, text), nil
}

// addPolicy writes the commands that satisfy the key's policy.
func (f *keyFile) addPolicy(b *cryptobyte.Builder) {
	add := func(command uint32, parameters []byte) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1(explicit(0), func(b *cryptobyte.Builder) { b.AddASN1Int64(int64(command)) })
			b.AddASN1(explicit(1), func(b *cryptobyte.Builder) { b.AddASN1OctetString(parameters) })
		})
	}
	add(ccPolicyPCR, pcrParameters(f.pcrs))
	if !f.emptyAuth {
		add(ccPolicyAuthValue, nil)
	}
}

// pcrParameters are those of TPM2_PolicyPCR (Part 3, section 23.7): no digest,
// so that the TPM takes the PCRs as they are, and the selection.
func pcrParameters(pcrs []int) []byte { return append([]byte{0, 0}, tpm2.Marshal(Selection(pcrs))...) }

func explicit(n uint8) cbasn1.Tag { return cbasn1.Tag(n).ContextSpecific().Constructed() }

// readKeyFile reads a key file.
func readKeyFile(path string) (*keyFile, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	if err != nil {
		return nil, err
	}
	return parseKeyFile(text)
}

func parseKeyFile(text []byte) (*keyFile, error) {
	if len(text) > maxKeyFile {
		return nil, fmt.Errorf("more than %d bytes are no key file", maxKeyFile)
	}
	root, text, err := cutRoot(text)
	if err != nil {
		return nil, err
	}
	block, rest := pem.Decode(text)
	if block == nil || block.Type != keyFilePEM || len(block.Headers) > 0 || len(bytes.TrimSpace(rest)) > 0 {
		return nil, fmt.Errorf("not one %s in PEM", keyFilePEM)
	}
	f, err := parseTPMKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", keyFilePEM, err)
	}
	f.root = root
	return f, nil
}

// cutRoot takes the storage root's line off, if there is one.
func cutRoot(text []byte) (root, rest []byte, err error) {
	line, rest, _ := bytes.Cut(text, []byte("\n"))
	name, found := bytes.CutPrefix(line, []byte(rootLine))
	if !found {
		return nil, text, nil
	}
	if root, err = hex.DecodeString(string(name)); err != nil || len(root) != nameSize {
		return nil, nil, fmt.Errorf("%q is not followed by the name of a key, %d bytes in hexadecimal", rootLine, nameSize)
	}
	return root, rest, nil
}

func parseTPMKey(der []byte) (*keyFile, error) {
	f := &keyFile{}
	input := cryptobyte.String(der)
	var s, policy, public, private cryptobyte.String
	var oid asn1.ObjectIdentifier
	var hasAuth, hasPolicy bool
	var parent int64
	var auth cryptobyte.String
	switch {
	case !input.ReadASN1(&s, cbasn1.SEQUENCE) || !input.Empty() || !s.ReadASN1ObjectIdentifier(&oid):
		return nil, errors.New("not a TPMKey")
	case !oid.Equal(oidLoadable) && !oid.Equal(oidSealed):
		return nil, fmt.Errorf("type %v is neither a loadable key nor sealed data", oid)
	case !s.ReadOptionalASN1(&auth, &hasAuth, explicit(0)) || !s.ReadOptionalASN1(&policy, &hasPolicy, explicit(1)):
		return nil, errors.New("damaged before its parent")
	case hasAuth && (!auth.ReadASN1Boolean(&f.emptyAuth) || !auth.Empty()):
		return nil, errors.New("damaged emptyAuth")
	case !s.ReadASN1Integer(&parent):
		return nil, errors.New("it has members that are not understood here, or no parent")
	case parent != int64(tpm2.TPMRHOwner):
		return nil, fmt.Errorf("its parent is 0x%x; only keys of the owner hierarchy (0x%x) are used", parent, uint32(tpm2.TPMRHOwner))
	case !s.ReadASN1((*cryptobyte.String)(&public), cbasn1.OCTET_STRING) || !s.ReadASN1(&private, cbasn1.OCTET_STRING) || !s.Empty():
		return nil, errors.New("damaged after its parent")
	}
	f.sealed = oid.Equal(oidSealed)
	if err := f.parseAreas(public, private); err != nil {
		return nil, err
	}
	if hasPolicy {
		return f, f.parsePolicy(policy)
	}
	return f, nil
}

func (f *keyFile) parseAreas(public, private []byte) error {
	pub, err := tpm2.Unmarshal[tpm2.TPM2BPublic](public)
	if err != nil {
		return fmt.Errorf("public area: %w", err)
	}
	area, err := pub.Contents()
	if err != nil {
		return fmt.Errorf("public area: %w", err)
	}
	priv, err := tpm2.Unmarshal[tpm2.TPM2BPrivate](private)
	if err != nil {
		return fmt.Errorf("private area: %w", err)
	}
	f.public, f.private = *area, priv.Buffer
	return nil
}

// parsePolicy takes the two policies that addPolicy writes, and no others.
func (f *keyFile) parsePolicy(policy cryptobyte.String) error {
	var list cryptobyte.String
	if !policy.ReadASN1(&list, cbasn1.SEQUENCE) || !policy.Empty() {
		return errors.New("damaged policy")
	}
	type command struct {
		code       uint32
		parameters []byte
	}
	var commands []command
	for !list.Empty() {
		var one, code, parameters, octets cryptobyte.String
		var c command
		if !list.ReadASN1(&one, cbasn1.SEQUENCE) || !one.ReadASN1(&code, explicit(0)) || !code.ReadASN1Integer(&c.code) || !code.Empty() ||
			!one.ReadASN1(&parameters, explicit(1)) || !parameters.ReadASN1(&octets, cbasn1.OCTET_STRING) || !parameters.Empty() || !one.Empty() {
			return errors.New("damaged policy")
		}
		c.parameters = octets
		commands = append(commands, c)
	}
	want := 2
	if f.emptyAuth {
		want = 1
	}
	if len(commands) != want || commands[0].code != ccPolicyPCR || want == 2 && (commands[1].code != ccPolicyAuthValue || len(commands[1].parameters) > 0) {
		return errors.New("a policy other than PCRs, or PCRs and a PIN, is not understood here")
	}
	return f.parsePCRs(commands[0].parameters)
}

func (f *keyFile) parsePCRs(parameters []byte) error {
	for pcr := 0; pcr <= maxPCR && len(parameters) > 3; pcr++ {
		if bitmap := parameters[len(parameters)-3:]; bitmap[pcr/8]&(1<<(pcr%8)) != 0 {
			f.pcrs = append(f.pcrs, pcr)
		}
	}
	if len(f.pcrs) == 0 || !bytes.Equal(parameters, pcrParameters(f.pcrs)) {
		return errors.New("its policy selects other PCRs than some of bank sha256")
	}
	return nil
}

// write replaces the file at path, or makes it if it must be new.
func (f *keyFile) write(path string, fresh bool) error {
	text, err := f.marshal()
	if err != nil {
		return err
	}
	if fresh {
		err := durable.Create(path, text, 0o600)
		if errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("%w; a key is never overwritten", err)
		}
		return err
	}
	return durable.Replace(path, text, 0o600)
}
