package api

import (
	"context"
	"time"
)

// A Reader reads one topic from where it left off, and from the start again
// when the coordinator's box was emptied. It is not for concurrent use.
type Reader struct {
	topic string
	box   string
	after uint64
}

// NewReader begins at the oldest message that is still there.
func NewReader(topic string) *Reader { return &Reader{topic: topic} }

// Topic is what the reader reads.
func (r *Reader) Topic() string { return r.topic }

// Receive returns messages not returned before, waiting at most wait for the
// first. When the box is another than before it begins at the start of that one,
// once: a coordinator that changes its box for ever stalls its readers and does
// no worse.
func (r *Reader) Receive(ctx context.Context, c *Client, wait time.Duration) ([][]byte, error) {
	mail, err := c.Receive(ctx, r.topic, r.after, wait)
	if err == nil && r.box != "" && mail.Box != r.box {
		r.after = 0
		mail, err = c.Receive(ctx, r.topic, 0, wait)
	}
	if err != nil {
		return nil, err
	}
	r.box = mail.Box
	var out [][]byte
	for _, m := range mail.Messages {
		r.after = max(r.after, m.Number)
		out = append(out, m.Body)
	}
	return out, nil
}
