package vault

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"sync"

	"github.com/hashicorp/vault/api"

	"github.com/keyturn/keyturn/hsm"
)

// Login is how to get a token: a [TokenFile], an [AppRole] or a [Certificate].
// It runs at Open and again whenever the token has ended.
type Login interface {
	token(ctx context.Context, c *api.Client) (string, error)
}

// errUnusable: what the login needs is not there or not fit for use, on this
// side of the connection. To the caller that is no login, as if it had ended.
var errUnusable = fmt.Errorf("%w: the login cannot be used", hsm.ErrAuthExpired)

// TokenFile is the path of a file with a token that others keep fresh, such as
// Vault's own agent. It is read again when the token in use has ended.
type TokenFile string

func (f TokenFile) token(context.Context, *api.Client) (string, error) {
	return File(string(f))()
}

// AppRole logs in with a role id and a secret id.
type AppRole struct {
	Mount            string // where the method is enabled; empty: approle
	RoleID, SecretID Source
}

func (a AppRole) token(ctx context.Context, c *api.Client) (string, error) {
	if a.RoleID == nil || a.SecretID == nil {
		return "", fmt.Errorf("%w: an AppRole needs a role id and a secret id", errUnusable)
	}
	role, err := a.RoleID()
	if err != nil {
		return "", err
	}
	secret, err := a.SecretID()
	if err != nil {
		return "", err
	}
	return login(ctx, c, a.Mount, "approle", map[string]string{"role_id": role, "secret_id": secret})
}

// Certificate logs in with a TLS client certificate.
type Certificate struct {
	Mount             string // where the method is enabled; empty: cert
	Role              string // name of the role; empty: any that fits
	CertFile, KeyFile string // PEM, read at each login and each new connection; only its owner can open KeyFile
}

func (l Certificate) token(ctx context.Context, c *api.Client) (string, error) {
	if _, err := l.show(nil); err != nil {
		return "", err
	}
	in := map[string]string{}
	if l.Role != "" {
		in["name"] = l.Role
	}
	return login(ctx, c, l.Mount, "cert", in)
}

func (l Certificate) show(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	cert, err := os.ReadFile(l.CertFile)
	if err != nil {
		return nil, fmt.Errorf("%w: client certificate: %w", errUnusable, err)
	}
	f, err := open(l.KeyFile)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	key, err := io.ReadAll(io.LimitReader(f, maxSource))
	defer clear(key)
	if err != nil {
		return nil, fmt.Errorf("%w: client key: %w", errUnusable, err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("%w: client certificate: %w", errUnusable, err)
	}
	return &pair, nil
}

var mountPath = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*$`)

// login posts in to a login method and returns the token.
func login(ctx context.Context, c *api.Client, mount, method string, in any) (string, error) {
	if mount == "" {
		mount = method
	}
	if !mountPath.MatchString(mount) {
		return "", fmt.Errorf("%w: %q is not the path of an auth method", errUnusable, mount)
	}
	var out answer[struct{}]
	if err := send(ctx, c, "auth/"+mount+"/login", in, &out); err != nil {
		return "", err
	}
	return oneLine("the token in the server's answer", out.Auth.Token)
}

// Source returns one line of text, such as a secret id.
type Source func() (string, error)

// maxSource bounds a token or an id in bytes; service tokens have about 100,
// batch tokens some hundred more.
const maxSource = 8 << 10

// File reads the line from a file that only its owner can open, each time
// anew, so that it can be replaced.
func File(path string) Source {
	return func() (string, error) {
		f, err := open(path)
		if err != nil {
			return "", err
		}
		defer f.Close()
		return readLine(path, f)
	}
}

// open opens a file that only its owner can open.
func open(path string) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errUnusable, err)
	}
	stat, err := f.Stat()
	if err == nil && (!stat.Mode().IsRegular() || stat.Mode().Perm()&0o077 != 0) {
		err = fmt.Errorf("%s is not a regular file that only its owner can read; chmod 600 it", path)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("%w: %w", errUnusable, err)
	}
	return f, nil
}

// Descriptor reads the line from an open file descriptor, once, and keeps it.
func Descriptor(fd int) Source {
	return sync.OnceValues(func() (string, error) {
		name := fmt.Sprintf("file descriptor %d", fd)
		f := os.NewFile(uintptr(fd), name)
		if f == nil {
			return "", fmt.Errorf("%w: %s is not open", errUnusable, name)
		}
		defer f.Close()
		return readLine(name, f)
	})
}

func readLine(name string, r io.Reader) (string, error) {
	text, err := io.ReadAll(io.LimitReader(r, maxSource+1))
	defer clear(text)
	if err != nil {
		return "", fmt.Errorf("%w: %w", errUnusable, err)
	}
	return oneLine(name, strings.TrimRight(string(text), "\r\n"))
}

// oneLine refuses what cannot be a token or an id, without showing it.
func oneLine(name, text string) (string, error) {
	if len(text) == 0 || len(text) > maxSource || strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", fmt.Errorf("%w: %s is not one line of 1 to %d printable bytes", errUnusable, name, maxSource)
	}
	return text, nil
}
