package node

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"kuorum/internal/cluster"
	"kuorum/internal/component"
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
	if a.server != nil && a.machine.Spec.HasVIP() {
		all.Go(func() { s.VIP = askVIP(ctx, a.machine.Spec.Spec.Endpoint.Address) })
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

func diskStatus(dir string) cluster.DiskStatus {
	free, size, err := host.Space(dir)
	if err != nil {
		return cluster.DiskStatus{} // not known
	}
	return cluster.DiskStatus{FreeBytes: free, SizeBytes: size}
}
