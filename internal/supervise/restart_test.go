package supervise

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// graves notes what Died is told.
type graves struct {
	mu   sync.Mutex
	seen []time.Time
}

func (g *graves) died(_ context.Context, at time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.seen = append(g.seen, at)
}

func (g *graves) times() []time.Time {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.seen)
}

// since is when deaths were seen, after began.
func (g *graves) since(began time.Time) (all []time.Duration) {
	for _, at := range g.times() {
		all = append(all, at.Sub(began))
	}
	return all
}

func TestDeathsAreTold(t *testing.T) {
	var g graves
	f := &fakeSystem{}
	inBubble(t, f, []Process{{Name: "a", Died: g.died}}, func(t *testing.T, _ *Supervisor) {
		pass(time.Minute)
		f.last.die("signal: killed")
		synctest.Wait()
		pass(time.Minute)
		f.last.die("exit status 1")
		synctest.Wait()
		// The first is whatever ran before this supervisor, which has found nothing.
		if diff := cmp.Diff([]time.Duration{0, time.Minute, 2 * time.Minute}, g.since(f.began)); diff != "" {
			t.Error(diff)
		}
		if starts := f.startTimes(); starts[1] != time.Minute || starts[2] != 2*time.Minute {
			t.Errorf("started at %v: whoever is told must not delay it", starts)
		}
	}, func(t *testing.T, s *Supervisor) {
		mustStop(t, s)
		if n := len(g.times()); n != 3 {
			t.Errorf("an end that was asked for was told as the death number %d", n)
		}
	})
}

// TestDeathThatIsHeardSlowly: a listener that hangs delays neither the next start
// nor, but for its own end, Run.
func TestDeathThatIsHeardSlowly(t *testing.T) {
	var g graves
	f := &fakeSystem{}
	hang := func(ctx context.Context, at time.Time) {
		<-ctx.Done()
		g.died(ctx, at)
	}
	inBubble(t, f, []Process{{Name: "a", Died: hang}}, func(t *testing.T, _ *Supervisor) {
		pass(time.Second)
		f.last.die("signal: killed")
		synctest.Wait()
		if diff := cmp.Diff([]time.Duration{0, time.Second}, f.startTimes()); diff != "" {
			t.Error(diff)
		}
		if n := len(g.times()); n != 0 {
			t.Errorf("%d listeners have ended by themselves", n)
		}
	}, func(t *testing.T, _ *Supervisor) {
		if diff := cmp.Diff([]time.Duration{0, time.Second}, slices.Sorted(slices.Values(g.since(f.began)))); diff != "" {
			t.Error(diff)
		}
	})
}

// TestStubbornProcessDies: it was asked to end, did not, and so could give up
// nothing in peace.
func TestStubbornProcessDies(t *testing.T) {
	var g graves
	f := &fakeSystem{stubborn: true}
	inBubble(t, f, []Process{{Name: "a", Died: g.died, StopTimeout: 3 * time.Second}}, func(*testing.T, *Supervisor) {
	}, func(t *testing.T, s *Supervisor) {
		mustStop(t, s)
		if diff := cmp.Diff([]time.Duration{0, 3 * time.Second}, g.since(f.began)); diff != "" {
			t.Error(diff)
		}
	})
}

func TestRestart(t *testing.T) {
	var g graves
	f := &fakeSystem{}
	inBubble(t, f, []Process{{Name: "a", Died: g.died}, {Name: "b"}}, func(t *testing.T, s *Supervisor) {
		pass(time.Second)
		refusal := errors.New("nobody takes it")
		err := s.Restart(t.Context(), "a", func(context.Context) error {
			pass(4 * time.Second)
			if st := s.States()[0]; st.Phase != PhaseWaiting || st.PID != 0 || len(g.times()) != 2 {
				t.Errorf("meanwhile it is %+v, after %d deaths", st, len(g.times()))
			}
			if again := s.Restart(t.Context(), "a", nil); again == nil || !strings.Contains(again.Error(), "restarted already") {
				t.Errorf("a second one at the same time: %v", again)
			}
			return refusal
		})
		if !errors.Is(err, refusal) {
			t.Errorf("got %v", err)
		}
		synctest.Wait()
		if err := s.Restart(t.Context(), "a", nil); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		// a and b; a after 4 s, and at once.
		if diff := cmp.Diff([]time.Duration{0, 0, 5 * time.Second, 5 * time.Second}, f.startTimes()); diff != "" {
			t.Error(diff)
		}
		if st := s.States()[0]; st.Phase != PhaseReady || st.Restarts != 0 {
			t.Errorf("state is %+v: what was asked for is no failure", st)
		}
		if err := s.Restart(t.Context(), "c", nil); err == nil {
			t.Error("restarted what there is not")
		}
		f.set(func() { f.missing = errors.New("no such file") })
		f.last.die("exit status 1")
		pass(time.Second)
		if err := s.Restart(t.Context(), "a", nil); err == nil || !strings.Contains(err.Error(), "does not run") {
			t.Errorf("restarted what does not run: %v", err)
		}
	})
}

// TestRestartThatIsGivenUp: the process may run on, and its death is one.
func TestRestartThatIsGivenUp(t *testing.T) {
	var g graves
	f := &fakeSystem{stubborn: true}
	inBubble(t, f, []Process{{Name: "a", Died: g.died}}, func(t *testing.T, s *Supervisor) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := s.Restart(ctx, "a", nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		f.last.die("signal: killed")
		synctest.Wait()
		if st := s.States()[0]; st.Phase != PhaseReady || st.Restarts != 1 || len(g.times()) != 2 {
			t.Errorf("state is %+v after %d deaths", st, len(g.times()))
		}
	})
}

func TestRunEndsDuringARestart(t *testing.T) {
	f, ended := &fakeSystem{}, (chan struct{})(nil)
	inBubble(t, f, []Process{{Name: "a"}}, func(t *testing.T, s *Supervisor) {
		ended = make(chan struct{})
		go func() {
			_ = s.Restart(t.Context(), "a", func(context.Context) error { <-ended; return nil }) // see below
		}()
		synctest.Wait()
	}, func(t *testing.T, _ *Supervisor) {
		close(ended)
		synctest.Wait()
		if n := len(f.startTimes()); n != 1 {
			t.Errorf("it was started %d times", n)
		}
	})
}

// TestDeathOfARealProcess: killed, it is told of after it has died and before the
// next one starts; also one that another supervisor started.
func TestDeathOfARealProcess(t *testing.T) {
	st := newSite(t)
	var g graves
	p := component(st.journal, "a")
	p.Died = g.died
	processes := []Process{p}
	first, leave := running(t, st.dir, processes)
	waitReady(t, first)
	leave()
	if n := len(g.times()); n != 1 {
		t.Fatalf("%d deaths before anything died, want that of what ran before", n)
	}

	s, leave := running(t, st.dir, processes)
	waitReady(t, s)
	old := s.States()[0]
	if n := len(g.times()); n != 1 || !old.Adopted {
		t.Fatalf("%d deaths, and %+v: want one that was adopted", n, old)
	}
	killed := time.Now()
	if err := syscall.Kill(old.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a runs again", func() bool { pid := pids(s)["a"]; return pid != 0 && pid != old.PID })
	eventually(t, "its death is told", func() bool { return len(g.times()) == 2 })
	waitReady(t, s)
	if at := g.times()[1]; !at.After(killed) || at.After(s.States()[0].Since) {
		t.Errorf("killed at %v, told as dead at %v, again since %v", killed, at, s.States()[0].Since)
	}

	eventually(t, "the second one heeds signals", func() bool { return len(journalLines(st.journal)) == 4 })
	old = s.States()[0]
	if err := s.Restart(t.Context(), "a", nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a runs again", func() bool { pid := pids(s)["a"]; return pid != 0 && pid != old.PID })
	waitReady(t, s)
	if !journalHas(st.journal, "stop a") || len(g.times()) != 3 {
		t.Errorf("journal %q, %d deaths: want one that ended in peace", journalLines(st.journal), len(g.times()))
	}
	leave()
	mustStop(t, s)
}
