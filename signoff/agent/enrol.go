package agent

import (
	"context"
	"crypto/sha256"
	"fmt"
	"time"

	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/api"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/dsse"
)

// activate answers the notaries' challenges for open requests to enrol this
// very node with this very enrolment.
func (a *Agent) activate(ctx context.Context) {
	boxes := map[Digest]*api.Reader{}
	for ctx.Err() == nil {
		news := a.news()
		open := a.openEnrolments()
		for _, request := range open {
			if boxes[request] == nil {
				boxes[request] = api.NewReader(api.TopicEnrol(request))
			}
			if err := a.answerAll(ctx, request, boxes[request]); err != nil && ctx.Err() == nil {
				a.cfg.Log.Warn("cannot answer challenges", "request", request, "err", err)
			}
		}
		if len(open) > 0 {
			pause(ctx, 200*time.Millisecond)
			continue
		}
		clear(boxes)
		select {
		case <-ctx.Done():
		case <-news:
		}
	}
}

func (a *Agent) openEnrolments() []Digest {
	var out []Digest
	mine := Digest(sha256.Sum256(a.enrol))
	a.state(func(s *authority.State) error { // without a state there is nothing open
		for id, r := range s.Requests {
			if e := r.Doc.Enrol; e != nil && r.Ended == "" && e.Node == a.id && e.Enrolment == mine {
				out = append(out, id)
			}
		}
		return nil
	})
	return out
}

// answerAll answers what came. A message that is no challenge of a notary for
// this request is passed over: anyone can write into the mailbox. So is one that the
// TPM does not open: a hostile notary's must not keep the others' from an answer.
func (a *Agent) answerAll(ctx context.Context, request Digest, box *api.Reader) error {
	msgs, err := box.Receive(ctx, a.client(), 0)
	if err != nil {
		return err
	}
	for _, m := range msgs {
		c, err := a.challenge(m, request)
		if err != nil {
			continue
		}
		secret, err := a.identity.Activate(ctx, c.Credential, c.Secret)
		if err != nil {
			a.cfg.Log.Warn("cannot open a challenge", "request", request, "notary", c.Notary, "err", err)
			continue
		}
		answer, err := dsse.Encode(signoff.Answer{Request: request, Notary: c.Notary, Secret: secret[:]})
		if err != nil {
			return err
		}
		if err := a.client().Send(ctx, box.Topic(), answer); err != nil {
			return err
		}
	}
	return nil
}

// challenge reads a message and wants a notary's signature on it, before the
// TPM is asked anything.
func (a *Agent) challenge(line []byte, request Digest) (*signoff.Challenge, error) {
	doc, err := signoff.ReadLine(line)
	if err != nil {
		return nil, err
	}
	c, ok := doc.Doc.(*signoff.Challenge)
	if !ok || c.Charter != a.cfg.ID || c.Request != request {
		return nil, fmt.Errorf("agent: a %s, or a challenge for another request", doc.Doc.Kind())
	}
	return c, a.state(func(s *authority.State) error {
		n, _, ok := s.Notary(c.Notary)
		if !ok {
			return fmt.Errorf("agent: challenge of %s, who is no notary", c.Notary)
		}
		pub, err := n.Signing.Public()
		if err != nil {
			return err
		}
		return doc.Verify(pub)
	})
}
