package ima

// Every bound of this package, each with its reason.
const (
	maxList     = 64 << 20 // bytes; about 600,000 entries
	maxData     = 1 << 20  // bytes of template data; an appended module signature has 2 kB, a measured buffer a few 100 kB
	maxTemplate = 128      // bytes of a template's name or format
	maxFields   = 16       // of a template; evm-sig has 9
	maxDigest   = 64       // SHA-512
	pcrCount    = 24       // PC Client platform TPM profile: PCR 0 to 23
	imaName     = 255      // bytes of a file's name in the template "ima"
	minRSA      = 2048     // bits of a key that signs files
	maxRSA      = 4096
	maxKeys     = 64      // of a keyring; each signature may be tried with all
	maxSigned   = 16      // rules for signed files
	maxGood     = 1 << 17 // signatures remembered, some 100 bytes each

	typicalEntry = 128 // bytes of an entry, to make room with; no bound
)
