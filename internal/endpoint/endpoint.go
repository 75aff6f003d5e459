// Package endpoint is the one API address that survives. A balancer runs on
// every node as a process of its own, spreads TCP connections over the
// kube-apiservers, checks these several times a second and cuts connections to
// those that died, so that clients connect again. It never looks into the
// bytes it forwards: TLS, HTTP/2, SPDY and WebSocket pass unchanged.
package endpoint

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"net"
	"strings"
	"syscall"

	"golang.org/x/sync/errgroup"

	"kuorum/internal/cluster"
	"kuorum/internal/host"
)

// Balancer leads clients to its backends, which may change while it serves. Its
// methods may be called from several goroutines.
type Balancer struct {
	cfg  Config // as it was at the start; the pool has the backends of now
	log  *slog.Logger
	pool *pool
	// keeper is nil where no virtual IP can be.
	keeper *keeper
}

// New makes a balancer that Serve starts. cfg.Listen names the addresses that
// Serve will get listeners of. It fails if cfg is wrong or its files cannot be
// read. Backends need not be there yet.
func New(cfg Config, log *slog.Logger) (*Balancer, error) {
	cfg = cfg.withDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("cannot use the balancer's configuration: %w", err)
	}
	if _, err := cfg.clientTLS(); err != nil {
		return nil, err
	}
	return &Balancer{cfg: cfg, log: log, pool: newPool(cfg, firstTurn(cfg.Listen), log)}, nil
}

// SetBackends replaces the backends and the name of the local one (empty:
// none). Those that stay, by name and address, keep their health and their
// connections; new ones are checked at once. Those that are gone get no
// connection after SetBackends has returned; the ones they have may end by
// themselves for the drain time and are closed then. It does not block. After
// an error, which says what is wrong with the arguments, nothing has changed.
func (b *Balancer) SetBackends(backends []Backend, local string) error {
	cfg := b.cfg
	cfg.Backends, cfg.Local = backends, local
	if err := cfg.validateBackends(); err != nil {
		return fmt.Errorf("cannot use the new backends: %w", err)
	}
	b.pool.replace(backends, local)
	return nil
}

// Serve balances what arrives at fronts, which it owns and closes. It blocks
// until ctx is done, then closes everything, also established connections, and
// returns nil; it fails when a listener does. It may be called once.
func (b *Balancer) Serve(ctx context.Context, fronts []net.Listener) error {
	return b.serve(ctx, fronts, nil)
}

// serve is Serve with a listener for the status server; nil means none.
func (b *Balancer) serve(ctx context.Context, fronts []net.Listener, status net.Listener) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		b.pool.run(ctx)
		return nil
	})
	for _, ln := range fronts {
		group.Go(func() error { return Forward(ctx, ln, b.lead, b.log) })
	}
	if status != nil {
		group.Go(func() error { return b.serveStatus(ctx, status) })
	}
	b.log.InfoContext(ctx, "balancer started", "listen", b.cfg.Listen, "backends", len(b.pool.status()))
	return group.Wait()
}

// lead finds a backend for a client that has something to say.
func (b *Balancer) lead(ctx context.Context, client net.Conn) (net.Conn, error) {
	if err := awaitWord(ctx, client, muteFor); err != nil {
		return nil, err
	}
	return b.pool.connect(ctx)
}

// Run serves what the configuration file at path says and follows changes of
// its backends. It blocks until ctx is done, gives the virtual IP up, closes all
// connections, each at a moment at which its client seems to wait for no answer, 3 s
// later at the latest, and returns nil. Those with the virtual IP it closes at once,
// unless that has moved in order before: nobody would answer them. It fails at once if the file is
// wrong, the files it names cannot be read or an address cannot be listened on.
//
// The file is looked at once a second and must be replaced, not rewritten in
// place. A bad one is logged, and what was before stays. So is a change of
// anything but the backends and the local one: that needs a restart.
func Run(ctx context.Context, path string, log *slog.Logger) error {
	data, err := readConfig(path)
	if err != nil {
		return err
	}
	cfg, err := parseConfig(path, data)
	if err != nil {
		return err
	}
	b, err := New(cfg, log)
	if err != nil {
		return err
	}
	if cfg.VIP != nil {
		b.keeper = newKeeper(*cfg.VIP, log)
		b.keeper.partFrom = b.pool.partFrom
	}
	fronts, status, err := b.listen(ctx)
	if err != nil {
		return err
	}
	serving, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	group, serving := errgroup.WithContext(serving)
	group.Go(func() error { return b.serve(serving, fronts, status) })
	group.Go(func() error {
		defer end()
		return b.partAt(ctx, serving)
	})
	if b.keeper != nil {
		group.Go(func() error {
			b.keeper.run(ctx, serving, b.pool.someHealthy)
			return nil
		})
	}
	group.Go(func() error {
		f := follower{balancer: b, path: path, seen: data}
		watch(serving, followInterval, nil, f.look)
		return nil
	})
	return group.Wait()
}

// partAt parts when ctx ends, unless serving has ended before.
func (b *Balancer) partAt(ctx, serving context.Context) error {
	select {
	case <-serving.Done():
		return nil
	case <-ctx.Done():
	}
	if b.keeper != nil {
		b.keeper.part()
	}
	b.pool.part(serving, everyMember)
	return nil
}

// listen opens what the configuration names; status is nil if not wanted.
func (b *Balancer) listen(ctx context.Context) (fronts []net.Listener, status net.Listener, err error) {
	defer func() {
		if err != nil {
			for _, ln := range fronts {
				_ = ln.Close()
			}
		}
	}()
	config := net.ListenConfig{KeepAliveConfig: keepAlive(patience)}
	for _, address := range b.cfg.Listen {
		here := config
		if b.cfg.VIP.is(address) {
			here.Control = host.Anywhere // it is listened on also while another machine has it
		}
		ln, err := listen(ctx, here, address)
		if err != nil {
			return fronts, nil, err
		}
		if b.keeper != nil && b.cfg.VIP.is(address) {
			ln = b.keeper.watch(ln)
		}
		fronts = append(fronts, ln)
	}
	if b.cfg.Status != "" {
		status, err = listen(ctx, config, b.cfg.Status)
	}
	return fronts, status, err
}

// listen explains the two errors that people meet.
func listen(ctx context.Context, config net.ListenConfig, address string) (net.Listener, error) {
	ln, err := config.Listen(ctx, "tcp", address)
	if err == nil {
		return ln, nil
	}
	problem := &cluster.Problem{What: "cannot listen on " + address, Err: err}
	_, port, _ := net.SplitHostPort(address)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		problem.Why = "another process listens there"
		problem.Do = fmt.Sprintf("find it with: ss -ltnp 'sport = :%s'", port)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		problem.Why = "no interface of this machine has that address"
		problem.Do = "compare with: ip -brief address"
	}
	return nil, problem
}

// firstTurn is the same after every restart and differs between machines.
func firstTurn(listen []string) uint {
	hash := fnv.New32a()
	_, _ = hash.Write([]byte(strings.Join(listen, " ")))
	return uint(hash.Sum32())
}
