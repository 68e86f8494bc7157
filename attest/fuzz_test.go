package attest

import (
	"bytes"
	"crypto/elliptic"
	"testing"

	"github.com/google/go-tpm/tpm2"
)

// Each decoder must neither panic nor read beyond its input, and what it accepts
// must be what go-tpm's decoder, which works by reflection, accepts as well.

func seeds(f *testing.F, suffix string) {
	for _, boot := range []string{"secureboot-shim-grub", "uki-systemd-stub"} {
		f.Add(read(f, "testdata/local-boot/"+boot+suffix))
	}
}

func FuzzParsePublic(f *testing.F) {
	seeds(f, ".ak")
	f.Add(newForger(f, elliptic.P384(), akAttributes, algSHA384).public)
	f.Add(newRSAForger(f, algRSAPSS, algSHA256).public)
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := ParsePublic(b)
		if err != nil {
			return
		}
		theirs, err := tpm2.Unmarshal[tpm2.TPMTPublic](b)
		if err != nil {
			t.Fatalf("go-tpm refuses what was accepted: %v", err)
		}
		name, err := tpm2.ObjectName(theirs)
		if err == nil && bytes.Equal(tpm2.Marshal(theirs), b) && !bytes.Equal(name.Buffer, p.Name()) {
			t.Fatalf("name %x, go-tpm says %x", p.Name(), name.Buffer)
		}
	})
}

func FuzzParseSignature(f *testing.F) {
	seeds(f, ".sig")
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := ParseSignature(b); err != nil {
			return
		}
		if _, err := tpm2.Unmarshal[tpm2.TPMTSignature](b); err != nil {
			t.Fatalf("go-tpm refuses what was accepted: %v", err)
		}
	})
}

func FuzzParseStatement(f *testing.F) {
	seeds(f, ".quote")
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, kind := range []uint16{stQuote, stCertify} {
			s, err := parseStatement(b, kind)
			if err != nil {
				continue
			}
			theirs, err := tpm2.Unmarshal[tpm2.TPMSAttest](b)
			if err != nil {
				t.Fatalf("go-tpm refuses what was accepted: %v", err)
			}
			if !bytes.Equal(theirs.ExtraData.Buffer, s.extraData) || theirs.ClockInfo.ResetCount != s.clock.ResetCount {
				t.Fatalf("read %+v, go-tpm %+v", s, theirs)
			}
		}
	})
}

func FuzzParseSelection(f *testing.F) {
	f.Add(selection(Bank{algSHA256, []int{0, 7, 23}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		banks, err := ParseSelection(b)
		if err != nil {
			return
		}
		for _, bank := range banks {
			for i, pcr := range bank.PCRs {
				if pcr < 0 || pcr > maxPCR || i > 0 && bank.PCRs[i-1] >= pcr {
					t.Fatalf("selection %v", bank)
				}
			}
		}
	})
}

func FuzzDecodePCRs(f *testing.F) {
	banks := []Bank{{algSHA256, []int{0, 4}}, {algSHA384, []int{0}}}
	f.Add(serialize(banks, make([]byte, 32), make([]byte, 32), make([]byte, 48)))
	f.Add([]byte("sha256:\n 0 : 0x00\n"))
	f.Add(make([]byte, 32+32+48))
	f.Fuzz(func(t *testing.T, b []byte) {
		values, err := decodePCRs(b, banks)
		if err != nil {
			return
		}
		for _, bank := range banks {
			for _, pcr := range bank.PCRs {
				if len(values[bank.Algorithm][pcr]) != bank.size() {
					t.Fatalf("PCR %d of %d bytes", pcr, len(values[bank.Algorithm][pcr]))
				}
			}
		}
	})
}

func FuzzReadEKCert(f *testing.F) {
	seeds(f, ".ekcert.der")
	f.Fuzz(func(t *testing.T, b []byte) {
		if der, err := DecodeEKCert(b); err == nil {
			_, _ = ReadEKCert(der) // must not panic
		}
	})
}

func FuzzParseEvidence(f *testing.F) {
	f.Add([]byte(`{"node":"sha256:0000000000000000000000000000000000000000000000000000000000000000","pcrs":{"0":"sha256:0000000000000000000000000000000000000000000000000000000000000000"}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		ev, err := ParseEvidence(b)
		if err != nil {
			return
		}
		one, err := ev.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParseEvidence(one)
		if err != nil {
			t.Fatal(err)
		}
		if two, err := again.Marshal(); err != nil || !bytes.Equal(one, two) {
			t.Fatalf("not stable: %v", err)
		}
	})
}
