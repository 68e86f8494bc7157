package eventlog

import "testing"

// TestReplayAllocatesNothing: neither a replay nor a judgement allocates per event.
func TestReplayAllocatesNothing(t *testing.T) {
	data, quoted := localBoot(t, "secureboot-shim-grub")
	l := mustParse(t, data)
	for _, name := range []string{"sha1", "sha256", "sha384"} {
		b, err := l.bank(name)
		if err != nil {
			t.Fatal(err)
		}
		var s state
		if n := testing.AllocsPerRun(100, func() { l.replay(b, &s) }); n != 0 {
			t.Errorf("%s: %v allocations in a replay of %d events", name, n, len(l.Events))
		}
	}
	n := testing.AllocsPerRun(100, func() {
		if err := l.Explain("sha256", quoted); err != nil {
			t.Fatal(err)
		}
	})
	if n > 12 {
		t.Errorf("%v allocations to explain %d events", n, len(l.Events))
	}
}

func BenchmarkParse(b *testing.B) {
	data, _ := localBoot(b, "secureboot-shim-grub")
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Parse(data); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkReplay(b *testing.B) {
	data, _ := localBoot(b, "secureboot-shim-grub")
	l := mustParse(b, data)
	column, err := l.bank("sha256")
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	var s state
	for b.Loop() {
		s = state{}
		l.replay(column, &s)
	}
	b.ReportMetric(float64(len(l.Events))*float64(b.N)/b.Elapsed().Seconds(), "events/s")
}

// BenchmarkExplain is what each quote costs with a log that is new: reading it and
// leading it to the PCRs.
func BenchmarkExplain(b *testing.B) {
	data, quoted := localBoot(b, "secureboot-shim-grub")
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		l, err := Parse(data)
		if err != nil {
			b.Fatal(err)
		}
		if err := l.Explain("sha256", quoted); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkClaims draws everything that Summary shows.
func BenchmarkClaims(b *testing.B) {
	data, quoted := localBoot(b, "secureboot-shim-grub")
	l := mustParse(b, data)
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := l.Summary("sha256", quoted); err != nil {
			b.Fatal(err)
		}
	}
}
