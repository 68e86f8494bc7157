// Package tpm is the device side of package attest: it makes a node's
// attestation identity in a TPM 2.0, answers challenges and quotes PCRs.
//
// [Device.Provision] makes the keys once and returns a [State] for the agent to
// keep: blobs that only this TPM can load, no secrets. [Device.Load] brings them
// back as an [Identity], which enrols, proves itself and offers the node's keys.
//
// The attestation key is a primary key of the endorsement hierarchy: the reset
// count, restart count and firmware version that it signs are then the real
// ones, where a key of the owner hierarchy would show them obfuscated (TCG TPM
// 2.0 Library, Part 1, section 36.7).
package tpm
