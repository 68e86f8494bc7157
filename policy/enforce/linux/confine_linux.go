package linux

import (
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// auditArch is the architecture that seccomp reports for this program's own
// system calls; programs of another one are refused.
var auditArch = map[string]uint32{
	"amd64": unix.AUDIT_ARCH_X86_64,
	"arm64": unix.AUDIT_ARCH_AARCH64,
}

// Offsets into struct seccomp_data, little-endian (linux/seccomp.h).
const (
	dataNr   = 0
	dataArch = 4
	dataArg0 = 16
)

// x32 marks the system calls of the x32 ABI, a second set of numbers on amd64.
const x32 = 0x40000000

// confine takes from this thread, and what it executes, every way to gain
// privileges and every socket that a network namespace does not hold back:
// AF_VSOCK, for one, reaches the hypervisor from any namespace. io_uring goes
// with them, for it makes sockets that seccomp does not see.
func confine() error {
	arch, ok := auditArch[runtime.GOARCH]
	if !ok {
		return fmt.Errorf("no system call filter for %s", runtime.GOARCH)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("no_new_privs: %w", err)
	}
	for c := uintptr(0); c <= unix.CAP_LAST_CAP; c++ {
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("dropping capability %d: %w", c, err)
		}
	}
	program := filter(arch)
	prog := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	if err := unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&prog)), 0, 0); err != nil {
		return fmt.Errorf("system call filter: %w", err)
	}
	return nil
}

// filter is the classic BPF program: any other architecture's calls, io_uring,
// and sockets but of the four families that namespaces confine, fail with
// EPERM.
func filter(arch uint32) []unix.SockFilter {
	load := func(offset uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
	}
	jump := func(op uint16, k uint32, yes, no uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | op | unix.BPF_K, Jt: yes, Jf: no, K: k}
	}
	give := func(k uint32) unix.SockFilter { return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: k} }
	return []unix.SockFilter{
		load(dataArch),
		jump(unix.BPF_JEQ, arch, 0, 11), // otherwise refuse
		load(dataNr),
		jump(unix.BPF_JGE, x32, 9, 0), // refuse
		jump(unix.BPF_JEQ, unix.SYS_IO_URING_SETUP, 8, 0),
		jump(unix.BPF_JEQ, unix.SYS_SOCKET, 1, 0),
		jump(unix.BPF_JEQ, unix.SYS_SOCKETPAIR, 0, 5), // otherwise allow
		load(dataArg0),
		jump(unix.BPF_JEQ, unix.AF_UNIX, 3, 0),
		jump(unix.BPF_JEQ, unix.AF_INET, 2, 0),
		jump(unix.BPF_JEQ, unix.AF_INET6, 1, 0),
		jump(unix.BPF_JEQ, unix.AF_NETLINK, 0, 1),
		give(unix.SECCOMP_RET_ALLOW),
		give(unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)),
	}
}
