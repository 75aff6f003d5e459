package endpoint

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"time"

	"kuorum/internal/cluster"
	"kuorum/internal/vrrp"
)

// BackendStatus is an element of the list at /status.
type BackendStatus struct {
	Backend
	Healthy bool  `json:"healthy"`
	State   State `json:"state"`
	// Since when the backend has been in this state.
	Since       time.Time `json:"since"`
	Connections int       `json:"connections"`
	// LastError is the reason why the last check failed; empty if it did not.
	LastError string `json:"lastError,omitempty"`
	// Latency of the last check; 0 before the first.
	Latency cluster.Duration `json:"latency"`
}

func (p *pool) status() []BackendStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	list := make([]BackendStatus, 0, len(p.members))
	for _, m := range p.members {
		list = append(list, BackendStatus{
			Backend:     m.Backend,
			Healthy:     m.state == Healthy,
			State:       m.state,
			Since:       m.since,
			Connections: m.load,
			LastError:   m.problem,
			Latency:     cluster.Duration(m.latency),
		})
	}
	return list
}

// StatesPath of the status server answers GET with States. With the query
// since=VERSION it waits until that is another version, for StatesPatience at most:
// whoever wants to know of each change need not ask in between.
const (
	StatesPath     = "/states"
	StatesPatience = 10 * time.Second
)

// States are the backends as the checks see them at one moment.
type States struct {
	// Version is another one, and never 0, after each change of a state or of the list,
	// and after each start of the balancer.
	Version  uint64          `json:"version"`
	Backends []BackendStatus `json:"backends"`
}

// change lets those know who wait for one. It needs the mutex.
func (p *pool) change() {
	p.version++
	close(p.turned)
	p.turned = make(chan struct{})
}

func (p *pool) edition() (version uint64, turned <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.version, p.turned
}

// states waits for another version than since, for StatesPatience at most, or until
// ctx ends.
func (p *pool) states(ctx context.Context, since uint64) States {
	version, turned := p.edition()
	if version == since {
		limit := time.NewTimer(StatesPatience)
		defer limit.Stop()
		select {
		case <-ctx.Done():
		case <-limit.C:
		case <-turned:
		}
		version, _ = p.edition()
	}
	// What changes after the version was read is told now, and once more.
	return States{Version: version, Backends: p.status()}
}

// handler serves /healthz (200 when a backend is healthy, else 503),
// /status (a list of BackendStatus, in the order of the configuration), and
// StatesPath.
func (p *pool) handler() *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		if !p.someHealthy() {
			http.Error(w, "no backend is healthy", http.StatusServiceUnavailable)
			return
		}
		_, _ = w.Write([]byte("ok\n"))
	})
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, p.status())
	})
	mux.HandleFunc("GET "+StatesPath, func(w http.ResponseWriter, r *http.Request) {
		since, _ := strconv.ParseUint(r.URL.Query().Get("since"), 10, 64) // no number: nothing is known
		writeJSON(w, p.states(r.Context(), since))
	})
	return mux
}

func writeJSON(w http.ResponseWriter, value any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(value) // the only error is a client that left
}

// serveStatus owns ln and returns nil when ctx is done.
func (b *Balancer) serveStatus(ctx context.Context, ln net.Listener) error {
	mux := b.pool.handler()
	if b.keeper != nil {
		mux.HandleFunc("GET "+VIPPath, b.keeper.tell)
	}
	server := &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: 5 * time.Second,
		IdleTimeout:       time.Minute,
	}
	defer context.AfterFunc(ctx, func() { _ = server.Close() })()
	if err := server.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("cannot serve the balancer's status: %w", err)
	}
	return nil
}

// tell answers with the virtual IP's status.
func (k *keeper) tell(w http.ResponseWriter, _ *http.Request) {
	runner := k.router()
	if runner == nil {
		http.Error(w, errNoRouter.Error(), http.StatusServiceUnavailable)
		return
	}
	s := runner.Status()
	told := cluster.VIPStatus{
		Address: k.config().Address, State: string(s.State), Priority: int(s.Priority), Impaired: s.Impaired,
		Since: s.Since, Transitions: s.Transitions, Dropped: map[string]uint64{},
	}
	if s.Active.IsValid() {
		told.Holder = s.Active.String()
	}
	for why, n := range s.Dropped {
		told.Dropped[string(why)] = n
	}
	for _, c := range s.Changes {
		told.Changes = append(told.Changes, changeOf(c))
	}
	writeJSON(w, told)
}

func changeOf(c vrrp.Change) cluster.VIPChange {
	change := cluster.VIPChange{At: c.At, From: string(c.From), To: string(c.To), Reason: c.Reason}
	if c.Peer.IsValid() {
		change.Peer = c.Peer.String()
	}
	return change
}
