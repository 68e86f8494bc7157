package eventlog

import "bytes"

// PCRs are values by index, in one bank.
type PCRs map[int][]byte

// A state is all PCRs of one bank during replay. It lives on the stack.
type state struct {
	value    [pcrCount][maxDigest]byte // the front of each is in use
	extended [pcrCount]uint32          // how often
}

// Replay extends the bank's digests in order, from the values after a reset, and
// returns the PCRs that the log speaks of. EV_NO_ACTION events are not extended.
// PCR 0 begins with the startup locality in its last byte, and with 4 if its first
// event is an H-CRTM event (PFP 3.3.4 and 10.4.5.3). It allocates nothing per
// event. An unknown bank, or one that cannot be replayed, is an error.
func (l *Log) Replay(bankName string) (PCRs, error) {
	b, err := l.bank(bankName)
	if err != nil {
		return nil, err
	}
	var s state
	l.replay(b, &s)
	pcrs := make(PCRs)
	for i := range s.value {
		if s.extended[i] > 0 || i == 0 && l.locality != 0 {
			pcrs[i] = bytes.Clone(s.value[i][:b.size])
		}
	}
	return pcrs, nil
}

// Values are what [Log.Replay] leads to, for all PCRs there are: those that the log
// does not extend have the value of a reset.
func (l *Log) Values(bankName string) (PCRs, error) {
	b, err := l.bank(bankName)
	if err != nil {
		return nil, err
	}
	var s state
	l.replay(b, &s)
	pcrs := make(PCRs, pcrCount)
	for i := range s.value {
		pcrs[i] = bytes.Clone(s.value[i][:b.size])
	}
	return pcrs, nil
}

func (l *Log) replay(b bank, s *state) {
	s.reset(b, l.locality)
	var buf [2 * maxDigest]byte
	for i := range l.Events {
		e := &l.Events[i]
		if e.Type == NoAction {
			continue
		}
		pcr := &s.value[e.PCR]
		if e.PCR == 0 && s.extended[0] == 0 && e.Type == EFIHCRTM {
			pcr[b.size-1] = 4
		}
		copy(buf[:], pcr[:b.size])
		copy(buf[b.size:], l.digest(e, b))
		*pcr = b.alg.sum(buf[:2*b.size])
		s.extended[e.PCR]++
	}
}

// reset sets the values of a TPM that was just started: zeros, and ones in the
// PCRs 17 to 22 until a dynamic launch clears them (PC Client platform TPM
// profile, table 5).
func (s *state) reset(b bank, locality int) {
	for i := 17; i <= 22; i++ {
		for j := range b.size {
			s.value[i][j] = 0xff
		}
	}
	s.value[0][b.size-1] = byte(locality)
}

// digest returns the event's digest in the bank, a part of the log's bytes.
func (l *Log) digest(e *Event, b bank) []byte {
	return l.data[e.at[b.slot]:][:b.size]
}

// Digest returns the event's digest in the named bank, nil if the log has no such
// bank. The caller must not change it.
func (l *Log) Digest(e *Event, bankName string) []byte {
	for _, b := range l.banks {
		if b.alg.String() == bankName {
			return l.digest(e, b)
		}
	}
	return nil
}

// hashes reports whether data is what the event's digest is of.
func (l *Log) hashes(e *Event, b bank, data []byte) bool {
	sum := b.alg.sum(data)
	return bytes.Equal(sum[:b.size], l.digest(e, b))
}
