package signoff_test

import (
	"strings"
	"testing"

	"github.com/keyturn/keyturn/signoff"
)

// What is put beside a message has to be what the message names, and the message
// the accused's.
func TestAttackFaultThatDoesNotFit(t *testing.T) {
	for name, c := range map[string]struct {
		share bool
		edit  func(*signoff.SigningFault)
		want  string
	}{
		"another list":       {true, func(f *signoff.SigningFault) { f.List[1][40] ^= 1 }, "the message's share is for"},
		"a shorter list":     {true, func(f *signoff.SigningFault) { f.List = f.List[:2] }, "the message's share is for"},
		"bytes moved over":   {true, func(f *signoff.SigningFault) { f.List[0], f.List[1] = f.List[0][:65], append(f.List[1], 7) }, "of 65 bytes"},
		"one commitment":     {true, func(f *signoff.SigningFault) { f.List = f.List[:1] }, "a list of 1"},
		"too long a list":    {true, func(f *signoff.SigningFault) { f.List = make([][]byte, 32) }, "a list of 32"},
		"another payload":    {true, func(f *signoff.SigningFault) { f.Payload[0] ^= 1 }, "the message's share is of"},
		"no payload":         {true, func(f *signoff.SigningFault) { f.Payload = nil }, "the message's share is of"},
		"no list":            {true, func(f *signoff.SigningFault) { f.List = nil }, "a list of 0"},
		"another accused":    {true, func(f *signoff.SigningFault) { f.Accused = f.Notary }, "the message is notary"},
		"another charter":    {true, func(f *signoff.SigningFault) { f.Charter = digest("other") }, "the message is notary"},
		"no share":           {true, func(f *signoff.SigningFault) { f.Message = signingFault(false).Message }, "a share in the message"},
		"nobody":             {true, func(f *signoff.SigningFault) { f.Notary = signoff.Digest{} }, "notary or accused"},
		"no document":        {false, func(f *signoff.SigningFault) { f.Message = f.Message[1:] }, "dsse: parse"},
		"no signing":         {false, func(f *signoff.SigningFault) { f.Message = string(line(write(t, tick()))) }, "a tick"},
		"a fault in a fault": {false, func(f *signoff.SigningFault) { f.Message = string(line(write(t, signingFault(false)))) }, "a signing-fault"},
		"too long":           {false, func(f *signoff.SigningFault) { f.Message = strings.Repeat(" ", 4097) }, "4097 bytes"},
		"too much":           {true, func(f *signoff.SigningFault) { f.Payload = bytesOf(16385) }, "16385 bytes"},
		"neither": {false, func(f *signoff.SigningFault) {
			m := signing()
			m.Offer = nil
			f.Message = string(line(write(t, m)))
		}, "nor an offer"},
	} {
		f := signingFault(c.share)
		c.edit(f)
		if _, err := signoff.Write(f); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want: %s", name, err, c.want)
		}
	}
}
