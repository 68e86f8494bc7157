package dsse

// Every bound of the document layer stands here, each with its reason.
const (
	// MaxLine is the largest document: a tlog-tiles entry carries a 16-bit
	// length (C2SP tlog-tiles, "Log Entries").
	MaxLine = 65535

	// MaxPayload is what base64 leaves of MaxLine after the bundle's frame.
	MaxPayload = (MaxLine - 512) / 4 * 3

	// MaxFile is the largest document that stays in a file and never enters
	// the log: the manifest of a model with very many files.
	MaxFile = 256 << 20

	// MaxSignature holds an ASN.1 P-256 signature (at most 72 bytes) and an
	// Ed25519 one (64 bytes), with flags and counter of a FIDO key (5 bytes).
	MaxSignature = 80

	// MaxSubjects bounds the subjects of one statement; a request names the
	// objects it is about.
	MaxSubjects = 64

	// MaxText bounds any text a person typed: a purpose, a reason, a name.
	MaxText = 2000
)
