package coordinator

import (
	"crypto/rand"
	"fmt"
	"hash/maphash"
	"regexp"
	"sync"

	"github.com/keyturn/keyturn/signoff/api"
)

// mail keeps messages by topic, in memory, oldest dropped first. Losing all
// of it costs time and nothing else: whoever waits sends again.
type mail struct {
	mu     sync.Mutex
	box    string
	bytes  int    // of all messages
	sent   uint64 // messages ever
	topics map[string]*topic
	order  []string // topics, oldest first

	// Who waits for a topic waits on one of these bells: a fleet that listens for
	// halts is not woken by its own evidence, or by a stranger's mail to nobody. The
	// seed keeps a stranger from finding topics that share a bell.
	bells [256]chan struct{}
	seed  maphash.Seed
}

// bell is what rings when there is mail in the topic, and perhaps in others.
func (m *mail) bell(topic string) *chan struct{} {
	return &m.bells[maphash.String(m.seed, topic)%uint64(len(m.bells))]
}

type topic struct {
	first    uint64 // number of messages[0]
	messages [][]byte
	bytes    int
}

// Bounds of the mailbox. Anybody can write to it, so they hold for the memory
// that the messages take, however small or many they are.
const (
	maxTopics     = 4096
	maxTopicBytes = 32 << 20 // evidence of 131,072 nodes, 71 bytes each
	maxMailBytes  = 64 << 20
	overhead      = 128 // counted for each message on top of its bytes
)

func weight(body []byte) int { return len(body) + overhead }

var topicName = regexp.MustCompile(`^[a-z][a-z0-9-]{0,80}$`)

func newMail() *mail {
	m := &mail{box: rand.Text(), topics: map[string]*topic{}, seed: maphash.MakeSeed()}
	for i := range m.bells {
		m.bells[i] = make(chan struct{})
	}
	return m
}

func (m *mail) send(name string, body []byte) error {
	if !topicName.MatchString(name) {
		return fmt.Errorf("topic %.100q: want lower-case letters, digits and -", name)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	t, ok := m.topics[name]
	if !ok {
		// Numbers of a topic that was forgotten and comes back go on above
		// those its readers have seen.
		t = &topic{first: m.sent + 1}
		m.topics[name] = t
		m.order = append(m.order, name)
	}
	t.messages = append(t.messages, body)
	m.sent++
	m.count(t, weight(body))
	for t.bytes > maxTopicBytes {
		m.count(t, -weight(t.messages[0]))
		t.messages[0] = nil
		t.messages = t.messages[1:]
		t.first++
	}
	for len(m.order) > maxTopics || m.bytes > maxMailBytes {
		m.forgetOldest(t)
	}
	bell := m.bell(name)
	close(*bell)
	*bell = make(chan struct{})
	return nil
}

func (m *mail) count(t *topic, n int) {
	t.bytes += n
	m.bytes += n
}

// forgetOldest drops the oldest topic but keep.
func (m *mail) forgetOldest(keep *topic) {
	i := 0
	if m.topics[m.order[0]] == keep {
		i = 1
	}
	m.bytes -= m.topics[m.order[i]].bytes
	delete(m.topics, m.order[i])
	m.order = append(m.order[:i], m.order[i+1:]...)
}

// maxAnswerBytes bounds one answer. The client reads no more than 64 of the
// largest messages, and base64 makes four bytes of three.
const maxAnswerBytes = 32 * api.MaxMessage

// receive returns messages numbered above after, and a channel that closes
// when there may be more.
func (m *mail) receive(name string, after uint64) (api.Mail, <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := api.Mail{Box: m.box, Messages: []api.Message{}}
	if t, ok := m.topics[name]; ok {
		from, size := uint64(0), 0
		if after >= t.first {
			from = min(after-t.first+1, uint64(len(t.messages)))
		}
		for i, body := range t.messages[from:] {
			if size += weight(body); size > maxAnswerBytes {
				break
			}
			out.Messages = append(out.Messages, api.Message{Number: t.first + from + uint64(i), Body: body})
		}
	}
	return out, *m.bell(name)
}
