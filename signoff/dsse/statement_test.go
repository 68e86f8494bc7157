package dsse_test

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/go-json-experiment/json/jsontext"
	"pgregory.net/rapid"

	"github.com/keyturn/keyturn/signoff/dsse"
)

const kind = "https://keyturn.dev/test/v1"

type predicate struct {
	Name  string         `json:"name"`
	Count int64          `json:"count"`
	Map   map[string]int `json:"map,omitempty"`
}

// read is strict as signoff.Read is: what is cut is written again and compared.
func read(payload []byte, into *predicate) error {
	of, body, err := dsse.OpenStatement(payload)
	if err != nil {
		return err
	}
	if of != kind {
		return fmt.Errorf("a %s", of)
	}
	if err := dsse.Decode(body, into); err != nil {
		return err
	}
	again, err := dsse.Statement(of, []dsse.Subject{dsse.About("a", ones())}, into)
	if err == nil && !bytes.Equal(again, payload) {
		err = errors.New("not as Statement writes it")
	}
	return err
}

// goldenStatement was recorded on 2026-11-24.
const goldenStatement = `{"_type":"https://in-toto.io/Statement/v1","subject":[{"name":"a","digest":{"sha256":"0101010101010101010101010101010101010101010101010101010101010101"}}],` +
	`"predicateType":"https://keyturn.dev/test/v1","predicate":{"name":"x","count":1,"map":{"a":1,"b":2}}}`

func ones() (d dsse.Digest) {
	for i := range d {
		d[i] = 1
	}
	return d
}

func TestGoldenStatement(t *testing.T) {
	for range 10 { // map order must not show
		b, err := dsse.Statement(kind, []dsse.Subject{dsse.About("a", ones())}, predicate{"x", 1, map[string]int{"b": 2, "a": 1}})
		if err != nil {
			t.Fatal(err)
		}
		if string(b) != goldenStatement {
			t.Fatalf("wrote\n%s\nwant\n%s", b, goldenStatement)
		}
	}
	var p predicate
	if err := read([]byte(goldenStatement), &p); err != nil || p.Name != "x" || p.Count != 1 || p.Map["b"] != 2 {
		t.Fatalf("read %+v, %v", p, err)
	}
}

func TestAttackStatements(t *testing.T) {
	swap := func(old, new string) string {
		if !strings.Contains(goldenStatement, old) {
			t.Fatalf("the golden statement holds no %q", old)
		}
		return strings.Replace(goldenStatement, old, new, 1)
	}
	subject := `{"name":"a","digest":{"sha256":"00"}}`
	for name, payload := range map[string]string{
		"empty":               ``,
		"no JSON":             `x`,
		"trailing data":       goldenStatement + `{}`,
		"other type":          swap(`Statement/v1`, `Statement/v0.1`),
		"other kind":          swap(`test/v1`, `test/v2`),
		"no subject":          strings.Replace(goldenStatement, goldenStatement[strings.Index(goldenStatement, `[{`):strings.Index(goldenStatement, `}}],`)+3], `[]`, 1),
		"too many subjects":   swap(`"subject":[`, `"subject":[`+strings.Repeat(subject+",", dsse.MaxSubjects)),
		"text for predicate":  swap(`{"name":"x","count":1,"map":{"a":1,"b":2}}`, `"x"`),
		"no predicate":        swap(`,"predicate":{"name":"x","count":1,"map":{"a":1,"b":2}}`, ``),
		"unknown member":      swap(`"count":1`, `"count":1,"more":1`),
		"unknown outside":     swap(`"predicateType"`, `"more":1,"predicateType"`),
		"duplicate member":    swap(`"count":1`, `"count":1,"count":2`),
		"case-folded member":  swap(`"count"`, `"Count"`),
		"duplicate map key":   swap(`"b":2`, `"a":2`),
		"duplicate predicate": swap(`"predicate":`, `"predicate":{},"predicate":`),
		"a fraction":          swap(`"count":1`, `"count":1.5`),
		"a number too large":  swap(`"count":1`, `"count":9223372036854775808`),
		"a number as text":    swap(`"count":1`, `"count":"1"`),
		"invalid UTF-8":       swap(`"x"`, "\"\xff\""),
		"a surrogate half":    swap(`"x"`, `"\udc00"`),
		"oversized":           swap(`"x"`, `"`+strings.Repeat("x", dsse.MaxPayload)+`"`),
	} {
		var p predicate
		if err := read([]byte(payload), &p); err == nil {
			t.Errorf("%s: read %+v", name, p)
		}
	}
}

func TestStatementTooLargeForTheLog(t *testing.T) {
	if _, err := dsse.Statement(kind, []dsse.Subject{dsse.About("a", ones())}, predicate{Name: strings.Repeat("x", dsse.MaxPayload)}); err == nil {
		t.Fatal("wrote a payload that fits no entry")
	}
}

func TestPropertyStatementReadsBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := predicate{rapid.String().Draw(t, "name"), rapid.Int64().Draw(t, "count"), rapid.MapOfN(rapid.String(), rapid.Int(), 1, 4).Draw(t, "map")}
		b, err := dsse.Statement(kind, []dsse.Subject{dsse.About("a", ones())}, want)
		if err != nil {
			t.Fatal(err)
		}
		var got predicate
		if err := read(b, &got); err != nil {
			t.Fatalf("%s\nreads back as %+v: %v", b, got, err)
		}
	})
}

// Cutting must find in a payload what a parser of the whole finds.
func FuzzOpenStatement(f *testing.F) {
	f.Add([]byte(goldenStatement))
	f.Add([]byte(`{"_type":"https://in-toto.io/Statement/v1"}`))
	f.Add([]byte(strings.Replace(goldenStatement, `"name":"a"`, `"name":",\"predicateType\":\"x\",\"predicate\":{}}"`, 1)))
	f.Fuzz(func(t *testing.T, payload []byte) {
		of, body, err := dsse.OpenStatement(payload)
		var whole struct {
			Type          string         `json:"_type"`
			Subject       []dsse.Subject `json:"subject"`
			PredicateType string         `json:"predicateType"`
			Predicate     jsontext.Value `json:"predicate"`
		}
		if err != nil || dsse.Decode(payload, &whole) != nil {
			return
		}
		if whole.Type != dsse.StatementType || whole.PredicateType == of && !bytes.Equal(whole.Predicate, body) {
			t.Fatalf("cut %q and %q, parsed %+v", of, body, whole)
		}
	})
}
