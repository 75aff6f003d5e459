package host

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// MachineNamespaces are the clone flags of a lab machine's first process. The
// cgroup namespace is entered later (Become): its root is the
// group the process is in at that moment.
const MachineNamespaces = syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC

// NetworkNamespace is the clone flag of a process with a network of its own.
const NetworkNamespace = syscall.CLONE_NEWNET

// Become replaces this process by the program at argv[0], in a new cgroup
// namespace when the kernel has one. It returns only on failure.
func Become(argv, env []string) error {
	// unshare works on the calling thread; execve makes that thread the
	// process, so both must happen on the same one.
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("cannot enter a cgroup namespace: %w", err)
	}
	if err := unix.Exec(argv[0], argv, env); err != nil {
		return fmt.Errorf("cannot run %s: %w", argv[0], err)
	}
	return nil
}

// allNamespaces are those of a lab machine. The mount namespace is last: the
// /proc of the others must be readable until they are entered.
func allNamespaces() []string { return []string{"cgroup", "ipc", "uts", "net", "pid", "mnt"} }

// RunIn runs cmd in all namespaces of process pid and waits for it. The error
// is cmd.Run's. cmd.Path is looked up as given, inside.
func RunIn(pid int, cmd *exec.Cmd) error {
	done := make(chan error, 1)
	go func() {
		// The thread is never unlocked: it ends with this goroutine, since no
		// other may run on a thread that is elsewhere.
		runtime.LockOSThread()
		if err := enter(pid, allNamespaces()); err != nil {
			done <- err
			return
		}
		done <- cmd.Run()
	}()
	return <-done
}

// ExecInNetwork replaces this process by the program at path in the network
// namespace of process pid; files and everything else stay the caller's. It returns only
// on failure.
func ExecInNetwork(pid int, path string, argv, env []string) error {
	runtime.LockOSThread()
	if err := enter(pid, []string{"net"}); err != nil {
		return err
	}
	if err := unix.Exec(path, argv, env); err != nil {
		return fmt.Errorf("cannot run %s: %w", path, err)
	}
	return nil
}

func enter(pid int, namespaces []string) error {
	var files []*os.File
	for _, name := range namespaces { // all opened before any is entered: /proc changes with mnt
		f, err := os.Open("/proc/" + strconv.Itoa(pid) + "/ns/" + name)
		if err != nil {
			return fmt.Errorf("cannot open the %s namespace of process %d: %w", name, pid, err)
		}
		defer f.Close()
		files = append(files, f)
	}
	// setns(mnt) is refused to a thread that shares its root and working
	// directory with others.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("cannot leave the shared root: %w", err)
	}
	for i, f := range files {
		if err := unix.Setns(int(f.Fd()), 0); err != nil {
			return fmt.Errorf("cannot enter the %s namespace of process %d: %w", namespaces[i], pid, err)
		}
	}
	return nil
}

// SetHostname names the machine, in this UTS namespace only.
func SetHostname(name string) error {
	if err := unix.Sethostname([]byte(name)); err != nil {
		return fmt.Errorf("cannot set the host name %s: %w", name, err)
	}
	return nil
}

// Reap collects the children of this process that have ended, also those it
// inherited, and returns their pids. It does not block.
func Reap() []int {
	var ended []int
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
		if err != nil || pid <= 0 {
			return ended
		}
		ended = append(ended, pid)
	}
}

// CanLowerOOMScore tells whether this process may protect others from the
// kernel's out-of-memory killer (CAP_SYS_RESOURCE).
func CanLowerOOMScore() bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return false
	}
	return data[0].Effective&(1<<unix.CAP_SYS_RESOURCE) != 0
}

// elsewhere runs do in new namespaces of the kinds in flags, which end with it.
func elsewhere(flags int, do func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked, as in RunIn
		if unix.Gettid() == os.Getpid() {
			// The first thread cannot end, and /proc/self shows its namespaces:
			// held here, it is not the one that the next try gets.
			defer runtime.UnlockOSThread()
			done <- elsewhere(flags, do)
			return
		}
		if err := unix.Unshare(flags); err != nil {
			done <- fmt.Errorf("cannot enter new namespaces: %w", err)
			return
		}
		done <- do()
	}()
	return <-done
}
