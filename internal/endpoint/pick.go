package endpoint

import (
	"cmp"
	"slices"
)

// State of a backend, as its checks see it.
type State string

// The states of a backend. Only Healthy ones get connections, unless none is.
const (
	// Unknown backends have not been judged yet.
	Unknown State = "unknown"
	// Healthy backends answer 200.
	Healthy State = "healthy"
	// Draining backends answer, but anything else than 200: they are stopping
	// or starting, or their etcd is away. Connections stay for a while.
	Draining State = "draining"
	// Refused means that nothing listens, but the machine is alive. Either the
	// process died, then its kernel has ended its connections; or it is
	// stopping, then it is still finishing requests. Connections stay for a while.
	Refused State = "refused"
	// Down backends do not answer in time: dead or unreachable machines, and
	// frozen processes. Their connections are closed at once.
	Down State = "down"
)

// Candidate is what Order needs to know about a backend.
type Candidate struct {
	Name  string
	State State
	// Suspect is set from a failed connect until the next check.
	Suspect     bool
	Connections int
}

// Order returns the indices of candidates in the order in which to try them:
// first by state, then by fewest connections, then the one named local. Those
// still equal take turns: number turn (modulo their count) is first. It is
// pure; nothing is left out, since a wrong checker must not make a reachable
// API unreachable.
func Order(candidates []Candidate, local string, turn uint) []int {
	order := make([]int, len(candidates))
	for i := range order {
		order[i] = i
	}
	n := uint(len(candidates))
	slices.SortFunc(order, func(i, j int) int {
		a, b := candidates[i], candidates[j]
		return cmp.Or(
			cmp.Compare(a.rank(), b.rank()),
			cmp.Compare(a.Connections, b.Connections),
			cmp.Compare(a.distance(local), b.distance(local)),
			cmp.Compare((uint(i)+n-turn%n)%n, (uint(j)+n-turn%n)%n),
		)
	})
	return order
}

func (c Candidate) rank() int {
	switch {
	case c.State == Healthy && !c.Suspect:
		return 0
	case c.State == Healthy:
		return 1
	case c.State == Unknown:
		return 2
	case c.State == Draining:
		return 3
	case c.State == Refused: // Fails at once, and if it does not, it is back.
		return 4
	default:
		return 5
	}
}

func (c Candidate) distance(local string) int {
	if c.Name == local {
		return 0
	}
	return 1
}
