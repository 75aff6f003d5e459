package vrrp

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"kuorum/internal/cluster"
)

// hub is a network of routers in one process.
type hub struct {
	mu    sync.Mutex
	wires map[netip.Addr]*hubWire
}

type hubWire struct {
	hub    *hub
	source netip.Addr
	in     chan Packet
	closed chan struct{}
	once   sync.Once
	cut    bool // of the hub's mutex, as is gone
	gone   bool
	broken error
}

func (h *hub) wire(source netip.Addr) *hubWire {
	w := &hubWire{hub: h, source: source, in: make(chan Packet, 1000), closed: make(chan struct{})}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.wires[source] = w
	return w
}

func (h *hub) cut(w *hubWire, cut bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	w.cut = cut
}

func (w *hubWire) Send(data []byte, to netip.Addr) error {
	w.hub.mu.Lock()
	defer w.hub.mu.Unlock()
	if w.gone {
		return errLinkGone
	}
	if w.cut {
		return errors.New("the cable is out")
	}
	for source, other := range w.hub.wires {
		if other != w && !other.cut && (source == to || to.IsMulticast()) {
			other.in <- Packet{From: w.source, To: to, TTL: 255, Data: slices.Clone(data)}
		}
	}
	return nil
}

func (w *hubWire) Receive() (Packet, error) {
	select {
	case p := <-w.in:
		return p, nil
	case <-w.closed:
		if w.broken != nil {
			return Packet{}, w.broken
		}
		return Packet{}, net.ErrClosed
	}
}

func (w *hubWire) Close() error {
	w.once.Do(func() { close(w.closed) })
	return nil
}

// hand is a Holder that remembers.
type hand struct {
	mu                  sync.Mutex
	start               time.Time
	holds               bool
	refuses, keeps      error // what Take and GiveUp say
	announced           []time.Duration
	away                bool // given up since it was taken
	announcedAfterwards bool // while it was
}

func (h *hand) Take() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.refuses == nil {
		h.holds, h.away = true, false
	}
	return h.refuses
}

func (h *hand) GiveUp() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.away = true
	if h.keeps == nil {
		h.holds = false
	}
	return h.keeps
}

func (h *hand) Announce() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.announced = append(h.announced, time.Since(h.start))
	h.announcedAfterwards = h.announcedAfterwards || h.away
	return nil
}

func (h *hand) has() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.holds
}

func (h *hand) lose() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.holds = false
}

func (h *hand) say(refuses, keeps error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.refuses, h.keeps = refuses, keeps
}

// party is routers that run, 10.0.0.1 with the greatest priority.
type party struct {
	t       *testing.T
	hub     *hub
	wires   []*hubWire
	hands   []*hand
	runners []*Runner
	cancels []context.CancelFunc
	ends    []chan error
	changes []Change // of the first
}

// newParty must be called in a bubble of synctest.
func newParty(t *testing.T, n int, set func(*Config)) *party {
	p := &party{t: t, hub: &hub{wires: map[netip.Addr]*hubWire{}}}
	for i := range n {
		cfg := newConfig()
		cfg.Source, cfg.Priority, cfg.Peers = addr(byte(i+1)), Spread(i, n), nil
		for j := range n {
			if j != i {
				cfg.Peers = append(cfg.Peers, addr(byte(j+1)))
			}
		}
		if set != nil {
			set(&cfg)
		}
		wire, hand := p.hub.wire(cfg.Source), &hand{start: time.Now()}
		observe := func(c Change) {
			if i == 0 {
				p.changes = append(p.changes, c)
			}
		}
		r, err := New(cfg, wire, hand, observe)
		if err != nil {
			t.Fatal(err)
		}
		p.wires, p.hands, p.runners = append(p.wires, wire), append(p.hands, hand), append(p.runners, r)
	}
	for _, r := range p.runners {
		ctx, cancel := context.WithCancel(t.Context())
		end := make(chan error, 1)
		go func() { end <- r.Run(ctx) }()
		p.cancels, p.ends = append(p.cancels, cancel), append(p.ends, end)
	}
	return p
}

// after lets time pass, and then wants the address at exactly these.
func (p *party) after(d time.Duration, want ...int) {
	p.t.Helper()
	<-time.After(d)
	synctest.Wait()
	var got []int
	for i, h := range p.hands {
		if h.has() {
			got = append(got, i)
		}
	}
	if !slices.Equal(got, want) {
		for i, r := range p.runners {
			p.t.Logf("%d: %+v", i, r.Status())
		}
		p.t.Fatalf("the address is at %v, wanted at %v", got, want)
	}
}

func (p *party) stop() {
	for i, cancel := range p.cancels {
		cancel()
		if err := <-p.ends[i]; err != nil {
			p.t.Errorf("router %d ends with %v", i, err)
		}
		if p.hands[i].has() {
			p.t.Errorf("router %d keeps the address after its end", i)
		}
		if p.hands[i].announcedAfterwards {
			p.t.Errorf("router %d announced what it had not", i)
		}
	}
}

func bubble(t *testing.T, n int, set func(*Config), do func(*party)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		p := newParty(t, n, set)
		do(p)
		p.stop()
	})
}

func TestTakeOver(t *testing.T) {
	for _, multicast := range []bool{false, true} {
		bubble(t, 3, func(c *Config) { c.Multicast = multicast }, func(p *party) {
			p.after(321 * time.Millisecond) // 3 intervals and 56/256
			p.after(time.Millisecond, 0)
			p.after(time.Minute, 0)
			if s := p.runners[2].Status(); s.State != Backup || s.Active != addr(1) || s.ActivePriority != 200 || s.Transitions != 1 {
				t.Errorf("a backup says %+v", s)
			}
			if s := p.runners[0].Status(); s.State != Active || s.Active != addr(1) || s.Priority != 200 || s.Reason != "there is no active router" {
				t.Errorf("the active router says %+v", s)
			}
			p.hub.cut(p.wires[0], true)
			p.after(450*time.Millisecond, 0, 1) // nothing tells it
			if s := p.runners[0].Status(); s.Failures == 0 || s.LastFailure != "the cable is out" {
				t.Errorf("it says %+v", s)
			}
			p.hub.cut(p.wires[0], false)
			p.after(interval, 0)
			p.cancels[0]()
			p.after(42*time.Millisecond, 1)
		})
	}
}

// TestAnnouncements: at once and three times again, and no more once the
// address is elsewhere.
func TestAnnouncements(t *testing.T) {
	bubble(t, 2, nil, func(p *party) {
		p.after(2*time.Second, 0)
		took := 3*interval + 56*interval/256
		want := []time.Duration{took, took + 50*time.Millisecond, took + 200*time.Millisecond, took + time.Second}
		if diff := cmp.Diff(want, p.hands[0].announced); diff != "" {
			t.Error(diff)
		}
		p.runners[0].SetImpaired(true)
		p.after(100*time.Millisecond, 1)
		p.runners[1].SetImpaired(true)
		p.runners[0].SetImpaired(false)
		p.after(2*time.Second, 0)
		if n := len(p.hands[1].announced); n != 2 && n != 3 {
			t.Errorf("the other announced %d times", n)
		}
	})
}

func TestImpairedHandsOver(t *testing.T) {
	bubble(t, 3, nil, func(p *party) {
		p.after(time.Second, 0)
		p.runners[0].SetImpaired(true)
		if s := p.runners[0].Status(); !s.Impaired || s.Priority != 100 {
			t.Errorf("it says %+v", s)
		}
		p.after(42*time.Millisecond, 1)
		p.runners[1].SetImpaired(true)
		p.runners[2].SetImpaired(true)
		p.after(time.Minute, 1)
		p.runners[0].SetImpaired(false)
		p.after(interval+23*time.Millisecond, 0)
		if got := p.changes[len(p.changes)-1]; got.From != Backup || got.To != Active || got.Peer != addr(2) || got.Reason != "the active router is impaired: it has priority 51" {
			t.Errorf("it was told %+v", got)
		}
	})
}

func TestMoves(t *testing.T) {
	bubble(t, 3, nil, func(p *party) {
		p.after(time.Second, 0)
		if err := p.runners[0].Move(p.t.Context(), addr(3)); err != nil {
			t.Error(err)
		}
		p.after(time.Minute, 2)
		var problem *cluster.Problem
		if err := p.runners[0].Move(p.t.Context(), addr(2)); !errors.As(err, &problem) || problem.Exit != cluster.ExitRefused {
			t.Errorf("a backup moves: %v", err)
		}
		if err := p.runners[2].Move(p.t.Context(), addr(9)); !errors.As(err, &problem) || problem.Exit != cluster.ExitUsage {
			t.Errorf("to a stranger: %v", err)
		}
		p.hub.cut(p.wires[1], true)
		start := time.Now()
		if err := p.runners[2].Move(p.t.Context(), addr(2)); err == nil || time.Since(start) > 2*interval {
			t.Errorf("to a dead one, after %v: %v", time.Since(start), err)
		}
		if got := p.runners[2].Status(); got.Transitions != 2 || got.Reason != "nobody took the addresses over" {
			t.Errorf("it is %+v", got)
		}
		p.after(0, 2)
		ctx, cancel := context.WithTimeout(p.t.Context(), time.Millisecond)
		defer cancel()
		if err := p.runners[2].Move(ctx, addr(2)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("in no time: %v", err)
		}
	})
	bubble(t, 3, func(c *Config) { c.Multicast = true }, func(p *party) {
		p.after(time.Second, 0)
		if err := p.runners[0].Move(p.t.Context(), addr(3)); err == nil || !strings.Contains(err.Error(), "10.0.0.2 took them") {
			t.Errorf("in multicast the greatest priority wins: %v", err)
		}
		p.after(time.Second, 1)
		if err := p.runners[1].Move(p.t.Context(), addr(1)); err != nil {
			t.Error(err)
		}
		p.after(time.Second, 0)
	})
}

func TestPeersChange(t *testing.T) {
	bubble(t, 3, nil, func(p *party) {
		p.after(time.Second, 0)
		if err := p.runners[0].SetPeers([]netip.Addr{addr(1)}, 150); err == nil {
			t.Error("it is its own peer")
		}
		if err := p.runners[0].SetPeers([]netip.Addr{addr(2)}, 201); err == nil {
			t.Error("any priority will do")
		}
		for range 20 {
			for i, r := range p.runners {
				var peers []netip.Addr
				for j := range p.runners {
					if j != i {
						peers = append(peers, addr(byte(j+1)))
					}
				}
				if err := r.SetPeers(peers, Spread((i+2)%3, 3)); err != nil {
					t.Error(err)
				}
			}
			p.after(70*time.Millisecond, 0)
		}
		if got := p.runners[0].Status(); got.Priority != 101 || got.Transitions != 2 {
			t.Errorf("it is %+v", got)
		}
		// One that is no peer any more is not told and not heard.
		if err := p.runners[0].SetPeers([]netip.Addr{addr(2)}, 101); err != nil {
			t.Error(err)
		}
		p.after(time.Second, 0, 2)
		if got := p.runners[0].Status(); got.Dropped[DropStranger] == 0 || len(got.Dropped) != 1 {
			t.Errorf("it dropped %v", got.Dropped)
		}
	})
}

// TestAddressRefused: who cannot take the address lets another have it, and tries
// again; who cannot give it up tries until it works.
func TestAddressRefused(t *testing.T) {
	bubble(t, 2, nil, func(p *party) {
		p.hands[0].say(errors.New("no such link"), nil)
		p.after(500*time.Millisecond, 1)
		p.after(3*time.Second, 1)
		if got := p.runners[0].Status(); got.Transitions != 3 || got.Reason != "no such link" {
			t.Errorf("it is %+v", got)
		}
		p.hub.cut(p.wires[1], true)
		p.hands[0].say(nil, nil)
		p.after(2*time.Second, 0, 1)

		p.hands[1].say(nil, errors.New("the kernel says no"))
		p.hub.cut(p.wires[1], false)
		p.after(4*time.Second, 0, 1)
		if got := p.runners[1].Status(); got.State != Backup || got.Failures < 4 || got.LastFailure != "the kernel says no" {
			t.Errorf("it is %+v", got)
		}
		p.hands[1].say(nil, nil)
		p.after(time.Second, 0)

		// Also one that has it, and finds that it has not any more.
		p.hands[0].say(errors.New("no such link"), nil)
		p.after(1100*time.Millisecond, 1)
		if got := p.runners[0].Status(); got.State != Backup || got.Reason != "no such link" {
			t.Errorf("it is %+v", got)
		}
	})
}

// TestTakenAgain: what could not be given up, and is to be held again, stays.
func TestTakenAgain(t *testing.T) {
	bubble(t, 2, nil, func(p *party) {
		p.after(time.Second, 0)
		p.hands[0].say(nil, errors.New("the kernel says no"))
		p.runners[0].SetImpaired(true)
		p.after(interval, 0, 1)
		p.hands[0].say(nil, nil)
		p.runners[0].SetImpaired(false)
		p.runners[1].SetImpaired(true)
		p.after(interval, 0)
		p.after(5*time.Second, 0)
	})
	synctest.Test(t, func(t *testing.T) {
		p := newParty(t, 1, nil)
		p.after(time.Second, 0)
		p.hands[0].say(nil, errors.New("the kernel says no"))
		p.cancels[0]()
		if err := <-p.ends[0]; err == nil || !strings.Contains(err.Error(), "the kernel says no") {
			t.Errorf("it ends with %v, and keeps the address", err)
		}
	})
}

// TestPriorityCountsAtOnce, also for a timer that runs.
func TestPriorityCountsAtOnce(t *testing.T) {
	bubble(t, 2, nil, func(p *party) {
		p.after(time.Second, 0)
		last := 922 * time.Millisecond // the last advertisement, about
		p.hub.cut(p.wires[0], true)
		p.after(200*time.Millisecond, 0)
		if err := p.runners[1].SetPeers([]netip.Addr{addr(1)}, 200); err != nil {
			t.Error(err)
		}
		p.after(last+3*interval+22*time.Millisecond-1200*time.Millisecond, 0, 1)
	})
}

// TestAddressComesBack: who holds the address does so whatever others do.
func TestAddressComesBack(t *testing.T) {
	bubble(t, 2, nil, func(p *party) {
		p.after(time.Second, 0)
		for range 3 {
			p.hands[0].lose()
			p.after(0)
			p.after(time.Second, 0)
		}
		p.hands[0].lose()
		p.runners[0].SetImpaired(true)
		p.after(10*time.Second, 1)
	})
}

func TestStrays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &hub{wires: map[netip.Addr]*hubWire{}}
		hand := &hand{holds: true, keeps: errors.New("it is the machine's own")}
		r, err := New(newConfig(), h.wire(addr(1)), hand, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "the machine's own") {
			t.Errorf("it runs: %v", err)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		p := &party{t: t, hub: &hub{wires: map[netip.Addr]*hubWire{}}}
		left := &hand{holds: true}
		r, err := New(newConfig(), p.hub.wire(addr(1)), left, nil)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		end := make(chan error, 1)
		go func() { end <- r.Run(ctx) }()
		synctest.Wait()
		if left.has() {
			t.Error("what an earlier run left is there")
		}
		cancel()
		if err := <-end; err != nil {
			t.Error(err)
		}
	})
}

func TestWireBreaks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newParty(t, 1, nil)
		p.after(time.Second, 0)
		p.wires[0].broken = errors.New("the cable is broken")
		_ = p.wires[0].Close()
		if err := <-p.ends[0]; err == nil || !strings.Contains(err.Error(), "cannot receive on eth0: the cable is broken") {
			t.Errorf("it ends with %v", err)
		}
		p.after(0)
	})
}

// TestLinkGone: a wire of a link that is another now is no wire; who holds on
// to it would be active beside another.
func TestLinkGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newParty(t, 2, nil)
		p.after(time.Second, 0)
		p.hub.mu.Lock()
		p.wires[0].gone, p.wires[0].cut = true, true
		p.hub.mu.Unlock()
		if err := <-p.ends[0]; !errors.Is(err, errLinkGone) {
			t.Errorf("it ends with %v", err)
		}
		p.after(time.Second, 1)
		p.cancels[1]()
		if err := <-p.ends[1]; err != nil {
			t.Error(err)
		}
	})
}

// TestChangesAreBounded: what a status remembers does not grow.
func TestChangesAreBounded(t *testing.T) {
	bubble(t, 2, nil, func(p *party) {
		p.after(time.Second, 0)
		for i := range 100 {
			if err := p.runners[i%2].Move(p.t.Context(), addr(byte((i+1)%2+1))); err != nil {
				t.Fatal(err)
			}
		}
		s := p.runners[0].Status()
		if len(s.Changes) != maxChanges || s.Transitions != 102 || len(p.changes) != 102 {
			t.Errorf("%d changes of %d, %d told", len(s.Changes), s.Transitions, len(p.changes))
		}
		if diff := compare(p.changes[102-maxChanges:], s.Changes); diff != "" {
			t.Error(diff)
		}
		if last := s.Changes[maxChanges-1]; last.At != s.Since || last.Reason != s.Reason || last.To != s.State {
			t.Errorf("the last is %+v, the status %+v", last, s)
		}
	})
}
