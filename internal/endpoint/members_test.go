package endpoint

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"kuorum/internal/cluster"
)

func (b *balancer) set(local string, servers ...*apiServer) {
	b.t.Helper()
	if err := b.core.SetBackends(listOf(servers...), local); err != nil {
		b.t.Fatal(err)
	}
}

func listOf(servers ...*apiServer) []Backend {
	var list []Backend
	for _, s := range servers {
		list = append(list, Backend{s.name, s.address})
	}
	return list
}

func slowDrain(cfg *Config) { cfg.DrainTimeout = cluster.Duration(time.Hour) }

func TestAddedBackendIsCheckedAtOnceAndUsed(t *testing.T) {
	a := newAuthority(t)
	old, added := newAPIServer(t, a, "s1"), newAPIServer(t, a, "s2")
	cfg := testConfig(a, old)
	cfg.Interval = cluster.Duration(time.Hour) // no regular check is due
	b := startBalancer(t, a, cfg)
	b.await(Healthy, old)
	clients := b.connectMany(2)
	since := b.backends()["s1"].Since

	b.set("", old, added)
	b.await(Healthy, added)
	if diff := cmp.Diff(map[string]int{"s1": 2, "s2": 2}, count(append(clients, b.connectMany(2)...))); diff != "" {
		t.Errorf("connections (-want +got):\n%s", diff)
	}
	if got := b.backends()["s1"]; !got.Since.Equal(since) || got.Connections != 2 {
		t.Errorf("the backend that stayed is %+v, want its health and connections kept", got)
	}
	b.loggedOnce("backends replaced", "added=\"[{Name:s2", "removed=[]")
}

func TestRemovedBackendGetsNoNewConnections(t *testing.T) {
	b, s := three(t, slowDrain)
	old := b.connectMany(3)
	b.set("", s[0], s[2])
	accepted := s[1].accepted.Load()
	// Emptier than the others, but no longer one of them.
	if diff := cmp.Diff(map[string]int{"s1": 3, "s3": 3}, count(b.connectMany(6))); diff != "" {
		t.Errorf("new connections (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(map[string]int{"s1": 1, "s2": 1, "s3": 1}, count(old)); diff != "" {
		t.Errorf("old connections (-want +got):\n%s", diff)
	}
	if got := s[1].accepted.Load(); got != accepted {
		t.Errorf("the removed server accepted %d connections", got-accepted)
	}
	if _, listed := b.backends()["s2"]; listed {
		t.Error("/status lists the removed backend")
	}
	// Nor when nobody else is left.
	s[0].kill()
	s[2].kill()
	b.await(Refused, s[0], s[2])
	if _, err := b.tryConnect(); err == nil {
		t.Error("connected to the removed backend")
	}
}

func TestConnectionsToRemovedBackendAreClosedAfterDrainTime(t *testing.T) {
	const drain = 300 * time.Millisecond
	b, s := three(t, func(cfg *Config) { cfg.DrainTimeout = cluster.Duration(drain) })
	on := map[string]*apiClient{}
	for _, c := range b.connectMany(3) {
		on[c.name()] = c
	}
	start := time.Now()
	b.set("", s[0], s[2])
	on["s2"].awaitClose()
	// The upper limit is for a noisy machine.
	if took := time.Since(start); took < drain || took > 10*time.Second {
		t.Errorf("closed after %v, want %v", took, drain)
	}
	b.loggedOnce("closed the connections of a removed backend", "backend=s2", "closed_connections=1")
	for _, name := range []string{"s1", "s3"} {
		if got := on[name].name(); got != name {
			t.Errorf("the connection to %s is one to %q", name, got)
		}
	}
	checks := s[1].checks.Load()
	alive := s[0].checks.Load()
	eventually(t, "the others are checked five times more", func() bool { return s[0].checks.Load() >= alive+5 })
	if got := s[1].checks.Load(); got != checks {
		t.Errorf("the removed backend was asked %d times more", got-checks)
	}
}

// The same to the nanosecond: connections live until the drain time is over
// and not longer, wherever the removal falls between two checks.
func TestDrainTimeIsExact(t *testing.T) {
	for _, after := range []time.Duration{0, time.Nanosecond, 1234 * time.Millisecond, 90 * time.Second} {
		t.Run(after.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := fakePool(2, accept)
				p.cfg.Fall = 1 << 30 // These checks reach nobody, which is to decide nothing.
				ctx, cancel := context.WithCancel(t.Context())
				var running sync.WaitGroup
				running.Go(func() { p.run(ctx) })
				defer running.Wait()
				defer cancel()
				var closed [2]time.Time
				for range 2 { // turns make them go one to each
					if _, err := p.connect(ctx); err != nil {
						t.Fatal(err)
					}
				}
				first, second := p.members[0], p.members[1]
				watchClose(p, first, &closed[0])
				watchClose(p, second, &closed[1])
				<-time.After(after)
				removed := time.Now()
				p.replace([]Backend{second.Backend}, "")
				<-time.After(time.Hour)
				synctest.Wait()
				if got := closed[0].Sub(removed); got != 30*time.Second {
					t.Errorf("the connection to the removed backend was closed after %v, want 30s", got)
				}
				if !closed[1].IsZero() {
					t.Error("the connection to the other was closed")
				}
			})
		})
	}
}

// watchClose notes when the only connection of m is closed.
func watchClose(p *pool, m *member, at *time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := range m.links {
		release := l.release
		l.release = func() {
			*at = time.Now()
			release()
		}
	}
}

func TestRemovedBackendThatFreezesLosesConnectionsAtOnce(t *testing.T) {
	b, s := three(t, func(cfg *Config) {
		slowDrain(cfg)
		cfg.Timeout = cluster.Duration(200 * time.Millisecond)
	})
	for _, c := range b.connectMany(3) {
		if c.name() == "s3" {
			b.set("", s[0], s[1])
			s[2].freeze()
			c.awaitClose()
			return
		}
	}
	t.Fatal("no connection to s3")
}

func TestChangedAddressIsAnotherBackend(t *testing.T) {
	a := newAuthority(t)
	before, after := newAPIServer(t, a, "s1"), newAPIServer(t, a, "s1 elsewhere")
	cfg := testConfig(a, before)
	slowDrain(&cfg)
	b := startBalancer(t, a, cfg)
	b.await(Healthy, before)
	old := b.connect()
	if err := b.core.SetBackends([]Backend{{"s1", after.address}}, "s1"); err != nil {
		t.Fatal(err)
	}
	if got := b.connect().name(); got != "s1 elsewhere" {
		t.Errorf("a new connection went to %q", got)
	}
	if got := old.name(); got != "s1" {
		t.Errorf("the old connection is one to %q", got)
	}
	if got := b.backends()["s1"]; got.Address != after.address || got.Connections != 1 {
		t.Errorf("status is %+v, want one connection to %s", got, after.address)
	}
}

func TestLocalBackendChanges(t *testing.T) {
	b, s := three(t, nil)
	for _, local := range []string{"s2", "s3", "s1"} {
		b.set(local, s...)
		clients := b.connectMany(1)
		if got := clients[0].name(); got != local {
			t.Errorf("connected to %s, want the local %s", got, local)
		}
		closeAll(clients[0].conn)
		eventually(t, "the connection is off the books", func() bool { return b.backends()[local].Connections == 0 })
	}
}

// A backend that is removed while a client connects to it is not used.
func TestConnectionMadeWhileBackendIsRemovedIsNotUsed(t *testing.T) {
	var p *pool
	var dialled []string
	p = fakePool(2, func(ctx context.Context, address string) (net.Conn, error) {
		dialled = append(dialled, address)
		if len(dialled) == 1 {
			p.replace([]Backend{{"s2", "s2"}}, "")
		}
		return accept(ctx, address)
	})
	gone := p.members[0]
	conn, err := p.connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll(conn)
	if diff := cmp.Diff([]string{"s1", "s2"}, dialled); diff != "" {
		t.Errorf("dialled (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]int{1}, p.connections()); diff != "" || gone.load != 0 {
		t.Errorf("the removed one has %d connections, the other (-want +got):\n%s", gone.load, diff)
	}
}

func TestSetBackendsRefuses(t *testing.T) {
	b, s := three(t, nil)
	want := b.backends()
	for name, list := range map[string][]Backend{
		"none":       nil,
		"twice":      append(listOf(s[0]), listOf(s[0])...),
		"no address": {{Name: "s1", Address: "s1"}},
		"itself":     {{Name: "s1", Address: b.front}},
	} {
		if err := b.core.SetBackends(list, ""); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if err := b.core.SetBackends(listOf(s...), "s9"); err == nil {
		t.Error("unknown local: no error")
	}
	for name, got := range b.backends() {
		if got.Backend != want[name].Backend || !got.Since.Equal(want[name].Since) {
			t.Errorf("%s is %+v, was %+v", name, got, want[name])
		}
	}
	if got := count(b.connectMany(3)); len(got) != 3 {
		t.Errorf("connections are %v, want one each", got)
	}
}

func TestSetBackendsBeforeAndAfterServe(t *testing.T) {
	a := newAuthority(t)
	s1, s2 := newAPIServer(t, a, "s1"), newAPIServer(t, a, "s2")
	cfg, ln := testConfig(a, s1), localListener(t)
	cfg.Listen = []string{ln.Addr().String()}
	core, err := New(cfg, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	b := &balancer{t: t, core: core, front: cfg.Listen[0], roots: a.pool}
	b.set("", s2)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- core.Serve(ctx, []net.Listener{ln}) }()
	if got := b.connect().name(); got != "s2" {
		t.Errorf("connected to %q", got)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("serve: %v", err)
	}
	b.set("", s1, s2)
	noGoroutineLeft(t)
}

// Whatever changes at the same time, no client is turned away as long as one
// backend stays, and the books are right in the end.
func TestBackendsChangeWhileClientsConnect(t *testing.T) {
	b, s := three(t, func(cfg *Config) {
		slowDrain(cfg)
		cfg.Interval = cluster.Duration(time.Hour) // Removed ones are checked until they have drained.
	})
	lists := [][]*apiServer{{s[0]}, {s[1], s[0]}, {s[0], s[1], s[2]}, {s[2], s[0]}}
	var all sync.WaitGroup
	for range 3 {
		all.Go(func() {
			for range 40 {
				list := lists[rand.IntN(len(lists))]
				if err := b.core.SetBackends(listOf(list...), list[rand.IntN(len(list))].name); err != nil {
					t.Error(err)
				}
				b.core.pool.status()
			}
		})
		all.Go(func() {
			for range 40 {
				c, err := b.tryConnect()
				if err != nil {
					t.Error(err)
					continue
				}
				if _, err := io.WriteString(c.conn, "GET /name HTTP/1.0\r\n\r\n"); err != nil {
					t.Error(err)
				}
				if answer, err := io.ReadAll(c.r); err != nil && !errors.Is(err, io.ErrUnexpectedEOF) || len(answer) == 0 {
					t.Errorf("read %q, %v", answer, err)
				}
				closeAll(c.conn)
			}
		})
	}
	all.Wait()
	b.set("", s...)
	b.await(Healthy, s...)
	eventually(t, "all connections are off the books", func() bool {
		n := 0
		for _, got := range b.backends() {
			n += got.Connections
		}
		return n == 0
	})
	if diff := cmp.Diff(map[string]int{"s1": 2, "s2": 2, "s3": 2}, count(b.connectMany(6))); diff != "" {
		t.Errorf("connections (-want +got):\n%s", diff)
	}
}

// TestEnoughPause: who asks often gets a moment as well, at the end.
func TestEnoughPause(t *testing.T) {
	last := enoughPause(0)
	if last != longPause {
		t.Errorf("it begins with %v", last)
	}
	for gone := time.Duration(0); gone <= parting; gone += 10 * time.Millisecond {
		now := enoughPause(gone)
		if now > last || now < lastPause {
			t.Fatalf("after %v it is %v, and was %v", gone, now, last)
		}
		last = now
	}
	if before := enoughPause(falling - 1); last != lastPause || before != shortPause {
		t.Errorf("it is %v, and ends with %v", before, last)
	}
}

// TestPartsInPauses: a client that waits for an answer keeps its connection until it has
// that, one that has an answer loses it, and nobody has longer than parting.
func TestPartsInPauses(t *testing.T) {
	const every = 5 * time.Millisecond
	tests := map[string]struct {
		talk        func(ctx context.Context, l *link)
		atLeast, at time.Duration // when it is closed
	}{
		"silent for long":     {func(context.Context, *link) {}, 0, 10 * time.Millisecond},
		"never answered":      {func(_ context.Context, l *link) { l.talk.answered.Store(0) }, parting, parting + 10*time.Millisecond},
		"answered last":       {func(_ context.Context, l *link) { l.talk.client().says(); l.talk.backend().says() }, 500 * time.Millisecond, parting / 2},
		"waits for an answer": {func(_ context.Context, l *link) { l.talk.client().says() }, parting, parting + 10*time.Millisecond},
		"gets its answer after a second": {func(ctx context.Context, l *link) {
			l.talk.client().says()
			wait(ctx, time.Second)
			l.talk.backend().says()
		}, time.Second, 2 * time.Second},
		"asks often": {func(ctx context.Context, l *link) {
			for l.talk.client().says(); wait(ctx, 2*time.Millisecond); l.talk.client().says() {
				l.talk.backend().says()
				wait(ctx, every-2*time.Millisecond)
			}
		}, parting / 2, parting - 10*time.Millisecond},
		"says much": {func(ctx context.Context, l *link) {
			l.talk.long.Add(1)
			defer l.talk.long.Add(-1)
			wait(ctx, 10*parting)
		}, parting, parting + 10*time.Millisecond},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := fakePool(1, accept)
				conn, err := p.connect(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				wait(t.Context(), time.Minute)
				l := conn.(*link)
				l.talk.answered.Store(1) // a minute ago
				ctx, cancel := context.WithCancel(t.Context())
				var talking sync.WaitGroup
				talking.Go(func() { tt.talk(ctx, l) })
				synctest.Wait()
				begun := time.Now()
				p.part(t.Context(), everyMember)
				if left := p.connections()[0]; (left > 0) != (tt.atLeast >= parting) {
					t.Errorf("%d connections are left", left)
				}
				if took := time.Since(begun); took < tt.atLeast || took > tt.at {
					t.Errorf("closed after %v, want %v to %v", took, tt.atLeast, tt.at)
				}
				cancel()
				talking.Wait()
				closeAll(conn)
			})
		})
	}
}

// TestPartsFromOne: the clients of a backend that is about to stop go elsewhere, and so
// do new ones, until it has stopped and is back, or has not for a while.
func TestPartsFromOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := fakePool(2, accept)
		say := func(i int, v verdict) { p.record(t.Context(), p.members[i], judged(v)) }
		connect := func(n int) {
			for range n {
				if _, err := p.connect(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
		}
		have := func(what string, want ...int) {
			t.Helper()
			if diff := cmp.Diff(want, p.connections()); diff != "" {
				t.Errorf("%s (-want +got):\n%s", what, diff)
			}
		}
		say(0, ready)
		if err := p.partFrom(t.Context(), "s1"); err == nil || !strings.Contains(err.Error(), "no other") {
			t.Errorf("it is the only one that works: %v", err)
		}
		say(1, ready)
		if err := p.partFrom(t.Context(), "s9"); err == nil {
			t.Error("parts from nobody")
		}
		connect(4)
		for _, m := range p.members {
			for l := range m.links {
				l.talk.backend().says()
			}
		}
		wait(t.Context(), time.Minute)
		have("at first", 2, 2)
		if err := p.partFrom(t.Context(), "s1"); err != nil {
			t.Fatal(err)
		}
		have("parted", 0, 2)
		connect(2)
		have("it gets no more", 0, 4)
		say(0, refused)
		say(0, ready)
		connect(2)
		have("it is back", 2, 4)
		for l := range p.members[0].links {
			l.talk.backend().says()
		}
		wait(t.Context(), time.Minute)
		if err := p.partFrom(t.Context(), "s1"); err != nil {
			t.Fatal(err)
		}
		wait(t.Context(), leavingFor)
		connect(2)
		have("it has not stopped", 2, 4)
	})
}
