package signofftest

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"io"
	"net/http"
	"sync"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/signoff"
)

// A Misreader is an exchange key that computes wrongly, every time, with what one
// dealer sealed to it, and rightly with all else: its notary accuses an honest
// dealer in good faith.
type Misreader struct {
	hsm.Decrypter
	Dealer signoff.Digest
	Place  int // of the notary in its council, from 0

	mu    sync.Mutex
	peers map[string]bool // the dealer's ephemeral keys
}

// Meddle stands before the coordinator and looks for the dealer's dealings.
func (m *Misreader) Meddle(next http.Handler) http.Handler {
	return Rewrite(next, func(doc *signoff.Signed) signoff.Document {
		if d, ok := doc.Doc.(*signoff.Dealing); ok && d.Notary == m.Dealer {
			m.mu.Lock()
			defer m.mu.Unlock()
			if m.peers == nil {
				m.peers = map[string]bool{}
			}
			m.peers[string(d.Shares[m.Place][:65])] = true // enc of HPKE, an uncompressed point
		}
		return nil
	}, nil)
}

// ECDHContext is x of the shared point, or not.
func (m *Misreader) ECDHContext(ctx context.Context, peer *ecdh.PublicKey) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.peers[string(peer.Bytes())] {
		return make([]byte, 32), nil
	}
	return m.Decrypter.ECDHContext(ctx, peer)
}

// Rewrite stands before a coordinator and shows each document posted as an entry
// to edit. What edit returns, if not nil, goes on in its place, signed by key.
func Rewrite(next http.Handler, edit func(*signoff.Signed) signoff.Document, key hsm.Key) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost || r.URL.Path != "/v1/entries" {
			next.ServeHTTP(w, r)
			return
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		if doc, err := signoff.ReadLine(body); err == nil {
			if other := edit(doc); other != nil {
				s, err := signoff.Sign(r.Context(), key, other)
				if err != nil {
					panic(http.ErrAbortHandler)
				}
				body = s.Line()
			}
		}
		r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
		next.ServeHTTP(w, r)
	})
}
