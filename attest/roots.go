package attest

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
)

// NewRoots sorts certificates (DER) that a charter lists: what is signed by
// another is an intermediate; a self-signed one is a vendor's root if its digest
// is in the table of known makers of TPMs, and a development root otherwise.
// Nodes under a development root are marked as emulated.
func NewRoots(ders [][]byte) (Roots, error) {
	r := Roots{Vendor: x509.NewCertPool(), Development: x509.NewCertPool(), Intermediates: x509.NewCertPool()}
	for i, der := range ders {
		if len(der) > maxCert {
			return Roots{}, fmt.Errorf("attest: root certificate %d of %d bytes is longer than %d", i, len(der), maxCert)
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return Roots{}, fmt.Errorf("attest: root certificate %d: %w", i, err)
		}
		_, known := vendorRoots[sha256.Sum256(der)]
		switch {
		case known:
			r.Vendor.AddCert(cert)
		case bytes.Equal(cert.RawIssuer, cert.RawSubject):
			r.Development.AddCert(cert)
		default:
			r.Intermediates.AddCert(cert)
		}
	}
	return r, nil
}

// VendorOf returns the maker of a known vendor root (DER), empty for others.
func VendorOf(der []byte) string { return vendorRoots[sha256.Sum256(der)] }

// vendorRoots are the SHA-256 digests of root certificates (DER) that makers of
// TPMs publish. A new maker is a new line here, or a development root in the
// charter until then.
var vendorRoots = func() map[[sha256.Size]byte]string {
	table := make(map[[sha256.Size]byte]string)
	for _, line := range []struct{ digest, vendor string }{
		{"cfeb02fecd55ad7a73c6e1d11985d4c47dee248ab63dcb66091a2489660443c3", "Infineon"},
		{"7df2c3751c03ce003e99174d9cb2559f57a1b05b1920dd30bb6f8dfcf17f5e62", "Infineon"},
		{"2e1b3ba79af56d758be51697621bc4b9e8cee0983db3e749c55eb9b37c6d2ae0", "Intel"},
		{"e38c280f7c0e0b49f31efc7531032bb6a86c3fba4eb89beb1d510eaa4510ae4a", "Nuvoton"},
		{"4aebe77a51ed29959a7f9f5e07a24a558dee8167f3985d724995a541c258dfda", "Nuvoton"},
		{"cd8185ff8995ed09811970090a8c36fafab34ef87f47fa51fdb9ecf95c9c2e04", "Nuvoton"},
		{"f8e37a86b689a20a6cc0c40cc3f81fb130fa9f44ce7ffa60d62590aaf87273a9", "STMicroelectronics"},
		{"c541d7e5b9e3f935621acbd403896225ec641036c9ae3b5f7ac793a606ff9b79", "STMicroelectronics"},
		{"f27bf02c6e00c73d915eeb6a6a2f5fbf0c31ae0393149e6b5c31e41b113841c3", "GlobalSign"},
		{"594759594b9b61524f6c8ef668f7177f7b9066bc0674f2f49fe9e052be78beb2", "Google"},
		{"9bd5285f8fb18502a7947e621ffd470266f49fcd3b73e19a190f690ad32a7caf", "Google"},
	} {
		digest, err := hex.DecodeString(line.digest)
		if err != nil || len(digest) != sha256.Size {
			panic("attest: vendor root table: " + line.digest)
		}
		table[[sha256.Size]byte(digest)] = line.vendor
	}
	return table
}()
