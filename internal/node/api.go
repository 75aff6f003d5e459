package node

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"kuorum/internal/agent"
	"kuorum/internal/apiservice"
	"kuorum/internal/cluster"
	"kuorum/internal/datadir"
	"kuorum/internal/history"
	"kuorum/internal/lease"
	"kuorum/internal/membership"
	"kuorum/internal/pki"
	"kuorum/internal/relocation"
)

// partingTime is what requests get to end when the agent does. Nobody new is let
// in meanwhile.
const partingTime = 5 * time.Second

// serveAPI answers other agents and the CLI on the node's address, or where it
// is astray, and on loopback. Callers without a certificate get as far as the routes here.
func (a *Agent) serveAPI(ctx context.Context) error {
	tlsConfig, err := agentTLS(a.etc)
	if err != nil {
		return fmt.Errorf("cannot serve the agent's API: %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("/", membersOnly(a.counted(a.membersAPI())))
	if a.server != nil {
		a.server.joinAPI(mux)
		mux.Handle("GET "+clientsPath, membersOnly(a.tellClients(ctx, balancerControl)))
	}
	server := &http.Server{Handler: mux, TLSConfig: tlsConfig, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute}
	var addresses []string
	for _, address := range append([]string{"127.0.0.1"}, a.place.addresses...) {
		addresses = append(addresses, net.JoinHostPort(address, strconv.Itoa(agent.Port)))
	}
	listeners, err := a.doors.listen(ctx, addresses)
	if err != nil {
		return fmt.Errorf("cannot serve the agent's API: %w", err)
	}
	failed := make(chan error, len(listeners))
	for _, ln := range listeners {
		go func() { failed <- server.ServeTLS(ln, "", "") }()
	}
	select {
	case err := <-failed:
		return fmt.Errorf("cannot serve the agent's API: %w", err)
	case <-ctx.Done():
	}
	// Who has been let in is served, and who asks for long is not waited for.
	parting, cancel := context.WithTimeout(context.WithoutCancel(ctx), partingTime)
	defer cancel()
	if server.Shutdown(parting) == nil {
		return nil
	}
	if err := server.Close(); err != nil && !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("cannot close the agent's API: %w", err)
	}
	return nil
}

// counted keeps count of the requests that change something: an agent does not
// end of its own accord before they have. Those of strangers count once their
// token was read, see joinAPI.
func (a *Agent) counted(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			a.changes.Add(1)
			defer a.changes.Add(-1)
		}
		next.ServeHTTP(w, r)
	})
}

// serves is how many changes of the cluster are under way here.
func (a *Agent) serves() int32 {
	n := a.changes.Load()
	if a.server != nil {
		n += a.server.joins.Load()
	}
	return n
}

// membersAPI is what agents and administrators may ask.
func (a *Agent) membersAPI() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/health", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, map[string]bool{"ok": true})
	})
	mux.HandleFunc("GET "+agent.StatusPath, func(w http.ResponseWriter, r *http.Request) {
		writeJSON(w, a.Status(r.Context()))
	})
	mux.HandleFunc("POST "+membership.LeavePath, func(w http.ResponseWriter, r *http.Request) {
		if err := a.commands(r); err != nil {
			refuse(w, err)
			return
		}
		answer(w, nothing{})
		a.leave()
	})
	mux.HandleFunc("POST "+relocation.MovePath, a.move)
	if a.vip != nil {
		mux.HandleFunc("POST "+membership.LookPath, serve(a.lookNow))
		mux.HandleFunc("POST "+lease.MovePath, serve(a.moveAddress))
		mux.HandleFunc("POST "+lease.StandbyPath, serve(a.moveAddress))
	}
	if a.server != nil || a.member != nil || a.vip != nil {
		mux.HandleFunc("GET "+history.Path, serve(a.tellHistory))
	}
	a.keysAPI(mux)
	if a.server != nil {
		mux.HandleFunc("GET "+apiservice.Path, serve(func(r *http.Request, _ nothing) (apiservice.View, error) {
			return a.server.service.View(r.Context())
		}))
		mux.HandleFunc("POST "+apiservice.PartPath, a.partFrom(balancerControl))
		more := http.NewServeMux()
		a.server.memberAPI(more)
		more.HandleFunc("POST "+membership.RenewPath, serve(a.renewOther))
		more.HandleFunc("POST "+lease.MovePath, serve(a.moveLeader))
		more.HandleFunc("POST "+lease.StandbyPath, serve(a.restartStandby))
		mux.Handle("/", a.server.owned(more))
	}
	if a.member != nil {
		mux.HandleFunc("GET "+membership.MarksPath, serve(func(r *http.Request, _ nothing) ([]datadir.Mark, error) {
			return membership.NewRegister(a.member.etcd).Marks(r.Context())
		}))
		mux.HandleFunc("POST "+membership.RebuildPath, serve(func(r *http.Request, _ nothing) (nothing, error) {
			if err := a.mayRebuild(r); err != nil {
				return nothing{}, err
			}
			return a.rebuild(r.Context())
		}))
	}
	return mux
}

// commands is nil when the caller may command this very node: an administrator,
// or the node itself.
func (a *Agent) commands(r *http.Request) error {
	if caller, group, _ := pki.Peer(r.TLS); group == pki.GroupAdmins || pki.AgentNode(caller) == a.machine.Node.Name {
		return nil
	}
	return &cluster.Problem{What: "only the node itself, or an administrator, may say so", Exit: cluster.ExitRefused}
}

// answer answers a command that ends this agent, before the connection is
// closed, or the caller would take it for a failure.
func answer(w http.ResponseWriter, value any) {
	writeJSON(w, value)
	_ = http.NewResponseController(w).Flush()
}

// membersOnly refuses callers without a certificate; those with a wrong one
// have not come through TLS. Their connection is closed, so that nobody waits
// for the rest of what a stranger sends.
func membersOnly(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, _, ok := pki.Peer(r.TLS); !ok {
			w.Header().Set("Connection", "close")
			http.Error(w, "only for agents and administrators with a certificate of this cluster", http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func writeJSON(w http.ResponseWriter, value any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(value) // the caller has gone: nobody to tell
}

// agentTLS reads the agent's certificate, and the authorities that it trusts,
// again for each connection: the node replaces them.
func agentTLS(etc string) (*tls.Config, error) {
	config, err := readAgentTLS(etc)
	if err != nil {
		return nil, err
	}
	config.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return readAgentTLS(etc) }
	return config, nil
}

func readAgentTLS(etc string) (*tls.Config, error) {
	files := map[string][]byte{}
	for _, name := range []string{"agent-ca.crt", "agent.crt", "agent.key"} {
		data, err := os.ReadFile(filepath.Join(etc, "pki", name))
		if err != nil {
			return nil, err
		}
		files[name] = data
	}
	return pki.ServerTLS(files["agent-ca.crt"], pki.Pair{Cert: files["agent.crt"], Key: files["agent.key"]})
}

// doors are the sockets that a machine's agents listen on, one after the other.
// An agent that is made anew from changed files takes them over, so that nobody
// finds them closed: who comes in between waits to be accepted.
type doors struct{ open map[string]*door }

// listen opens those of the addresses (host:port) that are not open yet, and
// closes all others.
func (d *doors) listen(ctx context.Context, addresses []string) ([]net.Listener, error) {
	kept := map[string]*door{}
	var list []net.Listener
	for _, address := range addresses {
		entry := d.open[address]
		if entry == nil {
			ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
			if err != nil {
				return nil, errors.Join(err, closeAll(kept))
			}
			entry = &door{ln.(*net.TCPListener)} //nolint:forcetypeassert // that is what "tcp" gives
		}
		if err := entry.SetDeadline(time.Time{}); err != nil {
			return nil, errors.Join(err, closeAll(kept))
		}
		delete(d.open, address)
		kept[address] = entry
		list = append(list, entry)
	}
	err := closeAll(d.open)
	d.open = kept
	return list, err
}

// close closes all.
func (d *doors) close() error {
	err := closeAll(d.open)
	d.open = nil
	return err
}

func closeAll(open map[string]*door) error {
	var errs []error
	for _, entry := range open {
		errs = append(errs, entry.TCPListener.Close())
	}
	return errors.Join(errs...)
}

// door is a socket that stays open when a server that uses it is closed: that
// only ends its waiting for callers.
type door struct{ *net.TCPListener }

// Close makes Accept return.
func (d *door) Close() error { return d.SetDeadline(time.Unix(1, 0)) }
