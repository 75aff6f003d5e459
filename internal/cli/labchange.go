package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"kuorum/internal/cluster"
	"kuorum/internal/lab"
	"kuorum/internal/membership"
	"kuorum/internal/step"
)

// labAddition is a new machine of a lab on its way to become a node.
type labAddition struct {
	app     *app
	lab     *lab.Lab
	target  target
	node    cluster.Node
	role    string
	timeout time.Duration
	dryRun  bool
	token   membership.NewToken
}

func (a *app) labAdd() *cobra.Command {
	n := labAddition{app: a}
	cmd := &cobra.Command{
		Use:   "add [NODE]",
		Short: "Give the lab a new machine and let it join the cluster",
		Long: `Adds an empty machine to the lab and runs on it what kuorum token create prints, as one
would on a real one. If the cluster does not let it in, it is taken away again; once it has the files of a node it
stays, and its join goes on by itself.`,
		Example: `  kuorum lab add                    the next server
  kuorum lab add --role worker w9
  kuorum lab add --role etcd        where etcd has machines of its own`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				n.node.Name = args[0]
			}
			return n.run(cmd.Context())
		},
	}
	cmd.Flags().StringVar(&n.role, "role", string(cluster.RoleServer), "server, worker, etcd or balancer")
	cmd.Flags().DurationVar(&n.timeout, "timeout", 3*time.Minute, "give up after this long")
	cmd.Flags().BoolVar(&n.dryRun, "dry-run", false, "print the steps and do nothing")
	completeRole(cmd)
	return cmd
}

func (n *labAddition) run(ctx context.Context) error {
	l, err := n.app.open()
	if err != nil {
		return err
	}
	n.lab, n.node.Role = l, cluster.Role(n.role)
	n.target = labTarget(l)
	if n.node.Name == "" {
		n.node.Name = nextName(l.Spec, n.node.Role)
	}
	if _, exists := l.Spec.Node(n.node.Name); exists {
		return usage("lab %s has a machine %s already", l.Name, n.node.Name)
	}
	if _, err := l.Spec.With(n.node); err != nil {
		return err
	}
	steps := []step.Step{
		{Name: "check this host", Do: func(ctx context.Context) error { return l.CheckRoom(ctx, n.node.Role) }},
		{Name: "make a join token", Do: n.makeToken},
		{Name: "add machine " + n.node.Name, Do: n.addMachine},
		{Name: "kuorum join, on " + n.node.Name, Do: n.join},
	}
	if n.dryRun {
		return n.app.printSteps(steps)
	}
	ctx, cancel := context.WithTimeout(ctx, n.timeout)
	defer cancel()
	return step.Run(ctx, steps, n.app.newProgress())
}

// nextName is the first of cp1, cp2, ..., w1, w2, ..., e1, e2, ... or lb1, lb2, ... that is free.
func nextName(spec *cluster.Spec, role cluster.Role) string {
	prefix := "cp"
	switch role {
	case cluster.RoleWorker:
		prefix = "w"
	case cluster.RoleEtcd:
		prefix = "e"
	case cluster.RoleBalancer:
		prefix = "lb"
	case cluster.RoleServer:
	}
	for i := 1; ; i++ {
		name := fmt.Sprintf("%s%d", prefix, i)
		if _, taken := spec.Node(name); !taken {
			return name
		}
	}
}

func (n *labAddition) makeToken(ctx context.Context) (err error) {
	n.token, err = newToken(ctx, n.target, n.node.Role, n.timeout)
	return err
}

func (n *labAddition) addMachine(ctx context.Context) (err error) {
	n.node, err = n.lab.AddMachine(ctx, n.node)
	return err
}

func (n *labAddition) join(ctx context.Context) error {
	err := n.app.joinOnMachine(ctx, n.lab, n.node, n.token)
	if err == nil {
		return nil
	}
	if n.isNode() { // its member may vote: the disk is the cluster's
		return &cluster.Problem{
			What: n.node.Name + " is a node, and its join has not come to its end: its machine stays", Err: err,
			Do: fmt.Sprintf("kuorum lab start %s    (it goes on by itself), or kuorum lab remove %s", n.node.Name, n.node.Name),
		}
	}
	undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	return errors.Join(err, n.lab.RemoveMachine(undo, n.node.Name))
}

// isNode tells whether the new machine has been given a node's files.
func (n *labAddition) isNode() bool {
	grown, err := n.app.open()
	if err != nil {
		return false
	}
	_, ok := grown.Nodes().Node(n.node.Name)
	return ok
}

// joinOnMachine runs on a machine what its user would type there.
func (a *app) joinOnMachine(ctx context.Context, l *lab.Lab, node cluster.Node, token membership.NewToken) error {
	argv := []string{
		"/usr/local/bin/kuorum", "join", token.Server, "--role", string(node.Role), "--name", node.Name, "--address", node.Address,
		"--token", token.Secret, "--pin", token.Pin,
	}
	return a.inMachine(ctx, l, node.Name, argv)
}

func (a *app) labRemove() *cobra.Command {
	r := removal{timeout: 2 * time.Minute}
	cmd := &cobra.Command{
		Use:   "remove NODE",
		Short: "Take a node out of the cluster, and its machine out of the lab",
		Long: `Takes the node out of the cluster as kuorum node remove does, then cuts the machine's power
and removes its disk.`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeNodes,
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := a.open()
			if err != nil {
				return err
			}
			if _, ok := l.Spec.Node(args[0]); !ok {
				return unknownNode(l, args[0])
			}
			t := labTarget(l)
			r.name = args[0]
			stopped := step.Step{Name: "wait until " + r.name + " has stopped", Do: func(ctx context.Context) error { return l.WaitLeft(ctx, r.name) }}
			last := step.Step{Name: "remove machine " + r.name, Do: func(ctx context.Context) error { return l.RemoveMachine(ctx, r.name) }}
			if !inCluster(cmd.Context(), t, r.name) {
				if r.dryRun {
					return a.printSteps([]step.Step{last})
				}
				return step.Run(cmd.Context(), []step.Step{last}, a.newProgress())
			}
			return a.remove(cmd.Context(), t, r, stopped, last)
		},
	}
	r.flags(cmd)
	return cmd
}

// inCluster tells whether the cluster has a node of that name. Its machine may
// say otherwise: its join was taken back while it was off, or its disk was
// wiped. When no server can tell, the machine is believed.
func inCluster(ctx context.Context, t target, name string) bool {
	limited, cancel := context.WithTimeout(ctx, callPatience)
	defer cancel()
	var spec cluster.Spec
	if err := t.call(limited, membership.SpecPath, nil, &spec, name); err != nil {
		spec = *t.spec
	}
	_, ok := spec.Node(name)
	return ok
}
