// Package ui writes what people read. The rules of the output:
//
//   - Answers go to standard output, everything else to standard error.
//   - With --json the answer is one JSON value on standard output and nothing
//     else; field names are documented in docs/formats.md.
//   - Errors are one line, "keyturn: " and lower case without a period, then
//     "hint: " with what to do, where there is something.
//   - Questions go to the terminal and are answered there; where there is no
//     terminal, the answer is one line of standard input.
//   - Colours and progress bars appear on a terminal only, and never with
//     NO_COLOR set or with --json.
//   - Nothing that another person wrote reaches the screen unless it is
//     printable; see signoff/display.
//   - Exit codes: 0 done; 1 refused or failed; 2 wrong usage; 3 committed to
//     the log but not yet final.
package ui

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"golang.org/x/term"

	"github.com/keyturn/keyturn/signoff/dsse"
)

// Exit codes.
const (
	ExitDone     = 0
	ExitRefused  = 1
	ExitUsage    = 2
	ExitNotFinal = 3
)

// Printer writes answers. The zero Printer is not useful; see New.
type Printer struct {
	Out, Err io.Writer
	In       io.Reader
	JSON     bool
}

// New returns a printer on the process's own streams.
func New() *Printer { return &Printer{Out: os.Stdout, Err: os.Stderr, In: os.Stdin} }

// Answer prints v as JSON if that was asked for, and otherwise text.
func (p *Printer) Answer(v any, text func(io.Writer)) error {
	if !p.JSON {
		text(p.Out)
		return nil
	}
	b, err := dsse.Encode(v)
	if err != nil {
		return fmt.Errorf("write answer: %w", err)
	}
	_, err = fmt.Fprintf(p.Out, "%s\n", b)
	return err
}

// Note tells something that is not the answer.
func (p *Printer) Note(format string, args ...any) { fmt.Fprintf(p.Err, format+"\n", args...) }

// Confirm shows question and wants exactly the word want typed.
func (p *Printer) Confirm(ctx context.Context, question, want string) error {
	answer, err := p.Ask(ctx, fmt.Sprintf("%s [type %s to go on]", question, want))
	if err != nil {
		return fmt.Errorf("%w; nothing was done", err)
	}
	if answer != want {
		return fmt.Errorf("the answer was not %q; nothing was done", want)
	}
	return nil
}

// maxAnswer bounds a line that somebody types, in bytes.
const maxAnswer = 4096

// Ask shows question and returns the line that is typed, without the spaces
// around it. On a terminal an interrupt ends the question.
func (p *Printer) Ask(ctx context.Context, question string) (string, error) {
	in := p.In
	if tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0); err == nil {
		defer tty.Close()
		if term.IsTerminal(int(os.Stdin.Fd())) {
			defer context.AfterFunc(ctx, func() { tty.SetReadDeadline(time.Unix(1, 0)) })()
			fmt.Fprintf(tty, "%s ", question)
			in = tty
		}
	}
	if in == p.In {
		fmt.Fprintf(p.Err, "%s\n", question)
	}
	// Byte by byte: what follows the line is the answer to another question.
	var line []byte
	for b := make([]byte, 1); len(line) < maxAnswer; {
		n, err := in.Read(b)
		if ctx.Err() != nil {
			fmt.Fprintln(p.Err)
			return "", fmt.Errorf("no answer to %q: %w", question, ctx.Err())
		}
		if n > 0 && b[0] != '\n' {
			line = append(line, b[0])
		}
		if n > 0 && b[0] == '\n' || err != nil && len(line) > 0 {
			return strings.TrimSpace(string(line)), nil
		}
		if err != nil {
			return "", fmt.Errorf("no answer to %q", question)
		}
	}
	return "", fmt.Errorf("an answer of more than %d bytes to %q", maxAnswer, question)
}

// Table aligns rows in columns. A row of one cell stands by itself.
func Table(w io.Writer, rows [][]string) {
	var width []int
	for _, r := range rows {
		for i, c := range r {
			if i == len(width) {
				width = append(width, 0)
			}
			if len(r) > 1 {
				width[i] = max(width[i], len([]rune(c)))
			}
		}
	}
	for _, r := range rows {
		var b strings.Builder
		for i, c := range r {
			b.WriteString(c)
			if i < len(r)-1 {
				b.WriteString(strings.Repeat(" ", width[i]-len([]rune(c))+2))
			}
		}
		fmt.Fprintln(w, strings.TrimRight(b.String(), " "))
	}
}

// A Hint is an error with what to do about it.
type Hint struct {
	Err error
	Do  string
}

func (h *Hint) Error() string { return h.Err.Error() }
func (h *Hint) Unwrap() error { return h.Err }

// WithHint adds what to do.
func WithHint(err error, format string, args ...any) error {
	return &Hint{err, fmt.Sprintf(format, args...)}
}

// An Exit is an error with its own exit code.
type Exit struct {
	Err  error
	Code int
}

func (e *Exit) Error() string { return e.Err.Error() }
func (e *Exit) Unwrap() error { return e.Err }

// Report prints err and returns the exit code.
func (p *Printer) Report(program string, err error) int {
	if err == nil {
		return ExitDone
	}
	text := err.Error()
	if errors.Is(err, context.Canceled) {
		text = "interrupted"
	}
	fmt.Fprintf(p.Err, "%s: %s\n", program, oneLine(text))
	var h *Hint
	if errors.As(err, &h) {
		fmt.Fprintf(p.Err, "hint: %s\n", oneLine(h.Do))
	}
	var e *Exit
	if errors.As(err, &e) {
		return e.Code
	}
	return ExitRefused
}

// oneLine keeps hostile text, a coordinator's say, from drawing on the screen: with
// control characters of ASCII or of Latin-1, which begin escapes too, and with those
// that turn the direction of text.
func oneLine(s string) string {
	s = strings.ReplaceAll(s, "\n", "; ") // between errors that were joined
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\t':
			return ' '
		case !unicode.IsPrint(r):
			return '?'
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
}

// Progress returns a function to call with bytes done and total. It draws a
// bar on a terminal and nothing elsewhere; call done at the end.
func (p *Printer) Progress(what string) (update func(done, total int64), done func()) {
	f, ok := p.Err.(*os.File)
	if !ok || p.JSON || !term.IsTerminal(int(f.Fd())) {
		return func(int64, int64) {}, func() {}
	}
	start, last := time.Now(), time.Time{}
	update = func(n, total int64) {
		if time.Since(last) < 100*time.Millisecond && n < total {
			return
		}
		last = time.Now()
		columns, _, err := term.GetSize(int(f.Fd()))
		if err != nil || columns <= 0 {
			columns = 80
		}
		fmt.Fprintf(f, "\r\x1b[K%s", bar(what, n, total, time.Since(start), columns))
	}
	return update, func() { fmt.Fprint(f, "\r\x1b[K") }
}

// bar is one line that a terminal of so many columns does not break: what, the
// bar itself, percent, bytes, rate and time left.
func bar(what string, n, total int64, elapsed time.Duration, columns int) string {
	part := 0.0
	if total > 0 {
		part = min(1, float64(n)/float64(total))
	}
	rate := float64(n) / max(elapsed.Seconds(), 0.001)
	left := "?"
	if seconds := float64(total-n) / rate; seconds < 1e8 { // not so for a rate of 0
		left = (time.Duration(seconds) * time.Second).String()
	}
	line := fmt.Sprintf("%s %3.0f %%  %s of %s  %s/s  %s left", what, part*100, Bytes(n), Bytes(total), Bytes(int64(rate)), left)
	if width := min(24, columns-len(line)-len("[] ")-1); width > 0 {
		filled := int(part * float64(width))
		line = what + " [" + strings.Repeat("#", filled) + strings.Repeat(".", width-filled) + "]" + line[len(what):]
	}
	return line[:min(len(line), max(columns-1, 0))]
}

var units = []string{"B", "kB", "MB", "GB", "TB", "PB"}

// ParseBytes reads a whole number of bytes, or of a decimal unit.
func ParseBytes(s string) (int64, error) {
	digits := strings.TrimRight(s, "BkMGTP ")
	n, err := strconv.ParseInt(digits, 10, 64)
	i := slices.Index(units, strings.TrimSpace(s[len(digits):]))
	if len(digits) == len(s) {
		i = 0
	}
	if err != nil || n < 0 || i < 0 {
		return 0, fmt.Errorf("size %.40q: want a number, alone or with one of %s", s, strings.Join(units, " "))
	}
	for ; i > 0; i-- {
		if n > math.MaxInt64/1000 {
			return 0, fmt.Errorf("size %.40q is too large", s)
		}
		n *= 1000
	}
	return n, nil
}

// Bytes writes a size with a decimal unit.
func Bytes(n int64) string {
	f, i := float64(n), 0
	for f >= 1000 && i < len(units)-1 {
		f, i = f/1000, i+1
	}
	if i == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", f, units[i])
}
