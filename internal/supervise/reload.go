package supervise

import (
	"context"
	"fmt"
	"syscall"
	"time"
)

// reloadEvery is at least from one reload of a process to the next: an old worker of
// HAProxy goes on for the connections that it has, beside the new one.
const reloadEvery = 5 * time.Second

// Reloading is how a process reads some of its files again while it runs. The zero value
// is for one that does not.
type Reloading struct {
	// Signal tells it to. It must not end one that has been ready, or has run for 5 s: what it
	// has to read may be what it needs to become ready.
	Signal syscall.Signal
	// Digest stands for these files as they are now. What has read them otherwise, and
	// runs already, is told as soon as it can be.
	Digest string
}

// Reload says that the files of that name's process which it reads again have changed:
// digest stands for them from now on. They must be in place, and good. The
// process is told once it can be, soon but not at once, and one that starts reads
// them anyway; Reload does not wait. The error is that there is no such process, or
// that it does not read files again.
func (s *Supervisor) Reload(name, digest string) error {
	u := s.unit(name)
	if u == nil {
		return fmt.Errorf("cannot reload component %q: there is none of that name", name)
	}
	if u.Reload.Signal == 0 {
		return fmt.Errorf("cannot reload component %s: it reads its files when it starts only", name)
	}
	s.mu.Lock()
	u.Reload.Digest = digest
	s.mu.Unlock()
	select {
	case u.fresh <- struct{}{}:
	default: // one waits there
	}
	return nil
}

// keepLoaded tells the process of a unit to read its files again whenever it has not.
func (s *Supervisor) keepLoaded(ctx context.Context, u *unit) {
	for ctx.Err() == nil {
		changed := s.watch()
		c, digest := s.unloaded(u)
		if c == nil {
			select {
			case <-changed:
			case <-u.fresh:
			case <-time.After(reloadEvery): // one that is not ready is old enough
			case <-ctx.Done():
			}
			continue
		}
		if err := s.reload(u, c, digest); err != nil {
			s.log.Error("component cannot be told to read its files again", "component", u.Name, "error", err)
		}
		select {
		case <-time.After(reloadEvery):
		case <-ctx.Done():
		}
	}
}

// wanted stands for the files that the unit's process reads if it starts now.
func (s *Supervisor) wanted(u *unit) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return u.Reload.Digest
}

// unloaded is the process of a unit that can be told and has not read what digest stands for.
func (s *Supervisor) unloaded(u *unit) (c *child, digest string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	grown := u.state.Phase == PhaseStarting && time.Since(u.state.Since) >= reloadEvery
	if u.state.Phase != PhaseReady && !grown || u.child == nil || u.loaded == u.Reload.Digest {
		return nil, ""
	}
	return u.child, u.Reload.Digest
}

// reload signals first: a supervisor that is killed before it has written that down
// has the next one signal again, which does no harm.
func (s *Supervisor) reload(u *unit, c *child, digest string) error {
	s.log.Info("component reads its files again", "component", u.Name, "pid", c.pid)
	if err := send(c, u.Reload.Signal); err != nil {
		return err
	}
	s.mu.Lock()
	if u.child == c {
		u.loaded = digest
	}
	s.mu.Unlock()
	u.recording.Lock()
	defer u.recording.Unlock()
	r, err := s.readRecord(u.Name)
	if err != nil || r.PID != c.pid || r.StartTime != c.startTime {
		return err // another one runs by now
	}
	r.Loaded = digest
	return s.writeRecord(r)
}
