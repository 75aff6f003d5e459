package loadbalancer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"kuorum/internal/cluster"
)

const (
	watchEvery = 200 * time.Millisecond
	recalled   = 10 // changes that a status shows
)

// Book is where changes are written down, the oldest first.
type Book interface {
	Add(cluster.VIPChange) error
	All() ([]cluster.VIPChange, error)
}

// Watch sees what keepalived does with the virtual IP on this machine, and can have it
// leave the address to others. keepalived tells changes only, and only to who listens
// at that moment; the kernel tells at any time whether the address is here.
// The fields are set before the first call; methods may be called from several goroutines.
type Watch struct {
	Router Router
	// Here tells whether this machine has an address.
	Here func(netip.Addr) (bool, error)
	// Reaches is nil when HAProxy reaches an API server.
	Reaches func(context.Context) error
	Book    Book
	Log     *slog.Logger

	tasks chan func(context.Context)
	once  sync.Once // makes tasks

	mu      sync.Mutex
	status  cluster.VIPStatus
	changes []cluster.VIPChange // nil until the book was read
	leaving int                 // orders to leave it to others that have not ended
	last    Handover            // the last one that concerned this machine
	lastAt  time.Time           // when it was heard of
}

// Handover is that one machine leaves the address to another, by order. Both are
// addresses of nodes.
type Handover struct{ From, To netip.Addr }

// Run writes changes down until ctx ends, and does what Do is given.
func (w *Watch) Run(ctx context.Context) {
	var group sync.WaitGroup
	defer group.Wait()
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	problem := ""
	for {
		err := w.look(ctx)
		if err != nil && err.Error() != problem && ctx.Err() == nil {
			w.Log.Error("who holds the virtual IP is not written down, will try again", "error", err)
		}
		problem = ""
		if err != nil {
			problem = err.Error()
		}
		select {
		case <-ctx.Done():
			return
		case task := <-w.queue():
			group.Go(func() { task(ctx) })
		case <-tick.C:
		}
	}
}

// Do has Run do something, which must end with the context that it is given. The error is
// that ctx ended before Run has begun with it.
func (w *Watch) Do(ctx context.Context, task func(context.Context)) error {
	select {
	case w.queue() <- task:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (w *Watch) queue() chan func(context.Context) {
	w.once.Do(func() { w.tasks = make(chan func(context.Context)) })
	return w.tasks
}

// Status is how it is at this moment. It blocks until Reaches has answered.
func (w *Watch) Status(ctx context.Context) cluster.VIPStatus {
	if err := w.look(ctx); err != nil {
		return cluster.VIPStatus{Address: w.Router.Address.String(), Error: err.Error()}
	}
	impaired := w.Reaches(ctx) != nil
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.status
	s.Impaired, s.Changes = impaired, slices.Clone(s.Changes)
	return s
}

// look compares what is with what is written down.
func (w *Watch) look(ctx context.Context) error {
	w.mu.Lock() // what is seen later is written down later
	defer w.mu.Unlock()
	here, err := w.Here(w.Router.Address)
	if err != nil {
		return err
	}
	if w.changes == nil {
		if w.changes, err = w.Book.All(); err != nil {
			w.changes = nil
			return err
		}
		w.changes = append([]cluster.VIPChange{}, w.changes...)
	}
	to := cluster.VIPBackup
	if here {
		to = cluster.VIPActive
	}
	if c, news := w.change(ctx, to, time.Now()); news {
		if err := w.Book.Add(c); err != nil {
			return err
		}
		w.changes = append(w.changes, c)
		w.Log.Info("the virtual IP", "is", c.To, "before", c.From, "reason", c.Reason)
	}
	w.status = w.tell()
	return nil
}

// change is the difference between what is written down and what is.
func (w *Watch) change(ctx context.Context, to string, now time.Time) (cluster.VIPChange, bool) {
	c := cluster.VIPChange{At: now.UTC(), From: cluster.VIPBackup, To: to}
	here := to == cluster.VIPActive
	first := len(w.changes) == 0
	if !first {
		c.From = w.changes[len(w.changes)-1].To
	}
	switch {
	case c.From == c.To && !first:
		return c, false
	case now.Sub(w.lastAt) < handoverCounts && here == (w.last.To == w.Router.Self):
		c.Reason, c.Peer = "handed over by order", w.last.From.String()
		if !here {
			c.Peer = w.last.To.String()
		}
	case here:
		c.Reason = "keepalived has taken it"
	case first:
		c.Reason = "keepalived waits for it"
	default:
		c.Reason = "keepalived has given it up"
		if err := w.Reaches(ctx); err != nil {
			c.Reason = "HAProxy reaches no API server: " + err.Error()
		}
	}
	return c, true
}

// handoverCounts is how long after an order a change is its doing.
const handoverCounts = 5 * time.Second

func (w *Watch) tell() cluster.VIPStatus {
	last := w.changes[len(w.changes)-1]
	s := cluster.VIPStatus{
		Address: w.Router.Address.String(), State: last.To, Priority: w.Router.priority(), Since: last.At, Transitions: len(w.changes),
		Changes: w.changes[max(0, len(w.changes)-recalled):],
	}
	if s.State == cluster.VIPActive {
		s.Holder = w.Router.Self.String()
	}
	return s
}

// Expect is told of a handover to this machine.
func (w *Watch) Expect(h Handover) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.last, w.lastAt = h, time.Now()
}

// Leave has keepalived give the address up, or not take it, for a handover, until
// until returns; its error is Leave's. Nobody else may write to Router.Yield.
func (w *Watch) Leave(ctx context.Context, h Handover, until func(context.Context) error) error {
	w.mu.Lock()
	w.last, w.lastAt = h, time.Now()
	w.leaving++
	err := setYield(w.Router.Yield, w.leaving)
	w.mu.Unlock()
	if err == nil {
		err = until(ctx)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.leaving--
	return errors.Join(err, setYield(w.Router.Yield, w.leaving))
}

// Settle ends what a Watch before this one was doing.
func (w *Watch) Settle() error { return setYield(w.Router.Yield, 0) }

func setYield(path string, orders int) error {
	if err := os.WriteFile(path, fmt.Appendln(nil, orders), 0o600); err != nil {
		return fmt.Errorf("cannot tell keepalived whether the address may be here: %w", err)
	}
	return nil
}
