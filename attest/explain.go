package attest

import (
	"errors"

	"github.com/keyturn/keyturn/attest/eventlog"
)

// explainBoot returns nil if replaying the firmware's event log gives every one
// of the sha256 PCR values.
func explainBoot(log []byte, pcrs map[int][]byte) error { return explainLog(log, "sha256", pcrs) }

func explainLog(log []byte, bank string, pcrs map[int][]byte) error {
	parsed, err := eventlog.Parse(log)
	if err != nil {
		return err
	}
	return parsed.Explain(bank, pcrs)
}

// explainIMA returns nil if a prefix of the kernel's measurement list leads to
// the value of PCR 10. Until there is a reader for that list, nothing explains
// PCR 10, so evidence that quotes it is refused.
func explainIMA(list, pcr []byte) error {
	return errors.New("no reader for the kernel's measurement list: quote without PCR 10")
}
