// Package lockbox splits the key of sealed weights between people and machines.
//
// Sealing an object draws two random scalars of ristretto255 (RFC 9496). The
// first, s_people, is shared t-of-m among the approvers; the second,
// s_machines, q-of-n among the notaries (Shamir). Every share travels under
// HPKE (RFC 9180) to a key that its holder's token does not give away, and is
// bound to charter, object, side, epoch, index and holder. The key that wraps
// an age file key is HKDF-SHA256 over both scalars, so neither side opens
// anything alone.
//
// Pedersen commitments to the sharing polynomials are part of the object's
// signed statement. They hide perfectly, and they let a holder drill a share, a
// recipient pick the good ones, and new holders check what old ones deal to
// them: [Redeal] moves a secret to other holders without forming it anywhere,
// and the commitment to the secret, hence the object id, stays.
//
// The usual order is [New], [Secrets.WrapFileKey] and [Secrets.Deal] at the
// sealer; [OpenShare] and [Reseal] at each holder; [OpenRelease], [Unlock] and
// [Unlocker.FileKey] at the recipient. A [Share] exists only after it was
// checked against its commitments. What goes wrong with a share is a
// [ShareError] that says whose share it was and in which way it was bad.
//
// The package is pure: no files, no network, no clock. Randomness comes from
// the reader that the caller gives; only HPKE draws its ephemeral keys itself,
// from the operating system, as crypto/hpke has no other way.
//
// docs/lockbox.md is the specification, with claims, assumptions and vectors.
package lockbox
