package attest

import (
	"crypto/sha256"
	"fmt"

	"github.com/keyturn/keyturn/attest/eventlog"
	"github.com/keyturn/keyturn/attest/ima"
)

// Logs are what a quote's PCRs are explained by.
type Logs struct {
	Boot *BootLog
	IMA  []byte // of the kernel's list, the part that the evidence names; nil for none
}

// A BootLog is a firmware event log with what it leads to in the sha256 bank,
// worked out once: machines that boot alike have the same log. It is safe for
// concurrent use.
type BootLog struct {
	digest   Digest
	replayed *eventlog.Replayed
	err      error // why it explains nothing
}

// ReadBootLog parses and replays binary_bios_measurements, which must not
// change any more. A log that cannot be read explains nothing.
func ReadBootLog(data []byte) *BootLog {
	b := &BootLog{digest: sha256.Sum256(data)}
	if len(data) > maxEventLog {
		b.err = fmt.Errorf("the event log has %d bytes, more than %d", len(data), maxEventLog)
		return b
	}
	log, err := eventlog.Parse(data)
	if err == nil {
		b.replayed, err = log.Replayed("sha256")
	}
	b.err = err
	return b
}

// explain returns nil if the log leads to every one of the PCR values.
func (b *BootLog) explain(pcrs map[int][]byte) error {
	if b.err != nil {
		return b.err
	}
	return b.replayed.Explain(pcrs)
}

// explainLog returns nil if the firmware's event log leads to every one of the
// bank's PCR values.
func explainLog(log []byte, bank string, pcrs map[int][]byte) error {
	parsed, err := eventlog.Parse(log)
	if err != nil {
		return err
	}
	return parsed.Explain(bank, pcrs)
}

// Measured is how far a kernel's list was proved and judged in one boot.
type Measured struct {
	Offset  uint64 `json:"offset"` // bytes of the list
	Entries uint64 `json:"entries"`
	PCR     Digest `json:"pcr"`   // value of PCR 10 there
	Rules   Digest `json:"rules"` // of the rules that allowed all of it
}

// proveIMA returns the entries that the quote proves beyond what was proved
// before, and how far that is. The first entry of a whole list must be of the
// boot that the other PCRs show. Before is nil at the beginning of a boot.
func proveIMA(list []byte, from uint64, before *Measured, pcrs map[int]Digest) ([]ima.Entry, *Measured, error) {
	state, err := ima.NewState("sha256")
	if err != nil {
		return nil, nil, err
	}
	if from > 0 {
		if before == nil || before.Offset != from {
			return nil, nil, fmt.Errorf("the measurement list comes from byte %d on, and what is before that was not proved in this boot", from)
		}
		state.Offset, state.Entries, state.PCR = int(before.Offset), int(before.Entries), before.PCR[:]
	}
	quoted := pcrs[pcrIMA]
	entries, err := state.Advance(list, quoted[:])
	if err != nil {
		return nil, nil, err
	}
	if from == 0 {
		if err := bootAggregate(entries, pcrs); err != nil {
			return nil, nil, err
		}
	}
	now := &Measured{Offset: uint64(state.Offset), Entries: uint64(state.Entries), PCR: Digest(state.PCR)}
	if before != nil && now.Offset < before.Offset {
		return nil, nil, fmt.Errorf("the measurement list shrank within one boot, from %d bytes to %d", before.Offset, now.Offset)
	}
	return entries, now, nil
}

// LeadsTo reports whether the part of the kernel's list behind what was proved
// before, nil for all of it, leads to the PCRs: what an agent asks before it sends
// both.
func LeadsTo(part []byte, before *Measured, pcrs map[int]Digest) bool {
	from := uint64(0)
	if before != nil {
		from = before.Offset
	}
	_, _, err := proveIMA(part, from, before, pcrs)
	return err == nil
}

func bootAggregate(entries []ima.Entry, pcrs map[int]Digest) error {
	if len(entries) == 0 {
		return fmt.Errorf("the measurement list is empty")
	}
	boot := make(map[int][]byte, len(pcrs))
	for pcr, v := range pcrs {
		boot[pcr] = v[:]
	}
	return entries[0].BootAggregate("sha256", boot)
}
