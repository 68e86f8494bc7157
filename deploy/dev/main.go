// Dev sets up a whole cluster on one machine and tells its story: `demo` runs
// the story and ends, `up` leaves the cluster running until `down`, `vmtest`
// tells of one node that is a virtual machine and boots like a real one. Every
// part is real and runs as its own program, with SoftHSM2 tokens and emulated
// TPMs in the place of hardware; what is emulated says so. Nothing here is
// linked into any program of keyturn.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

func main() {
	if len(os.Args) < 2 || !slices.Contains([]string{"demo", "up", "down", "vmtest"}, os.Args[1]) {
		fmt.Fprintln(os.Stderr, "usage: dev demo|up|down|vmtest --bin DIR --train FILE --dir DIR [--kernel DIR]")
		os.Exit(2)
	}
	f := flag.NewFlagSet(os.Args[1], flag.ExitOnError)
	bin := f.String("bin", "bin", "directory with keyturn's programs")
	train := f.String("train", "build/train", "the demo's training program")
	dir := f.String("dir", "build/demo", "directory to make; it is emptied first")
	kernel := f.String("kernel", "build/vm/kernel", "vmtest: directory with an unpacked kernel package of Debian")
	f.Parse(os.Args[2:])
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1], *bin, *train, *dir, *kernel); err != nil {
		fmt.Fprintln(os.Stderr, "dev:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, what, bin, train, dir, kernel string) error {
	paths := []*string{&bin, &train, &dir}
	for _, p := range paths {
		abs, err := filepath.Abs(*p)
		if err != nil {
			return err
		}
		*p = abs
	}
	s := &stage{bin: bin, train: train, dir: dir, start: time.Now(), pins: map[string]string{}, host: "127.0.0.1", nodes: []string{"node-a", "node-b"},
		leases: "{epoch: 2, lease: 10, drainGrace: 2}", modelBytes: 256 << 20, patience: 30 * time.Second}
	if what == "down" {
		return s.down()
	}
	if err := s.clear(); err != nil {
		return err
	}
	if what == "vmtest" {
		return s.vmtest(ctx, kernel)
	}
	if what == "demo" {
		defer s.stop()
	}
	if err := s.setUp(ctx, s.makeMachines); err != nil {
		s.stop()
		return err
	}
	if what == "up" {
		return s.leave(ctx)
	}
	return s.tell(ctx, s.sealWeights, s.exportStory, s.vetoStory, s.nodeStory, s.launchStory, s.haltStory, s.auditStory, s.recoverStory, s.successionStory)
}
