package signofftest_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/log/etcd"
	"github.com/keyturn/keyturn/signoff/signofftest"
)

// BenchmarkAppendToFinal measures the way of one entry, alone, from its
// sender until a quorum of notaries has cosigned it and the sender has the
// checkpoint. The peer is what no such log can do without: a put into the same
// etcd, and four Ed25519 signatures, the log's and a quorum's.
func BenchmarkAppendToFinal(b *testing.B) {
	c := signofftest.Start(b, nil)
	ctx := context.Background()
	lines := make([]*signoff.Signed, b.N)
	for i := range lines {
		object, secrets := c.Object(fmt.Sprint("object ", i))
		secrets.Wipe()
		lines[i] = object
	}
	peer := barePeer(b)
	var ours, bare time.Duration
	for i := range b.N {
		began := time.Now()
		out, err := c.Client.Append(ctx, lines[i].Line())
		if err != nil || out.Void != "" {
			b.Fatal(err, out.Void)
		}
		if _, err := c.Client.Checkpoint(ctx, true, out.Index+1, 20*time.Second); err != nil {
			b.Fatal(err)
		}
		ours += time.Since(began)
		began = time.Now()
		peer(fmt.Sprintf("entry/%016x", i), lines[i].Line())
		bare += time.Since(began)
	}
	b.ReportMetric(float64(ours.Microseconds())/1000/float64(b.N), "ms/final")
	b.ReportMetric(float64(bare.Microseconds())/1000/float64(b.N), "ms/bare")
	b.ReportMetric(float64(ours)/float64(bare), "final/bare")
}

// barePeer returns a put into an etcd of its own, with four signatures.
func barePeer(b *testing.B) func(key string, line []byte) {
	b.Helper()
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "kt") // a short path, so that etcd's socket lies in it
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { os.RemoveAll(dir) })
	order, err := etcd.OpenEmbedded(ctx, dir)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { order.Close() })
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{"unix://" + filepath.Join(dir, "client.sock")}, Logger: zap.NewNop()})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { client.Close() })
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	return func(name string, line []byte) {
		if _, err := client.Put(ctx, name, string(line)); err != nil {
			b.Fatal(err)
		}
		for range 4 {
			ed25519.Sign(key, line)
		}
	}
}
