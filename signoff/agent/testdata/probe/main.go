// Probe is what the tests of the agent run: it does what its first argument
// says and reports in text on standard output.
package main

import (
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

func main() {
	switch os.Args[1] {
	case "inputs":
		inputs()
	case "tick":
		tick()
	case "snapshot":
		snapshot()
	case "tricks":
		tricks()
	case "flood":
		flood()
	default:
		os.Exit(64)
	}
}

// inputs shows every file that the run was given.
func inputs() {
	const root = "/run/keyturn/inputs"
	err := filepath.Walk(root, func(path string, info os.FileInfo, err error) error {
		if err != nil || info.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		name, _ := filepath.Rel(root, path)
		fmt.Printf("%s: %s\n", name, text)
		return err
	})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

// tick says that it lives until it is asked to end.
func tick() {
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	for {
		fmt.Println("tick")
		select {
		case <-term:
			fmt.Println("asked to end")
			return
		case <-time.After(20 * time.Millisecond):
		}
	}
}

const output = "/run/keyturn/output/"

func must(err error) {
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

// put writes a directory of one file and renames it to its finished name.
func put(name, text string) {
	must(os.Mkdir(output+".part", 0o700))
	must(os.WriteFile(output+".part/state", []byte(text), 0o600))
	must(os.Rename(output+".part", output+name))
}

// snapshot shows its inputs, makes one snapshot, waits until it is kept, and
// leaves another behind.
func snapshot() {
	inputs()
	put("step-1", "trained")
	for {
		if _, err := os.Stat(output + "step-1"); os.IsNotExist(err) {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	fmt.Println("step-1 is kept")
	put("step-2", "trained more")
	must(os.Mkdir(output+".unfinished", 0o700))
}

// tricks leaves what must not be kept.
func tricks() {
	must(os.Symlink("/etc", output+"link"))
	must(os.Mkdir(output+"inside", 0o700))
	must(os.Symlink("/etc/passwd", output+"inside/passwd"))
	must(os.WriteFile(output+"file", []byte("x"), 0o600))
	must(os.Mkdir(output+"Bad name", 0o700))
	must(os.Mkdir(output+"empty", 0o700))
	put("Good_1", "trained")
}

// flood leaves more than anybody should be told of.
func flood() {
	for i := range 3000 {
		must(os.WriteFile(fmt.Sprintf("%sx%d", output, i), nil, 0o600))
	}
}
