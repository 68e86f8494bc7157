package agent

import (
	"fmt"
	"os"
)

// An output carries what a run writes to whoever asked for the run. It never
// touches a disk; when nobody listens it is counted and dropped.
type output struct {
	r, w    *os.File
	claim   Digest
	tell    func(Event)
	done    chan struct{}
	written int64 // readable after done
}

func newOutput(claim Digest, tell func(Event)) (*output, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("agent: pipe for the run's output: %w", err)
	}
	return &output{r: r, w: w, claim: claim, tell: tell, done: make(chan struct{})}, nil
}

// started is called once the run has the pipe's other end.
func (o *output) started() {
	o.w.Close()
	go o.copy()
}

func (o *output) copy() {
	defer close(o.done)
	buf := make([]byte, 32<<10)
	for {
		n, err := o.r.Read(buf)
		if n > 0 {
			o.written += int64(n)
			o.tell(Event{Event: EventOutput, Claim: o.claim, Output: buf[:n]})
		}
		if err != nil {
			return
		}
	}
}

// wait returns the bytes written, after the run's end.
func (o *output) wait() int64 {
	<-o.done
	return o.written
}

func (o *output) close() {
	o.w.Close()
	o.r.Close()
}
