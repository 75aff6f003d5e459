package node

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"sync"
	"sync/atomic"

	"kuorum/internal/agent"
	"kuorum/internal/cluster"
	"kuorum/internal/component"
	"kuorum/internal/etcd"
	"kuorum/internal/kubeapi"
	"kuorum/internal/membership"
	"kuorum/internal/supervise"
)

// member is the etcd member of a node that has one. It is asked alone, so that
// the answer does not depend on other machines.
type member struct {
	etcd    *etcd.Client
	metrics *etcd.MetricsWatch
	timers  cluster.Etcd // that it was started with
}

func newMember(timers cluster.Etcd) (*member, error) {
	client, err := dialEtcd(component.EtcdFilesOf(&cluster.Spec{}, component.EtcDir), component.EtcdClient)
	if err != nil {
		return nil, err
	}
	return &member{etcd: client, metrics: etcd.WatchMetrics(component.EtcdMetrics + "/metrics"), timers: timers}, nil
}

func (m *member) status(ctx context.Context) *cluster.EtcdStatus {
	var status cluster.EtcdStatus
	var recent etcd.Recent
	var both sync.WaitGroup
	both.Go(func() { status = m.etcd.Status(ctx) })
	both.Go(func() { recent = m.metrics.Recent(ctx) })
	both.Wait()
	status.Heartbeat, status.ElectionTimeout = m.timers.Heartbeat, m.timers.ElectionTimeout
	if status.Error == "" {
		status.FsyncP99, status.PeerRTT = cluster.Duration(recent.FsyncP99), cluster.Duration(recent.PeerRTT)
	}
	return &status
}

// server is what only a server's agent asks: etcd, which is its own member if
// it has one, and its own API server.
type server struct {
	etcd  *etcd.Client
	apart bool // etcd is on other machines, and etcd asks all of its members
	// external is etcd again if somebody else runs it, else nil.
	external *external
	api      apiClient

	address string       // the node's own
	joins   atomic.Int32 // under way
	members *membership.Service
	waited  int // see correctMembers
}

// newServer uses the node's own member, which stays the caller's; nil: it has
// none.
func newServer(m component.Machine, options Options, agents *agent.Client, own *member) (*server, error) {
	s := &server{apart: own == nil, address: m.Node.Address}
	var err error
	if own != nil {
		s.etcd = own.etcd
	} else if s.etcd, err = dialEtcd(component.EtcdFilesOf(m.Spec, component.EtcDir), component.EtcdEndpoints(m.Spec, m.Node)...); err != nil {
		return nil, err
	}
	if m.Spec.EtcdExternal() {
		if s.external, err = newExternal(m.Spec, component.EtcDir, s.etcd); err != nil {
			return nil, errors.Join(err, s.etcd.Close())
		}
	}
	api, err := kubeapi.New(filepath.Join(component.EtcDir, "agent.conf"), askAPI)
	if err != nil {
		return nil, errors.Join(err, s.etcd.Close())
	}
	s.api = apiClient{api}
	s.members = newMembership(m, options, s, agents)
	return s, nil
}

func dialEtcd(files component.EtcdFiles, endpoints ...string) (*etcd.Client, error) {
	config, err := etcdTLS(files)
	if err != nil {
		return nil, fmt.Errorf("cannot talk to etcd: %w", err)
	}
	return etcd.Dial(etcd.Config{Endpoints: endpoints, TLS: config})
}

// etcdTLS reads the client certificate again for each connection, so that a
// renewed one is used without a restart.
func etcdTLS(files component.EtcdFiles) (*tls.Config, error) {
	config, err := membership.EtcdTLS(files)
	if err != nil {
		return nil, err
	}
	membership.Reread(config, files.Cert, files.Key)
	return config, nil
}

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
		err := a.server.members.Register.Claim(limited, a.spec.Load())
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
