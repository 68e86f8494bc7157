package display

// Lines lays out the text of another document that people sign, in the columns
// of this package.
type Lines struct{ w writer }

// Field writes one line, or what belongs to the one before if name is empty.
func (l *Lines) Field(name, format string, args ...any) { l.w.field(name, format, args...) }

// Prose writes text that somebody else wrote: broken, and quoted if it could
// mislead.
func (l *Lines) Prose(name, text string) { l.w.prose(name, safe(text)) }

// Time writes a field that holds a time, in UTC.
func (l *Lines) Time(name string, t int64) { l.w.field(name, "%s", when(t)) }

// String is what was written, in lines that end in a newline.
func (l *Lines) String() string { return l.w.String() }
