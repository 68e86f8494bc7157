package coordinator

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyturn/keyturn/signoff/api"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/dsse"
	"github.com/keyturn/keyturn/signoff/log"
)

func served(t *testing.T) *Coordinator {
	t.Helper()
	archive, err := log.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { archive.Close() })
	return &Coordinator{cfg: Config{Archive: archive}, free: archive.Free, wake: make(chan struct{}, 1)}
}

func ask(c *Coordinator, method, path, body string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	c.Handler().ServeHTTP(w, httptest.NewRequest(method, path, strings.NewReader(body)))
	return w
}

// A stranger asks for as many entries at once as there may be, of the largest. An
// answer ends after MaxAnswer bytes, and asking on gets the rest.
func TestAttackEntriesThatFillMemory(t *testing.T) {
	c := served(t)
	leaf := bytes.Repeat([]byte("x"), log.MaxLeaf)
	const n = 300
	var leaves [][]byte
	for i := range n {
		leaves = append(leaves, bytes.Clone(leaf))
		copy(leaves[i], []byte{'a' + byte(i%26), 'a' + byte(i/26)})
	}
	if err := c.cfg.Archive.Append(leaves); err != nil {
		t.Fatal(err)
	}
	got, answers := 0, 0
	for ; got < n; answers++ {
		body := ask(c, http.MethodGet, "/v1/entries?from="+strconv.Itoa(got)+"&to=300", "").Body.Bytes()
		if len(body) > api.MaxAnswer+log.MaxLeaf+api.MaxBatch {
			t.Fatalf("an answer of %d bytes", len(body))
		}
		lines := bytes.Count(body, []byte("\n"))
		if lines == 0 {
			t.Fatalf("no entry from %d on", got)
		}
		if first := body[:2]; first[0] != 'a'+byte(got%26) || first[1] != 'a'+byte(got/26) {
			t.Fatalf("entry %d begins with %q", got, first)
		}
		got += lines
	}
	if answers != 3 {
		t.Fatalf("%d entries of %d bytes in %d answers", n, len(leaf), answers)
	}
}

// Strangers fill the disk with blobs, and the log goes on in what they leave.
func TestAttackBlobsThatFillTheDisk(t *testing.T) {
	c := served(t)
	left := uint64(spare)
	c.free = func() (uint64, error) { return left, nil }
	if w := ask(c, http.MethodPut, "/v1/blobs", "one"); w.Code != http.StatusOK {
		t.Fatalf("%d: %s", w.Code, w.Body)
	}
	left--
	if w := ask(c, http.MethodPut, "/v1/blobs", "two"); w.Code != http.StatusInsufficientStorage {
		t.Fatalf("a blob on a full disk: %d: %s", w.Code, w.Body)
	}
	c.free = func() (uint64, error) { return spare, errors.New("no answer") }
	if w := ask(c, http.MethodPut, "/v1/blobs", "two"); w.Code != http.StatusInsufficientStorage {
		t.Fatalf("a blob on a disk that does not answer: %d: %s", w.Code, w.Body)
	}
	if err := c.cfg.Archive.Append([][]byte{[]byte("entry")}); err != nil {
		t.Fatal(err)
	}
}

// slow hands out n bytes, of zero, and then nothing until release is closed.
type slow struct {
	n       int
	reached func()
	release chan struct{}
}

func (s *slow) Read(b []byte) (int, error) {
	if s.n == 0 {
		s.reached()
		<-s.release
		return 0, io.EOF
	}
	n := min(len(b), s.n)
	clear(b[:n])
	s.n -= n
	return n, nil
}

// deaf takes one write and is slow to take another.
type deaf struct {
	*httptest.ResponseRecorder
	reached func()
	release chan struct{}
}

func (d *deaf) Write(b []byte) (int, error) {
	d.reached()
	<-d.release
	return 0, io.ErrClosedPipe
}

// Strangers send blobs slowly and fetch them slowly, many at a time. None of them is
// in memory as a whole.
func TestAttackSlowBlobsThatFillMemory(t *testing.T) {
	c := served(t)
	const each, many = 2 << 20, 32
	stored := ask(c, http.MethodPut, "/v1/blobs", strings.Repeat("x", each))
	var digest api.Stored
	if err := dsse.Decode(stored.Body.Bytes(), &digest); err != nil {
		t.Fatal(err)
	}
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	var waiting, done sync.WaitGroup
	release := make(chan struct{})
	for range many {
		waiting.Add(2)
		reached := sync.OnceFunc(waiting.Done)
		done.Go(func() {
			c.Handler().ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodPut, "/v1/blobs", &slow{each, reached, release}))
		})
		done.Go(func() {
			c.Handler().ServeHTTP(&deaf{httptest.NewRecorder(), sync.OnceFunc(waiting.Done), release}, httptest.NewRequest(http.MethodGet, "/v1/blobs/"+digest.Digest.Hex(), nil))
		})
	}
	waiting.Wait()
	held := int64(heap()) - int64(before)
	close(release)
	done.Wait()
	if held > many*each/4 {
		t.Fatalf("%d bytes of %d sent and %d fetched at a time are in memory", held, many*each, many*each)
	}
}

// A ration is full at first, comes back by the minute, and never grows above what it
// was. A clock that goes back gives nothing.
func TestRations(t *testing.T) {
	var r rations
	now, who := time.Unix(1_790_000_000, 0), Digest{1}
	take := func(n int, want bool) {
		t.Helper()
		if got := r.take(who, n, now); got != want {
			t.Fatalf("take %d: %v", n, got)
		}
	}
	take(rationBurst, true)
	take(1, false)
	now = now.Add(59 * time.Second)
	take(1, false)
	now = now.Add(-time.Hour)
	take(1, false)
	now = now.Add(time.Hour + time.Second)
	take(rationPace, true)
	take(1, false)
	if !r.take(Digest{2}, 1, now) {
		t.Fatal("another's ration is gone")
	}
	now = now.Add(1000 * 24 * time.Hour)
	take(rationBurst+1, false)
	take(rationBurst, true)
}

// An epoch stands in the log and becomes final late, or never: a quorum of notaries is
// away. Nodes still go by the one before it, and get their leaves.
func TestFaultEpochThatIsNotFinal(t *testing.T) {
	c := served(t)
	var err error
	if c.auth, err = authority.New(Digest{1}); err != nil {
		t.Fatal(err)
	}
	node := Digest{7}
	for n := uint64(1); n <= 2*maxEpochs; n++ {
		e := &authority.Epoch{Number: n, Index: 10 * n, Leases: []authority.Lease{{Node: node, Epoch: n}}}
		if e.Root, err = authority.LeaseRoot(e.Leases); err != nil {
			t.Fatal(err)
		}
		c.auth.State().Epoch = e
		c.noteEpoch()
		c.noteEpoch()
		for _, of := range []uint64{max(n, 2) - 1, n} {
			if w := ask(c, http.MethodGet, fmt.Sprintf("/v1/leases/%s?epoch=%d", node.Hex(), of), ""); w.Code != http.StatusOK {
				t.Fatalf("epoch %d, in force %d: %d: %s", of, n, w.Code, w.Body)
			}
		}
	}
	if len(c.epochs) != maxEpochs {
		t.Fatalf("%d epochs are kept", len(c.epochs))
	}
	c.final = fmt.Appendf(nil, "log\n%d\n%s\nstate %s\n\n— log AAAAAAAA\n", 10*2*maxEpochs+5, zeroHash, zeroHash)
	c.auth.State().Epoch = &authority.Epoch{Number: 100, Index: 1000}
	if c.noteEpoch(); len(c.epochs) != 2 {
		t.Fatalf("%d epochs are kept of which one is final and one is after it", len(c.epochs))
	}
}

const zeroHash = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
