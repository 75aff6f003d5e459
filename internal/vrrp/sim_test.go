package vrrp

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"
)

const (
	simInterval = 100 * time.Millisecond
	simDelay    = 3 * time.Millisecond // the slowest delivery
)

// world is some routers on one wire, in virtual time.
type world struct {
	t      *testing.T
	random *rand.Rand
	now    time.Time
	nodes  []*node
	deaf   bool // what is sent is lost
	mail   []letter
	none   time.Duration // how long no awake router was active, in all
	// twice is how long, at the longest, any two awake ones that hear each other were; pairs are those that are.
	twice time.Duration
	pairs map[[2]*node]time.Duration
	log   []string
}

type node struct {
	*router
	number  int
	dead    bool
	frozen  bool
	side    int // of a partition
	waiting []letter
	takes   int
}

type letter struct {
	at       time.Time
	from, to int
	ad       Advertisement
}

func newWorld(t *testing.T, seed uint64, n int, preempt, multicast bool) *world {
	w := &world{t: t, random: rand.New(rand.NewPCG(seed, 1)), now: time.Unix(0, 0)}
	for i := range n {
		w.nodes = append(w.nodes, &node{number: i, router: &router{
			source: netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)}), interval: simInterval,
			preempt: preempt, multicast: multicast, base: Spread(i, n), state: Initialize,
		}})
	}
	for _, n := range w.nodes {
		w.do(n, n.start(w.now))
	}
	return w
}

func (w *world) do(n *node, actions []action) {
	for _, a := range actions {
		switch a.do {
		case actSend:
			w.post(n, a)
		case actTake:
			n.takes++
		case actRecord:
			w.log = append(w.log, fmt.Sprintf("%v node%d %s->%s: %s", w.now.Sub(time.Unix(0, 0)), n.number, a.change.From, a.change.To, a.change.Reason))
		}
	}
}

func (w *world) post(n *node, a action) {
	for _, other := range w.nodes {
		if w.deaf || other == n || other.dead || other.side != n.side || !n.multicast && a.to.IsValid() && a.to != other.source {
			continue
		}
		delay := time.Duration(w.random.Int64N(int64(simDelay))) + 1
		at := w.now.Add(delay)
		for _, l := range w.mail { // a wire keeps the order
			if l.from == n.number && l.to == other.number && l.at.After(at) {
				at = l.at
			}
		}
		w.mail = append(w.mail, letter{at, n.number, other.number, Advertisement{VRID: 1, Priority: a.priority, Interval: n.interval}})
	}
}

// run lets virtual time pass.
func (w *world) run(d time.Duration) {
	for end := w.now.Add(d); ; {
		next := end
		for _, n := range w.nodes {
			if !n.dead && !n.frozen && !n.due.IsZero() && n.due.Before(next) {
				next = n.due
			}
		}
		slices.SortStableFunc(w.mail, func(a, b letter) int { return a.at.Compare(b.at) })
		if len(w.mail) > 0 && w.mail[0].at.Before(next) {
			next = w.mail[0].at
		}
		w.pass(next)
		if !w.now.Before(end) {
			return
		}
		if len(w.mail) > 0 && !w.mail[0].at.After(w.now) {
			l := w.mail[0]
			w.mail = w.mail[1:]
			w.deliver(l)
			continue
		}
		for _, n := range w.nodes {
			if !n.dead && !n.frozen && !n.due.After(w.now) {
				w.do(n, n.timer(w.now))
			}
		}
	}
}

func (w *world) pass(next time.Time) {
	awake := w.active()
	if len(awake) == 0 {
		w.none += next.Sub(w.now)
	}
	pairs := map[[2]*node]time.Duration{}
	for i, a := range awake {
		for _, b := range awake[i+1:] {
			if pair := [2]*node{a, b}; a.side == b.side {
				pairs[pair] = w.pairs[pair] + next.Sub(w.now)
				w.twice = max(w.twice, pairs[pair])
			}
		}
	}
	w.pairs = pairs
	w.now = next
}

func (w *world) deliver(l letter) {
	n := w.nodes[l.to]
	switch {
	case n.dead || n.side != w.nodes[l.from].side:
	case n.frozen:
		n.waiting = append(n.waiting, l)
	default:
		w.do(n, n.hear(w.now, w.nodes[l.from].source, l.ad))
	}
}

// active are the routers that are awake and active.
func (w *world) active() []*node {
	return slices.DeleteFunc(slices.Clone(w.nodes), func(n *node) bool { return n.dead || n.frozen || n.state != Active })
}

// thaw lets a frozen process go on: what waits for it comes in any order.
func (w *world) thaw(n *node) {
	n.frozen = false
	early := w.random.IntN(2) == 0
	if early && !n.due.After(w.now) {
		w.do(n, n.timer(w.now))
	}
	for _, l := range n.waiting {
		w.do(n, n.hear(w.now, w.nodes[l.from].source, l.ad))
	}
	n.waiting = nil
	if !early && !n.due.After(w.now) {
		w.do(n, n.timer(w.now))
	}
}

func (w *world) revive(n *node) {
	n.dead, n.frozen, n.waiting = false, false, nil
	n.router = &router{
		source: n.source, interval: n.interval, preempt: n.preempt,
		multicast: n.multicast, base: n.base, impaired: n.impaired, state: Initialize,
	}
	w.do(n, n.start(w.now))
}

func (w *world) impair(n *node, impaired bool) {
	w.do(n, n.setPriority(w.now, n.base, impaired))
}

// chaos does something to somebody.
func (w *world) chaos() {
	n := w.nodes[w.random.IntN(len(w.nodes))]
	switch w.random.IntN(7) {
	case 0:
		n.dead = true
	case 1:
		if n.dead {
			w.revive(n)
		}
	case 2:
		n.frozen = !n.dead
	case 3:
		if n.frozen && !n.dead {
			w.thaw(n)
		}
	case 4:
		n.side = w.random.IntN(2)
	case 5:
		if !n.dead && !n.frozen {
			w.impair(n, !n.impaired)
		}
	case 6:
		if to := w.nodes[w.random.IntN(len(w.nodes))]; !n.dead && !n.frozen && to != n {
			w.do(n, n.resign(w.now, to.source, func(netip.Addr, error) {}))
		}
	}
}

// calm heals all, and waits until there can be one active router only.
func (w *world) calm() {
	for _, n := range w.nodes {
		n.side = 0
		switch {
		case n.dead:
			w.revive(n)
		case n.frozen:
			w.thaw(n)
		}
	}
	w.run(20 * simInterval)
	w.twice, w.none = 0, 0
}

func (w *world) fail(format string, args ...any) {
	w.t.Helper()
	w.t.Fatalf(format+"\n%s", append(args, lastLines(w.log, 25))...)
}

func lastLines(lines []string, n int) string {
	text := ""
	for _, l := range lines[max(0, len(lines)-n):] {
		text += l + "\n"
	}
	return text
}

// one is the active router; that there are none or two fails.
func (w *world) one() *node {
	w.t.Helper()
	active := w.active()
	if len(active) != 1 {
		w.fail("%d routers are active", len(active))
	}
	n := active[0]
	if n.impaired && slices.ContainsFunc(w.nodes, func(o *node) bool { return !o.dead && !o.frozen && !o.impaired }) {
		w.fail("node%d is active, impaired, and a healthy one is there", n.number)
	}
	return n
}

// takeOver is how long the addresses may be nowhere after the active router's end.
const takeOver = 3*simInterval + simInterval + simInterval

// faults are each done to a world in peace, with how long the addresses may be
// nowhere and at two routers that hear each other.
func faults() map[string]struct {
	do          func(*world, *node)
	none, twice time.Duration
} {
	type fault = struct {
		do          func(*world, *node)
		none, twice time.Duration
	}
	return map[string]fault{
		"crash":    {func(_ *world, n *node) { n.dead = true }, takeOver, simDelay},
		"shutdown": {func(w *world, n *node) { w.do(n, n.shutdown(w.now)); n.dead = true }, simInterval + simDelay, simDelay},
		"freeze": {func(w *world, n *node) {
			n.frozen = true
			w.run(time.Duration(w.random.Int64N(int64(15 * simInterval))))
			w.thaw(n)
		}, takeOver, simInterval/4 + 2*simDelay},
		"impaired": {func(w *world, n *node) { w.impair(n, true) }, 0, simDelay},
		"all impaired": {func(w *world, _ *node) {
			for _, i := range w.random.Perm(len(w.nodes)) {
				w.impair(w.nodes[i], true)
			}
		}, 0, simDelay},
		"a healthy one again": {func(w *world, n *node) { w.impair(w.nodes[(n.number+1)%len(w.nodes)], false) }, 0, simDelay},
		"all healthy again": {func(w *world, _ *node) {
			for _, i := range w.random.Perm(len(w.nodes)) {
				w.impair(w.nodes[i], false)
			}
		}, 0, simDelay},
		"partition": {func(w *world, n *node) {
			n.side = 1
			w.run(10 * simInterval)
			n.side = 0
		}, takeOver, simInterval + 2*simDelay},
		"move": {func(w *world, n *node) {
			w.do(n, n.resign(w.now, w.nodes[(n.number+1)%len(w.nodes)].source, func(netip.Addr, error) {}))
		}, 0, simDelay},
		"move to a dead one": {func(w *world, n *node) {
			to := w.nodes[(n.number+1)%len(w.nodes)]
			to.dead = true
			w.do(n, n.resign(w.now, to.source, func(netip.Addr, error) {}))
		}, 0, simDelay},
		"two advertisements are lost": {func(w *world, _ *node) {
			w.deaf = true
			w.run(2 * simInterval)
			w.deaf = false
		}, 0, 0},
		"a restart of a backup": {func(w *world, n *node) { w.revive(w.nodes[(n.number+1)%len(w.nodes)]) }, 0, simDelay},
	}
}

// TestOneIsActive: after any disorder one router is active once things are
// calm, and each single fault from there costs no more than RFC 9568 says.
func TestOneIsActive(t *testing.T) {
	names := slices.Sorted(maps.Keys(faults()))
	for seed := range uint64(1500) {
		random := rand.New(rand.NewPCG(seed, 2))
		w := newWorld(t, seed, 2+random.IntN(5), random.IntN(3) == 0, random.IntN(2) == 0)
		for range random.IntN(60) {
			w.chaos()
			w.run(time.Duration(random.Int64N(int64(8 * simInterval))))
		}
		for range 8 {
			w.calm()
			n := w.one()
			name := names[random.IntN(len(names))]
			fault := faults()[name]
			w.run(time.Duration(random.Int64N(int64(simInterval))))
			w.log = append(w.log, fmt.Sprintf("%v --- %s, node%d is active", w.now.Sub(time.Unix(0, 0)), name, n.number))
			fault.do(w, n)
			w.run(20 * simInterval)
			w.one()
			if w.none > fault.none {
				w.fail("seed %d: %s: nobody was active for %v, %v are allowed", seed, name, w.none, fault.none)
			}
			if w.twice > fault.twice {
				w.fail("seed %d: %s: two were active for %v, %v are allowed", seed, name, w.twice, fault.twice)
			}
		}
	}
}

// TestImpairedStayQuiet: where no API server answers anywhere, the address stays
// where it is; the first healthy router gets it, and keeps it when the others
// are healthy again.
func TestImpairedStayQuiet(t *testing.T) {
	for seed := range uint64(50) {
		w := newWorld(t, seed, 5, false, false)
		w.calm()
		first := w.one()
		takes := func() (n int) {
			for _, node := range w.nodes {
				n += node.takes
			}
			return n
		}
		before := takes()
		for _, i := range w.random.Perm(5) {
			w.impair(w.nodes[i], true)
		}
		w.run(10 * time.Second)
		if w.one() != first || takes() != before {
			w.fail("it moved")
		}
		healthy := w.nodes[(first.number+3)%5]
		w.impair(healthy, false)
		w.run(simInterval + healthy.skew(simInterval) + 2*simDelay)
		if w.one() != healthy {
			w.fail("the healthy router has not taken over")
		}
		for _, n := range w.nodes {
			w.impair(n, false)
		}
		w.run(10 * time.Second)
		if w.one() != healthy || takes() != before+1 {
			w.fail("it moved although the active router is healthy")
		}
	}
}
