package hsmtest

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// Stop sends SIGSTOP to a process and returns when each of its threads has
// stopped, which is some time after kill(2) has returned: until then a thread on
// another processor can still answer a request.
func Stop(t testing.TB, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); !stopped(t, pid); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("process %d has not stopped 10 s after SIGSTOP", pid)
		}
	}
}

// stopped says whether all threads of a process are in state T of proc(5).
func stopped(t testing.TB, pid int) bool {
	t.Helper()
	stats, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	if err != nil || len(stats) == 0 {
		t.Fatalf("threads of process %d: %v, %v", pid, stats, err)
	}
	for _, file := range stats {
		stat, err := os.ReadFile(file)
		if err != nil {
			return false // a thread that has just ended
		}
		// The state follows the program's name, which is in brackets and may hold any.
		if end := bytes.LastIndexByte(stat, ')'); end < 0 || !bytes.HasPrefix(stat[end+1:], []byte(" T")) {
			return false
		}
	}
	return true
}
