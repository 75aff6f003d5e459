// Package tickle has the clients of an address that moves between machines notice
// it. A client that only listens sends nothing that the new holder could refuse,
// and would wait for its own timers. So each machine knows who is connected with the
// others, and the one that takes the address sends each client a segment whose
// answer it refuses (the "tickle ACK" of CTDB): the client's connection is reset,
// and it connects again.
package tickle

import (
	"context"
	"io"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"
)

const (
	// MaxClients is how many clients are told, and tickled, of one machine.
	MaxClients = 50_000
	// Patience is how long Clients.Wait waits for a change. Whoever asks again
	// and again also finds out after that time that the asked is another one.
	Patience = 10 * time.Second
	// gathering is how long changes are gathered, and gatheringEach how much longer
	// for each client: what is told is the whole list.
	gathering     = 50 * time.Millisecond
	gatheringEach = 20 * time.Microsecond
)

// List is who was connected at a moment.
type List struct {
	// Version is another one after each change, and after each start of the process.
	Version uint64           `json:"version"`
	Clients []netip.AddrPort `json:"clients"`
}

// Clients are the connections that clients have with the address here. Its methods
// may be called from several goroutines.
type Clients struct {
	mu      sync.Mutex
	version uint64
	conns   map[*entry]struct{}
	changed chan struct{} // closed at the next change
}

type entry struct {
	client netip.AddrPort
	conn   io.Closer
}

// NewClients knows of nobody.
func NewClients() *Clients {
	version := uint64(time.Now().UnixNano()) //nolint:gosec // after 1970
	return &Clients{version: version, conns: map[*entry]struct{}{}, changed: make(chan struct{})}
}

// Add notes a connection; remove, which may be called again, forgets it.
func (c *Clients) Add(client netip.AddrPort, conn io.Closer) (remove func()) {
	e := &entry{client, conn}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conns[e] = struct{}{}
	c.change()
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if _, there := c.conns[e]; there {
			delete(c.conns, e)
			c.change()
		}
	}
}

// change needs the mutex.
func (c *Clients) change() {
	c.version++
	close(c.changed)
	c.changed = make(chan struct{})
}

// Close closes all connections, and returns whose they were. They are forgotten as
// their owners notice, by remove.
func (c *Clients) Close() []netip.AddrPort {
	all := c.all()
	clients := make([]netip.AddrPort, len(all))
	for i, e := range all {
		clients[i] = e.client
		_ = e.conn.Close() // it is of no use any more
	}
	return clients
}

// Each calls do with every connection, one after another, and returns how many they
// are. do may close it.
func (c *Clients) Each(do func(conn io.Closer)) int {
	all := c.all()
	for _, e := range all {
		do(e.conn)
	}
	return len(all)
}

func (c *Clients) all() []*entry {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Collect(maps.Keys(c.conns))
}

// Now returns whose the connections are.
func (c *Clients) Now() []netip.AddrPort { return c.list().Clients }

// Wait returns who is connected. It waits until that is another version than since,
// for Patience at most, and then a little longer, so that many changes are one answer.
// When ctx ends it returns at once.
func (c *Clients) Wait(ctx context.Context, since uint64) List {
	limit := time.NewTimer(Patience)
	defer limit.Stop()
	for {
		version, n, changed := c.look()
		if version != since {
			select {
			case <-ctx.Done():
			case <-time.After(gathering + time.Duration(n)*gatheringEach):
			}
			return c.list()
		}
		select {
		case <-ctx.Done():
			return c.list()
		case <-limit.C:
			return c.list()
		case <-changed:
		}
	}
}

func (c *Clients) look() (version uint64, n int, changed <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.version, min(len(c.conns), MaxClients), c.changed
}

func (c *Clients) list() List {
	c.mu.Lock()
	defer c.mu.Unlock()
	l := List{Version: c.version, Clients: make([]netip.AddrPort, 0, min(len(c.conns), MaxClients))}
	for e := range c.conns {
		if len(l.Clients) == MaxClients {
			break
		}
		l.Clients = append(l.Clients, e.client)
	}
	return l
}
