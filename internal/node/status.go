package node

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"kuorum/internal/cluster"
	"kuorum/internal/component"
	"kuorum/internal/etcd"
	"kuorum/internal/history"
	"kuorum/internal/host"
	"kuorum/internal/keyring"
	"kuorum/internal/lease"
	"kuorum/internal/supervise"
)

// askAPI is how long the agent waits for an answer of its API server.
const askAPI = 10 * time.Second

// probeTime bounds a status: whoever asks waits little longer (agent.Client),
// and must hear of a component that hangs, not think that the agent does.
const probeTime = time.Second

// Status probes everything now; it blocks for a second at most. What cannot be
// found out is left empty, or says why.
func (a *Agent) Status(ctx context.Context) cluster.NodeStatus {
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	s := cluster.NodeStatus{
		Name: a.machine.Node.Name, Role: a.machine.Node.Role, Version: a.options.Version,
		Started: a.started.UTC(), Ready: true, Config: a.spec.Load().Digest(),
		Disk: diskStatus(component.VarDir), Certificates: keyring.Certificates(component.EtcDir),
	}
	if a.place.astray {
		s.Ready, s.Lost, s.Addresses = false, a.machine.Node.Address, a.place.addresses
	}
	var all sync.WaitGroup
	var states []supervise.State
	all.Go(func() { states = a.supervisor.Probe(ctx) })
	if a.member != nil {
		all.Go(func() { s.Etcd = a.member.status(ctx) })
	}
	if a.server != nil {
		all.Go(func() { s.Leaders = a.server.leaders(ctx, a.machine.Spec.Elections()) })
	}
	if a.server != nil && a.machine.Spec.ServersHoldVIP() {
		all.Go(func() { s.VIP = askVIP(ctx, a.machine.Spec.Spec.Endpoint.Address) })
	}
	if a.vip != nil {
		all.Go(func() {
			vip := a.vip.Status(ctx)
			s.VIP = &vip
		})
	}
	if a.server != nil && a.server.external != nil {
		all.Go(func() { s.External = a.server.external.status(ctx) })
	}
	all.Wait()
	for _, c := range states {
		told := tell(c)
		s.Ready = s.Ready && told.Phase == string(supervise.PhaseReady)
		s.Components = append(s.Components, told)
	}
	if stale := a.stale.Load(); stale != nil {
		s.Stale = *stale
	}
	s.Time = time.Now().UTC() // last: it is compared with when the answer came
	return s
}

// tell says of a component that is to be replaced that it is not ready, though
// it may do its work still: who waits for the node waits for what comes after.
func tell(c supervise.State) cluster.ComponentStatus {
	if c.Outdated && c.Phase == supervise.PhaseReady {
		c.Phase = supervise.PhaseWaiting
		c.Message = cmp.Or(c.Message, "is replaced when its turn comes")
	}
	return cluster.ComponentStatus{
		Name: c.Name, Phase: string(c.Phase), PID: c.PID, Since: c.Since.UTC(),
		Restarts: c.Restarts, LastExit: c.LastExit, Message: c.Message,
	}
}

// leaders are upstream's elections as the API server has them in its cache,
// which it also has without a quorum. An API server that does not answer tells
// of none: its component says why.
func (s *server) leaders(ctx context.Context, elections map[string]cluster.LeaderElection) []cluster.LeaseStatus {
	programs := slices.Sorted(maps.Keys(elections))
	found := make([]*cluster.LeaseStatus, len(programs))
	var all sync.WaitGroup
	for i, program := range programs {
		all.Go(func() {
			if status, err := lease.Status(ctx, s.api, program, elections[program]); err == nil {
				found[i] = &status
			}
		})
	}
	all.Wait()
	var leases []cluster.LeaseStatus
	for _, l := range found {
		if l != nil {
			leases = append(leases, *l)
		}
	}
	return leases
}

// historyFile is where the agent writes down who leads.
const historyFile = component.VarDir + "/history/leaders.jsonl"

// keepHistory writes down who leads until ctx ends. A worker sees nothing of it.
func (a *Agent) keepHistory(ctx context.Context) {
	if a.server == nil && a.member == nil {
		return
	}
	w := history.Watch{Book: a.book, Log: a.options.Log, Look: a.sights}
	w.Run(ctx)
}

// sights are who leads as this node can see it at little cost: its own member and its
// own API server tell, the latter from its cache.
func (a *Agent) sights(ctx context.Context) []history.Sight {
	limited, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	var list []history.Sight
	if a.member != nil {
		list = append(list, a.member.led.look(limited, a.member.etcd)...)
	}
	if a.server == nil {
		return list
	}
	for _, l := range a.server.leaders(limited, a.machine.Spec.Elections()) {
		list = append(list, sightOf(l))
	}
	return list
}

func sightOf(l cluster.LeaseStatus) history.Sight {
	return history.Sight{
		What: ledWord(l.Name), Holder: l.Holder, Term: uint64(max(0, l.Transitions)), //nolint:gosec // not negative
		Since: l.Since, Renewed: l.Renewed, Lasts: time.Duration(l.Lasts),
	}
}

// ledWord is what a program is called where its leaders are.
func ledWord(program string) string { return strings.TrimPrefix(program, "kube-") }

// ledMember is who was seen to lead etcd. It is its watcher's own.
type ledMember struct {
	id    string
	sight history.Sight
}

// members is a member that is asked, an etcd.Client but for tests.
type members interface {
	Statuses(ctx context.Context) []cluster.EtcdStatus
	Status(ctx context.Context) cluster.EtcdStatus
}

// look asks for the names of members only when another leads, or in another term.
func (l *ledMember) look(ctx context.Context, own members) []history.Sight {
	s := etcd.Newest(own.Statuses(ctx))
	if s.Error != "" || s.Leader == "" {
		return nil
	}
	if s.Leader != l.id || s.Term != l.sight.Term {
		s = own.Status(ctx)
		i := slices.IndexFunc(s.Members, func(m cluster.EtcdMember) bool { return m.ID == s.Leader })
		if i < 0 || s.Members[i].Name == "" {
			return nil // a learner does not tell
		}
		l.id, l.sight = s.Leader, history.Sight{What: history.Etcd, Holder: s.Members[i].Name, Term: s.Term}
	}
	return []history.Sight{l.sight}
}

// explain writes down why the lead of a program has just gone from here. What came of
// it is asked for: another server may have taken it by now.
func (a *Agent) explain(ctx context.Context, program string, e cluster.LeaderElection, why string) {
	r, err := lease.Read(ctx, a.server.leases, e)
	if err == nil {
		err = a.book.Explain(history.Sight{
			What: ledWord(program), Holder: r.Holder(), Term: uint64(max(0, r.Transitions)), //nolint:gosec // not negative
			Since: r.Acquired, From: a.machine.Node.Name,
		}, why)
	}
	if err != nil {
		a.options.Log.Info("why a lead has gone from here is not written down", "component", program, "reason", err)
	}
}

// tellHistory answers history.Path.
func (a *Agent) tellHistory(r *http.Request, _ nothing) (history.Account, error) {
	var since time.Time
	if text := r.URL.Query().Get("since"); text != "" {
		var err error
		if since, err = time.Parse(time.RFC3339, text); err != nil {
			return history.Account{}, &cluster.Problem{What: fmt.Sprintf("since: %q is no time", text), Err: err, Exit: cluster.ExitUsage}
		}
	}
	return a.book.Since(since, func(address string) string {
		for _, n := range a.spec.Load().Spec.Nodes {
			if n.Address == address {
				return n.Name
			}
		}
		return ""
	})
}

func diskStatus(dir string) cluster.DiskStatus {
	free, size, err := host.Space(dir)
	if err != nil {
		return cluster.DiskStatus{} // not known
	}
	return cluster.DiskStatus{FreeBytes: free, SizeBytes: size}
}
