package ui

import (
	"math"
	"testing"
)

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
