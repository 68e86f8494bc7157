package main

import "syscall"

// ownGroup keeps a terminal's interrupt from reaching the daemons before the
// stage stops them in order.
func ownGroup() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
