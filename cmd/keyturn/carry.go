package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/keyturn/keyturn/cmd/internal/ui"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/dsse"
	"github.com/keyturn/keyturn/signoff/proof"
)

// A carried file is the whole log with the blobs it needs, on one stick. The
// other side folds it from the charter's digest as if it were online: nothing
// in the file is trusted.
type carried struct {
	Version    string            `json:"version"`
	Checkpoint string            `json:"checkpoint"` // final signed note
	Entries    []string          `json:"entries"`    // bundle lines
	Blobs      map[string][]byte `json:"blobs"`      // by digest
}

const carryVersion = "keyturn carry 1"

// maxCarry bounds a carried file, in bytes.
const maxCarry = 1 << 30

func readCarried(path string) (*stick, error) {
	b, err := readBounded(path, maxCarry)
	if err != nil {
		return nil, err
	}
	var c carried
	if err := dsse.Decode(b, &c); err != nil {
		return nil, fmt.Errorf("%s is not a carried log: %w", path, err)
	}
	if c.Version != carryVersion {
		return nil, fmt.Errorf("%s: version %.40q, want %q", path, c.Version, carryVersion)
	}
	return &stick{c}, nil
}

// A stick is a carried file as a source to follow.
type stick struct{ carried }

// Entries implements follow.Source.
func (c *stick) Entries(_ context.Context, from, to uint64) ([][]byte, error) {
	if to > uint64(len(c.carried.Entries)) || from > to {
		return nil, fmt.Errorf("the file holds %d entries, %d are wanted", len(c.carried.Entries), to)
	}
	var out [][]byte
	for _, l := range c.carried.Entries[from:to] {
		out = append(out, []byte(l))
	}
	return out, nil
}

// Blob implements follow.Source.
func (c *stick) Blob(_ context.Context, d dsse.Digest) ([]byte, error) {
	b, ok := c.Blobs[d.String()]
	if !ok {
		return nil, fmt.Errorf("blob %s: %w", d, authority.ErrMissingBlob)
	}
	if got := dsse.Digest(sha256.Sum256(b)); got != d {
		return nil, fmt.Errorf("blob %s in the file has digest %s", d, got)
	}
	return b, nil
}

func (a *app) syncFile(ctx context.Context) error {
	if a.follower != nil {
		return nil
	}
	c, err := readCarried(a.carry)
	if err != nil {
		return err
	}
	if err := a.follow(c); err != nil {
		return err
	}
	return a.accept(ctx, []byte(c.Checkpoint))
}

func carryCmd(a *app) *cobra.Command {
	var out string
	cmd := &cobra.Command{
		Use: "carry --out FILE", Short: "write the log to a file for a laptop without a network", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.sync(cmd.Context(), 1); err != nil {
				return err
			}
			c, err := a.collect(cmd.Context())
			if err != nil {
				return err
			}
			b, err := dsse.Encode(c)
			if err != nil {
				return err
			}
			if err := writeNew(out, b); err != nil {
				return err
			}
			a.Note("%s: %d entries and their blobs; on the other side: keyturn list --file %s, keyturn approve REQUEST --file %s --out DECISION", out, len(c.Entries), out, out)
			return a.answerSent(struct {
				Path    string `json:"path"`
				Entries int    `json:"entries"`
				Blobs   int    `json:"blobs"`
			}{out, len(c.Entries), len(c.Blobs)}, nil)
		},
	}
	cmd.Flags().StringVar(&out, "out", "", "file to write")
	cmd.MarkFlagRequired("out")
	return cmd
}

// collect gathers the entries folded and every blob the fold looked up.
func (a *app) collect(ctx context.Context) (*carried, error) {
	c := &carried{Version: carryVersion, Blobs: map[string][]byte{}}
	if err := a.follower.View(func(_ *authority.Authority, _ proof.Checkpoint, note []byte) error {
		c.Checkpoint = string(note)
		return nil
	}); err != nil {
		return nil, err
	}
	for _, l := range a.leaves {
		c.Entries = append(c.Entries, string(l))
		doc, err := signoff.ReadLine(l)
		if err != nil {
			continue // a void entry
		}
		if err := a.collectBlobs(ctx, c, blobsOf(doc.Doc), doc.Doc); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// collectBlobs gathers blobs and those that they name.
func (a *app) collectBlobs(ctx context.Context, c *carried, digests []dsse.Digest, in any) error {
	for _, d := range digests {
		if _, there := c.Blobs[d.String()]; there || d.IsZero() {
			continue
		}
		b, err := a.follower.Source().Blob(ctx, d)
		if errors.Is(err, authority.ErrMissingBlob) {
			continue
		}
		if err != nil {
			return err
		}
		c.Blobs[d.String()] = b
		inner, what := namedIn(b, in)
		if err := a.collectBlobs(ctx, c, inner, what); err != nil {
			return err
		}
	}
	return nil
}

// An evidenceSet marks blobs that an evidence set names.
type evidenceSet struct{}

// namedIn lists the blobs that a blob names: an epoch's set its evidence, and
// evidence its logs.
func namedIn(blob []byte, in any) ([]dsse.Digest, any) {
	switch in.(type) {
	case *signoff.Epoch:
		set, _ := signoff.ParseEvidenceSet(blob)
		return set, evidenceSet{}
	case *signoff.Claim, evidenceSet:
		if p, err := authority.ParsePresented(blob); err == nil {
			return []dsse.Digest{dsse.Digest(p.Evidence.EventLog), dsse.Digest(p.Evidence.IMA)}, nil
		}
	}
	return nil, nil
}

// blobsOf lists the blobs that a document names.
func blobsOf(doc signoff.Document) []dsse.Digest {
	switch d := doc.(type) {
	case *signoff.Deals:
		return []dsse.Digest{d.Blob}
	case *signoff.Redealing:
		return []dsse.Digest{d.Blob}
	case *signoff.Custody:
		return []dsse.Digest{d.Blob}
	case *signoff.Request:
		switch {
		case d.Enrol != nil:
			return []dsse.Digest{d.Enrol.Enrolment}
		case d.Adopt != nil:
			return []dsse.Digest{d.Adopt.Set}
		}
	case *signoff.Epoch:
		return []dsse.Digest{d.Evidence}
	case *signoff.Claim:
		return []dsse.Digest{d.Evidence}
	case *signoff.Ceremony:
		return []dsse.Digest{d.Transcript}
	}
	return nil
}

func submitCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "submit FILE", Short: "append documents that were signed without a network", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			b, err := os.ReadFile(args[0])
			if err != nil {
				return err
			}
			all := []sent{}
			for line := range bytes.Lines(b) {
				doc, err := signoff.ReadLine(bytes.TrimRight(line, "\n"))
				if err != nil {
					return ui.WithHint(err, "nothing after this line of %s was sent", args[0])
				}
				s, err := a.done(cmd.Context(), doc)
				if err != nil {
					return err
				}
				all = append(all, s)
			}
			return a.answerSent(all, nil)
		},
	}
}

// A sent document is where a document is that was signed: final in the log, or
// in a file for somebody to carry.
type sent struct {
	Kind     signoff.Kind `json:"kind"`
	Document dsse.Digest  `json:"document"`
	Index    *uint64      `json:"index,omitempty"`
	Path     string       `json:"path,omitempty"`
}

// done submits a signed document and says where it is.
func (a *app) done(ctx context.Context, doc *signoff.Signed) (sent, error) {
	out, err := a.submit(ctx, doc)
	if err != nil {
		return sent{}, err
	}
	what := string(doc.Doc.Kind())
	if d, ok := doc.Doc.(*signoff.Approval); ok && d.Decision != signoff.Approve { // the same kind of document
		what = map[signoff.Decision]string{signoff.Reject: "rejection", signoff.Withdraw: "withdrawal"}[d.Decision]
	}
	a.Note("%s %s is final at entry %d", what, doc.Digest(), out.Index)
	return sent{Kind: doc.Doc.Kind(), Document: doc.Digest(), Index: &out.Index}, nil
}

// keep writes a signed document to a new file, for a machine that has a network.
func (a *app) keep(doc *signoff.Signed, path string) (sent, error) {
	if err := writeNew(path, append(doc.Line(), '\n')); err != nil {
		return sent{}, err
	}
	a.Note("%s: carry it to a connected machine and run keyturn submit %s", path, path)
	return sent{Kind: doc.Doc.Kind(), Document: doc.Digest(), Path: path}, nil
}

// answerSent is the answer of commands that say all to a person in a note.
func (a *app) answerSent(v any, err error) error {
	if err != nil {
		return err
	}
	return a.Answer(v, func(writer) {})
}
