package log

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// The backup of the manual (operations, "Back up") copies entries before the tiles
// made of them. Whatever is appended between the two, over the end of a tile too,
// the copy opens with all that there was when it began.
func TestBackupOfALogThatGoesOn(t *testing.T) {
	dir := t.TempDir()
	from, to := filepath.Join(dir, "log"), filepath.Join(dir, "backup")
	a := open1(t, from)
	add(t, a, leaves(0, 3))
	if err := os.MkdirAll(filepath.Join(to, "tile"), 0o755); err != nil {
		t.Fatal(err)
	}
	cp := func(parts string) {
		t.Helper()
		if out, err := exec.Command("sh", "-c", `cp -ru "$0"/tile/`+parts+` "$1/tile/"`, from, to).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	for a.Size() < 3*tileWidth {
		size := int(a.Size())
		cp("entries")
		add(t, a, leaves(size, size+7))
		cp("[0-9]*")
		copied, err := OpenReadOnly(to)
		if err != nil {
			t.Fatalf("entries copied at %d, tiles at %d: %v", size, size+7, err)
		}
		if copied.Size() != uint64(size) {
			t.Errorf("the copy has %d entries, there were %d", copied.Size(), size)
		}
		if err := copied.Close(); err != nil {
			t.Error(err)
		}
	}
}
