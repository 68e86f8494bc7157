package token

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/keyturn/keyturn/hsm"
)

// Config says where the helper and the module are.
type Config struct {
	Helper      string        // path of keyturn-token; empty: beside the running executable
	Module      string        // absolute path of the PKCS#11 module; empty: the module-path of the URI
	Env         []string      // NAME=value for the module, added to the few that pass by themselves
	Interactive bool          // a person is there to answer for the last PIN try of a token
	Timeout     time.Duration // of one operation whose context allows more; 0: DefaultTimeout
}

// DefaultTimeout bounds one operation of a token, the touch of a button
// included.
const DefaultTimeout = 30 * time.Second

// passed are the variables that modules read. Nothing else of the environment
// reaches vendor code: a daemon may hold secrets there.
var passed = []string{"HOME", "PATH", "TMPDIR", "XDG_RUNTIME_DIR", "SOFTHSM2_CONF",
	"OPENSC_*", "PKCS11_*", "TPM2_PKCS11_*", "YKCS11_*"}

// environ returns the environment of the helper.
func (c Config) environ() []string {
	env := []string{"GOTRACEBACK=none"} // a trace of a crash in the module could show what it held
	for _, e := range os.Environ() {
		name, _, _ := strings.Cut(e, "=")
		for _, p := range passed {
			if prefix, wild := strings.CutSuffix(p, "*"); name == p || wild && strings.HasPrefix(name, prefix) {
				env = append(env, e)
			}
		}
	}
	return append(env, c.Env...)
}

// complete fills in what c leaves to defaults and to the URI.
func (c Config) complete(u hsm.URI) (Config, error) {
	if c.Helper == "" {
		self, err := os.Executable()
		if err != nil {
			return c, fmt.Errorf("token: find keyturn-token beside this program: %w", err)
		}
		c.Helper = filepath.Join(filepath.Dir(self), "keyturn-token")
	}
	switch {
	case c.Module == "":
		c.Module = u.ModulePath
	case u.ModulePath != "" && u.ModulePath != c.Module:
		return c, fmt.Errorf("token: the URI asks for module %s, the configuration for %s", u.ModulePath, c.Module)
	}
	if c.Module == "" {
		return c, errors.New("token: no PKCS#11 module named; add ?module-path=/ABSOLUTE.so to the URI")
	}
	if !filepath.IsAbs(c.Module) || !filepath.IsAbs(c.Helper) {
		return c, fmt.Errorf("token: helper %q and module %q must be absolute paths", c.Helper, c.Module)
	}
	if c.Timeout < 0 {
		return c, fmt.Errorf("token: timeout %v is negative", c.Timeout)
	}
	if c.Timeout == 0 {
		c.Timeout = DefaultTimeout
	}
	return c, nil
}
