package fault

import (
	"slices"
	"strconv"
	"strings"
	"time"
)

// Ledger is the account of all faults of a lab: what is broken now, and what
// was. It does nothing by itself. Faults are never taken out of it.
type Ledger struct {
	faults []Fault // in the order of their IDs
	last   int     // number of the last ID
}

// NewLedger takes the lines of the file, each with a fault as it was then: the last
// one of a fault counts. What no Ledger has made is none.
func NewLedger(lines []Fault) *Ledger {
	l := &Ledger{}
	for _, f := range lines {
		n, err := strconv.Atoi(strings.TrimPrefix(f.ID, "f"))
		if err != nil || n < 1 || "f"+strconv.Itoa(n) != f.ID {
			continue
		}
		if i := l.find(f.ID); i >= 0 {
			l.faults[i] = f
			continue
		}
		l.faults, l.last = append(l.faults, f), max(l.last, n)
	}
	return l
}

// Next is what would be begun: the fault with its ID, its start and its end.
func (l *Ledger) Next(order Order, resolved Target, now time.Time) Fault {
	f := Fault{ID: "f" + strconv.Itoa(l.last+1), Order: order, Resolved: resolved, Start: now.UTC()}
	switch {
	case order.Kind == Kill || order.Kind == Stop:
		f.End, f.Why = f.Start, EndOnce
	case order.For > 0:
		f.Until = f.Start.Add(time.Duration(order.For))
	}
	return f
}

// Begin enters what Next made.
func (l *Ledger) Begin(f Fault) { l.faults, l.last = append(l.faults, f), l.last+1 }

// End closes a fault and returns it as it is then; false: there is no such
// active one.
func (l *Ledger) End(id, why string, now time.Time) (Fault, bool) {
	i := l.find(id)
	if i < 0 || !l.faults[i].Active() {
		return Fault{}, false
	}
	l.faults[i].End, l.faults[i].Why = now.UTC(), why
	return l.faults[i], true
}

// Get looks a fault up.
func (l *Ledger) Get(id string) (Fault, bool) {
	if i := l.find(id); i >= 0 {
		return l.faults[i], true
	}
	return Fault{}, false
}

// All lists every fault, the oldest first.
func (l *Ledger) All() []Fault { return slices.Clone(l.faults) }

// Active lists those that last, the oldest first.
func (l *Ledger) Active() []Fault {
	return slices.DeleteFunc(l.All(), func(f Fault) bool { return !f.Active() })
}

// Due lists the active ones whose time is over.
func (l *Ledger) Due(now time.Time) []Fault {
	return slices.DeleteFunc(l.Active(), func(f Fault) bool { return f.Until.IsZero() || now.Before(f.Until) })
}

// Deadline is when the next fault is due; false: none ever is.
func (l *Ledger) Deadline() (time.Time, bool) {
	var next time.Time
	for _, f := range l.Active() {
		if !f.Until.IsZero() && (next.IsZero() || f.Until.Before(next)) {
			next = f.Until
		}
	}
	return next, !next.IsZero()
}

func (l *Ledger) find(id string) int {
	return slices.IndexFunc(l.faults, func(f Fault) bool { return f.ID == id })
}
