package ui

import (
	"errors"
	"math"
	"strings"
	"testing"
	"time"
)

func TestBarFitsTheTerminal(t *testing.T) {
	const most = 999_900_000_000
	for columns := range 120 {
		for _, n := range []int64{0, 1, most / 3, most} {
			line := bar("exporting", n, most, 3599*time.Second, columns)
			if columns > 0 && len(line) >= columns || columns == 0 && line != "" {
				t.Fatalf("%d columns for a line of %d: %q", columns, len(line), line)
			}
			if columns >= 75 && (strings.Count(line, "#")+strings.Count(line, ".") < 4 || !strings.HasSuffix(line, " left")) {
				t.Fatalf("%d columns: %q", columns, line)
			}
		}
	}
	if got, want := bar("sealing", 1<<30, 1<<31, 2*time.Second, 80), "sealing [############............]  50 %  1.1 GB of 2.1 GB  536.9 MB/s  2s left"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got := bar("sealing", 0, 0, 0, 80); !strings.Contains(got, "0 B of 0 B") {
		t.Errorf("nothing to do: %q", got)
	}
}

func TestParseBytes(t *testing.T) {
	for text, want := range map[string]int64{"0": 0, "17": 17, "17B": 17, "3 kB": 3000, "200GB": 200_000_000_000, "9 PB": 9_000_000_000_000_000, "9223372036854775807": math.MaxInt64} {
		if got, err := ParseBytes(text); err != nil || got != want {
			t.Errorf("%q is %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "GB", "-1", "1.5GB", "1 GiB", "1gb", "1 G", "1 kBB", "1 B B", "10000PB", "9223372036854775808", "0x10", "1e9"} {
		if got, err := ParseBytes(text); err == nil {
			t.Errorf("%q is taken as %d", text, got)
		}
	}
}

// The text of an error may be a coordinator's.
func TestAttackErrorThatDraws(t *testing.T) {
	var out strings.Builder
	p := &Printer{Err: &out}
	p.Report("keyturn", WithHint(errors.New("no\x1b[2J\r\u009b2J\u202eABC\u2066\u200b\x80\nkeyturn: done"), "do\u009b1A"))
	if want := "keyturn: no?[2J??2J?ABC???; keyturn: done\nhint: do?1A\n"; out.String() != want {
		t.Errorf("%q, want %q", out.String(), want)
	}
}
