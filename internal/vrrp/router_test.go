package vrrp

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const interval = 100 * time.Millisecond

func addr(n byte) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 0, n}) }

func moment(d time.Duration) time.Time { return time.Unix(0, 0).Add(d) }

// newRouter is 10.0.0.5 of priority 156, a backup since moment(0).
func newRouter() *router {
	r := &router{source: addr(5), interval: interval, base: 156, state: Initialize}
	r.start(moment(0))
	return r
}

// newActive took over at moment(0).
func newActive() *router {
	r := newRouter()
	r.takeOver(moment(0))
	return r
}

func ad(priority uint8) Advertisement {
	return Advertisement{VRID: 7, Priority: priority, Interval: interval}
}

// words are actions as text.
func words(actions []action) string {
	var all []string
	for _, a := range actions {
		switch a.do {
		case actSend:
			word := "send"
			if a.priority == 0 {
				word = "resign"
			}
			if a.to.IsValid() {
				word += " to " + a.to.String()
			}
			all = append(all, word)
		case actTake:
			all = append(all, "take")
		case actGiveUp:
			all = append(all, "give up")
		case actAnnounce:
			all = append(all, "announce")
		case actRecord:
			all = append(all, string(a.change.To))
		}
	}
	return strings.Join(all, ", ")
}

func TestRules(t *testing.T) {
	type event func(*router) []action
	hear := func(at time.Duration, from byte, a Advertisement) event {
		return func(r *router) []action { return r.hear(moment(at), addr(from), a) }
	}
	timer := func(at time.Duration) event {
		return func(r *router) []action { return r.timer(moment(at)) }
	}
	// Skew_Time with an interval of 100 ms is 39.0625 ms, of a second ten times that.
	const skew = 390625 * 100 * time.Nanosecond
	slow := ad(180)
	slow.Interval = time.Second
	for name, c := range map[string]struct {
		router *router
		set    func(*router)
		events []event
		want   string // of the last event
		state  State
		due    time.Duration
	}{
		"waits for a whole Active_Down_Interval": {newRouter(), nil, []event{timer(338 * time.Millisecond)}, "", Backup, 3*interval + skew},
		"then takes over, sending first":         {newRouter(), nil, []event{timer(340 * time.Millisecond)}, "send, take, announce, active", Active, 440 * time.Millisecond},
		"waits by the active router's interval":  {newRouter(), nil, []event{hear(time.Second, 9, slow)}, "", Backup, time.Second + 3*time.Second + 10*skew},
		"does not pre-empt a healthy one":        {newRouter(), nil, []event{hear(interval, 9, ad(101))}, "", Backup, interval + 3*interval + skew},
		"does so if told to":                     {newRouter(), func(r *router) { r.preempt = true }, []event{hear(interval, 9, ad(101))}, "", Backup, 3*interval + skew},
		"waits for Skew_Time after a resignation": {
			newRouter(), nil, []event{hear(interval, 9, ad(0))}, "", Backup, interval + skew,
		},
		"pre-empts an impaired one after Skew_Time": {newRouter(), nil, []event{hear(interval, 9, ad(100))}, "", Backup, interval + skew},
		"counts that from the first advertisement": {
			newRouter(), nil, []event{hear(interval, 9, ad(100)), hear(interval+20*time.Millisecond, 9, ad(100))}, "", Backup, interval + skew,
		},
		"leaves an impaired one that recovers": {
			newRouter(), nil, []event{hear(interval, 9, ad(100)), hear(interval+20*time.Millisecond, 9, ad(101))}, "", Backup, interval + 20*time.Millisecond + 3*interval + skew,
		},
		"leaves an impaired one when impaired itself": {
			newRouter(), nil,
			[]event{hear(interval, 9, ad(100)), func(r *router) []action { return r.setPriority(moment(interval), 156, true) }},
			"", Backup, interval + 3*interval + 200*interval/256,
		},
		"leaves an impaired one if it is impaired": {
			newRouter(), func(r *router) { r.impaired = true }, []event{hear(interval, 9, ad(1))}, "", Backup, interval + 3*interval + 200*interval/256,
		},
		"listens first if it was stopped": {newRouter(), nil, []event{timer(2 * time.Second)}, "", Backup, 2*time.Second + interval/4},
		"takes over if it then hears nothing": {
			newRouter(), nil,
			[]event{timer(2 * time.Second), timer(2*time.Second + interval/4)},
			"send, take, announce, active", Active, 2*time.Second + interval/4 + interval,
		},

		"advertises":                               {newActive(), nil, []event{timer(interval)}, "send", Active, 2 * interval},
		"answers a resignation":                    {newActive(), nil, []event{hear(50*time.Millisecond, 9, ad(0))}, "send", Active, 150 * time.Millisecond},
		"yields to a higher priority":              {newActive(), nil, []event{hear(50*time.Millisecond, 1, ad(157))}, "give up, backup, send to 10.0.0.1", Backup, 50*time.Millisecond + 3*interval + skew},
		"yields to an equal with a higher address": {newActive(), nil, []event{hear(50*time.Millisecond, 9, ad(156))}, "give up, backup, send to 10.0.0.9", Backup, 50*time.Millisecond + 3*interval + skew},
		"stays before an equal with a lower one":   {newActive(), nil, []event{hear(50*time.Millisecond, 1, ad(156))}, "send", Active, 150 * time.Millisecond},
		"announces again what a lower one took":    {newActive(), func(r *router) { r.sent = moment(time.Second) }, []event{hear(time.Second, 9, ad(155))}, "send, announce", Active, time.Second + interval},
		"announces once a second only": {
			newActive(), func(r *router) { r.sent = moment(time.Second) },
			[]event{hear(time.Second, 9, ad(155)), hear(time.Second+interval, 9, ad(155))},
			"send", Active, time.Second + 2*interval,
		},
		"says at once that it is impaired": {newActive(), nil, []event{func(r *router) []action { return r.setPriority(moment(20*time.Millisecond), 156, true) }}, "send", Active, 120 * time.Millisecond},

		"was stopped for a while: listens":       {newActive(), nil, []event{timer(350 * time.Millisecond)}, "", Active, 375 * time.Millisecond},
		"and goes on if nothing is heard":        {newActive(), nil, []event{timer(350 * time.Millisecond), timer(375 * time.Millisecond)}, "send", Active, 475 * time.Millisecond},
		"and yields to whoever has taken over":   {newActive(), nil, []event{timer(350 * time.Millisecond), hear(351*time.Millisecond, 1, ad(110))}, "give up, backup", Backup, 351*time.Millisecond + 3*interval + skew},
		"but not to an impaired one":             {newActive(), nil, []event{timer(350 * time.Millisecond), hear(351*time.Millisecond, 1, ad(90))}, "", Active, 375 * time.Millisecond},
		"was stopped for long: gives up":         {newActive(), nil, []event{timer(440 * time.Millisecond)}, "give up, backup", Backup, 440*time.Millisecond + 3*interval + skew},
		"whatever comes first":                   {newActive(), nil, []event{hear(time.Second, 1, ad(102))}, "give up, backup", Backup, time.Second + 3*interval + skew},
		"even if it would be told to move":       {newActive(), nil, []event{func(r *router) []action { return r.resign(moment(time.Second), addr(9), func(netip.Addr, error) {}) }}, "give up, backup", Backup, time.Second + 3*interval + skew},
		"even if it would be told its priority":  {newActive(), nil, []event{func(r *router) []action { return r.setPriority(moment(time.Second), 120, false) }}, "give up, backup", Backup, time.Second + 3*interval + 136*interval/256},
		"lets go before it resigns at the end":   {newActive(), nil, []event{func(r *router) []action { return r.shutdown(moment(interval)) }}, "give up, resign, initialize", Initialize, 0},
		"ends quietly as a backup":               {newRouter(), nil, []event{func(r *router) []action { return r.shutdown(moment(interval)) }}, "initialize", Initialize, 0},
		"lets others have what it cannot take":   {newActive(), nil, []event{func(r *router) []action { return r.failed(moment(0), errNotTaken) }}, "give up, backup, resign", Backup, pause + 3*interval + skew},
		"hears nothing before it has started":    {&router{state: Initialize}, nil, []event{hear(0, 9, ad(200))}, "", Initialize, 0},
		"has no timer before it has started":     {&router{state: Initialize}, nil, []event{timer(time.Hour)}, "", Initialize, 0},
		"a move's advertisement of 0 is no take": {newActive(), func(r *router) { r.multicast, r.move = true, &move{} }, []event{hear(interval/2, 9, ad(0))}, "send", Active, interval/2 + interval},
	} {
		t.Run(name, func(t *testing.T) {
			r := c.router
			if c.set != nil {
				c.set(r)
			}
			var got []action
			for _, e := range c.events {
				got = e(r)
			}
			due := r.due.Sub(moment(0))
			if r.due.IsZero() {
				due = 0
			}
			if words(got) != c.want || r.state != c.state || due != c.due {
				t.Errorf("got %q, %s, due %v; want %q, %s, %v", words(got), r.state, due, c.want, c.state, c.due)
			}
		})
	}
}

// TestMove: the peer is told alone, nothing holds it back, and only its own
// advertisement ends the hand-over.
func TestMove(t *testing.T) {
	r := newActive()
	var by netip.Addr
	var failed error
	calls := 0
	done := func(a netip.Addr, err error) { by, failed, calls = a, err, calls+1 }
	if got := words(r.resign(moment(10*time.Millisecond), addr(9), done)); got != "send, resign to 10.0.0.9" {
		t.Fatalf("got %q", got)
	}
	if got := words(r.timer(moment(interval))); got != "" {
		t.Errorf("it sends %q, which holds the peer back", got)
	}
	r.resign(moment(interval), addr(8), func(_ netip.Addr, err error) {
		if err == nil {
			t.Error("a second hand-over began during the first")
		}
	})
	if got := words(r.hear(moment(interval), addr(9), ad(110))); got != "give up, backup" || by != addr(9) || failed != nil {
		t.Errorf("got %q, by %v, %v", got, by, failed)
	}

	r = newActive()
	r.resign(moment(0), addr(9), done)
	if got := words(r.timer(moment(2 * interval))); got != "send, active" || failed == nil {
		t.Errorf("nobody took over, and it does %q, %v", got, failed)
	}
	r = newRouter()
	r.resign(moment(0), addr(9), done)
	if failed == nil || calls != 3 {
		t.Errorf("a backup hands over: %v, %d", failed, calls)
	}
}

// TestMoveEnds whatever ends it, and whoever waits for it is told.
func TestMoveEnds(t *testing.T) {
	for name, end := range map[string]func(*router) []action{
		"it was stopped":   func(r *router) []action { return r.timer(moment(time.Second)) },
		"it shuts down":    func(r *router) []action { return r.shutdown(moment(interval)) },
		"it cannot take":   func(r *router) []action { return r.failed(moment(interval), errNotTaken) },
		"nobody took them": func(r *router) []action { return r.timer(moment(2 * interval)) },
	} {
		r := newActive()
		calls := 0
		var failed error
		r.resign(moment(0), addr(9), func(_ netip.Addr, err error) { failed, calls = err, calls+1 })
		end(r)
		r.timer(moment(2 * time.Second))
		if calls != 1 || failed == nil {
			t.Errorf("%s: told %d times, %v", name, calls, failed)
		}
	}
	// Nothing is said meanwhile that would hold the peer back.
	r := newActive()
	r.resign(moment(0), addr(9), func(netip.Addr, error) {})
	if got := words(r.setPriority(moment(interval), 156, true)); got != "" || r.due != moment(2*interval) {
		t.Errorf("impaired during a move it does %q, due %v", got, r.due)
	}
	r = newActive()
	r.timer(moment(350 * time.Millisecond))
	if got := words(r.setPriority(moment(360*time.Millisecond), 156, true)); got != "" || r.due != moment(375*time.Millisecond) {
		t.Errorf("impaired while it listens it does %q, due %v", got, r.due)
	}
}

// TestTimers of RFC 9568 section 6.1, as it writes them.
func TestTimers(t *testing.T) {
	got := map[uint8]time.Duration{}
	for _, p := range []uint8{101, 150, 200} {
		r := &router{base: p}
		got[p] = r.skew(256 * time.Millisecond)
		r.impaired = true
		got[p-band] = r.skew(256 * time.Millisecond)
		if down := r.down(time.Second); down != 3*time.Second+r.skew(time.Second) {
			t.Errorf("Active_Down_Interval is %v", down)
		}
	}
	want := map[uint8]time.Duration{}
	for _, p := range []uint8{1, 50, 100, 101, 150, 200} {
		want[p] = time.Duration(256-int(p)) * time.Millisecond
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestSpread(t *testing.T) {
	var got []uint8
	for i := range 3 {
		got = append(got, Spread(i, 3))
	}
	got = append(got, Spread(0, 1), Spread(6, 7), Spread(199, 200), Spread(-1, 3), Spread(0, 0))
	if diff := cmp.Diff([]uint8{200, 151, 101, 200, 101, 101, 200, 200}, got); diff != "" {
		t.Error(diff)
	}
}
