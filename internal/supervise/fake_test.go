package supervise

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"kuorum/internal/host"
)

// fakeSystem runs processes in memory, so that a synctest bubble can turn the clock.
type fakeSystem struct {
	mu       sync.Mutex
	began    time.Time
	missing  error           // what start fails with
	life     time.Duration   // how long a process runs; 0 means until it is signalled
	stubborn bool            // processes ignore SIGTERM
	starts   []time.Duration // since began
	names    []string        // base names of the started programs
	signals  []syscall.Signal
	last     *fakeProcess
}

type fakeProcess struct {
	system *fakeSystem
	once   sync.Once
	exited chan struct{}
	text   string
}

func (f *fakeSystem) start(c host.Command) (*child, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.starts = append(f.starts, time.Since(f.began))
	f.names = append(f.names, filepath.Base(c.Path))
	if f.missing != nil {
		return nil, f.missing
	}
	p := &fakeProcess{system: f, exited: make(chan struct{})}
	f.last = p
	if f.life > 0 {
		time.AfterFunc(f.life, func() { p.die("exit status 1") })
	}
	return &child{handle: p, pid: 1000 + len(f.starts), startTime: 1}, nil
}

func (f *fakeSystem) adopt(int, uint64) (*child, error) { return nil, host.ErrGone }
func (f *fakeSystem) find(string) (int, uint64, error)  { return 0, 0, host.ErrGone }
func (p *fakeProcess) Exited() <-chan struct{}          { return p.exited }
func (p *fakeProcess) ExitText() string                 { return p.text }
func (f *fakeSystem) set(change func())                 { f.mu.Lock(); defer f.mu.Unlock(); change() }

func (f *fakeSystem) startTimes() (times []time.Duration) {
	f.set(func() { times = append(times, f.starts...) })
	return
}

func (p *fakeProcess) die(text string) {
	p.once.Do(func() {
		p.text = text
		close(p.exited)
	})
}

func (p *fakeProcess) Signal(sig syscall.Signal) error {
	p.system.mu.Lock()
	defer p.system.mu.Unlock()
	p.system.signals = append(p.system.signals, sig)
	if sig == syscall.SIGKILL || sig == syscall.SIGTERM && !p.system.stubborn {
		p.die("signal: " + sig.String())
	}
	return nil
}

// inBubble runs a supervisor of fake processes, gives it to body, ends Run, and
// gives it to after.
func inBubble(t *testing.T, f *fakeSystem, processes []Process, body func(*testing.T, *Supervisor), after ...func(*testing.T, *Supervisor)) {
	t.Helper()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		f.began = time.Now()
		for i := range processes {
			processes[i].Path = "/fake/" + processes[i].Name
		}
		s, err := New(dir, slog.New(slog.DiscardHandler), processes)
		if err != nil {
			t.Fatal(err)
		}
		s.system = f
		ctx, cancel := context.WithCancel(t.Context())
		result := make(chan error, 1)
		go func() { result <- s.Run(ctx) }()
		synctest.Wait()
		body(t, s)
		cancel()
		if err := <-result; err != nil {
			t.Errorf("Run: %v", err)
		}
		for _, next := range after {
			next(t, s)
		}
	})
}

// pass lets fake time go by.
func pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

func phases(s *Supervisor) map[string]Phase {
	all := map[string]Phase{}
	for _, st := range s.States() {
		all[st.Name] = st.Phase
	}
	return all
}

func mustNotExist(t *testing.T, path string) {
	t.Helper()
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is left: %v", path, err)
	}
}
