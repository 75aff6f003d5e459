package endpoint

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// fakePool has n backends named by their addresses; dial plays the network.
func fakePool(n int, dial func(ctx context.Context, address string) (net.Conn, error)) *pool {
	var cfg Config
	for i := range n {
		name := fmt.Sprint("s", i+1)
		cfg.Backends = append(cfg.Backends, Backend{name, name})
	}
	p := newPool(cfg.withDefaults(), uint(n)-1, slog.New(slog.DiscardHandler))
	p.dial = func(ctx context.Context, _, address string) (net.Conn, error) { return dial(ctx, address) }
	return p
}

func accept(context.Context, string) (net.Conn, error) {
	conn, _ := net.Pipe()
	return conn, nil
}

func (p *pool) connections() []int {
	var list []int
	for _, s := range p.status() {
		list = append(list, s.Connections)
	}
	return list
}

func TestConnectTriesEachBackendWithinBudget(t *testing.T) {
	for _, n := range []int{1, 2, 3, 7} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var mu sync.Mutex
				var tried []string
				p := fakePool(n, func(ctx context.Context, address string) (net.Conn, error) {
					mu.Lock()
					tried = append(tried, address)
					mu.Unlock()
					<-ctx.Done() // A machine without power.
					return nil, ctx.Err()
				})
				start := time.Now()
				_, err := p.connect(t.Context())
				if !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("error is %v", err)
				}
				if took := time.Since(start); took > dialBudget {
					t.Errorf("gave up after %v", took)
				}
				mu.Lock()
				defer mu.Unlock()
				slices.Sort(tried)
				if len(tried) != n || len(slices.Compact(tried)) != n {
					t.Errorf("tried %v, want each of %d once", tried, n)
				}
				if diff := cmp.Diff(make([]int, n), p.connections()); diff != "" {
					t.Errorf("connections left (-want +got):\n%s", diff)
				}
			})
		})
	}
}

func TestClientsArrivingTogetherSpread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gate := make(chan struct{})
		p := fakePool(3, func(ctx context.Context, address string) (net.Conn, error) {
			<-gate
			return accept(ctx, address)
		})
		var clients sync.WaitGroup
		for range 30 {
			clients.Go(func() {
				if _, err := p.connect(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		close(gate)
		clients.Wait()
		if diff := cmp.Diff([]int{10, 10, 10}, p.connections()); diff != "" {
			t.Errorf("connections (-want +got):\n%s", diff)
		}
	})
}

func TestConnectionMadeWhileGoingDownIsNotUsed(t *testing.T) {
	var p *pool
	var dialled []string
	p = fakePool(2, func(ctx context.Context, address string) (net.Conn, error) {
		dialled = append(dialled, address)
		if len(dialled) == 1 {
			for range 2 {
				p.record(ctx, p.members[0], result{verdict: silent, err: errors.New("frozen")})
			}
		}
		return accept(ctx, address)
	})
	conn, err := p.connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"s1", "s2"}, dialled); diff != "" {
		t.Errorf("dialled (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]int{0, 1}, p.connections()); diff != "" {
		t.Errorf("connections (-want +got):\n%s", diff)
	}
	closeAll(conn, conn)
	if diff := cmp.Diff([]int{0, 0}, p.connections()); diff != "" {
		t.Errorf("connections after closing twice (-want +got):\n%s", diff)
	}
}

// swallows is a network in which s1 is a machine without power.
func swallows(ctx context.Context, address string) (net.Conn, error) {
	if address == "s1" {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return accept(ctx, address)
}

func TestSlowBackendIsNotWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := fakePool(2, swallows)
		p.turn = 1 // s1 is first
		start := time.Now()
		if _, err := p.connect(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := time.Since(start); got != slowDial {
			t.Errorf("connected after %v, want %v", got, slowDial)
		}
		synctest.Wait()
		if len(p.members[0].kick) != 1 {
			t.Error("the slow one is not checked")
		}
		if diff := cmp.Diff([]int{0, 1}, p.connections()); diff != "" {
			t.Errorf("connections (-want +got):\n%s", diff)
		}
	})
}

// Whoever ends the search finds nobody still searching: it would hold a shutdown up.
func TestConnectingEndsWithItsContext(t *testing.T) {
	for range 50 {
		synctest.Test(t, func(t *testing.T) {
			p := fakePool(3, func(ctx context.Context, _ string) (net.Conn, error) {
				<-ctx.Done()
				return nil, ctx.Err()
			})
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(120*time.Millisecond, cancel)
			start := time.Now()
			if _, err := p.connect(ctx); !errors.Is(err, context.Canceled) || time.Since(start) != 120*time.Millisecond {
				t.Errorf("ended after %v with %v", time.Since(start), err)
			}
			synctest.Wait()
			if diff := cmp.Diff([]int{0, 0, 0}, p.connections()); diff != "" {
				t.Errorf("connections (-want +got):\n%s", diff)
			}
		})
	}
}

// Who is connecting to the only machine there is, which has just lost its power,
// need not wait for the end of the attempt.
func TestConnectingEndsWhenTheBackendFalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := fakePool(1, swallows)
		start := time.Now()
		time.AfterFunc(300*time.Millisecond, func() {
			p.record(t.Context(), p.members[0], result{verdict: lost, err: errLate})
		})
		if _, err := p.connect(t.Context()); err == nil {
			t.Fatal("connected")
		}
		if got := time.Since(start); got != 300*time.Millisecond {
			t.Errorf("gave up after %v", got)
		}
	})
}

func TestSuspectIsCheckedOnceAndPassedOver(t *testing.T) {
	broken := true
	p := fakePool(2, func(ctx context.Context, address string) (net.Conn, error) {
		if broken && address == "s1" {
			return nil, syscall.ECONNREFUSED
		}
		return accept(ctx, address)
	})
	for _, m := range p.members {
		p.record(t.Context(), m, result{verdict: ready})
	}
	for range 5 {
		if _, err := p.connect(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if got := len(p.members[0].kick); got != 1 {
		t.Errorf("%d checks asked for, want 1", got)
	}
	if diff := cmp.Diff([]int{0, 5}, p.connections()); diff != "" {
		t.Errorf("connections (-want +got):\n%s", diff)
	}
	// Nothing but a check clears it.
	broken = false
	p.record(t.Context(), p.members[0], result{verdict: ready})
	if _, err := p.connect(t.Context()); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]int{1, 5}, p.connections()); diff != "" {
		t.Errorf("connections after the check (-want +got):\n%s", diff)
	}
}

// judged is the result of a whole question.
func judged(v verdict) result {
	if v == ready {
		return result{verdict: v, works: time.Now()}
	}
	return result{verdict: v}
}

// The life of connections to s1, second by second, with a check of both
// backends each second.
func TestWhenConnectionsAreCut(t *testing.T) {
	const s = time.Second
	forever := func(v verdict) []verdict { return []verdict{v} } // the last one repeats
	tests := map[string]struct {
		first, second []verdict
		want          time.Duration // after the start; 0: never
	}{
		"healthy":                        {forever(ready), forever(ready), 0},
		"silent":                         {[]verdict{ready, ready, silent}, forever(ready), 3 * s},
		"silent, nobody else":            {[]verdict{ready, ready, silent}, forever(refused), 3 * s},
		"one slow answer":                {[]verdict{ready, silent, ready}, forever(ready), 0},
		"drains for 30 s":                {[]verdict{ready, unready}, forever(ready), 31 * s},
		"drains, ready again":            {[]verdict{ready, unready, unready, ready}, forever(ready), 0},
		"drains, then silent":            {[]verdict{ready, unready, unready, silent}, forever(ready), 4 * s},
		"ill for 2 s":                    {[]verdict{ready, ill}, forever(ready), 3 * s},
		"ill, all were, both recover":    {[]verdict{ready, ill, ill, ill, ill, ill, ill, ready}, []verdict{ill, ill, ill, ill, ill, ill, ready}, 0},
		"ill, and says nothing at times": {[]verdict{ready, ill, silent, ill}, forever(ready), 3 * s},
		"ill, well again":                {[]verdict{ready, ill, ready, ill, ready}, forever(ready), 0},
		"all are ill":                    {[]verdict{ready, ill}, forever(ill), 0},
		"all were ill, one still is":     {[]verdict{ready, ill}, []verdict{ill, ill, ill, ill, ill, ready}, 7 * s},
		"ill, and stops":                 {[]verdict{ready, ill, unready}, forever(ready), 31 * s},
		"refused drains as well":         {[]verdict{ready, refused}, forever(ready), 31 * s},
		"nobody is better":               {[]verdict{ready, unready}, forever(unready), 0},
		"somebody recovers after 3 s":    {[]verdict{ready, unready}, []verdict{unready, unready, unready, ready}, 33 * s},
		"both recover, one a bit later":  {[]verdict{unready, unready, unready, unready, ready}, []verdict{unready, unready, ready}, 0},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := fakePool(2, accept)
				conn, err := p.connect(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				var cut time.Duration
				start := time.Now()
				tick := time.NewTicker(s)
				defer tick.Stop()
				for i := range 120 {
					p.record(t.Context(), p.members[1], judged(tt.second[min(i, len(tt.second)-1)]))
					p.record(t.Context(), p.members[0], judged(tt.first[min(i, len(tt.first)-1)]))
					if p.connections()[0] == 0 {
						cut = time.Since(start)
						break
					}
					<-tick.C
				}
				if cut != tt.want {
					t.Errorf("cut after %v, want %v", cut, tt.want)
				}
				closeAll(conn)
			})
		})
	}
}

func TestRefusalAsksForSignOfLife(t *testing.T) {
	ln := localListener(t)
	p := fakePool(1, func(ctx context.Context, _ string) (net.Conn, error) {
		return (&net.Dialer{KeepAliveConfig: keepAlive(patience)}).DialContext(ctx, "tcp", ln.Addr().String())
	})
	conn, err := p.connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll(conn)
	idle := func() (seconds int) {
		raw, err := bare(conn).(*net.TCPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		var inner error
		err = raw.Control(func(fd uintptr) {
			seconds, inner = syscall.GetsockoptInt(int(fd), syscall.IPPROTO_TCP, syscall.TCP_KEEPIDLE)
		})
		if err := errors.Join(err, inner); err != nil {
			t.Fatal(err)
		}
		return seconds
	}
	if got := idle(); got != 15 {
		t.Errorf("keep-alive starts after %d s, want 15", got)
	}
	p.record(t.Context(), p.members[0], result{verdict: refused})
	if got := idle(); got != 1 {
		t.Errorf("keep-alive starts after %d s, want 1", got)
	}
}

// TestStates: who waits for a change is told of each, at once, and of none after a while.
func TestStates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := fakePool(2, accept)
		first := p.states(t.Context(), 0)
		if first.Version == 0 || len(first.Backends) != 2 || first.Backends[0].State != Unknown {
			t.Fatalf("got %+v", first)
		}
		wait := func(since uint64, change func()) (States, time.Duration) {
			begin, told := time.Now(), make(chan States)
			go func() { told <- p.states(t.Context(), since) }()
			synctest.Wait()
			change()
			return <-told, time.Since(begin)
		}
		got, took := wait(first.Version, func() { p.record(t.Context(), p.members[1], result{verdict: ready}) })
		if took > 0 || got.Version == first.Version || got.Backends[1].State != Healthy {
			t.Errorf("after %v: %+v", took, got)
		}
		got, took = wait(got.Version, func() { p.record(t.Context(), p.members[1], result{verdict: ready}) })
		if took != StatesPatience {
			t.Errorf("the same verdict is told as a change, after %v: %+v", took, got)
		}
		got, took = wait(got.Version, func() { p.replace([]Backend{{"s1", "s1"}}, "") })
		if took > 0 || len(got.Backends) != 1 {
			t.Errorf("after %v: %+v", took, got)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		begin := time.Now()
		if again := p.states(ctx, got.Version); again.Version != got.Version || time.Since(begin) > 0 {
			t.Errorf("whoever has gone is kept for %v", time.Since(begin))
		}
		<-time.After(time.Nanosecond) // no two balancers start at the same one
		if other := fakePool(2, accept).states(t.Context(), got.Version); other.Version == got.Version {
			t.Error("another process has the same version")
		}
	})
}
