package signoff

import "github.com/keyturn/keyturn/signoff/dsse"

// A Ceremony puts the transcript of a ceremony into the log. It changes nothing
// else: what the ceremony made is in documents of its own. Package
// signoff/ceremony says what a transcript is.
type Ceremony struct {
	Charter    Digest `json:"charter"`
	Person     Digest `json:"person"`     // who registers it
	Script     Digest `json:"script"`     // that was followed
	Transcript Digest `json:"transcript"` // blob
}

// Kind is KindCeremony.
func (c *Ceremony) Kind() Kind { return KindCeremony }

// Cluster is the charter the ceremony belongs to.
func (c *Ceremony) Cluster() Digest { return c.Charter }

func (c *Ceremony) subjects() []dsse.Subject {
	return []dsse.Subject{dsse.About("script", c.Script), dsse.About("transcript", c.Transcript)}
}

// Validate refuses a ceremony without script, transcript or person.
func (c *Ceremony) Validate() error {
	if c.Person.IsZero() || c.Script.IsZero() || c.Transcript.IsZero() {
		return missing("person, script or transcript")
	}
	return nil
}
