package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/keyturn/keyturn/hsm/hsmtest"
	"github.com/keyturn/keyturn/signoff/signofftest"
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
	frank, spare, later := d.NewPerson("frank", "third", "leadership", "security"), d.NewPerson("spare", "lab", "security"), d.NewPerson("later", "lab", "security")
	frank.Doc.Exchange = signofftest.Hybrid(frank.Doc.Exchange)
	d.writeJSON("frank.json", frank.Doc)
	d.writeJSON("spare.json", spare.Doc.Token)
	d.writeJSON("later.json", later.Doc.Token)
	d.configure("frank", "frank")
	d.configure("spare", "bob")
	d.configure("later", "bob")
	pages(t, d, "testdata/people")
}

// Frank comes with a FIDO key in OpenSSH's agent. $PROVIDER is its authenticator.
func TestFIDOScripts(t *testing.T) {
	p := hsmtest.NewProvider(t)
	dir, err := os.MkdirTemp("", "agent") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	agent := exec.Command("ssh-agent", "-D", "-P", p.Dir+"/*", "-a", socket)
	if err := agent.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { agent.Process.Kill(); agent.Wait() })
	for range 500 {
		if _, err = os.Stat(socket); err == nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err != nil {
		t.Fatal("ssh-agent does not listen after 5 s")
	}
	t.Setenv("SSH_AUTH_SOCK", socket)
	t.Setenv("PROVIDER", p.Path)
	pages(t, newDesk(t), "testdata/fido", "SSH_AUTH_SOCK", "PROVIDER", "SK_SAYS", "SK_ATTESTS")
}

// Frank takes bob's place by the shipped script, with keys in SoftHSM tokens.
func TestMembershipScripts(t *testing.T) {
	buildTokenHelper(t)
	d := newDesk(t)
	d.write("membership.txt", membership(t, d))
	testscript.Run(t, testscript.Params{Dir: "testdata/membership", Setup: func(e *testscript.Env) error {
		return errors.Join(withTokens(e), d.lay(e))
	}})
}

// membership is the shipped script, for somebody who is new to the desk.
func membership(t *testing.T, d *desk) []byte {
	t.Helper()
	text, err := os.ReadFile("../../deploy/ceremony/membership.yaml")
	if err != nil {
		t.Fatal(err)
	}
	return []byte(strings.NewReplacer("erin", "frank", "Erin", "Frank", "sha256:"+strings.Repeat("0", 63)+"1", d.ID.String()).Replace(string(text)))
}

// pages runs those of a directory, with these of our environment.
func pages(t *testing.T, d *desk, dir string, environment ...string) {
	testscript.Run(t, testscript.Params{Dir: dir, Setup: func(e *testscript.Env) error {
		for _, name := range environment {
			e.Setenv(name, os.Getenv(name))
		}
		return d.lay(e)
	}})
}

// lay puts the desk's files into a page's directory.
func (d *desk) lay(e *testscript.Env) error {
	e.Setenv("CHARTER", d.ID.String())
	e.Setenv("LOG", filepath.Join(d.Dir, "log"))
	e.Setenv("ESCAPE", "a \x1b[31mred\u202e herring")
	return os.CopyFS(filepath.Clean(e.WorkDir), os.DirFS(d.work))
}
