package coordinator

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/go-json-experiment/json"
	"pgregory.net/rapid"

	"github.com/keyturn/keyturn/signoff/api"
)

// readAll reads a topic as a client does.
func readAll(m *mail, topic string, after uint64) (bodies []string, last uint64) {
	for {
		out, _ := m.receive(topic, after)
		if len(out.Messages) == 0 {
			return bodies, after
		}
		for _, msg := range out.Messages {
			bodies, after = append(bodies, string(msg.Body)), msg.Number
		}
	}
}

// A reader sees the newest messages of a topic in order, each once, whatever
// else is sent in between.
func TestMailIsReadInOrderOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newMail()
		var sent, got []string
		after := uint64(0)
		for i := range rapid.IntRange(1, 200).Draw(t, "sends") {
			body := fmt.Sprint(i)
			if rapid.Bool().Draw(t, "ours") {
				sent = append(sent, body)
				if err := m.send("ours", []byte(body)); err != nil {
					t.Fatal(err)
				}
			} else if err := m.send("theirs", []byte(body)); err != nil {
				t.Fatal(err)
			}
			if rapid.IntRange(0, 9).Draw(t, "read") == 0 {
				var new []string
				new, after = readAll(m, "ours", after)
				got = append(got, new...)
			}
		}
		new, _ := readAll(m, "ours", after)
		if got = append(got, new...); fmt.Sprint(got) != fmt.Sprint(sent) {
			t.Fatalf("read %v of %v", got, sent)
		}
	})
}

// Whoever writes to the mailbox, and what, it takes bounded memory.
func TestAttackMailFlood(t *testing.T) {
	for name, send := range map[string]func(m *mail, i int) error{
		"empty messages": func(m *mail, _ int) error { return m.send("a", nil) },
		"large messages": func(m *mail, _ int) error { return m.send("a", make([]byte, api.MaxMessage)) },
		"topics":         func(m *mail, i int) error { return m.send(fmt.Sprintf("a%d", i), nil) },
		"large topics":   func(m *mail, i int) error { return m.send(fmt.Sprintf("a%d", i/64), make([]byte, api.MaxMessage)) },
	} {
		t.Run(name, func(t *testing.T) {
			m := newMail()
			for i := range 20000 {
				if err := send(m, i); err != nil {
					t.Fatal(err)
				}
			}
			count, size := 0, 0
			for _, topic := range m.topics {
				for _, b := range topic.messages {
					count, size = count+1, size+len(b)
				}
			}
			if len(m.topics) > maxTopics || len(m.order) != len(m.topics) {
				t.Errorf("%d topics, %d in order", len(m.topics), len(m.order))
			}
			if size > maxMailBytes || count > maxMailBytes/overhead {
				t.Errorf("%d messages of %d bytes are kept", count, size)
			}
		})
	}
}

// An answer is never larger than what the client reads, so a flood of large
// messages cannot make a topic unreadable for good.
func TestAttackMailTooLargeToRead(t *testing.T) {
	m := newMail()
	for range 64 {
		if err := m.send("sign-x", bytes.Repeat([]byte{0xff}, api.MaxMessage)); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.send("sign-x", []byte("the one that counts")); err != nil {
		t.Fatal(err)
	}
	out, _ := m.receive("sign-x", 0)
	b, err := json.Marshal(out)
	if err != nil {
		t.Fatal(err)
	}
	if len(b) > 64*api.MaxMessage {
		t.Fatalf("an answer of %d bytes; the client reads %d", len(b), 64*api.MaxMessage)
	}
	bodies, _ := readAll(m, "sign-x", 0)
	if len(bodies) == 0 || bodies[len(bodies)-1] != "the one that counts" {
		t.Fatal("the last message was not read")
	}
}

// A topic that was pushed out and comes back is read on by those who read it
// before.
func TestAttackMailTopicPushedOut(t *testing.T) {
	m := newMail()
	for range 10 {
		if err := m.send("wake", []byte("now")); err != nil {
			t.Fatal(err)
		}
	}
	_, after := readAll(m, "wake", 0)
	for i := range maxTopics + 1 {
		if err := m.send(fmt.Sprintf("junk%d", i), nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.send("wake", []byte("again")); err != nil {
		t.Fatal(err)
	}
	if bodies, _ := readAll(m, "wake", after); len(bodies) != 1 || bodies[0] != "again" {
		t.Fatalf("read %q after the topic came back", bodies)
	}
}

func TestMailRefusesTopicNames(t *testing.T) {
	for _, name := range []string{"", "A", "../x", "a b", "-a", "a/b", string(bytes.Repeat([]byte("a"), 82))} {
		if newMail().send(name, []byte("x")) == nil {
			t.Errorf("topic %q was taken", name)
		}
	}
}

// A fleet listens for halts while a stranger writes to nobody. Each message wakes
// those who wait for its topic, and few others.
func TestAttackMailThatWakesEverybody(t *testing.T) {
	m := newMail()
	const topics = 64
	bells := map[<-chan struct{}]bool{}
	for i := range topics {
		_, bell := m.receive(fmt.Sprintf("topic-%d", i), 0)
		bells[bell] = true
	}
	_, mine := m.receive("topic-0", 0)
	if err := m.send("topic-0", []byte("news")); err != nil {
		t.Fatal(err)
	}
	rang := 0
	for bell := range bells {
		select {
		case <-bell:
			rang++
		default:
		}
	}
	if _, open := <-mine; open || rang != 1 || len(bells) < topics/2 {
		t.Fatalf("%d of %d bells rang for %d topics", rang, len(bells), topics)
	}
}
