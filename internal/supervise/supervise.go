// Package supervise keeps a set of processes running on this machine: it
// starts them in order of dependency, waits until they are ready, starts what
// ends again with growing pauses, and stops them in reverse. It knows nothing
// of Kubernetes.
//
// The processes outlive the supervisor. Run returns without stopping them; a
// supervisor that was killed is followed by another one that adopts what runs.
// Three things make that safe:
//
//   - agent.lock admits one supervisor a directory. The lock passes on only
//     after each child of the former holder has become its own program, see
//     host.LockExclusive.
//   - Before a start a record is written with a random launch number, which the
//     process gets as KUORUM_LAUNCH in its environment; after the start the
//     record is completed with PID and start time. A supervisor that finds an
//     incomplete record looks for the session leader with that launch number,
//     so a kill between start and record cannot lead to two copies.
//   - A process is known by boot, PID and start time and held by a pidfd, so
//     that a number given to another process is never adopted or signalled.
//
// Only the process itself is signalled, never its group or its descendants:
// containers live on when their runtime is restarted.
package supervise

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"
)

// Process is one program to keep running.
type Process struct {
	// Name is unique and part of a file name: lower-case letters, digits,
	// dots and dashes.
	Name string
	Path string   // absolute path of the program
	Args []string // without argv[0]
	// Env is the whole environment, but for KUORUM_LAUNCH, which is added.
	Env []string
	Dir string // working directory; "" means the supervisor's
	// TimerSlack is how late its timers may fire; 0 means as the supervisor's.
	TimerSlack time.Duration
	// After names processes that must have been ready once, in the life of
	// this supervisor, before this one starts.
	After []string
	// With names those of After that it cannot work without for a moment: when
	// one of them is replaced, this one ends before it and starts after it,
	// so that its clients are sent elsewhere in peace.
	With []string
	// May is asked before each start, until it is nil: its error is why the process
	// must not start yet. It must end soon after its context. One that runs already is
	// left alone. A nil May means that it always may.
	May func(context.Context) error
	// Ready is a live probe: nil when the process does its work now, else
	// why not. It must return soon after its context is done; it gets 2 s and
	// may run several times at once. A nil Ready means: ready while it runs.
	Ready func(context.Context) error
	// Died is told that a process of the unit is dead, and when that was seen: one
	// that ended by itself, had to be killed, or was restarted. A Run that finds
	// none running as it starts tells so too, whether there was one before or not.
	// It is called once for each of them, with a time before the start of the next,
	// in a goroutine of its own unless somebody waits for it (Stop, Restart), and must
	// return soon after its context is done. One that Stop asked to end, and that did,
	// is not told of. May be nil.
	Died func(ctx context.Context, at time.Time)
	// Log is the file that gets stdout and stderr; Run rotates it. Empty
	// means that they are thrown away.
	Log string
	// Digest stands for program and configuration. One that runs already is
	// adopted if its digest is equal, otherwise replaced when its turn comes.
	Digest string
	// Reload is how it reads files again that Digest does not stand for.
	Reload Reloading
	// StopTimeout is the time between SIGTERM and SIGKILL; 0 means 10 s.
	StopTimeout time.Duration
}

// Phase is the stage of a process's life.
type Phase string

// The phases.
const (
	PhaseWaiting  Phase = "waiting"  // for others to be ready, or for Run
	PhaseStarting Phase = "starting" // runs, and its probe does not pass
	PhaseReady    Phase = "ready"
	PhaseBackoff  Phase = "backoff" // ended, or could not start; will be started again
	PhaseStopping Phase = "stopping"
	PhaseStopped  Phase = "stopped"
)

// State is what is known of one process. It is a copy, owned by the caller.
type State struct {
	Name     string    `json:"name"`
	Phase    Phase     `json:"phase"`
	PID      int       `json:"pid,omitempty"` // 0 when it does not run
	Since    time.Time `json:"since"`         // start of the phase
	Restarts int       `json:"restarts"`      // by this supervisor
	Adopted  bool      `json:"adopted,omitempty"`
	// Outdated: what runs is what was, or goes with that, and is replaced when its
	// turn comes.
	Outdated bool   `json:"outdated,omitempty"`
	LastExit string `json:"lastExit,omitempty"`
	Message  string `json:"message,omitempty"` // why it is not ready
}

// Supervisor keeps the processes it was made with. Its methods may be called
// from several goroutines; Run and Stop exclude each other.
type Supervisor struct {
	dir    string
	log    *slog.Logger
	system system
	units  []*unit // in declared order
	boot   string  // set while the lock is held
	deaths sync.WaitGroup

	mu      sync.Mutex    // guards the fields of units that say so, and changed
	changed chan struct{} // closed and replaced at every change of a state
}

// unit is a process with its place in the order and what is known of it.
type unit struct {
	Process
	needs    []*unit       // what After names
	neededBy []*unit       // the reverse
	carries  []*unit       // whose With names it
	wasReady chan struct{} // closed when it was ready for the first time

	// Guarded by Supervisor.mu.
	state  State
	child  *child // nil when nothing runs
	loaded string // Reload.Digest of what the child has read

	fresh chan struct{} // one waits there when Reload.Digest has changed
	held  chan struct{} // not nil while Restart keeps it from starting; closed then

	recording sync.Mutex // of the record on disk: a start and a reload both read and write it
}

// New makes a supervisor of processes that keeps its records in dir, which
// must be lost at reboot or at least not be shared between machines. It
// touches nothing yet, and fails if a process is incomplete, a name is taken
// twice, or After names an unknown process or forms a circle.
func New(dir string, log *slog.Logger, processes []Process) (*Supervisor, error) {
	units, err := order(processes)
	if err != nil {
		return nil, err
	}
	s := &Supervisor{dir: dir, log: log, system: linux{}, units: units, changed: make(chan struct{})}
	for _, u := range units {
		u.state, u.fresh = State{Name: u.Name, Phase: PhaseWaiting, Since: time.Now()}, make(chan struct{}, 1)
	}
	return s, nil
}

// Run adopts or starts every process and keeps it running. It blocks until ctx
// is done and then returns nil, leaving the processes alone. It fails when
// another supervisor uses the directory, or when it cannot tell what runs.
func (s *Supervisor) Run(ctx context.Context) error {
	release, err := s.open(ctx)
	if ctx.Err() != nil && err != nil {
		return nil // Told to leave before it knew everything; the records are as they were.
	}
	if err != nil {
		return err
	}
	var group sync.WaitGroup
	for _, u := range s.units {
		group.Go(func() { s.keep(ctx, u) })
		if u.Reload.Signal != 0 {
			group.Go(func() { s.keepLoaded(ctx, u) })
		}
	}
	group.Go(func() { s.rotateLogs(ctx) })
	group.Wait()
	s.deaths.Wait()
	return release()
}

// States returns what is known of every process, in declared order. It asks
// nobody: a process that was ready once counts as ready while it runs. Probe
// tells what is true now.
func (s *Supervisor) States() []State {
	s.mu.Lock()
	defer s.mu.Unlock()
	states := make([]State, 0, len(s.units))
	for _, u := range s.units {
		states = append(states, u.state)
	}
	return states
}

// Wait blocks until all named processes, or all if there are no names, are
// ready at the same time. When ctx ends first, the error says who is not ready
// and why.
func (s *Supervisor) Wait(ctx context.Context, names ...string) error {
	for _, name := range names {
		if s.unit(name) == nil {
			return fmt.Errorf("cannot wait for component %q: there is none of that name", name)
		}
	}
	for {
		changed := s.watch()
		missing := notReady(s.States(), names)
		if len(missing) == 0 {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("cannot wait for components: %s: %w", strings.Join(missing, "; "), context.Cause(ctx))
		}
	}
}

func notReady(states []State, names []string) []string {
	var missing []string
	for _, st := range states {
		if st.Phase == PhaseReady || (len(names) > 0 && !slices.Contains(names, st.Name)) {
			continue
		}
		text := st.Name + " is " + string(st.Phase)
		if st.Message != "" {
			text += " (" + st.Message + ")"
		}
		missing = append(missing, text)
	}
	return missing
}

// watch returns a channel that is closed at the next change of any state.
func (s *Supervisor) watch() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

// update changes a unit under the lock and tells those who wait.
func (s *Supervisor) update(u *unit, change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := u.state
	change()
	if u.state == before {
		return
	}
	if u.state.Phase != before.Phase {
		u.state.Since = time.Now()
	}
	close(s.changed)
	s.changed = make(chan struct{})
}

// unit returns the unit of that name, nil if there is none.
func (s *Supervisor) unit(name string) *unit {
	i := slices.IndexFunc(s.units, func(u *unit) bool { return u.Name == name })
	if i < 0 {
		return nil
	}
	return s.units[i]
}

// running returns the unit's child, nil if there is none, and whether it is outdated.
func (s *Supervisor) running(u *unit) (c *child, outdated bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return u.child, u.state.Outdated
}
