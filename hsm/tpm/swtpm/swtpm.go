// Package swtpm starts real software TPMs (swtpm) for tests and development,
// with endorsement key certificates by a certificate authority of their own.
// Nothing outside the directories given is touched.
package swtpm

import (
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Available returns nil if the programs that this package runs are installed.
func Available() error {
	for _, program := range []string{"swtpm", "swtpm_setup", "swtpm_localca"} {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("swtpm: %s is not installed", program)
		}
	}
	return nil
}

// Setup makes the state of a new TPM in dir, with an EK certificate by the
// authority in caDir, which is made if it is not there. Both must be absolute:
// swtpm fails in odd ways with relative paths. Its PCR banks are those named
// beside sha256. It takes 1 to 2 seconds.
func Setup(dir, caDir string, banks ...string) error {
	if !filepath.IsAbs(dir) || !filepath.IsAbs(caDir) {
		return fmt.Errorf("swtpm: set up %q: paths must be absolute", dir)
	}
	for _, d := range []string{dir, caDir} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return fmt.Errorf("swtpm: set up: %w", err)
		}
	}
	config, err := writeConfig(caDir)
	if err != nil {
		return fmt.Errorf("swtpm: set up: %w", err)
	}
	cmd := exec.Command("swtpm_setup", "--tpm2", "--tpmstate", dir, "--create-ek-cert",
		"--pcr-banks", strings.Join(append([]string{"sha256"}, banks...), ","), "--overwrite", "--config", config)
	cmd.Env = append(os.Environ(), "XDG_CONFIG_HOME="+caDir)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("swtpm: swtpm_setup in %s: %w: %s", dir, err, lastLine(out))
	}
	return nil
}

// writeConfig points swtpm_setup at the authority in caDir.
func writeConfig(caDir string) (string, error) {
	tool, err := exec.LookPath("swtpm_localca")
	if err != nil {
		return "", err
	}
	at := func(name string) string { return filepath.Join(caDir, name) }
	for name, text := range map[string]string{
		"swtpm-localca.conf": fmt.Sprintf("statedir = %s\nsigningkey = %s\nissuercert = %s\ncertserial = %s\n",
			caDir, at("signkey.pem"), at("issuercert.pem"), at("certserial")),
		"swtpm-localca.options": "--platform-manufacturer keyturn\n--platform-version 1\n--platform-model emulated\n",
		"swtpm_setup.conf": fmt.Sprintf("create_certs_tool = %s\ncreate_certs_tool_config = %s\ncreate_certs_tool_options = %s\n",
			tool, at("swtpm-localca.conf"), at("swtpm-localca.options")),
	} {
		if err := os.WriteFile(at(name), []byte(text), 0o600); err != nil {
			return "", err
		}
	}
	return at("swtpm_setup.conf"), nil
}

// Roots returns the certificates (DER) of the authority in caDir: its root and
// the intermediate that signs.
func Roots(caDir string) ([][]byte, error) {
	var ders [][]byte
	for _, name := range []string{"swtpm-localca-rootca-cert.pem", "issuercert.pem"} {
		b, err := os.ReadFile(filepath.Join(caDir, name))
		if err != nil {
			return nil, fmt.Errorf("swtpm: read authority: %w", err)
		}
		block, _ := pem.Decode(b)
		if block == nil {
			return nil, fmt.Errorf("swtpm: %s in %s is not PEM", name, caDir)
		}
		ders = append(ders, block.Bytes)
	}
	return ders, nil
}

// A Process is a running swtpm. Starting it is a TPM reset.
type Process struct {
	Path string // for tpm.Open

	cmd    *exec.Cmd
	exited chan struct{}
	err    error // of Wait, readable after exited
}

// Start runs a swtpm on the state in dir, listening on the socket given (an
// absolute path of at most 100 bytes). It is up when Start returns, and stays up
// until [Process.Kill], even when the caller's process ends.
func Start(dir, socket string) (*Process, error) { return start(dir, socket, &syscall.SysProcAttr{}) }

func start(dir, socket string, attr *syscall.SysProcAttr) (*Process, error) {
	p, err := run(dir, socket, attr, "--server", "type=unixio,path="+socket, "--ctrl", "type=unixio,path="+socket+".ctrl", "--flags", "startup-clear")
	if err != nil {
		return nil, err
	}
	return p, p.await(socket)
}

// StartMachine runs a swtpm as [Start] does, as the TPM of a virtual machine:
// the socket is the control channel of qemu's tpmdev emulator, and the machine's
// firmware starts the TPM up. It ends with the caller's process.
func StartMachine(dir, socket string) (*Process, error) {
	p, err := run(dir, socket, &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}, "--ctrl", "type=unixio,path="+socket)
	if err != nil {
		return nil, err
	}
	return p, p.await(socket)
}

func run(dir, socket string, attr *syscall.SysProcAttr, args ...string) (*Process, error) {
	if !filepath.IsAbs(dir) || !filepath.IsAbs(socket) || len(socket) > 100 {
		return nil, fmt.Errorf("swtpm: start on %q: paths must be absolute, the socket's at most 100 bytes", socket)
	}
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("swtpm: start: %w", err)
	}
	cmd := exec.Command("swtpm", append([]string{"socket", "--tpm2", "--tpmstate", "dir=" + dir}, args...)...)
	cmd.SysProcAttr = attr
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("swtpm: start: %w", err)
	}
	p := &Process{Path: "unix:" + socket, cmd: cmd, exited: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.exited)
	}()
	return p, nil
}

// await returns once the socket takes a connection.
func (p *Process) await(socket string) error {
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		select {
		case <-p.exited:
			return fmt.Errorf("swtpm: it ended at once: %w", p.err)
		default:
		}
		if c, err := net.Dial("unix", socket); err == nil {
			return c.Close()
		}
	}
	return errors.Join(fmt.Errorf("swtpm: %s does not answer", socket), p.Kill())
}

// Pid returns the process id.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Kill ends the process at once, as a power cut would, waits for it, and
// removes the sockets that it had no time to remove.
func (p *Process) Kill() error {
	err := p.cmd.Process.Kill()
	<-p.exited
	if errors.Is(err, os.ErrProcessDone) {
		return nil // by now another may listen there
	}
	RemoveSockets(strings.TrimPrefix(p.Path, "unix:"))
	return err
}

// RemoveSockets removes what a swtpm that was killed leaves of the socket it was
// started on.
func RemoveSockets(socket string) {
	os.Remove(socket)
	os.Remove(socket + ".ctrl")
}

func lastLine(out []byte) string {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return lines[len(lines)-1]
}
