package linux

import (
	"crypto/sha256"
	"crypto/subtle"
	"debug/elf"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/keyturn/keyturn/policy/enforce"
)

// seals forbid every change to a memfd, its mode and the seals included.
const seals = unix.F_SEAL_WRITE | unix.F_SEAL_GROW | unix.F_SEAL_SHRINK | unix.F_SEAL_SEAL

// sealExec is F_SEAL_EXEC (Linux 6.3): the mode bits cannot change either.
const sealExec = 0x20

// seal copies the executable into memory, seals it, and only then checks its
// digest and its kind, on the bytes that can no longer change.
func seal(x enforce.Executable) (*os.File, error) {
	f, err := memfd("executable", unix.MFD_EXEC)
	if err != nil {
		return nil, err
	}
	if err := fillImage(f, x); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func fillImage(f *os.File, x enforce.Executable) error {
	n, err := io.Copy(f, io.LimitReader(x.Source, enforce.MaxExecutable+1))
	if err != nil {
		return fmt.Errorf("reading the executable: %w", err)
	}
	if n > enforce.MaxExecutable {
		return fmt.Errorf("the executable is larger than %d bytes", int64(enforce.MaxExecutable))
	}
	if err := lock(f); err != nil {
		return err
	}
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(f, 0, n)); err != nil {
		return fmt.Errorf("hashing the executable: %w", err)
	}
	if got := h.Sum(nil); subtle.ConstantTimeCompare(got, x.Digest[:]) != 1 {
		return fmt.Errorf("the executable is sha256:%x, approved is sha256:%x", got, x.Digest)
	}
	return selfContained(f)
}

// selfContained refuses an executable that would load code nobody approved.
func selfContained(r io.ReaderAt) error {
	e, err := elf.NewFile(r)
	if err != nil {
		return fmt.Errorf("the executable is no ELF file (a script's interpreter is not approved with it): %w", err)
	}
	for _, p := range e.Progs {
		if p.Type == elf.PT_INTERP {
			return errors.New("the executable is dynamically linked, and what it would load is not approved with it: link it statically (Go: CGO_ENABLED=0)")
		}
	}
	return nil
}

// memfd makes an anonymous file in memory. Kernels before 6.3 do not know the
// flags about execution; there every memfd may be executed.
func memfd(name string, flags int) (*os.File, error) {
	flags |= unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	fd, err := unix.MemfdCreate(name, flags)
	if errors.Is(err, unix.EINVAL) {
		fd, err = unix.MemfdCreate(name, flags&^(unix.MFD_EXEC|unix.MFD_NOEXEC_SEAL))
	}
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

func lock(f *os.File) error {
	_, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals|sealExec)
	if errors.Is(err, unix.EINVAL) {
		_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals)
	}
	if err != nil {
		return fmt.Errorf("sealing the memfd: %w", err)
	}
	return nil
}

// order is what init is told.
type order struct {
	Argv, Env []string
	UID, GID  uint32
	Inputs    uint64 // bytes
	Scratch   uint64 // bytes
	Output    uint64 // bytes; 0: no such directory
}

// write puts o into a sealed memfd. Gob keeps argv and environment byte for
// byte, which JSON does not where they are not UTF-8.
func (o order) write() (*os.File, error) {
	f, err := memfd("order", unix.MFD_NOEXEC_SEAL)
	if err != nil {
		return nil, err
	}
	err = gob.NewEncoder(f).Encode(o)
	if err == nil {
		err = lock(f)
	}
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}
