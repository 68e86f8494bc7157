// A module of its own: the peer is measured against and nothing else, and brings
// what the main module must not.
module github.com/keyturn/keyturn/attest/peer

go 1.26.8

require (
	github.com/google/go-attestation v0.6.4
	github.com/keyturn/keyturn v0.0.0
)

require (
	github.com/go-json-experiment/json v1.27.2 // indirect
	github.com/google/go-tpm v0.9.8 // indirect
	golang.org/x/crypto v0.58.0 // indirect
	golang.org/x/sys v0.49.0 // indirect
)

replace github.com/keyturn/keyturn => ../..
