package display

import (
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"fmt"

	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/dsse"
)

// ekRoots shows every certificate of a maker of TPMs that would come or go. Whose
// this version of the software knows it to be is not for a text that all versions
// have to write alike: keyturn attest roots says it.
func (in Input) ekRoots(w *writer, c *signoff.EKRootsChange) {
	for _, der := range c.Add {
		cert, err := signoff.ParseEKRoot(der)
		if err != nil {
			w.field("adds", "UNREADABLE: %s", safe(err.Error()))
			continue
		}
		ekRoot(w, "adds", cert)
	}
	for _, id := range c.Remove {
		cert, ok := in.EKRoots[id]
		if !ok {
			w.field("removes", "%s", id)
			w.field("", "UNKNOWN to this log")
			continue
		}
		ekRoot(w, "removes", cert)
	}
	if len(c.Add) > 0 {
		w.field("effect", "machines whose TPM it vouches for can be asked for and enrolled")
	}
	if len(c.Remove) > 0 {
		w.field("effect", "machines that no other EK root vouches for lose their lease")
	}
}

func ekRoot(w *writer, name string, cert *x509.Certificate) {
	w.prose(name, "EK root "+safe(cert.Subject.String()))
	w.field("", "%s", dsse.Digest(sha256.Sum256(cert.Raw)))
	if cert.Subject.String() != cert.Issuer.String() {
		w.prose("", "issued by "+safe(cert.Issuer.String()))
	}
	w.field("", "key %s", keyKind(cert.PublicKey))
	w.field("", "from %s", when(cert.NotBefore.Unix()))
	w.field("", "to %s", when(cert.NotAfter.Unix()))
}

// keyKind names a key by kind and size.
func keyKind(public any) string {
	switch k := public.(type) {
	case *rsa.PublicKey:
		return fmt.Sprintf("RSA of %d bits", k.N.BitLen())
	case *ecdsa.PublicKey:
		return "ECDSA on " + k.Curve.Params().Name
	}
	return fmt.Sprintf("of kind %T", public)
}
