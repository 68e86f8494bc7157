// Keyturnd is the daemon of a coordinator: the mailbox of the cluster and the
// keeper of its log. It is trusted with nothing but being there.
package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/keyturn/keyturn/cmd/internal/config"
	"github.com/keyturn/keyturn/cmd/internal/keys"
	"github.com/keyturn/keyturn/cmd/internal/ui"
	"github.com/keyturn/keyturn/hsm/secret"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/coordinator"
	"github.com/keyturn/keyturn/signoff/dsse"
	"github.com/keyturn/keyturn/signoff/follow"
	"github.com/keyturn/keyturn/signoff/log"
	"github.com/keyturn/keyturn/signoff/log/etcd"
)

// options are the flags.
type options struct {
	config     string
	pinFD      keys.FD
	credential string
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	p, o := ui.New(), &options{}
	root := &cobra.Command{Use: "keyturnd", Short: "the daemon of a coordinator", Args: cobra.NoArgs, SilenceUsage: true, SilenceErrors: true,
		PersistentPreRunE: func(*cobra.Command, []string) error { return secret.Harden() },
		RunE:              func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context()) }}
	f := root.PersistentFlags()
	f.StringVar(&o.config, "config", "/etc/keyturn/keyturnd.yaml", "configuration file")
	f.Var(&o.pinFD, "pin-fd", "read the token's PIN from this file descriptor")
	f.StringVar(&o.credential, "pin-credential", "", "read the token's PIN from this service credential")
	root.AddCommand(recoverCmd(p))
	os.Exit(p.Report("keyturnd", root.ExecuteContext(ctx)))
}

// A server is everything that run opened, in the order in which it closes.
type server struct {
	logger *slog.Logger
	ring   *keys.Ring
	order  *etcd.Order
	arch   *log.Archive
}

func (s *server) close() {
	if s.order != nil {
		s.order.Close()
	}
	if s.arch != nil {
		s.arch.Close()
	}
	s.ring.Close()
}

func (o *options) run(ctx context.Context) error {
	var conf config.Coordinator
	if err := config.Load(o.config, &conf); err != nil {
		return err
	}
	charter, id, err := conf.Anchor(o.config)
	if err != nil {
		return err
	}
	pin, err := keys.DaemonPIN(o.pinFD, o.credential)
	if err != nil {
		return err
	}
	s := &server{logger: keys.Logger("keyturnd"), ring: keys.New(pin)}
	defer s.close()
	co, err := s.open(ctx, o.config, &conf, charter, id)
	if err != nil {
		return err
	}
	return s.serve(ctx, co, &conf, charter)
}

func (s *server) open(ctx context.Context, file string, conf *config.Coordinator, charter *signoff.Charter, id dsse.Digest) (*coordinator.Coordinator, error) {
	pinned := charter.Log
	if conf.LogKeyPublic != "" {
		var err error
		if pinned, err = config.ReadPublicKey(config.Beside(file, conf.LogKeyPublic)); err != nil {
			return nil, err
		}
	}
	logPub, err := pinned.Public()
	if err != nil {
		return nil, err
	}
	logKey, err := s.ring.Key(ctx, conf.LogKey, logPub)
	if err != nil {
		return nil, err
	}
	genesis, err := readGenesis(config.Beside(file, conf.Genesis))
	if err != nil {
		return nil, err
	}
	dir := config.Beside(file, conf.Dir)
	if s.arch, err = log.Open(filepath.Join(dir, "log")); err != nil {
		return nil, err
	}
	if len(conf.Etcd) > 0 {
		s.order, err = etcd.Dial(ctx, conf.Etcd, nil)
	} else {
		s.order, err = etcd.OpenEmbedded(ctx, filepath.Join(dir, "etcd"))
	}
	if err != nil {
		return nil, err
	}
	return coordinator.New(ctx, coordinator.Config{Charter: id, Genesis: genesis, Order: s.order, Archive: s.arch, LogKey: logKey, Log: s.logger,
		Memory: follow.InFile(filepath.Join(dir, "appraised.json"))})
}

// readGenesis reads the first entries; none once the file is gone.
func readGenesis(path string) ([][]byte, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("genesis: %w", err)
	}
	var out [][]byte
	for line := range bytes.Lines(b) {
		out = append(out, bytes.TrimRight(line, "\n"))
	}
	return out, nil
}

func (s *server) serve(ctx context.Context, co *coordinator.Coordinator, conf *config.Coordinator, charter *signoff.Charter) error {
	cert, err := s.certificate(ctx, conf, charter)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", conf.Listen)
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: co.Handler(), ReadHeaderTimeout: 10 * time.Second, ReadTimeout: time.Minute, WriteTimeout: 4 * time.Minute, IdleTimeout: 2 * time.Minute,
		MaxHeaderBytes: 16 << 10, ErrorLog: slog.NewLogLogger(s.logger.Handler(), slog.LevelDebug)}
	done := make(chan error, 1)
	go func() {
		done <- srv.Serve(tls.NewListener(l, co.TLS(cert)))
	}()
	s.logger.Info("serving", "address", l.Addr().String())
	ran := make(chan error, 1)
	go func() { ran <- co.Run(ctx) }()
	select {
	case err = <-done:
	case err = <-ran:
	}
	return errors.Join(err, srv.Close())
}
