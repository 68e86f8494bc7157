package dsse

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"github.com/go-json-experiment/json/jsontext"
)

// A Subject names what a statement is about, by digest (in-toto
// ResourceDescriptor, name and digest only).
type Subject struct {
	Name   string            `json:"name"`
	Digest map[string]string `json:"digest"`
}

// About makes the subject for one named digest.
func About(name string, d Digest) Subject {
	return Subject{Name: name, Digest: map[string]string{"sha256": d.Hex()}}
}

// Is reports whether the subject carries exactly the digest d.
func (s Subject) Is(d Digest) bool {
	return len(s.Digest) == 1 && s.Digest["sha256"] == d.Hex()
}

// The frame of a statement: there is one way to write it, so it can be cut
// instead of parsed. No text inside a subject can look like frameKind, for its
// quotes would be escaped.
const (
	frameSubject   = `{"_type":"` + StatementType + `","subject":`
	frameKind      = `,"predicateType":"`
	framePredicate = `","predicate":`
)

// Statement writes the payload of a document: an in-toto Statement v1.
func Statement(predicateType string, subjects []Subject, predicate any) ([]byte, error) {
	if n := len(subjects); n == 0 || n > MaxSubjects {
		return nil, fmt.Errorf("dsse: write %s: %d subjects, want 1 to %d", predicateType, n, MaxSubjects)
	}
	about, err := Encode(subjects)
	if err != nil {
		return nil, fmt.Errorf("dsse: write %s: %w", predicateType, err)
	}
	kind, err := Encode(predicateType)
	if err != nil {
		return nil, fmt.Errorf("dsse: write %s: %w", predicateType, err)
	}
	body, err := Encode(predicate)
	if err != nil {
		return nil, fmt.Errorf("dsse: write %s: %w", predicateType, err)
	}
	payload := slices.Concat([]byte(frameSubject), about, []byte(frameKind), kind[1:len(kind)-1], []byte(framePredicate), body, []byte("}"))
	if len(payload) > MaxPayload {
		return nil, fmt.Errorf("dsse: write %s: %d bytes, at most %d fit a log entry; name large parts by blob", predicateType, len(payload), MaxPayload)
	}
	return payload, nil
}

// OpenStatement cuts a payload's predicate out of it and says of which kind it
// is. The caller decodes the predicate, writes the statement again with
// [Statement] and refuses the payload if that gives other bytes: this is what
// makes reading strict.
func OpenStatement(payload []byte) (predicateType string, predicate []byte, err error) {
	if len(payload) > MaxPayload {
		return "", nil, fmt.Errorf("dsse: read statement: %d bytes, at most %d are allowed", len(payload), MaxPayload)
	}
	rest, ok1 := bytes.CutPrefix(payload, []byte(frameSubject))
	_, rest, ok2 := bytes.Cut(rest, []byte(frameKind))
	kind, rest, ok3 := bytes.Cut(rest, []byte(framePredicate))
	predicate, ok4 := bytes.CutSuffix(rest, []byte("}"))
	if !ok1 || !ok2 || !ok3 || !ok4 {
		return "", nil, explainStatement(payload)
	}
	return string(kind), predicate, nil
}

// explainStatement says what is wrong with a payload that cannot be cut. It
// never returns nil.
func explainStatement(payload []byte) error {
	var s struct {
		Type          string         `json:"_type"`
		Subject       []Subject      `json:"subject"`
		PredicateType string         `json:"predicateType"`
		Predicate     jsontext.Value `json:"predicate"`
	}
	if err := Decode(payload, &s); err != nil {
		return fmt.Errorf("dsse: read statement: %w", err)
	}
	if s.Type != StatementType {
		return fmt.Errorf("dsse: read statement: type %.100q, want %q", s.Type, StatementType)
	}
	return errors.New("dsse: read statement: not in canonical form (a member is missing, or order or spacing differ from what keyturn writes)")
}
