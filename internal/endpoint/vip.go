package endpoint

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"kuorum/internal/host"
	"kuorum/internal/tickle"
	"kuorum/internal/vrrp"
)

// VIPPath of the status server answers GET with a cluster.VIPStatus. MovePath of
// the control socket takes POST with the query to=ADDRESS of a peer: 200 when
// that one holds the virtual IP, else the reason as text.
//
// ClientsPath of the control socket answers GET with a tickle.List of the virtual
// IP's clients here, as tickle.Clients.Wait does; the query since=VERSION is what
// is known already. POST takes the VIPClients of another machine.
const (
	VIPPath     = "/vip"
	MovePath    = "/vip/move"
	ClientsPath = "/vip/clients"
)

// VIPClients are the clients of the virtual IP that another machine had.
type VIPClients struct {
	From    netip.Addr       `json:"from"` // a peer
	Clients []netip.AddrPort `json:"clients"`
}

// maxList bounds what is read of a list in JSON.
const maxList = 4 << 20

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
	return &keeper{
		cfg: cfg, log: log, impaired: true, clients: tickle.NewClients(), turned: make(chan struct{}, 1),
		open: func() (tickler, error) { return host.OpenTickler() },
	}
}

// run takes part in keeping the address until ctx is done. Without a virtual IP
// a balancer is worth a lot still, so what fails here is logged, and tried again.
func (k *keeper) run(ctx context.Context, lit func() bool) {
	var all sync.WaitGroup
	defer all.Wait()
	all.Go(func() { k.follow(ctx, lit) })
	all.Go(func() { k.again(ctx, k.obey) })
	all.Go(func() { k.react(ctx) })
	k.again(ctx, k.takePart)
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

func (k *keeper) takePart(ctx context.Context) error {
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
	runner, err := vrrp.New(router, wire, vrrp.NewHolder(router), k.note)
	if err != nil {
		return errors.Join(err, wire.Close())
	}
	k.mu.Lock()
	runner.SetImpaired(k.impaired)
	k.runner = runner
	if now, err := k.cfg.router(); err == nil { // it may have changed meanwhile
		_ = runner.SetPeers(now.Peers, now.Priority) // as valid as what it has
	}
	k.mu.Unlock()
	return runner.Run(ctx)
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
		select {
		case k.turned <- struct{}{}:
		default:
		}
	}
	args := []any{"state", c.To, "was", c.From, "reason", c.Reason}
	if c.Peer.IsValid() {
		args = append(args, "peer", c.Peer)
	}
	k.log.Info("virtual IP", args...)
}

// watch is called before run, with what listens at the virtual IP.
func (k *keeper) watch(ln net.Listener) net.Listener {
	if tcp, ok := ln.Addr().(*net.TCPAddr); ok {
		k.front = tcp.AddrPort()
	}
	return guests{ln, k.clients}
}

// react does for the clients what their kernels cannot know. When the address has
// come, those that another machine had are reset. When it has gone, our own
// connections with it are closed, since their packets go elsewhere now, and their
// clients are reset by whoever has the address: it may have had that all along, while
// a parted network did not show it.
func (k *keeper) react(ctx context.Context) {
	var sending sync.WaitGroup
	defer sending.Wait()
	for {
		select {
		case <-ctx.Done():
			return
		case <-k.turned:
		}
		var moved []*tickle.Others
		// The router tells its status when all has been done that a change asks for:
		// the address is here by then, or gone. It may have gone and come again.
		here := k.router() != nil && k.router().Status().State == vrrp.Active
		if k.gone.Swap(false) {
			moved = append(moved, k.closeOwn(ctx))
		}
		if here {
			moved = append(moved, &k.others)
		}
		// To its end, also if the address turns again: it is no less true then.
		for _, clients := range moved {
			sending.Go(func() { k.tickle(ctx, clients) })
		}
	}
}

// closeOwn closes our own connections and returns whose they were.
func (k *keeper) closeOwn(ctx context.Context) *tickle.Others {
	var own tickle.Others
	clients := k.clients.Close()
	if len(clients) > 0 {
		k.log.InfoContext(ctx, "the virtual IP is elsewhere, closed the connections with it", "connections", len(clients))
	}
	own.Remember(k.front.Addr(), clients)
	return &own
}

// tickle has clients notice that the address has moved. An answer that comes to a
// machine with their connection does them no harm.
func (k *keeper) tickle(ctx context.Context, clients *tickle.Others) {
	if !k.front.IsValid() {
		return
	}
	out, err := k.open()
	if err != nil {
		k.log.ErrorContext(ctx, "clients of the virtual IP that only listen will not notice that it has moved", "error", err)
		return
	}
	r := tickle.Send(ctx, clients, func(client netip.AddrPort) error { return out.Tickle(k.front, client) })
	if err := errors.Join(r.Last, out.Close()); err != nil {
		k.log.WarnContext(ctx, "not all clients of the virtual IP could be told that it has moved", "failures", r.Failed, "last_error", err)
	}
	if r.Clients > 0 {
		k.log.InfoContext(ctx, "told clients that the virtual IP has moved", "clients", r.Clients)
	}
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

// obey takes orders until ctx is done.
func (k *keeper) obey(ctx context.Context) error {
	control, err := k.listen(ctx)
	if err != nil {
		return fmt.Errorf("cannot take orders: %w", err)
	}
	server := &http.Server{Handler: k.orders(), ReadHeaderTimeout: 5 * time.Second}
	defer context.AfterFunc(ctx, func() { _ = server.Close() })()
	if err := server.Serve(control); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("cannot take orders: %w", err)
	}
	return nil
}

// listen makes the control socket; what an earlier process left is replaced. None
// but root may write in its directory.
func (k *keeper) listen(ctx context.Context) (net.Listener, error) {
	path := k.config().Control
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("cannot replace the old control socket: %w", err)
	}
	ln, err := (&net.ListenConfig{}).Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("cannot make the control socket of the virtual IP: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, ln.Close())
	}
	return ln, nil
}

func (k *keeper) orders() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+MovePath, func(w http.ResponseWriter, r *http.Request) {
		to, err := netip.ParseAddr(r.URL.Query().Get("to"))
		runner := k.router()
		if err == nil && runner == nil {
			err = errNoRouter
		}
		if err == nil {
			err = runner.Move(r.Context(), to)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusConflict)
		}
	})
	mux.HandleFunc("GET "+ClientsPath, func(w http.ResponseWriter, r *http.Request) {
		since, _ := strconv.ParseUint(r.URL.Query().Get("since"), 10, 64) // no number: nothing is known
		writeJSON(w, k.clients.Wait(r.Context(), since))
	})
	mux.HandleFunc("POST "+ClientsPath, func(w http.ResponseWriter, r *http.Request) {
		var told VIPClients
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxList)).Decode(&told); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		if !slices.Contains(k.config().Peers, told.From.String()) {
			http.Error(w, told.From.String()+" is no peer of this machine", http.StatusConflict)
			return
		}
		k.others.Remember(told.From, told.Clients)
	})
	return mux
}

// errNoRouter is before the virtual router has started for the first time.
var errNoRouter = errors.New("this machine does not take part in keeping the virtual IP yet")
