package coordinator

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/api"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/dsse"
)

// Handler serves the API; see package api.
func (c *Coordinator) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/checkpoint", c.getCheckpoint)
	mux.HandleFunc("GET /v1/entries", c.getEntries)
	mux.HandleFunc("POST /v1/entries", c.postEntry)
	mux.HandleFunc("GET /v1/void", c.getVoid)
	mux.HandleFunc("GET /v1/leases/{node}", c.getLease)
	mux.HandleFunc("PUT /v1/blobs", c.putBlob)
	mux.HandleFunc("GET /v1/blobs/{digest}", c.getBlob)
	mux.HandleFunc("POST /v1/cosignatures", c.postCosignature)
	mux.HandleFunc("POST /v1/mail/{topic}", c.postMail)
	mux.HandleFunc("GET /v1/mail/{topic}", c.getMail)
	return mux
}

// refuse answers with an error and, where there is one, what to do.
func refuse(w http.ResponseWriter, status int, hint string, err error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	b, _ := dsse.Encode(&api.Error{Text: err.Error(), Hint: hint})
	w.Write(b)
}

func answer(w http.ResponseWriter, v any) {
	b, err := dsse.Encode(v)
	if err != nil {
		refuse(w, http.StatusInternalServerError, "", err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Write(b)
}

// body reads at most limit bytes.
func body(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, bool) {
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	if err != nil {
		refuse(w, http.StatusRequestEntityTooLarge, fmt.Sprintf("at most %d bytes", limit), err)
		return nil, false
	}
	return b, true
}

// waiting returns a context that ends after the wait the caller asked for.
func waiting(r *http.Request) (context.Context, context.CancelFunc) {
	seconds, err := strconv.ParseFloat(r.FormValue("wait"), 64)
	if err != nil || seconds < 0 {
		seconds = 0
	}
	wait := min(time.Duration(seconds*float64(time.Second)), api.MaxWait)
	return context.WithTimeout(r.Context(), wait)
}

func (c *Coordinator) getCheckpoint(w http.ResponseWriter, r *http.Request) {
	size, err := strconv.ParseUint(r.FormValue("size"), 10, 64)
	if err != nil {
		refuse(w, http.StatusBadRequest, "give size=N", err)
		return
	}
	ctx, cancel := waiting(r)
	defer cancel()
	for {
		c.mu.Lock()
		note, changed := c.final, c.changed
		if r.FormValue("final") == "" && c.pending != nil {
			note = c.pending
		}
		c.mu.Unlock()
		if note != nil && noteSize(note) >= size {
			w.Write(note)
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			refuse(w, http.StatusNotFound, "ask again, or with a longer wait", fmt.Errorf("no such checkpoint of %d entries yet", size))
			return
		}
	}
}

// epoch is the epoch of that number, nil if nodes do not go by it.
func (c *Coordinator) epoch(number uint64) *authority.Epoch {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range slices.Backward(c.epochs) {
		if e.Number == number {
			return e
		}
	}
	return nil
}

// span reads the range of entries asked for.
func span(w http.ResponseWriter, r *http.Request) (from, to uint64, ok bool) {
	from, err1 := strconv.ParseUint(r.FormValue("from"), 10, 64)
	to, err2 := strconv.ParseUint(r.FormValue("to"), 10, 64)
	if err := errors.Join(err1, err2); err != nil || from > to {
		refuse(w, http.StatusBadRequest, "give from=A&to=B", fmt.Errorf("entries %q to %q", r.FormValue("from"), r.FormValue("to")))
		return 0, 0, false
	}
	return from, to, true
}

func (c *Coordinator) getVoid(w http.ResponseWriter, r *http.Request) {
	from, to, ok := span(w, r)
	if !ok {
		return
	}
	c.mu.Lock()
	void := c.auth.Void()
	i, _ := slices.BinarySearch(void, from)
	j, _ := slices.BinarySearch(void, to)
	out := slices.Concat([]uint64{}, void[i:j])
	c.mu.Unlock()
	answer(w, out)
}

func (c *Coordinator) getLease(w http.ResponseWriter, r *http.Request) {
	node, err := dsse.ParseDigest("sha256:" + r.PathValue("node"))
	number, err2 := strconv.ParseUint(r.FormValue("epoch"), 10, 64)
	if err := errors.Join(err, err2); err != nil {
		refuse(w, http.StatusBadRequest, "give a node's id and epoch=N", err)
		return
	}
	epoch := c.epoch(number)
	if epoch == nil {
		refuse(w, http.StatusNotFound, "", fmt.Errorf("epoch %d is not in force here", number))
		return
	}
	p, err := epoch.Prove(node)
	if err != nil {
		refuse(w, http.StatusNotFound, "", err)
		return
	}
	answer(w, p)
}

func (c *Coordinator) getEntries(w http.ResponseWriter, r *http.Request) {
	from, to, ok := span(w, r)
	if !ok {
		return
	}
	to = min(to, from+api.MaxBatch, c.cfg.Archive.Size())
	for sent := 0; from < to && sent < api.MaxAnswer; from += batch {
		lines, err := c.cfg.Archive.Leaves(r.Context(), from, min(to, from+batch))
		if err != nil {
			if sent == 0 {
				refuse(w, http.StatusInternalServerError, "", err)
			}
			return // what was sent is right, and whoever wants more asks again
		}
		for _, l := range lines {
			if sent >= api.MaxAnswer {
				return
			}
			w.Write(append(l[:len(l):len(l)], '\n'))
			sent += len(l)
		}
	}
}

// postEntry judges the entry where the log stands, appends it, and answers
// once it is folded. The judgement is a courtesy: what counts is the fold at
// the entry's own index.
func (c *Coordinator) postEntry(w http.ResponseWriter, r *http.Request) {
	line, ok := body(w, r, dsse.MaxLine)
	if !ok {
		return
	}
	var id [16]byte
	if n, err := hex.Decode(id[:], []byte(r.Header.Get(api.HeaderID))); err != nil || n != len(id) || len(r.Header.Get(api.HeaderID)) != 2*len(id) {
		refuse(w, http.StatusBadRequest, "send "+api.HeaderID+" with 32 hex digits", errors.New("no idempotency id"))
		return
	}
	if bytes.ContainsAny(line, "\n\r") {
		refuse(w, http.StatusBadRequest, "send one bundle line without its newline", errors.New("the entry has more than one line"))
		return
	}
	c.mu.Lock()
	out, _, err := c.auth.Judge(line, c.blobs(r.Context()))
	token, byPerson := c.auth.State().Tokens[out.Signer]
	c.mu.Unlock()
	switch {
	case errors.Is(err, authority.ErrMissingBlob):
		refuse(w, http.StatusUnprocessableEntity, "put the blob first", err)
		return
	case err != nil:
		refuse(w, http.StatusServiceUnavailable, "", err)
		return
	case out.Void != nil && !c.already(w, out):
		refuse(w, http.StatusUnprocessableEntity, "", out.Void)
		return
	case out.Void != nil:
		return
	}
	// Of halts the fold takes few, and none may wait.
	if byPerson && out.Kind != signoff.KindHalt && !c.rations.take(token.Person, len(line), time.Now()) {
		refuse(w, http.StatusTooManyRequests, "wait; what is left grows every minute, and halts are always taken", fmt.Errorf("%s has appended too much of late", token.Name))
		return
	}
	index, _, err := c.cfg.Order.Append(r.Context(), id, line)
	if err != nil {
		refuse(w, http.StatusServiceUnavailable, "the same request can be sent again", err)
		return
	}
	c.poke()
	void, err := c.folded(r.Context(), index)
	if err != nil {
		refuse(w, http.StatusServiceUnavailable, "the entry is committed; ask for it later", err)
		return
	}
	if void != nil && c.already(w, out) { // another path was faster since it was judged
		return
	}
	a := api.Appended{Index: index, Document: out.Document}
	if void != nil {
		a.Void = void.Error()
	}
	answer(w, a)
}

// already answers for a document that took effect before: sending it again,
// by another path or after a lost answer, is no error.
func (c *Coordinator) already(w http.ResponseWriter, out authority.Outcome) bool {
	c.mu.Lock()
	index, ok := c.auth.State().Documents[out.Document]
	c.mu.Unlock()
	if ok && out.Kind != signoff.KindWarrant {
		answer(w, api.Appended{Index: index, Document: out.Document})
	}
	return ok && out.Kind != signoff.KindWarrant
}

// folded waits until the entry at index is in tiles and state.
func (c *Coordinator) folded(ctx context.Context, index uint64) (error, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for {
		c.mu.Lock()
		size, changed := c.auth.Size(), c.changed
		void := c.outcomes[index]
		c.mu.Unlock()
		if size > index {
			return void, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fmt.Errorf("entry %d is not in the tiles yet: %w", index, ctx.Err())
		}
	}
}

// spare is what blobs leave free on the disk, in bytes: they are put by strangers, and
// entries must have room when theirs have none. The order, on the same disk, stops
// below half of it.
const spare = 512 << 20

func (c *Coordinator) putBlob(w http.ResponseWriter, r *http.Request) {
	if free, err := c.free(); err != nil || free < spare {
		refuse(w, http.StatusInsufficientStorage, "make room on the coordinator's disk", errors.Join(err, fmt.Errorf("%d MiB are free, blobs leave %d", free>>20, spare>>20)))
		return
	}
	digest, err := c.cfg.Archive.PutBlobFrom(http.MaxBytesReader(w, r.Body, api.MaxBlob))
	if large := (*http.MaxBytesError)(nil); errors.As(err, &large) {
		refuse(w, http.StatusRequestEntityTooLarge, fmt.Sprintf("at most %d bytes", large.Limit), err)
		return
	}
	if err != nil {
		refuse(w, http.StatusServiceUnavailable, "see that the coordinator's disk has room", err)
		return
	}
	c.poke() // the fold may have waited for it
	answer(w, api.Stored{Digest: digest})
}

func (c *Coordinator) getBlob(w http.ResponseWriter, r *http.Request) {
	digest, err := dsse.ParseDigest("sha256:" + r.PathValue("digest"))
	if err != nil {
		refuse(w, http.StatusBadRequest, "", err)
		return
	}
	blob, size, err := c.cfg.Archive.OpenBlob(digest)
	if errors.Is(err, fs.ErrNotExist) {
		refuse(w, http.StatusNotFound, "", fmt.Errorf("blob %s is not here", digest))
		return
	}
	if err != nil {
		refuse(w, http.StatusInternalServerError, "", err)
		return
	}
	defer blob.Close()
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.FormatInt(size, 10))
	io.Copy(w, blob) // whoever asked sees by the digest what did not come
}

func (c *Coordinator) postCosignature(w http.ResponseWriter, r *http.Request) {
	note, ok := body(w, r, api.MaxMessage)
	if !ok {
		return
	}
	if err := c.addCosignature(note); err != nil {
		refuse(w, http.StatusUnprocessableEntity, "", err)
	}
}

func (c *Coordinator) postMail(w http.ResponseWriter, r *http.Request) {
	msg, ok := body(w, r, api.MaxMessage)
	if !ok {
		return
	}
	if err := c.mail.send(r.PathValue("topic"), msg); err != nil {
		refuse(w, http.StatusBadRequest, "", err)
	}
}

func (c *Coordinator) getMail(w http.ResponseWriter, r *http.Request) {
	after, err := strconv.ParseUint(r.FormValue("after"), 10, 64)
	if err != nil {
		refuse(w, http.StatusBadRequest, "give after=N", err)
		return
	}
	ctx, cancel := waiting(r)
	defer cancel()
	for {
		out, changed := c.mail.receive(r.PathValue("topic"), after)
		if len(out.Messages) > 0 {
			answer(w, out)
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			answer(w, out)
			return
		}
	}
}
