package etcd

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"
)

// childDir tells the test binary to be the process that is killed.
const childDir = "KEYTURN_TEST_ORDER"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		if err := appendForEver(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// appendForEver appends from eight goroutines, and prints each index and leaf
// once it was acknowledged.
func appendForEver(dir string) error {
	ctx := context.Background()
	o, err := OpenEmbedded(ctx, dir)
	if err != nil {
		return err
	}
	start, err := o.Head(ctx)
	if err != nil {
		return err
	}
	var mu sync.Mutex
	failed := make(chan error)
	for w := range 8 {
		go func() {
			for i := 0; ; i++ {
				leaf := fmt.Sprintf("start-%d-worker-%d-leaf-%d.", start, w, i)
				index, _, err := o.Append(ctx, id(int(start)*8+w, i), []byte(leaf))
				if err != nil {
					failed <- err
					return
				}
				mu.Lock()
				fmt.Println(index, leaf)
				mu.Unlock()
			}
		}()
	}
	return <-failed
}

// The process that holds the embedded etcd is killed with SIGKILL in the midst
// of appends, again and again on the same directory. Everything it had
// acknowledged is there, at the index it had said.
func TestKillLosesNothing(t *testing.T) {
	dir := t.TempDir()
	told := map[uint64]string{}
	for round := range 3 {
		runAndKill(t, dir, 150+100*round, told)
	}
	o := openTest(t, dir)
	log := all(t, o)
	if len(log) < len(told) {
		t.Fatalf("%d entries, %d were acknowledged", len(log), len(told))
	}
	for index, leaf := range told {
		if string(log[index]) != leaf {
			t.Errorf("entry %d is %q, acknowledged was %q", index, log[index], leaf)
		}
	}
	seen := map[string]bool{}
	for i, l := range log {
		if seen[string(l)] {
			t.Errorf("entry %d, %q, is there twice", i, l)
		}
		seen[string(l)] = true
	}
}

func runAndKill(t *testing.T, dir string, after int, told map[uint64]string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), childDir+"="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	watchdog := time.AfterFunc(60*time.Second, func() { _ = cmd.Process.Kill() })
	defer watchdog.Stop()
	lines := bufio.NewScanner(out)
	for n := 0; lines.Scan(); n++ {
		var index uint64
		var leaf string
		if _, err := fmt.Sscanf(lines.Text(), "%d %s", &index, &leaf); err != nil || !strings.HasSuffix(leaf, ".") {
			continue // cut by the kill
		}
		if have, ok := told[index]; ok {
			t.Errorf("index %d was acknowledged for %q and for %q", index, have, leaf)
		}
		told[index] = leaf
		if n == after {
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := cmd.Wait(); err == nil {
		t.Fatal("the child ended by itself")
	}
	if len(told) < after {
		t.Fatalf("only %d acknowledgements before the end", len(told))
	}
}
