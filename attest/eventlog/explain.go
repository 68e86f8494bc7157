package eventlog

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// An UnexplainedError names the PCRs that a log does not lead to.
type UnexplainedError struct {
	Bank   string
	PCRs   []int    // in ascending order
	Reason []string // one line for each
}

// Error gives the first PCR's reason and names the others.
func (e *UnexplainedError) Error() string {
	s := fmt.Sprintf("eventlog: %s PCR %d is not explained: %s", e.Bank, e.PCRs[0], e.Reason[0])
	if len(e.PCRs) > 1 {
		s += fmt.Sprintf("; nor are PCRs %s", strings.Trim(fmt.Sprint(e.PCRs[1:]), "[]"))
	}
	return s
}

// Explain returns nil if replaying the bank gives every quoted value: the PCRs that
// the log extends have the values that it leads to, and the others have the values
// of a reset. PCRs that are not quoted are not looked at. It refuses SHA-1 and
// SM3, no quoted PCRs, values of another length, PCRs that do not exist, and a log
// that extends none of the quoted PCRs, however well their reset values fit: nothing
// was measured. PCRs that differ are in an *UnexplainedError.
func (l *Log) Explain(bankName string, quoted map[int][]byte) error {
	r, err := l.Replayed(bankName)
	if err != nil {
		return err
	}
	return r.Explain(quoted)
}

// A Replayed is a log with the values that one of its banks leads to, for those
// who hold many quotes against one log. It is safe for concurrent use.
type Replayed struct {
	log   *Log
	bank  bank
	state state
}

// Replayed replays the bank once, for many calls of [Replayed.Explain]. SHA-1 and
// SM3 are refused.
func (l *Log) Replayed(bankName string) (*Replayed, error) {
	b, err := l.bank(bankName)
	if err != nil {
		return nil, err
	}
	if b.alg == SHA1 {
		return nil, fmt.Errorf("eventlog: SHA-1 explains nothing: quote the sha256 bank, or a stronger one")
	}
	return l.replayed(b), nil
}

func (l *Log) replayed(b bank) *Replayed {
	r := &Replayed{log: l, bank: b}
	l.replay(b, &r.state)
	return r
}

// Explain is [Log.Explain] of the replayed bank.
func (r *Replayed) Explain(quoted map[int][]byte) error {
	l, b, s := r.log, r.bank, &r.state
	if len(quoted) == 0 {
		return fmt.Errorf("eventlog: no %s PCR was quoted, so there is nothing to explain", b.alg)
	}
	measured, no := false, &UnexplainedError{Bank: b.alg.String()}
	for _, pcr := range slices.Sorted(maps.Keys(quoted)) {
		switch value := quoted[pcr]; {
		case pcr < 0 || pcr >= pcrCount:
			return fmt.Errorf("eventlog: PCR %d was quoted: there are PCR 0 to %d", pcr, pcrCount-1)
		case len(value) != b.size:
			return fmt.Errorf("eventlog: the value of PCR %d has %d bytes, those of %s have %d", pcr, len(value), b.alg, b.size)
		case !bytes.Equal(value, s.value[pcr][:b.size]):
			no.PCRs = append(no.PCRs, pcr)
			no.Reason = append(no.Reason, l.difference(b, s, pcr, value))
		default:
			measured = measured || s.extended[pcr] > 0
		}
	}
	if len(no.PCRs) > 0 {
		return no
	}
	if !measured {
		return fmt.Errorf("eventlog: none of the quoted %s PCRs was ever extended: there was no measured boot", b.alg)
	}
	return nil
}

// difference says in words how the quoted value differs from the replay.
func (l *Log) difference(b bank, s *state, pcr int, quoted []byte) string {
	n := s.extended[pcr]
	got := s.value[pcr][:b.size]
	if more := b.unlogged(pcr, got, quoted); more != nil {
		return fmt.Sprintf("it is %x, which the log leads to only with events that it leaves out: %q", quoted, more)
	}
	switch {
	case n == 0:
		return fmt.Sprintf("it is %x and the log has no event for it", quoted)
	case len(bytes.Trim(quoted, "\x00")) == 0:
		return fmt.Sprintf("it is all zeros and the log has %d events for it", n)
	}
	return fmt.Sprintf("it is %x, the log's %d events lead to %x", quoted, n, got)
}

// leftOut are texts known to be extended without being in this log: by firmware when
// the kernel takes over (PFP 3.3.4.6), and by systemd, which keeps a log of its own.
var leftOut = map[int][]string{
	5:  {"Exit Boot Services Invocation", "Exit Boot Services Returned with Success"},
	11: {"enter-initrd", "leave-initrd", "sysinit", "ready"},
}

// unlogged returns the known texts that would make up the difference, nil if none do.
// They are told, so that a person knows what to do, and never accepted.
func (b bank) unlogged(pcr int, got, quoted []byte) []string {
	for i, text := range leftOut[pcr] {
		digest := b.alg.sum([]byte(text))
		next := b.alg.sum(slices.Concat(got, digest[:b.size]))
		if got = next[:b.size]; bytes.Equal(got, quoted) {
			return leftOut[pcr][:i+1]
		}
	}
	return nil
}
