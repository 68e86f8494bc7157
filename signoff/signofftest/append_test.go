package signofftest_test

import (
	"sync"
	"testing"
	"time"

	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/api"
	"github.com/keyturn/keyturn/signoff/signofftest"
)

// A halt goes by several paths at once, and whoever hands it in is told that it
// stands, and at which entry: nobody is told that it is void because another
// path was faster.
func TestOneDocumentByManyPaths(t *testing.T) {
	c := signofftest.Start(t, nil)
	for range 10 {
		halt := c.Sign("dave", &signoff.Halt{Charter: c.ID, Person: c.People["dave"].Doc.ID(), Everything: true, Reason: "a strange noise",
			Created: time.Now().Unix(), Nonce: signofftest.Nonce()})
		var wg sync.WaitGroup
		answers, errs := make([]api.Appended, 8), make([]error, 8)
		for i := range answers {
			wg.Go(func() { answers[i], errs[i] = c.Client.Append(t.Context(), halt.Line()) })
		}
		wg.Wait()
		for i, a := range answers {
			if errs[i] != nil || a.Void != "" || a.Index != answers[0].Index || a.Document != halt.Digest() {
				t.Fatalf("path %d was told %+v, %v; path 0 %+v", i, a, errs[i], answers[0])
			}
		}
	}
}
