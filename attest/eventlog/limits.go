package eventlog

// Every bound of this package, each with its reason.
const (
	maxLog        = 4 << 20 // bytes; real logs have 3 to 130 kB, firmware reserves 64 to 256 kB
	maxEvents     = 1 << 16 // real logs have 20 to 400
	maxEventData  = 1 << 20 // bytes; a forbidden-signature database has 10 to 40 kB
	maxBanks      = 8       // digest algorithms of one log; TPMs have one to four banks
	maxDigest     = 64      // SHA-512, and what a vendor's algorithm may use
	pcrCount      = 24      // PC Client platform TPM profile: PCR 0 to 23
	maxName       = 512     // UTF-16 units of a UEFI variable's name; dbDefault has 9
	maxSignatures = 1 << 14 // entries of one signature database; dbx has about 400
	maxText       = 1 << 14 // bytes of event text shown; a kernel command line has at most 4 kB
)
