package hsm

// Kind says what a new key is for. A key does one thing: a signing key does not
// agree on secrets, an agreement key does not sign.
type Kind string

const (
	KindP256    Kind = "p256"    // signs, ECDSA on P-256 with SHA-256
	KindEd25519 Kind = "ed25519" // signs, RFC 8032
	KindECDH    Kind = "ecdh"    // agrees on secrets for HPKE, P-256
	KindSeal    Kind = "seal"    // wraps small secrets, AES-256-GCM
)
