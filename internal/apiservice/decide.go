package apiservice

import (
	"net"
	"slices"
	"time"

	"kuorum/internal/cluster"
	"kuorum/internal/endpoint"
)

// View is what a server's agent says of the API servers.
type View struct {
	// Healthy is what the checks of the server's balancer say, by the addresses of
	// the API servers' machines. One without a verdict is not in it.
	Healthy map[string]bool `json:"healthy"`
	// Leaving tells that the server's own API server is about to stop.
	Leaving bool `json:"leaving,omitempty"`
}

// A list is not taken over at once by fewer than half of the servers: the others
// may live, and write what they see.
const (
	lonely    = 5 * time.Second // before those are removed that are not well
	abandoned = time.Minute     // before the list is replaced, none of which is well
)

// Decide is the list as it should be, sorted, and for how long that must have been
// so before it is written. views are of those servers that can be asked, by their
// names; listed is the list as it is. Nothing means that it should be left alone.
//
// An API server is in when more than half of the views find it well, and out when
// more than half of them do not; in between it is as it was. One that leaves is out.
// Who speaks for it, its own agent, must be there to add it, not to keep it: the agent
// of a server that stops goes first. The list is never empty.
//
// Half of the servers may take others off the list, fewer only after a while, and
// neither adds to it: each part of a parted network, if both reach etcd, would
// put its own list in place of the other's.
func Decide(servers []cluster.Node, views map[string]View, listed []string) (want []string, after time.Duration) {
	var stay []string // of the list
	asked := 0
	for _, n := range servers {
		in := slices.Contains(listed, n.Address)
		if in {
			stay = append(stay, n.Address)
		}
		if belongs(n, views, in) {
			want = append(want, n.Address)
		}
		if _, ok := views[n.Name]; ok {
			asked++
		}
	}
	slices.Sort(stay)
	slices.Sort(want)
	switch {
	case len(want) == 0:
		return stay, 0
	case len(stay) == 0 || 2*asked > len(servers):
		return want, 0
	}
	kept := slices.DeleteFunc(slices.Clone(want), func(address string) bool { return !slices.Contains(stay, address) })
	switch {
	case len(kept) == 0:
		return want, abandoned
	case 2*asked == len(servers) || len(kept) == len(stay):
		return kept, 0
	}
	return kept, lonely
}

// belongs tells whether the API server of n should be in the list; listed: it is.
func belongs(n cluster.Node, views map[string]View, listed bool) bool {
	own, asked := views[n.Name]
	well, ill := votes(views, n.Address)
	switch {
	case own.Leaving || 2*ill > len(views):
		return false
	case 2*well > len(views):
		return listed || asked
	}
	return listed
}

func votes(views map[string]View, address string) (well, ill int) {
	for _, v := range views {
		switch healthy, judged := v.Healthy[address]; {
		case !judged:
		case healthy:
			well++
		default:
			ill++
		}
	}
	return well, ill
}

// settled tells whether no answer that is still to come could change what Decide
// says: of each API server more than half of all servers say the same, and one
// that is well has spoken itself.
func settled(servers []cluster.Node, views map[string]View) bool {
	for _, n := range servers {
		_, asked := views[n.Name]
		well, ill := votes(views, n.Address)
		if 2*ill <= len(servers) && (2*well <= len(servers) || !asked) {
			return false
		}
	}
	return true
}

// healthy is what a balancer says, by the addresses of the machines.
func healthy(states endpoint.States) map[string]bool {
	all := map[string]bool{}
	for _, b := range states.Backends {
		address, _, err := net.SplitHostPort(b.Address)
		if err == nil && b.State != endpoint.Unknown {
			all[address] = b.State == endpoint.Healthy
		}
	}
	return all
}
