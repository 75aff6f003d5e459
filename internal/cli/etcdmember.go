package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"kuorum/internal/advise"
	"kuorum/internal/agent"
	"kuorum/internal/cluster"
	"kuorum/internal/etcd"
	"kuorum/internal/step"
)

const (
	// tryEvery is how often something that needs time is tried again.
	tryEvery = time.Second
	// settleWait is how long etcd may say that its voters have not been
	// connected for long enough; it wants five seconds.
	settleWait = 7 * time.Second
)

func (a *app) etcdRemove() *cobra.Command {
	w, force := &etcdWork{app: a, ask: "take that member off the list"}, false
	cmd := &cobra.Command{
		Use:   "remove NAME|ID",
		Short: "Take a member off the list for good",
		Long: `The member's data is of no use to it afterwards, and etcd on its server ends. A voter that is removed does not
count any more, unlike one that is only stopped: the quorum is reckoned anew, and the removal is refused if the
voters that are left would be none. It needs a quorum itself.`,
		Example: `  kuorum etcd remove cp3 --dry-run        the steps, and what becomes of the quorum
  kuorum etcd remove 8e9e05c52164694d     by ID, as kuorum etcd members has it`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeMembers(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return w.run(cmd.Context(), func(ctx context.Context) error { return w.remove(ctx, args[0], force) })
		},
	}
	w.bind(cmd, 3*time.Minute)
	cmd.Flags().BoolVar(&force, "force-quorum-loss", false, "go on even if etcd loses its quorum; etcd itself may still refuse")
	return cmd
}

func (w *etcdWork) remove(ctx context.Context, word string, force bool) error { //nolint:revive // the flag is the user's
	var now advise.Etcd
	var m advise.Member
	if _, err := agent.Settled(ctx, func(ctx context.Context) (_ []cluster.Voter, err error) {
		now, m, err = w.member(ctx, word)
		return votersOf(now), err
	}); err != nil {
		return err
	}
	before, after := removalSums(now, m)
	guard := func(context.Context) error {
		err := guardRemoval(m, before, after)
		if force && after.Voters > 0 {
			return nil
		}
		return err
	}
	steps := []step.Step{{Name: "check the quorum", Do: guard}}
	if heir, ok := heirOf(now, m); ok {
		steps = append(steps, step.Step{Name: "hand the lead from " + m.Label + " to " + heir.Label, Do: func(ctx context.Context) error {
			return w.client.MoveLeader(ctx, heir.ID)
		}})
	}
	steps = append(steps, step.Step{Name: "remove member " + memberText(m), Do: func(ctx context.Context) error {
		return w.settled(ctx, func() error { return w.client.Remove(ctx, m.ID) })
	}})
	if err := w.steps(ctx, steps, w.app.newProgress()); err != nil {
		return err
	}
	if w.dryRun {
		w.app.talk("now:        %s\nafter this: %s\n", before, after)
		return guard(ctx)
	}
	w.app.talk("%s is off the list: %s\n", m.Label, after)
	return nil
}

// removalSums is the quorum now, and once the member is off the list.
func removalSums(e advise.Etcd, m advise.Member) (before, after cluster.QuorumSum) {
	voters := votersOf(e)
	return cluster.SumOf(voters), cluster.Removed(voters, m.ID)
}

// votersOf are called by their IDs: a name may be there twice.
func votersOf(e advise.Etcd) []cluster.Voter {
	var voters []cluster.Voter
	for _, m := range e.Members {
		if !m.Learner {
			voters = append(voters, cluster.Voter{Name: m.ID, Healthy: m.Healthy})
		}
	}
	return voters
}

func guardRemoval(m advise.Member, before, after cluster.QuorumSum) error {
	if after.Voters == 0 {
		return &cluster.Problem{
			What: "refused to remove " + m.Label + ": it is the last voter, and all of the cluster's data would be lost with it",
			Do:   "kuorum down removes a whole lab", Exit: cluster.ExitRefused,
		}
	}
	return cluster.GuardQuorum("remove "+m.Label, before, after)
}

// heirOf is the member that is to lead when the leader goes: else there would
// be an election, and no writes meanwhile.
func heirOf(e advise.Etcd, m advise.Member) (advise.Member, bool) {
	if m.State != advise.MemberLeader {
		return advise.Member{}, false
	}
	i := slices.IndexFunc(e.Members, func(other advise.Member) bool { return other.State == advise.MemberFollower })
	if i < 0 {
		return advise.Member{}, false
	}
	return e.Members[i], true
}

// settled does what etcd refuses while voters have only just found each other.
func (w *etcdWork) settled(ctx context.Context, do func() error) error {
	short, cancel := context.WithTimeout(ctx, settleWait)
	defer cancel()
	var refusal error
	err := until(short, "etcd's voters do not settle", func() (string, error) {
		refusal = do()
		if errors.Is(refusal, etcd.ErrUnsettled) {
			return refusal.Error(), nil
		}
		return "", refusal
	})
	if err != nil && refusal != nil && ctx.Err() == nil {
		return refusal
	}
	return err
}

func (a *app) etcdPromote() *cobra.Command {
	w := &etcdWork{app: a, ask: "promote that learner"}
	cmd := &cobra.Command{
		Use:   "promote NAME|ID",
		Short: "Give a learner its vote, as soon as it has caught up",
		Long: `Etcd promotes a learner that has nine tenths of the leader's log. Until then this waits, and tells how far
the learner is. A member that votes already stays as it is.`,
		Example: `  kuorum etcd promote cp4
  kuorum etcd promote cp4 --timeout 1h    a large database on a slow network`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeMembers(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return w.run(cmd.Context(), func(ctx context.Context) error { return w.promote(ctx, args[0]) })
		},
	}
	w.bind(cmd, 3*time.Minute)
	return cmd
}

func (w *etcdWork) promote(ctx context.Context, word string) error {
	_, m, err := w.member(ctx, word)
	if err != nil {
		return err
	}
	if !m.Learner {
		w.app.talk("%s votes already\n", m.Label)
		return nil
	}
	report, told := w.app.newProgress(), ""
	return w.steps(ctx, []step.Step{{Name: "promote learner " + memberText(m), Do: func(ctx context.Context) error {
		return until(ctx, m.Label+" has not caught up in time", func() (string, error) {
			err := w.client.Promote(ctx, m.ID)
			if !errors.Is(err, etcd.ErrNotCaughtUp) {
				return "", err
			}
			now, err := w.review(ctx)
			if err != nil {
				return "", err
			}
			text := catchUpText(now, m)
			if text != told {
				told = text
				report.note("%s", text)
			}
			return text, nil
		})
	}}}, report)
}

// catchUpText is how far a learner is.
func catchUpText(e advise.Etcd, m advise.Member) string {
	var leader, learner cluster.EtcdStatus
	why := ""
	for _, other := range e.Members {
		switch {
		case other.ID == m.ID && other.Status == nil:
			why = ": it " + other.Why
		case other.ID == m.ID:
			learner = *other.Status
		case other.State == advise.MemberLeader:
			leader = *other.Status
		}
	}
	return fmt.Sprintf("%s has %d %% of the leader's log%s", m.Label, etcd.CatchUp(leader, learner), why)
}

// until tries every second until there is nothing to wait for any more, or an
// error. When time is up it says what, and what it waited for last.
func until(ctx context.Context, what string, try func() (waitsFor string, err error)) error {
	tick := time.NewTicker(tryEvery)
	defer tick.Stop()
	last := ""
	for {
		waitsFor, err := try()
		if err == nil && waitsFor == "" {
			return nil
		}
		if err != nil && ctx.Err() == nil {
			return err
		}
		if err == nil {
			last = waitsFor
		}
		select {
		case <-ctx.Done():
			if !errors.Is(context.Cause(ctx), context.DeadlineExceeded) {
				return context.Cause(ctx)
			}
			return &cluster.Problem{What: what, Why: last, Do: "kuorum etcd status", Exit: cluster.ExitTimeout}
		case <-tick.C:
		}
	}
}
