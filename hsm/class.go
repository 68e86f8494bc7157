package hsm

import "slices"

// Class says what is known about how a key is held. It stands in the charter
// and in every document that the key signs. The empty class and unknown words
// are worse than all of these.
type Class string

const (
	ClassAttested     Class = "attested"      // the token proved that it made the key and will not give it away
	ClassWitnessed    Class = "witnessed"     // people watched the token make it, in a ceremony
	ClassSealed       Class = "sealed"        // kept encrypted under a key of an HSM, in memory only while used
	ClassSelfDeclared Class = "self-declared" // the token says so, nobody checked
	ClassSoftware     Class = "software"      // bytes in a file, or a token that is a program
)

// worstFirst is the order of the classes.
var worstFirst = []Class{ClassSoftware, ClassSelfDeclared, ClassSealed, ClassWitnessed, ClassAttested}

// Valid reports whether c is one of the five classes.
func (c Class) Valid() bool { return slices.Contains(worstFirst, c) }

// AtLeast reports whether c is as good as floor or better. It is false if
// either is not a class.
func (c Class) AtLeast(floor Class) bool {
	return floor.Valid() && slices.Index(worstFirst, c) >= slices.Index(worstFirst, floor)
}

// Worst returns the worst of classes: what may be said of something that
// depends on all of them. It returns the empty class, which is
// AtLeast nothing, for an empty list or one with an unknown word.
func Worst(classes ...Class) Class {
	if len(classes) == 0 {
		return ""
	}
	// An unknown word has index -1 and so comes out first.
	worst := slices.MinFunc(classes, func(a, b Class) int {
		return slices.Index(worstFirst, a) - slices.Index(worstFirst, b)
	})
	if !worst.Valid() {
		return ""
	}
	return worst
}
