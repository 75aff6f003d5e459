package node

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"kuorum/internal/agent"
	"kuorum/internal/apiservice"
	"kuorum/internal/cluster"
	"kuorum/internal/component"
	"kuorum/internal/datadir"
	"kuorum/internal/endpoint"
	"kuorum/internal/etcd"
	"kuorum/internal/kubeapi"
	"kuorum/internal/lease"
	"kuorum/internal/membership"
	"kuorum/internal/supervise"
)

// member is the etcd member of a node that has one. It is asked alone, so that
// the answer does not depend on other machines.
type member struct {
	etcd    *etcd.Client
	metrics *etcd.MetricsWatch
	timers  cluster.Etcd // that it was started with
	data    *datadir.Guard
	led     ledMember // as seen from here
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
	if m.data != nil {
		status.Old = m.data.Old()
	}
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
	leases   lease.API // through the balancer: the own API server may be what died
	service  *apiservice.Keeper

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
	s.api, s.leases = apiClient{api}, throughBalancer(api)
	s.service = newKeeper(options, m.Node.Name, agents, api)
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

// holdBack keeps the API server from starting on another cluster's data, etcd from
// starting on older data than it had, and keepalived from starting where the others'
// do not know of it: it would hear nobody, and take the virtual IP.
func (a *Agent) holdBack(processes []supervise.Process) []supervise.Process {
	for i := range processes {
		switch p := &processes[i]; {
		case p.Name == "kube-apiserver" && a.server != nil && a.server.external != nil:
			p.May = func(context.Context) error { return a.server.external.known() }
		case p.Name == "etcd" && a.member != nil && a.member.data != nil:
			p.May = a.member.data.May
		case p.Name == "keepalived" && a.vip != nil:
			p.May = a.knownToBalancers
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

const (
	// markFile says how far the node's member was, acceptFile that its owner takes older
	// data than that. Both are beside etcd's data directory, not in it.
	markFile   = component.VarDir + "/etcd-mark.json"
	acceptFile = component.VarDir + "/etcd-accept-old-data"
	markEvery  = 30 * time.Second
	// marksWait is what others get to say how far this node's member was, before etcd
	// starts. Once one has answered the rest get marksMore: etcd has told all the same.
	marksWait = 700 * time.Millisecond
	marksMore = 100 * time.Millisecond
)

func (a *Agent) newGuard() *datadir.Guard {
	return &datadir.Guard{
		Node: a.machine.Node.Name, Dir: component.EtcdData, Mark: markFile, Accept: acceptFile,
		Voters: func() int { return len(a.spec.Load().EtcdNodes()) }, Others: a.othersMarks, Log: a.options.Log,
	}
}

// othersMarks asks the other nodes with members at once. Whoever does not answer has
// no mark: a cluster that starts as a whole must not wait for itself.
func (a *Agent) othersMarks(ctx context.Context) []datadir.Mark {
	limited, cancel := context.WithTimeout(ctx, marksWait)
	defer cancel()
	var all sync.WaitGroup
	var mu sync.Mutex
	var marks []datadir.Mark
	for _, n := range a.spec.Load().EtcdNodes() {
		if n.Name == a.machine.Node.Name {
			continue
		}
		all.Go(func() {
			var told []datadir.Mark
			if err := a.agents.Call(limited, n.Address, membership.MarksPath, nil, &told); err != nil {
				return
			}
			time.AfterFunc(marksMore, cancel)
			mu.Lock()
			defer mu.Unlock()
			marks = append(marks, told...)
		})
	}
	all.Wait()
	return marks
}

// keepMarks notes now and then how far the node's member is.
func (a *Agent) keepMarks(ctx context.Context) {
	register := membership.NewRegister(a.member.etcd)
	m := marker{file: markFile, accept: acceptFile, look: a.lookAtMember, tell: func(ctx context.Context, mark datadir.Mark) error {
		return register.Mark(ctx, a.machine.Node.Name, mark)
	}}
	tick := time.NewTicker(markEvery)
	defer tick.Stop()
	for {
		limited, cancel := context.WithTimeout(ctx, askPatience)
		if err := m.turn(limited); err != nil {
			a.options.Log.Debug("cannot note how far etcd is", "error", err)
		}
		cancel()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// lookAtMember is what the node's member says, and the process that has said so; 0
// if that is not known.
func (a *Agent) lookAtMember(ctx context.Context) (int, cluster.EtcdStatus) {
	before := a.etcdProcess()
	status := a.member.etcd.Status(ctx)
	if a.etcdProcess() != before {
		return 0, status
	}
	return before, status
}

func (a *Agent) etcdProcess() int {
	for _, s := range a.supervisor.States() {
		if s.Name == "etcd" {
			return s.PID
		}
	}
	return 0
}

// marker notes how far a member is: in a file, and in etcd for the case that the
// machine's whole disk is put back.
type marker struct {
	file, accept string
	look         func(context.Context) (process int, status cluster.EtcdStatus)
	tell         func(context.Context, datadir.Mark) error

	saved datadir.Saved
	mark  datadir.Mark // the last one
	told  bool
}

// turn looks once. Without a quorum nobody can be told; the next turn tries again.
func (m *marker) turn(ctx context.Context) error {
	process, s := m.look(ctx)
	if process == 0 || s.Error != "" {
		return nil
	}
	if index, ok := m.saved.See(process, s.RaftIndex); ok {
		m.mark, m.told = datadir.Mark{Cluster: s.Cluster, Member: s.ID, Index: index, At: time.Now().UTC().Truncate(time.Second)}, false
	}
	if m.mark.Member != s.ID || m.told {
		return nil
	}
	if err := errors.Join(datadir.WriteMark(m.file, m.mark), m.tell(ctx, m.mark)); err != nil {
		return err
	}
	m.told = true
	if err := os.Remove(m.accept); err != nil && !errors.Is(err, fs.ErrNotExist) { // the marks are of the data that runs
		return fmt.Errorf("cannot remove %s: %w", m.accept, err)
	}
	return nil
}

// newKeeper keeps, with those of the other servers, what the Service kubernetes leads to.
func newKeeper(options Options, name string, agents *agent.Client, api *kubeapi.Client) *apiservice.Keeper {
	return apiservice.New(apiservice.Config{
		Self: name, API: throughBalancer(api), Log: options.Log,
		Balancer: func(ctx context.Context, since uint64) (states endpoint.States, err error) {
			err = askBalancer(ctx, newsSince(endpoint.StatesPath, since), &states)
			return states, err
		},
		Ask: func(ctx context.Context, n cluster.Node) (view apiservice.View, err error) {
			err = agents.Call(ctx, n.Address, apiservice.Path, nil, &view)
			return view, err
		},
	})
}

func (a *Agent) keepService(ctx context.Context) {
	a.server.service.Run(ctx, func() []cluster.Node { return a.spec.Load().Servers() })
}

// yieldService has pods led to the other servers' API servers before this one's stops.
func (a *Agent) yieldService(ctx context.Context) {
	if err := a.server.service.Leave(ctx); err != nil {
		a.options.Log.Info("the Service kubernetes is not told that this server stops", "reason", err)
	}
}
