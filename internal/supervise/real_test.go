package supervise

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"kuorum/internal/host"
)

// patience bounds every wait for something that must happen, on a slow machine.
const patience = 30 * time.Second

// site is where the real processes of one test live.
type site struct {
	dir     string // records
	journal string
}

// newSite also makes sure that nothing survives the test, whatever happened.
func newSite(t *testing.T) site {
	t.Helper()
	tmp := t.TempDir()
	st := site{dir: filepath.Join(tmp, "run"), journal: filepath.Join(tmp, "journal")}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		s, err := New(st.dir, slog.New(slog.DiscardHandler), nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Stop(ctx); err != nil {
			t.Errorf("cannot clean up: %v", err)
		}
	})
	return st
}

// running runs a supervisor; leave ends its Run, not its processes.
func running(t *testing.T, dir string, processes []Process) (s *Supervisor, leave func()) {
	t.Helper()
	s, err := New(dir, slog.New(slog.NewTextHandler(t.Output(), nil)), processes)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	result := make(chan error, 1)
	go func() { result <- s.Run(ctx) }()
	leave = sync.OnceFunc(func() {
		cancel()
		if err := <-result; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(leave)
	return s, leave
}

func waitReady(t *testing.T, s *Supervisor) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := s.Wait(ctx); err != nil {
		t.Fatal(err)
	}
}

func mustStop(t *testing.T, s *Supervisor) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := s.Stop(ctx); err != nil {
		t.Fatal(err)
	}
}

func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	limit := time.NewTimer(patience)
	defer limit.Stop()
	for !condition() {
		select {
		case <-tick.C:
		case <-limit.C:
			t.Fatalf("not within %s: %s", patience, what)
		}
	}
}

func pids(s *Supervisor) map[string]int {
	all := map[string]int{}
	for _, st := range s.States() {
		all[st.Name] = st.PID
	}
	return all
}

func alive(pid int) bool {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return false
	}
	state := data[strings.LastIndexByte(string(data), ')')+2]
	return state != 'Z' && state != 'X'
}

// before tells whether line x stands before line y, and both stand there.
func before(lines []string, x, y string) bool {
	i, j := slices.Index(lines, x), slices.Index(lines, y)
	return i >= 0 && j >= 0 && i < j
}

func TestStartsInWavesAndStopsInReverse(t *testing.T) {
	st := newSite(t)
	// b and c each become ready only when the other has started as well: that
	// works only if they start in parallel.
	processes := []Process{
		component(st.journal, "d"), component(st.journal, "b", "gate=c"),
		component(st.journal, "c", "gate=b"), component(st.journal, "a"),
	}
	processes[0].After = []string{"b", "c"}
	processes[1].After = []string{"a"}
	processes[2].After = []string{"a"}
	s, leave := running(t, st.dir, processes)
	waitReady(t, s)
	leave()
	mustStop(t, s)
	lines := journalLines(st.journal)
	for _, pair := range [][2]string{
		{"ready a", "start b"},
		{"ready a", "start c"},
		{"ready b", "start d"},
		{"ready c", "start d"},
		{"stop d", "stop b"},
		{"stop d", "stop c"},
		{"stop b", "stop a"},
		{"stop c", "stop a"},
	} {
		if !before(lines, pair[0], pair[1]) {
			t.Errorf("%q is not before %q in %q", pair[0], pair[1], lines)
		}
	}
	if len(lines) != 12 {
		t.Errorf("journal is %q, want 12 lines", lines)
	}
	entries, err := os.ReadDir(st.dir)
	if err != nil || len(entries) != 1 || entries[0].Name() != lockName {
		t.Errorf("directory holds %v (%v), want the lock only", entries, err)
	}
}

func TestKilledProcessAloneIsStartedAgain(t *testing.T) {
	st := newSite(t)
	s, leave := running(t, st.dir, trio(st.journal))
	waitReady(t, s)
	old := pids(s)
	began := time.Now()
	if err := syscall.Kill(old["a"], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a runs again", func() bool {
		pid := pids(s)["a"]
		return pid != 0 && pid != old["a"]
	})
	if d := time.Since(began); d > 2*time.Second {
		t.Errorf("a was back after %s", d)
	}
	waitReady(t, s)
	now := pids(s)
	if now["b"] != old["b"] || now["c"] != old["c"] {
		t.Errorf("PIDs were %v and are %v: only a may change", old, now)
	}
	if got := s.States()[0]; got.LastExit != "signal: killed" || got.Restarts != 1 || got.Adopted {
		t.Errorf("state is %+v", got)
	}
	leave()
	mustStop(t, s)
}

// TestFind finds what a supervisor keeps, also when that does not run, by
// nothing but the directory of its records.
func TestFind(t *testing.T) {
	st := newSite(t)
	s, leave := running(t, st.dir, trio(st.journal))
	waitReady(t, s)
	leave()
	if diff := cmp.Diff([]string{"a", "b", "c"}, Recorded(st.dir)); diff != "" {
		t.Error(diff)
	}
	for name, want := range pids(s) {
		if pid, start, err := Find(st.dir, name); err != nil || pid != want || start == 0 {
			t.Errorf("%s: found %d started at %d, %v; want %d", name, pid, start, err, want)
		}
	}
	mustStop(t, s)
	if err := os.WriteFile(filepath.Join(st.dir, "b.json"), []byte(`{"name":"b"`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "b", "stranger"} {
		if pid, _, err := Find(st.dir, name); !errors.Is(err, host.ErrGone) {
			t.Errorf("%s: found %d, %v", name, pid, err)
		}
	}
}

func TestMissingProgram(t *testing.T) {
	st := newSite(t)
	missing := filepath.Join(filepath.Dir(st.journal), "program")
	s, leave := running(t, st.dir, []Process{{Name: "a", Path: missing}})
	eventually(t, "several tries", func() bool { return s.States()[0].Restarts >= 3 })
	if got := s.States()[0]; got.Phase != PhaseBackoff || !strings.Contains(got.Message, "exec "+missing+": no such file") {
		t.Errorf("state is %+v", got)
	}
	if err := os.Symlink("/bin/sleep", missing); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a start", func() bool { return s.States()[0].LastExit == "exit status 1" }) // sleep wants an argument.
	leave()
	mustStop(t, s)
}

func TestStubbornProcessIsKilled(t *testing.T) {
	st := newSite(t)
	p := component(st.journal, "a", "stubborn")
	p.StopTimeout = 100 * time.Millisecond
	s, leave := running(t, st.dir, []Process{p})
	waitReady(t, s)
	pid := pids(s)["a"]
	leave()
	if !alive(pid) {
		t.Error("the end of Run ended the process")
	}
	mustStop(t, s)
	if alive(pid) || journalHas(st.journal, "stop a") {
		t.Errorf("process %d is alive, or ended of its own will", pid)
	}
	if got := s.States()[0].LastExit; got != "signal: killed" {
		t.Errorf("last exit is %q", got)
	}
}

func TestCancelDuringStart(t *testing.T) {
	st := newSite(t)
	for i := range 20 {
		s, leave := running(t, st.dir, trio(st.journal))
		eventually(t, "a was started", func() bool { return i%4 == 0 || pids(s)["a"] != 0 })
		leave()
	}
	s, leave := running(t, st.dir, trio(st.journal))
	waitReady(t, s)
	leave()
	mustStop(t, s)
	lines := slices.Sorted(slices.Values(journalLines(st.journal)))
	want := []string{"ready a", "ready b", "ready c", "start a", "start b", "start c", "stop a", "stop b", "stop c"}
	if diff := cmp.Diff(want, lines); diff != "" {
		t.Errorf("each must be started once: %s", diff)
	}
}

func TestNothingLeaks(t *testing.T) {
	cycle := func() {
		st := newSite(t)
		s, leave := running(t, st.dir, trio(st.journal))
		waitReady(t, s)
		if err := syscall.Kill(pids(s)["b"], syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		eventually(t, "b runs again", func() bool { got := s.States()[1]; return got.Restarts == 1 && got.Phase == PhaseReady })
		leave()
		mustStop(t, s)
	}
	cycle() // What the runtime opens once and for all is open now.
	before := len(descriptors(t))
	for range 3 {
		cycle()
	}
	if after := descriptors(t); len(after) > before {
		t.Errorf("%d descriptors before, now %v", before, after)
	}
	if left := children(t); len(left) > 0 {
		t.Errorf("children are left: %v", left)
	}
}

func descriptors(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	var open []string
	for _, entry := range entries {
		target, err := os.Readlink("/proc/self/fd/" + entry.Name())
		if err == nil { // The descriptor of this listing is closed by now.
			open = append(open, target)
		}
	}
	return open
}

// children lists the PIDs of this process's children, zombies among them.
func children(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil || len(files) == 0 {
		t.Fatalf("cannot list children: %v", err)
	}
	var all []string
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		all = append(all, strings.Fields(string(data))...)
	}
	return all
}
