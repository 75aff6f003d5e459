package node

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"kuorum/internal/agent"
	"kuorum/internal/cluster"
	"kuorum/internal/component"
	"kuorum/internal/host"
	"kuorum/internal/membership"
	"kuorum/internal/pki"
	"kuorum/internal/relocation"
)

// settleEvery is how often a node looks whether a move can come to its end.
const settleEvery = 2 * time.Second

// othersWait is how often a server that does not lead leaves it to the leader's
// to tell etcd where its members are.
const othersWait = 5

// move takes the order that nodes are at other addresses now. It is checked,
// and written to cluster.yaml before it is answered: what follows needs nobody.
func (a *Agent) move(w http.ResponseWriter, r *http.Request) {
	ready, again, err := a.takeOrder(w, r)
	if err != nil {
		refuse(w, err)
		return
	}
	writeJSON(w, ready)
	_ = http.NewResponseController(w).Flush()
	if again {
		a.readAgain()
	}
}

func (a *Agent) takeOrder(w http.ResponseWriter, r *http.Request) (ready relocation.Ready, again bool, err error) {
	if err := a.mayMove(r); err != nil {
		return ready, false, err
	}
	var order relocation.Order
	if err := readJSON(w, r, &order); err != nil {
		return ready, false, &cluster.Problem{What: "the request is malformed", Err: err, Exit: cluster.ExitUsage}
	}
	if !a.joined() {
		return ready, false, &cluster.Problem{What: a.machine.Node.Name + " still joins the cluster", Do: "kuorum status --wait, then try again", Exit: cluster.ExitRefused}
	}
	a.adopting.Lock()
	defer a.adopting.Unlock()
	next, err := relocation.Apply(a.spec.Load(), order.Addresses)
	if err != nil {
		return ready, false, err
	}
	if err := checkHere(next, a.machine.Node); err != nil {
		return ready, false, err
	}
	ready.Known = same(a.spec.Load(), next)
	if order.Dry || ready.Known {
		return ready, false, nil
	}
	again, err = a.take(next)
	return ready, again, err
}

// mayMove takes administrators, and servers as this node knows them: nobody
// else can be asked while all addresses are wrong.
func (a *Agent) mayMove(r *http.Request) error {
	caller, group, _ := pki.Peer(r.TLS)
	if group == pki.GroupAdmins || a.fromServer(r) {
		return nil
	}
	return &cluster.Problem{
		What: caller + " may not say where nodes are", Why: "it takes an administrator, or a server of the cluster",
		Do: "run the command on a server", Exit: cluster.ExitRefused,
	}
}

// checkHere refuses an address of this very node that its machine has not got.
func checkHere(next *cluster.Spec, was cluster.Node) error {
	own, _ := next.Node(was.Name)
	if own.Address == was.Address {
		return nil
	}
	have, err := host.Addresses()
	if err != nil {
		return err
	}
	p := findPlace(next, own.Address, have)
	if !p.astray {
		return nil
	}
	return &cluster.Problem{
		What: fmt.Sprintf("%s is not at %s", was.Name, own.Address), Why: "its machine has " + strings.Join(p.addresses, ", "),
		Do: "give the machine that address first, or name one that it has", Exit: cluster.ExitRefused,
	}
}

// sees tells what the node's own etcd member, while it runs, takes for the
// addresses of the others.
func (a *Agent) sees(ctx context.Context, mine *cluster.Spec) func(address string) bool {
	if a.member == nil || len(relocation.Moving(mine)) == 0 {
		return func(string) bool { return false }
	}
	limited, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	return relocation.Names(a.member.etcd.Status(limited).Members)
}

// followMoves brings moves of nodes to their end, until ctx ends.
func (a *Agent) followMoves(ctx context.Context) {
	tick := time.NewTicker(settleEvery)
	defer tick.Stop()
	for last := ""; ; {
		limited, cancel := context.WithTimeout(ctx, 2*askPatience)
		text := ""
		if err := errors.Join(a.settle(limited), a.catchUp(limited)); err != nil {
			text = err.Error()
		}
		cancel()
		if text != "" && text != last && ctx.Err() == nil {
			a.options.Log.Warn("nodes have moved, and it is not complete yet", "error", text)
		}
		last = text
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// settle does what can be done now. Each part may be repeated, and done by
// several servers at once.
func (a *Agent) settle(ctx context.Context) error {
	spec := a.spec.Load()
	own, _ := spec.Node(a.machine.Node.Name)
	var detour error // without it, it may do as well: another server may not have moved
	if a.server != nil || a.member != nil {
		detour = a.keepDetour(ctx, spec)
	}
	if a.server == nil {
		return errors.Join(detour, a.sayArrived(ctx, spec, own))
	}
	if len(relocation.Moving(spec)) == 0 {
		return detour
	}
	if done, err := a.server.correctMembers(ctx, spec); err != nil || !done {
		return errors.Join(detour, err)
	}
	arrived := own.Address == a.machine.Node.Address && len(own.Moved.From) > 0
	err := a.server.members.Register.Change(ctx, "record where nodes are", func(register *cluster.Spec) (*cluster.Spec, error) {
		next, err := relocation.Record(spec, register)
		if err == nil && arrived {
			next = relocation.Arrived(next, relocation.Arrival{Name: own.Name, Address: own.Address})
		}
		return next, err
	})
	return errors.Join(detour, err)
}

// catchUp looks again at what the register has, as long as this server takes a
// node for one that moves: it hears of a change once, and its own member may
// have been behind then.
func (a *Agent) catchUp(ctx context.Context) error {
	if a.server == nil || len(relocation.Moving(a.spec.Load())) == 0 {
		return nil
	}
	spec, err := a.server.members.Register.Spec(ctx)
	if err != nil {
		return err
	}
	a.see(ctx, spec)
	return nil
}

// sayArrived tells a server that this node is where it should be, and lets its
// certificates say so, which servers sign.
func (a *Agent) sayArrived(ctx context.Context, spec *cluster.Spec, own cluster.Node) error {
	if own.Address != a.machine.Node.Address || len(own.Moved.From) == 0 {
		return nil
	}
	a.lookAgain()
	servers := agent.Servers{Client: a.agents, Nodes: spec.Servers(), Patience: askPatience}
	return servers.Call(ctx, relocation.ArrivedPath, relocation.Arrival{Name: own.Name, Address: own.Address}, nil)
}

// lookAgain has the certificates looked at now.
func (a *Agent) lookAgain() {
	select {
	case a.specChanged <- struct{}{}:
	default: // one waits already
	}
}

// correctMembers tells etcd where its members are now. They stay the members
// that they are. Raft takes one change of its members at a time and drops what
// comes meanwhile, so it is left to one server, the leader's if it has one, and
// done by others only when that does not come to it. It tells whether nothing is
// left to do.
func (s *server) correctMembers(ctx context.Context, spec *cluster.Spec) (done bool, err error) {
	members, err := s.etcd.Members(ctx)
	if err != nil {
		return false, err
	}
	all := relocation.Corrections(spec, members)
	if len(all) > 0 && s.waited < othersWait {
		if mine, err := s.members.Acts(ctx); err != nil || !mine {
			s.waited++
			return false, err
		}
	}
	for _, c := range all {
		if err := s.etcd.UpdatePeer(ctx, c.ID, c.PeerURL); err != nil {
			return false, err
		}
		s.members.Log.Info("etcd knows where a member is now", "node", c.Node, "member", c.ID, "peer", c.PeerURL)
	}
	s.waited = 0
	return true, nil
}

// keepDetour leads what asks etcd, and etcd itself, to the nodes that move. An earlier agent may have
// left a detour: the first call always writes.
func (a *Agent) keepDetour(ctx context.Context, spec *cluster.Spec) error {
	rules := relocation.Detour(spec, a.machine.Node.Name)
	if rules == a.detour {
		return nil
	}
	if err := relocation.Load(ctx, rules); err != nil {
		return err
	}
	a.detour = rules
	return nil
}

// arrive ends the move of a node that says that it is at its new address. One
// that the register does not know of yet is said again.
func (s *server) arrive(r *http.Request, in relocation.Arrival) (nothing, error) {
	if caller, _, _ := pki.Peer(r.TLS); in.Name == "" || pki.AgentNode(caller) != in.Name {
		return nothing{}, &cluster.Problem{What: "a node speaks of its own address only", Exit: cluster.ExitRefused}
	}
	return nothing{}, s.members.Register.Change(r.Context(), "note that "+in.Name+" has arrived", func(spec *cluster.Spec) (*cluster.Spec, error) {
		return relocation.Arrived(spec, in), nil
	})
}

// take makes spec this node's cluster.yaml. It tells whether the agent must be
// made anew, since its own node has moved, or all members of the etcd that it
// asks. The caller holds adopting.
func (a *Agent) take(spec *cluster.Spec) (again bool, err error) {
	machine := a.machine
	machine.Spec = spec
	own, in := spec.Node(machine.Node.Name)
	again = in && own.Address != machine.Node.Address || a.loses(spec)
	var stale []string
	if again {
		err = startBy(startedFile, spec)
	} else {
		stale, err = a.writeChanged(machine)
	}
	if err == nil {
		err = membership.WriteSpec(component.EtcDir, spec)
	}
	if err != nil {
		return false, err
	}
	a.spec.Store(spec)
	a.stale.Store(&stale)
	a.lookAgain()
	moving := []string{}
	for _, n := range relocation.Moving(spec) {
		moving = append(moving, n.Name)
	}
	slices.Sort(moving)
	a.options.Log.Info("cluster.yaml has changed", "nodes", len(spec.Spec.Nodes), "servers", len(spec.Servers()), "moving", moving)
	return again, nil
}

// loses tells whether no address of etcd that the programs of a server without a
// member know is one of spec's: once the moves are complete they would find
// nobody. As long as they know one they wait for the node's turn, since restarting
// the API servers, all of them at once, would be an outage.
func (a *Agent) loses(spec *cluster.Spec) bool {
	if a.server == nil || !a.server.apart {
		return false
	}
	now := component.EtcdEndpoints(spec, a.machine.Node)
	return !slices.ContainsFunc(component.EtcdEndpoints(a.machine.Spec, a.machine.Node), func(url string) bool { return slices.Contains(now, url) })
}
