package endpoint

import "time"

// verdict of one check.
type verdict int

const (
	// silent: no answer in time, or the connection broke.
	silent verdict = iota
	// ready: answered 200.
	ready
	// unready: something lives there, but it said anything else, or the check
	// itself cannot judge (wrong certificate). Never a reason to cut at once.
	unready
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
}

// next applies one verdict. Not ready, refused and lost count at once; silence
// must repeat fall times, because one slow answer is no reason to cut
// everything.
func (h health) next(v verdict, fall, rise int, now time.Time) health {
	fails, good := h.fails, h.good
	h.fails, h.good = 0, 0
	switch v {
	case ready:
		h.good = min(good+1, rise)
		if h.good < rise {
			return h
		}
		return h.to(Healthy, now)
	case unready:
		return h.to(Draining, now)
	case refused:
		return h.to(Refused, now)
	case lost:
		return h.to(Down, now)
	default:
		h.fails = min(fails+1, fall)
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
