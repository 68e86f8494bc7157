package eventlog

import "fmt"

// A BootApplication is an image that PCR 4 was extended with.
type BootApplication struct {
	Event           int
	Digest          []byte // Authenticode digest of the image, as loaded
	BeforeSeparator bool   // measured while the firmware was still at work
	After           string // the last action that PCR 4 proves before it, empty for none
}

// BootApplications lists the images of PCR 4 in order: boot loaders, unified kernel
// images, kernels that a boot loader started. It is proved only for a bank in which
// [Log.Explain] passed with PCR 4 among the quoted.
//
// Types are not looked at, so that none can hide an image: whatever PCR 4 was
// extended with is an image, unless its digest is a separator's or that of printable
// text, which no image can be. A second separator is an error, since nothing then
// tells the firmware's images from the others. Where the list ends is not proved:
// firmware that does not measure ExitBootServices may have run more.
func (l *Log) BootApplications(bankName string) ([]BootApplication, error) {
	b, err := l.bank(bankName)
	if err != nil {
		return nil, err
	}
	separator, after := len(l.Events), ""
	apps := []BootApplication{}
	for i := range l.Events {
		e := &l.Events[i]
		if e.PCR != 4 || e.Type == NoAction {
			continue
		}
		if l.isSeparator(e, b) {
			if separator < i {
				return nil, fmt.Errorf("eventlog: offset %d, event %d in PCR 4: a second separator", e.Offset, i)
			}
			separator = i
		} else if text, ok := l.action(e, b); ok {
			after = text
		} else {
			apps = append(apps, BootApplication{Event: i, Digest: l.digest(e, b), After: after})
		}
	}
	for i := range apps {
		apps[i].BeforeSeparator = separator < len(l.Events) && apps[i].Event < separator
	}
	return apps, nil
}

// action returns the printable ASCII text that the event measured. The bytes that
// an Authenticode digest is of begin with an executable's headers, which hold bytes
// that are not printable, so an image cannot pass for text.
func (l *Log) action(e *Event, b bank) (string, bool) {
	const maxAction = 255
	if len(e.Data) == 0 || len(e.Data) > maxAction {
		return "", false
	}
	for _, c := range e.Data {
		if c < ' ' || c > '~' {
			return "", false
		}
	}
	return string(e.Data), l.hashes(e, b, e.Data)
}

// A Section is a part of a unified kernel image.
type Section struct {
	Event  int    // that measured the content
	Name   string // such as .linux
	Digest []byte // of the content
}

// sectionNames are those that systemd-stub measures (UAPI specification "Unified
// Kernel Image", and systemd's list of PCR measurements).
var sectionNames = []string{
	".linux", ".osrel", ".cmdline", ".initrd", ".ucode", ".splash", ".dtb", ".dtbauto", ".efifw",
	".hwids", ".uname", ".sbat", ".pcrpkey", ".profile",
}

// UKISections lists the sections that systemd-stub measured into PCR 11: for each,
// an extend of the name's hash and one of the content's. Names are told by their
// hashes. It is empty if PCR 11 has no events and an error if they are others. It
// is proved only for a bank in which [Log.Explain] passed with PCR 11 among the quoted.
func (l *Log) UKISections(bankName string) ([]Section, error) {
	b, err := l.bank(bankName)
	if err != nil {
		return nil, err
	}
	var sections []Section
	name := ""
	for i := range l.Events {
		e := &l.Events[i]
		if e.PCR != 11 || e.Type == NoAction {
			continue
		}
		if name != "" {
			sections, name = append(sections, Section{i, name, l.digest(e, b)}), ""
			continue
		}
		if name = l.sectionName(e, b); name == "" {
			return nil, fmt.Errorf("eventlog: offset %d, event %d in PCR 11: its digest is not that of a section's name", e.Offset, i)
		}
	}
	if name != "" {
		return nil, fmt.Errorf("eventlog: PCR 11 ends after the name of section %s", name)
	}
	return sections, nil
}

// sectionName returns the name whose hash, with a zero byte behind it, the digest is.
func (l *Log) sectionName(e *Event, b bank) string {
	for _, name := range sectionNames {
		if l.hashes(e, b, append([]byte(name), 0)) {
			return name
		}
	}
	return ""
}
