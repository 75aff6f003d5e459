package endpoint

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"
)

// State of a backend, as its checks see it.
type State string

// The states of a backend. Only Healthy ones get connections, unless none is.
const (
	// Unknown backends have not been judged yet.
	Unknown State = "unknown"
	// Healthy backends answer 200.
	Healthy State = "healthy"
	// Draining backends answer, but anything else than 200. They are stopping or
	// starting: connections stay for a while. Or they cannot do their work, since
	// their etcd is away: connections stay for illFor, or little longer.
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
	Suspect bool
	// Leaving is set while it is about to stop.
	Leaving     bool
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
	case c.State == Healthy && c.Leaving:
		return 3
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

// connect finds a backend for one client. It tries every backend at most once,
// best first, and gives up after dialBudget. The next is tried also when one has
// not accepted within slowDial; the first that does is taken (as RFC 8305 has it
// for the addresses of one host).
func (p *pool) connect(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialBudget)
	defer cancel()
	type outcome struct {
		m    *member
		link *link
		err  error
	}
	tried, under := map[*member]bool{}, map[*member]bool{}
	outcomes := make(chan outcome)
	begin := func() {
		m, fallen := p.acquire(tried)
		if m == nil {
			return
		}
		tried[m], under[m] = true, true
		go func() {
			l, err := p.attempt(ctx, m, fallen)
			select {
			case outcomes <- outcome{m, l, err}:
			case <-ctx.Done(): // another was quicker, or nobody waits any more
				if err == nil {
					closeAll(l)
				}
			}
		}()
	}
	var errs []error
	begin()
	for len(under) > 0 {
		slow := time.NewTimer(slowDial)
		select {
		case <-ctx.Done():
			slow.Stop()
			return nil, fmt.Errorf("cannot reach any API server: %w", errors.Join(append(errs, context.Cause(ctx))...))
		case o := <-outcomes:
			if o.err == nil {
				slow.Stop()
				return o.link, nil
			}
			delete(under, o.m)
			errs = append(errs, fmt.Errorf("%s: %w", o.m.Name, o.err))
			begin()
		case <-slow.C:
			for m := range under {
				m.ask()
			}
			begin()
		}
		slow.Stop()
	}
	return nil, fmt.Errorf("cannot reach any API server: %w", errors.Join(errs...))
}

// acquire reserves a place at the best backend not tried yet, so that clients
// arriving together spread. It returns nil when all have been tried.
func (p *pool) acquire(tried map[*member]bool) (m *member, fallen <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	candidates := make([]Candidate, len(p.members))
	for i, m := range p.members {
		candidates[i] = Candidate{Name: m.Name, State: m.state, Suspect: m.suspect, Leaving: time.Now().Before(m.leaving), Connections: m.load}
	}
	if len(tried) == 0 {
		p.turn++
	}
	for _, i := range Order(candidates, p.local, p.turn) {
		if m := p.members[i]; !tried[m] {
			m.load++
			return m, m.fallen
		}
	}
	return nil, nil
}

// attempt turns a reserved place into a connection or gives it back.
func (p *pool) attempt(ctx context.Context, m *member, fallen <-chan struct{}) (*link, error) {
	conn, err := p.dialMember(ctx, m, fallen)
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case closed(fallen):
		m.load--
		closeAll(conn)
		return nil, errors.New("went down or was removed while connecting")
	case err != nil:
		m.load--
		if ctx.Err() == nil { // else another was quicker, or time is up for all
			m.doubt()
		}
		return nil, err
	}
	l := &link{Conn: conn, talk: talk{began: time.Now()}}
	l.release = func() { p.release(m, l) }
	m.links[l] = struct{}{}
	return l, nil
}

// dialMember gives up when m falls.
func (p *pool) dialMember(ctx context.Context, m *member, fallen <-chan struct{}) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, p.dialLimit())
	defer cancel()
	go func() {
		select {
		case <-ctx.Done():
		case <-fallen:
			cancel()
		}
	}()
	return p.dial(ctx, "tcp", m.Address)
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// dialLimit is the time for one attempt: even if all backends but the last
// swallow packets, the last gets its turn.
func (p *pool) dialLimit() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return min(time.Duration(p.cfg.Timeout), dialBudget/time.Duration(len(p.members)))
}

// verdict of one check.
type verdict int

const (
	// silent: no answer in time, or the connection broke.
	silent verdict = iota
	// ready: answered 200.
	ready
	// unready: something lives there, but it is about to stop, or the check itself
	// cannot judge (wrong certificate). Never a reason to cut soon.
	unready
	// ill: it says itself that it does not work.
	ill
	// refused: nothing listens.
	refused
	// lost: it was well, and does not even answer a ping any more, for longer
	// than anybody has needed of late.
	lost
)

// health is the state machine of one backend. It is a value: next returns the
// new one.
type health struct {
	state State
	since time.Time // of state
	fails int       // silent verdicts in a row
	good  int       // ready verdicts in a row
	ill   time.Time // since when it says that it does not work; zero: it does not say so
}

// next applies one verdict. Not ready, refused and lost count at once; silence
// must repeat fall times, because one slow answer is no reason to cut
// everything.
func (h health) next(v verdict, fall, rise int, now time.Time) health {
	fails, good, since := h.fails, h.good, h.ill
	h.fails, h.good, h.ill = 0, 0, time.Time{}
	switch v {
	case ready:
		h.good = min(good+1, rise)
		if h.good < rise {
			return h
		}
		return h.to(Healthy, now)
	case unready:
		return h.to(Draining, now)
	case ill:
		if h.ill = since; since.IsZero() {
			h.ill = now
		}
		return h.to(Draining, now)
	case refused:
		return h.to(Refused, now)
	case lost:
		return h.to(Down, now)
	default:
		h.fails, h.ill = min(fails+1, fall), since
		if h.fails < fall {
			return h
		}
		return h.to(Down, now)
	}
}

func (h health) to(state State, now time.Time) health {
	if h.state != state {
		h.state, h.since = state, now
	}
	return h
}

// illFor is how long a backend may at least say that it does not work before its clients
// are sent to one that does: etcd may be electing a leader, and all of them say so.
const illFor = 2 * time.Second

// incurable reports whether the backend's connections should be closed because it says
// that it does not work while another works: it has since better, and has said so
// again illFor after this one fell ill, at works (zero: none does). The first of
// several to recover does not get everything. Who asks an ill one waits in vain, for
// half a minute.
func (h health) incurable(now, better, works time.Time) bool {
	return h.state == Draining && !h.ill.IsZero() && !better.IsZero() && now.Sub(better) >= illFor && works.Sub(h.ill) >= illFor
}

// overdue reports whether the backend's connections should be closed because
// their clients would be better off elsewhere. better is the time since which
// another backend has been healthy, zero if none is: without one, a poor
// connection is all there is. The drain time counts from the later of the two
// so that the first of several backends to recover does not get everything.
func (h health) overdue(now, better time.Time, drain time.Duration) bool {
	if better.IsZero() {
		return false
	}
	switch h.state {
	case Down:
		return true
	case Draining, Refused:
		return now.Sub(h.since) >= drain && now.Sub(better) >= drain
	default:
		return false
	}
}
