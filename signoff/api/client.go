package api

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/dsse"
)

// An Endpoint is one coordinator's address and the key it must show.
type Endpoint struct {
	URL string
	TLS Digest // SHA-256 of the SPKI
}

// A Client speaks to the first coordinator that answers.
type Client struct {
	endpoints []Endpoint
	http      *http.Client
}

// NewClient returns a client of the given coordinators. identity is shown to
// the coordinator if it asks (nodes); it may be nil.
func NewClient(endpoints []Endpoint, identity *tls.Certificate) (*Client, error) {
	if len(endpoints) == 0 {
		return nil, errors.New("api: no coordinator to speak to")
	}
	for _, e := range endpoints {
		if u, err := url.Parse(e.URL); err != nil || u.Scheme != "https" || u.Host == "" {
			return nil, fmt.Errorf("api: coordinator %.100q: want https://HOST:PORT", e.URL)
		}
	}
	conf := &tls.Config{
		MinVersion: tls.VersionTLS13,
		// The certificate's chain and dates play no part: the key is
		// pinned by the charter, and VerifyConnection is that check.
		InsecureSkipVerify: true,
		VerifyConnection:   pinned(endpoints),
	}
	if identity != nil {
		conf.Certificates = []tls.Certificate{*identity}
	}
	return &Client{endpoints, &http.Client{
		Transport: &http.Transport{TLSClientConfig: conf, MaxIdleConnsPerHost: 8, ResponseHeaderTimeout: MaxWait + 10*time.Second},
		// A coordinator has nobody to send us to: it would be another host, in clear
		// if it liked, behind a network that it cannot reach itself.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Timeout:       maxCall,
	}}, nil
}

// maxCall bounds one question with its whole answer, so that a coordinator which
// stops in the middle does not keep us from the next.
const maxCall = 4 * time.Minute

// pinned accepts only the keys of the endpoints.
func pinned(endpoints []Endpoint) func(tls.ConnectionState) error {
	return func(cs tls.ConnectionState) error {
		if len(cs.PeerCertificates) == 0 {
			return errors.New("api: the coordinator showed no certificate")
		}
		got := Digest(sha256.Sum256(cs.PeerCertificates[0].RawSubjectPublicKeyInfo))
		for _, e := range endpoints {
			if got == e.TLS && !e.TLS.IsZero() {
				return nil
			}
		}
		return fmt.Errorf("api: the coordinator showed key %s, which the charter does not name", got)
	}
}

// do tries each coordinator in turn until one answers at all.
func (c *Client) do(ctx context.Context, method, path string, header http.Header, body []byte) (*http.Response, error) {
	var errs []error
	for _, e := range c.endpoints {
		req, err := http.NewRequestWithContext(ctx, method, strings.TrimSuffix(e.URL, "/")+path, bytes.NewReader(body))
		if err != nil {
			return nil, fmt.Errorf("api: %w", err)
		}
		for k, v := range header {
			req.Header[k] = v
		}
		resp, err := c.http.Do(req)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if resp.StatusCode >= 300 {
			return nil, refusal(resp)
		}
		return resp, nil
	}
	return nil, fmt.Errorf("api: no coordinator answered: %w", errors.Join(errs...))
}

func refusal(resp *http.Response) error {
	defer resp.Body.Close()
	e := &Error{Status: resp.StatusCode}
	b, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err := json.Unmarshal(b, e); err != nil || e.Text == "" {
		e.Text = resp.Status
	}
	return e
}

// read returns the whole answer, at most limit bytes.
func (c *Client) read(ctx context.Context, method, path string, header http.Header, body []byte, limit int64) ([]byte, error) {
	resp, err := c.do(ctx, method, path, header, body)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if err != nil {
		return nil, fmt.Errorf("api: read %s: %w", path, err)
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("api: %s answered more than %d bytes", path, limit)
	}
	return b, nil
}

// Append submits one bundle line. A timeout may hide a success: the id makes
// the retry inside harmless.
func (c *Client) Append(ctx context.Context, line []byte) (Appended, error) {
	var id [16]byte
	rand.Read(id[:])
	header := http.Header{HeaderID: {hex.EncodeToString(id[:])}}
	var out Appended
	for try := 0; ; try++ {
		b, err := c.read(ctx, http.MethodPost, "/v1/entries", header, line, MaxMessage)
		var refused *Error
		switch {
		case err == nil:
			return out, dsse.Decode(b, &out)
		case errors.As(err, &refused) && refused.Status != http.StatusServiceUnavailable, try == 2, ctx.Err() != nil:
			return out, err
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// Checkpoint returns the newest signed note, cosigned by a quorum if final,
// once it covers size entries; it waits for that at most wait.
func (c *Client) Checkpoint(ctx context.Context, final bool, size uint64, wait time.Duration) ([]byte, error) {
	q := url.Values{"size": {strconv.FormatUint(size, 10)}, "wait": {strconv.FormatFloat(wait.Seconds(), 'f', 3, 64)}}
	if final {
		q.Set("final", "1")
	}
	return c.read(ctx, http.MethodGet, "/v1/checkpoint?"+q.Encode(), nil, nil, MaxMessage)
}

// Entries returns entries [from, to), or fewer: no more than MaxBatch, and none after
// MaxAnswer bytes, however much is sent.
func (c *Client) Entries(ctx context.Context, from, to uint64) ([][]byte, error) {
	resp, err := c.do(ctx, http.MethodGet, fmt.Sprintf("/v1/entries?from=%d&to=%d", from, to), nil, nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var out [][]byte
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, dsse.MaxLine+2)
	for size := 0; size < MaxAnswer && lines.Scan(); size += len(lines.Bytes()) {
		if len(out) == MaxBatch {
			return nil, fmt.Errorf("api: more than %d entries in one answer", MaxBatch)
		}
		out = append(out, bytes.Clone(lines.Bytes()))
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("api: read entries: %w", err)
	}
	return out, nil
}

// Void returns which of the entries [from, to) are epochs and claims that had no
// effect, by index. Nothing proves it but the state digest it leads to.
func (c *Client) Void(ctx context.Context, from, to uint64) ([]uint64, error) {
	b, err := c.read(ctx, http.MethodGet, fmt.Sprintf("/v1/void?from=%d&to=%d", from, to), nil, nil, MaxBlob)
	if err != nil {
		return nil, err
	}
	var out []uint64
	return out, dsse.Decode(b, &out)
}

// Lease returns the proof of a node's leaf in the epoch in force, if that is the
// one asked for. The caller opens it with the root it knows.
func (c *Client) Lease(ctx context.Context, node Digest, epoch uint64) (*authority.LeaseProof, error) {
	b, err := c.read(ctx, http.MethodGet, fmt.Sprintf("/v1/leases/%s?epoch=%d", node.Hex(), epoch), nil, nil, MaxMessage)
	if err != nil {
		return nil, err
	}
	out := new(authority.LeaseProof)
	return out, dsse.Decode(b, out)
}

// PutBlob stores data under its digest.
func (c *Client) PutBlob(ctx context.Context, data []byte) (Digest, error) {
	want := Digest(sha256.Sum256(data))
	b, err := c.read(ctx, http.MethodPut, "/v1/blobs", nil, data, MaxMessage)
	if err != nil {
		return want, err
	}
	var out Stored
	if err := dsse.Decode(b, &out); err != nil {
		return want, fmt.Errorf("api: put blob: %w", err)
	}
	if out.Digest != want {
		return want, fmt.Errorf("api: put blob %s: the coordinator stored %s", want, out.Digest)
	}
	return want, nil
}

// Blob fetches a blob and checks its hash.
func (c *Client) Blob(ctx context.Context, digest Digest) ([]byte, error) {
	return c.BlobWithin(ctx, digest, MaxBlob)
}

// BlobWithin is Blob for one that somebody not known named: a longer one than limit
// bytes is refused before it is in memory.
func (c *Client) BlobWithin(ctx context.Context, digest Digest, limit int64) ([]byte, error) {
	b, err := c.read(ctx, http.MethodGet, "/v1/blobs/"+digest.Hex(), nil, nil, limit)
	var refused *Error
	if errors.As(err, &refused) && refused.Status == http.StatusNotFound {
		return nil, fmt.Errorf("api: blob %s: %w", digest, authority.ErrMissingBlob)
	}
	if err != nil {
		return nil, err
	}
	if got := Digest(sha256.Sum256(b)); got != digest {
		return nil, fmt.Errorf("api: blob %s: the coordinator sent %s", digest, got)
	}
	return b, nil
}

// Cosign hands in one cosignature: a note's signature line.
func (c *Client) Cosign(ctx context.Context, note []byte) error {
	_, err := c.read(ctx, http.MethodPost, "/v1/cosignatures", nil, note, MaxMessage)
	return err
}

// Send puts a message into the mailbox.
func (c *Client) Send(ctx context.Context, topic string, body []byte) error {
	_, err := c.read(ctx, http.MethodPost, "/v1/mail/"+topic, nil, body, MaxMessage)
	return err
}

// Receive returns messages of the topic numbered above after, waiting at most
// wait for the first.
func (c *Client) Receive(ctx context.Context, topic string, after uint64, wait time.Duration) (Mail, error) {
	path := fmt.Sprintf("/v1/mail/%s?after=%d&wait=%.3f", topic, after, wait.Seconds())
	var out Mail
	b, err := c.read(ctx, http.MethodGet, path, nil, nil, 64*MaxMessage)
	if err != nil {
		return out, err
	}
	return out, dsse.Decode(b, &out)
}
