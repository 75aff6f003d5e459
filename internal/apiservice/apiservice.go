// Package apiservice keeps the list of API servers that the Service
// default/kubernetes leads pods to: two objects, the EndpointSlice and the
// Endpoints of that name. The agents of the servers write it, by what the checks of
// their balancers say, in place of the API servers themselves (ADR 0031).
package apiservice

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"kuorum/internal/cluster"
	"kuorum/internal/endpoint"
	"kuorum/internal/kubeapi"
)

// Path of the agents' API answers GET with this server's View; to any node and
// administrators.
const Path = "/v1/apiservers"

// PartPath takes POST Parting: this machine's balancer sends the clients of that server's
// API server elsewhere, which is about to stop; as a server or an administrator.
const PartPath = "/v1/apiservers/part"

// Parting names a server whose API server is about to stop.
type Parting struct {
	Name string `json:"name"`
}

const (
	regularly    = 10 * time.Second // looks at the list that seems to be right
	attentive    = time.Second      // looks whether the servers are others
	again        = 250 * time.Millisecond
	failing      = 2 * time.Second // at most, after an error
	askPatience  = time.Second     // with the other agents, all at once
	illPatience  = 200 * time.Millisecond
	apiPatience  = time.Second // with an API server at first, doubled each time
	maxPatience  = 8 * time.Second
	maxConflicts = 3
)

// Config is whom a Keeper asks. Its functions must end with their context.
type Config struct {
	Self string // the name of this server
	// Balancer is this machine's, as endpoint.StatesPath has it: it waits for another
	// version than since.
	Balancer func(ctx context.Context, since uint64) (endpoint.States, error)
	// Ask asks another server's agent for its View.
	Ask func(ctx context.Context, n cluster.Node) (View, error)
	// API is any API server that works.
	API API
	Log *slog.Logger
}

// Keeper keeps the list on behalf of one server. All servers have one: what one has
// written the others find to be right.
type Keeper struct {
	Config
	leaving atomic.Bool
	running atomic.Bool
	wake    chan struct{} // one waits there when leaving has been set
	gone    sync.Once
	left    chan struct{} // closed when leaving was heeded
}

// New makes a Keeper that Run starts.
func New(c Config) *Keeper {
	return &Keeper{Config: c, wake: make(chan struct{}, 1), left: make(chan struct{})}
}

// View is what this server says of the API servers. It fails when its balancer does
// not answer within a second.
func (k *Keeper) View(ctx context.Context) (View, error) {
	limited, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	states, err := k.Balancer(limited, 0)
	if err != nil {
		return View{}, err
	}
	return View{Healthy: healthy(states), Leaving: k.leaving.Load()}, nil
}

// Leave takes this server's API server off the list for good, if another one is
// there. It blocks until Run has done that, or ctx ends, which is the only error.
// Without a Run under way the others are left to do it.
func (k *Keeper) Leave(ctx context.Context) error {
	k.leaving.Store(true)
	if !k.running.Load() {
		return nil
	}
	select {
	case k.wake <- struct{}{}:
	default: // it is awake
	}
	select {
	case <-k.left:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Run keeps the list until ctx ends. It may be called once. Who the servers are may
// change: servers is called whenever it looks. What fails is logged once, and tried
// again.
func (k *Keeper) Run(ctx context.Context, servers func() []cluster.Node) {
	k.running.Store(true)
	defer k.running.Store(false)
	var watching sync.WaitGroup
	defer watching.Wait()
	news := make(chan map[string]bool, 1)
	watching.Go(func() { k.watch(ctx, news) })
	l := look{Keeper: k, servers: servers}
	next := time.NewTimer(0)
	defer next.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case l.own = <-news:
		case <-k.wake:
			l.tries, l.read = 0, time.Time{}
		case <-next.C:
		}
		next.Reset(min(l.once(ctx), attentive))
	}
}

// watch sends what this machine's balancer says at each change. What it said
// last counts while it does not answer: the others do without it then.
func (k *Keeper) watch(ctx context.Context, news chan map[string]bool) {
	for since := uint64(0); ctx.Err() == nil; {
		limited, cancel := context.WithTimeout(ctx, endpoint.StatesPatience+askPatience)
		states, err := k.Balancer(limited, since)
		cancel()
		switch {
		case err != nil:
			since = 0
			pause(ctx, again)
		case states.Version != since:
			since = states.Version
			select {
			case <-news: // older, and nobody has seen it
			default:
			}
			news <- healthy(states)
		}
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// look is what a Keeper knows from one look to the next.
type look struct {
	*Keeper
	servers func() []cluster.Node

	own   map[string]bool // as the balancer said last; nil: nothing yet
	goes  bool            // this server leaves
	mine  []string        // the list as this server alone would have it
	known list            // as it was read last
	read  time.Time       // when; zero: it must be read
	tries int             // that have not brought known to mine
	next  time.Time       // when to try again
	told  bool            // that it fails

	// pending is what is to be written instead of before once that has been so since
	// long enough.
	pending, before []string
	since           time.Time
}

// once looks, does what is to be done, and returns when to look again.
func (l *look) once(ctx context.Context) time.Duration {
	l.goes = l.leaving.Load()
	if mine := l.alone(); !slices.Equal(mine, l.mine) {
		l.mine, l.tries = mine, 0
	}
	if len(l.mine) == 0 {
		l.pending = nil
		l.heed() // there is no other, or nobody to write to
		return regularly
	}
	if wait := time.Until(l.next); l.tries > 0 && wait > 0 {
		return wait
	}
	wait, err := l.align(ctx)
	if err == nil {
		l.told = false
	}
	if err == nil && wait == 0 {
		l.heed()
	}
	switch {
	case err != nil:
		l.fail(ctx, err)
		wait = backoff(l.tries, failing)
	case l.known.leads(l.mine):
		l.tries = 0
		return regularly
	default: // the others see it otherwise, or it is too early
		wait = max(wait, backoff(l.tries, regularly))
	}
	l.tries++
	l.next = time.Now().Add(wait)
	return wait
}

// backoff is the pause after so many tries.
func backoff(tries int, most time.Duration) time.Duration { return min(again<<min(tries, 10), most) }

// heed tells Leave that nothing more is to come.
func (l *look) heed() {
	if l.goes {
		l.gone.Do(func() { close(l.left) })
	}
}

// fail is for what is tried again: it is told once until it works.
func (l *look) fail(ctx context.Context, err error) {
	if ctx.Err() != nil || l.told {
		return
	}
	l.told = true
	l.Log.InfoContext(ctx, "cannot keep the endpoints of the Service kubernetes, will try again", "reason", err)
}

// alone is the list as this server alone would have it.
func (l *look) alone() []string {
	var all []string
	for _, n := range l.servers() {
		if l.own[n.Address] && (!l.goes || n.Name != l.Self) {
			all = append(all, n.Address)
		}
	}
	slices.Sort(all)
	return all
}

// align brings the list to what most servers say, unless it is as this one alone would
// have it: nobody else is asked then, and the API only now and then. It returns
// for how long it must still be so before it is written.
func (l *look) align(ctx context.Context) (time.Duration, error) {
	if l.known.leads(l.mine) {
		l.pending = nil
		if time.Since(l.read) < regularly {
			return 0, nil
		}
		if err := l.reread(ctx); err != nil || l.known.leads(l.mine) {
			return 0, err
		}
	}
	servers := l.servers()
	var err error
	for range maxConflicts {
		if err = l.reread(ctx); err != nil {
			return 0, err
		}
		// Asked after that: without a leader of etcd it may take long to read.
		want, after := Decide(servers, l.gather(ctx, servers), l.known.addresses())
		if len(want) == 0 {
			return 0, nil
		}
		if wait := l.early(want, after); wait > 0 {
			return wait, nil
		}
		if err = l.write(ctx, want); err == nil {
			l.pending = nil // whoever wants the same later waits as long
		}
		if !errors.Is(err, kubeapi.ErrConflict) {
			return 0, err
		}
	}
	return 0, err
}

// hurry bounds what an API server is asked: the first that is asked may be the one
// that does not work, or etcd has no leader at this moment.
func (l *look) hurry(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, min(apiPatience<<min(l.tries, 10), maxPatience))
}

func (l *look) reread(ctx context.Context) error {
	limited, cancel := l.hurry(ctx)
	defer cancel()
	known, err := read(limited, l.API)
	if err == nil {
		l.known, l.read = known, time.Now()
	}
	return err
}

// write writes the list, unless it is so already.
func (l *look) write(ctx context.Context, want []string) error {
	if l.known.leads(want) {
		return nil
	}
	limited, cancel := l.hurry(ctx)
	defer cancel()
	led, err := l.known.write(limited, l.API, want)
	if before := l.known.addresses(); led && !slices.Equal(before, want) {
		l.Log.InfoContext(ctx, "the Service kubernetes leads to other API servers", "addresses", want, "before", before)
	}
	if err == nil {
		l.known = l.known.leading(want)
	}
	return err
}

// early is for how much longer want must be wanted before it is written in place of
// what is there now.
func (l *look) early(want []string, after time.Duration) time.Duration {
	before := l.known.addresses()
	if after == 0 || slices.Equal(want, before) {
		l.pending = nil
		return 0
	}
	if !slices.Equal(l.pending, want) || !slices.Equal(l.before, before) {
		l.pending, l.before, l.since = want, before, time.Now()
	}
	return after - time.Since(l.since)
}

// gather asks all servers at once, and waits no longer than it takes to know what they
// will say, or askPatience; and for those whose API server does not work, by what is
// seen here, only illPatience: most of them are off.
func (l *look) gather(ctx context.Context, servers []cluster.Node) map[string]View {
	limited, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	type answer struct {
		name string
		view View
		err  error
	}
	answers := make(chan answer, len(servers))
	for _, n := range servers {
		go func() {
			view, err := l.ask(limited, n)
			answers <- answer{n.Name, view, err}
		}()
	}
	views, silent := map[string]View{}, slices.Clone(servers)
	hasty := false
	soon := time.NewTimer(illPatience)
	defer soon.Stop()
	for len(silent) > 0 && !settled(servers, views) && (!hasty || !l.allIll(silent)) {
		select {
		case a := <-answers:
			silent = slices.DeleteFunc(silent, func(n cluster.Node) bool { return n.Name == a.name })
			if a.err == nil {
				views[a.name] = a.view
			}
		case <-soon.C:
			hasty = true
		}
	}
	return views
}

// allIll tells whether none of the nodes' API servers works, by what is seen here.
func (l *look) allIll(nodes []cluster.Node) bool {
	return !slices.ContainsFunc(nodes, func(n cluster.Node) bool { return l.own[n.Address] })
}

func (l *look) ask(ctx context.Context, n cluster.Node) (View, error) {
	if n.Name == l.Self {
		return l.View(ctx)
	}
	return l.Ask(ctx, n)
}
