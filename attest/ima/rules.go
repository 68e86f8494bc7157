package ima

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/go-json-experiment/json"
)

// Rules say which measurements are allowed; what none of them names is not.
// Digests read algorithm:hex, such as sha256:<64 lower-case hex digits>; algorithms
// weaker than sha256 are refused.
type Rules struct {
	Files   map[string][]string `json:"files"`   // path to the digests allowed there
	Digests []string            `json:"digests"` // allowed under any path
	Signed  []Signed            `json:"signed"`  // allowed by a signature that the list carries
	Ignore  []string            `json:"ignore"`  // paths not judged at all; those that end in / stand for all below
}

// Signed allows what lies below a path and carries a good file signature by one of
// the keys: see [Keyring.Verify]. A signature is over content alone: what was
// signed for one path, or is an old version with a known hole, passes under any
// path below.
type Signed struct {
	Below string   `json:"below"` // begins and ends in /
	Keys  [][]byte `json:"keys"`  // SubjectPublicKeyInfo, DER, as [Keyring.Marshal] gives
}

// ParseRules reads Rules from JSON and compiles them. Unknown and duplicate
// members are refused.
func ParseRules(data []byte) (*Judge, error) {
	var r Rules
	if err := json.Unmarshal(data, &r, json.RejectUnknownMembers(true)); err != nil {
		return nil, fmt.Errorf("ima: rules: %w", err)
	}
	return NewJudge(r)
}

// A Judge is compiled Rules. It is safe for concurrent use.
type Judge struct {
	allowed map[judged]bool
	exact   map[string]bool // paths not judged
	below   []string        // path prefixes not judged
	signed  []signed

	// The nodes of a fleet run the same signed files, and a signature costs a
	// hundred times a look: good ones are remembered, up to maxGood.
	good  sync.Map // of signature
	goods atomic.Int64
}

// signed is a compiled Signed.
type signed struct {
	below string
	keys  *Keyring
}

// signature is a digest with a signature that is good under the rule of that place.
type signature struct {
	rule int
	sum  [32]byte
}

// judged is a digest allowed under a path, or under any if the path is empty.
type judged struct {
	path, algorithm, digest string // digest as raw bytes
}

// NewJudge compiles rules. Rules that allow nothing are refused, as are ones with a
// malformed or weak digest or key or an empty path.
func NewJudge(r Rules) (*Judge, error) {
	j := &Judge{allowed: make(map[judged]bool), exact: make(map[string]bool)}
	for _, s := range r.Signed {
		if err := j.trust(s); err != nil {
			return nil, err
		}
	}
	for _, digest := range r.Digests {
		if err := j.allow("", digest); err != nil {
			return nil, err
		}
	}
	for path, digests := range r.Files {
		if path == "" {
			return nil, errors.New("ima: a rule has an empty path")
		}
		for _, digest := range digests {
			if err := j.allow(path, digest); err != nil {
				return nil, err
			}
		}
	}
	for _, path := range r.Ignore {
		switch {
		case !strings.HasPrefix(path, "/") || path == "/":
			return nil, fmt.Errorf("ima: rule to ignore %.80q: want a path that begins with / and goes on", path)
		case strings.HasSuffix(path, "/"):
			j.below = append(j.below, path)
		default:
			j.exact[path] = true
		}
	}
	if len(j.allowed) == 0 && len(j.signed) == 0 {
		return nil, errors.New("ima: the rules allow nothing")
	}
	return j, nil
}

func (j *Judge) allow(path, digest string) error {
	algorithm, text, _ := strings.Cut(digest, ":")
	h, err := strongHash(algorithm)
	if err != nil {
		return fmt.Errorf("ima: rule with digest %.150q: want sha256:, sha384: or sha512: and hex", digest)
	}
	raw, err := hex.DecodeString(text)
	if err != nil || len(raw) != h.size || strings.ToLower(text) != text {
		return fmt.Errorf("ima: rule with digest %.150q: want %d lower-case hex digits", digest, 2*h.size)
	}
	j.allowed[judged{path, algorithm, string(raw)}] = true
	return nil
}

func (j *Judge) trust(s Signed) error {
	if !strings.HasPrefix(s.Below, "/") || !strings.HasSuffix(s.Below, "/") {
		return fmt.Errorf("ima: rule for signed files below %.80q: want a path that begins and ends in /", s.Below)
	}
	if len(j.signed) == maxSigned {
		return fmt.Errorf("ima: more than %d rules for signed files", maxSigned)
	}
	var keys []crypto.PublicKey
	for i, der := range s.Keys {
		key, err := x509.ParsePKIXPublicKey(der)
		if err != nil {
			return fmt.Errorf("ima: rule for signed files below %.80q, key %d: %w", s.Below, i, err)
		}
		keys = append(keys, key)
	}
	ring, err := NewKeyring(keys...)
	if err != nil {
		return fmt.Errorf("ima: rule for signed files below %.80q: %w", s.Below, err)
	}
	j.signed = append(j.signed, signed{s.Below, ring})
	return nil
}

// A Refusal is an entry that no rule allows.
type Refusal struct {
	Index  int // among the entries judged
	Path   string
	Digest string // algorithm:hex, empty for a violation
	Reason string
}

// Error names path, digest and reason.
func (r *Refusal) Error() string {
	return fmt.Sprintf("ima: entry %d, %.200q, %s: %s", r.Index, r.Path, r.Digest, r.Reason)
}

// Check returns nil if every entry is allowed, and the first *Refusal otherwise.
// Entries must be those that a quote proved: see [State.Advance]. Violations are
// refused whatever they are said to be of. The boot_aggregate is the caller's
// to check, by [Entry.BootAggregate], and to leave out; here it is a name like any other,
// because a file may be called so.
func (j *Judge) Check(entries []Entry) error {
	for i := range entries {
		if reason := j.judge(&entries[i]); reason != "" {
			return refusal(i, &entries[i], reason)
		}
	}
	return nil
}

func refusal(i int, e *Entry, reason string) *Refusal {
	r := &Refusal{Index: i, Path: e.Path(), Reason: reason}
	if !e.Violation {
		r.Digest = e.Algorithm + ":" + hex.EncodeToString(e.FileDigest)
	}
	return r
}

// judge returns why the entry is not allowed, and the empty string if it is.
func (j *Judge) judge(e *Entry) string {
	if e.Violation {
		return "a violation: the file was written to while it was measured"
	}
	path, digest := string(e.name), string(e.FileDigest)
	if e.Verity {
		// A digest of another kind of the same size must not pass for one.
		return "an fs-verity digest, which no rule can name"
	}
	if j.allowed[judged{path, e.Algorithm, digest}] || j.allowed[judged{"", e.Algorithm, digest}] || j.ignored(path) {
		return ""
	}
	return j.verify(path, e)
}

// verify returns why no signature that a rule asks for allows the entry.
func (j *Judge) verify(path string, e *Entry) string {
	reason := "no rule allows it"
	for i, rule := range j.signed {
		if !under(path, rule.below) {
			continue
		}
		known := signature{i, e.signed()}
		if _, ok := j.good.Load(known); ok {
			return ""
		}
		if err := rule.keys.verify(e); err != nil {
			reason = "no rule allows it, and its signature does not: " + err.Error()
			continue
		}
		if j.goods.Add(1) <= maxGood {
			j.good.Store(known, nil)
		}
		return ""
	}
	return reason
}

// signed names the digest with its signature, all that decides whether it is good.
// The key id does not, and whoever extends PCR 10 could write any number of good
// signatures that differ in it, each to be verified anew.
func (e *Entry) signed() [sha256.Size]byte {
	sig := bytes.Clone(e.Signature)
	if len(sig) >= signatureHeader {
		clear(sig[keyID : keyID+4])
	}
	return sha256.Sum256(fmt.Appendf(nil, "%s %x %x", e.Algorithm, e.FileDigest, sig))
}

// ignored takes paths as they are; one with . or .. in it is judged.
func (j *Judge) ignored(path string) bool {
	if j.exact[path] {
		return true
	}
	for _, prefix := range j.below {
		if under(path, prefix) {
			return true
		}
	}
	return false
}

// under reports whether path lies below prefix, which ends in /. A path that goes
// up lies nowhere.
func under(path, prefix string) bool {
	return strings.HasPrefix(path, prefix) && !strings.Contains(path, "/../") && !strings.HasSuffix(path, "/..")
}
