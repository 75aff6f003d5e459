package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"kuorum/internal/cluster"
	"kuorum/internal/component"
	"kuorum/internal/membership"
	"kuorum/internal/step"
)

type joinOptions struct {
	joiner  membership.Joiner
	role    string
	timeout time.Duration
	dryRun  bool
}

func (a *app) joinCommand() *cobra.Command {
	var o joinOptions
	cmd := &cobra.Command{
		Use:   "join SERVER...",
		Short: "Make this machine a node of a cluster (kuorum token create prints the whole line)",
		Long: `Makes this machine a node. Both directions of every way between the machines are tried
first. A new etcd, on a server or an etcd node, joins as a learner, without a vote, and is promoted when it has
caught up.
If it fails before this machine has its files the cluster is as before: at once, or within a minute if this machine is
gone. After that the join goes on by itself, also when this command gives up (exit code 6).

SERVER is the address of a server; with several, the first that answers is asked.`,
		Example: `  kuorum join 10.0.0.11 --role server --token ... --pin sha256:...
  kuorum join 10.0.0.11 10.0.0.12 --name w7 --role worker --token ... --pin sha256:...`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.joiner.Servers = args
			return a.join(cmd.Context(), o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.joiner.Token, "token", "", "join token (required)")
	f.StringVar(&o.joiner.Pin, "pin", "", "pin of the cluster's authority (required)")
	f.StringVar(&o.joiner.Node.Name, "name", "", "the node's name (default: this machine's host name)")
	f.StringVar(&o.role, "role", string(cluster.RoleServer), "server, worker, etcd or balancer, as the token says")
	f.StringVar(&o.joiner.Node.Address, "address", "", "this machine's own address (default: that from which it reaches SERVER)")
	f.DurationVar(&o.timeout, "timeout", 3*time.Minute, "give up after this long")
	f.BoolVar(&o.dryRun, "dry-run", false, "print the steps and do nothing")
	for _, name := range []string{"token", "pin"} {
		if err := cmd.MarkFlagRequired(name); err != nil {
			panic(err) // the flag was defined above
		}
	}
	completeRole(cmd)
	return cmd
}

func (a *app) join(ctx context.Context, o joinOptions) error {
	j := o.joiner
	j.Node.Role = cluster.Role(o.role)
	if !slices.Contains(cluster.Roles(), j.Node.Role) {
		return usage("unknown role %q: server, worker, etcd or balancer", o.role)
	}
	var err error
	if j.Node.Name == "" {
		if j.Node.Name, err = os.Hostname(); err != nil {
			return fmt.Errorf("cannot find this machine's name: %w", err)
		}
	}
	if j.Node.Address == "" {
		if j.Node.Address, err = addressTowards(j.Servers[0]); err != nil {
			return err
		}
	}
	j.Dir, j.Data = component.EtcDir, component.VarDir
	j.Status = ownStatus
	last := -1
	j.Tell = func(p membership.Progress) {
		if p.Percent != last && p.Percent > 0 {
			last = p.Percent
			a.talk("its etcd has %d %% of the leader's log\n", p.Percent)
		}
	}
	if o.dryRun {
		return a.printSteps(j.Steps())
	}
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	return step.Run(ctx, j.Steps(), a.newProgress())
}

// addressTowards is the address from which packets to a server leave. Nothing
// is sent.
func addressTowards(server string) (string, error) {
	conn, err := (&net.Dialer{}).DialContext(context.Background(), "udp", net.JoinHostPort(server, "9"))
	if err != nil {
		return "", &cluster.Problem{What: fmt.Sprintf("there is no way to %s", server), Err: err, Do: "check the address, or name this machine's own: --address"}
	}
	defer func() { _ = conn.Close() }() // nothing was written
	host, _, err := net.SplitHostPort(conn.LocalAddr().String())
	return host, err
}

// ownStatus asks the agent of this machine, which must be a node.
func ownStatus(ctx context.Context) (cluster.NodeStatus, error) {
	agents, err := membership.NodeClient(component.EtcDir)
	if err != nil {
		return cluster.NodeStatus{}, err
	}
	r := agents.Report(ctx, cluster.Node{Address: "127.0.0.1"})
	if r.Status == nil {
		return cluster.NodeStatus{}, errors.New(r.Error)
	}
	return *r.Status, nil
}

func (a *app) leaveCommand() *cobra.Command {
	r := removal{timeout: 2 * time.Minute}
	force := false
	cmd := &cobra.Command{
		Use:   "leave",
		Short: "Make this machine no node of its cluster any more",
		Long: `Has another server take this node out of the cluster: out of etcd's member list, of
cluster.yaml and of Kubernetes. Then its components stop, and what it kept is moved to
/var/lib/kuorum/left. With --force only the latter, at once, for a cluster that does not answer.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if force {
				return a.leaveAlone(cmd.Context())
			}
			disk, err := membership.Read(component.EtcDir)
			if errors.Is(err, membership.ErrNoNode) {
				return &cluster.Problem{What: err.Error(), Do: "kuorum join, or kuorum leave --force to put away what is left"}
			}
			if err != nil {
				return err
			}
			t, err := nodeTarget(component.EtcDir)
			if err != nil {
				return err
			}
			r.name = disk.Name
			return a.remove(cmd.Context(), t, r, step.Step{Name: "wait until this node has stopped", Do: awaitLeft})
		},
	}
	r.flags(cmd)
	cmd.Flags().BoolVar(&force, "force", false, "leave without a word to the cluster")
	cmd.MarkFlagsMutuallyExclusive("force", "dry-run")
	return cmd
}

// leaveAlone has the agent stop and put the node away; where no agent answers,
// nothing of the node runs.
func (a *app) leaveAlone(ctx context.Context) error {
	agents, err := membership.NodeClient(component.EtcDir)
	if err == nil {
		err = agents.Call(ctx, "127.0.0.1", membership.LeavePath, struct{}{}, nil)
	}
	switch {
	case err == nil:
		return awaitLeft(ctx)
	case noAgent(err):
		return membership.Leave(component.EtcDir, component.VarDir)
	}
	return &cluster.Problem{
		What: "this node cannot be put away", Err: err,
		Why: "its agent may still run, and etcd's data must not be moved under it",
		Do:  "sudo, or stop the agent, then again: kuorum leave --force",
	}
}

// noAgent tells that nobody listens at the agent's port, or that the machine
// has no keys to ask with: whatever else is wrong, an agent may run.
func noAgent(err error) bool {
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist)
}

// awaitLeft waits until the agent has put the node away.
func awaitLeft(ctx context.Context) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := membership.Read(component.EtcDir); errors.Is(err, membership.ErrNoNode) {
			return nil
		}
		select {
		case <-ctx.Done():
			return &cluster.Problem{
				What: "this node has left the cluster and still runs", Err: context.Cause(ctx),
				Do: "kuorum leave --force", Exit: cluster.ExitTimeout,
			}
		case <-tick.C:
		}
	}
}
