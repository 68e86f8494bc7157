package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/keyturn/keyturn/attest"
	"github.com/keyturn/keyturn/attest/eventlog"
	"github.com/keyturn/keyturn/attest/ima"
	"github.com/keyturn/keyturn/cmd/internal/ui"
	"github.com/keyturn/keyturn/signoff/dsse"
)

// maxEvidence bounds a file that attest reads, in bytes.
const maxEvidence = 256 << 20

func attestCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "attest", Short: "look at what a machine's TPM, firmware and kernel say",
		Long: `Attest reads evidence from files. It needs no configuration. It refuses, with
one line and exit code 1, what is malformed, inconsistent or worthless.`}
	cmd.AddCommand(eventlogCmd(a), imaCmd(a), quoteCmd(a), ekcertCmd(a), rootsCmd(a))
	return cmd
}

// readEvidence reads a file of bounded size. Files below /sys say that they
// have no size, so the bound is on what is read.
func readEvidence(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := readAtMost(f, maxEvidence)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return b, nil
}

func eventlogCmd(a *app) *cobra.Command {
	var bank, expect string
	cmd := &cobra.Command{Use: "eventlog FILE", Short: "replay a firmware event log (binary_bios_measurements)", Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if err := checkHash("bank", bank); err != nil {
				return err
			}
			s, err := summarise(args[0], bank, expect)
			if err != nil {
				return err
			}
			return a.Answer(s, func(w writer) { eventlogText(w, s, expect != "") })
		}}
	cmd.Flags().StringVar(&bank, "bank", "sha256", "hash bank: sha1, sha256, sha384 or sha512")
	cmd.Flags().StringVar(&expect, "expect", "", `file with the PCRs to lead to: {"0":"hex",...}, or what --json or tpm2_pcrread printed`)
	return cmd
}

// checkHash refuses a word that names no hash of ours.
func checkHash(flag, name string) error {
	if slices.Contains([]string{"sha1", "sha256", "sha384", "sha512"}, name) {
		return nil
	}
	return usage(fmt.Errorf("--%s %q: want sha1, sha256, sha384 or sha512", flag, name))
}

func summarise(file, bank, expect string) (*eventlog.Summary, error) {
	data, err := readEvidence(file)
	if err != nil {
		return nil, err
	}
	l, err := eventlog.Parse(data)
	if err != nil {
		return nil, err
	}
	var want eventlog.PCRs
	if expect != "" {
		b, err := readEvidence(expect)
		if err != nil {
			return nil, err
		}
		// A file may hold several machines' values under their logs' names.
		if want, err = eventlog.DecodePCRs(b, bank, baseName(file)); err != nil {
			return nil, err
		}
	}
	return l.Summary(bank, want)
}

// baseName is the file's name without directory and ending.
func baseName(file string) string { return strings.TrimSuffix(filepath.Base(file), filepath.Ext(file)) }

func eventlogText(w writer, s *eventlog.Summary, compared bool) {
	fmt.Fprintf(w, "events       %d, bank %s\n", s.Events, s.Bank)
	for _, i := range slices.Sorted(maps.Keys(s.PCRs)) {
		fmt.Fprintf(w, "PCR %-8d %x\n", i, s.PCRs[i])
	}
	secure := map[eventlog.State]string{eventlog.On: "on", eventlog.Off: "off"}[s.SecureBoot]
	fmt.Fprintf(w, "secure boot  %s\n", orElse(secure, "not to be told from this log: "+s.SecureBootReason))
	for _, d := range s.BootApplications {
		fmt.Fprintf(w, "booted       %x\n", d)
	}
	if compared {
		fmt.Fprintln(w, "expected     the log leads to every value given")
	} else {
		fmt.Fprintln(w, "             what the log says; only a quote proves it")
	}
}

func imaCmd(a *app) *cobra.Command {
	var hash string
	cmd := &cobra.Command{Use: "ima FILE", Short: "replay a kernel measurement list, binary or ASCII", Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if err := checkHash("template-hash", hash); err != nil {
				return err
			}
			data, err := readEvidence(args[0])
			if err != nil {
				return err
			}
			l, err := ima.Parse(data)
			if err != nil {
				return err
			}
			s, err := l.Summary(hash)
			if err != nil {
				return err
			}
			return a.Answer(s, func(w writer) {
				fmt.Fprintf(w, "template     %s\nentries      %d, of which %d violations\n", s.Template, s.Entries, s.Violations)
				for _, i := range slices.Sorted(maps.Keys(s.PCRs)) {
					fmt.Fprintf(w, "PCR %-8d %x\n", i, s.PCRs[i])
				}
				fmt.Fprintf(w, "boot         %s\n", orElse(s.BootAggregate, "the list does not begin with a boot aggregate"))
			})
		}}
	cmd.Flags().StringVar(&hash, "template-hash", "sha256", "hash to replay with: sha256, sha384 or sha512; or sha1 to look at a list")
	return cmd
}

func quoteCmd(a *app) *cobra.Command {
	var quote, sig, ak, nonce, pcrs, log string
	cmd := &cobra.Command{Use: "quote", Short: "verify a TPM quote from raw files, as tpm2_quote -m -s writes them", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			var f attest.QuoteFiles
			for _, part := range []struct {
				path string
				into *[]byte
			}{{quote, &f.Quote}, {sig, &f.Signature}, {ak, &f.AK}, {nonce, &f.Nonce}, {pcrs, &f.PCRs}, {log, &f.Log}} {
				if part.path == "" {
					continue
				}
				b, err := readEvidence(part.path)
				if err != nil {
					return err
				}
				*part.into = append([]byte{}, b...)
			}
			// A file of values may hold several machines' under their files' names.
			f.Names = []string{baseName(quote), baseName(log)}
			r, err := attest.InspectQuote(f)
			if err != nil {
				return err
			}
			return a.Answer(r, func(w writer) { quoteText(w, r) })
		}}
	f := cmd.Flags()
	f.StringVar(&quote, "quote", "", "TPMS_ATTEST")
	f.StringVar(&sig, "sig", "", "TPMT_SIGNATURE")
	f.StringVar(&ak, "ak", "", "attestation key: PEM, DER or TPMT_PUBLIC")
	f.StringVar(&nonce, "nonce", "", "file with the nonce that the quote must carry")
	f.StringVar(&pcrs, "pcrs", "", "PCR values: a file of tpm2_quote -o or tpm2_pcrread, JSON, or raw in the order of the selection")
	f.StringVar(&log, "log", "", "firmware event log that must explain the PCRs; without --pcrs it must lead to those signed")
	return require(cmd, "quote", "sig", "ak")
}

func quoteText(w writer, r *attest.QuoteReport) {
	fmt.Fprintf(w, "signature    good, %s\n", r.Key)
	for _, bank := range slices.Sorted(maps.Keys(r.Selection)) {
		fmt.Fprintf(w, "PCRs         %s %v, digest %s\n", bank, r.Selection[bank], r.PCRDigest)
	}
	fmt.Fprintf(w, "clock        %d ms, %d resets, %d restarts, safe %t\n", r.Clock, r.ResetCount, r.RestartCount, r.Safe)
	fmt.Fprintf(w, "extra data   %s\n", r.ExtraData)
	for _, c := range []struct {
		done bool
		not  string
	}{{r.AttributesChecked, "that the key is a restricted TPM key: PEM and DER do not say"}, {r.NonceChecked, "the nonce: give --nonce"},
		{r.PCRsChecked, "the PCR values: give --pcrs"}, {r.LogChecked, "what led to the PCRs: give --log"}} {
		if !c.done {
			fmt.Fprintf(w, "NOT CHECKED  %s\n", c.not)
		}
	}
}

// An ekView is the answer of attest ekcert.
type ekView struct {
	ID           dsse.Digest `json:"id"` // what a node enrolled with this key is called
	Key          string      `json:"key"`
	Manufacturer string      `json:"manufacturer"`
	Model        string      `json:"model"`
	Version      string      `json:"version"`
	Emulated     bool        `json:"emulated"`
	ChainChecked bool        `json:"chainChecked"`
}

func ekcertCmd(a *app) *cobra.Command {
	var roots string
	cmd := &cobra.Command{Use: "ekcert FILE", Short: "judge an endorsement-key certificate, PEM, DER or as read from a TPM", Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			ek, err := a.judgeEK(args[0], roots, time.Now())
			if err != nil {
				return err
			}
			v := ekView{dsse.Digest(ek.ID), keyName(ek.Public), ek.Manufacturer, ek.Model, ek.Version, ek.Emulated, roots != ""}
			return a.Answer(v, func(w writer) { ekText(w, v) })
		}}
	cmd.Flags().StringVar(&roots, "roots", "", "directory with the vendors' certificates, PEM or DER")
	return cmd
}

func (a *app) judgeEK(file, roots string, now time.Time) (*attest.EK, error) {
	b, err := readEvidence(file)
	if err != nil {
		return nil, err
	}
	der, err := attest.DecodeEKCert(b)
	if err != nil {
		return nil, err
	}
	if roots == "" {
		return attest.ReadEKCert(der)
	}
	pool, intermediates, err := a.readRoots(roots)
	if err != nil {
		return nil, err
	}
	return attest.VerifyEKCert(der, pool, intermediates, now)
}

// A rootView is one certificate in a directory of roots.
type rootView struct {
	File     string      `json:"file"`
	Subject  string      `json:"subject"`
	NotAfter int64       `json:"notAfter"`
	Digest   dsse.Digest `json:"digest"` // SHA-256 of the certificate
	Maker    string      `json:"maker"`  // whose root this is by the table that ships; empty for none known
	Use      string      `json:"use"`    // root, intermediate or unreadable
	DER      []byte      `json:"der"`

	cert *x509.Certificate
	why  error
}

// listRoots reads every certificate in a directory. A root is what signed itself
// or what a maker of TPMs published as its root; another only helps to reach one.
func listRoots(dir string) ([]rootView, error) {
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	out := []rootView{}
	for _, f := range files {
		if f.IsDir() {
			continue
		}
		b, err := readEvidence(filepath.Join(dir, f.Name()))
		if err != nil {
			return nil, err
		}
		for _, der := range certificates(b) {
			v := rootView{File: f.Name(), Digest: sha256.Sum256(der), Maker: attest.VendorOf(der), Use: "unreadable", DER: der}
			if v.cert, v.why = x509.ParseCertificate(der); v.why == nil {
				v.Subject, v.NotAfter, v.Use = v.cert.Subject.String(), v.cert.NotAfter.Unix(), "intermediate"
				if bytes.Equal(v.cert.RawIssuer, v.cert.RawSubject) || v.Maker != "" {
					v.Use = "root"
				}
			}
			out = append(out, v)
		}
	}
	return out, nil
}

// readRoots makes pools of them. What Go cannot read as a certificate is told and
// passed over: one root less never lets anybody in.
func (a *app) readRoots(dir string) (roots, intermediates *x509.CertPool, err error) {
	all, err := listRoots(dir)
	if err != nil {
		return nil, nil, err
	}
	roots, intermediates = x509.NewCertPool(), x509.NewCertPool()
	n := 0
	for _, v := range all {
		switch v.Use {
		case "root":
			roots.AddCert(v.cert)
			n++
		case "intermediate":
			intermediates.AddCert(v.cert)
		default:
			a.Note("passed over %q: %v", v.File, v.why)
		}
	}
	if n == 0 {
		return nil, nil, fmt.Errorf("no root certificate in %s", dir)
	}
	return roots, intermediates, nil
}

func rootsCmd(a *app) *cobra.Command {
	return &cobra.Command{Use: "roots DIR", Short: "say which certificates in a directory are roots of TPM makers", Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			all, err := listRoots(args[0])
			if err != nil {
				return err
			}
			return a.Answer(all, func(w writer) { rootsText(w, all, time.Now()) })
		}}
}

func rootsText(w writer, all []rootView, now time.Time) {
	rows := [][]string{{"FILE", "USE", "MAKER", "UNTIL", "SHA-256", "SUBJECT"}}
	for _, v := range all {
		until := ""
		if v.cert != nil {
			until = v.cert.NotAfter.UTC().Format(time.DateOnly)
			if now.After(v.cert.NotAfter) {
				until += " EXPIRED"
			}
		}
		maker := v.Maker
		if maker == "" && v.Use == "root" {
			maker = "NOT KNOWN"
		}
		rows = append(rows, []string{printable(v.File), v.Use, maker, until, v.Digest.Hex(), printable(v.Subject)})
	}
	ui.Table(w, rows)
}

// certificates splits PEM. What is not PEM is taken as DER, one certificate behind
// the other, as a TPM keeps its chain; what no certificate can be made of comes last.
func certificates(b []byte) [][]byte {
	var out [][]byte
	for rest := b; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type == "CERTIFICATE" {
			out = append(out, block.Bytes)
		}
	}
	if len(out) > 0 {
		return out
	}
	for rest := cryptobyte.String(b); !rest.Empty(); {
		var der cryptobyte.String
		if !rest.ReadASN1Element(&der, cbasn1.SEQUENCE) {
			der, rest = rest, nil
		}
		out = append(out, der)
	}
	return out
}

func keyName(pub any) string {
	switch k := pub.(type) {
	case *rsa.PublicKey:
		return fmt.Sprintf("RSA-%d", k.N.BitLen())
	case *ecdsa.PublicKey:
		return "ECC " + k.Curve.Params().Name
	}
	return fmt.Sprintf("%T", pub)
}

func ekText(w writer, v ekView) {
	fmt.Fprintf(w, "node id      %s\nkey          %s\nTPM          %s %s %s\n", v.ID, v.Key, printable(v.Manufacturer), printable(v.Model), printable(v.Version))
	if v.Emulated {
		fmt.Fprintln(w, "             EMULATED: a program, not a chip")
	}
	if !v.ChainChecked {
		fmt.Fprintln(w, "NOT CHECKED  who vouches for it: give --roots")
	}
}

// printable keeps what a certificate says from drawing on the screen.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s)
}
