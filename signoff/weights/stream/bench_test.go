package stream

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"syscall"
	"testing"
	"time"

	"filippo.io/age"
	"golang.org/x/crypto/chacha20poly1305"
)

const benchSize = 64 << 20

// cpu returns the user time of this process.
func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano())
}

// rate runs f, which handles benchSize bytes, and reports GB per second of
// wall time and GB per second of user CPU time.
func rate(b *testing.B, f func()) {
	b.SetBytes(benchSize)
	start := cpu()
	for b.Loop() {
		f()
	}
	if used := cpu() - start; used > 0 {
		b.ReportMetric(float64(benchSize)*float64(b.N)/1e9/used.Seconds(), "GB/cpu-s")
	}
}

func check(b *testing.B, err error) {
	if err != nil {
		b.Fatal(err)
	}
}

// BenchmarkCeiling is what nothing here can beat: the bare cipher and memcpy,
// on one core, in cache.
func BenchmarkCeiling(b *testing.B) {
	aead := must(chacha20poly1305.New(make([]byte, 32)))
	buf := make([]byte, sealedChunk)
	b.Run("cipher", func(b *testing.B) {
		rate(b, func() {
			for i := range int64(benchSize / ChunkSize) {
				n := chunkNonce(i, false)
				aead.Seal(buf[:0], n[:], buf[:ChunkSize], nil)
			}
		})
	})
	b.Run("memcpy", func(b *testing.B) {
		from, to := make([]byte, benchSize), make([]byte, benchSize)
		rate(b, func() { copy(to, from) })
	})
}

func BenchmarkEncrypt(b *testing.B) {
	for _, workers := range []int{1, 2} {
		b.Run(fmt.Sprintf("workers=%d", workers), func(b *testing.B) {
			e := NewEngine(workers)
			rate(b, func() {
				check(b, e.Encrypt(context.Background(), Body{nowhere{}, 0, endless{}, benchSize, NewFileKey(), NewNonce()}, nil))
			})
		})
	}
	b.Run("sha256", func(b *testing.B) {
		e := NewEngine(0)
		rate(b, func() {
			check(b, e.Encrypt(context.Background(), Body{nowhere{}, 0, endless{}, benchSize, NewFileKey(), NewNonce()}, sha256.New()))
		})
	})
	b.Run("stock", func(b *testing.B) {
		r := must(age.GenerateX25519Identity()).Recipient()
		rate(b, func() {
			w := must(age.Encrypt(io.Discard, r))
			_, err := io.Copy(w, io.NewSectionReader(endless{}, 0, benchSize))
			check(b, err)
			check(b, w.Close())
		})
	})
}

func BenchmarkDecrypt(b *testing.B) {
	id := must(age.GenerateX25519Identity())
	key := NewFileKey()
	file := seal(b, make([]byte, benchSize), key, forAge(b, id.Recipient(), key))
	for _, workers := range []int{1, 2} {
		b.Run(fmt.Sprintf("workers=%d", workers), func(b *testing.B) {
			e := NewEngine(workers)
			rate(b, func() {
				check(b, e.Decrypt(context.Background(), Sealed{nowhere{}, bytes.NewReader(file), BodyOffset, int64(len(file) - BodyOffset), key, Nonce(file[HeaderSize:])}, nil))
			})
		})
	}
	b.Run("stock", func(b *testing.B) {
		rate(b, func() {
			r := must(age.Decrypt(bytes.NewReader(file), id))
			_, err := io.Copy(io.Discard, r)
			check(b, err)
		})
	})
}

// BenchmarkRatios puts the rates into proportion within one run, per second of
// user CPU time, so that a busy machine does not distort them.
func BenchmarkRatios(b *testing.B) {
	id := must(age.GenerateX25519Identity())
	key := NewFileKey()
	file := seal(b, make([]byte, benchSize), key, forAge(b, id.Recipient(), key))
	aead := must(chacha20poly1305.New(make([]byte, 32)))
	buf := make([]byte, sealedChunk)
	one := NewEngine(1)
	var raw, ours, stock, oursOpen, stockOpen time.Duration
	for b.Loop() {
		raw += timed(func() {
			for i := range int64(benchSize / ChunkSize) {
				n := chunkNonce(i, false)
				aead.Seal(buf[:0], n[:], buf[:ChunkSize], nil)
			}
		})
		ours += timed(func() {
			check(b, one.Encrypt(context.Background(), Body{nowhere{}, 0, endless{}, benchSize, NewFileKey(), NewNonce()}, nil))
		})
		stock += timed(func() {
			w := must(age.Encrypt(io.Discard, id.Recipient()))
			_, err := io.Copy(w, io.NewSectionReader(endless{}, 0, benchSize))
			check(b, err)
			check(b, w.Close())
		})
		oursOpen += timed(func() {
			check(b, one.Decrypt(context.Background(), Sealed{nowhere{}, bytes.NewReader(file), BodyOffset, int64(len(file) - BodyOffset), key, Nonce(file[HeaderSize:])}, nil))
		})
		stockOpen += timed(func() {
			r := must(age.Decrypt(bytes.NewReader(file), id))
			_, err := io.Copy(io.Discard, r)
			check(b, err)
		})
	}
	b.ReportMetric(float64(raw)/float64(ours), "encrypt/cipher")
	b.ReportMetric(float64(stock)/float64(ours), "encrypt/age")
	b.ReportMetric(float64(stockOpen)/float64(oursOpen), "decrypt/age")
}

func timed(f func()) time.Duration {
	start := cpu()
	f()
	return cpu() - start
}
