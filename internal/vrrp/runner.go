// Package vrrp keeps addresses of a cluster on one of its machines: a virtual
// router of VRRPv3 (RFC 9568) for IPv4 and IPv6, which understands keepalived's.
// One router is active, holds the addresses and advertises that; the others are
// backups, and the one with the greatest priority takes over when they hear
// nothing any more. A router whose machine reaches no API server is impaired:
// it leaves the addresses to any healthy one, and holds them when there is none.
//
// Nothing fences a router that does not know that it is not active any more:
// while a network is parted, each part has an active router.
package vrrp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// Wire carries packets of IP protocol 112. Open makes the real one.
type Wire interface {
	io.Closer
	// Send sends to one address, with the router's own as its source. It does
	// not wait for the network. An error is this machine's, and may pass.
	Send(data []byte, to netip.Addr) error
	// Receive blocks until there is a packet, or until Close.
	Receive() (Packet, error)
}

// Holder puts the addresses on this machine. Each method may be called again.
type Holder interface {
	Take() error
	GiveUp() error
	// Announce tells the neighbours that the addresses are here.
	Announce() error
}

// Runner is a virtual router on this machine.
type Runner struct {
	wire    Wire
	holder  Holder
	observe func(Change)
	poke    chan struct{} // the timer may be another now
	broken  chan error    // why the wire is of no use any more

	mu       sync.Mutex // of all that follows
	cfg      Config
	router   *router
	announce []time.Time // when the neighbours will be told again
	retry    time.Time   // when the addresses will be given up again, since it failed; or zero
	renew    time.Time   // when they will be taken again, in case somebody has removed them; or zero
	status   Status
}

// New makes a virtual router that takes no part before Run. observe, which may
// be nil, gets each change as it happens; it must return soon and not call the
// Runner.
func New(cfg Config, wire Wire, holder Holder, observe func(Change)) (*Runner, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg = cfg.normal()
	if observe == nil {
		observe = func(Change) {}
	}
	return &Runner{
		wire: wire, holder: holder, observe: observe, cfg: cfg, poke: make(chan struct{}, 1), broken: make(chan error, 1),
		status: Status{Dropped: map[Drop]uint64{}},
		router: &router{
			source: cfg.Source, interval: cfg.Interval, preempt: cfg.Preempt,
			multicast: cfg.Multicast, base: cfg.Priority, state: Initialize,
		},
	}, nil
}

// Run takes part until ctx ends or the wire breaks, once; its caller may then
// open another wire for another Runner. It removes addresses that an earlier run has
// left, and closes the wire at the end. When it returns the addresses are given
// up, or the error says why not.
func (r *Runner) Run(ctx context.Context) error {
	defer r.wire.Close()
	if err := r.holder.GiveUp(); err != nil {
		return fmt.Errorf("cannot start the virtual router: %w", err)
	}
	packets, over := make(chan Packet, 64), make(chan struct{})
	defer close(over)
	go func() { r.breaks(r.receive(packets, over)) }()

	r.event(r.router.start)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		timer.Reset(time.Until(r.next()))
		select {
		case <-ctx.Done():
			return r.end(nil)
		case err := <-r.broken:
			return r.end(fmt.Errorf("the virtual router cannot go on: %w", err))
		case p := <-packets:
			r.hear(p)
		case <-r.poke:
		case <-timer.C:
			r.tick(packets)
		}
	}
}

// receive hands packets to the loop until the wire fails or is closed.
func (r *Runner) receive(packets chan<- Packet, over <-chan struct{}) error {
	for {
		p, err := r.wire.Receive()
		if err != nil {
			return fmt.Errorf("cannot receive on %s: %w", r.cfg.Interface, err)
		}
		select {
		case packets <- p:
		case <-over:
			return nil
		}
	}
}

// breaks ends Run, soon.
func (r *Runner) breaks(err error) {
	select {
	case r.broken <- err:
	default: // it ends for another reason already
	}
}

// end gives the addresses up.
func (r *Runner) end(cause error) error {
	r.event(r.router.shutdown)
	return errors.Join(cause, r.holder.GiveUp())
}

// event lets the router see one, and does what it wants.
func (r *Runner) event(see func(time.Time) []action) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.do(see(time.Now()))
}

// next is when something is to be done without a packet.
func (r *Runner) next() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	next := r.router.due
	for _, at := range append([]time.Time{r.retry, r.renew}, r.announce...) {
		if !at.IsZero() && at.Before(next) {
			next = at
		}
	}
	return next
}

// tick does what is due, after what others have sent already has been heard.
func (r *Runner) tick(packets <-chan Packet) {
	for more := true; more; {
		select {
		case p := <-packets:
			r.hear(p)
		default:
			more = false
		}
	}
	r.event(func(now time.Time) []action {
		r.do(r.router.timer(now))
		due := func(at time.Time) bool { return !at.IsZero() && !now.Before(at) }
		if len(r.announce) > 0 && due(r.announce[0]) {
			r.announce = r.announce[1:]
			r.note(r.holder.Announce())
		}
		if due(r.retry) {
			r.giveUp()
		}
		if due(r.renew) {
			if err := r.take(now); err != nil {
				return r.router.failed(now, err)
			}
		}
		return nil
	})
}

func (r *Runner) hear(p Packet) {
	r.event(func(now time.Time) []action {
		ad, drop := r.cfg.admit(p)
		switch drop {
		case "":
			return r.router.hear(now, p.From.WithZone(""), ad)
		case dropOwn:
		default:
			r.status.Dropped[drop]++
		}
		return nil
	})
}

// do does what the router wants. The mutex is held.
func (r *Runner) do(actions []action) {
	var failed error
	for _, a := range actions {
		switch a.do {
		case actSend:
			r.send(a)
		case actTake:
			failed = r.take(time.Now())
		case actGiveUp:
			r.giveUp()
		case actAnnounce:
			if failed == nil {
				r.repeat()
			}
		case actRecord:
			r.record(a.change)
		}
	}
	if failed != nil {
		r.do(r.router.failed(time.Now(), failed))
	}
}

func (r *Runner) send(a action) {
	targets := r.cfg.Peers
	switch {
	case r.cfg.Multicast: // where nobody listens to anything else
		targets = []netip.Addr{r.cfg.group()}
	case a.to.IsValid():
		targets = []netip.Addr{a.to}
	}
	ad := Advertisement{VRID: r.cfg.VRID, Priority: a.priority, Interval: r.cfg.Interval, Addresses: r.cfg.Addresses}
	for _, to := range targets {
		data, err := ad.Marshal(r.cfg.Source, to)
		if err == nil {
			err = r.wire.Send(data, to)
		}
		r.note(err)
		if errors.Is(err, errLinkGone) {
			r.breaks(err)
		}
	}
}

// repeat tells the neighbours at once and three times again, since nobody
// confirms it.
func (r *Runner) repeat() {
	now := time.Now()
	r.announce = nil
	for _, after := range []time.Duration{50 * time.Millisecond, 200 * time.Millisecond, time.Second} {
		r.announce = append(r.announce, now.Add(after))
	}
	r.note(r.holder.Announce())
}

// take is done again each second: what sets the interface up (a DHCP client, an
// administrator) may remove addresses that it does not know.
func (r *Runner) take(now time.Time) error {
	r.retry, r.renew = time.Time{}, now.Add(time.Second)
	return r.holder.Take()
}

// giveUp is tried again until it works: addresses at two places are worse than
// at none.
func (r *Runner) giveUp() {
	r.announce, r.retry, r.renew = nil, time.Time{}, time.Time{}
	if err := r.holder.GiveUp(); err != nil {
		r.note(err)
		r.retry = time.Now().Add(time.Second)
	}
}

func (r *Runner) note(err error) {
	if err != nil {
		r.status.Failures++
		r.status.LastFailure = err.Error()
	}
}

func (r *Runner) record(c Change) {
	if c.From != c.To {
		r.status.Transitions++
		r.status.Since = c.At
	}
	r.status.Reason = c.Reason
	r.status.Changes = append(r.status.Changes, c)
	if extra := len(r.status.Changes) - maxChanges; extra > 0 {
		r.status.Changes = slices.Delete(r.status.Changes, 0, extra)
	}
	r.observe(c)
}
