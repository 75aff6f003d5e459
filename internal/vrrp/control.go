package vrrp

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"kuorum/internal/cluster"
)

var (
	errNotActive = errors.New("this router is not active, or hands over already")
	errNotTaken  = errors.New("nobody took the addresses over")
)

// maxChanges is how many changes a Status remembers.
const maxChanges = 64

// Status is a virtual router at a moment.
type Status struct {
	State    State
	Impaired bool
	Priority uint8 // as advertised: with what being impaired takes from it
	// Active is who holds the addresses as far as is known here, with the
	// priority that it advertises; the zero address: nobody is known.
	Active         netip.Addr
	ActivePriority uint8
	Since          time.Time // of State
	Transitions    int       // of State, since Run
	Reason         string    // of the last change
	Dropped        map[Drop]uint64
	Failures       uint64 // to send, to announce, to give the addresses up
	LastFailure    string
	Changes        []Change // the last 64, the oldest first
}

// command lets the router see an event from outside of Run.
func (r *Runner) command(see func(time.Time) []action) {
	r.event(see)
	select {
	case r.poke <- struct{}{}:
	default:
	}
}

// SetImpaired says whether this machine reaches no API server. An impaired
// router leaves the addresses to a healthy one, at once. Who calls it decides how
// long a failure must last to count.
func (r *Runner) SetImpaired(impaired bool) {
	r.command(func(now time.Time) []action { return r.router.setPriority(now, r.router.base, impaired) })
}

// SetPeers gives the router other peers, and the priority that it has among
// them. The addresses stay where they are.
func (r *Runner) SetPeers(peers []netip.Addr, priority uint8) error {
	r.mu.Lock()
	changed := r.cfg
	r.mu.Unlock()
	changed.Peers, changed.Priority = peers, priority
	if err := changed.Validate(); err != nil {
		return err
	}
	peers = changed.normal().Peers
	r.command(func(now time.Time) []action {
		r.cfg.Peers, r.cfg.Priority = peers, priority
		return r.router.setPriority(now, priority, r.router.impaired)
	})
	return nil
}

// Move hands the addresses over to a peer, and returns when that one is active,
// or within two intervals when it has not become so; they are never nowhere.
// In multicast all hear that they are on offer, and the peer with the greatest
// priority gets them: an error says who that was if it is another one. With
// Preempt a peer with a lower priority soon loses them again. If ctx ends
// earlier, the hand-over goes on.
func (r *Runner) Move(ctx context.Context, to netip.Addr) error {
	type outcome struct {
		by  netip.Addr
		err error
	}
	to = to.WithZone("")
	done := make(chan outcome, 1)
	known := true
	r.command(func(now time.Time) []action {
		if known = slices.Contains(r.cfg.Peers, to) || r.cfg.Multicast && len(r.cfg.Peers) == 0; !known {
			return nil
		}
		return r.router.resign(now, to, func(by netip.Addr, err error) { done <- outcome{by, err} })
	})
	what := fmt.Sprintf("cannot move the addresses to %s", to)
	if !known {
		return &cluster.Problem{What: what, Why: "it is no peer of this router", Exit: cluster.ExitUsage}
	}
	select {
	case <-ctx.Done():
		return &cluster.Problem{What: what, Err: ctx.Err()}
	case o := <-done:
		switch {
		case errors.Is(o.err, errNotActive):
			return &cluster.Problem{What: what, Err: o.err, Do: "ask the active router", Exit: cluster.ExitRefused}
		case o.err != nil:
			return &cluster.Problem{What: what, Err: o.err, Do: "see whether a virtual router runs there, with the same number and addresses"}
		case o.by != to:
			return &cluster.Problem{What: what, Why: fmt.Sprintf("%s took them", o.by)}
		}
		return nil
	}
}

// Status is how the router is now. What it returns is the caller's.
func (r *Runner) Status() Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.status
	s.State, s.Impaired, s.Priority = r.router.state, r.router.impaired, r.router.own()
	s.Active, s.ActivePriority = r.router.leader, r.router.priority
	if s.State == Active {
		s.Active, s.ActivePriority = r.cfg.Source, s.Priority
	}
	s.Dropped, s.Changes = maps.Clone(s.Dropped), slices.Clone(s.Changes)
	return s
}
