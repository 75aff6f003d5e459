package testnet

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"
)

// roleWord is the first argument of a test binary that is no test.
const roleWord = "testnet-role"

// Role is something that a test binary does instead of testing, on a machine and
// in a process of its own: one that can be killed or frozen. A namespace is a
// thread's, so a function cannot be called in one safely: where its goroutines run
// nobody knows. It may print to stdout. Its error goes to stderr.
type Role func(args []string) error

// Main is for TestMain, which ends with the exit code that it returns. It runs the
// tests, or if this process was started by Namespace.Role, the role of that name.
func Main(m *testing.M, roles map[string]Role) (exitCode int) {
	if len(os.Args) < 3 || os.Args[1] != roleWord {
		return m.Run()
	}
	play, ok := roles[os.Args[2]]
	if !ok {
		play = func([]string) error { return fmt.Errorf("this test binary has no role %q", os.Args[2]) }
	}
	if err := play(os.Args[3:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// Role is a command in n that has this test binary play a role. The package's
// TestMain must call Main.
func (n Namespace) Role(name string, args ...string) *exec.Cmd {
	n.t.Helper()
	self, err := os.Executable()
	if err != nil {
		n.t.Fatal(err)
	}
	return n.Command(n.t.Context(), append([]string{self, roleWord, name}, args...)...)
}

// Start starts cmd, which is killed when the test ends, if it has not ended before.
func Start(t testing.TB, cmd *exec.Cmd) {
	t.Helper()
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { End(cmd) })
}

// End kills cmd and waits until it has ended. It may be called again.
func End(cmd *exec.Cmd) { _, _ = cmd.Process.Kill(), cmd.Wait() }

// Child is a command that runs and can be talked to.
type Child struct {
	*exec.Cmd
	// In is its stdin.
	In io.Writer
	// Lines are those of its stdout, closed at its end. It is held up when nobody has
	// read a hundred of them.
	Lines <-chan string
}

// Talk is Start for a command that is talked to. What it prints to stderr is in the
// test's output.
func Talk(t testing.TB, cmd *exec.Cmd) *Child {
	t.Helper()
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = t.Output()
	Start(t, cmd)
	lines := make(chan string, 100)
	go func() {
		defer close(lines)
		for scan := bufio.NewScanner(out); scan.Scan(); {
			select {
			case lines <- scan.Text():
			case <-t.Context().Done():
				return
			}
		}
	}()
	return &Child{Cmd: cmd, In: in, Lines: lines}
}

// Next is the next line that it prints within that time, or nothing.
func (c *Child) Next(within time.Duration) string {
	select {
	case line := <-c.Lines:
		return line
	case <-time.After(within):
		return ""
	}
}
