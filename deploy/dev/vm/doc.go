// Package vm boots virtual machines whose boot is measured as a real machine's
// is: qemu with OVMF in secure boot, a software TPM, and a signed unified
// kernel image. Only processor and TPM are emulated. It is for tests: the
// machine's second serial port is a shell for whoever started it.
package vm
