package dsse

import (
	"errors"
	"fmt"

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
	body, err := Encode(predicate)
	if err != nil {
		return nil, fmt.Errorf("dsse: write %s: %w", predicateType, err)
	}
	payload, err := Encode(statement{StatementType, subjects, predicateType, body})
	if err != nil {
		return nil, fmt.Errorf("dsse: write %s: %w", predicateType, err)
	}
	if len(payload) > MaxPayload {
		return nil, fmt.Errorf("dsse: write %s: %d bytes, at most %d fit a log entry; name large parts by blob", predicateType, len(payload), MaxPayload)
	}
	return payload, nil
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
	s, err := parseStatement(payload)
	if err != nil {
		return nil, err
	}
	if s.PredicateType != predicateType {
		return nil, fmt.Errorf("dsse: read statement: predicate type %.100q, want %q", s.PredicateType, predicateType)
	}
	if err := Decode(s.Predicate, predicate); err != nil {
		return nil, fmt.Errorf("dsse: read %s: %w", predicateType, err)
	}
	return s.Subject, nil
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
