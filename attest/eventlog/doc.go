// Package eventlog reads the firmware's measured-boot log and says what it
// proves.
//
// While a machine boots, each stage hashes the next and extends the hash into a
// platform configuration register (PCR) of the TPM: new = H(old || digest). The
// firmware writes down what it extended in an event log, which anybody may edit
// on its way here. Only the digests in it can be checked: replayed in order they
// must lead to the PCR values that the TPM signed. [Parse] reads a log, [Log.Replay]
// replays one bank of it and [Log.Explain] compares the result with a quote.
//
// An event's type and data are comments on its digest. They are believed only as
// far as the data hashes to the digest; a type may end a claim and never makes
// one. Two exceptions are part of the replay itself and cannot mislead it, because
// a lie leads to other PCR values: EV_NO_ACTION is never extended, and PCR 0 may
// start at the locality that a StartupLocality event or an H-CRTM event tells.
//
// After Explain, four claims can be drawn: [Log.SecureBoot] from PCR 7,
// [Log.BootApplications] from PCR 4, [Log.UKISections] from PCR 11, and
// [Log.Measurements], which gives the commands that GRUB ran (PCR 8, and 9 for the
// files it read), shim's machine owner keys (PCR 14) and any other PCR. A claim
// that the log leaves ambiguous is not made.
//
// Both formats are read: the crypto-agile one that begins with a Spec ID event and
// the older one with SHA-1 digests only. SHA-1 can be replayed to look at a log and
// is never accepted by Explain. SM3 digests are carried and cannot be replayed.
// Logs cut out of ACPI memory may end in padding: bytes 0x00 or 0xff up to the end
// are passed over, which cannot hide an event, since a hidden event is missing from
// the replay.
//
// Structures are named as in the TCG PC Client Platform Firmware Profile (PFP),
// revision 1.06, section 10, and variables as in the UEFI specification 2.10.
package eventlog
