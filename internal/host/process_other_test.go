package host

import (
	"errors"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// awaitState waits until the process is in one of states, as proc_pid_stat(5)
// has them.
func awaitState(t *testing.T, pid int, states string) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(30 * time.Second); ; <-tick.C {
		st, err := readStat(pid)
		if err != nil {
			t.Fatal(err)
		}
		if strings.IndexByte(states, st.state) >= 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("process %d is in state %c, want one of %s", pid, st.state, states)
		}
	}
}

// TestSignalOther reaches a process that nobody here holds, and never another
// with its number.
func TestSignalOther(t *testing.T) {
	pid, start := orphan(t)
	if err := SignalOther(pid, start+1, syscall.SIGKILL); !errors.Is(err, ErrGone) {
		t.Errorf("a signal to another start time: %v", err)
	}
	for _, step := range []struct {
		sig    syscall.Signal
		states string
	}{{syscall.SIGSTOP, "T"}, {syscall.SIGCONT, "SR"}} {
		if err := SignalOther(pid, start, step.sig); err != nil {
			t.Fatal(err)
		}
		awaitState(t, pid, step.states)
	}
	held, err := Adopt(pid, start)
	if err != nil {
		t.Fatal(err)
	}
	if err := SignalOther(pid, start, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	awaitExit(t, held)
	if err := SignalOther(pid, start, syscall.SIGKILL); !errors.Is(err, ErrGone) {
		t.Errorf("a signal to what has ended: %v", err)
	}
}

// TestFindChild knows a child by its first argument; others of the same
// parent, and the same words elsewhere, are not it.
func TestFindChild(t *testing.T) {
	word := "word-" + strconv.Itoa(os.Getpid())
	startTest(t, Command{Path: sh, Args: []string{"-c", "sleep 60", word}, Env: []string{"PATH=/usr/bin:/bin"}})
	if _, _, err := FindChild(os.Getpid(), word); !errors.Is(err, ErrGone) {
		t.Errorf("found by a later argument: %v", err)
	}
	file := t.TempDir() + "/" + word
	if err := os.WriteFile(file, []byte("sleep 60\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := startTest(t, Command{Path: sh, Args: []string{file}, Env: []string{"PATH=/usr/bin:/bin"}})
	pid, start, err := FindChild(os.Getpid(), file)
	if err != nil || pid != p.PID || start != p.StartTime {
		t.Errorf("found %d started at %d (%v), want %d at %d", pid, start, err, p.PID, p.StartTime)
	}
	if _, _, err := FindChild(1, file); !errors.Is(err, ErrGone) {
		t.Errorf("found below another parent: %v", err)
	}
}
