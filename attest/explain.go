package attest

import (
	"errors"
	"fmt"

	"github.com/keyturn/keyturn/attest/eventlog"
	"github.com/keyturn/keyturn/attest/ima"
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
// the value of PCR 10, and its first entry to the boot that the other sha256 PCRs
// show. It does not judge the files that the list names.
func explainIMA(list []byte, pcrs map[int][]byte) error {
	state, err := ima.NewState("sha256")
	if err != nil {
		return err
	}
	entries, err := state.Advance(list, pcrs[pcrIMA])
	if err != nil {
		return err
	}
	if len(entries) == 0 {
		return errors.New("the measurement list is empty")
	}
	if err := entries[0].BootAggregate("sha256", pcrs); err != nil {
		return fmt.Errorf("measurement list: %w", err)
	}
	return nil
}
