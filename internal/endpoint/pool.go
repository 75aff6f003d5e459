package endpoint

import (
	"context"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"
)

const (
	// dialBudget bounds the search for a backend that accepts one connection.
	dialBudget = 3 * time.Second
	// slowDial is how long a backend may take to accept one before it is checked,
	// and another is tried as well: a machine without power swallows the first
	// packet of a connection as it does all others.
	slowDial = 50 * time.Millisecond
)

// The kernel finds a peer that vanished without a word after twice this long.
const (
	patience = 15 * time.Second
	haste    = time.Second // when there is reason to think that it did
)

func keepAlive(idle time.Duration) net.KeepAliveConfig {
	return net.KeepAliveConfig{Enable: true, Idle: idle, Interval: idle / 3, Count: 3}
}

// pool knows all backends, their health and their connections.
type pool struct {
	// changed is sent to when there are fresh members.
	changed chan struct{}

	cfg  Config // with defaults; members and local hold what may change
	log  *slog.Logger
	dial func(ctx context.Context, network, address string) (net.Conn, error)

	pace pace // of all backends

	mu      sync.Mutex
	members []*member // never empty
	local   string
	fresh   []*member // added, and nobody attends to them yet
	turn    uint
	lit     bool // some backend was healthy at the last verdict
	version uint64
	turned  chan struct{} // closed at the next version, see States
}

// member is a backend in a pool, whose mutex guards what is below removed.
type member struct {
	Backend
	// kick asks for a check now instead of at the next interval.
	kick chan struct{}
	// removed is closed when the backend is no longer one of the pool.
	removed chan struct{}

	health
	suspect bool      // a connect failed since the last check
	leaving time.Time // until then it is about to stop
	load    int       // connections, and attempts at one
	links   map[*link]struct{}
	// alive is when the last check began that found it ready.
	alive time.Time
	// works is when it said so itself for the last time.
	works time.Time
	// fallen is closed, and made anew, when the backend goes down or is removed:
	// who is connecting to it then must look further.
	fallen  chan struct{}
	problem string // of the last check
	latency time.Duration
}

// link is a connection to a backend, or of a client to the virtual IP; closing it
// takes it off the books.
type link struct {
	net.Conn
	once    sync.Once
	release func()
	talk    talk // with a backend
}

func (l *link) Close() error {
	l.once.Do(l.release)
	return l.Conn.Close()
}

// result of one check.
type result struct {
	verdict verdict
	err     error // why it is not ready
	latency time.Duration
	works   time.Time // when it said last that it is ready; zero unless it is
}

// newPool starts to take turns at number turn, which should differ between the
// machines of a cluster so that they do not all prefer the same backend.
func newPool(cfg Config, turn uint, log *slog.Logger) *pool {
	p := &pool{
		changed: make(chan struct{}, 1), cfg: cfg, log: log, local: cfg.Local, turn: turn,
		dial:    (&net.Dialer{KeepAliveConfig: keepAlive(patience)}).DialContext,
		version: uint64(time.Now().UnixNano()), turned: make(chan struct{}), //nolint:gosec // after 1970
	}
	for _, b := range cfg.Backends {
		p.members = append(p.members, newMember(b))
	}
	p.fresh = slices.Clone(p.members)
	return p
}

func (p *pool) release(m *member, l *link) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(m.links, l)
	m.load--
}

// doubt passes over a healthy backend until it has been checked again, which
// it asks for. Others are passed over anyway.
func (m *member) doubt() {
	if m.state != Healthy || m.suspect {
		return
	}
	m.suspect = true
	m.ask()
}

// ask wants m checked now.
func (m *member) ask() {
	select {
	case m.kick <- struct{}{}:
	default: // A check is asked for already.
	}
}

// fall tells those who are connecting to m.
func (m *member) fall() {
	close(m.fallen)
	m.fallen = make(chan struct{})
}

func (p *pool) doubted(m *member) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return m.suspect
}

// event is what a verdict did to one backend.
type event struct {
	Backend
	was, state State
	reason     string
	cut        []*link
}

// record applies the result of a check. Closing and logging may block, so they
// happen without the lock.
func (p *pool) record(ctx context.Context, m *member, r result) {
	p.mu.Lock()
	wasLit := p.lit
	events := p.apply(m, r, time.Now())
	wentDark := wasLit && !p.lit
	p.mu.Unlock()
	for _, e := range events {
		for _, l := range e.cut {
			closeAll(l)
		}
	}
	for _, e := range events {
		p.report(ctx, e)
	}
	if wentDark {
		p.log.ErrorContext(ctx, "no backend is healthy, trying all of them")
	}
}

func (p *pool) apply(m *member, r result, now time.Time) []event {
	before := m.state
	m.health = m.next(r.verdict, p.cfg.Fall, p.cfg.Rise, now)
	m.suspect, m.latency, m.problem = false, r.latency, ""
	if r.verdict == ready {
		m.alive, m.works = now.Add(-r.latency), r.works
	}
	if r.err != nil {
		m.problem = r.err.Error()
	}
	p.lit = p.anyHealthy()
	var events []event
	if m.state != before {
		m.leaving = time.Time{} // it has stopped, or has come back
		p.change()
		events = append(events, m.turned(before))
	}
	for _, other := range p.members {
		if len(other.links) > 0 && (other.overdue(now, p.better(other), time.Duration(p.cfg.DrainTimeout)) || other.incurable(now, p.better(other), p.worked(other))) {
			events = append(events, event{other.Backend, other.state, other.state, other.problem, other.drop()})
		}
	}
	return events
}

// turned does what the new state demands.
func (m *member) turned(before State) event {
	e := event{Backend: m.Backend, was: before, state: m.state, reason: m.problem}
	switch m.state {
	case Down:
		m.fall()
		e.cut = m.drop()
	case Refused:
		m.poke()
	}
	return e
}

func (p *pool) report(ctx context.Context, e event) {
	if e.was == e.state {
		p.log.WarnContext(ctx, "closed the connections of a backend", "backend", e.Name,
			"state", e.state, "closed_connections", len(e.cut))
		return
	}
	level := slog.LevelWarn
	if e.state == Healthy {
		level = slog.LevelInfo
	}
	p.log.Log(ctx, level, "backend changed", "backend", e.Name, "address", e.Address,
		"state", e.state, "was", e.was, "reason", e.reason, "closed_connections", len(e.cut))
}

// poke makes the kernel ask for a sign of life on every connection. If the
// machine was cut off and is back already, it knows nothing of them and resets
// them; connections to a server that merely stopped listening stay.
func (m *member) poke() {
	for l := range m.links {
		if tcp, ok := l.Conn.(interface {
			SetKeepAliveConfig(net.KeepAliveConfig) error
		}); ok {
			// A connection that just ended fails here; its copy notices.
			_ = tcp.SetKeepAliveConfig(keepAlive(haste))
		}
	}
}

// drop lists the connections of m and forgets them, so that each is closed and
// reported once; they count as load until they are closed.
func (m *member) drop() []*link {
	links := make([]*link, 0, len(m.links))
	for l := range m.links {
		links = append(links, l)
	}
	clear(m.links)
	return links
}

// better is the time since which a backend other than m has been healthy; zero
// if none is.
func (p *pool) better(m *member) time.Time {
	var since time.Time
	for _, other := range p.members {
		if other == m || other.state != Healthy {
			continue
		}
		if since.IsZero() || other.since.Before(since) {
			since = other.since
		}
	}
	return since
}

// worked is when a healthy backend other than m last said that it works; zero if none is.
func (p *pool) worked(m *member) time.Time {
	var last time.Time
	for _, other := range p.members {
		if other != m && other.state == Healthy && other.works.After(last) {
			last = other.works
		}
	}
	return last
}

// busyFor is how long an API server that has just become healthy may be slow: all
// that had waited for it comes at once.
const busyFor = 3 * time.Second

// dispensable tells whether m's clients have somewhere else to go.
func (p *pool) dispensable(m *member) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.better(m).IsZero() && time.Since(m.since) >= busyFor
}

// someHealthy tells whether a client would be led to an API server that works.
func (p *pool) someHealthy() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.anyHealthy()
}

func (p *pool) anyHealthy() bool {
	for _, m := range p.members {
		if m.state == Healthy {
			return true
		}
	}
	return false
}
