// Keyturn-token holds one PKCS#11 token for the program that started it.
//
// It is not run by hand: a keyturn program starts it with a socket as file
// descriptor 3, over which everything passes, the PIN included. It takes no
// arguments. It is the only program of keyturn that uses cgo, so that a module
// that crashes or hangs takes this process along and no other.
package main

import (
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/keyturn/keyturn/hsm/secret"
	"github.com/keyturn/keyturn/hsm/token/module"
)

// socket is the file descriptor that the client passes.
const socket = 3

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "keyturn-token:", err)
		os.Exit(1)
	}
}

func run() error {
	if len(os.Args) != 1 {
		return fmt.Errorf("takes no arguments, got %d; it is started by other keyturn programs", len(os.Args)-1)
	}
	if err := secret.Harden(); err != nil {
		return err
	}
	// The PIN is in locked memory in any case. What the module copies is where
	// the limit on locked memory allows it.
	_ = secret.LockProcess()
	conn := os.NewFile(socket, "client")
	stat, err := conn.Stat()
	if err != nil || stat.Mode()&os.ModeSocket == 0 {
		return fmt.Errorf("file descriptor %d is not a socket; it is started by other keyturn programs", socket)
	}
	syscall.CloseOnExec(socket)
	// The client decides when this ends, not the terminal that both run in.
	signal.Ignore(syscall.SIGINT, syscall.SIGHUP, syscall.SIGPIPE)
	return module.Serve(conn)
}
