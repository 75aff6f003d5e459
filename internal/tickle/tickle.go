package tickle

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// Others remembers the clients that other machines had, by the machine's address.
// Its methods may be called from several goroutines.
type Others struct {
	mu    sync.Mutex
	lists map[netip.Addr][]netip.AddrPort
}

// Remember replaces what was known of that machine; beyond MaxClients the rest is
// dropped. The slice is kept.
func (o *Others) Remember(machine netip.Addr, clients []netip.AddrPort) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.lists == nil {
		o.lists = map[netip.Addr][]netip.AddrPort{}
	}
	o.lists[machine] = clients[:min(len(clients), MaxClients)]
}

// None tells whether that machine is known to have no clients, and no other is known
// to have any.
func (o *Others) None(machine netip.Addr) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, clients := range o.lists {
		if len(clients) > 0 {
			return false
		}
	}
	_, known := o.lists[machine]
	return known
}

// Keep forgets what is known of all other machines.
func (o *Others) Keep(machines []netip.Addr) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for machine := range o.lists {
		if !slices.Contains(machines, machine) {
			delete(o.lists, machine)
		}
	}
}

// Take returns the clients of all machines, each once, and forgets them.
func (o *Others) Take() []netip.AddrPort {
	o.mu.Lock()
	defer o.mu.Unlock()
	var all []netip.AddrPort
	for _, clients := range o.lists {
		all = append(all, clients...)
	}
	o.lists = nil
	return once(all)
}

func once(clients []netip.AddrPort) []netip.AddrPort {
	slices.SortFunc(clients, netip.AddrPort.Compare)
	return slices.Compact(clients)
}

// rounds is when everybody is tickled, since nobody confirms it. An answer may be
// lost, or go to the former holder while the network has not learned yet; and Linux
// answers no more than once in 500 ms (net.ipv4.tcp_invalid_ratelimit).
var rounds = [...]time.Duration{0, 200 * time.Millisecond, 600 * time.Millisecond, 1200 * time.Millisecond}

// No more than batch segments are sent each beat: 10,000 a second.
const (
	batch = 100
	beat  = 10 * time.Millisecond
)

// Result is what has been sent.
type Result struct {
	Clients int
	// Failed counts segments that could not be sent; Last says why the last of them.
	Failed int
	Last   error
}

// Send has all clients of others noticed by send, which must not block, and forgets
// them. What others learns of meanwhile counts as well, from the next round on. It
// blocks until the last round is over, 1.2 s and more where there are many, or
// until ctx ends.
func Send(ctx context.Context, others *Others, send func(client netip.AddrPort) error) Result {
	var result Result
	var clients []netip.AddrPort
	start := time.Now()
	for _, at := range rounds {
		if !pause(ctx, time.Until(start.Add(at))) {
			return result
		}
		clients = once(append(clients, others.Take()...))
		clients = clients[:min(len(clients), MaxClients)]
		result.Clients = len(clients)
		for some := range slices.Chunk(clients, batch) {
			for _, client := range some {
				if err := send(client); err != nil {
					result.Failed++
					result.Last = err
				}
			}
			if len(some) == batch && !pause(ctx, beat) {
				return result
			}
		}
	}
	return result
}

// pause reports whether ctx goes on.
func pause(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
