package main

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/signofftest"
)

// A notary that takes no part in the first key generation holds it up, and
// everybody who looks is told its name and what to do: in the status, in an audit
// and in the ceremony that is to prove the key, which does not end.
func TestFaultKeygenWaitsForSilentNotary(t *testing.T) {
	c := signofftest.Keys(t, nil)
	c.Found()
	for _, n := range c.Notaries[:3] {
		c.StartNotary(n)
	}
	c.Wait("three commitments", func(s *authority.State) bool { return len(s.Keygen.Commitments) == 3 })
	d := &desk{Cluster: c, t: t, work: t.TempDir()}
	genesis, err := signoff.ReadLine(d.Genesis[0])
	if err != nil {
		t.Fatal(err)
	}
	d.write("charter.json", genesis.Payload)
	d.configure("alice", "alice")
	const names = "notary n4 has still to commit to the shares of term 1: see that its keyturn-notary runs and what its journal says; if it is lost, found anew without it"
	if out := d.does("alice", "", "status"); strings.Count(out, "notary n") != 1 || !strings.Contains(out, "waits for    "+names) {
		t.Errorf("the status says\n%s", out)
	}

	h := &hall{t: t, dir: d.work}
	copyLog(t, filepath.Join(d.Dir, "log"), h.path("log"))
	if o := keyturn(t, "audit", "verify", h.path("log"), "--charter", d.ID.String()); o.code != 0 || !strings.Contains(o.out, "waits for    "+names) {
		t.Errorf("audit: exit %d: %s%s", o.code, o.out, o.err)
	}
	script := strings.Replace(smallScript, "%s", d.ID.String(), 1)
	h.script = h.write("script.yaml", script)
	for _, name := range []string{"maria", "wendy", "alice"} {
		h.args = append(h.args, "--key", name+"=file:"+filepath.Join(d.Dir, map[string]string{"maria": "bob", "wendy": "carol", "alice": "alice"}[name]+".pem"))
	}
	words := []string{"go", "waive", "stop"}
	o, _ := h.run(func(q string) (string, error) {
		if strings.HasPrefix(q, "[go") && h.records() == 9 {
			word := words[0]
			words = words[1:]
			return word, nil
		}
		return "", errors.New("")
	})
	if o.code == 0 || !strings.Contains(o.err, names) || !strings.Contains(o.err, "it cannot be waived") || h.records() != 9 {
		t.Errorf("exit %d after %d signatures: %s", o.code, h.records(), tail(o.err))
	}
}
