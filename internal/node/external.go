package node

import (
	"context"
	"errors"
	"net/http"
	"sync"

	"kuorum/internal/cluster"
	"kuorum/internal/etcd"
	"kuorum/internal/membership"
	"kuorum/internal/supervise"
)

// external is an etcd that somebody else runs, as a server's agent knows it. It
// may hold another cluster's data: until it is known to be this one's, nothing is
// followed from there, nothing is served, and no API server starts on it.
type external struct {
	id        string // of the cluster, in that etcd
	endpoints []string
	etcd      *etcd.Client // stays the caller's

	mu   sync.Mutex
	ours bool
	err  error // why it is not known to be ours, or known not to be
}

// errNotAsked is before the first answer.
var errNotAsked = errors.New("etcd was not asked yet")

func newExternal(spec *cluster.Spec, dir string, client *etcd.Client) (*external, error) {
	id, err := membership.ExternalID(dir)
	return &external{id: id, endpoints: spec.Spec.Etcd.External.Endpoints, etcd: client, err: errNotAsked}, err
}

// note remembers what became of asking for the cluster's own data. That etcd does
// not answer takes nothing back. A nil external notes nothing.
func (e *external) note(err error) {
	if e == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if err != nil && e.ours && !errors.Is(err, membership.ErrForeign) {
		return
	}
	e.ours, e.err = err == nil, err
}

// known is nil when etcd is known to be this cluster's.
func (e *external) known() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ours {
		return nil
	}
	if errors.Is(e.err, membership.ErrForeign) {
		return e.err
	}
	return &cluster.Problem{
		What: "whether etcd is this cluster's is not known yet", Err: e.err, Do: "kuorum status", Exit: cluster.ExitNoQuorum,
	}
}

// status asks all members, and takes a second at most.
func (e *external) status(ctx context.Context) *cluster.ExternalEtcdStatus {
	var s cluster.ExternalEtcdStatus
	var looks []cluster.EtcdStatus
	var both sync.WaitGroup
	both.Go(func() { looks = e.etcd.Looks(ctx) })
	both.Go(func() { s.Agrees = e.etcd.Agrees(ctx) })
	both.Wait()
	for i, look := range looks {
		s.Endpoints = append(s.Endpoints, cluster.EtcdEndpoint{URL: e.endpoints[i], EtcdStatus: look})
	}
	if problem, ok := errors.AsType[*cluster.Problem](e.known()); ok && errors.Is(problem, membership.ErrForeign) {
		s.Foreign = problem.Why
	}
	return &s
}

// claim makes an empty etcd this cluster's, or sees that it is.
func (a *Agent) claim(ctx context.Context) {
	a.retry(ctx, "write cluster.yaml to etcd", func(ctx context.Context) error {
		limited, cancel := context.WithTimeout(ctx, askPatience)
		defer cancel()
		err := a.server.members.Register.Claim(limited, a.machine.Spec)
		a.server.external.note(err)
		return err
	})
}

// holdBack keeps the API server from starting on another cluster's data.
func (a *Agent) holdBack(processes []supervise.Process) []supervise.Process {
	if a.server == nil || a.server.external == nil {
		return processes
	}
	for i := range processes {
		if processes[i].Name == "kube-apiserver" {
			processes[i].May = func(context.Context) error { return a.server.external.known() }
		}
	}
	return processes
}

// owned serves nothing while etcd may be another cluster's, whose data would be
// read and changed.
func (s *server) owned(next http.Handler) http.Handler {
	if s.external == nil {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := s.external.known(); err != nil {
			refuse(w, err)
			return
		}
		next.ServeHTTP(w, r)
	})
}
