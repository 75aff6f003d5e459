package node

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"kuorum/internal/cluster"
	"kuorum/internal/host"
)

const (
	// lookForAddress is how often a node looks whether its address is on its
	// machine; one that is lost must be missed gone times in a row, since
	// network managers take addresses off and put them back.
	lookForAddress = time.Second
	gone           = 5
)

// place is where a node's machine is. A node whose own address is not on it is
// astray: nothing of it can work, but it must be told where it is now.
type place struct {
	astray    bool
	addresses []string // at which the agent's API listens, beside the loopback
}

// findPlace decides where the agent listens: at the node's own address or, as
// long as the machine has not got that, at those of its addresses that are in
// the nodes' network, or at all of them.
func findPlace(spec *cluster.Spec, own string, have []netip.Addr) place {
	var all, inside []string
	network, err := netip.ParsePrefix(spec.Spec.Network.Nodes)
	for _, a := range have {
		if a.String() == own {
			return place{addresses: []string{own}}
		}
		all = append(all, a.String())
		if err == nil && network.Contains(a) {
			inside = append(inside, a.String())
		}
	}
	if len(inside) > 0 {
		all = inside
	}
	return place{astray: true, addresses: all}
}

func (p place) same(other place) bool {
	return p.astray == other.astray && slices.Equal(p.addresses, other.addresses)
}

// watchPlace makes the agent anew when its node's address comes or goes. It
// changes nothing else by itself: that another address is the node's now is for
// a person to say.
func (a *Agent) watchPlace(ctx context.Context) {
	tick := time.NewTicker(lookForAddress)
	defer tick.Stop()
	for missed := 0; ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		have, err := host.Addresses()
		if err != nil {
			continue
		}
		now := findPlace(a.machine.Spec, a.machine.Node.Address, have)
		switch {
		case now.same(a.place):
			missed = 0
			continue
		case now.astray && !a.place.astray && missed < gone:
			missed++
			continue
		}
		a.options.Log.Warn("the addresses of this machine have changed", "astray", now.astray, "addresses", now.addresses)
		a.readAgain()
		return
	}
}
