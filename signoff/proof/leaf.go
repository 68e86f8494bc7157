package proof

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/mod/sumdb/tlog"
)

// LeafHash is the RFC 6962 hash of an entry: SHA-256(0x00 ‖ leaf).
func LeafHash(leaf []byte) [32]byte { return tlog.RecordHash(leaf) }

// CheckInclusion returns nil if path proves (RFC 6962, section 2.1.1) that the
// entry at index below the checkpoint has this leaf hash.
func CheckInclusion(c Checkpoint, index uint64, leafHash [32]byte, path [][32]byte) error {
	return checkPath(c.Root, c.Size, index, leafHash, path)
}

func checkPath(root [32]byte, size, index uint64, leafHash [32]byte, path [][32]byte) error {
	if size > MaxSize || index >= size || len(path) > maxPath {
		return fmt.Errorf("proof: index %d with a path of %d in a tree of %d", index, len(path), size)
	}
	if err := tlog.CheckRecord(hashes(path), int64(size), root, int64(index), leafHash); err != nil {
		return fmt.Errorf("proof: index %d is not proved to be in the tree of size %d: %w", index, size, err)
	}
	return nil
}

// CheckConsistency returns nil if path proves (RFC 6962, section 2.1.2) that
// next is old with entries appended, possibly none. Everything extends the
// empty log. The states are not compared unless the sizes are equal: what
// entries lead to is for the fold to say.
func CheckConsistency(old, next Checkpoint, path [][32]byte) error {
	if old.Origin != next.Origin {
		return fmt.Errorf("proof: log %q cannot continue log %q", next.Origin, old.Origin)
	}
	if old.Size > next.Size || next.Size > MaxSize {
		return fmt.Errorf("proof: a log of %d entries cannot extend one of %d", next.Size, old.Size)
	}
	if old.Size == next.Size && old != next {
		return fmt.Errorf("proof: two different checkpoints of size %d", old.Size)
	}
	if old.Size == 0 || old.Size == next.Size {
		if len(path) != 0 {
			return fmt.Errorf("proof: from size %d to %d nothing is to be proved, but the path has %d hashes", old.Size, next.Size, len(path))
		}
		if old.Size == 0 && old.Root != Root(nil) {
			return errors.New("proof: the root of the empty log is wrong")
		}
		return nil
	}
	err := tlog.CheckTree(tlog.TreeProof(hashes(path)), int64(next.Size), next.Root, int64(old.Size), old.Root)
	if err != nil {
		return fmt.Errorf("proof: the log of size %d is not proved to extend the one of size %d: %w", next.Size, old.Size, err)
	}
	return nil
}

// A Proof carries what someone needs, beside the entry itself and a [Trust], to
// know that the entry is final: the content of a .tlog-proof file.
type Proof struct {
	Index      uint64
	Path       [][32]byte // inclusion path from the leaf's sibling up
	Checkpoint []byte     // signed note
}

const proofHeader = "c2sp.org/tlog-proof@v1"

// Marshal returns the proof in the format of c2sp.org/tlog-proof, without extra
// data.
func (p *Proof) Marshal() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s\nindex %d\n", proofHeader, p.Index)
	for _, h := range p.Path {
		fmt.Fprintln(&b, base64.StdEncoding.EncodeToString(h[:]))
	}
	b.WriteByte('\n')
	b.Write(p.Checkpoint)
	return b.Bytes()
}

// ParseProof reads what Marshal writes and nothing else. Extra data, which the
// format allows and nothing would authenticate, is refused.
func ParseProof(data []byte) (*Proof, error) {
	if len(data) > maxProof {
		return nil, fmt.Errorf("proof: a proof of %d bytes; at most %d", len(data), maxProof)
	}
	head, signed, ok := strings.Cut(string(data), "\n\n")
	lines := strings.Split(head, "\n")
	if !ok || lines[0] != proofHeader || len(lines) < 2 || len(lines) > 2+maxPath {
		return nil, fmt.Errorf("proof: not a proof: it must begin with %q and hold a path of at most %d hashes before an empty line", proofHeader, maxPath)
	}
	index, ok := strings.CutPrefix(lines[1], "index ")
	if !ok {
		return nil, fmt.Errorf("proof: the second line %.40q is not the index", lines[1])
	}
	p := &Proof{Checkpoint: []byte(signed)}
	var err error
	if p.Index, err = parseSize(index); err != nil {
		return nil, err
	}
	for i, l := range lines[2:] {
		h, err := parseHash(l)
		if err != nil {
			return nil, fmt.Errorf("proof: hash %d of the path: %w", i, err)
		}
		p.Path = append(p.Path, h)
	}
	if _, err := Unverified(p.Checkpoint); err != nil {
		return nil, err
	}
	return p, nil
}

// VerifyLeaf returns the final checkpoint, and who cosigned it when, if p
// proves that leaf is in the log at p.Index.
func VerifyLeaf(t Trust, p *Proof, leaf []byte) (Checkpoint, []Cosignature, error) {
	if p == nil {
		return Checkpoint{}, nil, errors.New("proof: verify entry: no proof was given")
	}
	c, sigs, err := OpenFinal(p.Checkpoint, t)
	if err != nil {
		return Checkpoint{}, nil, err
	}
	if err := CheckInclusion(c, p.Index, LeafHash(leaf), p.Path); err != nil {
		return Checkpoint{}, nil, err
	}
	return c, sigs, nil
}

// hashes is path as package tlog wants it.
func hashes(path [][32]byte) tlog.RecordProof {
	out := make(tlog.RecordProof, len(path))
	for i, h := range path {
		out[i] = h
	}
	return out
}
