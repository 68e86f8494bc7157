package release

// RepeatFirst puts the first share of each side a second time behind it.
func (r *Release) RepeatFirst() {
	r.people = append(r.people[:1:1], r.people...)
	r.machines = append(r.machines[:1:1], r.machines...)
}
