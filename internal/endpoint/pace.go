package endpoint

import (
	"sync"
	"time"
)

const (
	// leastLimit is how long a backend may owe the answer to a ping where
	// answers have been quick of late: a frozen one costs its clients that long.
	leastLimit = 200 * time.Millisecond
	// slowness is by how much an answer may take longer than the slowest of late
	// before it is taken for none.
	slowness = 3
	// lately is at least how long, and at most twice how long, an answer counts.
	lately = 30 * time.Second
)

// pace learns from the answers of all backends how long one may take:
// where the processors are busy everybody is slow, and nobody is dead. The zero
// value has seen no answer. It may be used by several goroutines.
type pace struct {
	mu           sync.Mutex
	slowest      time.Duration // since began
	slowestUntil time.Duration // in the period before
	began        time.Time
}

// note learns from an answer that took so long, even if nobody waited for it.
func (p *pace) note(took time.Duration, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.turn(now)
	p.slowest = max(p.slowest, took)
}

// limit is how long an answer may take now, never longer than most.
func (p *pace) limit(now time.Time, most time.Duration) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.turn(now)
	return min(most, max(leastLimit, slowness*max(p.slowest, p.slowestUntil)))
}

// turn begins a new period when the present one has lasted.
func (p *pace) turn(now time.Time) {
	switch age := now.Sub(p.began); {
	case age < lately:
	case age < 2*lately:
		p.slowestUntil, p.slowest, p.began = p.slowest, 0, now
	default:
		p.slowestUntil, p.slowest, p.began = 0, 0, now
	}
}
