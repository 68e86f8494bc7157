package vm

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/keyturn/keyturn/hsm/tpm/swtpm"
)

// Config is a machine to boot. Paths are of this machine.
type Config struct {
	TPM       string // state, as swtpm.Setup made it
	Socket    string // for the TPM: an absolute path of at most 100 bytes
	Variables string // the firmware's, which it changes
	ESP, Data string // disks
	Console   string // file for what the machine writes to its first serial port
}

// A Machine is a running machine.
type Machine struct {
	tpm    *swtpm.Process
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	lines  *bufio.Reader
	exited chan struct{}

	mu sync.Mutex // one command at a time
}

// ErrNoTPM means that the machine's kernel gave its TPM up, which it does where
// that takes more than 0.75 s to answer: the host was too busy.
var ErrNoTPM = errors.New("the kernel found no TPM that answers in time")

// Boot starts a machine and returns once its init answers. It kills the machine
// when ctx ends before.
func Boot(ctx context.Context, c Config) (*Machine, error) {
	tpm, err := swtpm.StartMachine(c.TPM, c.Socket)
	if err != nil {
		return nil, err
	}
	_ = syscall.Setpriority(syscall.PRIO_PROCESS, tpm.Pid(), -10) // best effort: see ErrNoTPM
	m := &Machine{tpm: tpm, exited: make(chan struct{})}
	if err := m.start(c); err != nil {
		return nil, errors.Join(err, tpm.Kill())
	}
	line := ""
	for err == nil && line != "ready" { // the firmware writes there too
		if line, err = m.read(ctx); line == "no-tpm" {
			err = ErrNoTPM
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("vm: the machine does not come up: %w; its console is in %s", err, c.Console), m.Kill())
	}
	return m, nil
}

func (m *Machine) start(c Config) error {
	m.cmd = exec.Command("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-machine", "q35,smm=on,accel=tcg", "-cpu", "max", "-m", "1024",
		"-global", "driver=cfi.pflash01,property=secure,value=on",
		"-drive", "if=pflash,unit=0,format=raw,readonly=on,file="+firmwareCode,
		"-drive", "if=pflash,unit=1,format=raw,file="+c.Variables,
		"-chardev", "socket,id=tpm,path="+c.Socket, "-tpmdev", "emulator,id=tpm,chardev=tpm", "-device", "tpm-crb,tpmdev=tpm",
		"-drive", "if=none,id=esp,format=raw,readonly=on,file="+c.ESP, "-device", "virtio-blk-pci,drive=esp,bootindex=1",
		"-drive", "if=none,id=data,format=raw,file="+c.Data, "-device", "virtio-blk-pci,drive=data",
		"-netdev", "user,id=net,ipv6=off", "-device", "virtio-net-pci,netdev=net,romfile=",
		"-serial", "file:"+c.Console, "-chardev", "stdio,id=shell,signal=off", "-serial", "chardev:shell")
	// The kernel kills it should this process be killed.
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	stderr, err := os.OpenFile(c.Console+".qemu", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer stderr.Close()
	m.cmd.Stderr = stderr
	out, err := m.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if m.stdin, err = m.cmd.StdinPipe(); err != nil {
		return err
	}
	m.lines = bufio.NewReader(out)
	if err := m.cmd.Start(); err != nil {
		return err
	}
	go func() {
		m.cmd.Process.Wait()
		close(m.exited)
	}()
	return nil
}

// read returns the next line, without its end.
func (m *Machine) read(ctx context.Context) (string, error) {
	defer context.AfterFunc(ctx, func() { m.cmd.Process.Kill() })()
	line, err := m.lines.ReadString('\n')
	if err != nil {
		err = errors.Join(context.Cause(ctx), err)
	}
	return strings.TrimSuffix(line, "\n"), err
}

// A Result is what a command printed and how it ended.
type Result struct {
	Out, Err string
	Code     int
}

// Run has the machine's shell run a command line, as root. When ctx ends
// before it is answered, the machine is killed.
func (m *Machine) Run(ctx context.Context, line string) (Result, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var r Result
	if _, err := io.WriteString(m.stdin, line+"\n"); err != nil {
		return r, fmt.Errorf("vm: %q: %w", line, err)
	}
	into := []*string{&r.Out, &r.Err}
	for {
		got, err := m.read(ctx)
		if err != nil {
			return r, fmt.Errorf("vm: %q: %w", line, err)
		}
		if code, ended := strings.CutPrefix(got, "end "); ended {
			r.Code, err = strconv.Atoi(code)
			return r, err
		}
		if got == "err" {
			into = into[1:]
			continue
		}
		b, err := base64.StdEncoding.DecodeString(got)
		if err != nil || len(into) == 0 {
			return r, fmt.Errorf("vm: %q was answered by %q", line, got)
		}
		*into[0] += string(b)
	}
}

// PowerOff has the machine shut down in order: agent, disk, TPM.
func (m *Machine) PowerOff(ctx context.Context) error {
	if _, err := io.WriteString(m.stdin, "poweroff\n"); err != nil {
		return errors.Join(fmt.Errorf("vm: power off: %w", err), m.Kill())
	}
	select {
	case <-m.exited:
	case <-ctx.Done():
		return errors.Join(fmt.Errorf("vm: power off: %w", context.Cause(ctx)), m.Kill())
	}
	return m.tpm.Kill()
}

// Kill ends the machine and its TPM at once, as a power cut would.
func (m *Machine) Kill() error {
	m.cmd.Process.Kill()
	<-m.exited
	return m.tpm.Kill()
}
