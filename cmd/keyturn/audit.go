package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/spf13/cobra"

	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/dsse"
	"github.com/keyturn/keyturn/signoff/follow"
	"github.com/keyturn/keyturn/signoff/log"
	"github.com/keyturn/keyturn/signoff/proof"
)

// An audit is a replay of a log directory from the charter's digest. It uses
// no configuration, no network and no key of ours.
type audit struct {
	*app
	charterText        string
	since              string
	proofFile, docFile string

	archive  *log.Archive
	follower *follow.Follower
	entries  []auditEntry
	lines    [][]byte
	history  history
	final    proof.Checkpoint
	cosigned []proof.Cosignature
	beyond   uint64  // entries after the final checkpoint
	proved   *uint64 // index of the entry that a saved proof is of
	progress func(done, total int64)
	total    int64 // entries that the checkpoint claims
}

// An auditEntry is one entry and what it did.
type auditEntry struct {
	Index     uint64           `json:"index"`
	Kind      signoff.Kind     `json:"kind"`
	Document  dsse.Digest      `json:"document"`
	Signer    string           `json:"signer"`
	Void      string           `json:"void,omitempty"`
	Changes   []string         `json:"changes,omitempty"`
	Predicate signoff.Document `json:"predicate,omitempty"`
	hint      dsse.Digest
}

func auditCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "audit", Short: "replay a log directory and say who decided what, trusting nobody",
		Long: `Audit reads a log directory (tiles and blobs) and folds it from entry 0 with
the charter's digest as the only anchor. It needs no configuration and no
network. Every signature, every hash and every decision is checked again.`}
	x := &audit{app: a}
	f := cmd.PersistentFlags()
	f.StringVar(&x.charterText, "charter", "", "charter digest to trust, sha256:HEX")
	f.StringVar(&x.since, "since", "", "final checkpoint saved earlier; the log must contain it")
	cmd.MarkPersistentFlagRequired("charter")
	cmd.AddCommand(x.verifyCmd(), x.findCmd(), x.exportCmd())
	return cmd
}

// open replays the directory and checks it against its final checkpoint.
func (x *audit) open(ctx context.Context, dir string) error {
	charter, err := dsse.ParseDigest(x.charterText)
	if err != nil {
		return usage(err)
	}
	if (x.proofFile == "") != (x.docFile == "") {
		return usage(errors.New("give --proof and --entry together"))
	}
	if x.archive, err = log.OpenReadOnly(dir); err != nil {
		return err
	}
	update, done := x.Progress("verifying tiles")
	err = x.archive.Verify(ctx, func(n, total uint64) { update(int64(n), int64(total)) })
	done()
	if err != nil {
		return err
	}
	note, err := x.archive.Checkpoint(ctx)
	if errors.Is(err, fs.ErrNotExist) {
		return errors.New("the directory has no checkpoint: nothing in it is final")
	}
	if err != nil {
		return err
	}
	if err := x.replay(ctx, charter, note); err != nil {
		return err
	}
	x.beyond = x.archive.Size() - x.final.Size
	return errors.Join(x.name(), x.contains(), x.proves())
}

// replay folds the entries up to the note and checks who signed it.
func (x *audit) replay(ctx context.Context, charter dsse.Digest, note []byte) error {
	claimed, err := proof.Unverified(note)
	if err != nil {
		return err
	}
	if x.follower, err = follow.New(charter, archiveSource{x.archive}, x.observe); err != nil {
		return err
	}
	var done func()
	x.total = int64(claimed.Size)
	x.progress, done = x.Progress("replaying entries")
	x.final, err = x.follower.Final(ctx, note)
	done()
	if err != nil {
		return err
	}
	return x.view(func(_ *authority.Authority, s *authority.State) error { return x.signatures(s, note) })
}

// signatures refuses a checkpoint with a signature that nobody known made. A
// reader of notes must pass over those; an auditor wants none unexplained.
func (x *audit) signatures(s *authority.State, note []byte) error {
	trust, err := follow.Trust(s)
	if err != nil {
		return err
	}
	if _, x.cosigned, err = proof.OpenFinal(note, trust); err != nil {
		return err
	}
	_, lines, _ := bytes.Cut(note, []byte("\n\n"))
	if n := bytes.Count(lines, []byte("\n")); n != 1+len(x.cosigned) {
		return fmt.Errorf("the checkpoint has %d signatures, of which the log key and the notaries made %d", n, 1+len(x.cosigned))
	}
	return nil
}

// view looks at the final state.
func (x *audit) view(fn func(*authority.Authority, *authority.State) error) error {
	return x.follower.View(func(a *authority.Authority, _ proof.Checkpoint, _ []byte) error { return fn(a, a.State()) })
}

func (x *audit) observe(out authority.Outcome, line []byte) {
	e := auditEntry{Index: out.Index, Kind: out.Kind, Document: out.Document, Changes: out.Changes, hint: out.Signer}
	if out.Void != nil {
		e.Void = out.Void.Error()
	}
	if doc, err := signoff.ReadLine(line); err == nil {
		e.Predicate = doc.Doc
	}
	x.entries, x.lines = append(x.entries, e), append(x.lines, line)
	x.history.add(e)
	x.progress(int64(out.Index)+1, x.total)
}

// name gives signers the names that the final state knows them by.
func (x *audit) name() error {
	return x.view(func(_ *authority.Authority, s *authority.State) error {
		group := groupFingerprint(s)
		for i := range x.entries {
			x.entries[i].Signer = signerName(s, x.entries[i].hint, group)
		}
		return nil
	})
}

// groupFingerprint names the notaries' joint key, zero if there is none.
func groupFingerprint(s *authority.State) dsse.Digest {
	k, err := signoff.NewPublicKey(s.GroupKey(), "")
	if err != nil {
		return dsse.Digest{}
	}
	return k.Fingerprint()
}

func signerName(s *authority.State, hint, group dsse.Digest) string {
	if hint.IsZero() {
		return ""
	}
	if t, ok := s.Tokens[hint]; ok {
		return t.Name
	}
	if n, ok := s.AnyNotary(hint); ok {
		return "notary " + n.Name
	}
	if hint == group {
		return "the notaries together"
	}
	for _, n := range s.Nodes {
		if k, err := signoff.NewPublicKey(n.Keys.SignKey, ""); err == nil && k.Fingerprint() == hint {
			return "node " + n.Name
		}
	}
	return hint.String()
}

// archiveSource lets a directory be followed.
type archiveSource struct{ archive *log.Archive }

func (s archiveSource) Entries(ctx context.Context, from, to uint64) ([][]byte, error) {
	return s.archive.Leaves(ctx, from, min(to, from+4096))
}

func (s archiveSource) Blob(ctx context.Context, d dsse.Digest) ([]byte, error) {
	b, err := s.archive.Blob(ctx, d)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("blob %s: %w", d, authority.ErrMissingBlob)
	}
	return b, err
}
