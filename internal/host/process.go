package host

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ErrGone says that a process is not running any more: it ended, or its
// number now belongs to another process.
var ErrGone = errors.New("process is gone")

// Command is a program to start with StartProcess.
type Command struct {
	Path string   // absolute path of the program, also its argv[0]
	Args []string // without argv[0]
	Env  []string // the whole environment as KEY=VALUE; nothing is added
	Dir  string   // working directory; "" means the caller's
	Log  string   // file that stdout and stderr are appended to; "" means /dev/null
	// TimerSlack is how late the kernel may wake the program and its children
	// for a timer (PR_SET_TIMERSLACK in prctl(2)); 0 means as the caller.
	TimerSlack time.Duration
}

// Process is a running process that this one started or adopted. It is held
// by a pidfd, so that a signal can never reach another process that was given
// the same number later. Linux 5.4 or newer is needed.
//
// One goroutine waits for the end, reaps a child of ours (and no other) and
// closes the pidfd; it lives as long as the process does.
type Process struct {
	PID int
	// StartTime is field 22 of /proc/PID/stat, in clock ticks since boot.
	// Together with PID it names a process uniquely until the next boot.
	StartTime uint64

	mu       sync.Mutex
	pidfd    int // -1 once the process has ended
	exited   chan struct{}
	exitText string // set before exited is closed
}

// StartProcess starts a program that outlives its parent: in a session of its
// own, with stdin from /dev/null, and with the log file itself as stdout and
// stderr, never a pipe that would break with the parent. The log and its
// directory are made if they are missing. The caller need not wait for it.
func StartProcess(c Command) (*Process, error) {
	stdin, err := os.Open(os.DevNull)
	if err != nil {
		return nil, fmt.Errorf("cannot start %s: %w", c.Path, err)
	}
	defer stdin.Close()
	out, err := openLog(c.Log)
	if err != nil {
		return nil, fmt.Errorf("cannot start %s: its log: %w", c.Path, err)
	}
	defer out.Close()

	pidfd := -1
	pid, err := withTimerSlack(c.TimerSlack, func() (int, error) {
		return syscall.ForkExec(c.Path, append([]string{c.Path}, c.Args...), &syscall.ProcAttr{
			Dir:   c.Dir,
			Env:   c.Env,
			Files: []uintptr{stdin.Fd(), out.Fd(), out.Fd()},
			Sys:   &syscall.SysProcAttr{Setsid: true, PidFD: &pidfd},
		})
	})
	if err != nil {
		return nil, startError(c, err)
	}
	p, err := hold(pid, pidfd)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("cannot watch %s: %w", c.Path, err), discard(pid, pidfd))
	}
	return p, nil
}

// withTimerSlack forks in a thread that has this slack: a child inherits that
// of the thread which made it. The thread has its own back afterwards.
func withTimerSlack(slack time.Duration, fork func() (int, error)) (int, error) {
	if slack == 0 {
		return fork()
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(slack.Nanoseconds()), 0, 0, 0); err != nil {
		return 0, fmt.Errorf("cannot set its timer slack: %w", err)
	}
	defer func() { _ = unix.Prctl(unix.PR_SET_TIMERSLACK, 0, 0, 0, 0) }() // 0 is the thread's default; it cannot fail where setting did not
	return fork()
}

// Adopt takes over a process that somebody else started, such as an earlier
// run of this program. It fails with ErrGone unless pid is alive and started
// at startTime.
func Adopt(pid int, startTime uint64) (*Process, error) {
	pidfd, st, err := take(pid, startTime)
	if err != nil {
		return nil, fmt.Errorf("cannot adopt process %d: %w", pid, err)
	}
	p := newProcess(pid, pidfd, st)
	go p.watch()
	return p, nil
}

// take opens the process that pid and startTime name; the caller closes the
// pidfd.
func take(pid int, startTime uint64) (int, stat, error) {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
		return -1, stat{}, ErrGone
	}
	if err != nil {
		return -1, stat{}, fmt.Errorf("pidfd_open: %w", err)
	}
	// The pidfd came first: if the start time read now is the one recorded
	// long ago, the number was not given away in between.
	st, err := readStat(pid)
	if err == nil && (st.start != startTime || st.dead()) {
		err = ErrGone
	}
	if err != nil {
		return -1, stat{}, errors.Join(err, unix.Close(pidfd))
	}
	return pidfd, st, nil
}

// SignalOther sends sig to a process that need not be ours, and is not waited
// for: to that which pid and startTime name and to no other. It fails with
// ErrGone when that has ended.
func SignalOther(pid int, startTime uint64, sig syscall.Signal) error {
	pidfd, _, err := take(pid, startTime)
	if err == nil {
		err = errors.Join(unix.PidfdSendSignal(pidfd, sig, nil, 0), unix.Close(pidfd))
	}
	if errors.Is(err, unix.ESRCH) {
		err = ErrGone
	}
	if err != nil {
		return fmt.Errorf("cannot send %s to process %d: %w", unix.SignalName(sig), pid, err)
	}
	return nil
}

// Signal sends sig to this very process. It returns os.ErrProcessDone when
// the process has ended.
func (p *Process) Signal(sig syscall.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pidfd < 0 {
		return os.ErrProcessDone
	}
	err := unix.PidfdSendSignal(p.pidfd, sig, nil, 0)
	if errors.Is(err, unix.ESRCH) {
		return os.ErrProcessDone
	}
	if err != nil {
		return fmt.Errorf("cannot send %s to process %d: %w", unix.SignalName(sig), p.PID, err)
	}
	return nil
}

// Exited is closed once the process has ended and, if it was our child, has
// been reaped.
func (p *Process) Exited() <-chan struct{} { return p.exited }

// ExitText says how the process ended: "exit status 1", "signal: killed", or
// "ended (not our child)" when only its parent could know. It is empty while
// the process runs.
func (p *Process) ExitText() string {
	select {
	case <-p.exited:
		return p.exitText
	default:
		return ""
	}
}

func openLog(path string) (*os.File, error) {
	if path == "" {
		return os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	return os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o640)
}

// startError names what was missing: fork and exec report only an errno.
func startError(c Command, err error) error {
	if c.Dir != "" {
		if _, statErr := os.Stat(c.Dir); statErr != nil {
			return fmt.Errorf("cannot start %s: its working directory: %w", c.Path, statErr)
		}
	}
	return fmt.Errorf("cannot start program: %w", &os.PathError{Op: "exec", Path: c.Path, Err: err})
}

// hold wraps a child that was just started. Nobody has reaped it yet, so pid
// still is this child even if it has ended already.
func hold(pid, pidfd int) (*Process, error) {
	if pidfd < 0 {
		return nil, errors.New("the kernel gave no pidfd: Linux 5.4 or newer is needed")
	}
	st, err := readStat(pid)
	if err != nil {
		return nil, err
	}
	p := newProcess(pid, pidfd, st)
	go p.watch()
	return p, nil
}

// discard ends a child that cannot be watched, lest it run unknown to all.
func discard(pid, pidfd int) error {
	err := unix.Kill(pid, unix.SIGKILL)
	_, waitErr := wait(pid)
	if pidfd >= 0 {
		err = errors.Join(err, unix.Close(pidfd))
	}
	return errors.Join(err, waitErr)
}

func newProcess(pid, pidfd int, st stat) *Process {
	return &Process{PID: pid, StartTime: st.start, pidfd: pidfd, exited: make(chan struct{})}
}

// watch blocks one thread in poll until the process ends. Only watch closes
// the pidfd, so it may use it without the lock.
func (p *Process) watch() {
	fds := []unix.PollFd{{Fd: int32(p.pidfd), Events: unix.POLLIN}}
	for {
		// An error is a passing one (a signal, no memory) and says nothing of the process.
		if n, err := unix.Poll(fds, -1); err == nil && n > 0 {
			break
		}
	}
	p.exitText = reap(p.pidfd, p.PID)
	p.mu.Lock()
	_ = unix.Close(p.pidfd) // Nothing was written through it; it cannot fail in a way that matters.
	p.pidfd = -1
	p.mu.Unlock()
	close(p.exited)
}

// reap collects the ended process if it is our child. It asks through the
// pidfd first and leaves the zombie in place: pid belongs to it, and not to
// another child with a reused number, for exactly as long as that succeeds.
func reap(pidfd, pid int) string {
	const notOurs = "ended (not our child)"
	var info unix.Siginfo
	err := retry(func() error {
		return unix.Waitid(unix.P_PIDFD, pidfd, &info, unix.WEXITED|unix.WNOWAIT, nil)
	})
	if err != nil {
		return notOurs
	}
	status, err := wait(pid)
	if err != nil {
		return notOurs
	}
	return exitText(status)
}

func wait(pid int) (unix.WaitStatus, error) {
	var status unix.WaitStatus
	err := retry(func() error { _, err := unix.Wait4(pid, &status, 0, nil); return err })
	return status, err
}

// retry repeats a system call that a signal interrupted.
func retry(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func exitText(status unix.WaitStatus) string {
	if !status.Signaled() {
		return fmt.Sprintf("exit status %d", status.ExitStatus())
	}
	text := "signal: " + status.Signal().String()
	if status.CoreDump() {
		text += " (core dumped)"
	}
	return text
}
