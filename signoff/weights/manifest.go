package weights

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json"
)

// ManifestType is the predicate type of an OMS v1 manifest.
const ManifestType = "https://model_signing/signature/v1.0"

// ShardSize is the size of the shards of a manifest by shards, in bytes. It is
// a multiple of the 64 KiB chunks that are encrypted; the 10^9 that OMS tools
// take by default is not.
const ShardSize = 1 << 30

// Bounds on a manifest, each far above any model known.
const (
	MaxManifest  = 256 << 20 // bytes of payload
	maxResources = 1 << 20
)

const (
	statementType  = "https://in-toto.io/Statement/v1"
	hashType       = "sha256"
	methodFiles    = "files"
	methodShards   = "shards"
	shardAlgorithm = "sha256-sharded-1073741824"
)

// A Manifest lists the files of a model with their digests: the meaning of an
// OMS v1 statement. The order of Files gives each file its index.
type Manifest struct {
	// Name is the model's name; OMS calls it informative.
	Name string
	// Sharded says that files are described shard by shard.
	Sharded bool
	Files   []File

	payload []byte
}

// A File is one file of a manifest.
type File struct {
	Name string // slash-separated, relative
	// Digests is the file's SHA-256, or in a sharded manifest the SHA-256 of
	// each ShardSize bytes of it.
	Digests []Digest
	// Size is in bytes; -1 if the manifest is not sharded and does not say.
	Size int64
}

// Payload returns the statement that is signed, as it was parsed or made.
func (m *Manifest) Payload() []byte { return bytes.Clone(m.payload) }

// Digest returns the SHA-256 of the payload.
func (m *Manifest) Digest() Digest { return sha256.Sum256(m.payload) }

// Names returns the names of all files, in order.
func (m *Manifest) Names() []string {
	names := make([]string, len(m.Files))
	for i, f := range m.Files {
		names[i] = f.Name
	}
	return names
}

// Statement, subject, predicate and so on mirror the JSON of OMS v1.
type (
	statement struct {
		Type          string    `json:"_type"`
		Subject       []subject `json:"subject"`
		PredicateType string    `json:"predicateType"`
		Predicate     predicate `json:"predicate"`
	}
	subject struct {
		Name   string            `json:"name"`
		Digest map[string]string `json:"digest"`
	}
	predicate struct {
		Serialization serialization `json:"serialization"`
		Resources     []resource    `json:"resources"`
	}
	serialization struct {
		Method        string   `json:"method"`
		HashType      string   `json:"hash_type"`
		ShardSize     int64    `json:"shard_size,omitzero"`
		AllowSymlinks bool     `json:"allow_symlinks"`
		IgnorePaths   []string `json:"ignore_paths"`
	}
	resource struct {
		Name      string `json:"name"`
		Algorithm string `json:"algorithm"`
		Digest    string `json:"digest"`
	}
)

// newManifest makes a manifest of files that are in order. In a sharded one,
// sizes are needed.
func newManifest(name string, sharded bool, files []File) (*Manifest, error) {
	m := &Manifest{Name: name, Sharded: sharded, Files: files}
	resources := m.resources()
	s := statement{
		Type:          statementType,
		Subject:       []subject{{name, map[string]string{hashType: rootDigest(files)}}},
		PredicateType: ManifestType,
		Predicate:     predicate{m.serialization(), resources},
	}
	payload, err := json.Marshal(s, json.Deterministic(true))
	if err != nil {
		return nil, fmt.Errorf("weights: write manifest: %w", err)
	}
	return ParseManifest(payload)
}

func (m *Manifest) serialization() serialization {
	if m.Sharded {
		return serialization{Method: methodShards, HashType: hashType, ShardSize: ShardSize}
	}
	return serialization{Method: methodFiles, HashType: hashType}
}

func (m *Manifest) resources() []resource {
	var out []resource
	for _, f := range m.Files {
		for i, d := range f.Digests {
			r := resource{f.Name, hashType, hex.EncodeToString(d[:])}
			if m.Sharded {
				r.Name, r.Algorithm = shardName(f, i), shardAlgorithm
			}
			out = append(out, r)
		}
	}
	return out
}

// shardName is NAME:START:END; an empty file is one empty shard.
func shardName(f File, i int) string {
	start := int64(i) * ShardSize
	return fmt.Sprintf("%s:%d:%d", f.Name, start, min(start+ShardSize, f.Size))
}

// rootDigest is the SHA-256 of the digests of all resources in order.
func rootDigest(files []File) string {
	h := sha256.New()
	for _, f := range files {
		for _, d := range f.Digests {
			h.Write(d[:])
		}
	}
	return hex.EncodeToString(h.Sum(nil))
}

// ParseManifest reads the payload of a signed OMS v1 statement, strictly: what
// is not known is refused, as are manifests that allow symbolic links, ignore
// paths, hash with anything but SHA-256, or list files out of order or twice.
// It does not see signatures; check them first.
func ParseManifest(payload []byte) (*Manifest, error) {
	if len(payload) > MaxManifest {
		return nil, fmt.Errorf("weights: manifest of %d bytes exceeds %d", len(payload), MaxManifest)
	}
	var s statement
	if err := json.Unmarshal(payload, &s, json.RejectUnknownMembers(true)); err != nil {
		return nil, fmt.Errorf("weights: read manifest: %w", err)
	}
	if s.Type != statementType || s.PredicateType != ManifestType {
		return nil, fmt.Errorf("weights: manifest has types %.60q and %.60q, not %q and %q", s.Type, s.PredicateType, statementType, ManifestType)
	}
	if len(s.Subject) != 1 || len(s.Subject[0].Digest) != 1 {
		return nil, fmt.Errorf("weights: manifest has %d subjects, not one with one digest", len(s.Subject))
	}
	m := &Manifest{Name: s.Subject[0].Name, payload: bytes.Clone(payload)}
	if err := m.setMethod(s.Predicate.Serialization); err != nil {
		return nil, err
	}
	if n := len(s.Predicate.Resources); n == 0 || n > maxResources {
		return nil, fmt.Errorf("weights: manifest lists %d resources, want 1 to %d", n, maxResources)
	}
	for _, r := range s.Predicate.Resources {
		if err := m.add(r); err != nil {
			return nil, err
		}
	}
	if err := checkNames(m.Names()); err != nil {
		return nil, err
	}
	if got, want := s.Subject[0].Digest[hashType], rootDigest(m.Files); got != want {
		return nil, fmt.Errorf("weights: manifest's subject digest is %.80q, its resources give %s", got, want)
	}
	return m, nil
}

func (m *Manifest) setMethod(s serialization) error {
	m.Sharded = s.Method == methodShards
	want := m.serialization()
	if s.Method != want.Method || s.HashType != want.HashType || s.ShardSize != want.ShardSize {
		return fmt.Errorf("weights: manifest is by %.20q, %.20q, shards of %d; keyturn knows %q and %q by sha256, shards of %d",
			s.Method, s.HashType, s.ShardSize, methodFiles, methodShards, int64(ShardSize))
	}
	if s.AllowSymlinks || len(s.IgnorePaths) != 0 {
		return fmt.Errorf("weights: manifest allows symbolic links (%t) or ignores %d paths; neither is accepted", s.AllowSymlinks, len(s.IgnorePaths))
	}
	return nil
}

// add appends one resource, as a file or as the next shard of one.
func (m *Manifest) add(r resource) error {
	var d Digest
	raw, err := hex.DecodeString(r.Digest)
	if err != nil || len(raw) != len(d) || strings.ToLower(r.Digest) != r.Digest {
		return fmt.Errorf("weights: resource %.80q has digest %.80q, not 64 lower-case hex digits", r.Name, r.Digest)
	}
	copy(d[:], raw)
	if !m.Sharded {
		if r.Algorithm != hashType {
			return fmt.Errorf("weights: resource %.80q uses %.40q, not %s", r.Name, r.Algorithm, hashType)
		}
		m.Files = append(m.Files, File{r.Name, []Digest{d}, -1})
		return nil
	}
	if r.Algorithm != shardAlgorithm {
		return fmt.Errorf("weights: resource %.80q uses %.40q, not %s", r.Name, r.Algorithm, shardAlgorithm)
	}
	return m.addShard(r.Name, d)
}

func (m *Manifest) addShard(name string, d Digest) error {
	part := strings.Split(name, ":")
	if len(part) != 3 {
		return fmt.Errorf("weights: shard %.80q is not NAME:START:END (names with a colon cannot be sharded)", name)
	}
	last := len(m.Files) - 1
	if last < 0 || m.Files[last].Name != part[0] {
		m.Files = append(m.Files, File{Name: part[0]})
		last++
	}
	f := &m.Files[last]
	end, err := strconv.ParseInt(part[2], 10, 64)
	if err != nil || end > 1<<62 {
		return fmt.Errorf("weights: shard %.80q has no valid end", name)
	}
	start := f.Size
	f.Size = end
	f.Digests = append(f.Digests, d)
	empty := len(f.Digests) == 1 && end == 0
	if name != shardName(*f, len(f.Digests)-1) || start%ShardSize != 0 || end <= start && !empty {
		return fmt.Errorf("weights: shard %.80q does not follow the one before it", name)
	}
	return nil
}
