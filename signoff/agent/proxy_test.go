package agent_test

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/keyturn/keyturn/signoff/api"
)

// A cable is a way to the coordinator that can be cut.
type cable struct {
	w        *world
	mu       sync.Mutex
	listener net.Listener
	conns    []net.Conn
	addr     string
}

func (w *world) cable() *cable {
	c := &cable{w: w, addr: "127.0.0.1:0"}
	c.join()
	w.t.Cleanup(c.cut)
	return c
}

func (c *cable) endpoints() []api.Endpoint {
	return []api.Endpoint{{URL: "https://" + c.addr, TLS: c.w.Charter.Coordinators[0].TLS}}
}

// join connects both ends, at the same address as before.
func (c *cable) join() {
	l, err := net.Listen("tcp", c.addr)
	c.w.must(err)
	c.mu.Lock()
	c.listener, c.addr = l, l.Addr().String()
	c.mu.Unlock()
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", strings.TrimPrefix(c.w.URL, "https://"))
			if err != nil {
				in.Close()
				continue
			}
			c.mu.Lock()
			c.conns = append(c.conns, in, out)
			c.mu.Unlock()
			go io.Copy(in, out)
			go io.Copy(out, in)
		}
	}()
}

func (c *cable) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.listener.Close()
	for _, conn := range c.conns {
		conn.Close()
	}
	c.conns = nil
}

// hostile serves the coordinator's interface with its own TLS key: a
// coordinator whose root is an attacker. meddle may answer a request itself.
func (w *world) hostile(meddle func(http.ResponseWriter, *http.Request) bool) []api.Endpoint {
	w.t.Helper()
	target, err := url.Parse(w.URL)
	w.must(err)
	proxy := httputil.NewSingleHostReverseProxy(target)
	proxy.Transport = &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	proxy.ErrorLog = log.New(io.Discard, "", 0)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, w.TLS.Public(), w.TLS)
	w.must(err)
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if !meddle(rw, r) {
			proxy.ServeHTTP(rw, r)
		}
	}))
	srv.TLS = &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: w.TLS}}}
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.StartTLS()
	w.t.Cleanup(func() { srv.CloseClientConnections(); srv.Close() })
	return []api.Endpoint{{URL: srv.URL, TLS: w.Charter.Coordinators[0].TLS}}
}

// finalNote is the newest final checkpoint.
func (w *world) finalNote() []byte {
	w.t.Helper()
	note, err := w.Client.Checkpoint(context.Background(), true, 1, time.Second)
	w.must(err)
	return note
}
