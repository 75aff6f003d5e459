package endpoint

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"kuorum/internal/cluster"
	"kuorum/internal/handover"
	"kuorum/internal/host"
	"kuorum/internal/ledger"
	"kuorum/internal/tickle"
	"kuorum/internal/vrrp"
)

// darkness is how long no API server must be reachable from here before the
// address should be elsewhere: another balancer would have to move all clients.
const darkness = 500 * time.Millisecond

// keeper runs the virtual router of this machine.
type keeper struct {
	log     *slog.Logger
	front   netip.AddrPort  // where the balancer listens at the virtual IP; or not valid
	clients *tickle.Clients // whom it serves there
	others  tickle.Others   // whom the peers serve there
	turned  chan struct{}   // one waits there when the address has come or gone
	gone    atomic.Bool     // it has, since react looked last
	open    func() (tickler, error)
	history *ledger.File[cluster.VIPChange] // nil: nowhere
	turns   chan vrrp.Change                // that history does not have yet
	// partFrom sends the clients of a backend elsewhere; nil but in a whole balancer.
	partFrom func(ctx context.Context, address string) error

	// side is of moves in order; that of a machine without a router does nothing.
	side   atomic.Pointer[handover.Side]
	moving sync.Mutex // while the address is being moved by order

	mu       sync.Mutex
	cfg      VIP
	impaired bool
	runner   *vrrp.Runner // nil until there is one
}

// tickler is a host.Tickler, but for tests.
type tickler interface {
	Tickle(from, to netip.AddrPort) error
	Close() error
}

// newKeeper takes a valid configuration. Until its balancer has found an API
// server it leaves the address to others.
func newKeeper(cfg VIP, log *slog.Logger) *keeper {
	k := &keeper{
		cfg: cfg, log: log, impaired: true, clients: tickle.NewClients(), turned: make(chan struct{}, 1),
		open: func() (tickler, error) { return host.OpenTickler() }, turns: make(chan vrrp.Change, 64),
	}
	k.side.Store(new(handover.Side))
	if cfg.History != "" {
		k.history = ledger.New[cluster.VIPChange](cfg.History, remembered)
	}
	return k
}

// run takes part in keeping the address until ctx is done. Where that has moved in order
// and left connections here it returns when serving is done as well. Without a virtual IP
// a balancer is worth a lot still, so what fails here is logged, and tried again.
func (k *keeper) run(ctx, serving context.Context, lit func() bool) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(serving, cancel)()
	var all sync.WaitGroup
	defer all.Wait()
	all.Go(func() { k.follow(ctx, lit) })
	all.Go(func() { k.again(ctx, k.obey) })
	all.Go(func() { k.react(ctx) })
	over := make(chan struct{})
	defer close(over) // the last that is remembered is that the address was given up
	all.Go(func() { k.remember(over) })
	k.again(ctx, func(ctx context.Context) error { return k.takePart(ctx, serving) })
}

// part closes the connections that have lost the address as this balancer stops; those
// that a move in order has left here keep it for a while.
func (k *keeper) part() {
	if !k.moves().Stays() {
		k.clients.Close()
	}
}

// again does something until ctx is done, a second after each failure.
func (k *keeper) again(ctx context.Context, do func(context.Context) error) {
	for ctx.Err() == nil {
		if err := do(ctx); err != nil {
			k.log.ErrorContext(ctx, "cannot keep the virtual IP as asked, will try again", "error", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

func (k *keeper) takePart(ctx, serving context.Context) error {
	router, err := k.config().router()
	if err != nil {
		return err
	}
	if router.Interface, err = host.LinkOf(router.Source); err != nil {
		return err
	}
	wire, err := vrrp.Open(ctx, router)
	if err != nil {
		return err
	}
	side := handover.New(handover.Place{Link: router.Interface, Own: router.Source, Front: k.front}, vrrp.NewHolder(router), k.log)
	runner, err := vrrp.New(router, wire, side, k.note)
	if err != nil {
		return errors.Join(err, wire.Close())
	}
	k.mu.Lock()
	runner.SetImpaired(k.impaired)
	k.runner = runner
	k.side.Store(side)
	if now, err := k.cfg.router(); err == nil { // it may have changed meanwhile
		_ = runner.SetPeers(now.Peers, now.Priority) // as valid as what it has
	}
	k.mu.Unlock()
	err = runner.Run(ctx)
	if side.Stays() {
		if ctx.Err() != nil {
			<-serving.Done()
		}
		<-time.After(partingTime) // the connections with it are being closed
	}
	return errors.Join(err, side.Close())
}

func (k *keeper) config() VIP {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.cfg
}

// router is the one that runs, or that ran last; nil: there was none.
func (k *keeper) router() *vrrp.Runner {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.runner
}

// note logs every change of who holds the address, with its reason. It must not block.
func (k *keeper) note(c vrrp.Change) {
	if c.From != c.To {
		if c.From == vrrp.Active {
			k.gone.Store(true)
		}
		if c.To == vrrp.Active {
			k.moves().Came(c.At, resigned(c))
		}
		k.turn()
	}
	if k.history != nil && (c.From == vrrp.Active) != (c.To == vrrp.Active) {
		select {
		case k.turns <- c:
		default:
			k.log.Error("the disk is too slow to remember a change of the virtual IP")
		}
	}
	args := []any{"state", c.To, "was", c.From, "reason", c.Reason}
	if c.Peer.IsValid() {
		args = append(args, "peer", c.Peer)
	}
	k.log.Info("virtual IP", args...)
}

// resigned is who has given the address up, if somebody has.
func resigned(c vrrp.Change) netip.Addr {
	if c.Resigned {
		return c.Peer
	}
	return netip.Addr{}
}

// turn has react look.
func (k *keeper) turn() {
	select {
	case k.turned <- struct{}{}:
	default:
	}
}

// remember writes down when the address has come and gone: the router cannot wait for
// a disk. It returns when over is closed and all is written.
func (k *keeper) remember(over <-chan struct{}) {
	for {
		select {
		case c := <-k.turns:
			k.write(c)
		case <-over:
			if len(k.turns) == 0 {
				return
			}
		}
	}
}

func (k *keeper) write(c vrrp.Change) {
	if err := k.history.Add(changeOf(c)); err != nil {
		k.log.Error("a change of the virtual IP is not remembered", "error", err)
	}
}

// watch is called before run, with what listens at the virtual IP.
func (k *keeper) watch(ln net.Listener) net.Listener {
	if tcp, ok := ln.Addr().(*net.TCPAddr); ok {
		k.front = tcp.AddrPort()
	}
	return guests{ln, k.clients}
}

// follow tells the router how the balancer is. Light counts at once, darkness
// after a while.
func (k *keeper) follow(ctx context.Context, lit func() bool) {
	const look = 50 * time.Millisecond
	seen := time.Now() // the last light, or the start
	watch(ctx, look, nil, func(context.Context) {
		switch now := time.Now(); {
		case lit():
			seen = now
			k.setImpaired(false)
		case now.Sub(seen) >= darkness:
			k.setImpaired(true)
		}
		k.tick()
	})
}

func (k *keeper) setImpaired(impaired bool) { //nolint:revive // a state, not a switch between two functions
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.impaired == impaired {
		return
	}
	k.impaired = impaired
	if k.runner != nil {
		k.runner.SetImpaired(impaired)
	}
}

// replace takes over what may change while it runs.
func (k *keeper) replace(cfg VIP) error {
	router, err := cfg.router()
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.runner != nil {
		if err := k.runner.SetPeers(router.Peers, router.Priority); err != nil {
			return err
		}
	}
	k.cfg.Peers, k.cfg.Rank = cfg.Peers, cfg.Rank
	k.others.Keep(router.Peers)
	return nil
}
