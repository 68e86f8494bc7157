package agent

import (
	"context"
	"time"

	"github.com/keyturn/keyturn/signoff/api"
)

// A mailbox reads one topic from where it left off, and from the start again
// when the coordinator's box was emptied.
type mailbox struct {
	topic string
	box   string
	after uint64
}

func (m *mailbox) receive(ctx context.Context, c *api.Client, wait time.Duration) ([][]byte, error) {
	mail, err := c.Receive(ctx, m.topic, m.after, wait)
	if err != nil {
		return nil, err
	}
	if mail.Box != m.box && m.box != "" {
		m.box, m.after = mail.Box, 0
		return m.receive(ctx, c, 0)
	}
	m.box = mail.Box
	var out [][]byte
	for _, msg := range mail.Messages {
		m.after = max(m.after, msg.Number)
		out = append(out, msg.Body)
	}
	return out, nil
}
