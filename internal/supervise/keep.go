package supervise

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"kuorum/internal/host"
)

const (
	// steadyAfter is how long a process must stay up for its earlier failures
	// to be forgotten.
	steadyAfter  = 30 * time.Second
	firstBackoff = 250 * time.Millisecond
	maxBackoff   = 10 * time.Second
)

// Backoff is the pause before the next start after so many failures in a row:
// none after the first, so that a process that was killed is back at once,
// then 250 ms, doubling up to 10 s.
func Backoff(failures int) time.Duration {
	pause := firstBackoff
	if failures < 2 {
		return 0
	}
	for range failures - 2 {
		if pause *= 2; pause >= maxBackoff {
			return maxBackoff
		}
	}
	return pause
}

// keep is the life of one unit: it returns only when ctx is done.
func (s *Supervisor) keep(ctx context.Context, u *unit) {
	if c, _ := s.running(u); c == nil {
		s.tellDeath(ctx, u, time.Now()) // of whatever ran before: it was not found
	}
	failures := 0
	for {
		if !s.awaitHold(ctx, u) || !s.ensure(ctx, u) {
			return
		}
		began := time.Now()
		c, _ := s.running(u)
		if c != nil && !s.attend(ctx, u, c) {
			return
		}
		if c != nil && c.asked.Load() {
			continue
		}
		if time.Since(began) >= steadyAfter {
			failures = 0
		}
		failures++
		if !s.pause(ctx, u, Backoff(failures)) {
			return
		}
	}
}

// ensure sees to it that the unit's present version runs, after those it
// needs. A start that failed is not an error: nothing runs then, and Message
// says why. It returns false when ctx is done.
func (s *Supervisor) ensure(ctx context.Context, u *unit) bool {
	old, outdated := s.running(u)
	if old != nil && !outdated {
		return true
	}
	if !s.awaitNeeds(ctx, u) || !s.awaitMay(ctx, u) {
		return false
	}
	// It may have ended before something that it goes with.
	if old, _ = s.running(u); old != nil && !s.replace(ctx, u, old) {
		return ctx.Err() == nil
	}
	s.start(u)
	return true
}

// outdate marks what goes with an outdated unit as outdated as well.
func (s *Supervisor) outdate(u *unit) {
	for _, rider := range u.carries {
		s.update(rider, func() { rider.state.Outdated = rider.child != nil })
		s.outdate(rider)
	}
}

// awaitNeeds blocks until all that the unit needs was ready once. It returns
// false when ctx is done.
func (s *Supervisor) awaitNeeds(ctx context.Context, u *unit) bool {
	for ctx.Err() == nil {
		i := slices.IndexFunc(u.needs, func(need *unit) bool { return !need.hasBeenReady() })
		if i < 0 {
			return true
		}
		s.update(u, func() {
			u.state.Phase = PhaseWaiting
			u.state.Message = "waits for " + strings.Join(u.unreadyNeeds(), ", ")
		})
		select {
		case <-u.needs[i].wasReady:
		case <-ctx.Done():
		}
	}
	return false
}

// awaitMay blocks until the unit may start. It returns false when ctx is done.
func (s *Supervisor) awaitMay(ctx context.Context, u *unit) bool {
	if u.May == nil {
		return true
	}
	tick := time.NewTicker(firstBackoff)
	defer tick.Stop()
	for ctx.Err() == nil {
		err := u.May(ctx)
		if err == nil {
			return true
		}
		s.update(u, func() { u.state.Phase, u.state.Message = PhaseWaiting, err.Error() })
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
	return false
}

func (u *unit) hasBeenReady() bool {
	select {
	case <-u.wasReady:
		return true
	default:
		return false
	}
}

func (u *unit) unreadyNeeds() []string {
	var names []string
	for _, need := range u.needs {
		if !need.hasBeenReady() {
			names = append(names, need.Name)
		}
	}
	return names
}

// replace ends the outdated process of a unit. It returns false if that
// process may still run.
func (s *Supervisor) replace(ctx context.Context, u *unit, old *child) bool {
	s.log.Info("component is outdated, replacing it", "component", u.Name, "pid", old.pid)
	s.update(u, func() { u.state.Phase, u.state.Message = PhaseStopping, "is replaced by a new version" })
	for _, rider := range u.carries { // they wait for u to be ready
		if c, _ := s.running(rider); c != nil && !s.replace(ctx, rider, c) {
			return false
		}
	}
	killed, err := s.end(ctx, old, u.Name, u.StopTimeout)
	if err != nil {
		if ctx.Err() == nil {
			s.log.Error("component cannot be replaced", "component", u.Name, "error", err)
		}
		return false
	}
	if killed {
		s.tellDeath(ctx, u, time.Now())
	}
	s.update(u, func() { u.forget(old) })
	return true
}

// forget notes the end of a child; it is called under the lock.
func (u *unit) forget(c *child) {
	u.child, u.state.Outdated = nil, false
	u.state.PID, u.state.Adopted, u.state.LastExit = 0, false, c.ExitText()
}

// start starts the unit's program between the two writes of its record, see
// the package comment. It does not heed any context: once the program runs,
// the record must follow.
func (s *Supervisor) start(u *unit) {
	u.recording.Lock()
	defer u.recording.Unlock()
	r := s.newRecord(u)
	c, err := s.launch(u, r)
	if err != nil {
		s.log.Error("component cannot be started", "component", u.Name, "error", err)
		s.update(u, func() { u.state.Phase, u.state.Message = PhaseBackoff, err.Error() })
		return
	}
	s.log.Info("component started", "component", u.Name, "pid", c.pid)
	s.update(u, func() {
		u.child, u.loaded = c, r.Loaded
		u.state.Phase, u.state.PID, u.state.Message = PhaseStarting, c.pid, ""
	})
}

func (s *Supervisor) launch(u *unit, r record) (*child, error) {
	if err := s.writeRecord(r); err != nil {
		return nil, err
	}
	c, err := s.system.start(host.Command{
		Path: u.Path, Args: u.Args, Env: append(slices.Clone(u.Env), r.variable()), Dir: u.Dir, Log: u.Log,
		TimerSlack: u.TimerSlack,
	})
	if err != nil {
		if removeErr := s.removeRecord(u.Name); removeErr != nil {
			s.log.Warn("component record cannot be removed", "component", u.Name, "error", removeErr)
		}
		return nil, err
	}
	r.PID, r.StartTime = c.pid, c.startTime
	if err := s.writeRecord(r); err != nil {
		// The launch number is on disk: the process can still be found.
		s.log.Warn("component record is incomplete", "component", u.Name, "error", err)
	}
	return c, nil
}

// attend waits for the end of a running child, and meanwhile for it to be
// ready. It returns false when ctx is done first.
func (s *Supervisor) attend(ctx context.Context, u *unit, c *child) bool {
	live, cancel := context.WithCancel(ctx)
	defer cancel()
	polled := make(chan struct{})
	go func() {
		defer close(polled)
		s.pollReady(live, u)
	}()
	select {
	case <-c.Exited():
	case <-ctx.Done():
	}
	at := time.Now()
	cancel()
	<-polled
	if !c.ended() {
		return false
	}
	if !c.asked.Load() {
		s.tellDeath(ctx, u, at)
	}
	s.log.Warn("component ended", "component", u.Name, "pid", c.pid, "exit", c.ExitText())
	s.update(u, func() {
		u.forget(c)
		u.state.Phase, u.state.Message = PhaseBackoff, c.ExitText()
	})
	return ctx.Err() == nil
}

// pause holds a unit back before its next start. It returns false when ctx is done.
func (s *Supervisor) pause(ctx context.Context, u *unit, d time.Duration) bool {
	s.update(u, func() {
		u.state.Restarts++
		if d > 0 {
			u.state.Message = fmt.Sprintf("%s; starts again after %s", u.state.Message, d)
		}
	})
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
