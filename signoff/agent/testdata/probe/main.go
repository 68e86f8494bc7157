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
