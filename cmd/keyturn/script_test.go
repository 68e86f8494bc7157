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
func TestScripts(t *testing.T) { pages(t, newDesk(t), "testdata") }

// Reference sets have a cluster to themselves: each change of them voids what the
// other pages approved.
func TestReferenceScripts(t *testing.T) { pages(t, newDesk(t), "testdata/reference") }

// So do people.
func TestPeople(t *testing.T) {
	d := newDesk(t)
	frank, spare := d.NewPerson("frank", "third", "leadership", "security"), d.NewPerson("spare", "lab", "security")
	d.writeJSON("frank.json", frank.Doc)
	d.writeJSON("spare.json", spare.Doc.Token)
	d.configure("frank", "frank")
	d.configure("spare", "bob")
	pages(t, d, "testdata/people")
}

func pages(t *testing.T, d *desk, dir string) {
	testscript.Run(t, testscript.Params{Dir: dir, Setup: func(e *testscript.Env) error {
		e.Setenv("CHARTER", d.ID.String())
		e.Setenv("LOG", filepath.Join(d.Dir, "log"))
		e.Setenv("ESCAPE", "a \x1b[31mred\u202e herring")
		return os.CopyFS(filepath.Clean(e.WorkDir), os.DirFS(d.work))
	}})
}
