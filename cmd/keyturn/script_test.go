package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"keyturn": func() { os.Exit(run(os.Args[1:])) }})
}

// The pages of testdata are run by the command itself, each in a directory with
// the charter and a configuration for each person, against one cluster.
// $CHARTER is the charter's digest, $ESCAPE a
// text that would draw on the screen, $LOG the directory of the log.
func TestScripts(t *testing.T) { runPages(t, "testdata") }

// Reference sets have a cluster to themselves: each change of them voids what the
// other pages approved.
func TestReferenceScripts(t *testing.T) { runPages(t, "testdata/reference") }

func runPages(t *testing.T, dir string) {
	d := newDesk(t)
	testscript.Run(t, testscript.Params{Dir: dir, Setup: func(e *testscript.Env) error {
		e.Setenv("CHARTER", d.ID.String())
		e.Setenv("LOG", filepath.Join(d.Dir, "log"))
		e.Setenv("ESCAPE", "a \x1b[31mred\u202e herring")
		return os.CopyFS(filepath.Clean(e.WorkDir), os.DirFS(d.work))
	}})
}
