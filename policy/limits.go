package policy

// Every bound of the package. A policy or roster beyond one of them does not
// load; together they bound the cost of Compile and Evaluate.
const (
	MaxBytes        = 64 << 10         // one policy file
	MaxPeople       = 256              // a roster
	MaxRolesEach    = 16               // roles one person holds
	MaxRoles        = 64               // roles one rule names: they fit one machine word
	MaxNameLen      = 64               // bytes of a rule, role or person name
	MaxOrganisation = 128              // bytes of an organisation's name
	MaxDepth        = 8                // nesting of a quorum tree
	MaxK            = 64               // k of one atLeast
	MaxSlots        = 64               // people one alternative may ask for
	MaxAlternatives = 1024             // ways through the any branches of one tree
	MaxSeconds      = 10 * 365 * 86400 // any duration
	MaxUses         = 1 << 20          // uses one warrant may have
	MaxVotes        = 1 << 16          // votes given to one evaluation
)
