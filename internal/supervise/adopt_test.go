package supervise

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"

	"kuorum/internal/host"
)

// startAgent runs a supervisor of trio in a process of its own.
func startAgent(t *testing.T, st site, options ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	agent := exec.CommandContext(t.Context(), self, append([]string{roleAgent, st.dir, st.journal}, options...)...)
	agent.Stderr = t.Output()
	if err := agent.Start(); err != nil {
		t.Fatal(err)
	}
	return agent
}

// kill ends the agent as a crash does and waits for it.
func kill(t *testing.T, agent *exec.Cmd) {
	t.Helper()
	if err := agent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	awaitKilled(t, agent)
}

func awaitKilled(t *testing.T, agent *exec.Cmd) {
	t.Helper()
	if err := agent.Wait(); err == nil || err.Error() != "signal: killed" {
		t.Fatalf("agent ended with %v", err)
	}
}

func TestProcessesOutliveAKilledAgent(t *testing.T) {
	st := newSite(t)
	agent := startAgent(t, st)
	for _, name := range []string{"a", "b", "c"} {
		eventually(t, name+" is ready", func() bool { return journalHas(st.journal, "ready "+name) })
	}
	kill(t, agent)

	s, leave := running(t, st.dir, trio(st.journal))
	waitReady(t, s)
	lines := journalLines(st.journal)
	if len(lines) != 6 {
		t.Errorf("journal is %q, want each started once", lines)
	}
	old := pids(s)
	for _, state := range s.States() {
		if !state.Adopted || !alive(state.PID) {
			t.Errorf("state is %+v, want a live process that was adopted", state)
		}
	}
	if err := syscall.Kill(old["b"], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "b runs again", func() bool { pid := pids(s)["b"]; return pid != 0 && pid != old["b"] })
	waitReady(t, s)
	now := pids(s)
	if now["a"] != old["a"] || now["c"] != old["c"] {
		t.Errorf("PIDs were %v and are %v: only b may change", old, now)
	}
	leave()
	mustStop(t, s)
	for name, pid := range now {
		if alive(pid) {
			t.Errorf("%s is alive after Stop", name)
		}
	}
}

func TestAgentKilledBetweenStartAndRecord(t *testing.T) {
	st := newSite(t)
	awaitKilled(t, startAgent(t, st, "die"))
	s, leave := running(t, st.dir, trio(st.journal))
	waitReady(t, s)
	if got := s.States()[1]; !got.Adopted {
		t.Errorf("state is %+v, want the process that had no complete record", got)
	}
	leave()
	mustStop(t, s)
	for _, name := range []string{"a", "b", "c"} {
		starts := 0
		for _, line := range journalLines(st.journal) {
			if line == "start "+name {
				starts++
			}
		}
		// For c the kill came at any moment, even in the middle of its start.
		if starts != 1 {
			t.Errorf("%s was started %d times", name, starts)
		}
	}
}

func TestStopWithoutRunStopsWhatAKilledAgentLeft(t *testing.T) {
	st := newSite(t)
	agent := startAgent(t, st)
	eventually(t, "c is ready", func() bool { return journalHas(st.journal, "ready c") && journalHas(st.journal, "ready b") })
	kill(t, agent)
	s, err := New(st.dir, slog.New(slog.DiscardHandler), trio(st.journal))
	if err != nil {
		t.Fatal(err)
	}
	mustStop(t, s)
	lines := journalLines(st.journal)
	if !before(lines, "stop b", "stop a") || !before(lines, "stop c", "stop a") {
		t.Errorf("journal is %q, want a to stop last", lines)
	}
	for _, got := range s.States() {
		if got.Phase != PhaseStopped || got.PID != 0 {
			t.Errorf("state is %+v", got)
		}
	}
}

func TestDigestDecidesWhatIsAdopted(t *testing.T) {
	st := newSite(t)
	first, leave := running(t, st.dir, trio(st.journal))
	waitReady(t, first)
	old := pids(first)
	leave()

	// a is new, b is as it was, c is not declared any more.
	processes := trio(st.journal)[:2]
	processes[0].Digest = "new"
	s, leave := running(t, st.dir, processes)
	eventually(t, "a is replaced", func() bool { pid := pids(s)["a"]; return pid != 0 && pid != old["a"] })
	waitReady(t, s)
	now := pids(s)
	if now["b"] != old["b"] || alive(old["a"]) || alive(old["c"]) {
		t.Errorf("PIDs were %v and are %v: want b kept, a replaced, c gone", old, now)
	}
	lines := journalLines(st.journal)
	if !slices.Contains(lines, "stop a") || !slices.Contains(lines, "stop c") || slices.Contains(lines, "stop b") {
		t.Errorf("journal is %q", lines)
	}
	leave()
	mustStop(t, s)
}

// TestOutdatedIsTold: what still waits to be replaced runs and is ready, and must
// not be taken for what it is to become.
func TestOutdatedIsTold(t *testing.T) {
	st := newSite(t)
	first, leave := running(t, st.dir, trio(st.journal))
	waitReady(t, first)
	old := pids(first)
	leave()

	var open atomic.Bool
	processes := trio(st.journal)
	processes[0].Ready = func(context.Context) error {
		if open.Load() {
			return nil
		}
		return errors.New("not yet")
	}
	processes[1].Digest = "new" // it waits for a
	processes[2].After, processes[2].With = []string{"b"}, []string{"b"}
	s, leave := running(t, st.dir, processes)
	outdated := func() map[string]bool {
		told := map[string]bool{}
		for _, got := range s.Probe(t.Context()) {
			told[got.Name] = got.Outdated
		}
		return told
	}
	eventually(t, "b waits, and c, which goes with it", func() bool {
		told := outdated()
		return pids(s)["b"] == old["b"] && told["b"] && told["c"]
	})
	if told := outdated(); told["a"] {
		t.Errorf("outdated are %v, want b and c only", told)
	}
	open.Store(true)
	eventually(t, "both are replaced", func() bool { told := outdated(); return !told["b"] && !told["c"] })
	waitReady(t, s)
	if now := pids(s); now["b"] == old["b"] || now["c"] == old["c"] || now["a"] != old["a"] {
		t.Errorf("PIDs were %v and are %v", old, now)
	}
	leave()
	mustStop(t, s)
}

// TestReplacedWithAnother: b works with a only, so it ends before a new a comes,
// and starts after; c, which merely comes after a, runs on.
func TestReplacedWithAnother(t *testing.T) {
	st := newSite(t)
	processes := trio(st.journal)
	processes[1].With = []string{"a"}
	first, leave := running(t, st.dir, processes)
	waitReady(t, first)
	old := pids(first)
	leave()

	processes[0].Digest = "new"
	s, leave := running(t, st.dir, processes)
	eventually(t, "b is replaced", func() bool { pid := pids(s)["b"]; return pid != 0 && pid != old["b"] })
	waitReady(t, s)
	now := pids(s)
	if now["a"] == old["a"] || now["c"] != old["c"] || alive(old["a"]) || alive(old["b"]) {
		t.Errorf("PIDs were %v and are %v: want a and b replaced, c kept", old, now)
	}
	eventually(t, "b starts after the old a has ended", func() bool {
		lines := journalLines(st.journal)
		return before(lines[max(0, slices.Index(lines, "stop b")):], "stop a", "start b")
	})
	if lines := journalLines(st.journal); !before(lines, "stop b", "stop a") || slices.Contains(lines, "stop c") {
		t.Errorf("journal is %q", lines)
	}
	leave()
	mustStop(t, s)
}

func TestAnotherProcessIsNeverTakenForOurs(t *testing.T) {
	stranger, err := host.StartProcess(host.Command{Path: "/bin/sleep", Args: []string{"120"}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := stranger.Signal(syscall.SIGKILL); err != nil {
			t.Error(err)
		}
		<-stranger.Exited()
	}()
	boot, err := host.BootID()
	if err != nil {
		t.Fatal(err)
	}
	for name, r := range map[string]record{
		"other start time": {Name: "a", Boot: boot, PID: stranger.PID, StartTime: stranger.StartTime - 1},
		"other boot":       {Name: "a", Boot: "before", PID: stranger.PID, StartTime: stranger.StartTime},
		"not declared":     {Name: "z", Boot: boot, PID: stranger.PID, StartTime: stranger.StartTime + 1},
		"never started":    {Name: "a", Boot: boot, Launch: "nobody"},
		"damaged":          {Name: "a"},
	} {
		t.Run(name, func(t *testing.T) {
			st := newSite(t)
			s, err := New(st.dir, slog.New(slog.DiscardHandler), nil)
			if err != nil {
				t.Fatal(err)
			}
			if err := s.writeRecord(r); err != nil {
				t.Fatal(err)
			}
			if name == "damaged" {
				err = errors.Join(os.WriteFile(s.recordPath("a"), []byte("{"), 0o600), os.WriteFile(st.dir+"/.tmp-a.json-1", nil, 0o600))
			}
			if err != nil {
				t.Fatal(err)
			}
			s, leave := running(t, st.dir, []Process{component(st.journal, "a")})
			waitReady(t, s)
			if got := s.States()[0]; got.Adopted || got.PID == stranger.PID {
				t.Errorf("state is %+v", got)
			}
			leave()
			mustStop(t, s)
			if !alive(stranger.PID) {
				t.Fatal("the other process is dead")
			}
			mustNotExist(t, s.recordPath(r.Name))
			mustNotExist(t, st.dir+"/.tmp-a.json-1")
		})
	}
}
