package supervise

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestReload: a process is told once it is ready, not more often than it can bear, and
// of the last change only.
func TestReload(t *testing.T) {
	var ready atomic.Bool
	f := &fakeSystem{}
	process := Process{
		Name: "proxy", Digest: "1", Reload: Reloading{Signal: syscall.SIGUSR2, Digest: "a"},
		Ready: func(context.Context) error {
			if !ready.Load() {
				return errors.New("not yet")
			}
			return nil
		},
	}
	inBubble(t, f, []Process{process, {Name: "plain"}}, func(t *testing.T, s *Supervisor) {
		told := func(what string, want int) {
			t.Helper()
			pass(time.Second)
			n := 0
			f.set(func() { n = len(f.signals) })
			if n != want {
				t.Errorf("%s: told %d times, want %d", what, n, want)
			}
		}
		reload := func(digest string) {
			t.Helper()
			if err := s.Reload("proxy", digest); err != nil {
				t.Fatal(err)
			}
		}
		recorded := func(want string) {
			t.Helper()
			if r, err := s.readRecord("proxy"); err != nil || r.Loaded != want || r.Digest != "1" {
				t.Errorf("the record is %+v, %v, want %q", r, err, want)
			}
		}
		recorded("a")
		reload("b")
		told("it is not ready", 0)
		ready.Store(true)
		told("it is ready", 1)
		recorded("b")
		reload("b")
		told("nothing has changed", 1)
		for _, digest := range []string{"c", "d", "e"} {
			reload(digest)
		}
		told("it has just been told", 1)
		pass(reloadEvery)
		told("after a while, of three changes", 2)
		recorded("e")
		f.set(func() {
			if !slices.Equal(f.signals, []syscall.Signal{syscall.SIGUSR2, syscall.SIGUSR2}) {
				t.Errorf("the signals are %v", f.signals)
			}
		})
		for name, want := range map[string]string{"nobody": "none of that name", "plain": "when it starts only"} {
			if err := s.Reload(name, "x"); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}

// TestReloadOfOneThatIsNotReady: what a process has to read may be what it needs to
// become ready, so it is told once it is old enough not to end of it.
func TestReloadOfOneThatIsNotReady(t *testing.T) {
	f := &fakeSystem{}
	process := Process{
		Name: "proxy", Digest: "1", Reload: Reloading{Signal: syscall.SIGUSR2, Digest: "a"},
		Ready: func(context.Context) error { return errors.New("never") },
	}
	inBubble(t, f, []Process{process}, func(t *testing.T, s *Supervisor) {
		pass(time.Second)
		if err := s.Reload("proxy", "b"); err != nil {
			t.Fatal(err)
		}
		for _, want := range []int{0, 1, 1} {
			pass(time.Second)
			f.set(func() {
				if len(f.signals) != want {
					t.Errorf("told %d times, want %d", len(f.signals), want)
				}
			})
			pass(2 * reloadEvery)
		}
	})
}

// TestReloadAfterAnAgentThatWasKilled: the next one finds in the record what the process
// has read, and tells it of what has changed since.
func TestReloadAfterAnAgentThatWasKilled(t *testing.T) {
	st := newSite(t)
	process := func(digest string) []Process {
		p := component(st.journal, "a")
		p.Reload = Reloading{Signal: syscall.SIGUSR2, Digest: digest}
		return []Process{p}
	}
	reloads := func() (n int) {
		for _, line := range journalLines(st.journal) {
			if line == "reload a" {
				n++
			}
		}
		return n
	}
	for i, digest := range []string{"1", "1", "2", "2"} {
		s, leave := running(t, st.dir, process(digest))
		waitReady(t, s)
		want := 0
		if i >= 2 {
			want = 1
		}
		eventually(t, "it has read its files", func() bool {
			r, err := s.readRecord("a")
			return err == nil && r.Loaded == digest && reloads() == want
		})
		leave()
	}
	if diff := cmp.Diff([]string{"start a", "ready a", "reload a"}, journalLines(st.journal)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	s, leave := running(t, st.dir, process("2"))
	leave()
	mustStop(t, s)
}
