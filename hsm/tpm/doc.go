// Package tpm holds keys in a TPM 2.0.
//
// A [TPM] is one connection with one command at a time, to the kernel's
// resource manager (/dev/tpmrm0) or to an emulator's socket. It makes signing
// keys ([TPM.NewSigningKey]), keys that agree on a secret only in a boot that
// was approved ([TPM.NewStorageKey]) and keys for one use ([TPM.NewFreshKey]);
// the first two leave the TPM as a [Blob] that only this TPM can load again.
//
// Objects are kept out of the TPM between uses by saving their context, because
// a TPM has room for three. Sessions that carry a secret are salted to the
// TPM's storage root key and encrypted; the name of that key can be pinned
// ([TPM.PinStorageRoot]), or whoever sits on the bus could offer one of his own.
//
// A boot is approved by a signature over a PCR policy ([ApproveBoot]), made
// with a key that opens nothing: an update needs a new signature, not a new key
// (TPM2_PolicyAuthorize, TCG TPM 2.0 Library, Part 3, section 23.16).
package tpm
