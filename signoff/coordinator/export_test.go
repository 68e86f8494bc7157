package coordinator

// Ration lets tests give everybody little to append.
func (c *Coordinator) Ration(burst int64) { c.rations.burst = burst }
