//go:build lab

// Command otherclock runs a program, and all that it starts, with another time
// of day: `otherclock -10m PROGRAM ARGS...`. Linux has one such clock for all
// processes, so each question for it is led to us (seccomp_unotify(2)), and
// answered with an offset. Go programs ask the kernel only when they do not
// find its vDSO: `otherclock hide FROM TO` copies one that does not.
package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What the kernel has in linux/seccomp.h, and x/sys does not.
const (
	ioctlReceive = 0xc0502100 // SECCOMP_IOCTL_NOTIF_RECV
	ioctlSend    = 0xc0182101 // SECCOMP_IOCTL_NOTIF_SEND
)

// question is a struct seccomp_notif, answer a struct seccomp_notif_resp.
type question struct {
	id                 uint64
	thread, flags      uint32
	call               int32
	architecture       uint32
	instructionPointer uint64
	args               [6]uint64
}

type answer struct {
	id    uint64
	value int64
	errno int32
	flags uint32
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "otherclock:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 3 && args[0] == "hide":
		return hide(args[1], args[2])
	case len(args) == 2 && args[0] == "answer":
		offset, err := time.ParseDuration(args[1])
		if err != nil {
			return err
		}
		return serve(offset)
	case len(args) >= 2:
		return start(args[0], args[1:])
	}
	return errors.New("usage: otherclock OFFSET PROGRAM ARGS... | hide FROM TO")
}

// hide copies a Go program that does not know the name by which the vDSO has the
// clock.
func hide(from, to string) error {
	program, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, bytes.ReplaceAll(program, []byte("__vdso_clock_gettime"), []byte("__vdso_clock_gettimX")), 0o755)
}

// start becomes the program once somebody answers for the clock. Where that is
// so already, nothing is to do.
func start(offset string, argv []string) error {
	runtime.LockOSThread() // the filter is this thread's, and goes with it into the program
	listener, err := install()
	if errors.Is(err, unix.EBUSY) {
		return syscall.Exec(argv[0], argv, os.Environ())
	}
	if err != nil {
		return fmt.Errorf("cannot install a filter: %w", err)
	}
	// A child has this thread's filter if it is forked by it; another thread has not.
	done := make(chan error, 1)
	go func() { done <- helper(offset, listener) }()
	if err := <-done; err != nil {
		return err
	}
	return syscall.Exec(argv[0], argv, os.Environ())
}

func helper(offset string, listener int) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(self, "answer", offset)
	cmd.ExtraFiles = []*os.File{os.NewFile(uintptr(listener), "listener")}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return cmd.Start()
}

// install leads this thread's questions for the time of day to the listener.
func install() (listener int, err error) {
	const allow, notify = unix.SECCOMP_RET_ALLOW, unix.SECCOMP_RET_USER_NOTIF
	load := func(offset uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
	}
	equal := func(value uint32, yes, no uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: value, Jt: yes, Jf: no}
	}
	filter := []unix.SockFilter{
		load(4), equal(unix.AUDIT_ARCH_X86_64, 0, 5),
		load(0), equal(unix.SYS_CLOCK_GETTIME, 0, 3),
		load(16), equal(unix.CLOCK_REALTIME, 2, 0), equal(unix.CLOCK_REALTIME_COARSE, 1, 0),
		{Code: unix.BPF_RET | unix.BPF_K, K: allow},
		{Code: unix.BPF_RET | unix.BPF_K, K: notify},
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	fd, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER, uintptr(unsafe.Pointer(&program)))
	if errno != 0 {
		return 0, errno
	}
	return int(fd), nil
}

// serve answers until nobody is left who could ask.
func serve(offset time.Duration) error {
	const listener = 3
	for {
		var q question
		if err := control(listener, ioctlReceive, unsafe.Pointer(&q)); err != nil {
			if errors.Is(err, unix.EINTR) || errors.Is(err, unix.ENOENT) {
				continue // who asked has died
			}
			return err
		}
		a := answer{id: q.id}
		if err := tell(q, offset); err != nil {
			a.value, a.errno = -1, -int32(unix.EFAULT)
		}
		if err := control(listener, ioctlSend, unsafe.Pointer(&a)); err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
}

func control(fd int, request uintptr, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}

// tell writes the time where the asking thread wants it.
func tell(q question, offset time.Duration) error {
	now := unix.NsecToTimespec(time.Now().Add(offset).UnixNano())
	local := []unix.Iovec{{Base: (*byte)(unsafe.Pointer(&now))}}
	local[0].SetLen(int(unsafe.Sizeof(now)))
	remote := []unix.RemoteIovec{{Base: uintptr(q.args[1]), Len: int(unsafe.Sizeof(now))}}
	_, err := unix.ProcessVMWritev(int(q.thread), local, remote, 0)
	return err
}
