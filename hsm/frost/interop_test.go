package frost

import (
	"crypto/sha512"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/crypto/blake2b"
	"golang.org/x/crypto/ssh"
)

// The group's signatures under tools that know nothing of groups.

func need(t *testing.T, tool string) {
	t.Helper()
	if _, err := exec.LookPath(tool); err != nil {
		t.Skipf("%s is not installed", tool)
	}
}

func write(t *testing.T, name string, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// judge runs a verifier on the message and on another one.
func judge(t *testing.T, msg []byte, verifier func(file string) *exec.Cmd) {
	t.Helper()
	if out, err := verifier(write(t, "message", msg)).CombinedOutput(); err != nil {
		t.Fatalf("refused: %v\n%s", err, out)
	}
	if out, err := verifier(write(t, "message", append(slices.Clone(msg), '!'))).CombinedOutput(); err == nil {
		t.Fatalf("accepted for another message:\n%s", out)
	}
}

func TestOpenSSLVerifies(t *testing.T) {
	need(t, "openssl")
	c := keygen(t, 3, 4)
	sig := c.signature(t, message, 1, 3, 4)
	der, err := x509.MarshalPKIXPublicKey(c.Ed25519())
	if err != nil {
		t.Fatal(err)
	}
	key := write(t, "key.pem", pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	sigFile := write(t, "sig", sig[:])
	judge(t, message, func(file string) *exec.Cmd {
		return exec.Command("openssl", "pkeyutl", "-verify", "-pubin", "-inkey", key, "-rawin", "-in", file, "-sigfile", sigFile)
	})
}

// The armoured format is OpenSSH's PROTOCOL.sshsig.
func TestSSHKeygenVerifies(t *testing.T) {
	need(t, "ssh-keygen")
	c := keygen(t, 5, 7)
	key, err := ssh.NewPublicKey(c.Ed25519())
	if err != nil {
		t.Fatal(err)
	}
	h := sha512.Sum512(message)
	signed := ssh.Marshal(struct{ Namespace, Reserved, Hash, Digest string }{"keyturn", "", "sha512", string(h[:])})
	sig := c.signature(t, append([]byte("SSHSIG"), signed...), 1, 2, 3, 5, 7)
	blob := ssh.Marshal(struct {
		Version                                   uint32
		Key, Namespace, Reserved, Hash, Signature string
	}{1, string(key.Marshal()), "keyturn", "", "sha512", string(ssh.Marshal(ssh.Signature{Format: ssh.KeyAlgoED25519, Blob: sig[:]}))})
	sigFile := write(t, "sig", pem.EncodeToMemory(&pem.Block{Type: "SSH SIGNATURE", Bytes: append([]byte("SSHSIG"), blob...)}))
	allowed := write(t, "allowed", append([]byte("notaries "), ssh.MarshalAuthorizedKey(key)...))
	judge(t, message, func(file string) *exec.Cmd {
		cmd := exec.Command("ssh-keygen", "-Y", "verify", "-f", allowed, "-I", "notaries", "-n", "keyturn", "-s", sigFile)
		in, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { in.Close() })
		cmd.Stdin = in
		return cmd
	})
}

// A minisign file carries two signatures, the second over the first and the
// trusted comment; the group makes both.
func TestMinisignVerifies(t *testing.T) {
	need(t, "minisign")
	c := keygen(t, 2, 3)
	h := blake2b.Sum512(message)
	sig := c.signature(t, h[:], 1, 2)
	comment := "made by two of three"
	global := c.signature(t, append(sig[:], comment...), 2, 3)
	id := []byte("keyturn!")
	b64 := base64.StdEncoding.EncodeToString
	pub := b64(slices.Concat([]byte("Ed"), id, c.PublicKey[:]))
	text := fmt.Sprintf("untrusted comment: group\n%s\ntrusted comment: %s\n%s\n",
		b64(slices.Concat([]byte("ED"), id, sig[:])), comment, b64(global[:]))
	judge(t, message, func(file string) *exec.Cmd {
		return exec.Command("minisign", "-V", "-P", pub, "-m", file, "-x", write(t, "sig", []byte(text)))
	})
	forged := strings.Replace(text, "two", "ten", 1)
	cmd := exec.Command("minisign", "-V", "-P", pub, "-m", write(t, "message", message), "-x", write(t, "sig", []byte(forged)))
	if out, err := cmd.CombinedOutput(); err == nil {
		t.Fatalf("accepted with another comment:\n%s", out)
	}
}
