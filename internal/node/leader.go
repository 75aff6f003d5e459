package node

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"time"

	"kuorum/internal/cluster"
	"kuorum/internal/component"
	"kuorum/internal/kubeapi"
	"kuorum/internal/lease"
	"kuorum/internal/supervise"
)

// balancer is where a server reaches an API server also when its own does not work.
const balancer = "https://127.0.0.1:"

func throughBalancer(api *kubeapi.Client) lease.API {
	return api.Through(balancer + strconv.Itoa(component.PortAPI))
}

// yieldPatience is how much longer a server takes to stop for its successors.
const yieldPatience = 3 * time.Second

// mourn has the lease of a program given up as soon as it is seen to be dead: the
// others would wait for its end. What the agent finds dead as it starts counts as
// well, so that a server that comes back from a power cut does not wait for itself.
func (a *Agent) mourn(processes []supervise.Process) []supervise.Process {
	if a.server == nil {
		return processes
	}
	elections := a.machine.Spec.Elections()
	for i, p := range processes {
		if e, ok := elections[p.Name]; ok {
			processes[i].Died = func(ctx context.Context, at time.Time) { a.releaseLease(ctx, p.Name, e, at) }
		}
	}
	return processes
}

func (a *Agent) releaseLease(ctx context.Context, program string, e cluster.LeaderElection, died time.Time) {
	if !a.joined() {
		return // the machine whose name and place this one takes may live still
	}
	limited, cancel := context.WithTimeout(ctx, time.Duration(e.LeaseDuration))
	defer cancel()
	why, err := lease.Release(limited, a.server.leases, e, lease.Death{Host: a.machine.Node.Name, At: died})
	switch {
	case err != nil && ctx.Err() == nil:
		a.options.Log.Info("the lease of a dead component is left to run out", "component", program, "reason", err)
	case err == nil && why == "":
		a.options.Log.Info("the lease of a dead component is released", "component", program)
	case err == nil:
		a.options.Log.Debug("the lease of a dead component is left alone", "component", program, "reason", why)
	}
}

// electionOf is how the servers elect one of that program.
func (a *Agent) electionOf(program string) (cluster.LeaderElection, error) {
	e, ok := a.machine.Spec.Elections()[program]
	if !ok {
		return e, &cluster.Problem{What: fmt.Sprintf("no leader is elected among %q", program), Exit: cluster.ExitUsage}
	}
	return e, nil
}

// mayMoveLeads is nil when the caller may: a server, by the node's own cluster.yaml,
// or an administrator.
func (a *Agent) mayMoveLeads(r *http.Request) error {
	if a.fromServer(r) {
		return nil
	}
	return a.commands(r)
}

func (a *Agent) moveLeader(r *http.Request, in lease.Order) (lease.Moved, error) {
	if err := a.mayMoveLeads(r); err != nil {
		return lease.Moved{}, err
	}
	return a.handOver(r.Context(), in)
}

// handOver gives the lead of a program to another server, if it is this one's.
func (a *Agent) handOver(ctx context.Context, o lease.Order) (lease.Moved, error) {
	e, err := a.electionOf(o.Program)
	if err != nil {
		return lease.Moved{}, err
	}
	spec := a.spec.Load()
	heir, err := lease.Heir(spec, a.agents.Reports(ctx, spec.Servers()), o, a.machine.Node.Name)
	if err != nil {
		return lease.Moved{}, err
	}
	hand := lease.Hand{
		Self: a.machine.Node.Name, Program: o.Program, Election: e, API: a.server.leases, Restart: a.supervisor.Restart,
		Standby: func(ctx context.Context) error {
			return a.agents.Call(ctx, heir.Address, lease.StandbyPath, lease.Order{Program: o.Program, To: heir.Name}, nil)
		},
	}
	leader, err := hand.Over(ctx, heir.Name)
	if err == nil {
		a.options.Log.Info("a lead was handed over", "component", o.Program, "to", heir.Name, "leader", leader)
	}
	return lease.Moved{Leader: leader}, err
}

// restartStandby starts this server's standby again, unless it leads by now.
func (a *Agent) restartStandby(r *http.Request, in lease.Order) (nothing, error) {
	if err := a.mayMoveLeads(r); err != nil {
		return nothing{}, err
	}
	e, err := a.electionOf(in.Program)
	if err != nil {
		return nothing{}, err
	}
	if record, err := lease.Read(r.Context(), a.server.leases, e); err == nil && record.Holder() == a.machine.Node.Name {
		return nothing{}, nil
	}
	if err := a.supervisor.Restart(r.Context(), in.Program, nil); err != nil {
		return nothing{}, &cluster.Problem{What: in.Program + " of " + a.machine.Node.Name + " cannot take the lead now", Err: err, Do: "kuorum status", Exit: cluster.ExitRefused}
	}
	return nothing{}, nil
}

// yieldLeads hands over what this server leads before it stops in order: the others
// would notice within seconds only. What fails is left to them.
func (a *Agent) yieldLeads(ctx context.Context) {
	if a.server == nil || a.place.astray || !a.joined() || len(a.spec.Load().Servers()) < 2 {
		return
	}
	limited, cancel := context.WithTimeout(ctx, yieldPatience)
	defer cancel()
	var all sync.WaitGroup
	for program, e := range a.machine.Spec.Elections() {
		all.Go(func() {
			record, err := lease.Read(limited, a.server.leases, e)
			if err == nil && record.Holder() == a.machine.Node.Name {
				_, err = a.handOver(limited, lease.Order{Program: program})
			}
			if err != nil {
				a.options.Log.Info("a lead is not handed over", "component", program, "reason", err)
			}
		})
	}
	all.Wait()
}
