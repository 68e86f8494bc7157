package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/keyturn/keyturn/hsm/tpm/swtpm"
)

const softHSM = "/usr/lib/softhsm/libsofthsm2.so"

// The pages of testdata/key keep keys in a SoftHSM token and a software TPM.
// $TOKEN is the pkcs11: URI of the token "alice" up to an object's label, $MODULE
// the rest of it. roots holds the certificates behind the TPM's.
func TestKeyScripts(t *testing.T) {
	buildTokenHelper(t)
	e := swtpm.New(t)
	lab.Do(func() { makeLab(t) })
	testscript.Run(t, testscript.Params{Dir: "testdata/key", Setup: func(env *testscript.Env) error {
		env.Setenv("KEYTURN_TPM", e.Path)
		env.Setenv("CHARTER", lab.id.String())
		if err := layLab(env.WorkDir); err != nil {
			return err
		}
		env.Setenv("KEYTURN_CONFIG", filepath.Join(env.WorkDir, "none.yaml"))
		for _, dir := range []string{"roots", "other-roots"} {
			if err := os.Mkdir(filepath.Join(env.WorkDir, dir), 0o700); err != nil {
				return err
			}
		}
		for i, der := range e.CA {
			if err := os.WriteFile(filepath.Join(env.WorkDir, "roots", fmt.Sprint(i)), der, 0o600); err != nil {
				return err
			}
		}
		return withTokens(env)
	}})
}

// buildTokenHelper builds keyturn-token beside the keyturn of the pages, where
// programs look for it.
func buildTokenHelper(t *testing.T) {
	t.Helper()
	if _, err := os.Stat(softHSM); err != nil {
		t.Skip("needs SoftHSM2 (package softhsm2)")
	}
	helper := filepath.Join(filepath.SplitList(os.Getenv("PATH"))[0], "keyturn-token")
	build := exec.Command("go", "build", "-o", helper, "github.com/keyturn/keyturn/cmd/keyturn-token")
	build.Env = append(os.Environ(), "CGO_ENABLED=1")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build keyturn-token: %v\n%s", err, out)
	}
}

// withTokens gives a page a SoftHSM of its own.
func withTokens(env *testscript.Env) error {
	conf := filepath.Join(env.WorkDir, "softhsm2.conf")
	env.Setenv("SOFTHSM2_CONF", conf)
	env.Setenv("MODULE", "?module-path="+softHSM)
	env.Setenv("MODULE_PATH", softHSM)
	env.Setenv("TOKEN", "pkcs11:token=alice;object=")
	if err := os.Mkdir(filepath.Join(env.WorkDir, "tokens"), 0o700); err != nil {
		return err
	}
	return os.WriteFile(conf, fmt.Appendf(nil, "directories.tokendir = %s/tokens\nlog.level = ERROR\n", env.WorkDir), 0o600)
}
