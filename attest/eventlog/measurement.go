package eventlog

import (
	"bytes"
	"encoding/binary"
	"slices"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// A Measurement is one extend, with the text that it is of if the log proves one.
type Measurement struct {
	Event  int
	PCR    int
	Digest []byte
	Text   string // empty unless the digest is that of this text
}

// Measurements lists what the PCRs were extended with, in the log's order: GRUB's
// commands and the kernel's command line are in PCR 8, digests of the files it read
// in 9, command line and credentials of systemd-stub in 12, shim's machine owner keys
// (MokList, MokListX, MokSBState, MokListTrusted) in 14. Text is shown only if it
// hashes to the digest, so names that merely stand beside a digest are left out.
func (l *Log) Measurements(bankName string, pcrs ...int) ([]Measurement, error) {
	b, err := l.bank(bankName)
	if err != nil {
		return nil, err
	}
	var all []Measurement
	for i := range l.Events {
		e := &l.Events[i]
		if e.Type == NoAction || !slices.Contains(pcrs, int(e.PCR)) {
			continue
		}
		all = append(all, Measurement{i, int(e.PCR), l.digest(e, b), l.text(e, b)})
	}
	return all, nil
}

// labels are what GRUB and its forks put before the text they measured.
var labels = [][]byte{
	[]byte("grub_cmd: "), []byte("grub_cmd "), []byte("kernel_cmdline: "),
	[]byte("grub_kernel_cmdline "), []byte("module_cmdline: "),
}

// text returns the part of the event's data that hashes to its digest: all of it,
// or without the label before it, or the zero byte behind it. It is empty if there is
// none or if it is not text.
func (l *Log) text(e *Event, b bank) string {
	if len(e.Data) > maxText {
		return ""
	}
	bodies := [][]byte{e.Data}
	for _, label := range labels {
		if body, found := bytes.CutPrefix(e.Data, label); found {
			bodies = append(bodies, body)
		}
	}
	for _, body := range bodies {
		for _, part := range [][]byte{body, bytes.TrimSuffix(body, []byte{0})} {
			if l.hashes(e, b, part) {
				return readable(part)
			}
		}
	}
	return ""
}

// readable returns UTF-8 or UTF-16 text that is safe to show on a terminal, without
// zeros at its end, and the empty string for anything else.
func readable(data []byte) string {
	s := string(bytes.TrimRight(data, "\x00"))
	if len(data)%2 == 0 && len(data) > 2 && data[1] == 0 {
		units := make([]uint16, len(data)/2)
		for i := range units {
			units[i] = binary.LittleEndian.Uint16(data[2*i:])
		}
		s = string(bytes.TrimRight([]byte(string(utf16.Decode(units))), "\x00"))
	}
	if !utf8.ValidString(s) {
		return ""
	}
	for _, r := range s {
		if !unicode.IsPrint(r) && r != '\n' && r != '\t' {
			return ""
		}
	}
	return s
}
