package vrrp

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"kuorum/internal/cluster"
)

// DefaultInterval is the time between two advertisements if none is said: a
// dead router's addresses are elsewhere within half a second.
const DefaultInterval = 100 * time.Millisecond

// Config is one virtual router on one machine.
type Config struct {
	// Interface is where the addresses are put, and the only one that
	// advertisements are sent on and taken from.
	Interface string
	// VRID is 1..255, and no other virtual router of the network has it.
	VRID uint8
	// Addresses are what the virtual router keeps: 1..20 of one family, the same
	// at every peer.
	Addresses []netip.Addr
	// Source is the machine's own address on Interface, of the same family:
	// advertisements come from it, and of two routers with one priority the
	// greater wins. RFC 9568 wants a link-local one for IPv6; any will do where
	// all peers know it.
	Source netip.Addr
	// Peers are the other routers' Source. In unicast they are all that is sent to and listened
	// to, and without any this router is alone. In multicast they limit whom it
	// listens to; none means anybody on the link.
	Peers []netip.Addr
	// Multicast sends to 224.0.0.18 or ff02::12, as RFC 9568 has it. It is said
	// and not guessed from Peers: a cluster of one server has no peers yet, and
	// must not talk to strangers for that.
	Multicast bool
	// Priority is MinPriority..MaxPriority, the greatest wins; see Spread.
	Priority uint8
	// Interval is 10 ms to 40.95 s in steps of 10 ms; 0 means DefaultInterval.
	Interval time.Duration
	// Preempt lets a router take the addresses from a healthy one with a lower
	// priority. A healthy one takes them from an impaired one in any case.
	Preempt bool
}

// maxAddresses is what keepalived puts into one advertisement.
const maxAddresses = 20

// Spread gives the router of that rank among n, of which 0 shall win, its
// priority. They are far apart: two that wait for the same moment differ by an
// interval/256 a step (Skew_Time), which should be more than a packet takes.
func Spread(rank, n int) uint8 {
	rank = min(max(rank, 0), max(n-1, 0))
	return uint8(MaxPriority - min(rank*(MaxPriority-MinPriority)/max(n-1, 1), MaxPriority-MinPriority)) //nolint:gosec // 101..200
}

// normal is c with zones and defaults resolved.
func (c Config) normal() Config {
	if c.Interval == 0 {
		c.Interval = DefaultInterval
	}
	c.Source = c.Source.WithZone("")
	c.Peers = slices.Clone(c.Peers)
	for i := range c.Peers {
		c.Peers[i] = c.Peers[i].WithZone("")
	}
	c.Addresses = slices.Clone(c.Addresses)
	return c
}

// Validate says everything that is wrong with c, or nothing.
func (c Config) Validate() error {
	c = c.normal()
	var wrong []string
	check := func(ok bool, format string, args ...any) {
		if !ok {
			wrong = append(wrong, fmt.Sprintf(format, args...))
		}
	}
	check(c.Interface != "", "no interface is given")
	check(c.VRID != 0, "the number of the virtual router (VRID) is 0: it is 1 to 255")
	check(len(c.Addresses) > 0 && len(c.Addresses) <= maxAddresses, "%d addresses are given: 1 to %d may be", len(c.Addresses), maxAddresses)
	check(usable(c.Source), "the machine's own address %q is not one", c.Source)
	check(c.Priority >= MinPriority && c.Priority <= MaxPriority, "the priority is %d: it is %d to %d", c.Priority, MinPriority, MaxPriority)
	check(c.Interval >= Centisecond && c.Interval <= maxInterval && c.Interval%Centisecond == 0,
		"the interval is %v: it is 10ms to %v, in steps of 10ms", c.Interval, maxInterval)
	seen := map[netip.Addr]bool{}
	for _, a := range c.Addresses {
		check(usable(a) && a.Zone() == "" && a.Is4() == c.Source.Is4(), "the address %q cannot be kept by %q: it is not an address of that family", a, c.Source)
		check(a != c.Source, "the address %s is this machine's own", a)
		check(!seen[a], "the address %s is given twice", a)
		seen[a] = true
	}
	wrong = append(wrong, c.wrongPeers(c.Peers)...)
	if len(wrong) == 0 {
		return nil
	}
	return &cluster.Problem{What: "the virtual router cannot be as it is configured", Why: strings.Join(wrong, "\n"), Exit: cluster.ExitUsage}
}

// wrongPeers says what is wrong with peers.
func (c Config) wrongPeers(peers []netip.Addr) []string {
	var wrong []string
	for i, p := range peers {
		switch {
		case !usable(p) || p.Is4() != c.Source.Is4():
			wrong = append(wrong, fmt.Sprintf("the peer %q is not an address of the family of %q", p, c.Source))
		case p == c.Source:
			wrong = append(wrong, fmt.Sprintf("the peer %s is this machine itself", p))
		case slices.Contains(c.Addresses, p):
			wrong = append(wrong, fmt.Sprintf("the peer %s is an address of the virtual router", p))
		case slices.Contains(peers[:i], p):
			wrong = append(wrong, fmt.Sprintf("the peer %s is given twice", p))
		}
	}
	return wrong
}

func usable(a netip.Addr) bool {
	return a.IsValid() && !a.Is4In6() && !a.IsUnspecified() && !a.IsLoopback() && !a.IsMulticast()
}

// group is where advertisements go in multicast (RFC 9568 section 5.1).
func (c Config) group() netip.Addr {
	if c.Source.Is4() {
		return netip.AddrFrom4([4]byte{224, 0, 0, 18})
	}
	return netip.MustParseAddr("ff02::12")
}
