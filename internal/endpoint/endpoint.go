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
	"time"

	"golang.org/x/sync/errgroup"

	"kuorum/internal/cluster"
)

// Run balances until ctx is done, then closes everything, also established
// connections, and returns nil. It fails at once if cfg is wrong, its files
// cannot be read or an address cannot be listened on. Backends need not be
// there yet.
func Run(ctx context.Context, cfg Config, log *slog.Logger) error {
	cfg = cfg.withDefaults()
	if err := cfg.Validate(); err != nil {
		return fmt.Errorf("cannot use the balancer's configuration: %w", err)
	}
	if _, err := cfg.clientTLS(); err != nil {
		return err
	}
	s := &server{cfg: cfg, log: log}
	if err := s.listen(ctx); err != nil {
		return err
	}
	return s.run(ctx)
}

// Serve is Run on listeners that the caller has opened, such as one from
// another network namespace; cfg.Listen is not looked at. It owns and closes
// them.
func Serve(ctx context.Context, cfg Config, fronts []net.Listener, log *slog.Logger) error {
	cfg = cfg.withDefaults()
	for _, ln := range fronts {
		cfg.Listen = append(cfg.Listen, ln.Addr().String())
	}
	if err := cfg.Validate(); err != nil {
		return fmt.Errorf("cannot use the balancer's configuration: %w", err)
	}
	if _, err := cfg.clientTLS(); err != nil {
		return err
	}
	s := &server{cfg: cfg, log: log, fronts: fronts}
	return s.run(ctx)
}

// server is a balancer with open listeners.
type server struct {
	cfg    Config // with defaults
	log    *slog.Logger
	fronts []net.Listener
	status net.Listener // nil if not wanted
}

func (s *server) listen(ctx context.Context) error {
	for _, address := range s.cfg.Listen {
		ln, err := listen(ctx, address)
		if err != nil {
			s.close()
			return err
		}
		s.fronts = append(s.fronts, ln)
	}
	if s.cfg.Status == "" {
		return nil
	}
	ln, err := listen(ctx, s.cfg.Status)
	if err != nil {
		s.close()
		return err
	}
	s.status = ln
	return nil
}

func (s *server) close() {
	for _, ln := range s.fronts {
		_ = ln.Close()
	}
}

// listen explains the two errors that people meet.
func listen(ctx context.Context, address string) (net.Listener, error) {
	ln, err := (&net.ListenConfig{KeepAliveConfig: keepAlive(patience)}).Listen(ctx, "tcp", address)
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

func (s *server) run(ctx context.Context) error {
	p := newPool(s.cfg, firstTurn(s.cfg.Listen), s.log)
	group, ctx := errgroup.WithContext(ctx)
	for _, m := range p.members {
		group.Go(func() error {
			p.keepChecking(ctx, m)
			return nil
		})
	}
	for _, ln := range s.fronts {
		group.Go(func() error { return Forward(ctx, ln, p.connect, s.log) })
	}
	if s.status != nil {
		group.Go(func() error { return p.serveStatus(ctx, s.status) })
	}
	s.log.InfoContext(ctx, "balancer started", "listen", s.cfg.Listen, "backends", len(s.cfg.Backends))
	return group.Wait()
}

// keepChecking returns when ctx is done.
func (p *pool) keepChecking(ctx context.Context, m *member) {
	probe := newProbe(p.cfg, m.Address)
	defer probe.close()
	watch(ctx, time.Duration(p.cfg.Interval), m.kick, func(ctx context.Context) {
		if p.doubted(m) {
			// Clients could not connect: do what they did.
			probe.close()
		}
		r := probe.check(ctx)
		if ctx.Err() != nil {
			return
		}
		p.record(ctx, m, r)
		if p.hopeful(m) {
			m.kickAfter(hopefulInterval)
		}
	})
}

// A backend that is not healthy since a short time may be starting: somebody
// waits for it, so it is asked more often.
const (
	hopefulInterval = 100 * time.Millisecond
	hopefulFor      = 30 * time.Second
)

func (p *pool) hopeful(m *member) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return m.state != Healthy && time.Since(m.since) < hopefulFor
}

// kickAfter asks for a check in a while; one asked for already will do.
func (m *member) kickAfter(d time.Duration) {
	time.AfterFunc(d, func() {
		select {
		case m.kick <- struct{}{}:
		default:
		}
	})
}

// firstTurn is the same after every restart and differs between machines.
func firstTurn(listen []string) uint {
	hash := fnv.New32a()
	_, _ = hash.Write([]byte(strings.Join(listen, " ")))
	return uint(hash.Sum32())
}
