// Probe is what the tests of the gate run: it does what its first argument
// says and reports in text on standard output.
package main

import (
	"crypto/sha256"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

var acts = map[string]func(args []string){
	"show": show, "exit": exit, "inputs": inputs, "network": network, "privileges": privileges,
	"sleep": sleep, "tidy": tidy, "deaf": deaf, "count": count, "bomb": bomb, "child": child, "write": write, "core": core, "keep": keep,
}

func main() {
	if len(os.Args) < 2 || acts[os.Args[1]] == nil {
		fmt.Println("unknown act")
		os.Exit(64)
	}
	acts[os.Args[1]](os.Args[2:])
}

func show([]string) {
	fmt.Printf("argv %q\nenv %q\n", os.Args, os.Environ())
	image, err := os.ReadFile("/proc/self/exe")
	fmt.Printf("exe %x %v\n", sha256.Sum256(image), err)
	fmt.Println("inherited:", inherited())
}

// inherited lists the descriptors above 2 that the Go runtime did not open.
func inherited() []string {
	var list []string
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return []string{err.Error()}
	}
	for _, fd := range fds {
		number, _ := strconv.Atoi(fd.Name())
		to, err := os.Readlink("/proc/self/fd/" + fd.Name())
		if number > 2 && err == nil && !strings.HasPrefix(to, "anon_inode:[event") && !strings.HasPrefix(to, "/proc/") && !strings.Contains(to, "/cpu.") {
			list = append(list, fd.Name()+" "+to)
		}
	}
	return list
}

func exit(args []string) {
	code, _ := strconv.Atoi(args[0])
	os.Exit(code)
}

func inputs(args []string) {
	dir := args[0]
	filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			fmt.Println("walk:", err)
			return nil
		}
		if !d.IsDir() {
			text, err := os.ReadFile(path)
			fmt.Printf("file %s %q %v\n", path, text, err)
			fmt.Println("open for writing:", os.WriteFile(path, nil, 0o600))
		}
		return nil
	})
	fmt.Println("create:", os.WriteFile(dir+"/new", nil, 0o600))
	fmt.Println("remount:", syscall.Mount("", dir, "", syscall.MS_REMOUNT, ""))
}

// keep writes a file to the output, under a name that says when it is done.
func keep(args []string) {
	dir := args[0]
	fmt.Println("write:", os.Mkdir(dir+"/.part", 0o700), os.WriteFile(dir+"/.part/w", []byte("kept"), 0o600), os.Rename(dir+"/.part", dir+"/done"))
	fmt.Println("full:", os.WriteFile(dir+"/more", make([]byte, 1<<20), 0o600))
	fmt.Println("execute:", exec.Command(dir+"/done/w").Run())
}

func network([]string) {
	interfaces, err := net.Interfaces()
	for _, i := range interfaces {
		fmt.Println("interface", i.Name, i.Flags&net.FlagUp != 0)
	}
	fmt.Println("interfaces:", err)
	_, err = net.DialTimeout("tcp", "127.0.0.1:"+os.Args[2], time.Second)
	fmt.Println("dial:", err)
	const vsock = 40
	_, err = syscall.Socket(vsock, syscall.SOCK_STREAM, 0)
	fmt.Println("vsock:", err)
	_, _, errno := syscall.Syscall(425, 1, 0, 0)
	fmt.Println("io_uring:", errno)
	_, err = syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	fmt.Println("unix:", err)
}

func privileges([]string) {
	status, _ := os.ReadFile("/proc/self/status")
	for _, line := range strings.Split(string(status), "\n") {
		for _, key := range []string{"Uid:", "Gid:", "Groups:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:", "CapInh:", "NoNewPrivs:", "Seccomp:"} {
			if strings.HasPrefix(line, key) {
				fmt.Println(strings.Join(strings.Fields(line), " "))
			}
		}
	}
	var core syscall.Rlimit
	syscall.Getrlimit(syscall.RLIMIT_CORE, &core)
	fmt.Println("core", core.Cur, core.Max)
}

func sleep([]string) { fmt.Println("ready"); time.Sleep(time.Hour) }

// tidy writes a last word when asked to end.
func tidy([]string) {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGTERM)
	fmt.Println("ready")
	<-c
	fmt.Println("snapshot written")
	os.Exit(3)
}

func deaf([]string) {
	signal.Ignore(syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	fmt.Println("ready")
	time.Sleep(time.Hour)
}

func count([]string) {
	for i := 0; ; i++ {
		fmt.Println(i)
		time.Sleep(2 * time.Millisecond)
	}
}

// bomb starts children that start children, in sessions of their own, until
// there are a hundred, and outlives none of them.
func bomb([]string) {
	for range 10 {
		start("9")
	}
	fmt.Println("ready")
	time.Sleep(time.Hour)
}

func child(args []string) {
	signal.Ignore(syscall.SIGTERM)
	n, _ := strconv.Atoi(args[0])
	for range n {
		start("0")
	}
	time.Sleep(time.Hour)
}

func start(n string) {
	c := exec.Command("/proc/self/exe", "child", n)
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := c.Start(); err != nil {
		fmt.Println("child:", err)
	}
}

func write(args []string) {
	for _, path := range args {
		fmt.Println(path, os.WriteFile(path, []byte("x"), 0o600))
	}
	entries, err := os.ReadDir("/run")
	fmt.Println("run", len(entries), err)
}

func core([]string) { syscall.Kill(os.Getpid(), syscall.SIGSEGV); time.Sleep(time.Second) }
