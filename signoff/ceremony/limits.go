package ceremony

// Every bound of the package, with its reason.
const (
	// MaxScript is the size of a script in bytes: an hour's reading aloud.
	MaxScript = 64 << 10

	// MaxTranscript is the size of a transcript in bytes: a blob of the log.
	MaxTranscript = 8 << 20

	// MaxPeople and MaxEquipment are what fits into a room.
	MaxPeople    = 64
	MaxEquipment = 256

	// MaxSteps bounds a script: a day's work.
	MaxSteps = 256

	// MaxSignatures bounds those that a script asks for, so that a transcript
	// with a few kilobytes for each fits MaxTranscript.
	MaxSignatures = 1024

	// MaxSigners bounds the countersignatures of one step.
	MaxSigners = 16

	// MaxIncidents bounds those of one step; what is more is counted.
	MaxIncidents = 64

	maxFindings   = 16  // of one step
	maxExceptions = 16  // of one step
	maxSerial     = 64  // bytes
	maxNote       = 300 // bytes of one incident, so that all of them fit a record
	maxDepth      = 16  // of YAML
)
