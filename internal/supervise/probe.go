package supervise

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

const (
	probeTimeout = 2 * time.Second
	firstPoll    = 50 * time.Millisecond
	maxPoll      = 100 * time.Millisecond
)

// Probe asks every process now, all at once, whether it is ready, and returns
// what is true now, in declared order. It blocks for 2 s at most if the probes
// heed their context. It changes nothing that States returns.
func (s *Supervisor) Probe(ctx context.Context) []State {
	states := s.States()
	var group sync.WaitGroup
	for i, u := range s.units {
		c, _ := s.running(u)
		if c == nil || c.ended() || states[i].Phase == PhaseStopping {
			continue
		}
		group.Go(func() { states[i] = u.probed(ctx, states[i]) })
	}
	group.Wait()
	return states
}

// probed corrects a state by the outcome of a probe.
func (u *unit) probed(ctx context.Context, st State) State {
	err := u.probe(ctx)
	phase := PhaseReady
	switch {
	case err != nil:
		phase, st.Message = PhaseStarting, err.Error()
	case st.Phase != PhaseWaiting:
		st.Message = ""
	}
	if st.Phase != phase {
		st.Phase, st.Since = phase, time.Now()
	}
	return st
}

// probe runs the unit's probe once.
func (u *unit) probe(ctx context.Context) error {
	if u.Ready == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	err := u.Ready(ctx)
	if err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return fmt.Errorf("no answer within %s: %w", probeTimeout, err)
	}
	return err
}

// pollReady probes a running unit, often at first, until it is ready once or
// ctx is done.
func (s *Supervisor) pollReady(ctx context.Context, u *unit) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for interval := firstPoll; ; interval = min(interval*3/2, maxPoll) {
		err := u.probe(ctx)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			s.markReady(u)
			return
		}
		s.update(u, func() { u.state.Phase, u.state.Message = PhaseStarting, err.Error() })
		timer.Reset(interval)
		select {
		case <-timer.C:
		case <-ctx.Done():
			return
		}
	}
}

func (s *Supervisor) markReady(u *unit) {
	s.update(u, func() { u.state.Phase, u.state.Message = PhaseReady, "" })
	s.log.Info("component is ready", "component", u.Name)
	if !u.hasBeenReady() {
		close(u.wasReady)
	}
}
