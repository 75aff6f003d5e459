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

	mu      sync.Mutex
	holds   bool       // the address, for everybody
	offered bool       // it is being handed over: who gives it up stays
	stays   bool       // for the connections that it has
	from    netip.Addr // for whom it passes packets on; or not valid
	asked   time.Time  // when that began
	came    time.Time  // when the address came; zero: it has not
}

// New takes over from an earlier process of this machine: it removes what that one
// left. holder has the address taken and given up for everybody.
func New(place Place, holder Holder, log *slog.Logger) (*Side, error) {
	s := &Side{
		Holder: holder, place: place, log: log, load: load, neighbour: host.Neighbour,
		lo: func(do func(string, netip.Addr) error) error { return do(loopback, place.Front.Addr()) },
	}
	return s, s.clean()
}

// clean leaves nothing of a handover behind.
func (s *Side) clean() error {
	return errors.Join(s.tell(without("netdev")+without("arp")), s.lo(host.RemoveAddress))
}

// tell loads rules within loadLimit. Nobody may interrupt it: it is short.
func (s *Side) tell(rules string) error {
	ctx, cancel := context.WithTimeout(context.Background(), loadLimit)
	defer cancel()
	return s.load(ctx, rules)
}

// Expect prepares this machine to be the heir of a neighbour: packets of connections
// that neither began here nor are among own go to that one, as soon as the address
// comes, and for Window. It blocks for a moment. When it fails the address may come
// all the same, and the connections end.
func (s *Side) Expect(now time.Time, from netip.Addr, own []netip.AddrPort) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.holds {
		return errors.New("the address is here already")
	}
	mac, err := s.neighbour(s.place.Link, from)
	if err != nil {
		return fmt.Errorf("cannot pass packets on to %s: %w", from, err)
	}
	own = slices.Clone(own)
	slices.SortFunc(own, netip.AddrPort.Compare)
	if err := s.tell(without("netdev") + heirRules(s.place, from, mac, slices.Compact(own))); err != nil {
		return fmt.Errorf("cannot pass packets on to %s: %w", from, err)
	}
	s.from, s.asked, s.came = from, now, time.Time{}
	return nil
}

// For is the former holder to whom this machine passes packets on, or is about to;
// not valid: it does not.
func (s *Side) For() netip.Addr {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.from
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

// Take implements Holder.
func (s *Side) Take() error {
	if err := s.Holder.Take(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.holds && s.from.IsValid() {
		s.came = time.Now()
	}
	s.holds = true
	if s.stays { // it has come back, with the connections that were left
		s.leave()
	}
	return nil
}

// GiveUp implements Holder. After an Offer the connections stay: the address is on
// the loopback before it leaves the link.
func (s *Side) GiveUp() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.holds && s.offered {
		s.stay()
	}
	s.holds, s.offered = false, false
	return s.Holder.GiveUp()
}

// stay needs the mutex.
func (s *Side) stay() {
	err := s.lo(host.AddAddress)
	if err == nil && s.place.Front.Addr().Is4() {
		err = s.tell(without("arp") + silence(s.place))
	}
	if err != nil {
		s.log.Warn("connections with the virtual IP do not survive its move", "reason", err)
		s.leave()
		return
	}
	s.stays = true
}

// Leave ends that connections stay here; they have ended, or end now.
func (s *Side) Leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stays {
		s.leave()
	}
}

// leave needs the mutex.
func (s *Side) leave() {
	s.stays = false
	if err := errors.Join(s.lo(host.RemoveAddress), s.tell(without("arp"))); err != nil {
		s.log.Warn("cannot remove what kept connections with the virtual IP alive, its next start will", "error", err)
	}
}

// Tick ends what time ends, and reports whether packets are not passed on any more
// from now on: clients of the former holder that have heard nothing are to be told.
// done says that it is known to have no clients any more.
func (s *Side) Tick(now time.Time, done bool) bool { //nolint:revive // a state, not a switch between two functions
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.from.IsValid() || now.Before(s.end(done)) {
		return false
	}
	s.from = netip.Addr{}
	if err := s.tell(without("netdev")); err != nil {
		s.log.Warn("packets with the virtual IP are still passed on", "error", err)
	}
	return true
}

// end is when packets are not passed on any more. It needs the mutex.
func (s *Side) end(done bool) time.Time {
	switch {
	case s.came.IsZero():
		return s.asked.Add(wait)
	case done:
		return s.came.Add(settling)
	default:
		return s.came.Add(Window + grace)
	}
}

// Close leaves nothing behind.
func (s *Side) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stays, s.from = false, netip.Addr{}
	return s.clean()
}
