package keys

import (
	"context"
	"crypto/mlkem"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/hsm/durable"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/dsse"
	"github.com/keyturn/keyturn/signoff/lockbox"
)

// seedFormat names what a seed file holds, and is the label of the associated
// data of what is sealed in it.
const seedFormat = "keyturn/mlkem768-seed/v1"

// maxSeedFile bounds a seed file: a sealed seed of 64 bytes is a few hundred.
const maxSeedFile = 16 << 10

// A seedFile is the ML-KEM-768 half of a hybrid key: its seed (FIPS 203, d ‖ z,
// 64 bytes), sealed by a sealing key under associated data that names the whole
// hybrid key. Sealing is symmetric. Were the seed encrypted to a P-256 key, who
// breaks P-256 would open the seed too, and the hybrid key would be none.
type seedFile struct {
	Format    string      `json:"format"`
	Recipient dsse.Digest `json:"recipient"` // of the hybrid key, see lockbox.Recipient.ID
	Sealed    []byte      `json:"sealed"`
}

// seedData is the associated data of a sealed seed.
func seedData(recipient dsse.Digest) []byte {
	sum := dsse.Sum(seedFormat, recipient[:])
	return sum[:]
}

// GenerateHybrid makes a hybrid exchange key: the P-256 half where uri says, as
// Generate does, and the ML-KEM-768 half in a new file at path, sealed by the
// key that seal names. It reads back what it wrote. The sealing key is there
// before, so that no key is made that nothing can keep.
func (r *Ring) GenerateHybrid(ctx context.Context, uri, seal, path string, pcrs []int, pin hsm.PIN) (*Custody, signoff.PublicKey, error) {
	none := signoff.PublicKey{}
	sealer, err := r.Sealer(ctx, seal)
	if err != nil {
		return nil, none, fmt.Errorf("keys: hybrid key: sealing key: %w", err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		return nil, none, fmt.Errorf("keys: hybrid key: %s is there, or cannot be: %w", path, errors.Join(err, fs.ErrExist))
	}
	c, err := r.Generate(ctx, uri, hsm.KindECDH, pcrs, pin)
	if err != nil {
		return nil, none, err
	}
	key, err := signoff.NewPublicKey(c.Public, c.Class)
	if err != nil {
		return c, none, err
	}
	seed := make([]byte, mlkem.SeedSize)
	defer clear(seed)
	rand.Read(seed)
	pq, err := mlkem.NewDecapsulationKey768(seed)
	if err != nil {
		return c, none, err
	}
	key.MLKEM768 = pq.EncapsulationKey().Bytes()
	if err = KeepSeed(ctx, sealer, key, seed, path); err == nil {
		_, err = readSeed(ctx, sealer, key, path)
	}
	if err != nil {
		return c, none, fmt.Errorf("keys: %s is made, its ML-KEM-768 half in %s is not; retire it and begin anew: %w", c.URI, path, err)
	}
	return c, key, nil
}

// KeepSeed seals the seed of the hybrid key into a new file.
func KeepSeed(ctx context.Context, sealer hsm.Sealer, key signoff.PublicKey, seed []byte, path string) error {
	f := seedFile{Format: seedFormat, Recipient: key.Fingerprint()}
	var err error
	if f.Sealed, err = sealer.Seal(ctx, seed, seedData(f.Recipient)); err != nil {
		return err
	}
	b, err := dsse.Encode(f)
	if err != nil {
		return err
	}
	return durable.Create(path, append(b, '\n'), 0o600)
}

// readSeed opens the file of the ML-KEM-768 half of key, and no other's.
func readSeed(ctx context.Context, sealer hsm.Sealer, key signoff.PublicKey, path string) (*mlkem.DecapsulationKey768, error) {
	in, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("keys: %w", err)
	}
	defer in.Close()
	b, err := io.ReadAll(io.LimitReader(in, maxSeedFile))
	if err != nil {
		return nil, fmt.Errorf("keys: %w", err)
	}
	var f seedFile
	if err := dsse.Decode(b, &f); err != nil || f.Format != seedFormat {
		return nil, fmt.Errorf("keys: %s is no %s file: %w", path, seedFormat, errors.Join(err, fmt.Errorf("format %.40q", f.Format)))
	}
	if want := key.Fingerprint(); f.Recipient != want {
		return nil, fmt.Errorf("keys: %s: %w: it is half of key %s, want %s", path, hsm.ErrWrongIdentity, f.Recipient, want)
	}
	seed, err := sealer.Unseal(ctx, f.Sealed, seedData(f.Recipient))
	if err != nil {
		return nil, fmt.Errorf("keys: unseal %s: %w", path, err)
	}
	defer clear(seed)
	pq, err := mlkem.NewDecapsulationKey768(seed)
	if err != nil {
		return nil, fmt.Errorf("keys: %s: %w", path, err)
	}
	return pq, nil
}

// An Exchange is where the halves of an exchange key are.
type Exchange struct {
	URI      string // of the P-256 key
	Seal     string // of the key that seals the seed; empty of a P-256 key
	MLKEM768 string // file with the sealed seed; empty of a P-256 key
}

// Identity opens an exchange key, pinned to what the roster says it is. A hybrid
// key without its second half is refused, and so is a second half of a key that
// the roster knows as P-256 alone: shares go by the roster's.
func (r *Ring) Identity(ctx context.Context, x Exchange, pinned signoff.PublicKey) (*lockbox.Identity, error) {
	switch {
	case !pinned.Hybrid() && x.MLKEM768 != "":
		return nil, fmt.Errorf("keys: the roster has exchange key %s as P-256 alone, the configuration names an ML-KEM-768 half in %s; one of them is not yours", pinned.Fingerprint(), x.MLKEM768)
	case pinned.Hybrid() && (x.MLKEM768 == "" || x.Seal == ""):
		return nil, fmt.Errorf("keys: the roster has exchange key %s as hybrid; name the file of its ML-KEM-768 half (mlkem768) and the key that seals it (seal) in the configuration", pinned.Fingerprint())
	}
	pub, err := pinned.P256Half().ECDH()
	if err != nil {
		return nil, err
	}
	d, err := r.Decrypter(ctx, x.URI, pub)
	if err != nil || !pinned.Hybrid() {
		return identity(d, err)
	}
	sealer, err := r.Sealer(ctx, x.Seal)
	if err != nil {
		return nil, err
	}
	pq, err := readSeed(ctx, sealer, pinned, x.MLKEM768)
	if err != nil {
		return nil, err
	}
	id, err := lockbox.HybridIdentity(d, pq)
	if err != nil {
		return nil, err
	}
	if got, want := dsse.Digest(id.Recipient().ID()), pinned.Fingerprint(); got != want {
		return nil, fmt.Errorf("keys: %s: %w: the seed in it makes key %s, want %s", x.MLKEM768, hsm.ErrWrongIdentity, got, want)
	}
	return id, nil
}

func identity(d hsm.Decrypter, err error) (*lockbox.Identity, error) {
	if err != nil {
		return nil, err
	}
	return lockbox.TokenIdentity(d)
}
