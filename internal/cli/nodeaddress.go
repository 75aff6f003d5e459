package cli

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"kuorum/internal/advise"
	"kuorum/internal/agent"
	"kuorum/internal/cluster"
	"kuorum/internal/membership"
	"kuorum/internal/pki"
	"kuorum/internal/relocation"
	"kuorum/internal/step"
)

// movePatience is how long one agent may take to check, or to write down, where
// nodes are.
const movePatience = 5 * time.Second

// moves is `kuorum node address`: nodes that are at other addresses now.
type moves struct {
	app       *app
	target    target
	addresses map[string]string // by the names of nodes
	timeout   time.Duration
	dryRun    bool

	next *cluster.Spec
	// reached are the addresses at which agents answered, by name.
	reached map[string]string
	silent  []string
}

func (a *app) nodeAddress() *cobra.Command {
	m := moves{app: a, timeout: 3 * time.Minute}
	cmd := &cobra.Command{
		Use:   "address NAME=ADDRESS...",
		Short: "Tell the cluster that nodes are at other addresses now",
		Long: `For machines whose addresses have changed: one of them, or all while the cluster was off. Each keeps its
etcd member and its data. First give the machines their addresses and start them, then run this once, on a server or on a
lab's host, with every node that has moved. All nodes are asked before anything is changed: those that have moved must
answer, and of the others enough for a quorum. What is interrupted goes on by itself; run it again for those that were off.`,
		Example: `  kuorum node address cp2=198.18.0.62
  kuorum node address cp1=198.18.0.61 cp2=198.18.0.62 cp3=198.18.0.63`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if m.addresses, err = parseMoves(args); err != nil {
				return err
			}
			if m.target, err = a.target(); err != nil {
				return err
			}
			return m.run(cmd.Context())
		},
	}
	cmd.Flags().BoolVar(&m.dryRun, "dry-run", false, "ask all nodes whether they can follow, and change nothing")
	cmd.Flags().DurationVar(&m.timeout, "timeout", m.timeout, "give up after this long")
	return cmd
}

func parseMoves(args []string) (map[string]string, error) {
	addresses := map[string]string{}
	for _, word := range args {
		name, address, ok := strings.Cut(word, "=")
		if !ok || name == "" || address == "" {
			return nil, usage("%q is not NAME=ADDRESS, such as cp2=198.18.0.62", word)
		}
		if _, twice := addresses[name]; twice {
			return nil, usage("%s is named twice", name)
		}
		addresses[name] = address
	}
	return addresses, nil
}

func (m *moves) run(ctx context.Context) (err error) {
	if m.next, err = relocation.Apply(m.target.spec, m.addresses); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, m.timeout)
	defer cancel()
	check := step.Step{Name: "ask every node whether it can follow", Do: m.check}
	steps := []step.Step{
		check,
		{Name: "tell every node where " + strings.Join(slices.Sorted(maps.Keys(m.addresses)), ", ") + " can be found", Do: m.tell},
		{Name: "wait until etcd knows it, and all voters vote", Do: m.wait},
	}
	if !m.dryRun {
		return step.Run(ctx, steps, m.app.newProgress())
	}
	if err := m.app.printSteps(steps); err != nil {
		return err
	}
	return step.Run(ctx, []step.Step{check}, m.app.newProgress())
}

// check changes nothing. A named node must answer, and be where it is said to
// be; of the others enough for a quorum of etcd must answer, and a server.
func (m *moves) check(ctx context.Context) error {
	m.reached, m.silent = map[string]string{}, nil
	members := 0
	for _, n := range m.order() {
		address, err := m.ask(ctx, n, m.ways(n), true)
		if p, refused := errors.AsType[*cluster.Problem](err); refused && m.addresses[n.Name] != "" {
			return p
		}
		if err == nil {
			m.reached[n.Name] = address
			if m.next.HasMember(n) {
				members++
			}
			continue
		}
		if m.addresses[n.Name] != "" {
			return &cluster.Problem{
				What: fmt.Sprintf("%s does not answer at %s: nothing was changed", n.Name, n.Address), Why: agent.Explain(err),
				Do: "start the machine, see that it has that address, then try again", Exit: cluster.ExitRefused,
			}
		}
		m.silent = append(m.silent, n.Name+": "+agent.Explain(err))
	}
	return m.enough(members)
}

// enough refuses to begin what could not be brought to its end: etcd must have a
// quorum then, and servers do what there is to do.
func (m *moves) enough(members int) error {
	what, kind, all := "", "servers", len(m.next.EtcdNodes())
	if m.next.EtcdApart() {
		kind = "etcd nodes"
	}
	if members < all/2+1 {
		what = fmt.Sprintf("only %d of %d %s answer, which is no quorum", members, all, kind)
	} else if !slices.ContainsFunc(m.next.Servers(), func(n cluster.Node) bool { return m.reached[n.Name] != "" }) {
		what = "no server answers"
	}
	if what == "" {
		return nil
	}
	return &cluster.Problem{
		What: what + ": nothing was changed", Why: strings.Join(m.silent, "\n"),
		Do: "name every node that has moved, and start the others, then try again", Exit: cluster.ExitNoQuorum,
	}
}

// order is the nodes as they are told: those that have moved first, so that
// none hears of its own move from others.
func (m *moves) order() []cluster.Node {
	nodes := slices.Clone(m.next.Spec.Nodes)
	slices.SortStableFunc(nodes, func(a, b cluster.Node) int {
		return strings.Compare(m.addresses[b.Name], m.addresses[a.Name])
	})
	return nodes
}

// ways is where a node may answer: at its address and, while its agent has not
// been told, where it was.
func (m *moves) ways(n cluster.Node) []string {
	ways := []string{n.Address}
	if before, ok := m.target.spec.Node(n.Name); ok && before.Address != n.Address {
		ways = append(ways, before.Address)
	}
	return ways
}

// ask gives the order to the agent of a node at the first of these addresses
// where it answers, and returns that. Whatever the address, it must be the agent
// of that node.
func (m *moves) ask(ctx context.Context, n cluster.Node, ways []string, dry bool) (string, error) {
	agents, err := m.target.agents()
	if err != nil {
		return "", err
	}
	named := agents.With(func(config *tls.Config) *tls.Config { return pki.NamedTLS(config, n.Name) })
	for _, address := range ways {
		limited, cancel := context.WithTimeout(ctx, movePatience)
		failed := named.Call(limited, address, relocation.MovePath, relocation.Order{Addresses: m.addresses, Dry: dry}, nil)
		cancel()
		if p, refused := errors.AsType[*cluster.Problem](failed); refused || failed == nil {
			if refused && ctx.Err() == nil {
				p.What = n.Name + ": " + p.What
			}
			return address, failed
		}
		if err == nil {
			err = failed // the first is where it should be
		}
	}
	return "", err
}

// tell has every node that answered write it down. Those that have moved are
// asked until they have.
func (m *moves) tell(ctx context.Context) error {
	for _, n := range m.order() {
		address, ok := m.reached[n.Name]
		if !ok {
			continue
		}
		if _, err := m.ask(ctx, n, []string{address}, false); err != nil {
			return &cluster.Problem{
				What: n.Name + " was not told where the nodes are", Err: err, Do: "run the command again", Exit: cluster.ExitTimeout,
			}
		}
	}
	for _, text := range m.silent {
		m.app.talk("not told, run the command again when it is back: %s\n", text)
	}
	return nil
}

// wait blocks until the cluster's own note has every move, all of them are
// complete, and the members of the nodes that were told vote.
func (m *moves) wait(ctx context.Context) error {
	tick := time.NewTicker(tryEvery)
	defer tick.Stop()
	for {
		missing := m.missing(ctx)
		if missing == "" {
			return nil
		}
		select {
		case <-ctx.Done():
			return &cluster.Problem{
				What: "the move is not complete yet: it goes on by itself", Why: missing, Do: "kuorum status", Exit: cluster.ExitTimeout,
			}
		case <-tick.C:
		}
	}
}

// missing says what the move still waits for.
func (m *moves) missing(ctx context.Context) string {
	agents, err := m.target.agents()
	if err != nil {
		return err.Error()
	}
	var spec cluster.Spec
	servers := agent.Servers{Client: agents, Nodes: m.next.Servers(), Patience: movePatience}
	if err := servers.Call(ctx, membership.SpecPath, nil, &spec); err != nil {
		return err.Error()
	}
	for name, address := range m.addresses {
		if n, _ := spec.Node(name); n.Address != address || len(n.Moved.From) > 0 {
			return name + " has not arrived at " + address
		}
	}
	voters := advise.Voters(&spec, agents.Reports(ctx, spec.Spec.Nodes))
	for name := range m.reached {
		if n, _ := spec.Node(name); spec.HasMember(n) && !votes(voters, name) {
			return "the etcd member of " + name + " does not vote yet"
		}
	}
	return ""
}
