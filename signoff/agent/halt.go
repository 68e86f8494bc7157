package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/api"
	"github.com/keyturn/keyturn/signoff/authority"
)

// Halt obeys one halt, whichever way it came: a bundle line. It is refused if
// the fold would refuse it, which includes one that is in the log already:
// there the log says whether it stands.
func (a *Agent) Halt(line []byte) (Digest, error) {
	doc, err := signoff.ReadLine(bytes.TrimSpace(line))
	if err != nil {
		return Digest{}, err
	}
	if _, ok := doc.Doc.(*signoff.Halt); !ok {
		return Digest{}, fmt.Errorf("agent: a %s is no halt", doc.Doc.Kind())
	}
	id := doc.Digest()
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.judgeHalt(doc); err != nil {
		return id, err
	}
	if _, known := a.halts[id]; known {
		return id, nil
	}
	if n := a.toldLike(doc.Doc.(*signoff.Halt)); n >= signoff.MaxResumeHalts {
		return id, fmt.Errorf("agent: %w: %d of the same kind stand that are not in the log; see why they do not get there", authority.ErrEnoughHalts, n)
	}
	// It counts from here on, whatever the disk says.
	a.halts[id] = doc
	a.cfg.Log.Warn("halt", "halt", id, "reason", doc.Doc.(*signoff.Halt).Reason)
	a.announce()
	return id, a.store.write(haltFile(id), doc.Line())
}

// toldLike counts the halts kept that are not in the log, of the same person and kind
// of scope. Each person has a bound of their own, which is the log's: nobody's halts
// crowd out another's. The caller holds mu.
func (a *Agent) toldLike(h *signoff.Halt) int {
	n := 0
	for _, doc := range a.halts {
		if x, ok := doc.Doc.(*signoff.Halt); ok && x.Person == h.Person && x.Like(h) {
			n++
		}
	}
	return n
}

func haltFile(id Digest) string { return filepath.Join(haltsDir, id.Hex()) }

// judgeHalt asks the fold. The caller holds mu.
func (a *Agent) judgeHalt(doc *signoff.Signed) error {
	if _, err := a.ledger.state(); err != nil {
		return err
	}
	out, _, err := a.ledger.settled.Judge(doc.Line(), &blobs{})
	return errors.Join(err, out.Void)
}

// loadHalts takes up what an earlier agent was told. What cannot be read is an
// error: a halt must not be lost by a damaged file.
func (a *Agent) loadHalts() error {
	names, err := a.store.haltNames()
	if err != nil {
		return err
	}
	for _, name := range names {
		line, err := a.store.read(name)
		if err != nil {
			return err
		}
		doc, err := signoff.ReadLine(line)
		if err != nil {
			return fmt.Errorf("agent: %s in %s: %w; find the halt's original before you remove it", name, a.cfg.Dir, err)
		}
		a.halts[doc.Digest()] = doc
	}
	return nil
}

// dropLogged forgets halts that the final log has: from then on it alone says
// whether they stand. One for which the log has no room yet stands. The caller holds mu.
func (a *Agent) dropLogged(s *authority.State) {
	for id, doc := range a.halts {
		_, logged := s.Halts[id]
		why := a.judgeHalt(doc)
		if !logged && (why == nil || errors.Is(why, authority.ErrEnoughHalts)) {
			continue
		}
		if !logged {
			a.cfg.Log.Warn("a halt that was told counts no more", "halt", id, "why", why)
		}
		delete(a.halts, id)
		if err := a.store.remove(haltFile(id)); err != nil {
			a.cfg.Log.Error("cannot forget a halt that the log has", "err", err)
		}
	}
}

// halted returns why the request is to stand still on this node, or nil. The
// caller holds mu.
func (a *Agent) halted(s *authority.State, request Digest) error {
	if h, ok := s.Halted(request, a.id); ok {
		return fmt.Errorf("halt %s stands: %s", h.ID, h.Doc.Reason)
	}
	for id, doc := range a.halts {
		if h, ok := doc.Doc.(*signoff.Halt); !ok || h.Covers(request, a.id) {
			return fmt.Errorf("halt %s stands and is not in the log yet", id)
		}
	}
	return nil
}

// hearHalts reads the topic on which halts are pushed.
func (a *Agent) hearHalts(ctx context.Context) {
	box := api.NewReader(api.TopicHalts)
	for ctx.Err() == nil {
		if a.state(func(*authority.State) error { return nil }) != nil {
			pause(ctx, 100*time.Millisecond) // nothing runs, and nothing can judge it
			continue
		}
		msgs, err := box.Receive(ctx, a.client(), 20*time.Second)
		if err != nil {
			pause(ctx, 500*time.Millisecond)
			continue
		}
		for _, m := range msgs {
			if id, err := a.Halt(m); err != nil {
				a.cfg.Log.Debug("mail is no halt to obey", "halt", id, "err", err)
			}
		}
	}
}

// tellHalts appends halts that are not in the log: one that came by hand on
// this node shall stop the others too, and only what is in the log can be
// lifted.
func (a *Agent) tellHalts(ctx context.Context) {
	for ctx.Err() == nil {
		news := a.news()
		a.mu.Lock()
		var lines [][]byte
		for _, doc := range a.halts {
			lines = append(lines, doc.Line())
		}
		a.mu.Unlock()
		for _, line := range lines {
			if _, err := a.client().Append(ctx, line); err != nil {
				a.cfg.Log.Warn("cannot append a halt; it stands here all the same", "err", err)
			}
		}
		wait := time.Hour
		if len(lines) > 0 {
			wait = 2 * time.Second
		}
		select {
		case <-ctx.Done():
		case <-news:
			if len(lines) > 0 {
				pause(ctx, time.Second)
			}
		case <-time.After(wait):
		}
	}
}
