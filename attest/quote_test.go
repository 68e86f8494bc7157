package attest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/attest/eventlog"
)

func read(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// shared returns a file of the data that is kept beside the repository.
func shared(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile("../../shared/testdata/attest/" + name)
	if os.IsNotExist(err) {
		t.Skip("skipped: ../shared/testdata/attest is not here")
	}
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func wantError(t *testing.T, err error, part string) {
	t.Helper()
	if err == nil {
		t.Fatalf("accepted; want an error with %q", part)
	}
	if !strings.Contains(err.Error(), part) {
		t.Fatalf("refused with %q; want %q in it", err, part)
	}
}

func TestLocalBootQuotes(t *testing.T) {
	for _, boot := range []string{"secureboot-shim-grub", "uki-systemd-stub"} {
		t.Run(boot, func(t *testing.T) {
			base := "testdata/local-boot/" + boot
			f := QuoteFiles{Quote: read(t, base+".quote"), Signature: read(t, base+".sig"), AK: read(t, base+".ak"), Nonce: read(t, base+".nonce")}
			r, err := InspectQuote(f)
			if err != nil {
				t.Fatal(err)
			}
			if got := r.Selection["sha256"]; len(got) != 15 || got[14] != 14 || !r.AttributesChecked || !r.NonceChecked || r.PCRsChecked {
				t.Errorf("report %+v", r)
			}
			if r.Firmware != "2019102300163636" || !r.Safe || r.ResetCount == 0 {
				t.Errorf("clock and firmware %+v", r)
			}
			f.Nonce = bytes.Repeat([]byte{1}, 32)
			_, err = InspectQuote(f)
			wantError(t, err, "the nonce is")
		})
	}
}

// TestLocalBootPCRs checks the PCR values that the project recorded for its two
// measured boots against the quotes, in the strict and in the lenient form.
func TestLocalBootPCRs(t *testing.T) {
	var expected map[string]map[string]string
	if err := json.Unmarshal(shared(t, "local-boot/expected-sha256.json"), &expected); err != nil {
		t.Fatal(err)
	}
	for boot, pcrs := range expected {
		base := "testdata/local-boot/" + boot
		f := QuoteFiles{Quote: read(t, base+".quote"), Signature: read(t, base+".sig"), AK: read(t, base+".ak"), Nonce: read(t, base+".nonce")}
		values := make(map[int][32]byte)
		var raw []byte
		for pcr := range 15 {
			v, err := hex.DecodeString(pcrs[itoa(pcr)])
			if err != nil || len(v) != 32 {
				t.Skipf("skipped: PCR %d of %s is not recorded", pcr, boot)
			}
			values[pcr] = [32]byte(v)
			raw = append(raw, v...)
		}
		if _, err := VerifyQuote(f.AK, f.Quote, f.Signature, QuoteExpectation{f.Nonce, values}); err != nil {
			t.Errorf("%s: %v", boot, err)
		}
		flat, err := json.Marshal(pcrs)
		if err != nil {
			t.Fatal(err)
		}
		for _, form := range [][]byte{raw, flat} {
			f.PCRs = form
			if r, err := InspectQuote(f); err != nil || !r.PCRsChecked {
				t.Errorf("%s: %v", boot, err)
			}
		}
		f.Log = shared(t, "local-boot/"+boot+".bios")
		if r, err := InspectQuote(f); err != nil || !r.LogChecked {
			t.Errorf("%s: %v", boot, err)
		}
		all := make(map[int]Digest)
		for pcr, v := range values {
			all[pcr] = v
		}
		list := shared(t, "local-boot/"+boot+".ima")
		entries, m, err := proveIMA(list, 0, nil, all)
		if err != nil || m.Entries != uint64(len(entries)) || m.PCR != all[pcrIMA] {
			t.Errorf("%s: %+v, %v", boot, m, err)
		}
		_, _, err = proveIMA(nil, 0, nil, all)
		wantError(t, err, "no prefix")
		all[0] = Digest{1}
		_, _, err = proveIMA(list, 0, nil, all)
		wantError(t, err, "another boot")
		f.Log = f.Log[:len(f.Log)/2]
		if _, err := InspectQuote(f); err == nil {
			t.Errorf("%s: half a log was accepted", boot)
		}
		f.Log = nil
		values[4] = [32]byte{1}
		_, err = VerifyQuote(f.AK, f.Quote, f.Signature, QuoteExpectation{f.Nonce, values})
		wantError(t, err, "is not that of the PCR values")
		f.PCRs = raw[:len(raw)-1]
		_, err = InspectQuote(f)
		wantError(t, err, "cut off")
	}
}

func itoa(i int) string { b, _ := json.Marshal(i); return string(b) }

func TestQuoteKeyTypes(t *testing.T) {
	nonce := []byte("0123456789abcdef")
	values, list := pcrValues(0, 7)
	for name, f := range map[string]*forger{
		"P-256 SHA-256":  newForger(t, elliptic.P256(), akAttributes, algSHA256),
		"P-384 SHA-256":  newForger(t, elliptic.P384(), akAttributes, algSHA256),
		"RSASSA SHA-256": newRSAForger(t, algRSASSA, algSHA256),
		"RSAPSS SHA-256": newRSAForger(t, algRSAPSS, algSHA256),
	} {
		t.Run(name, func(t *testing.T) {
			quote := forgedQuote(nonce, selection(Bank{algSHA256, []int{0, 7}}), list...)
			q, err := VerifyQuote(f.public, quote, f.sign(t, quote), QuoteExpectation{nonce, values})
			if err != nil {
				t.Fatal(err)
			}
			if q.Clock != someClock || len(q.PCRs) != 2 {
				t.Errorf("quote %+v", q)
			}
			sig := f.sign(t, quote)
			sig[len(sig)-1] ^= 1
			_, err = VerifyQuote(f.public, quote, sig, QuoteExpectation{nonce, values})
			wantError(t, err, "does not verify")
		})
	}
}

// A key bound to SHA-384 digests the PCRs with SHA-384 as well.
func TestQuoteSHA384(t *testing.T) {
	f := newForger(t, elliptic.P384(), akAttributes, algSHA384)
	nonce := []byte("0123456789abcdef")
	values, list := pcrValues(1)
	digest := digestOf(5+1, list) // crypto.SHA384
	b := header(magicGenerated, stQuote, nil, nonce, someClock)
	quote := appendSized(append(b, selection(Bank{algSHA256, []int{1}})...), digest)
	if _, err := VerifyQuote(f.public, quote, f.sign(t, quote), QuoteExpectation{nonce, values}); err != nil {
		t.Fatal(err)
	}
}

func TestQuoteRefusals(t *testing.T) {
	f := newForger(t, elliptic.P256(), akAttributes, algSHA256)
	nonce := []byte("0123456789abcdef")
	values, list := pcrValues(0, 1)
	good := selection(Bank{algSHA256, []int{0, 1}})
	body := func(magic uint32, kind uint16, sel []byte) []byte {
		h := sha256.New()
		for _, v := range list {
			h.Write(v)
		}
		return appendSized(append(header(magic, kind, nil, nonce, someClock), sel...), h.Sum(nil))
	}
	for name, c := range map[string]struct {
		quote []byte
		part  string
	}{
		"wrong magic":       {body(0x54434747, stQuote, good), "not made by a TPM"},
		"certify as quote":  {body(magicGenerated, stCertify, good), "type 0x8017 is not 0x8018"},
		"empty selection":   {body(magicGenerated, stQuote, selection(Bank{algSHA256, nil})), "empty"},
		"no bank":           {body(magicGenerated, stQuote, selection()), "no bank"},
		"sha1 bank":         {body(magicGenerated, stQuote, selection(Bank{algSHA1, []int{0, 1}})), "sha1:[0 1]"},
		"two banks":         {body(magicGenerated, stQuote, selection(Bank{algSHA256, []int{0, 1}}, Bank{algSHA1, []int{0}})), "sha256 bank alone"},
		"bank twice":        {body(magicGenerated, stQuote, selection(Bank{algSHA256, []int{0, 1}}, Bank{algSHA256, []int{0}})), "named twice"},
		"relabelled":        {body(magicGenerated, stQuote, selection(Bank{algSHA256, []int{2, 3}})), "signed selection is PCR [2 3]"},
		"superset":          {body(magicGenerated, stQuote, selection(Bank{algSHA256, []int{0, 1, 2}})), "signed selection is PCR"},
		"trailing byte":     {append(body(magicGenerated, stQuote, good), 0), "left over"},
		"truncated":         {body(magicGenerated, stQuote, good)[:60], "wanted"},
		"nothing":           {nil, "wanted"},
		"many banks":        {append(header(magicGenerated, stQuote, nil, nonce, someClock), 0, 0, 255, 255), "more than"},
		"other extra data":  {appendSized(append(header(magicGenerated, stQuote, nil, []byte("x"), someClock), good...), nil), "extra data"},
		"wrong digest size": {appendSized(append(header(magicGenerated, stQuote, nil, nonce, someClock), good...), []byte{1}), "is not that of the PCR values"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := VerifyQuote(f.public, c.quote, f.sign(t, c.quote), QuoteExpectation{nonce, values})
			wantError(t, err, c.part)
		})
	}
	quote := body(magicGenerated, stQuote, good)
	_, err := VerifyQuote(f.public, quote, f.sign(t, quote), QuoteExpectation{nil, values})
	wantError(t, err, "no nonce was expected")
	_, err = VerifyQuote(f.public, quote, f.sign(t, quote), QuoteExpectation{nonce, nil})
	wantError(t, err, "wanted []")
	_, err = VerifyQuote(f.public, quote, nil, QuoteExpectation{nonce, values})
	wantError(t, err, "parse signature")
}

func TestQuoteSafeByte(t *testing.T) {
	f := newForger(t, elliptic.P256(), akAttributes, algSHA256)
	nonce := []byte("0123456789abcdef")
	values, list := pcrValues(0)
	quote := forgedQuote(nonce, selection(Bank{algSHA256, []int{0}}), list...)
	at := 4 + 2 + 2 + len("signer") + 2 + len(nonce) + 16
	if quote[at] != 1 {
		t.Fatalf("safe is not at byte %d", at)
	}
	quote[at] = 2
	_, err := VerifyQuote(f.public, quote, f.sign(t, quote), QuoteExpectation{nonce, values})
	wantError(t, err, "neither 0 nor 1")
}

func TestAttackUnrestrictedSigningKey(t *testing.T) {
	nonce := []byte("0123456789abcdef")
	values, list := pcrValues(0)
	quote := forgedQuote(nonce, selection(Bank{algSHA256, []int{0}}), list...)
	for name, missing := range map[string]Attributes{
		"restricted": Restricted, "sign": Sign, "fixedTPM": FixedTPM, "fixedParent": FixedParent, "sensitiveDataOrigin": SensitiveDataOrigin,
	} {
		f := newForger(t, elliptic.P256(), akAttributes&^missing, algSHA256)
		_, err := VerifyQuote(f.public, quote, f.sign(t, quote), QuoteExpectation{nonce, values})
		wantError(t, err, "attribute "+name+" is not set")
		_, err = InspectQuote(QuoteFiles{Quote: quote, Signature: f.sign(t, quote), AK: f.public})
		wantError(t, err, "attribute "+name+" is not set")
	}
	f := newForger(t, elliptic.P256(), akAttributes|Decrypt, algSHA256)
	_, err := VerifyQuote(f.public, quote, f.sign(t, quote), QuoteExpectation{nonce, values})
	wantError(t, err, "attribute decrypt is set")
}

func TestAttackSHA1Signature(t *testing.T) {
	f := newForger(t, elliptic.P256(), akAttributes, algSHA256)
	nonce := []byte("0123456789abcdef")
	values, list := pcrValues(0)
	quote := forgedQuote(nonce, selection(Bank{algSHA256, []int{0}}), list...)
	sig := f.sign(t, quote)
	sig[3] = byte(algSHA1)
	_, err := VerifyQuote(f.public, quote, sig, QuoteExpectation{nonce, values})
	wantError(t, err, "SHA-1")
	sig[3] = byte(algSHA384)
	_, err = VerifyQuote(f.public, quote, sig, QuoteExpectation{nonce, values})
	wantError(t, err, "is not the key's")
}

func TestInspectQuoteRefusals(t *testing.T) {
	f := newForger(t, elliptic.P256(), akAttributes, algSHA256)
	nonce := []byte("0123456789abcdef")
	zero := make([]byte, 32)
	_, list := pcrValues(0)
	inspect := func(quote, pcrs, log []byte) error {
		_, err := InspectQuote(QuoteFiles{Quote: quote, Signature: f.sign(t, quote), AK: f.public, PCRs: pcrs, Log: log})
		return err
	}
	one := selection(Bank{algSHA256, []int{0}})
	wantError(t, inspect(forgedQuote(nil, one, list...), nil, nil), "nonce is empty")
	wantError(t, inspect(forgedQuote(nonce, one, zero), nil, nil), "no measured boot")
	wantError(t, inspect(forgedQuote(nonce, selection(Bank{algSHA256, []int{0, 1}}), zero, zero), nil, nil), "no measured boot")
	wantError(t, inspect(forgedQuote(nonce, selection(Bank{algSHA1, []int{0}}), list...), nil, nil), "SHA-1 is refused")
	wantError(t, inspect(forgedQuote(nonce, selection(Bank{algSHA256, []int{0}}, Bank{algSHA1, []int{0}}), list...), nil, nil), "SHA-1 is refused")
	wantError(t, inspect(forgedQuote(nonce, selection(Bank{algSHA256, nil})), nil, nil), "empty")
	wantError(t, inspect(forgedQuote(nonce, one, list...), []byte(`{"0":"00"}`), nil), "PCR sha256:0 has 1 bytes, wanted 32")
	wantError(t, inspect(forgedQuote(nonce, one, list...), []byte(`{`), nil), "expected PCRs are not")
	wantError(t, inspect(forgedQuote(nonce, one, list...), append(list[0], 1), nil), "1 bytes follow")
	wantError(t, inspect(forgedQuote(nonce, one, list...), nil, []byte("log")), "eventlog: offset 0")
	boot := read(t, "testdata/local-boot/uki-systemd-stub.bios")
	wantError(t, inspect(forgedQuote(nonce, one, list...), nil, boot), "is not what the log leads to")
	wantError(t, inspect(forgedQuote(nonce, selection(Bank{algSHA256, []int{0, 10}}), list[0], list[0]), nil, boot), "PCR 10 is quoted")
	quote := forgedQuote(nonce, one, list...)
	_, err := InspectQuote(QuoteFiles{Quote: quote, Signature: f.sign(t, quote), AK: f.public, Nonce: fmt.Appendf(nil, "%X\n", nonce)})
	wantError(t, err, "give the bytes")
}

// A log by itself leads to the values that were signed, those of PCRs that it does not
// extend included; banks of which nothing is selected are passed over.
func TestInspectQuoteByLog(t *testing.T) {
	f := newForger(t, elliptic.P256(), akAttributes, algSHA256)
	nonce := []byte("0123456789abcdef")
	log := read(t, "testdata/local-boot/uki-systemd-stub.bios")
	parsed, err := eventlog.Parse(log)
	if err != nil {
		t.Fatal(err)
	}
	values, err := parsed.Values("sha256")
	if err != nil {
		t.Fatal(err)
	}
	pcrs := []int{0, 4, 7, 8, 11, 17}
	var list [][]byte
	for _, pcr := range pcrs {
		list = append(list, values[pcr])
	}
	for _, banks := range [][]Bank{{{algSHA256, pcrs}}, {{algSHA1, nil}, {algSHA256, pcrs}}} {
		quote := forgedQuote(nonce, selection(banks...), list...)
		files := QuoteFiles{Quote: quote, Signature: f.sign(t, quote), AK: f.public, Nonce: nonce, Log: log}
		if r, err := InspectQuote(files); err != nil || !r.LogChecked || !r.PCRsChecked {
			t.Errorf("%+v: %v", r, err)
		}
		files.PCRs = bytes.Join(list, nil)
		if r, err := InspectQuote(files); err != nil || !r.LogChecked {
			t.Errorf("%+v: %v", r, err)
		}
	}
}

func TestDecodeAK(t *testing.T) {
	f := newForger(t, elliptic.P384(), akAttributes, algSHA256)
	der, err := x509.MarshalPKIXPublicKey(f.key.Public())
	if err != nil {
		t.Fatal(err)
	}
	sized := appendSized(nil, f.public)
	for name, b := range map[string][]byte{
		"pem": pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), "der": der, "public": f.public, "sized": sized,
	} {
		key, ak, err := DecodeAK(b)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if !f.key.Public().(*ecdsa.PublicKey).Equal(key) || (ak == nil) != (name == "pem" || name == "der") {
			t.Errorf("%s: %v %v", name, key, ak)
		}
	}
	if _, _, err := DecodeAK(nil); err == nil {
		t.Error("nothing was accepted as a key")
	}
}

// TestPublishedQuotes holds the lenient form to quotes of machines of others.
func TestPublishedQuotes(t *testing.T) {
	t.Run("az-cvm", func(t *testing.T) {
		b := shared(t, "quote/az-cvm_quote.bin")
		next := func(n int) []byte { v := b[:n]; b = b[n:]; return v }
		length := func() int { v := next(8); return int(v[0]) | int(v[1])<<8 }
		raw := next(length())
		quote := next(length())
		var pcrs []byte
		for range length() {
			pcrs = append(pcrs, next(32)...)
		}
		// The container holds the bare RSA signature: give it its TPM framing.
		sig := appendSized([]byte{0, byte(algRSASSA), 0, byte(algSHA256)}, raw)
		r, err := InspectQuote(QuoteFiles{Quote: quote, Signature: sig, AK: shared(t, "quote/az-cvm_akpub.pem"), Nonce: []byte("challenge"), PCRs: pcrs})
		if err != nil {
			t.Fatal(err)
		}
		if r.AttributesChecked || !r.PCRsChecked || r.Key != "RSASSA 2048" {
			t.Errorf("report %+v", r)
		}
	})
	t.Run("windows shielded vm", func(t *testing.T) {
		var d struct {
			AK    struct{ Public []byte }
			Quote struct{ Quote, Signature []byte }
		}
		if err := json.Unmarshal(shared(t, "quote/windows_gcp_shielded_vm.json"), &d); err != nil {
			t.Fatal(err)
		}
		_, err := InspectQuote(QuoteFiles{Quote: d.Quote.Quote, Signature: d.Quote.Signature, AK: d.AK.Public})
		wantError(t, err, "SHA-1 is refused")
	})
	t.Run("trustee", func(t *testing.T) {
		var d struct {
			Public []byte `json:"ak_public"`
			Quote  struct {
				Message, Signature []byte
				PCRs               []string
			} `json:"tpm_quote"`
		}
		if err := json.Unmarshal(shared(t, "quote/trustee_tpm_evidence.json"), &d); err != nil {
			t.Fatal(err)
		}
		ak := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: d.Public})
		pcrs := make(map[string]string)
		for i, v := range d.Quote.PCRs {
			pcrs[itoa(i)] = v
		}
		values, err := json.Marshal(pcrs)
		if err != nil {
			t.Fatal(err)
		}
		for _, given := range [][]byte{values, nil} {
			_, err = InspectQuote(QuoteFiles{Quote: d.Quote.Message, Signature: d.Quote.Signature, AK: ak, PCRs: given})
			wantError(t, err, "no measured boot")
		}
	})
}
