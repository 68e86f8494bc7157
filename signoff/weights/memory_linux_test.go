package weights

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Sealing and opening take the same memory for any size.
func TestMemoryIsBounded(t *testing.T) {
	const limit = 64 << 10 // KiB
	small, large := peakMemory(t, 64<<20), peakMemory(t, 512<<20)
	t.Logf("peak memory: %d KiB for 64 MiB, %d KiB for 512 MiB", small, large)
	if large > limit || large > small+16<<10 {
		t.Errorf("sealing and opening 512 MiB took %d KiB, 64 MiB took %d KiB; want at most %d", large, small, limit)
	}
}

const sizeVariable = "KEYTURN_TEST_SIZE"

// peakMemory seals and opens sparse files in a process of its own. It returns
// what that process held at most, in KiB.
func peakMemory(t *testing.T, size int64) (peak int64) {
	t.Helper()
	cmd := exec.Command(must(os.Executable()), "-test.run=^TestSealInProcess$", "-test.v")
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d", sizeVariable, size))
	out, err := cmd.CombinedOutput()
	_, text, ok := strings.Cut(string(out), "VmHWM:")
	if _, scan := fmt.Sscan(text, &peak); err != nil || !ok || scan != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return peak
}

func TestSealInProcess(t *testing.T) {
	var size int64
	if _, err := fmt.Sscan(os.Getenv(sizeVariable), &size); err != nil {
		t.Skip("is run by TestMemoryIsBounded")
	}
	src, b := model(t, map[string][]byte{"w": nil, "x": nil}), newBox()
	for _, name := range []string{"w", "x"} {
		if err := os.Truncate(filepath.Join(src, name), size/2); err != nil {
			t.Fatal(err)
		}
	}
	dst, s := sealTo(t, src, b)
	if err := directory(t, dst, s).Open(t.Context(), filepath.Join(t.TempDir(), "out"), b.keyFor, Run{}); err != nil {
		t.Fatal(err)
	}
	t.Logf("%s", must(os.ReadFile("/proc/self/status")))
}
