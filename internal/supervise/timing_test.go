package supervise

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"kuorum/internal/host"
)

const ms = time.Millisecond

func TestCrashLoopBacksOff(t *testing.T) {
	f := &fakeSystem{life: time.Microsecond}
	inBubble(t, f, []Process{{Name: "a"}}, func(t *testing.T, s *Supervisor) {
		pass(40 * time.Second)
		var pauses []time.Duration
		times := f.startTimes()
		for i := range len(times) - 1 {
			pauses = append(pauses, (times[i+1] - times[i]).Truncate(ms))
		}
		want := []time.Duration{0, 250 * ms, 500 * ms, 1000 * ms, 2000 * ms, 4000 * ms, 8000 * ms, 10000 * ms, 10000 * ms}
		if diff := cmp.Diff(want, pauses); diff != "" {
			t.Error(diff)
		}
		st := s.States()[0]
		if st.Phase != PhaseBackoff || st.Restarts != len(times) || st.LastExit != "exit status 1" || st.PID != 0 ||
			st.Message != "exit status 1; starts again after 10s" {
			t.Errorf("state is %+v after %d starts", st, len(times))
		}
	})
}

func TestFailuresAreForgottenAfterThirtySeconds(t *testing.T) {
	for life, pause := range map[time.Duration]time.Duration{29 * time.Second: 250 * ms, 30 * time.Second: 0} {
		f := &fakeSystem{life: life}
		inBubble(t, f, []Process{{Name: "a"}}, func(t *testing.T, _ *Supervisor) {
			pass(2*life + 300*ms)
			times := f.startTimes()
			if len(times) != 3 || times[1] != life || times[2] != 2*life+pause {
				t.Errorf("with a life of %s, starts are at %v: want the second pause to be %s", life, times, pause)
			}
		})
	}
}

func TestMissingProgramIsTriedAgain(t *testing.T) {
	f := &fakeSystem{missing: errors.New("cannot start program: no such file")}
	inBubble(t, f, []Process{{Name: "a"}, {Name: "b", After: []string{"a"}}}, func(t *testing.T, s *Supervisor) {
		pass(600 * ms)
		st := s.States()
		if st[0].Phase != PhaseBackoff || st[0].Message != "cannot start program: no such file; starts again after 500ms" {
			t.Errorf("state is %+v", st[0])
		}
		if st[1].Phase != PhaseWaiting || st[1].Message != "waits for a" {
			t.Errorf("state is %+v", st[1])
		}
		mustNotExist(t, s.recordPath("a"))
		f.set(func() { f.missing = nil })
		pass(300 * ms)
		if diff := cmp.Diff(map[string]Phase{"a": PhaseReady, "b": PhaseReady}, phases(s)); diff != "" {
			t.Error(diff)
		}
	})
}

func TestReadyIsPolledOftenAtFirst(t *testing.T) {
	var probes []time.Time
	ready := func(context.Context) error {
		if probes = append(probes, time.Now()); len(probes) < 8 {
			return errors.New("not yet")
		}
		return nil
	}
	inBubble(t, &fakeSystem{}, []Process{{Name: "a", Ready: ready}}, func(t *testing.T, s *Supervisor) {
		if st := s.States()[0]; st.Phase != PhaseStarting || st.Message != "not yet" {
			t.Errorf("state is %+v", st)
		}
		pass(10 * time.Second)
		if st := s.States()[0]; st.Phase != PhaseReady || st.Message != "" {
			t.Errorf("state is %+v", st)
		}
	})
	var pauses []time.Duration
	for i := range len(probes) - 1 {
		pauses = append(pauses, probes[i+1].Sub(probes[i]).Truncate(ms))
	}
	if diff := cmp.Diff([]time.Duration{50 * ms, 75 * ms, 100 * ms, 100 * ms, 100 * ms, 100 * ms, 100 * ms}, pauses); diff != "" {
		t.Error(diff)
	}
}

func TestHangingProbeIsCutShort(t *testing.T) {
	hang := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	f := &fakeSystem{}
	inBubble(t, f, []Process{{Name: "a", Ready: hang}}, func(t *testing.T, s *Supervisor) {
		pass(2010 * ms)
		if st := s.States()[0]; st.Phase != PhaseStarting || !strings.HasPrefix(st.Message, "no answer within 2s") {
			t.Errorf("state is %+v", st)
		}
		// The end of the process must be noticed while its probe hangs again.
		pass(200 * ms)
		f.last.die("signal: killed")
		synctest.Wait()
		if n := len(f.startTimes()); n != 2 {
			t.Errorf("started %d times, want again at once", n)
		}
	})
}

func TestNeedsMustHaveBeenReadyOnce(t *testing.T) {
	var up atomic.Bool
	ready := func(context.Context) error {
		if !up.Load() {
			return errors.New("no quorum")
		}
		return nil
	}
	f := &fakeSystem{}
	processes := []Process{{Name: "c", After: []string{"b"}}, {Name: "b", After: []string{"a"}}, {Name: "a", Ready: ready}}
	inBubble(t, f, processes, func(t *testing.T, _ *Supervisor) {
		pass(time.Minute)
		if diff := cmp.Diff([]string{"a"}, f.names); diff != "" {
			t.Error(diff)
		}
		up.Store(true)
		pass(maxPoll)
		if diff := cmp.Diff([]string{"a", "b", "c"}, f.names); diff != "" {
			t.Error(diff)
		}
		// c runs and ends; that a is not ready any more must not hold it back.
		up.Store(false)
		f.last.die("signal: killed")
		synctest.Wait()
		if diff := cmp.Diff([]string{"a", "b", "c", "c"}, f.names); diff != "" {
			t.Error(diff)
		}
	})
}

func TestWait(t *testing.T) {
	var up atomic.Bool
	ready := func(context.Context) error {
		if !up.Load() {
			return errors.New("refused")
		}
		return nil
	}
	inBubble(t, &fakeSystem{}, []Process{{Name: "a"}, {Name: "b", Ready: ready}}, func(t *testing.T, s *Supervisor) {
		if err := s.Wait(t.Context(), "a"); err != nil {
			t.Error(err)
		}
		if err := s.Wait(t.Context(), "x"); err == nil || !strings.Contains(err.Error(), `"x"`) {
			t.Errorf("waited for an unknown one: %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := s.Wait(ctx)
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), ": b is starting (refused): ") {
			t.Errorf("error is %v", err)
		}
		time.AfterFunc(time.Second, func() { up.Store(true) })
		began := time.Now()
		if err := s.Wait(t.Context()); err != nil {
			t.Error(err)
		}
		if d := time.Since(began); d > time.Second+maxPoll {
			t.Errorf("waited %s", d)
		}
	})
}

func TestProbeTellsWhatIsTrueNow(t *testing.T) {
	var sick atomic.Bool
	ready := func(ctx context.Context) error {
		if !sick.Load() {
			return nil
		}
		<-ctx.Done()
		return ctx.Err()
	}
	processes := []Process{{Name: "a", Ready: ready}, {Name: "b", Ready: ready}, {Name: "c"}}
	inBubble(t, &fakeSystem{}, processes, func(t *testing.T, s *Supervisor) {
		sick.Store(true)
		before := s.States()
		pass(time.Second)
		began := time.Now()
		got := s.Probe(t.Context())
		if d := time.Since(began); d != probeTimeout {
			t.Errorf("probes took %s, want %s for both at once", d, probeTimeout)
		}
		for _, st := range got[:2] {
			if st.Phase != PhaseStarting || !strings.Contains(st.Message, "no answer") || !st.Since.Equal(time.Now()) {
				t.Errorf("state is %+v", st)
			}
		}
		if diff := cmp.Diff(before[2], got[2]); diff != "" {
			t.Error(diff)
		}
		if diff := cmp.Diff(before, s.States()); diff != "" {
			t.Errorf("Probe changed the states: %s", diff)
		}
	})
}

func TestStopInsistsAfterTheTimeout(t *testing.T) {
	f := &fakeSystem{stubborn: true}
	inBubble(t, f, []Process{{Name: "a", StopTimeout: 3 * time.Second}}, func(*testing.T, *Supervisor) {
	}, func(t *testing.T, s *Supervisor) {
		if len(f.signals) != 0 || phases(s)["a"] != PhaseReady {
			t.Errorf("the end of Run left %+v and sent %v, want it untouched", s.States(), f.signals)
		}
		began := time.Now()
		if err := s.Stop(t.Context()); err != nil {
			t.Error(err)
		}
		if d := time.Since(began); d != 3*time.Second {
			t.Errorf("Stop took %s, want 3s", d)
		}
		if diff := cmp.Diff([]syscall.Signal{syscall.SIGTERM, syscall.SIGKILL}, f.signals); diff != "" {
			t.Error(diff)
		}
		if st := s.States()[0]; st.Phase != PhaseStopped || st.PID != 0 || st.LastExit != "signal: killed" {
			t.Errorf("state is %+v", st)
		}
		mustNotExist(t, s.recordPath("a"))
	})
}

func TestStopGivesUpWithItsContext(t *testing.T) {
	f := &fakeSystem{stubborn: true}
	processes := []Process{{Name: "a"}, {Name: "b", After: []string{"a"}}}
	inBubble(t, f, processes, func(*testing.T, *Supervisor) {}, func(t *testing.T, s *Supervisor) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := s.Stop(ctx)
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "component b: process") {
			t.Errorf("Stop: %v", err)
		}
		// Only b was asked: a must not end while b may still need it.
		if diff := cmp.Diff([]syscall.Signal{syscall.SIGTERM}, f.signals); diff != "" {
			t.Error(diff)
		}
		for _, name := range []string{"a", "b"} {
			if _, err := os.Stat(s.recordPath(name)); err != nil {
				t.Errorf("record of what still runs: %v", err)
			}
		}
	})
}

func TestRunRefusesASecondAgent(t *testing.T) {
	dir := t.TempDir()
	lock, err := host.LockExclusive(filepath.Join(dir, lockName))
	if err != nil {
		t.Fatal(err)
	}
	f := &fakeSystem{}
	synctest.Test(t, func(t *testing.T) {
		s := &Supervisor{dir: dir, system: f, changed: make(chan struct{})}
		began := time.Now()
		if err := s.Run(t.Context()); !errors.Is(err, host.ErrLocked) || !strings.Contains(err.Error(), "another agent") {
			t.Errorf("Run: %v", err)
		}
		if d := time.Since(began); d != lockPatience {
			t.Errorf("refused after %s, want %s", d, lockPatience)
		}
		if err := s.Stop(t.Context()); !errors.Is(err, host.ErrLocked) {
			t.Errorf("Stop: %v", err)
		}
		// A predecessor that is about to vanish is waited for.
		time.AfterFunc(lockPatience/2, func() { _ = lock.Close() })
		if err := s.Stop(t.Context()); err != nil {
			t.Errorf("Stop with a lock released in time: %v", err)
		}
	})
}

func TestLogsAreRotatedWhileRunning(t *testing.T) {
	log := filepath.Join(t.TempDir(), "a.log")
	inBubble(t, &fakeSystem{}, []Process{{Name: "a", Log: log}}, func(t *testing.T, _ *Supervisor) {
		if err := os.WriteFile(log, nil, 0o640); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(log, logLimits.rotate+1); err != nil {
			t.Fatal(err)
		}
		pass(rotateEvery)
		now, kept := size(t, log), size(t, log+".1")
		if now != 0 || kept != logLimits.rotate+1 {
			t.Errorf("log has %d bytes and the kept one %d", now, kept)
		}
	})
}

func size(t *testing.T, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

// TestMayHoldsBack: what may not start says why, starts as soon as it may, and is
// asked again before each start.
func TestMayHoldsBack(t *testing.T) {
	f := &fakeSystem{life: 10 * time.Second}
	var no atomic.Pointer[error]
	reason := errors.New("the data is another's")
	no.Store(&reason)
	may := func(context.Context) error {
		if err := no.Load(); err != nil {
			return *err
		}
		return nil
	}
	inBubble(t, f, []Process{{Name: "a", May: may}, {Name: "b", After: []string{"a"}}}, func(t *testing.T, s *Supervisor) {
		pass(time.Minute)
		if st := s.States()[0]; st.Phase != PhaseWaiting || st.Message != reason.Error() || len(f.startTimes()) != 0 {
			t.Errorf("held back it is %+v, with %d starts", st, len(f.startTimes()))
		}
		no.Store(nil)
		pass(time.Second)
		if len(f.startTimes()) != 2 {
			t.Errorf("%d starts, of two processes", len(f.startTimes()))
		}
		no.Store(&reason)
		pass(5 * time.Second)
		if st := s.States()[0]; st.Phase != PhaseReady {
			t.Errorf("what runs is not left alone: %+v", st)
		}
		pass(10 * time.Second)
		if st := s.States()[0]; st.Phase != PhaseWaiting || st.PID != 0 {
			t.Errorf("it started again though it may not: %+v", st)
		}
	}, func(t *testing.T, s *Supervisor) {
		if err := s.Stop(t.Context()); err != nil || s.States()[0].Phase != PhaseStopped {
			t.Errorf("what is held back holds the end up: %v, %+v", err, s.States()[0])
		}
	})
}
