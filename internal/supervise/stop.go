package supervise

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"
)

// Stop ends every process, whoever started it, in reverse order: what needs
// another one ends before it, independent ones end at the same time. It blocks
// until they are gone or ctx is done; then the error names those that may
// still run. It must not be called while Run runs, here or in another
// supervisor of the same directory: it fails then. Processes whose names are in
// keep run on.
func (s *Supervisor) Stop(ctx context.Context, keep ...string) error {
	release, err := s.open(ctx)
	if err != nil {
		return fmt.Errorf("cannot stop components: %w", err)
	}
	errs := make([]error, len(s.units)+1)
	over := map[*unit]chan struct{}{}
	for _, u := range s.units {
		over[u] = make(chan struct{})
	}
	var group sync.WaitGroup
	for i, u := range s.units {
		group.Go(func() {
			defer close(over[u])
			for _, next := range u.neededBy {
				<-over[next] // Ends by ctx at the latest, as all do.
			}
			if !slices.Contains(keep, u.Name) {
				errs[i] = s.stop(ctx, u)
			}
		})
	}
	group.Wait()
	errs[len(s.units)] = release()
	return errors.Join(errs...)
}

// SetStopTimeout changes the time that Stop gives a component, for one that
// cannot end well any more. Call it when Run has returned. A name that the
// supervisor does not know is ignored.
func (s *Supervisor) SetStopTimeout(name string, timeout time.Duration) {
	for _, u := range s.units {
		if u.Name == name {
			u.StopTimeout = timeout
		}
	}
}

func (s *Supervisor) stop(ctx context.Context, u *unit) error {
	c, _ := s.running(u)
	if c != nil {
		s.update(u, func() { u.state.Phase, u.state.Message = PhaseStopping, "" })
		killed, err := s.end(ctx, c, u.Name, u.StopTimeout)
		if err != nil {
			return err
		}
		if killed {
			u.tellDeath(ctx)
		}
		s.log.Info("component stopped", "component", u.Name, "exit", c.ExitText())
		s.update(u, func() { u.forget(c) })
	}
	s.update(u, func() { u.state.Phase, u.state.Message = PhaseStopped, "" })
	return s.removeRecord(u.Name)
}

// end asks a process to end, insists after timeout, and waits until it is
// gone; killed tells that it had to insist. When ctx is done first, the process
// may still run.
func (s *Supervisor) end(ctx context.Context, c *child, name string, timeout time.Duration) (killed bool, err error) {
	if err := ctx.Err(); err != nil {
		return false, fmt.Errorf("cannot stop component %s: %w", name, err)
	}
	if err := send(c, syscall.SIGTERM); err != nil {
		return false, fmt.Errorf("cannot stop component %s: %w", name, err)
	}
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case <-c.Exited():
		return false, nil
	case <-ctx.Done():
		return false, fmt.Errorf("cannot stop component %s: process %d still runs: %w", name, c.pid, ctx.Err())
	case <-timer.C:
	}
	s.log.Warn("component does not heed sigterm, killing it", "component", name, "pid", c.pid, "after", timeout)
	if err := send(c, syscall.SIGKILL); err != nil {
		return false, fmt.Errorf("cannot kill component %s: %w", name, err)
	}
	select {
	case <-c.Exited():
		return true, nil
	case <-ctx.Done():
		return true, fmt.Errorf("cannot stop component %s: process %d still runs: %w", name, c.pid, ctx.Err())
	}
}

// send signals a process; that it has ended already is no error.
func send(c *child, sig syscall.Signal) error {
	if err := c.Signal(sig); !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return nil
}
