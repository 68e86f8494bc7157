package dsse

import (
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

type statement struct {
	Type          string         `json:"_type"`
	Subject       []Subject      `json:"subject"`
	PredicateType string         `json:"predicateType"`
	Predicate     jsontext.Value `json:"predicate"`
}

// Statement writes the payload of a document: an in-toto Statement v1.
func Statement(predicateType string, subjects []Subject, predicate any) ([]byte, error) {
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
	payload := slices.Concat([]byte(`{"_type":"`+StatementType+`","subject":`), about, []byte(`,"predicateType":`), kind, []byte(`,"predicate":`), body, []byte("}"))
	if len(payload) > MaxPayload {
		return nil, fmt.Errorf("dsse: write %s: %d bytes, at most %d fit a log entry; name large parts by blob", predicateType, len(payload), MaxPayload)
	}
	return payload, nil
}

// A Parsed is a statement whose predicate has not been decoded yet.
type Parsed struct {
	Subjects      []Subject
	PredicateType string
	predicate     jsontext.Value
}

// OpenStatement parses a payload's outer layer, strictly.
func OpenStatement(payload []byte) (*Parsed, error) {
	s, err := parseStatement(payload)
	if err != nil {
		return nil, err
	}
	return &Parsed{s.Subject, s.PredicateType, s.Predicate}, nil
}

// Predicate decodes the predicate, strictly.
func (p *Parsed) Predicate(into any) error {
	if err := Decode(p.predicate, into); err != nil {
		return fmt.Errorf("dsse: read %s: %w", p.PredicateType, err)
	}
	return nil
}

// PredicateType reads only which kind of document a payload is.
func PredicateType(payload []byte) (string, error) {
	s, err := parseStatement(payload)
	if err != nil {
		return "", err
	}
	return s.PredicateType, nil
}

// ParseStatement reads a payload of the given kind into predicate, strictly.
func ParseStatement(payload []byte, predicateType string, predicate any) ([]Subject, error) {
	p, err := OpenStatement(payload)
	if err != nil {
		return nil, err
	}
	if p.PredicateType != predicateType {
		return nil, fmt.Errorf("dsse: read statement: predicate type %.100q, want %q", p.PredicateType, predicateType)
	}
	return p.Subjects, p.Predicate(predicate)
}

func parseStatement(payload []byte) (statement, error) {
	var s statement
	if len(payload) > MaxPayload {
		return s, fmt.Errorf("dsse: read statement: %d bytes, at most %d are allowed", len(payload), MaxPayload)
	}
	if err := Decode(payload, &s); err != nil {
		return s, fmt.Errorf("dsse: read statement: %w", err)
	}
	if s.Type != StatementType {
		return s, fmt.Errorf("dsse: read statement: type %.100q, want %q", s.Type, StatementType)
	}
	if n := len(s.Subject); n == 0 || n > MaxSubjects {
		return s, fmt.Errorf("dsse: read statement: %d subjects, want 1 to %d", n, MaxSubjects)
	}
	if len(s.Predicate) == 0 {
		return s, errors.New("dsse: read statement: no predicate")
	}
	return s, nil
}
