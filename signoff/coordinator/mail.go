package coordinator

import (
	"crypto/rand"
	"fmt"
	"regexp"
	"sync"

	"github.com/keyturn/keyturn/signoff/api"
)

// mail keeps messages by topic, in memory, oldest dropped first. Losing all
// of it costs time and nothing else: whoever waits sends again.
type mail struct {
	mu      sync.Mutex
	box     string
	topics  map[string]*topic
	order   []string // topics, oldest first
	changed chan struct{}
}

type topic struct {
	first    uint64 // number of messages[0]
	messages [][]byte
}

// Bounds of the mailbox: topics, and bytes a topic holds.
const (
	maxTopics     = 4096
	maxTopicBytes = 4 << 20
)

var topicName = regexp.MustCompile(`^[a-z][a-z0-9-]{0,80}$`)

func newMail() *mail {
	return &mail{box: rand.Text(), topics: map[string]*topic{}, changed: make(chan struct{})}
}

func (m *mail) send(name string, body []byte) error {
	if !topicName.MatchString(name) {
		return fmt.Errorf("topic %.100q: want lower-case letters, digits and -", name)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	t, ok := m.topics[name]
	if !ok {
		if len(m.order) == maxTopics {
			delete(m.topics, m.order[0])
			m.order = m.order[1:]
		}
		t = &topic{first: 1}
		m.topics[name] = t
		m.order = append(m.order, name)
	}
	t.messages = append(t.messages, body)
	size := 0
	for _, b := range t.messages {
		size += len(b)
	}
	for size > maxTopicBytes {
		size -= len(t.messages[0])
		t.messages = t.messages[1:]
		t.first++
	}
	close(m.changed)
	m.changed = make(chan struct{})
	return nil
}

// maxMailAnswer is how many messages one answer holds.
const maxMailAnswer = 60

// receive returns messages numbered above after, and a channel that closes
// when there may be more.
func (m *mail) receive(name string, after uint64) (api.Mail, <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := api.Mail{Box: m.box, Messages: []api.Message{}}
	if t, ok := m.topics[name]; ok {
		for i, body := range t.messages {
			if number := t.first + uint64(i); number > after && len(out.Messages) < maxMailAnswer {
				out.Messages = append(out.Messages, api.Message{Number: number, Body: body})
			}
		}
	}
	return out, m.changed
}
