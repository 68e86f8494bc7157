package main

import (
	"crypto/sha256"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/dsse"
)

func fileDigest(path string) (dsse.Digest, error) {
	f, err := os.Open(path)
	if err != nil {
		return dsse.Digest{}, err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return dsse.Digest{}, fmt.Errorf("digest of %s: %w", path, err)
	}
	return dsse.Digest(h.Sum(nil)), nil
}

// readLineFile reads a file that holds one bundle line.
func readLineFile(path string) (*signoff.Signed, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	for len(b) > 0 && b[len(b)-1] == '\n' {
		b = b[:len(b)-1]
	}
	return signoff.ReadLine(b)
}

func paeCmd(a *app) *cobra.Command {
	var sig string
	cmd := &cobra.Command{Use: "pae FILE", Short: "print the exact bytes a document's signature covers", Args: cobra.ExactArgs(1),
		Long: `Pae prints the DSSE pre-authentication encoding of a document, and with --sig
writes its signature, so that other tools can check it:

  keyturn pae warrant.json --sig warrant.sig > warrant.pae
  openssl pkeyutl -verify -pubin -inkey group.pem -rawin -in warrant.pae -sigfile warrant.sig
  openssl dgst -sha256 -verify approver.pem -signature approval.sig approval.pae`,
		RunE: func(_ *cobra.Command, args []string) error { return a.pae(args[0], sig) }}
	cmd.Flags().StringVar(&sig, "sig", "", "write the raw signature to this file")
	return cmd
}

func (a *app) pae(path, sig string) error {
	s, err := readLineFile(path)
	if err != nil {
		return err
	}
	if sig != "" {
		if err := writeNew(sig, s.Sig); err != nil {
			return err
		}
	}
	pae := dsse.PAE(s.Payload)
	return a.Answer(struct {
		PAE []byte `json:"pae"`
		Sig []byte `json:"sig"`
	}{pae, s.Sig}, func(w writer) { w.Write(pae) })
}

// warrantCmd gathers what one does with a warrant's file.
func warrantCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "warrant", Short: "look at warrants"}
	var out string
	get := &cobra.Command{Use: "get REQUEST", Short: "write the warrant of a request to a file", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.writeWarrant(cmd, args[0], out) }}
	get.Flags().StringVar(&out, "out", "", "file to write")
	cmd.AddCommand(paeCmd(a), require(get, "out"), groupCmd(a))
	return cmd
}

func manCmd(root *cobra.Command) *cobra.Command {
	return &cobra.Command{Use: "man DIR", Short: "write manual pages", Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return err
			}
			root.DisableAutoGenTag = true
			return doc.GenManTree(root, &doc.GenManHeader{Title: "KEYTURN", Section: "1", Source: "keyturn"}, args[0])
		}}
}

func configHelp() *cobra.Command {
	return &cobra.Command{Use: "config", Short: "the configuration file", Long: `The configuration is a small YAML file; unknown keys are refused.

  charter: sha256:...        the trust anchor your organisation published
  charterFile: charter.json  the charter itself, checked against the anchor
  name: alice                who you are in the charter; leave out if nobody
  signing: pkcs11:token=alice;object=sign?module-path=/usr/lib/.../module.so
  exchange: pkcs11:token=alice;object=exchange?module-path=...
  mlkem768: alice.seed       of a hybrid exchange key: its second half,
  seal: pkcs11:token=alice;object=seal?module-path=...   and what seals it
  state: state               directory for what was last seen, and proofs

Paths are relative to the file. There is no key that skips a check.`}
}

// readAtMost reads all of r, and refuses more than limit bytes.
func readAtMost(r io.Reader, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("more than %d bytes, larger than any real one", limit)
	}
	return b, err
}
