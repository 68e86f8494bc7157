// Command testserver is a Vault server for the tests of package vault: Vault's
// own core with the transit and pki engines, AppRole and certificate login, a
// file audit device and file storage, over TLS 1.3. It starts uninitialised and
// sealed, as any Vault does, and is driven over its API from there. Its memory
// is not locked and its storage may lie anywhere: it is for tests only.
//
// It is a module of its own so that keyturn's dependencies stay free of it.
package main

import (
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"

	log "github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/audit"
	fileaudit "github.com/hashicorp/vault/builtin/audit/file"
	"github.com/hashicorp/vault/builtin/credential/approle"
	"github.com/hashicorp/vault/builtin/credential/cert"
	"github.com/hashicorp/vault/builtin/logical/pki"
	"github.com/hashicorp/vault/builtin/logical/transit"
	vaulthttp "github.com/hashicorp/vault/http"
	"github.com/hashicorp/vault/sdk/helper/consts"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/hashicorp/vault/sdk/physical/file"
	"github.com/hashicorp/vault/vault"
)

func main() {
	dir := flag.String("dir", "", "storage directory")
	certificate := flag.String("cert", "", "TLS certificate, PEM")
	key := flag.String("key", "", "TLS key, PEM")
	listen := flag.String("listen", "127.0.0.1:0", "address to listen on; printed on standard output once it does")
	flag.Parse()
	if err := run(*dir, *certificate, *key, *listen); err != nil {
		fmt.Fprintln(os.Stderr, "testserver:", err)
		os.Exit(1)
	}
}

// run serves until standard input ends, so that it does not outlive the test
// that started it, or until it is told to stop.
func run(dir, certificate, key, listen string) error {
	pair, err := tls.LoadX509KeyPair(certificate, key)
	if err != nil {
		return err
	}
	core, err := newCore(dir, log.New(&log.LoggerOptions{Level: log.Warn, Output: os.Stderr}))
	if err != nil {
		return err
	}
	l, err := tls.Listen("tcp", listen, &tls.Config{
		Certificates: []tls.Certificate{pair},
		MinVersion:   tls.VersionTLS13,
		ClientAuth:   tls.RequestClientCert, // the cert login looks at it
	})
	if err != nil {
		return err
	}
	go stopWith(l)
	fmt.Println(l.Addr())
	err = http.Serve(l, vaulthttp.Handler.Handler(&vault.HandlerProperties{Core: core}))
	if errors.Is(err, net.ErrClosed) {
		return core.Shutdown()
	}
	return err
}

// stopWith closes l when standard input ends or a signal asks for it.
func stopWith(l net.Listener) {
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		io.Copy(io.Discard, os.Stdin)
		asked <- syscall.SIGTERM
	}()
	<-asked
	l.Close()
}

func newCore(dir string, logger log.Logger) (*vault.Core, error) {
	storage, err := file.NewFileBackend(map[string]string{"path": dir}, logger)
	if err != nil {
		return nil, err
	}
	return vault.NewCore(&vault.CoreConfig{
		Physical:           storage,
		StorageType:        "file",
		DisableMlock:       true,
		Logger:             logger,
		BuiltinRegistry:    noPlugins{},
		LogicalBackends:    map[string]logical.Factory{"transit": transit.Factory, "pki": pki.Factory},
		CredentialBackends: map[string]logical.Factory{"approle": approle.Factory, "cert": cert.Factory},
		AuditBackends:      map[string]audit.Factory{"file": fileaudit.Factory},
	})
}

// noPlugins is a registry without plugins: what is served is compiled in above.
type noPlugins struct{}

func (noPlugins) Contains(string, consts.PluginType) bool { return false }
func (noPlugins) Keys(consts.PluginType) []string         { return nil }

func (noPlugins) Get(string, consts.PluginType) (func() (any, error), bool) { return nil, false }

func (noPlugins) DeprecationStatus(string, consts.PluginType) (consts.DeprecationStatus, bool) {
	return consts.Unknown, false
}
