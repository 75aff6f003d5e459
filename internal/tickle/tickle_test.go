package tickle

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"
)

func TestOthers(t *testing.T) {
	a, b, c := netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("10.1.0.2"), netip.MustParseAddr("10.1.0.3")
	var o Others
	o.Keep(nil)
	o.Remember(a, []netip.AddrPort{client(1)})
	o.Remember(a, []netip.AddrPort{client(3), client(2)})
	o.Remember(b, []netip.AddrPort{client(3), client(4)})
	o.Remember(c, []netip.AddrPort{client(5)})
	o.Keep([]netip.Addr{a, b})
	if diff := compare([]netip.AddrPort{client(2), client(3), client(4)}, o.Take()); diff != "" {
		t.Error(diff)
	}
	if left := o.Take(); len(left) != 0 {
		t.Errorf("it remembers %v", left)
	}
}

// sent is when each client was tickled.
type sent map[netip.AddrPort][]time.Duration

func (s sent) since(start time.Time) func(netip.AddrPort) error {
	return func(to netip.AddrPort) error {
		s[to] = append(s[to], time.Since(start))
		return nil
	}
}

// TestSendRepeats: at four times, also for those who were told of too late for the
// first.
func TestSendRepeats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const ms = time.Millisecond
		var o Others
		o.Remember(netip.Addr{}, []netip.AddrPort{client(1), client(2)})
		start, got := time.Now(), sent{}
		time.AfterFunc(300*ms, func() { o.Remember(netip.Addr{}, []netip.AddrPort{client(2), client(3)}) })
		r := Send(t.Context(), &o, got.since(start))
		want := sent{
			client(1): {0, 200 * ms, 600 * ms, 1200 * ms}, client(2): {0, 200 * ms, 600 * ms, 1200 * ms},
			client(3): {600 * ms, 1200 * ms},
		}
		for to, times := range want {
			if len(times) != len(got[to]) {
				t.Errorf("%s: got %v, want %v", to, got[to], times)
				continue
			}
			for i := range times {
				if times[i] != got[to][i] {
					t.Errorf("%s: got %v, want %v", to, got[to], times)
				}
			}
		}
		if len(got) != len(want) || r.Clients != 3 || r.Failed != 0 || r.Last != nil {
			t.Errorf("%d were tickled, %+v", len(got), r)
		}
	})
}

// TestSendKeepsTheRate, and the number, whatever others say.
func TestSendKeepsTheRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var o Others
		for machine := range 2 {
			var all []netip.AddrPort
			for n := range 30_000 {
				all = append(all, client(30_000*machine+n))
			}
			o.Remember(netip.AddrFrom4([4]byte{byte(machine)}), all)
		}
		start := time.Now()
		per := map[time.Duration]int{}
		r := Send(t.Context(), &o, func(netip.AddrPort) error {
			per[time.Since(start).Truncate(time.Second)]++
			return errors.New("no room")
		})
		total := 0
		for at, n := range per {
			if total += n; n > 10_000 {
				t.Errorf("%d in the second after %v", n, at)
			}
		}
		if r.Clients != MaxClients || total != len(rounds)*MaxClients || r.Failed != total || r.Last == nil {
			t.Errorf("%d segments, %+v", total, r)
		}
	})
}

func TestSendEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var o Others
		o.Remember(netip.Addr{}, []netip.AddrPort{client(1)})
		start, got := time.Now(), sent{}
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		Send(ctx, &o, got.since(start))
		if took := time.Since(start); took != 300*time.Millisecond || len(got[client(1)]) != 2 {
			t.Errorf("after %v it was tickled at %v", took, got)
		}
	})
}

func TestNone(t *testing.T) {
	var o Others
	machine := netip.MustParseAddr("10.0.0.2")
	if o.None(machine) {
		t.Error("nothing is known, and that counts as none")
	}
	o.Remember(machine, []netip.AddrPort{client(1)})
	if o.None(machine) {
		t.Error("one is none")
	}
	o.Remember(machine, nil)
	if !o.None(machine) || o.None(netip.MustParseAddr("10.0.0.3")) {
		t.Error("none is some, or another machine's is this one's")
	}
	o.Remember(netip.MustParseAddr("10.0.0.3"), []netip.AddrPort{client(1)})
	if o.None(machine) {
		t.Error("the third machine has one, which may be reached by way of this one")
	}
}
