package hsm

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"path"
	"regexp"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	pkcs11uri "github.com/stefanberger/go-pkcs11uri"
)

// maxURI bounds a key URI in bytes.
const maxURI = 2048

// The schemes of key URIs.
const (
	SchemePKCS11   = "pkcs11"    // a key or token behind a PKCS#11 module (RFC 7512)
	SchemeTPM      = "tpm"       // a TSS2 PRIVATE KEY file
	SchemeVault    = "vault"     // a version of a Vault or OpenBao transit key
	SchemeSSHAgent = "ssh-agent" // a key that an SSH agent holds
	SchemeFile     = "file"      // a software key, development charters only
)

// URI names a key. Only the fields of its scheme are set.
type URI struct {
	Scheme string // one of the Scheme constants

	// pkcs11: at least one of Token and Serial is set. All that are set must
	// match the token. Object is empty where the URI names a token only.
	Token, Serial, Manufacturer, Model string
	Object                             string // CKA_LABEL of the key
	ModulePath                         string // absolute path of the module, may be empty

	Path        string // tpm and file: where the key file is
	Name        string // vault: name of the transit key
	Version     int    // vault: its version, at least 1
	Fingerprint string // ssh-agent: SHA256: and 43 characters of base64, as ssh-add -l prints
}

// ParseURI reads a key URI:
//
//	pkcs11:token=LABEL;serial=S;object=LABEL?module-path=/ABSOLUTE.so   (RFC 7512)
//	tpm:PATH
//	vault:transit/NAME?version=N
//	ssh-agent:SHA256:BASE64
//	file:PATH
//
// Reading is strict: an attribute that is unknown, empty or given twice is
// refused, for a URI that is half understood may name another key. So are
// pin-value and pin-source, since PINs come from the caller, and slot-id, since
// slots move.
func ParseURI(s string) (URI, error) {
	if len(s) > maxURI {
		return URI{}, fmt.Errorf("hsm: key URI of %d bytes is longer than %d", len(s), maxURI)
	}
	if i := strings.IndexFunc(s, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune("\"<>\\^`{|}", r) }); i >= 0 {
		return URI{}, fmt.Errorf("hsm: key URI %q: byte %d must be percent-encoded", redact(s), i)
	}
	scheme, rest, found := strings.Cut(s, ":")
	if !found || rest == "" {
		return URI{}, fmt.Errorf("hsm: %q is not a key URI such as pkcs11:token=LABEL;object=LABEL or file:PATH", redact(s))
	}
	read, known := map[string]func(string) (URI, error){
		SchemePKCS11:   parsePKCS11,
		SchemeTPM:      parsePath,
		SchemeFile:     parsePath,
		SchemeVault:    parseVault,
		SchemeSSHAgent: parseSSHAgent,
	}[scheme]
	if !known {
		return URI{}, fmt.Errorf("hsm: key URI %q: unknown scheme; use pkcs11, tpm, vault, ssh-agent or file", redact(s))
	}
	u, err := read(rest)
	if err != nil {
		return URI{}, fmt.Errorf("hsm: key URI %q: %w", redact(s), err)
	}
	u.Scheme = scheme
	return u, nil
}

// redact hides the value of a PIN that somebody wrote into a URI all the same.
func redact(s string) string { return pinInURI.ReplaceAllString(s, "${1}***") }

var pinInURI = regexp.MustCompile(`(?is)(pin[^=]*=)[^&;]*`)

// String returns the canonical form, which ParseURI reads back as u.
func (u URI) String() string {
	switch u.Scheme {
	case SchemePKCS11:
		return u.pkcs11()
	case SchemeTPM, SchemeFile:
		return u.Scheme + ":" + (&url.URL{Path: u.Path}).EscapedPath()
	case SchemeVault:
		return fmt.Sprintf("vault:transit/%s?version=%d", u.Name, u.Version)
	case SchemeSSHAgent:
		return u.Scheme + ":" + u.Fingerprint
	}
	return ""
}

func (u URI) pkcs11() string {
	var parts []string
	for _, a := range u.pathAttributes() {
		if *a.value != "" {
			parts = append(parts, a.name+"="+escape(*a.value))
		}
	}
	s := SchemePKCS11 + ":" + strings.Join(parts, ";")
	if u.ModulePath != "" {
		s += "?module-path=" + strings.ReplaceAll(escape(u.ModulePath), "%2F", "/") // a slash may stand in a query
	}
	return s
}

// escape encodes all but the unreserved characters of RFC 3986, which is legal
// in every part of a pkcs11 URI.
func escape(s string) string {
	return strings.ReplaceAll(url.QueryEscape(s), "+", "%20")
}

type attribute struct {
	name  string
	value *string
}

// pathAttributes lists the path attributes that are understood, in the order in
// which String writes them.
func (u *URI) pathAttributes() []attribute {
	return []attribute{{"token", &u.Token}, {"serial", &u.Serial}, {"manufacturer", &u.Manufacturer}, {"model", &u.Model}, {"object", &u.Object}}
}

func parsePKCS11(rest string) (URI, error) {
	var u URI
	pathPart, query, _ := strings.Cut(rest, "?")
	if err := onlyKnown(pathPart, ";", "token", "serial", "manufacturer", "model", "object"); err != nil {
		return u, err
	}
	if err := onlyKnown(query, "&", "module-path"); err != nil {
		return u, err
	}
	parsed := pkcs11uri.New()
	if err := parsed.Parse("pkcs11:" + rest); err != nil {
		return u, err
	}
	for _, a := range u.pathAttributes() {
		if v, given := parsed.GetPathAttribute(a.name, false); given {
			*a.value = v
			if err := printable(a.name, v); err != nil {
				return u, err
			}
		}
	}
	if u.Token == "" && u.Serial == "" {
		return u, errors.New("names no token; add token=LABEL or serial=NUMBER")
	}
	if v, given := parsed.GetQueryAttribute("module-path", false); given {
		u.ModulePath = v
		if err := printable("module-path", v); err != nil || path.Clean(v) != v || !path.IsAbs(v) {
			return u, fmt.Errorf("module-path %q must be a clean absolute path", v)
		}
	}
	return u, nil
}

// onlyKnown refuses attribute names that parsePKCS11 would otherwise pass over.
func onlyKnown(part, separator string, known ...string) error {
	if part == "" {
		return nil
	}
next:
	for _, a := range strings.Split(part, separator) {
		name, _, _ := strings.Cut(a, "=")
		for _, k := range known {
			if name == k {
				continue next
			}
		}
		switch name {
		case "pin-value", "pin-source":
			return fmt.Errorf("%s is refused: the PIN is asked for, never written into a URI", name)
		case "slot-id":
			return errors.New("slot-id is refused: slots move, name the token by token= or serial=")
		}
		return fmt.Errorf("attribute %q is not understood here; known are %s", name, strings.Join(known, ", "))
	}
	return nil
}

// printable refuses an empty value and text that would deceive on a screen.
func printable(name, v string) error {
	if v == "" || !utf8.ValidString(v) || strings.ContainsFunc(v, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return fmt.Errorf("%s %q must be printable text, and not empty", name, v)
	}
	return nil
}

func parsePath(rest string) (URI, error) {
	if strings.ContainsAny(rest, "?#") {
		return URI{}, errors.New("a path takes no query and no fragment")
	}
	if host, isURL := strings.CutPrefix(rest, "//"); isURL {
		if rest = host; !strings.HasPrefix(host, "/") {
			return URI{}, errors.New("names a host; write file:/PATH")
		}
	}
	p, err := url.PathUnescape(rest)
	if err != nil {
		return URI{}, err
	}
	if err := printable("path", p); err != nil {
		return URI{}, err
	}
	if p != path.Clean(p) || strings.HasPrefix(p, "//") {
		return URI{}, fmt.Errorf("path %q is not clean; write %q", p, path.Clean(p))
	}
	if base := path.Base(p); base == "/" || base == "." || base == ".." {
		return URI{}, fmt.Errorf("path %q names no file", p)
	}
	return URI{Path: p}, nil
}

var vaultKey = regexp.MustCompile(`^transit/([A-Za-z0-9][A-Za-z0-9._-]{0,127})\?version=([1-9][0-9]{0,8})$`)

func parseVault(rest string) (URI, error) {
	m := vaultKey.FindStringSubmatch(rest)
	if m == nil {
		return URI{}, errors.New("must be vault:transit/NAME?version=N; the version pins the key across rotations")
	}
	version, err := strconv.Atoi(m[2])
	return URI{Name: m[1], Version: version}, err
}

func parseSSHAgent(rest string) (URI, error) {
	digest, found := strings.CutPrefix(rest, "SHA256:")
	sum, err := base64.RawStdEncoding.Strict().DecodeString(digest)
	if !found || err != nil || len(sum) != 32 {
		return URI{}, errors.New("must be ssh-agent:SHA256: and the 43 characters that ssh-add -l prints")
	}
	return URI{Fingerprint: rest}, nil
}
