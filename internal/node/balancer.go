package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"sync"
	"time"

	"kuorum/internal/cluster"
	"kuorum/internal/component"
	"kuorum/internal/host"
	"kuorum/internal/lease"
	"kuorum/internal/ledger"
	"kuorum/internal/loadbalancer"
	"kuorum/internal/pki"
)

// What a node with the role balancer does beside running HAProxy and keepalived: it has
// them read changed files, tells where the virtual IP is, and moves it by order.

// rememberedVIP is how many of the last changes of the virtual IP a balancer remembers
// at least.
const rememberedVIP = 200

// watchVIP is the watch of a balancer; nil on any other node.
func watchVIP(options Options, m component.Machine) (*loadbalancer.Watch, error) {
	if m.Node.Role != cluster.RoleBalancer {
		return nil, nil //nolint:nilnil // there is none, and that is no error
	}
	w := &loadbalancer.Watch{
		Router: component.Router(m), Here: hasAddress, Reaches: reachesAPI,
		Book: ledger.New[cluster.VIPChange](component.VIPHistory, rememberedVIP), Log: options.Log,
	}
	return w, w.Settle()
}

func hasAddress(address netip.Addr) (bool, error) {
	have, err := host.Addresses()
	return slices.Contains(have, address), err
}

// healthPatience is for HAProxy's own word, on the loopback.
const healthPatience = 300 * time.Millisecond

// reachesAPI is nil when this machine's HAProxy reaches an API server.
func reachesAPI(ctx context.Context) error {
	limited, cancel := context.WithTimeout(ctx, healthPatience)
	defer cancel()
	req, err := http.NewRequestWithContext(limited, http.MethodGet, loadbalancer.HealthURL, nil)
	if err != nil {
		return err
	}
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		err = errors.New("it answers " + resp.Status)
	}
	return errors.Join(err, resp.Body.Close())
}

const (
	// leavePatience bounds a move of the virtual IP between balancers: keepalived moves
	// it within an interval and a bit.
	leavePatience = 5 * time.Second
	lookForVIP    = 50 * time.Millisecond
)

// moveAddress answers lease.MovePath and lease.StandbyPath on a balancer.
func (a *Agent) moveAddress(r *http.Request, in lease.Order) (lease.Moved, error) {
	if err := a.mayMoveAddress(r); err != nil {
		return lease.Moved{}, err
	}
	h, err := a.handover(in)
	if err != nil {
		return lease.Moved{}, err
	}
	switch a.vip.Router.Self {
	case h.To:
		a.vip.Expect(h)
		return lease.Moved{}, nil
	case h.From:
		return lease.Moved{Leader: in.To}, a.passAddress(r.Context(), h, in)
	}
	return lease.Moved{}, a.standBack(r.Context(), h, in.To)
}

// standBack has this balancer leave the address to another one until that has it, or
// the holder keeps it. It returns when keepalived has been told.
func (a *Agent) standBack(ctx context.Context, h loadbalancer.Handover, to string) error {
	told := make(chan error, 2)
	err := a.vip.Do(ctx, func(ctx context.Context) {
		limited, cancel := context.WithTimeout(ctx, leavePatience)
		defer cancel()
		told <- a.vip.Leave(limited, h, func(ctx context.Context) error {
			told <- nil
			return a.awaitAddressAt(ctx, to)
		})
	})
	if err != nil {
		return err
	}
	return <-told
}

// mayMoveAddress is nil when the caller may: a balancer, by the node's own cluster.yaml, or
// whoever may move leads.
func (a *Agent) mayMoveAddress(r *http.Request) error {
	caller, _, _ := pki.Peer(r.TLS)
	if n, ok := a.spec.Load().Node(pki.AgentNode(caller)); ok && n.Role == cluster.RoleBalancer {
		return nil
	}
	return a.mayMoveLeads(r)
}

// knownToBalancers is nil when all other balancers that answer know of this one.
func (a *Agent) knownToBalancers(ctx context.Context) error {
	if a.joined() {
		return nil
	}
	spec := a.spec.Load()
	for _, r := range a.agents.Reports(ctx, spec.Balancers()) {
		if r.Status != nil && r.Name != a.machine.Node.Name && r.Status.Config != spec.Digest() {
			return fmt.Errorf("%s does not know of this balancer yet", r.Name)
		}
	}
	return nil
}

// lookNow answers membership.LookPath.
func (a *Agent) lookNow(r *http.Request, _ nothing) (nothing, error) {
	if err := a.mayMoveLeads(r); err != nil {
		return nothing{}, err
	}
	a.askSpec(r.Context())
	return nothing{}, nil
}

// handover is an order with the addresses of both balancers. An order that names no
// former holder means this one.
func (a *Agent) handover(in lease.Order) (loadbalancer.Handover, error) {
	spec := a.spec.Load()
	if in.Program != lease.VIP {
		return loadbalancer.Handover{}, &cluster.Problem{What: fmt.Sprintf("%s leads no %q: it is a balancer", a.machine.Node.Name, in.Program), Exit: cluster.ExitUsage}
	}
	if in.From == "" {
		in.From = a.machine.Node.Name
	}
	var at [2]netip.Addr
	for i, name := range []string{in.From, in.To} {
		n, ok := spec.Node(name)
		if !ok || n.Role != cluster.RoleBalancer {
			return loadbalancer.Handover{}, &cluster.Problem{What: fmt.Sprintf("%q is no balancer", name), Exit: cluster.ExitUsage}
		}
		at[i], _ = netip.ParseAddr(n.Address) // Validate has seen to it
	}
	return loadbalancer.Handover{From: at[0], To: at[1]}, nil
}

// passAddress has the address leave this balancer, and all others but one, until that
// one has it.
func (a *Agent) passAddress(ctx context.Context, h loadbalancer.Handover, in lease.Order) error {
	if s := a.vip.Status(ctx); s.State != cluster.VIPActive {
		return &cluster.Problem{What: "the virtual IP is not at " + a.machine.Node.Name, Do: "kuorum leader", Exit: cluster.ExitRefused}
	}
	limited, cancel := context.WithTimeout(ctx, leavePatience)
	defer cancel()
	in.From = a.machine.Node.Name
	a.announce(limited, in)
	err := a.vip.Leave(limited, h, func(ctx context.Context) error { return a.awaitAddressAt(ctx, in.To) })
	if err != nil {
		return &cluster.Problem{
			What: in.To + " has not taken the virtual IP", Err: err, Why: fmt.Sprintf("it had %v", leavePatience),
			Do: "kuorum logs " + in.To + " keepalived", Exit: cluster.ExitRefused,
		}
	}
	return nil
}

// announce tells the other balancers of a handover. One that does not answer may be
// quicker than the one that is wished for.
func (a *Agent) announce(ctx context.Context, in lease.Order) {
	limited, cancel := context.WithTimeout(ctx, preparePatience)
	defer cancel()
	var all sync.WaitGroup
	for _, n := range a.spec.Load().Balancers() {
		if n.Name == in.From {
			continue
		}
		all.Go(func() {
			if err := a.agents.Call(limited, n.Address, lease.StandbyPath, in, nil); err != nil {
				a.options.Log.Info("a balancer does not know of the handover of the virtual IP", "balancer", n.Name, "reason", err)
			}
		})
	}
	all.Wait()
}

// awaitAddressAt waits until the agent of a balancer says that the address is there.
func (a *Agent) awaitAddressAt(ctx context.Context, name string) error {
	n, _ := a.spec.Load().Node(name)
	tick := time.NewTicker(lookForVIP)
	defer tick.Stop()
	for {
		for _, r := range a.agents.Reports(ctx, []cluster.Node{n}) {
			if r.Status != nil && r.Status.VIP != nil && r.Status.VIP.State == cluster.VIPActive {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// linkOf is the interface of a balancer's address. While that is not here, when nothing is
// started, it is one that keepalived refuses.
func linkOf(n cluster.Node) string {
	if n.Role != cluster.RoleBalancer {
		return ""
	}
	address, err := netip.ParseAddr(n.Address)
	if err != nil {
		return noLink
	}
	link, err := host.LinkOf(address)
	if err != nil {
		return noLink
	}
	return link
}

const noLink = "lo"

// judgeTime is how long a program may take to say whether a file is good.
const judgeTime = 10 * time.Second

// judge asks a component's program whether it would take its new files.
func judge(c component.Component) error {
	for _, f := range c.Files {
		if !f.Reload {
			continue
		}
		tried := f.Path + ".new"
		if err := host.WriteFile(tried, f.Data, f.Mode); err != nil {
			return err
		}
		limited, cancel := context.WithTimeout(context.Background(), judgeTime)
		said, err := exec.CommandContext(limited, c.Reload.Check[0], append(slices.Clone(c.Reload.Check[1:]), tried)...).CombinedOutput()
		cancel()
		err = errors.Join(err, os.Remove(tried))
		if err != nil {
			return fmt.Errorf("%s does not take the new %s, and goes on with the one before: %w: %s", c.Name, f.Path, err, bytes.TrimSpace(said))
		}
	}
	return nil
}

// rewrite writes the files of a component, and has its program read them again if it must
// be told to. Files that it would not take do not take the place of those that it has.
func (a *Agent) rewrite(c component.Component) error {
	if c.Reload.Signal == 0 {
		return writeFiles(c)
	}
	if a.loaded[c.Name] == c.Loaded() {
		return nil
	}
	err := judge(c)
	if err != nil && a.supervisor != nil {
		return err
	}
	if err != nil { // the agent must come up all the same; a program without files says itself what is wrong
		a.options.Log.Error("cannot follow a change, will try again", "error", err)
		a.refused = true
		if hasFiles(c) {
			return nil
		}
	}
	if err := writeFiles(c); err != nil {
		return err
	}
	a.loaded[c.Name] = c.Loaded()
	if a.supervisor == nil {
		return nil // see loadWritten
	}
	return a.supervisor.Reload(c.Name, c.Loaded())
}

// loadWritten has programs that run already read what was written before there was a
// supervisor.
func (a *Agent) loadWritten() error {
	var errs []error
	for name, digest := range a.loaded {
		errs = append(errs, a.supervisor.Reload(name, digest))
	}
	return errors.Join(errs...)
}

// hasFiles tells whether a component has been configured before.
func hasFiles(c component.Component) bool {
	return !slices.ContainsFunc(c.Files, func(f component.File) bool {
		_, err := os.Stat(f.Path)
		return err != nil
	})
}
