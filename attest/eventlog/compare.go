package eventlog

import "fmt"

// A Change is an event that one boot measured and another did not.
type Change struct {
	PCR    int
	Gone   bool // the boot before measured it; otherwise it is new
	Digest []byte
	Said   Type   // what the log calls it, which proves nothing
	Text   string // what the log proves that it is of, empty if that is not told
}

// Compare lists the events of each PCR that are in one log and not in the other, new
// ones and then those that are gone, in the order of the logs. Events are told
// apart by their digests in the bank alone. Two boots that measured the same in
// another order differ in the PCR's value and not here.
func Compare(before, now *Log, bankName string) ([]Change, error) {
	old, err := before.bank(bankName)
	if err != nil {
		return nil, fmt.Errorf("the log before: %w", err)
	}
	b, err := now.bank(bankName)
	if err != nil {
		return nil, err
	}
	return append(now.beyond(b, before, old, false), before.beyond(old, now, b, true)...), nil
}

// beyond lists the events that the other log has not, or less often.
func (l *Log) beyond(b bank, other *Log, ob bank, gone bool) []Change {
	type event struct {
		pcr    uint32
		digest string
	}
	there := make(map[event]int)
	for i := range other.Events {
		if e := &other.Events[i]; e.Type != NoAction {
			there[event{e.PCR, string(other.digest(e, ob))}]++
		}
	}
	sections := make(map[int]string) // by the event that measured the content
	if all, err := l.UKISections(b.alg.String()); err == nil {
		for _, s := range all {
			sections[s.Event] = "content of section " + s.Name
		}
	}
	var out []Change
	for i := range l.Events {
		e := &l.Events[i]
		if e.Type == NoAction {
			continue
		}
		id := event{e.PCR, string(l.digest(e, b))}
		if there[id] > 0 {
			there[id]--
			continue
		}
		text := sections[i]
		if text == "" {
			text = l.proved(e, b)
		}
		out = append(out, Change{int(e.PCR), gone, l.digest(e, b), e.Type, text})
	}
	return out
}

// proved says what the event's digest is of, if the log shows it.
func (l *Log) proved(e *Event, b bank) string {
	if text := l.text(e, b); text != "" {
		return text
	}
	if !l.hashes(e, b, e.Data) {
		return ""
	}
	if v, err := parseVariable(e.Data); err == nil {
		if v.is(globalVariable, "SecureBoot") && len(v.Data) == 1 && v.Data[0] <= 1 {
			return "secure boot " + [...]string{"off", "on"}[v.Data[0]]
		}
		return fmt.Sprintf("variable %s, %d bytes", v.Name, len(v.Data))
	}
	return ""
}
