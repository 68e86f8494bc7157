// Package attest judges what a machine says about itself, without talking to
// it: every function here is a pure function of bytes and of a time that the
// caller gives.
//
// A node enrols once. Its TPM's maker signed a certificate for the endorsement
// key (EK, [VerifyEKCert]); the EK decrypts a challenge only for a TPM that also
// holds the attestation key (AK) named in it ([NewChallenge]); the AK certifies
// the node's other keys ([VerifyCertify]). [VerifyEnrolment] checks all of that
// and returns a [Node], which is what the log records.
//
// From then on the AK signs quotes: digests of the platform configuration
// registers (PCRs), together with a clock that only grows and 32 bytes of the
// verifier's choosing (a [Binding]). [Appraise] takes a quote, the logs that
// explain it and reference values that people adopted, and returns a [Verdict]
// with a reason that a person can act on.
//
// A quote proves less than it seems to. A signature by the right key says
// nothing unless the key is restricted (an unrestricted key signs a forged
// quote just as well) and the signed bytes begin with the magic that a TPM puts
// only in front of what it generated itself. The PCR selection counts as it was
// signed, not as it is labelled beside the quote. A boot that measured nothing
// has zero PCRs, which are true and worthless. And "no reference value differs"
// must never be read from "no reference value was consulted": all of these are
// refused here.
//
// The decoders for TPM structures (TCG TPM 2.0 Library, Part 2) are written by
// hand, bounded and fuzzed. Names of structures in comments are those of Part 2.
package attest
