package sshagent_test

import (
	"context"
	"crypto"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/hsm/hsmtest"
	"github.com/keyturn/keyturn/hsm/sshagent"
)

// pinentry speaks as much of the Assuan protocol as gpg-agent needs to ask whether a
// key may be used: the file beside it holds the answer.
const pinentry = `#!/bin/sh
echo OK
while read -r command rest; do
	case $command in
	CONFIRM) if [ "$(cat "$(dirname "$0")/answer")" = yes ]; then echo OK; else echo "ERR 83886179 Operation cancelled"; fi ;;
	BYE) echo OK; exit 0 ;;
	*) echo OK ;;
	esac
done
`

// gpgAgent is GnuPG's agent, as an SSH agent.
type gpgAgent struct{ home, socket string }

func startGPGAgent(t *testing.T) *gpgAgent {
	t.Helper()
	for _, tool := range []string{"gpg", "gpg-agent", "gpgconf"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip("needs " + tool + " of gnupg")
		}
	}
	// A socket's path is short; the test's own directory may not be.
	home, err := os.MkdirTemp("", "gpg")
	check(t, err)
	t.Cleanup(func() { os.RemoveAll(home) })
	g := &gpgAgent{home: home}
	check(t, os.WriteFile(filepath.Join(home, "pinentry"), []byte(pinentry), 0o700))
	g.answer(t, "yes")
	check(t, os.WriteFile(filepath.Join(home, "gpg-agent.conf"), []byte("enable-ssh-support\npinentry-program "+filepath.Join(home, "pinentry")+"\n"), 0o600))
	g.run(t, "gpgconf", "--launch", "gpg-agent")
	g.socket = g.run(t, "gpgconf", "--list-dirs", "agent-ssh-socket")
	t.Cleanup(func() { g.run(t, "gpgconf", "--kill", "gpg-agent") })
	return g
}

func (g *gpgAgent) answer(t *testing.T, s string) {
	t.Helper()
	check(t, os.WriteFile(filepath.Join(g.home, "answer"), []byte(s), 0o600))
}

func (g *gpgAgent) run(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "GNUPGHOME="+g.home)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, stderr.String())
	}
	return strings.TrimSpace(string(out))
}

func (g *gpgAgent) config() sshagent.Config { return sshagent.Config{Socket: g.socket} }

// add makes a key, shows it to SSH under the flags of a line in sshcontrol, and
// returns its URI.
func (g *gpgAgent) add(t *testing.T, curve, flags string) string {
	t.Helper()
	user := curve + flags
	g.run(t, "gpg", "--batch", "--pinentry-mode", "loopback", "--passphrase", "", "--quick-generate-key", user, curve, "sign,auth", "never")
	var grip string
	for line := range strings.Lines(g.run(t, "gpg", "--batch", "--with-colons", "--with-keygrip", "--list-secret-keys", "="+user)) {
		if f := strings.Split(line, ":"); f[0] == "grp" {
			grip = f[9]
		}
	}
	control, err := os.OpenFile(filepath.Join(g.home, "sshcontrol"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	check(t, err)
	_, err = control.WriteString(grip + " 0 " + flags + "\n")
	check(t, errors.Join(err, control.Close()))
	key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(g.run(t, "gpg", "--export-ssh-key", "="+user)))
	check(t, err)
	return "ssh-agent:" + ssh.FingerprintSHA256(key)
}

func TestConformanceGPGAgent(t *testing.T) {
	g := startGPGAgent(t)
	key := func(uri string) func(context.Context, crypto.PublicKey) (hsm.Key, error) {
		return func(ctx context.Context, pinned crypto.PublicKey) (hsm.Key, error) {
			return sshagent.Open(ctx, g.config(), uri, pinned)
		}
	}
	hsmtest.Run(t, hsmtest.Backend{
		Class:   hsm.ClassSoftware,
		P256:    key(g.add(t, "nistp256", "")),
		Ed25519: key(g.add(t, "ed25519", "")),
	})
}

// A key that gpg-agent asks for before each use is refused by its user.
func TestFaultUserRefusesGPGAgent(t *testing.T) {
	g := startGPGAgent(t)
	k, err := sshagent.Open(context.Background(), g.config(), g.add(t, "nistp256", "confirm"), nil)
	check(t, err)
	check(t, sign(k))
	g.answer(t, "no")
	if err := sign(k); !errors.Is(err, hsm.ErrLocked) {
		t.Errorf("refused by its user: %v, want ErrLocked", err)
	}
	g.answer(t, "yes")
	check(t, sign(k))
}
