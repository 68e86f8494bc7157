package attest

// Every bound of this package, each with its reason.
const (
	maxDigest     = 64      // SHA-512, the largest hash of a TPM
	maxName       = 2 + 64  // TPM2B_NAME: algorithm and digest
	maxData       = 2 + 64  // TPM2B_DATA: sizeof TPMT_HA
	maxModulus    = 512     // RSA-4096
	minModulus    = 256     // RSA-2048: less is refused
	maxCoordinate = 48      // P-384
	maxPublic     = 1 << 10 // a TPMT_PUBLIC with RSA-4096 is about 600 bytes
	maxAttest     = 1 << 10 // a TPMS_ATTEST is about 150 bytes
	maxSignature  = 1 << 10 // a TPMT_SIGNATURE with RSA-4096 is 518 bytes
	maxBanks      = 8       // hash banks in one selection
	maxSelect     = 4       // bytes of a PCR bitmap; the PC Client profile has 3
	maxPCR        = 23      // PC Client platform TPM profile: PCR 0 to 23

	maxCert     = 1 << 13 // EK certificates are 1 to 2 kB
	maxChain    = 8       // intermediates that come with an EK certificate
	maxEvidence = 1 << 15 // bytes of evidence without its logs, as JSON: 2 kB, 4 kB with a fresh key
	maxEventLog = 1 << 20 // real logs are 3 to 60 kB
	maxIMA      = 1 << 23 // bytes of a list, or of a part that comes at once: about 70,000 files
	maxNonce    = 64      // what fits quote extra data, should anyone use it raw
	maxSets     = 64      // reference sets offered to one appraisal
	maxAlts     = 1 << 10 // digests that one set may allow for one PCR
)
