package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"kuorum/internal/cluster"
	"kuorum/internal/membership"
	"kuorum/internal/step"
)

func (a *app) nodeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "node",
		Short: "Nodes of the cluster: remove one, dead or alive, or tell where they are",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.nodeRemove(), a.nodeAddress())
	return cmd
}

// removal is how a node is taken out of the cluster.
type removal struct {
	name    string
	force   bool
	dryRun  bool
	timeout time.Duration
}

func (r *removal) flags(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&r.force, "force-quorum-loss", false, "go on even if etcd loses its quorum")
	cmd.Flags().BoolVar(&r.dryRun, "dry-run", false, "print the steps and the quorum, and do nothing")
	cmd.Flags().DurationVar(&r.timeout, "timeout", r.timeout, "give up after this long")
}

func (a *app) nodeRemove() *cobra.Command {
	r := removal{timeout: 2 * time.Minute}
	cmd := &cobra.Command{
		Use:   "remove NAME",
		Short: "Take a node out of the cluster, dead or alive",
		Long: `Takes a node out of etcd's member list, of cluster.yaml and of Kubernetes. A node that
lives sees that within seconds, stops its components and puts its state away. A dead one must not
come back with its old data: join it anew.`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeNodes,
		RunE: func(cmd *cobra.Command, args []string) error {
			t, err := a.target()
			if err != nil {
				return err
			}
			r.name = args[0]
			return a.remove(cmd.Context(), t, r)
		},
	}
	r.flags(cmd)
	return cmd
}

// remove has a server take the node out of the cluster, then runs more steps.
func (a *app) remove(ctx context.Context, t target, r removal, more ...step.Step) error {
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	steps := append(removeSteps(t, r), more...)
	if !r.dryRun {
		return step.Run(ctx, steps, a.newProgress())
	}
	if err := a.printSteps(steps); err != nil {
		return err
	}
	sums, err := askRemoval(ctx, t, r)
	if sums.Before.Voters > 0 {
		a.talk("now:        %s\nafter this: %s\n", sums.Before, sums.After)
	}
	return err
}

func removeSteps(t target, r removal) []step.Step {
	steps := []step.Step{{Name: "check the quorum", Do: func(ctx context.Context) error {
		_, err := askRemoval(ctx, t, r)
		return err
	}}}
	if n, _ := t.spec.Node(r.name); n.Role == cluster.RoleEtcd {
		steps = append(steps, step.Step{
			Name: "wait until all API servers know the other etcd nodes", Do: func(ctx context.Context) error { return awaitKnown(ctx, t, r) },
		})
	}
	return append(steps, step.Step{
		Name: fmt.Sprintf("take %s out of etcd, cluster.yaml and Kubernetes", r.name), Do: func(ctx context.Context) error {
			return orderRemoval(ctx, t, r)
		},
	})
}

// awaitKnown waits until no API server depends on an etcd node that is to go.
// The agents that are asked start again meanwhile.
func awaitKnown(ctx context.Context, t target, r removal) error {
	return until(ctx, "not all API servers know the other etcd nodes yet", func() (string, error) {
		sums, err := askRemoval(ctx, t, r)
		if err != nil || sums.Behind == "" {
			return "", err
		}
		return "the API server of " + sums.Behind + " starts again in its turn", nil
	})
}

// askRemoval asks any server but the one that is to go what a removal would do.
func askRemoval(ctx context.Context, t target, r removal) (sums membership.Removed, err error) {
	asked := membership.Removal{Name: r.name, Force: r.force}
	err = t.call(ctx, membership.RemovePath+asked.Query(), nil, &sums, r.name)
	return sums, err
}

// orderRemoval has any server but the one that is to go remove it.
func orderRemoval(ctx context.Context, t target, r removal) error {
	return t.call(ctx, membership.RemovePath, membership.Removal{Name: r.name, Force: r.force}, nil, r.name)
}
