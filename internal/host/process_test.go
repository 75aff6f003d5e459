package host

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const sh = "/bin/sh"

// startTest starts a shell script and makes sure it is gone after the test.
func startTest(t *testing.T, c Command) *Process {
	t.Helper()
	p, err := StartProcess(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Signal(syscall.SIGKILL); err != nil && !errors.Is(err, os.ErrProcessDone) {
			t.Error(err)
		}
		<-p.Exited()
	})
	return p
}

func awaitExit(t *testing.T, p *Process) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	select {
	case <-p.Exited():
	case <-ctx.Done():
		t.Fatalf("process %d did not end", p.PID)
	}
	return p.ExitText()
}

func TestStartProcessSetsUpTheChild(t *testing.T) {
	dir := t.TempDir()
	log := filepath.Join(dir, "new", "log")
	const script = `echo out; echo err >&2; pwd; read x || echo no input; cat /proc/self/environ | tr '\0' '\n' | grep ^ONLY; cut -d' ' -f6 /proc/$$/stat; echo $$`
	for range 2 {
		p := startTest(t, Command{Path: sh, Args: []string{"-c", script}, Env: []string{"ONLY=this", "PATH=/usr/bin:/bin"}, Dir: dir, Log: log})
		if got := awaitExit(t, p); got != "exit status 0" {
			t.Fatalf("ended with %q", got)
		}
	}
	data, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Fields(string(data))
	half := len(lines) / 2
	lines = lines[half:] // The second run: the first one's output must stand before it.
	if len(lines) != 8 {
		t.Fatalf("log is %q", data)
	}
	if diff := cmp.Diff([]string{"out", "err", dir, "no", "input", "ONLY=this"}, lines[:6]); diff != "" {
		t.Error(diff)
	}
	if lines[6] != lines[7] {
		t.Errorf("session is %s, pid is %s: want a session of its own", lines[6], lines[7])
	}
}

func TestStartProcessEnvironmentAndFilesAreExact(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	p := startTest(t, Command{Path: "/bin/sleep", Args: []string{"60"}, Env: []string{"A=1", "B="}, Log: log})
	proc := "/proc/" + strconv.Itoa(p.PID)
	for fd, want := range []string{os.DevNull, log, log} {
		got, err := os.Readlink(proc + "/fd/" + strconv.Itoa(fd))
		if err != nil || got != want {
			t.Errorf("descriptor %d is %q (%v), want %q", fd, got, err, want)
		}
	}
	data, err := os.ReadFile(proc + "/environ")
	if err != nil {
		t.Fatal(err)
	}
	if want := []byte("A=1\x00B=\x00"); !bytes.Equal(data, want) {
		t.Errorf("environment is %q, want %q", data, want)
	}
}

func TestStartProcessTimerSlack(t *testing.T) {
	before, err := os.ReadFile("/proc/self/timerslack_ns")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		slack time.Duration
		want  string
	}{{3 * time.Millisecond, "3000000"}, {0, strings.TrimSpace(string(before))}} {
		log := filepath.Join(t.TempDir(), "log")
		// The shell's child shows that it is inherited.
		p := startTest(t, Command{Path: sh, Args: []string{"-c", "cat /proc/self/timerslack_ns; true"}, Env: []string{"PATH=/usr/bin:/bin"}, Log: log, TimerSlack: tt.slack})
		awaitExit(t, p)
		got, err := os.ReadFile(log)
		if err != nil {
			t.Fatal(err)
		}
		if strings.TrimSpace(string(got)) != tt.want {
			t.Errorf("slack %v: the child has %q ns, want %s", tt.slack, got, tt.want)
		}
	}
}

func TestExitText(t *testing.T) {
	for _, tc := range []struct{ script, want string }{
		{"exit 0", "exit status 0"},
		{"exit 7", "exit status 7"},
		{"kill -KILL $$", "signal: killed"},
		{"kill -TERM $$", "signal: terminated"},
	} {
		p := startTest(t, Command{Path: sh, Args: []string{"-c", tc.script}})
		if got := awaitExit(t, p); got != tc.want {
			t.Errorf("%q ended with %q, want %q", tc.script, got, tc.want)
		}
	}
}

func TestStartProcessNamesWhatIsMissing(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		command Command
		is      error
		says    string
	}{
		"program":        {Command{Path: dir + "/none"}, os.ErrNotExist, dir + "/none"},
		"not executable": {Command{Path: file}, os.ErrPermission, file},
		"directory":      {Command{Path: sh, Dir: dir + "/nowhere"}, os.ErrNotExist, dir + "/nowhere"},
		"log":            {Command{Path: sh, Log: file + "/log"}, syscall.ENOTDIR, "its log"},
	} {
		_, err := StartProcess(tc.command)
		if !errors.Is(err, tc.is) || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: error is %v, want %v that says %q", name, err, tc.is, tc.says)
		}
	}
}

func TestSignalAfterTheEnd(t *testing.T) {
	p := startTest(t, Command{Path: "/bin/sleep", Args: []string{"60"}})
	if got := p.ExitText(); got != "" {
		t.Errorf("exit text of a running process is %q", got)
	}
	if err := p.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if got := awaitExit(t, p); got != "signal: terminated" {
		t.Errorf("ended with %q", got)
	}
	if err := p.Signal(syscall.SIGKILL); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("signal to an ended process: %v", err)
	}
	// Reaped: not even a zombie is left under that number.
	if st, err := readStat(p.PID); err == nil && st.start == p.StartTime {
		t.Errorf("process %d is still there in state %c", p.PID, st.state)
	}
}

// orphan is a process that is nobody's child here: its parent is gone.
func orphan(t *testing.T) (pid int, startTime uint64) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), sh, "-c", "sleep 60 >/dev/null 2>&1 & echo $!").Output()
	if err != nil {
		t.Fatal(err)
	}
	pid, err = strconv.Atoi(strings.TrimSpace(string(out)))
	if err != nil {
		t.Fatal(err)
	}
	st, err := readStat(pid)
	if err != nil {
		t.Fatal(err)
	}
	return pid, st.start
}

func TestAdoptOrphan(t *testing.T) {
	pid, start := orphan(t)
	if _, err := Adopt(pid, start+1); !errors.Is(err, ErrGone) {
		t.Errorf("adopted with another start time: %v", err)
	}
	p, err := Adopt(pid, start)
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-p.Exited():
		t.Fatal("a running process counts as ended")
	default:
	}
	if err := p.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if got := awaitExit(t, p); got != "ended (not our child)" {
		t.Errorf("ended with %q", got)
	}
	if _, err := Adopt(pid, start); !errors.Is(err, ErrGone) {
		t.Errorf("adopted a process that ended: %v", err)
	}
}

func TestAdoptOwnChild(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), sh, "-c", "read x; exit 3")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	st, err := readStat(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	p, err := Adopt(cmd.Process.Pid, st.start)
	if err != nil {
		t.Fatal(err)
	}
	if err := stdin.Close(); err != nil {
		t.Fatal(err)
	}
	if got := awaitExit(t, p); got != "exit status 3" {
		t.Errorf("ended with %q", got)
	}
	if err := cmd.Process.Release(); err != nil {
		t.Error(err)
	}
}

func TestAdoptRefusesAZombie(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), sh, "-c", "exit 0")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	var st stat
	for ticker := time.NewTicker(time.Millisecond); !st.dead(); <-ticker.C {
		var err error
		if st, err = readStat(pid); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Adopt(pid, st.start); !errors.Is(err, ErrGone) {
		t.Errorf("adopted a zombie: %v", err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

func TestFindLeader(t *testing.T) {
	mark := "KUORUM_TEST_FIND=" + t.TempDir() // Unique to this run.
	if _, _, err := FindLeader(mark); !errors.Is(err, ErrGone) {
		t.Fatalf("found what was not started: %v", err)
	}
	// The inner sleep inherits the variable, and even leads a session: it must
	// not be taken for the one that was started.
	log := filepath.Join(t.TempDir(), "log")
	const script = `trap 'kill $!; exit' TERM; setsid sleep 60 & echo up; wait`
	p := startTest(t, Command{Path: sh, Args: []string{"-c", script}, Env: []string{mark, "PATH=/usr/bin:/bin"}, Log: log})
	for ticker := time.NewTicker(time.Millisecond); ; <-ticker.C {
		if data, err := os.ReadFile(log); err != nil || len(data) > 0 {
			break
		}
	}
	pid, start, err := FindLeader(mark)
	if err != nil || pid != p.PID || start != p.StartTime {
		t.Errorf("found %d started at %d (%v), want %d at %d", pid, start, err, p.PID, p.StartTime)
	}
	if _, _, err := FindLeader(mark + "x"); !errors.Is(err, ErrGone) {
		t.Errorf("a prefix of the variable is enough: %v", err)
	}
	if _, _, err := FindLeader(mark[:len(mark)-1]); !errors.Is(err, ErrGone) {
		t.Errorf("the beginning of the variable is enough: %v", err)
	}
	if err := p.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	awaitExit(t, p)
}

func TestProcessesLeaveNoDescriptors(t *testing.T) {
	count := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	before := count()
	for range 20 {
		p := startTest(t, Command{Path: sh, Args: []string{"-c", "exit 0"}})
		awaitExit(t, p)
		_, _ = StartProcess(Command{Path: "/none"})
		_, _ = Adopt(p.PID, p.StartTime)
	}
	if after := count(); after > before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}

func TestLockExclusive(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sub", "lock")
	lock, err := LockExclusive(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := LockExclusive(path); !errors.Is(err, ErrLocked) {
		t.Errorf("second lock: %v", err)
	}
	// A child must not keep the lock once it runs its program.
	p := startTest(t, Command{Path: "/bin/sleep", Args: []string{"60"}})
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := LockExclusive(path)
	if err != nil {
		t.Fatalf("lock with process %d alive: %v", p.PID, err)
	}
	if err := again.Close(); err != nil {
		t.Error(err)
	}
}

func TestParseStat(t *testing.T) {
	tail := strings.Repeat(" 0", 15) + " 4711 0 0"
	for name, tc := range map[string]struct {
		line string
		want stat
	}{
		"plain":       {"10 (etcd) S 1 10 9" + tail, stat{'S', 1, 9, 4711}},
		"parentheses": {"10 (a) R (b) 1) Z 1 10 9" + tail, stat{'Z', 1, 9, 4711}},
	} {
		got, err := parseStat(tc.line)
		if err != nil || got != tc.want {
			t.Errorf("%s: got %+v, %v, want %+v", name, got, err, tc.want)
		}
	}
	for _, line := range []string{"", "10 (x", "10 (x) S 1", "10 (x) S 1 1 y" + tail, "10 (x) S y 1 1" + tail, "10 (x) S 1 1 1" + strings.Repeat(" 0", 15) + " x"} {
		if got, err := parseStat(line); err == nil {
			t.Errorf("%q was read as %+v", line, got)
		}
	}
}

func TestBootIDIsStable(t *testing.T) {
	a, err := BootID()
	if err != nil {
		t.Fatal(err)
	}
	b, err := BootID()
	if err != nil || a != b || len(a) != 36 {
		t.Errorf("boot ids are %q and %q, %v", a, b, err)
	}
}

// TestLives: a process is known by its name from Self, its successor with the
// same number is not, and of other boots nothing is known.
func TestLives(t *testing.T) {
	self, err := Self()
	if err != nil {
		t.Fatal(err)
	}
	boot, rest, _ := strings.Cut(self, ".")
	pid, start, _ := strings.Cut(rest, ".")
	for name, want := range map[string][2]bool{
		self:                         {true, true},
		boot + "." + pid + "." + "1": {false, true},
		boot + ".4194304." + start:   {false, true}, // beyond pid_max
		"other." + rest:              {false, false},
		boot + ".x." + start:         {false, false},
		"":                           {false, false},
	} {
		if lives, sure := Lives(name); lives != want[0] || sure != want[1] {
			t.Errorf("%q: lives %v, sure %v", name, lives, sure)
		}
	}
}
