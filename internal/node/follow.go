package node

import (
	"context"
	"errors"
	"slices"
	"time"

	"kuorum/internal/advise"
	"kuorum/internal/agent"
	"kuorum/internal/cluster"
	"kuorum/internal/component"
	"kuorum/internal/etcd"
	"kuorum/internal/membership"
	"kuorum/internal/relocation"
)

const (
	askEvery    = 5 * time.Second // also how often a server looks whether its member lives
	askPatience = 5 * time.Second
)

// followSpec keeps the node's cluster.yaml, and what depends on it, as the
// cluster has it. A server with an etcd member watches that; one without reads
// etcd now and then, as a quorum has it; whoever else there is, and a server
// whose member is down or still joins, asks the servers' agents.
func (a *Agent) followSpec(ctx context.Context) {
	tick := time.NewTicker(askEvery)
	defer tick.Stop()
	for {
		if a.member == nil || a.server == nil || !a.etcdFollows(ctx) {
			a.askSpec(ctx)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// etcdFollows tells whether the etcd that a server asks, its own member or any of
// all, has a leader: its own hears of changes then.
func (a *Agent) etcdFollows(ctx context.Context) bool {
	if a.server == nil || !a.joined() {
		return false
	}
	limited, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	s := etcd.Newest(a.server.members.Statuses(limited))
	return s.Error == "" && s.Leader != ""
}

// watchSpec follows the node's own member. A watch does not end with its
// member, it waits for the next one: only followSpec sees that one was removed.
func (a *Agent) watchSpec(ctx context.Context) {
	tick := time.NewTicker(askEvery)
	defer tick.Stop()
	for {
		if a.joined() && a.etcdRuns(ctx) {
			err := a.server.members.Register.Follow(ctx, func(spec *cluster.Spec) { a.see(ctx, spec) })
			if ctx.Err() == nil {
				a.options.Log.Debug("cannot follow cluster.yaml in etcd", "error", err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// etcdRuns waits until etcd is the one that is to run: a watch on one that is
// about to be replaced would delay its end. It is false when that takes long.
func (a *Agent) etcdRuns(ctx context.Context) bool {
	limited, cancel := context.WithTimeout(ctx, askEvery)
	defer cancel()
	return a.supervisor.Wait(limited, "etcd") == nil
}

// see takes what the node's own member says. That it is no node any more it
// believes others only: a member may be behind.
func (a *Agent) see(ctx context.Context, spec *cluster.Spec) {
	if a.isIn(spec) {
		a.adopt(ctx, spec)
		return
	}
	a.askSpec(ctx)
}

// isIn tells whether the cluster still has this very node, which may have moved
// since the node heard of it last. Another machine of its name has replaced it.
func (a *Agent) isIn(spec *cluster.Spec) bool {
	n, ok := spec.Node(a.machine.Node.Name)
	own, _ := a.spec.Load().Node(a.machine.Node.Name)
	return ok && relocation.Same(own, n)
}

// isOurs tells whether a cluster.yaml is of this node's cluster. Another's never
// counts, and what it says of this node least of all.
func (a *Agent) isOurs(spec *cluster.Spec) bool {
	own := a.machine.Spec.Metadata.Name
	if spec.Metadata.Name == own {
		return true
	}
	a.options.Log.Error("this is the cluster.yaml of another cluster, and is not followed", "cluster", spec.Metadata.Name, "own", own)
	return false
}

// askSpec asks another server what a quorum agrees on; a server without a member
// asks etcd itself first.
func (a *Agent) askSpec(ctx context.Context) {
	spec, err := a.quorumSpec(ctx)
	if err != nil {
		return // it is asked again
	}
	if !a.isOurs(spec) {
		return
	}
	if !a.isIn(spec) {
		a.leave()
		return
	}
	a.adopt(ctx, spec)
}

func (a *Agent) quorumSpec(ctx context.Context) (*cluster.Spec, error) {
	if a.server != nil && a.server.apart {
		limited, cancel := context.WithTimeout(ctx, askPatience)
		defer cancel()
		spec, err := a.server.members.Register.Spec(limited)
		a.server.external.note(err)
		if err == nil || errors.Is(err, membership.ErrForeign) {
			return spec, err
		} // its list of members may be old
	}
	var spec cluster.Spec
	others := agent.Servers{Client: a.agents, Nodes: a.spec.Load().Servers(), But: a.machine.Node.Name, Patience: askPatience}
	err := others.Call(ctx, membership.SpecPath, nil, &spec)
	return &spec, err
}

// readAgain makes a new agent of this node, from the files as they are now.
func (a *Agent) readAgain() {
	select {
	case a.reread <- struct{}{}:
	default: // it will
	}
}

// leave makes the node stop and put its state away.
func (a *Agent) leave() { a.removedOnce.Do(func() { close(a.removed) }) }

// adopt writes a changed cluster.yaml, and the files of components that read
// theirs again while they run. What needs a restart gets it at once if the move
// of this very node touches it, see take, else in the node's turn, see
// takeTurns; Status tells it until then.
func (a *Agent) adopt(ctx context.Context, heard *cluster.Spec) {
	a.adopting.Lock()
	defer a.adopting.Unlock()
	if !a.isOurs(heard) {
		return
	}
	mine := a.spec.Load()
	spec := relocation.Merge(mine, heard, a.sees(ctx, mine))
	if same(mine, spec) && !a.refused {
		return
	}
	err := spec.Validate()
	again := false
	if err == nil {
		again, err = a.take(spec)
	}
	if err != nil {
		a.options.Log.Error("cannot follow a change of cluster.yaml", "error", err)
		return
	}
	if again {
		a.readAgain()
	}
}

// writeChanged writes the files of components that read them again, by themselves or as
// they are told to, and returns the names of those that do not.
func (a *Agent) writeChanged(machine component.Machine) (stale []string, err error) {
	a.refused = false
	wanted := component.For(machine)
	stale = outdated(a.components, wanted)
	var errs []error
	for _, c := range wanted {
		if slices.Contains(stale, c.Name) {
			a.options.Log.Info("the change of cluster.yaml needs a restart", "component", c.Name)
			continue
		}
		errs = append(errs, a.rewrite(c))
	}
	return stale, errors.Join(errs...)
}

// outdated names the components that would be restarted.
func outdated(running, wanted []component.Component) []string {
	digests := map[string]string{}
	for _, c := range running {
		digests[c.Name] = c.Digest()
	}
	var names []string
	for _, c := range wanted {
		if c.Digest() != digests[c.Name] {
			names = append(names, c.Name)
		}
	}
	return names
}

func same(a, b *cluster.Spec) bool { return a.Digest() == b.Digest() }

// joined tells whether the node's join is complete.
func (a *Agent) joined() bool {
	select {
	case <-a.complete:
		return true
	default:
		return false
	}
}

// finishJoin brings the node's join to its end, also when the command that
// began it was interrupted.
func (a *Agent) finishJoin(ctx context.Context) {
	if a.joined() {
		return
	}
	status := func(ctx context.Context) (cluster.NodeStatus, error) { return a.Status(ctx), nil }
	err := membership.Finish{
		Agents: a.agents, Servers: a.spec.Load().Servers(), Self: a.machine.Node, Status: status, Tell: func(membership.Progress) {},
	}.Run(ctx)
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		a.options.Log.Warn("the join of this node did not succeed", "error", err)
		a.askSpec(ctx)
		return
	}
	if err := membership.Joined(component.EtcDir); err != nil {
		a.options.Log.Error("cannot note that this node has joined", "error", err)
	}
	close(a.complete)
	a.options.Log.Info("done", "step", "join the cluster")
}

const (
	turnEvery = 2 * time.Second
	// wellAgain is how long a node keeps the others waiting for it to be well.
	// It is less than the turn itself lasts, for a node that dies in it.
	wellAgain = 90 * time.Second
	// servesChange is why an agent does not end of its own accord.
	servesChange = "it serves a change of the cluster"
)

// takeTurns replaces what runs as an earlier cluster.yaml had it: one node after
// the other, each as soon as the others can do without it. That makes a new
// agent, which ends the turn when all is well again. Workers cannot take part,
// having no way to etcd; nothing of theirs depends on what can be changed.
func (a *Agent) takeTurns(ctx context.Context) {
	client := a.ownEtcd()
	if client == nil {
		return
	}
	register := membership.NewRegister(client)
	a.endTurn(ctx, register)
	tick := time.NewTicker(turnEvery)
	defer tick.Stop()
	for last := ""; ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if stale := a.stale.Load(); stale == nil || len(*stale) == 0 {
			continue
		}
		waits := a.waitsFor(ctx, register)
		if waits == "" {
			a.options.Log.Info("it is this node's turn to replace what a changed cluster.yaml outdates")
			if err := startBy(startedFile, a.spec.Load()); err != nil {
				a.options.Log.Error("cannot replace what is outdated", "error", err)
				continue
			}
			a.readAgain()
			return
		}
		if waits != last {
			last = waits
			a.options.Log.Info("components are replaced later", "reason", waits)
		}
	}
}

// waitsFor is why it is not this node's turn; empty: it is.
func (a *Agent) waitsFor(ctx context.Context, register *membership.Register) string {
	if a.server != nil && a.server.external != nil {
		if err := a.server.external.known(); err != nil { // the turn is noted there
			return err.Error()
		}
	}
	limited, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	spec, name := a.spec.Load(), a.machine.Node.Name
	reports := a.agents.Reports(limited, spec.Spec.Nodes)
	if waits := advise.Turn(spec, reports, name); waits != "" {
		return waits
	}
	if a.serves() > 0 {
		return servesChange
	}
	mine, err := register.TakeTurn(limited, name)
	switch {
	case err != nil && advise.NothingToLose(spec, reports, name):
		return ""
	case err != nil:
		return err.Error()
	case !mine:
		return "it is another node's turn"
	}
	// Whoever had it before may have been well a moment ago only.
	waits := advise.Turn(spec, a.agents.Reports(limited, spec.Spec.Nodes), name)
	if waits == "" && a.serves() > 0 {
		waits = servesChange
	}
	if waits != "" {
		a.giveBack(ctx, register)
	}
	return waits
}

// giveBack lets others have a turn that was this node's.
func (a *Agent) giveBack(ctx context.Context, register *membership.Register) {
	limited, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	if err := register.EndTurn(limited, a.machine.Node.Name); err != nil && ctx.Err() == nil {
		a.options.Log.Warn("cannot end this node's turn", "error", err)
	}
}

// endTurn waits until the node is well and lets the others have their turn, if
// it was this node's.
func (a *Agent) endTurn(ctx context.Context, register *membership.Register) {
	limited, cancel := context.WithTimeout(ctx, wellAgain)
	defer cancel()
	if err := a.supervisor.Wait(limited); err != nil {
		return // the turn ends by itself
	}
	a.retry(limited, "let others have their turn", func(ctx context.Context) error {
		asking, done := context.WithTimeout(ctx, askPatience)
		defer done()
		return register.EndTurn(asking, a.machine.Node.Name)
	})
}

// ownEtcd is how this node speaks to etcd; nil on a worker.
func (a *Agent) ownEtcd() *etcd.Client {
	switch {
	case a.server != nil:
		return a.server.etcd
	case a.member != nil:
		return a.member.etcd
	}
	return nil
}
