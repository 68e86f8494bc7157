// Package ima reads the measurement list of Linux's integrity measurement
// architecture and says what a quote proves of it.
//
// For each file that its policy selects, the kernel appends an entry to the list and
// extends the hash of the entry's template data into PCR 10, once per bank. The list
// therefore grows after a quote was made: what a quote proves is a prefix, and
// [State.Advance] finds it. Entries behind it prove nothing and are not looked at.
// A State remembers where the prefix ended, so that the next quote costs only the
// new entries.
//
// In the PCR banks of sha256 and stronger, the kernel extends the bank's own hash of
// the template data, although the list shows SHA-1 template digests. Kernels before
// 5.8 extended the SHA-1 digest padded with zeros, which is worth no more than SHA-1:
// they are refused. [Parse] checks each listed template digest against the template
// data; for what a quote proves, the PCR's stronger hash of the same data stands in.
//
// A violation (a file that was open for writing while it was measured, or the
// reverse) has a template digest of zeros in the list and extends ones. Nothing
// covers its template data: its name proves nothing.
//
// [Parse] takes both formats of the list, binary and ASCII, with templates ima, ima-ng,
// ima-sig, ima-buf, their variants, and formats composed of known fields such as
// d-ng|n-ng (kernel documentation, security/IMA-templates). No digest covers the
// template's name, so a format is taken only if its digest comes first and its name
// second: its fields cannot be read as others then. Binary lists are
// little-endian, as ima_canonical_fmt has them everywhere. [Rules] judge the
// entries by path, digest and signature; by default nothing is allowed.
package ima
