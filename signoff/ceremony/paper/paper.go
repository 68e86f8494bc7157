// Package paper writes the record of a ceremony for people who keep paper: one
// page of HTML that needs nothing beside it. Print it, or have a browser write
// it as PDF.
package paper

import (
	_ "embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"io"
	"strings"
	"time"

	"github.com/keyturn/keyturn/signoff/ceremony"
	"github.com/keyturn/keyturn/signoff/dsse"
)

//go:embed page.html
var pageText string

var page = template.Must(template.New("page").Funcs(template.FuncMap{
	"groups": func(d dsse.Digest) template.HTML {
		g := ceremony.Groups(d) // hex digits and spaces
		return template.HTML(`<span class="d">` + g[0] + `<br>` + g[1] + `</span>`)
	},
	"heading": func(r *ceremony.Report) template.CSS { // a name has no character that CSS knows
		mark := ""
		if r.Rehearsed() {
			mark = string(ceremony.Rehearsal) + " - "
		}
		return template.CSS(`"` + mark + `keyturn ceremony ` + r.Script.Name + `"`)
	},
	"short": func(d dsse.Digest) template.CSS { return template.CSS(`"transcript ` + d.Short() + `"`) },
	"time":  func(t int64) string { return time.Unix(t, 0).UTC().Format("2006-01-02 15:04:05 UTC") },
	"hex":   func(b []byte) string { return fmt.Sprintf("%x", b) },
	"list":  func(l []string) string { return strings.Join(l, ", ") },
	"inc":   func(i int) int { return i + 1 },
	"digest": func(s string) *dsse.Digest {
		if d, err := dsse.ParseDigest(s); err == nil {
			return &d
		}
		return nil
	},
	"signature": func(e ceremony.Entry, n int) string { return base64.StdEncoding.EncodeToString(e.Signed[n].Sig) },
	"step":      func(r *ceremony.Report, name string) *ceremony.Step { t, _ := r.Script.Step(name); return t },
	"breaks": func(s string) []string { // so that a long word ends its line where it is cut
		var out []string
		for len(s) > 64 && !strings.Contains(s, " ") {
			out, s = append(out, s[:64]), s[64:]
		}
		return append(out, s)
	},
}).Parse(pageText))

// Write writes the page. Equal transcripts give equal pages.
func Write(w io.Writer, r *ceremony.Report) error {
	if err := page.Execute(w, r); err != nil {
		return fmt.Errorf("paper: write the record: %w", err)
	}
	return nil
}
