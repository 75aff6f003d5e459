package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"kuorum/internal/advise"
	"kuorum/internal/agent"
	"kuorum/internal/cluster"
	"kuorum/internal/membership"
	"kuorum/internal/step"
)

// rebuildCall bounds the part of a rebuild that the other servers do.
const rebuildCall = time.Minute

func (a *app) etcdRebuild() *cobra.Command {
	timeout, dryRun := 3*time.Minute, false
	cmd := &cobra.Command{
		Use:   "rebuild NODE",
		Short: "Give a node a new member of etcd in place of one that is damaged",
		Long: `For a server or etcd node whose etcd has lost its data, or whose data differs from the others'. Its member is removed, and a new
one joins as a learner, gets all data from the leader and then its vote. The old data is moved to /var/lib/kuorum/left on
the node, whose components stop for some seconds; its pods go on. All other voters must be well.`,
		Example: `  kuorum etcd rebuild cp3
  kuorum etcd rebuild cp3 --dry-run`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeMembers(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			t, err := a.target()
			if err != nil {
				return err
			}
			if t.spec.EtcdExternal() {
				return refuseTheirs(t.spec, "replace the damaged member")
			}
			node, ok := t.spec.Node(args[0])
			if !ok || !t.spec.HasMember(node) {
				return usage("%q is no node of cluster %s with a member of etcd", args[0], t.spec.Metadata.Name)
			}
			steps := []step.Step{
				{Name: "replace the member of " + node.Name, Do: func(ctx context.Context) error { return rebuild(ctx, t, node) }},
				{Name: fmt.Sprintf("wait until the new member of %s votes", node.Name), Do: func(ctx context.Context) error { return awaitVoter(ctx, t, node.Name) }},
			}
			if dryRun {
				return a.printSteps(steps)
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			return step.Run(ctx, steps, a.newProgress())
		},
	}
	cmd.Flags().DurationVar(&timeout, "timeout", timeout, "give up after this long")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "print the steps and do nothing")
	return cmd
}

func rebuild(ctx context.Context, t target, node cluster.Node) error {
	agents, err := t.agents()
	if err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, rebuildCall)
	defer cancel()
	err = agents.Call(limited, node.Address, membership.RebuildPath, struct{}{}, nil)
	if _, refused := errors.AsType[*cluster.Problem](err); err == nil || refused {
		return err
	}
	return &cluster.Problem{
		What: "the agent of " + node.Name + " does not do it", Why: agent.Explain(err),
		Do: "kuorum status; a machine that is lost: kuorum node remove " + node.Name, Exit: cluster.ExitNoQuorum,
	}
}

// awaitVoter waits until all members vote and are well, that of name among
// them.
func awaitVoter(ctx context.Context, t target, name string) error {
	tick := time.NewTicker(tryEvery / 2)
	defer tick.Stop()
	for {
		reports, err := t.reports(ctx)
		if err == nil && votes(advise.Voters(t.spec, reports), name) {
			return nil
		}
		select {
		case <-ctx.Done():
			return &cluster.Problem{
				What: "the new member of " + name + " does not vote yet: it goes on by itself", Err: err,
				Do: "kuorum etcd status", Exit: cluster.ExitTimeout,
			}
		case <-tick.C:
		}
	}
}

func votes(voters []cluster.Voter, name string) bool {
	for _, v := range voters {
		if v.Name == name {
			return v.Healthy
		}
	}
	return false
}
