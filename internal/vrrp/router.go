package vrrp

import (
	"fmt"
	"net/netip"
	"time"
)

// State is one of the three of RFC 9568 section 6.4.
type State string

// The states.
const (
	Initialize State = "initialize" // takes no part
	Backup     State = "backup"     // watches the active one
	Active     State = "active"     // holds the addresses
)

const (
	// band is what an impaired router's priority is lower by. Healthy ones have
	// MinPriority..MaxPriority, so that each of them is above each impaired one.
	band = 100
	// MinPriority is the least of a healthy router.
	MinPriority = 101
	// MaxPriority is the greatest: 255 would mean that the addresses are the
	// machine's own (RFC 9568 section 5.2.4).
	MaxPriority = 200

	// reannounce is how often the neighbours are told anew, at most, because
	// another router has advertised the addresses that are held here.
	reannounce = time.Second
	// pause is what a router that could not take the addresses waits in addition
	// before it tries again.
	pause = time.Second
)

// Change is a step from one state to another, or a hand-over that failed.
type Change struct {
	At       time.Time
	From, To State
	Reason   string
	Peer     netip.Addr // the router that it is about, if there is one
	Resigned bool       // Peer has given the addresses up, and this one takes them
}

// act is the kind of an action.
type act int

const (
	actSend     act = iota // an advertisement of priority, to one peer or all
	actTake                // put the addresses on the interface
	actGiveUp              // and remove them
	actAnnounce            // tell the neighbours where the addresses are
	actRecord              // a change
)

// action is what the router wants done, in this order with the others.
type action struct {
	do       act
	priority uint8
	to       netip.Addr // the zero address: all peers, as always in multicast
	change   Change
}

// router is the state machine of RFC 9568 section 6.4. It has neither a clock
// nor sockets: each method is an event at a moment and returns what is to be
// done. Whoever runs it calls timer when due has come, and never two methods
// at once.
type router struct {
	source    netip.Addr    // this router
	interval  time.Duration // Advertisement_Interval
	preempt   bool
	multicast bool
	base      uint8 // priority while healthy
	impaired  bool

	state State
	due   time.Time // of timer; zero in initialize

	// As the active one.
	sent      time.Time // the last advertisement
	announced time.Time
	move      *move // a hand-over under way

	// As a backup.
	heard    time.Time     // the last advertisement that held this router back, or since when it waits
	theirs   time.Duration // Active_Adver_Interval
	hurry    time.Time     // since when only Skew_Time is waited; zero: not
	leader   netip.Addr    // who advertised last; unknown after it has resigned
	priority uint8         // of leader
	resigned netip.Addr    // who did last, since this router became a backup

	// listening is set after a timer fired so late that this process must have
	// been stopped: what others have sent meanwhile is heard first.
	listening bool
}

type move struct {
	to   netip.Addr
	done func(by netip.Addr, err error)
}

// own is the priority that is advertised.
func (r *router) own() uint8 {
	if r.impaired {
		return r.base - band
	}
	return r.base
}

// skew is Skew_Time for an active router that advertises every interval.
func (r *router) skew(interval time.Duration) time.Duration {
	return time.Duration(256-int(r.own())) * interval / 256
}

// down is Active_Down_Interval.
func (r *router) down(interval time.Duration) time.Duration { return 3*interval + r.skew(interval) }

// start begins as a backup: an owner of the addresses (priority 255), who would
// begin as the active one, there is none.
func (r *router) start(at time.Time) []action {
	return r.wait(at, Change{Reason: "started"})
}

// wait makes this router a backup that gives the others a whole
// Active_Down_Interval.
func (r *router) wait(at time.Time, why Change) []action {
	why.At, why.From, why.To = at, r.state, Backup
	var actions []action
	if r.state == Active {
		actions = append(actions, action{do: actGiveUp})
	}
	if r.move != nil && why.Peer.IsValid() {
		r.move.done(why.Peer, nil)
	} else if r.move != nil {
		r.move.done(why.Peer, errNotTaken)
	}
	r.state, r.move, r.listening = Backup, nil, false
	r.heard, r.theirs, r.hurry = at, r.interval, time.Time{}
	r.leader, r.priority, r.resigned = netip.Addr{}, 0, netip.Addr{}
	r.watch()
	return append(actions, action{do: actRecord, change: why})
}

// watch sets the timer of a backup.
func (r *router) watch() {
	r.due = r.heard.Add(r.down(r.theirs))
	if r.hurry.IsZero() {
		return
	}
	if soon := r.hurry.Add(r.skew(r.theirs)); soon.Before(r.due) {
		r.due = soon
	}
}

// wake gives the addresses up if this process slept so long as the active one
// that another has taken them: before anything else is done or sent.
func (r *router) wake(at time.Time) []action {
	late := at.Sub(r.sent) - r.interval
	if r.state != Active || late <= r.down(r.interval) {
		return nil
	}
	return r.wait(at, Change{Reason: fmt.Sprintf("was stopped for %v: another may have taken over", late.Round(time.Millisecond))})
}

// timer is the event that due has come. A call before that does nothing.
func (r *router) timer(at time.Time) []action {
	actions := r.wake(at)
	if r.state == Initialize || at.Before(r.due) {
		return actions
	}
	if at.Sub(r.due) > r.interval {
		r.listening, r.due = true, at.Add(r.interval/4)
		return actions
	}
	r.listening = false
	if r.state == Active {
		return append(actions, r.advertise(at)...)
	}
	return append(actions, r.takeOver(at)...)
}

// takeOver sends first, so that another active one lets go before two have the
// addresses.
func (r *router) takeOver(at time.Time) []action {
	change := Change{At: at, From: r.state, To: Active, Peer: r.leader}
	switch {
	case !r.leader.IsValid() && !r.hurry.IsZero():
		change.Reason, change.Peer, change.Resigned = "the active router resigned", r.resigned, true
	case !r.leader.IsValid():
		change.Reason = "there is no active router"
	case !r.hurry.IsZero():
		change.Reason = fmt.Sprintf("the active router is impaired: it has priority %d", r.priority)
	case r.preempt && r.priority < r.own():
		change.Reason = "the active router has a lower priority"
	default:
		change.Reason = fmt.Sprintf("heard nothing from the active router for %v", at.Sub(r.heard).Round(time.Millisecond))
	}
	r.state, r.announced, r.hurry = Active, at, time.Time{}
	actions := r.send(at, r.own())
	return append(actions, action{do: actTake}, action{do: actAnnounce}, action{do: actRecord, change: change})
}

// send tells all peers, and sets the timer for the next time.
func (r *router) send(at time.Time, priority uint8) []action {
	r.sent, r.due = at, at.Add(r.interval)
	return []action{{do: actSend, priority: priority}}
}

// advertise is what an active router does each interval. A hand-over that is
// still under way then has failed.
func (r *router) advertise(at time.Time) []action {
	actions := r.send(at, r.own())
	if r.move == nil {
		return actions
	}
	change := Change{At: at, From: Active, To: Active, Peer: r.move.to, Reason: "nobody took the addresses over"}
	r.move.done(netip.Addr{}, errNotTaken)
	r.move = nil
	return append(actions, action{do: actRecord, change: change})
}

// hear is an advertisement of this virtual router's from another one.
func (r *router) hear(at time.Time, from netip.Addr, ad Advertisement) []action {
	actions := r.wake(at)
	switch r.state {
	case Backup:
		r.follow(at, from, ad)
	case Active:
		actions = append(actions, r.contend(at, from, ad)...)
	case Initialize:
	}
	return actions
}

// follow is hear for a backup.
func (r *router) follow(at time.Time, from netip.Addr, ad Advertisement) {
	if ad.Priority == 0 {
		r.leader, r.priority, r.resigned, r.hurry = netip.Addr{}, 0, from, at
		r.watch()
		return
	}
	r.leader, r.priority = from, ad.Priority
	switch {
	case r.outclasses(ad.Priority):
		if r.hurry.IsZero() {
			r.hurry = at
		}
		r.heard, r.theirs = at, ad.Interval
	case r.preempt && ad.Priority < r.own():
		return // it does not hold this router back
	default:
		r.heard, r.theirs, r.hurry = at, ad.Interval, time.Time{}
	}
	r.watch()
}

// outclasses tells whether this router is healthy and one of that priority
// impaired.
func (r *router) outclasses(priority uint8) bool { return !r.impaired && priority <= band }

// contend is hear for an active router: one of the two must yield.
func (r *router) contend(at time.Time, from netip.Addr, ad Advertisement) []action {
	higher := ad.Priority > r.own() || ad.Priority == r.own() && from.Compare(r.source) > 0
	yield := Change{Peer: from}
	switch {
	case r.listening && (ad.Priority == 0 || r.outclasses(ad.Priority)):
		return nil // what is sent now could make the one yield to whom this router then yields itself
	case ad.Priority == 0:
		return r.send(at, r.own())
	case r.move != nil && (r.multicast || from == r.move.to):
		yield.Reason, higher = "handed over", false
	case r.listening:
		yield.Reason = "was stopped for a while, another took over"
	case higher:
		yield.Reason = fmt.Sprintf("another router is active with priority %d, here it is %d", ad.Priority, r.own())
	default:
		// The other one has told the neighbours that the addresses are there.
		actions := r.send(at, r.own())
		if at.Sub(r.announced) >= reannounce {
			r.announced = at
			actions = append(actions, action{do: actAnnounce})
		}
		return actions
	}
	last := action{do: actSend, priority: r.own(), to: from}
	actions := r.wait(at, yield)
	r.follow(at, from, ad)
	if higher && (!r.multicast || !r.impaired) {
		// The other one may not know of this one yet. It has to, since neighbours
		// that were told here must be told again where the addresses are. Healthy
		// backups must not take it for an impaired router that is active.
		actions = append(actions, last)
	}
	return actions
}

// setPriority changes the priority, or the health. An active router says so at
// once: healthy backups pre-empt an impaired one, and where there is none the
// addresses stay.
func (r *router) setPriority(at time.Time, base uint8, impaired bool) []action {
	before := r.own()
	r.base, r.impaired = base, impaired
	actions := r.wake(at)
	switch {
	case r.own() == before:
	case r.state == Active && r.move == nil && !r.listening:
		actions = append(actions, r.send(at, r.own())...)
	case r.state == Backup:
		if r.leader.IsValid() && !r.outclasses(r.priority) {
			r.hurry = time.Time{}
		}
		r.watch()
	}
	return actions
}

// resign hands the addresses over to a peer, or in multicast to whoever of
// those that hear it has the greatest priority. done is called when that one
// is active, with its address, or when nobody took them in two intervals. Till
// then they stay here, and nothing is sent that would hold the peer back; other
// peers wait for three.
func (r *router) resign(at time.Time, to netip.Addr, done func(netip.Addr, error)) []action {
	actions := r.wake(at)
	if r.state != Active || r.move != nil {
		done(netip.Addr{}, errNotActive)
		return actions
	}
	actions = append(actions, r.send(at, r.own())...)
	r.move, r.due = &move{to: to, done: done}, at.Add(2*r.interval)
	return append(actions, action{do: actSend, to: to})
}

// failed is the event that the addresses could not be taken: another one shall.
func (r *router) failed(at time.Time, err error) []action {
	if r.state != Active {
		return nil
	}
	actions := r.wait(at, Change{Reason: err.Error()})
	r.heard = at.Add(pause)
	r.watch()
	return append(actions, action{do: actSend})
}

// shutdown lets go and says so, in this order.
func (r *router) shutdown(at time.Time) []action {
	var actions []action
	if r.state == Active {
		actions = append(actions, action{do: actGiveUp}, action{do: actSend})
	}
	if r.move != nil {
		r.move.done(netip.Addr{}, errNotActive)
	}
	change := Change{At: at, From: r.state, To: Initialize, Reason: "shut down"}
	r.state, r.move, r.due = Initialize, nil, time.Time{}
	return append(actions, action{do: actRecord, change: change})
}
