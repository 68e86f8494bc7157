package keys

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/mlkem"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/hsm/file"
	"github.com/keyturn/keyturn/hsm/secret"
	"github.com/keyturn/keyturn/hsm/token"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/lockbox"
)

// A hybridKey is a hybrid exchange key with its parts in files.
type hybridKey struct {
	Exchange
	public signoff.PublicKey
	seed   []byte
}

func newHybrid(t *testing.T, r *Ring, seal string) hybridKey {
	t.Helper()
	dir := t.TempDir()
	k := hybridKey{Exchange: Exchange{URI: "file:" + filepath.Join(dir, "x.pem"), Seal: seal, MLKEM768: filepath.Join(dir, "seed")},
		seed: bytes.Repeat([]byte{byte(len(dir)), 7}, mlkem.SeedSize/2)}
	pub, err := file.Generate(k.URI, hsm.KindECDH)
	check(t, err)
	k.public, err = signoff.NewPublicKey(pub, hsm.ClassSoftware)
	check(t, err)
	pq, err := mlkem.NewDecapsulationKey768(k.seed)
	check(t, err)
	k.public.MLKEM768 = pq.EncapsulationKey().Bytes()
	sealer, err := r.Sealer(t.Context(), seal)
	check(t, err)
	check(t, KeepSeed(t.Context(), sealer, k.public, k.seed, k.MLKEM768))
	return k
}

// The seed file opens to one key, by one sealing key, and holds no seed that can
// be read.
func TestAttackSeedFiles(t *testing.T) {
	ctx := context.Background()
	r := New(nil)
	defer r.Close()
	seals := [2]string{}
	for i, name := range []string{"seal", "other-seal"} {
		seals[i] = "file:" + filepath.Join(t.TempDir(), name)
		_, err := file.Generate(seals[i], hsm.KindSeal)
		check(t, err)
	}
	mine, other := newHybrid(t, r, seals[0]), newHybrid(t, r, seals[0])
	id, err := r.Identity(ctx, mine.Exchange, mine.public)
	check(t, err)
	if got := signoff.Digest(id.Recipient().ID()); got != mine.public.Fingerprint() || !id.Recipient().Hybrid() {
		t.Fatalf("the identity is %s, the key %s", got, mine.public.Fingerprint())
	}
	stored, err := os.ReadFile(mine.MLKEM768)
	check(t, err)
	if bytes.Contains(stored, mine.seed[:16]) {
		t.Fatal("the seed stands in its file")
	}
	if s, err := os.Stat(mine.MLKEM768); err != nil || s.Mode().Perm() != 0o600 {
		t.Fatalf("seed file: %v, %v", s.Mode(), err)
	}
	sealer, err := r.Sealer(ctx, seals[0])
	check(t, err)
	if err := KeepSeed(ctx, sealer, mine.public, mine.seed, mine.MLKEM768); !errors.Is(err, fs.ErrExist) {
		t.Fatalf("a seed file was overwritten: %v", err)
	}

	put := func(edit func([]byte) []byte) string {
		path := filepath.Join(t.TempDir(), "seed")
		check(t, os.WriteFile(path, edit(bytes.Clone(stored)), 0o600))
		return path
	}
	renamed := put(func(b []byte) []byte {
		return bytes.Replace(b, []byte(mine.public.Fingerprint().String()), []byte(other.public.Fingerprint().String()), 1)
	})
	swapped := other.public
	swapped.MLKEM768 = mine.public.MLKEM768
	wrongSeed := filepath.Join(t.TempDir(), "seed")
	check(t, KeepSeed(ctx, sealer, mine.public, bytes.Repeat([]byte{9}, mlkem.SeedSize), wrongSeed))
	for name, x := range map[string]struct {
		at     Exchange
		pinned signoff.PublicKey
		reason string
	}{
		"no seed for a hybrid key":          {Exchange{URI: mine.URI}, mine.public, "the roster has exchange key"},
		"a seed for a P-256 key":            {mine.Exchange, mine.public.P256Half(), "as P-256 alone"},
		"another's seed":                    {Exchange{URI: mine.URI, Seal: seals[0], MLKEM768: other.MLKEM768}, mine.public, "not the pinned key"},
		"another's seed, renamed":           {Exchange{URI: other.URI, Seal: seals[0], MLKEM768: renamed}, other.public, "unseal"},
		"another sealing key":               {Exchange{URI: mine.URI, Seal: seals[1], MLKEM768: mine.MLKEM768}, mine.public, "unseal"},
		"another seed under the right name": {Exchange{URI: mine.URI, Seal: seals[0], MLKEM768: wrongSeed}, mine.public, "not the pinned key"},
		"another P-256 half":                {Exchange{URI: other.URI, Seal: seals[0], MLKEM768: mine.MLKEM768}, mine.public, "not the pinned key"},
		"halves of two keys":                {Exchange{URI: other.URI, Seal: seals[0], MLKEM768: mine.MLKEM768}, swapped, "not the pinned key"},
		"a cut file":                        {Exchange{URI: mine.URI, Seal: seals[0], MLKEM768: put(func(b []byte) []byte { return b[:len(b)-9] })}, mine.public, "is no keyturn/mlkem768-seed/v1 file"},
		"another format": {Exchange{URI: mine.URI, Seal: seals[0], MLKEM768: put(func(b []byte) []byte {
			return bytes.Replace(b, []byte("seed/v1"), []byte("seed/v2"), 1)
		})}, mine.public, "seed/v2"},
		"an ML-KEM key of another size": {mine.Exchange, signoff.PublicKey{Encoded: mine.public.Encoded, Class: mine.public.Class, MLKEM768: []byte{1}}, "not the pinned key"},
	} {
		if id, err := r.Identity(ctx, x.at, x.pinned); err == nil || !strings.Contains(err.Error(), x.reason) {
			t.Errorf("%s: %v, %v; want %q", name, id, err, x.reason)
		}
	}
}

const softHSM = "/usr/lib/softhsm/libsofthsm2.so"

// onToken is a ring with a new SoftHSM token, and what URIs of its keys begin
// and end with.
func onToken(t *testing.T) (r *Ring, before, after string) {
	t.Helper()
	if _, err := os.Stat(softHSM); err != nil {
		t.Skip("needs SoftHSM2 (package softhsm2)")
	}
	dir := t.TempDir()
	helper := filepath.Join(dir, "keyturn-token")
	build := exec.Command("go", "build", "-o", helper, "github.com/keyturn/keyturn/cmd/keyturn-token")
	build.Env = append(os.Environ(), "CGO_ENABLED=1")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build keyturn-token: %s", out)
	}
	conf := filepath.Join(dir, "softhsm2.conf")
	check(t, errors.Join(os.Mkdir(filepath.Join(dir, "tokens"), 0o700),
		os.WriteFile(conf, fmt.Appendf(nil, "directories.tokendir = %s/tokens\nlog.level = ERROR\n", dir), 0o600)))
	t.Setenv("SOFTHSM2_CONF", conf)
	cfg := token.Config{Helper: helper, Module: softHSM}
	check(t, token.Init(t.Context(), cfg, "alice", []byte("officer-pin-1"), []byte("user-pin-1")))
	uri := "pkcs11:token=alice?module-path=" + softHSM
	tok, err := token.Open(t.Context(), cfg, uri, func(context.Context, string) (*secret.Buffer, error) { return secret.Take([]byte("user-pin-1")) })
	check(t, err)
	r = New(nil)
	t.Cleanup(r.Close)
	u, err := hsm.ParseURI(uri)
	check(t, err)
	r.tokens[u.String()] = tok
	return r, "pkcs11:token=alice;object=", "?module-path=" + softHSM
}

// A share dealt to a hybrid key opens with an agreement made in the token and a
// seed that the token unsealed; not with another token's agreement.
func TestHybridKeyOnToken(t *testing.T) {
	r, before, after := onToken(t)
	ctx := t.Context()
	_, err := r.Generate(ctx, before+"seal"+after, hsm.KindSeal, nil, nil)
	check(t, err)
	x := Exchange{URI: before + "x" + after, Seal: before + "seal" + after, MLKEM768: filepath.Join(t.TempDir(), "seed")}
	c, public, err := r.GenerateHybrid(ctx, x.URI, x.Seal, x.MLKEM768, nil, nil)
	check(t, err)
	if !c.Made || !c.Stays || !public.Hybrid() {
		t.Fatalf("made %+v with public key %+v", c, public)
	}
	id, err := r.Identity(ctx, x, public)
	check(t, err)
	to, err := public.Recipient()
	check(t, err)
	group := func(first lockbox.Recipient) lockbox.Group {
		g := lockbox.Group{Threshold: 2, Holders: []lockbox.Holder{{Index: 1, Key: first}}}
		for i := uint16(2); i < 4; i++ {
			k, err := ecdh.P256().GenerateKey(rand.Reader)
			check(t, err)
			other, err := lockbox.P256Recipient(k.PublicKey())
			check(t, err)
			g.Holders = append(g.Holders, lockbox.Holder{Index: i, Key: other})
		}
		return g
	}
	k, err := ecdh.P256().GenerateKey(rand.Reader)
	check(t, err)
	notary, err := lockbox.P256Recipient(k.PublicKey())
	check(t, err)
	params := lockbox.Params{Charter: [32]byte{1}, People: group(to), Machines: group(notary)}
	secrets, box, err := lockbox.New(rand.Reader, params)
	check(t, err)
	defer secrets.Wipe()
	deals, err := secrets.Deal([32]byte{2}, 1)
	check(t, err)
	where := lockbox.Context{Charter: params.Charter, Object: [32]byte{2}, Side: lockbox.People, Epoch: 1, Index: 1, Holder: to.ID()}
	share, err := lockbox.OpenShare(ctx, id, where, box.People, deals.People[0])
	check(t, err)
	share.Wipe()

	_, err = r.Generate(ctx, before+"other"+after, hsm.KindECDH, nil, nil)
	check(t, err)
	x.URI = before + "other" + after
	if _, err := r.Identity(ctx, x, public); !errors.Is(err, hsm.ErrWrongIdentity) {
		t.Fatalf("another key of the token: %v", err)
	}
}
