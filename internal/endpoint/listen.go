package endpoint

import (
	"context"
	"syscall"
	"time"

	"kuorum/internal/host"
)

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
