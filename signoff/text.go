package signoff

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/keyturn/keyturn/signoff/dsse"
)

// CheckText refuses text that could mislead on a screen: control characters,
// escapes, newlines, bidirectional overrides, zero-width and other invisible
// characters, invalid UTF-8, and text over dsse.MaxText bytes.
func CheckText(field, s string) error {
	if s == "" {
		return missing(field)
	}
	if len(s) > dsse.MaxText {
		return fmt.Errorf("%s has %d bytes, at most %d are allowed", field, len(s), dsse.MaxText)
	}
	if !utf8.ValidString(s) {
		return fmt.Errorf("%s is not valid UTF-8", field)
	}
	for i, r := range s {
		if !unicode.IsPrint(r) || invisible(r) {
			return fmt.Errorf("%s has the character %U at byte %d; only printable characters and plain spaces are allowed", field, r, i)
		}
	}
	if strings.TrimSpace(s) != s {
		return fmt.Errorf("%s begins or ends with a space", field)
	}
	return nil
}

// invisible reports whether r takes part in no picture although it counts as
// printable: fillers, joiners, variation selectors and the blank of braille.
// Two texts that look alike would have two digests.
func invisible(r rune) bool {
	return unicode.In(r, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector) || r == '\u2800'
}

// CheckName accepts the names of people, notaries, roles and nodes: lower-case
// letters, digits, '-' and '.', beginning with a letter, at most 64 bytes. A
// small alphabet leaves no look-alikes.
func CheckName(field, s string) error {
	if s == "" {
		return missing(field)
	}
	if len(s) > 64 || s[0] < 'a' || s[0] > 'z' {
		return fmt.Errorf("%s %.80q: want a lower-case letter and at most 63 of a-z 0-9 - .", field, s)
	}
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '.' {
			return fmt.Errorf("%s %q: character %q; want lower-case letters, digits, - and .", field, s, c)
		}
	}
	return nil
}

// checkWord accepts one argument or environment entry: any UTF-8 without NUL.
// Such words are shown quoted.
func checkWord(field, s string) error {
	if len(s) > dsse.MaxText {
		return fmt.Errorf("%s has %d bytes, at most %d are allowed", field, len(s), dsse.MaxText)
	}
	if !utf8.ValidString(s) || strings.ContainsRune(s, 0) {
		return fmt.Errorf("%s %.80q: not valid UTF-8, or holds a NUL", field, s)
	}
	return nil
}
