package signoff_test

import (
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/keyturn/keyturn"

// goPackage is what go list says of one package.
type goPackage struct {
	ImportPath string
	Dir        string
	GoFiles    []string
	Imports    []string
}

// short is the path inside the module, or the whole path of another module's.
func (p goPackage) short() string { return strings.TrimPrefix(p.ImportPath, module+"/") }

// inside lists the imports from this module, by their short paths.
func (p goPackage) inside() []string {
	var out []string
	for _, i := range p.Imports {
		if s, ok := strings.CutPrefix(i, module+"/"); ok {
			out = append(out, s)
		}
	}
	return out
}

func goList(t *testing.T, args ...string) []goPackage {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-json=ImportPath,Dir,GoFiles,Imports"}, args...)...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	var packages []goPackage
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p goPackage
		if err := dec.Decode(&p); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		packages = append(packages, p)
	}
	if len(packages) == 0 {
		t.Fatalf("go list %v names no package", args)
	}
	return packages
}

// under reports whether a short path is the tree or below it.
func under(p string, trees ...string) bool {
	return slices.ContainsFunc(trees, func(tree string) bool { return p == tree || strings.HasPrefix(p, tree+"/") })
}

// Each part of the tree imports only what stands below it.
func TestArrows(t *testing.T) {
	rules := []struct {
		from  string   // packages in this tree
		may   []string // import only these trees of the module
		never []string // unless these
	}{
		{from: "policy", may: []string{"policy"}},
		{from: "attest", may: []string{"attest", "hsm/tpm", "hsm"}},
		{from: "hsm", may: []string{"hsm"}, never: []string{"hsm/token/module"}},
		{from: "signoff/dsse", may: []string{"hsm"}},
		{from: "signoff", may: []string{"signoff", "policy", "attest", "hsm"}, never: []string{"hsm/token/module"}},
		{from: "cmd", may: []string{"cmd/internal", "signoff", "policy", "attest", "hsm"}},
	}
	for _, p := range goList(t, module+"/...") {
		for _, r := range rules {
			if !under(p.short(), r.from) {
				continue
			}
			for _, i := range p.inside() {
				program := p.short() == "cmd/keyturn-token" && i == "hsm/token/module"
				if !under(i, r.may...) || under(i, r.never...) && !program {
					t.Errorf("%s imports %s; %s may import %v and never %v", p.short(), i, r.from, r.may, r.never)
				}
				if under(p.short(), "attest") && under(i, "hsm") && p.short() != "attest/tpm" {
					t.Errorf("%s imports %s; of attest only attest/tpm knows keys", p.short(), i)
				}
			}
		}
		if slices.Contains(p.Imports, "github.com/spf13/viper") && p.short() != "cmd/internal/config" {
			t.Errorf("%s imports viper; cmd/internal/config is its only room", p.short())
		}
	}
}

// What a program must not even link.
func TestClosures(t *testing.T) {
	const etcd, pkcs11, vault = "go.etcd.io", "github.com/miekg/pkcs11", "github.com/hashicorp/vault"
	for _, c := range []struct {
		of    string
		never []string
	}{
		{"signoff/agent", []string{etcd, pkcs11, vault}},
		{"cmd/keyturn-agent", []string{etcd, pkcs11, vault}},
		{"cmd/keyturn-token", []string{etcd, vault, "net/http"}},
		{"cmd/keyturn-notary", []string{etcd, pkcs11}},
		{"cmd/keyturnd", []string{pkcs11}},
		{"cmd/keyturn", []string{etcd, pkcs11}},
		{"signoff/authority", []string{etcd, pkcs11, vault, "net/http"}},
		{"signoff/lockbox", []string{etcd, pkcs11, vault, "net/http"}},
	} {
		for _, p := range goList(t, "-deps", module+"/"+c.of) {
			if under(p.ImportPath, c.never...) {
				t.Errorf("%s links %s", c.of, p.ImportPath)
			}
		}
	}
}

// pure packages give the same answer to the same question wherever and
// whenever they are asked.
var pure = []string{
	"signoff", "signoff/dsse", "signoff/proof", "signoff/display", "signoff/lockbox", "signoff/authority", "signoff/ceremony", "signoff/ceremony/paper",
	"policy", "attest", "attest/eventlog", "attest/ima", "hsm/frost",
}

func TestPurePackages(t *testing.T) {
	var paths []string
	for _, p := range pure {
		paths = append(paths, module+"/"+p)
	}
	for _, p := range goList(t, paths...) {
		if len(p.GoFiles) == 0 {
			t.Errorf("%s has no files", p.short())
		}
		for _, name := range p.GoFiles {
			file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, name), nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			for _, why := range impurities(file) {
				t.Errorf("%s/%s %s", p.short(), name, why)
			}
		}
	}
}

// outside is what a pure package does not import, nor anything below it.
var outside = []string{"net", "os", "syscall", "plugin", "unsafe", "math/rand", "log", "golang.org/x/sys"}

// plain are the parts of package time that look at no clock.
var plain = []string{
	"Time", "Duration", "Month", "Weekday", "Unix", "UnixMilli", "Date", "UTC", "Parse", "ParseDuration", "RFC3339", "DateTime", "DateOnly",
	"Nanosecond", "Microsecond", "Millisecond", "Second", "Minute", "Hour",
}

// impurities lists what a file reaches outside of its arguments.
func impurities(f *ast.File) []string {
	var out []string
	clock := ""
	for _, spec := range f.Imports {
		name := strings.Trim(spec.Path.Value, `"`)
		if under(name, outside...) {
			out = append(out, "imports "+name)
		}
		if name == "time" {
			clock = path.Base(name)
			if spec.Name != nil {
				clock = spec.Name.Name
			}
		}
	}
	if clock == "." {
		return append(out, "imports every name of time")
	}
	ast.Inspect(f, func(n ast.Node) bool {
		s, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		if x, ok := s.X.(*ast.Ident); ok && clock != "" && x.Name == clock && !slices.Contains(plain, s.Sel.Name) {
			out = append(out, fmt.Sprintf("uses time.%s", s.Sel.Name))
		}
		return true
	})
	return out
}

// The test itself finds what it looks for.
func TestImpuritiesAreFound(t *testing.T) {
	for source, want := range map[string]string{
		`import "os"`:                                 "imports os",
		`import "net/http"`:                           "imports net/http",
		`import "time"; var t = time.Now()`:           "uses time.Now",
		`import c "time"; var f = c.Since`:            "uses time.Since",
		`import . "time"; var t = Now()`:              "imports every name of time",
		`import "time"; func f() { time.Sleep(1) }`:   "uses time.Sleep",
		`import "time"; func f() { <-time.After(1) }`: "uses time.After",
	} {
		f, err := parser.ParseFile(token.NewFileSet(), "x.go", "package x; "+source, 0)
		if err != nil {
			t.Fatal(err)
		}
		if got := impurities(f); !slices.Equal(got, []string{want}) {
			t.Errorf("%s: %q, want %q", source, got, want)
		}
	}
	f, err := parser.ParseFile(token.NewFileSet(), "x.go", `package x; import "time"; var t = time.Unix(1, 0).UTC().Format(time.RFC3339)`, 0)
	if err != nil {
		t.Fatal(err)
	}
	if got := impurities(f); len(got) != 0 {
		t.Errorf("a time from a number: %q", got)
	}
}
