// Package handover keeps connections alive while an address moves in order from one
// machine to another. The former holder keeps the address, on its loopback and
// without telling anybody, for the connections that it has. The new holder, the
// heir, gets all packets, and passes on those that belong to no connection of its
// own. Both forget it after a while (Window): what has not ended by then is closed.
//
// Connections that begin at the heir itself, or in its pods, do not survive.
package handover

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"kuorum/internal/host"
)

const (
	// Window is how long a former holder serves the connections that it has.
	Window = time.Minute
	// grace is how much longer an heir passes packets on: the former holder closes
	// what is left, and the answers to that are its own.
	grace = 5 * time.Second
	// settling is how soon after a move who is connected with whom is believed.
	settling = 3 * time.Second
	// wait is how long an heir is prepared for an address that does not come.
	wait = 5 * time.Second
	// interval is between two looks of Tick.
	interval = 500 * time.Millisecond
	// loadLimit bounds one run of nft.
	loadLimit = 2 * time.Second
	loopback  = "lo"
)

// Place is where the address is on this machine.
type Place struct {
	Link  string         // to the neighbours
	Own   netip.Addr     // the machine's own address there
	Front netip.AddrPort // the address that moves, and the port of its connections
}

// Holder puts the address on this machine, as vrrp.Holder does.
type Holder interface {
	Take() error
	GiveUp() error
	Announce() error
}

// Side is what one machine does, as the former holder or as the heir; it may be both,
// for different moves. It is itself a Holder. Its methods may be called from several
// goroutines; Close is the last one.
type Side struct {
	Holder
	place Place
	log   *slog.Logger
	// Of the kernel, but in tests.
	load      func(ctx context.Context, rules string) error
	neighbour func(link string, address netip.Addr) (net.HardwareAddr, error)
	lo        func(do func(string, netip.Addr) error) error

	// The router of the address must not wait for nft while it holds that: these two
	// are for the heir's rules and for the former holder's, and are taken before mu.
	rules, silence sync.Mutex

	mu      sync.Mutex
	holds   bool       // the address, for everybody
	offered bool       // it is being handed over: who gives it up stays
	stays   bool       // for the connections that it has
	stale   bool       // what kept connections alive here is still to be removed
	from    netip.Addr // for whom it passes packets on; or not valid
	asked   time.Time  // when that began
	came    time.Time  // when the address came from there; zero: it has not
	next    time.Time  // when Tick looks again
	closed  bool
}

// New takes over from an earlier process of this machine: it removes what that one
// left, by the first Tick. holder has the address taken and given up for everybody.
func New(place Place, holder Holder, log *slog.Logger) *Side {
	s := &Side{
		Holder: holder, place: place, log: log, load: load, neighbour: host.Neighbour, stale: true,
		lo: func(do func(string, netip.Addr) error) error { return do(loopback, place.Front.Addr()) },
	}
	if err := s.tell(without("netdev")); err != nil {
		log.Warn("connections with the virtual IP will not survive its moves", "reason", err)
	}
	return s
}

// tell loads rules within loadLimit. Nobody may interrupt it: it is short.
func (s *Side) tell(rules string) error {
	ctx, cancel := context.WithTimeout(context.Background(), loadLimit)
	defer cancel()
	return s.load(ctx, rules)
}

// Expect prepares this machine to be the heir of a neighbour: packets of connections
// that neither began here nor are among own go to that one, as soon as the address
// comes from there, and for Window. It blocks for a moment. When it fails the
// address may come all the same, and the connections end.
func (s *Side) Expect(now time.Time, from netip.Addr, own []netip.AddrPort) error {
	s.rules.Lock()
	defer s.rules.Unlock()
	if err := s.mayExpect(from); err != nil {
		return err
	}
	mac, err := s.neighbour(s.place.Link, from)
	if err != nil {
		return fmt.Errorf("cannot pass packets on to %s: %w", from, err)
	}
	own = slices.Clone(own)
	slices.SortFunc(own, netip.AddrPort.Compare)
	if err := s.tell(without("netdev") + heirRules(s.place, from, mac, slices.Compact(own))); err != nil {
		// Nft may have been stopped when the kernel had the rules already.
		return errors.Join(fmt.Errorf("cannot pass packets on to %s: %w", from, err), s.tell(without("netdev")))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.from, s.asked, s.came = from, now, time.Time{}
	return nil
}

func (s *Side) mayExpect(from netip.Addr) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return errors.New("this machine does not take part any more")
	case s.holds:
		return errors.New("the address is here already")
	case s.from.IsValid() && s.from != from:
		return fmt.Errorf("packets are still passed on to %s, from an earlier move", s.from)
	}
	return nil
}

// For is the former holder to whom this machine passes packets on, or is about to;
// not valid: it does not.
func (s *Side) For() netip.Addr {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.from
}

// Came says that the address has come, given up by that machine; not valid: nobody
// has given it up. From any other than the one that was expected nothing is passed
// on: that one may be dead, and its clients wait for an answer. It does not block.
func (s *Side) Came(now time.Time, by netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.next = time.Time{}
	if s.from.IsValid() && by == s.from {
		s.came = now
		return
	}
	s.asked, s.came = time.Time{}, time.Time{} // long ago
}

// Offer says that the address is about to be handed over to an heir that expects it:
// when it is given up, the connections here stay. Without an heir Withdraw ends that.
func (s *Side) Offer() { s.setOffered(true) }

// Withdraw is the end of an Offer that nobody has taken.
func (s *Side) Withdraw() { s.setOffered(false) }

func (s *Side) setOffered(offered bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.offered = offered
}

// Stays tells whether this machine has given the address up and serves the
// connections that it has with it.
func (s *Side) Stays() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stays
}

// Take implements Holder. A machine that has its address back has ordinary
// connections again.
func (s *Side) Take() error {
	if err := s.Holder.Take(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.holds = true
	s.leave()
	return nil
}

// GiveUp implements Holder. After an Offer the connections stay: the address is on
// the loopback before it leaves the link.
func (s *Side) GiveUp() error {
	if s.offers() {
		s.stay()
	}
	return s.Holder.GiveUp()
}

// offers tells whether connections are to stay as the address is given up.
func (s *Side) offers() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	offers := s.holds && s.offered && !s.closed
	s.holds, s.offered = false, false
	return offers
}

func (s *Side) stay() {
	s.silence.Lock()
	defer s.silence.Unlock()
	err := s.lo(host.AddAddress)
	if err == nil && s.place.Front.Addr().Is4() {
		err = s.tell(without("arp") + silence(s.place))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stays, s.stale = true, false
	if err != nil {
		s.log.Warn("connections with the virtual IP do not survive its move", "reason", err)
		s.leave()
	}
}

// Leave ends that connections stay here; they have ended, or end now.
func (s *Side) Leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leave()
}

// leave needs the mutex. What is to be removed is left to Tick: the router of the
// address does not wait for it.
func (s *Side) leave() {
	if s.stays {
		s.stays, s.stale, s.next = false, true, time.Time{}
	}
}

// Tick ends what time ends, and what has failed to end; it is to be called often, and
// blocks for a moment. It reports that packets are not passed on any more from now
// on: clients of the former holder that have heard nothing are to be told. done says
// that all former holders are known to have no clients any more.
func (s *Side) Tick(now time.Time, done bool) (over bool) {
	if !s.due(now) {
		return false
	}
	s.tidy()
	return s.endPassing(now, done)
}

// due is every interval, or when something has happened.
func (s *Side) due(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now.Before(s.next) || s.closed {
		return false
	}
	s.next = now.Add(interval)
	return true
}

// tidy removes what kept connections alive here, if that is still there.
func (s *Side) tidy() {
	s.silence.Lock()
	defer s.silence.Unlock()
	if !s.isStale() {
		return
	}
	if err := s.unstay(); err != nil {
		s.log.Warn("cannot remove what kept connections with the virtual IP alive, will try again", "error", err)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stale = false
}

func (s *Side) isStale() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stale
}

// unstay removes the address first: who connects from this machine meanwhile would
// have a connection with an address that goes.
func (s *Side) unstay() error { return errors.Join(s.lo(host.RemoveAddress), s.tell(without("arp"))) }

func (s *Side) endPassing(now time.Time, done bool) bool {
	s.rules.Lock()
	defer s.rules.Unlock()
	from, end := s.passing(done)
	if !from.IsValid() {
		return false
	}
	if _, err := s.neighbour(s.place.Link, from); err == nil && now.Before(end) {
		return false
	}
	if err := s.tell(without("netdev")); err != nil {
		s.log.Warn("packets with the virtual IP are still passed on, will try again", "error", err)
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.from = netip.Addr{}
	return true
}

// passing is to whom packets are passed on, and until when.
func (s *Side) passing(done bool) (from netip.Addr, end time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.came.IsZero():
		return s.from, s.asked.Add(wait)
	case done:
		return s.from, s.came.Add(settling)
	default:
		return s.from, s.came.Add(Window + grace)
	}
}

// Close leaves nothing behind.
func (s *Side) Close() error {
	s.rules.Lock()
	defer s.rules.Unlock()
	s.silence.Lock()
	defer s.silence.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed, s.stays, s.from = true, false, netip.Addr{}
	return errors.Join(s.tell(without("netdev")), s.unstay())
}
