package tickle

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// fleet is machines that can be asked, or do not answer.
type fleet struct {
	mu      sync.Mutex
	clients map[netip.Addr]*Clients
	dead    map[netip.Addr]bool
	asked   map[netip.Addr]int
	told    map[netip.Addr][]netip.AddrPort
	tells   int
	deaf    bool
}

func (f *fleet) ask(ctx context.Context, machine netip.Addr, since uint64) (List, error) {
	f.mu.Lock()
	c, dead := f.clients[machine], f.dead[machine]
	f.asked[machine]++
	f.mu.Unlock()
	if dead {
		return List{}, errors.New("no answer")
	}
	return c.Wait(ctx, since), ctx.Err()
}

func (f *fleet) tell(_ context.Context, machine netip.Addr, clients []netip.AddrPort) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.tells++
	if f.deaf {
		return errors.New("deaf")
	}
	f.told[machine] = clients
	return nil
}

func (f *fleet) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

// TestLearner follows machines through changes of their clients, failures, a start
// of who is told, and changes of the list of machines.
func TestLearner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("10.1.0.2")
		f := &fleet{
			clients: map[netip.Addr]*Clients{a: NewClients(), b: NewClients()},
			dead:    map[netip.Addr]bool{}, asked: map[netip.Addr]int{}, told: map[netip.Addr][]netip.AddrPort{},
		}
		var log bytes.Buffer
		l := Learner{Ask: f.ask, Tell: f.tell, Log: slog.New(slog.NewTextHandler(&log, nil))}
		machines := []netip.Addr{a, b}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			l.Run(ctx, func() (now []netip.Addr) {
				f.set(func() { now = machines })
				return now
			})
		}()
		know := func(after time.Duration, machine netip.Addr, want ...netip.AddrPort) {
			t.Helper()
			<-time.After(after)
			synctest.Wait()
			f.set(func() {
				if diff := compare(want, f.told[machine]); diff != "" {
					t.Error(diff)
				}
			})
		}
		<-time.After(time.Second)
		f.clients[a].Add(client(1), &closer{})
		leave := f.clients[b].Add(client(2), &closer{})
		know(60*time.Millisecond, a, client(1))
		know(0, b, client(2))

		// Who is told forgets everything, as a process does that is started again.
		f.set(func() { clear(f.told) })
		know(Patience+time.Second, a, client(1))

		// Nothing new costs next to nothing.
		f.set(func() { clear(f.asked); f.tells = 0 })
		<-time.After(time.Minute)
		synctest.Wait()
		f.set(func() {
			if f.asked[a] > 6 || f.tells > 12 {
				t.Errorf("in a minute without news it asked one %d times, and told %d times", f.asked[a], f.tells)
			}
		})

		// One that does not answer is asked each second, and what is known stays.
		f.set(func() { f.dead[b] = true; clear(f.asked) })
		know(Patience, b, client(2))
		leave()
		know(Patience, b, client(2))
		f.set(func() {
			if n := f.asked[b]; n < 9 || n > 21 {
				t.Errorf("it was asked %d times in 20 s", n)
			}
			f.dead[b] = false
		})
		know(again+100*time.Millisecond, b)
		if n := strings.Count(log.String(), "no answer"); n != 1 {
			t.Errorf("logged %d times:\n%s", n, &log)
		}

		// What could not be told is told later.
		f.set(func() { f.deaf = true })
		f.clients[a].Add(client(3), &closer{})
		know(Patience, a, client(1))
		f.set(func() { f.deaf = false })
		know(again+100*time.Millisecond, a, client(1), client(3))

		// A machine that is none any more is asked no more.
		f.set(func() { machines = []netip.Addr{a} })
		<-time.After(again)
		f.set(func() { clear(f.asked) })
		f.clients[b].Add(client(4), &closer{})
		know(time.Minute, b)
		f.set(func() {
			if n := f.asked[b]; n != 0 {
				t.Errorf("it was asked %d times after it had left", n)
			}
		})
		cancel()
		<-done
	})
}
