package endpoint

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"syscall"
	"time"

	"kuorum/internal/host"
)

func newMember(b Backend) *member {
	return &member{
		Backend: b,
		kick:    make(chan struct{}, 1),
		removed: make(chan struct{}),
		fallen:  make(chan struct{}),
		health:  health{state: Unknown, since: time.Now()},
		links:   map[*link]struct{}{},
	}
}

// replace sets the list of backends. A backend that is in the old list and the
// new one, by name and address, stays the same member.
func (p *pool) replace(backends []Backend, local string) {
	p.mu.Lock()
	before, localBefore := p.members, p.local
	p.members, p.local = make([]*member, len(backends)), local
	var added, removed []Backend
	for i, b := range backends {
		if old := slices.IndexFunc(before, func(m *member) bool { return m.Backend == b }); old >= 0 {
			p.members[i] = before[old]
			continue
		}
		p.members[i] = newMember(b)
		p.fresh = append(p.fresh, p.members[i])
		added = append(added, b)
	}
	for _, m := range before {
		if !slices.Contains(p.members, m) {
			m.fall()
			close(m.removed)
			removed = append(removed, m.Backend)
		}
	}
	p.change()
	p.mu.Unlock()
	select {
	case p.changed <- struct{}{}:
	default: // run has yet to look at an earlier change, and will see this one.
	}
	if len(added)+len(removed) > 0 || local != localBefore {
		p.log.Info("backends replaced", "added", added, "removed", removed, "local", local)
	}
}

// run attends to every member from its addition to its end. It returns when
// ctx is done and all checks have ended. It must run once only.
func (p *pool) run(ctx context.Context) {
	var members sync.WaitGroup
	defer members.Wait()
	members.Go(func() { p.listenIn(ctx) })
	for {
		for _, m := range p.takeFresh() {
			members.Go(func() { p.attend(ctx, m) })
		}
		select {
		case <-ctx.Done():
			return
		case <-p.changed:
		}
	}
}

func (p *pool) takeFresh() []*member {
	p.mu.Lock()
	defer p.mu.Unlock()
	fresh := p.fresh
	p.fresh = nil
	return fresh
}

// attend checks m until ctx is done, or m was removed and its connections have
// had their time. It is checked until then so that a removed machine that is
// switched off too early loses its connections at once, as any other.
func (p *pool) attend(ctx context.Context, m *member) {
	ctx, cancel := context.WithCancel(ctx)
	var checks sync.WaitGroup
	checks.Go(func() { p.keepChecking(ctx, m) })
	select {
	case <-ctx.Done():
	case <-m.removed:
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(p.cfg.DrainTimeout)):
		}
	}
	ended := ctx.Err() != nil
	cancel()
	checks.Wait()
	if !ended {
		p.expel(m)
	}
}

// expel closes the connections that a removed member still has.
func (p *pool) expel(m *member) {
	p.mu.Lock()
	links := m.drop()
	p.mu.Unlock()
	for _, l := range links {
		closeAll(l)
	}
	if len(links) > 0 {
		p.log.Warn("closed the connections of a removed backend", "backend", m.Name,
			"address", m.Address, "closed_connections", len(links))
	}
}

// keepChecking returns when ctx is done.
func (p *pool) keepChecking(ctx context.Context, m *member) {
	probe := newProbe(p.cfg, m.Address, &p.pace, func() bool { return p.dispensable(m) })
	defer probe.close()
	watch(ctx, time.Duration(p.cfg.Interval), m.kick, func(ctx context.Context) {
		if p.doubted(m) {
			// Clients could not connect: do what they did.
			probe.close()
		}
		r := probe.check(ctx)
		if ctx.Err() != nil {
			return
		}
		p.record(ctx, m, r)
		if p.hopeful(m) {
			m.kickAfter(hopefulInterval)
		}
	})
}

// A backend that is not healthy since a short time may be starting: somebody
// waits for it, so it is asked more often.
const (
	hopefulInterval = 100 * time.Millisecond
	hopefulFor      = 30 * time.Second
)

func (p *pool) hopeful(m *member) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return m.state != Healthy && time.Since(m.since) < hopefulFor
}

// kickAfter asks for a check in a while; one asked for already will do.
func (m *member) kickAfter(d time.Duration) {
	time.AfterFunc(d, m.ask)
}

const (
	// parting is how long a balancer that stops goes on for the connections it has.
	parting = 3 * time.Second
	// longPause is how long nothing must have been said on one that is closed at
	// first; that falls to shortPause. Writes wait for disks, so an answer in pieces may
	// look like a pause: lastPause, for who has made no other, is better than none.
	longPause, shortPause, lastPause = time.Second, 20 * time.Millisecond, 2 * time.Millisecond
	// falling is how long it falls; then it is lastPause.
	falling = parting - 600*time.Millisecond
	// partAgain is how often it looks for such.
	partAgain = 10 * time.Millisecond
)

// part closes the connections with these backends, each when its client seems to wait
// for no answer: who connects again is served elsewhere. Those who connect meanwhile
// are left alone. It returns how many of the others are left after parting, or when
// ctx ends.
func (p *pool) part(ctx context.Context, with func(*member) bool) (left int) {
	begun := time.Now()
	tick := time.NewTicker(partAgain)
	defer tick.Stop()
	for {
		gone := time.Since(begun)
		closing, left := p.paused(with, begun, enoughPause(gone))
		for _, l := range closing {
			closeAll(l)
		}
		if left == 0 || gone >= parting {
			return left
		}
		select {
		case <-ctx.Done():
			return left
		case <-tick.C:
		}
	}
}

func everyMember(*member) bool { return true }

// leavingFor is how long a backend that is about to stop gets no new connections, if
// there is another. It has stopped by then, or will not.
const leavingFor = 30 * time.Second

// partFrom sends the clients of a backend elsewhere that is about to stop. It blocks as
// part does. The error is that there is no such backend, or no other that works.
func (p *pool) partFrom(ctx context.Context, address string) error {
	m, err := p.leave(address)
	if err != nil {
		return err
	}
	begun := time.Now()
	left := p.part(ctx, func(other *member) bool { return other == m })
	p.log.InfoContext(ctx, "a backend is about to stop, its clients were sent elsewhere", "backend", m.Name,
		"took", time.Since(begun), "connections_left", left)
	return nil
}

func (p *pool) leave(address string) (*member, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := slices.IndexFunc(p.members, func(m *member) bool { return m.Address == address })
	if i < 0 {
		return nil, fmt.Errorf("no backend has the address %s", address)
	}
	m, now := p.members[i], time.Now()
	if !slices.ContainsFunc(p.members, func(other *member) bool { return other != m && other.state == Healthy && now.After(other.leaving) }) {
		return nil, errors.New("no other backend works")
	}
	m.leaving = now.Add(leavingFor)
	return m, nil
}

// enoughPause is how long a pause must be so long after the parting began.
func enoughPause(gone time.Duration) time.Duration {
	if gone >= falling {
		return lastPause
	}
	return max(shortPause, longPause*(falling-gone)/falling)
}

// paused lists the connections from before begun on which nothing has been said for
// that long, and counts the others from before.
func (p *pool) paused(with func(*member) bool, begun time.Time, enough time.Duration) (paused []*link, others int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, m := range p.members {
		if !with(m) {
			continue
		}
		for l := range m.links {
			switch {
			case l.talk.began.After(begun):
			case l.talk.pause(l.Conn) < enough:
				others++
			default:
				paused = append(paused, l)
			}
		}
	}
	return paused, others
}

const (
	// listenInterval is how often the pool looks whether answers are missing.
	listenInterval = 40 * time.Millisecond
	// owingFor is how long a backend may say nothing while its client speaks before
	// it is checked, out of turn. Many answers take longer: a check costs little.
	owingFor = 40 * time.Millisecond
	// earshot is how many connections of a backend are looked at each time. The
	// kernel chooses none of them: map order is as good as chance.
	earshot = 8
)

// listenIn has a backend checked at once when it stops answering its clients,
// long before its next check is due: that makes frequent checks needless while
// nobody waits for anything. It returns when ctx is done.
func (p *pool) listenIn(ctx context.Context) {
	tick := time.NewTicker(listenInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for _, m := range p.owing() {
			m.ask()
		}
	}
}

// owing lists the backends that owe somebody an answer.
func (p *pool) owing() []*member {
	p.mu.Lock()
	defer p.mu.Unlock()
	var list []*member
	for _, m := range p.members {
		if m.state == Healthy && m.owes(time.Now()) {
			list = append(list, m)
		}
	}
	return list
}

func (m *member) owes(now time.Time) bool {
	looked := 0
	for l := range m.links {
		if looked++; looked > earshot {
			return false
		}
		conn, ok := l.Conn.(syscall.Conn)
		if !ok {
			continue
		}
		if last, err := host.LastExchange(conn); err == nil && unanswered(last, now.Sub(m.alive)) {
			return true
		}
	}
	return false
}

// unanswered tells whether the other side, last known to be alive so long ago,
// owes an answer. What was sent before it showed that it lives may wait: a watch
// answers when there is news. The kernel counts in ticks: what went out and came
// in within the same one may be a question after an answer.
func unanswered(last host.Exchange, alive time.Duration) bool {
	return last.Sent <= last.Received && last.Received >= owingFor && last.Sent < alive
}
