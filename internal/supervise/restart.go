package supervise

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// deathPatience is how long a stop or a restart waits for Died.
const deathPatience = 2 * time.Second

// Restart asks the process of that name to end, as Stop does, calls between while
// nothing of it runs, and lets it start again when that has returned, whatever it
// returned. It blocks until then; a nil between is not called. Died is told in any
// case, before between: the process may have ended before it heard. It fails, and
// does nothing, if that process does not run, is being replaced, or is being
// restarted already. Call it while Run runs.
func (s *Supervisor) Restart(ctx context.Context, name string, between func(context.Context) error) error {
	u := s.unit(name)
	if u == nil {
		return fmt.Errorf("cannot restart component %q: there is none of that name", name)
	}
	c, err := s.hold(u)
	if err != nil {
		return fmt.Errorf("cannot restart component %s: %w", name, err)
	}
	defer s.letGo(u)
	s.log.Info("component is restarted", "component", name, "pid", c.pid)
	if _, err := s.end(ctx, c, u.Name, u.StopTimeout); err != nil {
		c.asked.Store(false) // it may run on, and what ends it then is another matter
		return err
	}
	u.tellDeath(ctx)
	if between == nil {
		return nil
	}
	return between(ctx)
}

// hold keeps the unit from starting once its child has ended, until letGo.
func (s *Supervisor) hold(u *unit) (*child, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case u.held != nil:
		return nil, errors.New("it is being restarted already")
	case u.child == nil || u.child.ended():
		return nil, errors.New("it does not run")
	case u.state.Outdated || u.state.Phase == PhaseStopping:
		return nil, errors.New("it is being replaced or stopped")
	}
	u.held = make(chan struct{})
	u.child.asked.Store(true)
	return u.child, nil
}

func (s *Supervisor) letGo(u *unit) {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(u.held)
	u.held = nil
}

// awaitHold blocks while Restart holds the unit back. It returns false when ctx is
// done.
func (s *Supervisor) awaitHold(ctx context.Context, u *unit) bool {
	s.mu.Lock()
	held := u.held
	s.mu.Unlock()
	if held == nil {
		return ctx.Err() == nil
	}
	s.update(u, func() { u.state.Phase, u.state.Message = PhaseWaiting, "is restarted" })
	select {
	case <-held:
		return true
	case <-ctx.Done():
		return false
	}
}

// tellDeath tells of a death while the supervisor runs, without waiting; Run waits.
func (s *Supervisor) tellDeath(ctx context.Context, u *unit, at time.Time) {
	if u.Died != nil {
		s.deaths.Go(func() { u.Died(ctx, at) })
	}
}

// tellDeath tells of a death, and waits for it to be heard.
func (u *unit) tellDeath(ctx context.Context) {
	if u.Died == nil {
		return
	}
	limited, cancel := context.WithTimeout(ctx, deathPatience)
	defer cancel()
	u.Died(limited, time.Now())
}
