package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"kuorum/internal/apiservice"
	"kuorum/internal/cluster"
	"kuorum/internal/component"
	"kuorum/internal/endpoint"
	"kuorum/internal/kubeapi"
	"kuorum/internal/lease"
	"kuorum/internal/supervise"
	"kuorum/internal/tickle"
)

// balancer is where a server reaches an API server also when its own does not work.
const balancer = "https://127.0.0.1:"

func throughBalancer(api *kubeapi.Client) *kubeapi.Client {
	return api.Through(balancer + strconv.Itoa(component.PortAPI))
}

// yieldPatience is how much longer a server takes to stop for its successors; balancers
// take 3 s to send its clients elsewhere.
const yieldPatience = 4 * time.Second

// mourn has the lease of a program given up as soon as it is seen to be dead: the
// others would wait for its end. What the agent finds dead as it starts counts as
// well, so that a server that comes back from a power cut does not wait for itself.
func (a *Agent) mourn(processes []supervise.Process) []supervise.Process {
	if a.server == nil {
		return processes
	}
	if !a.ownName() {
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

// ownName tells whether upstream's programs here call themselves as the node is
// called: they take the host's name. Where they do not, whose a lease is cannot be
// told, and it is left to run out.
func (a *Agent) ownName() bool {
	name := a.options.Hostname
	if name == "" || name == a.machine.Node.Name {
		return true
	}
	a.options.Log.Warn("the leases of dead components are left to run out: the host is called otherwise than the node", "host", name, "node", a.machine.Node.Name)
	return false
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
		a.explain(limited, program, e, fmt.Sprintf("%s of %s died, and its agent gave the lease up", program, a.machine.Node.Name))
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
	if in.Program == lease.VIP {
		return lease.Moved{Leader: in.To}, a.moveVIP(r.Context(), balancerControl, in.To)
	}
	return a.handOver(r.Context(), in, "handed over by order")
}

// handOver gives the lead of a program to another server, if it is this one's; why is
// written down.
func (a *Agent) handOver(ctx context.Context, o lease.Order, why string) (lease.Moved, error) {
	e, err := a.electionOf(o.Program)
	if err != nil {
		return lease.Moved{}, err
	}
	spec := a.spec.Load()
	heir, err := lease.Heir(spec, a.agents.Reports(ctx, spec.Servers()), o, a.machine.Node.Name)
	if err != nil {
		return lease.Moved{}, err
	}
	ended := false // it may lead no more
	hand := lease.Hand{
		Self: a.machine.Node.Name, Program: o.Program, Election: e, API: a.server.leases,
		Restart: func(ctx context.Context, program string, between func(context.Context) error) error {
			ended = true
			return a.supervisor.Restart(ctx, program, between)
		},
		Standby: func(ctx context.Context) error {
			return a.agents.Call(ctx, heir.Address, lease.StandbyPath, lease.Order{Program: o.Program, To: heir.Name}, nil)
		},
	}
	leader, err := hand.Over(ctx, heir.Name)
	if err == nil && ended {
		a.options.Log.Info("a lead was handed over", "component", o.Program, "to", heir.Name, "leader", leader)
		a.explain(ctx, o.Program, e, why)
	}
	return lease.Moved{Leader: leader}, err
}

// restartStandby starts this server's standby again, unless it leads by now.
func (a *Agent) restartStandby(r *http.Request, in lease.Order) (nothing, error) {
	if err := a.mayMoveLeads(r); err != nil {
		return nothing{}, err
	}
	if in.Program == lease.VIP {
		return nothing{}, a.expectVIP(r.Context(), in.From)
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
	all.Go(func() { a.yieldVIP(limited) })
	all.Go(func() { a.yieldService(limited) })
	all.Go(func() { a.yieldAPI(limited, a.spec.Load().Servers()) })
	for program, e := range a.machine.Spec.Elections() {
		all.Go(func() {
			record, err := lease.Read(limited, a.server.leases, e)
			if err == nil && record.Holder() == a.machine.Node.Name {
				_, err = a.handOver(limited, lease.Order{Program: program}, "handed over, since "+a.machine.Node.Name+" stops")
			}
			if err != nil {
				a.options.Log.Info("a lead is not handed over", "component", program, "reason", err)
			}
		})
	}
	all.Wait()
}

// stopComponents ends the balancer last: requests that are under way pass through it,
// and an API server that stops in order needs a moment to send its clients away.
func (a *Agent) stopComponents(ctx context.Context) error {
	return errors.Join(a.supervisor.Stop(ctx, "endpoint"), a.supervisor.Stop(ctx))
}

// yieldAPI has the balancers of all servers send the clients of this one's API server
// elsewhere before that stops: it answers some with an error while it does.
// Without a virtual IP nobody but the nodes uses the balancers, and these try again.
func (a *Agent) yieldAPI(ctx context.Context, servers []cluster.Node) {
	if !a.spec.Load().ServersHoldVIP() {
		return
	}
	var all sync.WaitGroup
	for _, n := range servers {
		all.Go(func() {
			err := a.agents.Call(ctx, n.Address, apiservice.PartPath, apiservice.Parting{Name: a.machine.Node.Name}, nil)
			if err != nil {
				a.options.Log.Info("clients of this API server are not sent elsewhere", "by", n.Name, "reason", err)
			}
		})
	}
	all.Wait()
}

// partFrom answers apiservice.PartPath.
func (a *Agent) partFrom(balancer endpoint.Control) http.HandlerFunc {
	return serve(func(r *http.Request, in apiservice.Parting) (nothing, error) {
		if err := a.mayMoveLeads(r); err != nil {
			return nothing{}, err
		}
		n, ok := a.spec.Load().Node(in.Name)
		if !ok || n.Role != cluster.RoleServer {
			return nothing{}, &cluster.Problem{What: fmt.Sprintf("%q is no server", in.Name), Exit: cluster.ExitUsage}
		}
		err := balancer.Part(r.Context(), net.JoinHostPort(n.Address, strconv.Itoa(component.PortAPIServer)))
		if err != nil {
			return nothing{}, &cluster.Problem{What: "the balancer of " + a.machine.Node.Name + " does not send the clients of " + in.Name + " elsewhere", Err: err, Do: "kuorum status", Exit: cluster.ExitRefused}
		}
		return nothing{}, nil
	})
}

// askBalancer asks this machine's balancer how it is.
func askBalancer(ctx context.Context, path string, into any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, component.EndpointStatus+path, nil)
	if err != nil {
		return err
	}
	resp, err := (&http.Client{}).Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("the balancer answers %s", resp.Status)
	}
	return json.NewDecoder(resp.Body).Decode(into)
}

// askVIP asks this machine's balancer, which knows all of the virtual IP.
func askVIP(ctx context.Context, address string) *cluster.VIPStatus {
	var s cluster.VIPStatus
	if err := askBalancer(ctx, endpoint.VIPPath, &s); err != nil {
		return &cluster.VIPStatus{Address: address, Error: err.Error()}
	}
	return &s
}

// preparePatience is for the heir of the virtual IP; without an answer the address
// moves all the same.
const preparePatience = time.Second

// moveVIP hands the virtual IP over to another server, if it is here. Connections with
// it stay alive where that one is prepared for them. The error is a *cluster.Problem:
// ExitUsage for what is no server, ExitRefused if the balancer does not, ExitNoQuorum
// if it does not answer.
func (a *Agent) moveVIP(ctx context.Context, balancer endpoint.Control, to string) error {
	heir, ok := a.spec.Load().Node(to)
	if !ok || heir.Role != cluster.RoleServer {
		return &cluster.Problem{What: fmt.Sprintf("%q is no server", to), Exit: cluster.ExitUsage}
	}
	order := lease.Order{Program: lease.VIP, To: to, From: a.machine.Node.Name}
	preparing, cancel := context.WithTimeout(ctx, preparePatience)
	defer cancel()
	prepared := a.agents.Call(preparing, heir.Address, lease.StandbyPath, order, nil)
	if prepared != nil {
		a.options.Log.Warn("connections with the virtual IP end as it moves", "to", to, "reason", prepared)
	}
	err := balancer.Move(ctx, heir.Address, prepared == nil)
	switch {
	case errors.Is(err, endpoint.ErrSilent):
		return &cluster.Problem{What: "the balancer of " + a.machine.Node.Name + " does not move the virtual IP", Err: err, Do: "kuorum status", Exit: cluster.ExitNoQuorum}
	case err != nil:
		return &cluster.Problem{What: "the virtual IP is not moved to " + to, Err: err, Do: "kuorum leader", Exit: cluster.ExitRefused}
	}
	return nil
}

// expectVIP prepares this server's balancer for the virtual IP of another server.
func (a *Agent) expectVIP(ctx context.Context, from string) error {
	holder, ok := a.spec.Load().Node(from)
	if !ok || holder.Role != cluster.RoleServer {
		return &cluster.Problem{What: fmt.Sprintf("%q is no server", from), Exit: cluster.ExitUsage}
	}
	return balancerControl.Expect(ctx, holder.Address)
}

// yieldVIP hands the virtual IP over before this server stops, if it is here, to one
// whose balancer reaches the API.
func (a *Agent) yieldVIP(ctx context.Context) {
	spec := a.spec.Load()
	if !a.machine.Spec.ServersHoldVIP() {
		return
	}
	if s := askVIP(ctx, ""); s.State != cluster.VIPActive {
		return
	}
	a.passVIP(ctx, balancerControl, a.agents.Reports(ctx, spec.Servers()))
}

// passVIP hands the virtual IP over to the first other server that can have it and
// takes it.
func (a *Agent) passVIP(ctx context.Context, balancer endpoint.Control, servers []cluster.NodeReport) {
	for _, r := range servers {
		if r.Name == a.machine.Node.Name || r.Status == nil || r.Status.VIP == nil || r.Status.VIP.State != cluster.VIPBackup || r.Status.VIP.Impaired {
			continue
		}
		err := a.moveVIP(ctx, balancer, r.Name)
		if err == nil {
			a.options.Log.Info("the virtual IP was handed over", "to", r.Name)
			return
		}
		a.options.Log.Info("the virtual IP is not handed over", "to", r.Name, "reason", err)
	}
}

// balancerControl is that of this machine's balancer.
const balancerControl endpoint.Control = component.VIPSocket

func newsSince(path string, since uint64) string {
	return path + "?since=" + strconv.FormatUint(since, 10)
}

// clientsPath answers GET with the clients of the virtual IP here, as
// endpoint.ClientsPath does. It is for servers, and takes until there is news.
const clientsPath = "/v1/vip/clients"

// tellClients answers other servers until ctx ends, which is when the agent does:
// nobody waits for those who wait for news.
func (a *Agent) tellClients(ctx context.Context, balancer endpoint.Control) http.HandlerFunc {
	return serve(func(r *http.Request, _ nothing) (tickle.List, error) {
		if err := a.mayMoveLeads(r); err != nil {
			return tickle.List{}, err
		}
		asking, cancel := context.WithCancel(r.Context())
		defer cancel()
		defer context.AfterFunc(ctx, cancel)()
		since, _ := strconv.ParseUint(r.URL.Query().Get("since"), 10, 64) // no number: nothing is known
		return balancer.Clients(asking, since)
	})
}

// learnClients tells this server's balancer whom the others serve at the virtual IP,
// so that it can reset them when the address comes here. All others are asked, not
// the holder alone: the one that will be holder next is asked already, and one
// without clients has no news.
func (a *Agent) learnClients(ctx context.Context) {
	if !a.machine.Spec.ServersHoldVIP() {
		return
	}
	a.clientLearner(balancerControl).Run(ctx, a.otherServers)
}

func (a *Agent) clientLearner(balancer endpoint.Control) tickle.Learner {
	ask := func(ctx context.Context, server netip.Addr, since uint64) (list tickle.List, err error) {
		return list, a.agents.Call(ctx, server.String(), newsSince(clientsPath, since), nil, &list)
	}
	return tickle.Learner{Ask: ask, Tell: balancer.Tell, Log: a.options.Log}
}

// otherServers are where they are now.
func (a *Agent) otherServers() (others []netip.Addr) {
	for _, n := range a.spec.Load().Servers() {
		if address, err := netip.ParseAddr(n.Address); err == nil && n.Name != a.machine.Node.Name {
			others = append(others, address)
		}
	}
	return others
}

// dropVIP is for a server that was removed: the others do not listen to it any more
// and take the virtual IP, so its balancer ends first of all, after those that give
// their leases up through it.
func (a *Agent) dropVIP(ctx context.Context) {
	if !a.machine.Spec.ServersHoldVIP() || a.server == nil {
		return
	}
	for _, name := range []string{cluster.ControllerManagerName, cluster.SchedulerName, "endpoint"} {
		var keep []string
		for _, c := range a.components {
			if c.Name != name {
				keep = append(keep, c.Name)
			}
		}
		if err := a.supervisor.Stop(ctx, keep...); err != nil {
			a.options.Log.Warn("cannot stop a component of a removed server", "component", name, "error", err)
		}
	}
}
