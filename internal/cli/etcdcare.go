package cli

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"kuorum/internal/advise"
	"kuorum/internal/cluster"
	"kuorum/internal/component"
	"kuorum/internal/etcd"
	"kuorum/internal/step"
)

// keepHistory is how many revisions a compaction leaves.
const keepHistory = 1000

// defragOrder is etcd.DefragOrder or etcd.DefragAll.
type defragOrder func(map[string]cluster.EtcdStatus) ([]string, error)

func (a *app) etcdDefrag() *cobra.Command {
	w, order, force := &etcdWork{app: a, ask: "defragment its databases"}, defragOrder(etcd.DefragOrder), false
	cmd := &cobra.Command{
		Use:   "defrag [NAME|ID...]",
		Short: "Give the free pages of the databases back to the disk",
		Long: `Writes the databases anew without their free pages: those where it pays, or of the members named. One member after the
other, the leader last, each as soon as all are well again, since a member that is at it is as good as stopped:
for about 1 s for 100 MiB. It is refused while any member is not well. It pays for files of 16 MiB and more with a
quarter or more of them free, and for full ones.`,
		Example: `  kuorum etcd defrag
  kuorum etcd defrag cp2 --force    also if it does not pay`,
		Args:              cobra.ArbitraryArgs,
		ValidArgsFunction: a.completeMembers(math.MaxInt),
		RunE: func(cmd *cobra.Command, args []string) error {
			if force {
				order = etcd.DefragAll
			}
			return w.run(cmd.Context(), func(ctx context.Context) error { return w.defrag(ctx, args, order) })
		},
	}
	w.bind(cmd, 30*time.Minute)
	cmd.Flags().BoolVar(&force, "force", false, "go on where it does not pay")
	return cmd
}

func (w *etcdWork) defrag(ctx context.Context, names []string, order defragOrder) error {
	now, err := w.review(ctx)
	if err != nil {
		return err
	}
	ids, err := chooseMembers(now, names)
	if err != nil {
		return err
	}
	var done []string
	for {
		todo, err := defragPlan(now, ids, order)
		if err != nil {
			return err
		}
		todo = slices.DeleteFunc(todo, func(m advise.Member) bool { return slices.Contains(done, m.ID) })
		if len(todo) == 0 && len(done) == 0 {
			w.app.talk("nothing to do: no free pages that are worth it (kuorum etcd status; --force goes on)\n")
		}
		if len(todo) == 0 || w.dryRun {
			return w.app.printSteps(w.defragSteps(todo...))
		}
		m := todo[0]
		if err := step.Run(ctx, w.defragSteps(m), w.app.newProgress()); err != nil {
			return err
		}
		done = append(done, m.ID)
		if now, err = w.review(ctx); err != nil {
			return err
		}
		w.app.talk("%s\n", gainText(m, now))
	}
}

// chooseMembers finds the IDs of the members that words name; of all of them
// without any.
func chooseMembers(e advise.Etcd, words []string) ([]string, error) {
	if err := known(e); err != nil {
		return nil, err
	}
	var ids []string
	for _, word := range words {
		m, err := chooseMember(e, word)
		if err != nil {
			return nil, err
		}
		if m.Learner {
			return nil, usage("etcd of %s is a learner, which cannot be defragmented", m.Label)
		}
		ids = append(ids, m.ID)
	}
	if len(words) == 0 {
		for _, m := range e.Members {
			ids = append(ids, m.ID)
		}
	}
	return ids, nil
}

// defragPlan lists those of the members with these IDs that are to be
// defragmented, in order. A learner that does not answer keeps nobody from it.
func defragPlan(e advise.Etcd, ids []string, order defragOrder) ([]advise.Member, error) {
	statuses, members := map[string]cluster.EtcdStatus{}, map[string]advise.Member{}
	for _, m := range e.Members {
		if m.Learner && m.Status == nil {
			continue
		}
		name := m.Label
		if _, twice := members[name]; twice {
			name = m.ID
		}
		members[name], statuses[name] = m, cluster.EtcdStatus{Error: m.Why}
		if m.Status != nil {
			statuses[name] = *m.Status
		}
	}
	names, err := order(statuses)
	var plan []advise.Member
	for _, name := range names {
		if m := members[name]; slices.Contains(ids, m.ID) {
			plan = append(plan, m)
		}
	}
	return plan, err
}

func (w *etcdWork) defragSteps(members ...advise.Member) []step.Step {
	var steps []step.Step
	for _, m := range members {
		steps = append(steps,
			step.Step{Name: "defragment " + m.Label, Do: func(ctx context.Context) error { return w.defragOne(ctx, m) }},
			step.Step{Name: "wait until all members are well", Do: func(ctx context.Context) error { return w.awaitAllWell(ctx) }},
		)
	}
	return steps
}

func (w *etcdWork) defragOne(ctx context.Context, m advise.Member) error {
	n, ok := w.target.spec.Node(m.Node)
	if !ok {
		return fmt.Errorf("cannot defragment %s: no node of cluster.yaml runs it", memberText(m))
	}
	client, err := w.target.etcd(component.ClientURL(n))
	if err != nil {
		return err
	}
	return errors.Join(client.Defragment(ctx), client.Close())
}

// awaitAllWell waits until all voters follow the leader and have applied what
// the furthest had when the wait began.
func (w *etcdWork) awaitAllWell(ctx context.Context) error {
	goal := uint64(0)
	return until(ctx, "not all members are well again", func() (string, error) {
		now, err := w.review(ctx)
		if err != nil {
			return "", err
		}
		if goal == 0 {
			goal = furthest(now)
		}
		return unwell(now, goal), nil
	})
}

// furthest is the last entry that any member has applied.
func furthest(e advise.Etcd) uint64 {
	index := uint64(0)
	for _, m := range e.Members {
		if m.Status != nil {
			index = max(index, m.Status.AppliedIndex)
		}
	}
	return index
}

// unwell names the first voter that does not take part or lacks entries up to
// index.
func unwell(e advise.Etcd, index uint64) string {
	for _, m := range e.Members {
		switch {
		case m.Learner:
		case !m.Healthy:
			return m.Label + " " + m.Why
		case m.Status.AppliedIndex < index:
			return fmt.Sprintf("%s is %d entries behind", m.Label, index-m.Status.AppliedIndex)
		}
	}
	return ""
}

// gainText is what a defragmentation gave back.
func gainText(before advise.Member, now advise.Etcd) string {
	i := slices.IndexFunc(now.Members, func(m advise.Member) bool { return m.ID == before.ID && m.Status != nil })
	if i < 0 {
		return before.Label + " is done"
	}
	was, is := before.Status.DBBytes, now.Members[i].Status.DBBytes
	return fmt.Sprintf("%s gave %s back: the file had %s and has %s", before.Label, bytesText(max(was-is, 0)), bytesText(was), bytesText(is))
}

func (a *app) etcdCompact() *cobra.Command {
	w, revision, keep := &etcdWork{app: a, ask: "forget its history (API servers ask it to every five minutes)"}, int64(0), int64(keepHistory)
	cmd := &cobra.Command{
		Use:   "compact",
		Short: "Forget what keys were before",
		Long: `Forgets older values of keys up to a revision, on all members. That makes free pages in the databases, which etcd
uses again; kuorum etcd defrag gives them back to the disk. The API servers do it every five minutes as well.`,
		Example: `  kuorum etcd compact             keeps the last 1000 revisions
  kuorum etcd compact --keep 0    keeps none: for databases that are full`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if keep < 0 || revision < 0 || cmd.Flags().Changed("revision") && revision == 0 {
				return usage("--revision and --keep are positive numbers")
			}
			return w.run(cmd.Context(), func(ctx context.Context) error { return w.compact(ctx, revision, keep) })
		},
	}
	w.bind(cmd, 10*time.Minute)
	cmd.Flags().Int64Var(&revision, "revision", 0, "forget what was before this revision")
	cmd.Flags().Int64Var(&keep, "keep", keepHistory, "keep this many of the last revisions")
	cmd.MarkFlagsMutuallyExclusive("revision", "keep")
	return cmd
}

func (w *etcdWork) compact(ctx context.Context, revision, keep int64) error {
	now, err := w.client.Revision(ctx)
	if err != nil {
		return err
	}
	goal, err := compactTo(now, revision, keep)
	if err != nil {
		return err
	}
	if goal == 0 {
		w.app.talk("nothing to do: the revision is %d, and %d are to be kept (--keep)\n", now, keep)
		return nil
	}
	name := "forget what was before revision " + strconv.FormatInt(goal, 10)
	steps := []step.Step{{Name: name, Do: func(ctx context.Context) error { return w.client.Compact(ctx, goal) }}}
	if err := w.steps(ctx, steps, w.app.newProgress()); err != nil || w.dryRun {
		return err
	}
	w.app.talk("history is kept from revision %d to %d\n", goal, now)
	return nil
}

// compactTo is the revision to compact to, 0 when there is nothing to do. A
// revision that is given counts, else as many as are to be kept.
func compactTo(now, given, keep int64) (int64, error) {
	if given > now {
		return 0, usage("there is no revision %d yet: it is %d", given, now)
	}
	if given > 0 {
		return given, nil
	}
	return max(now-keep, 0), nil
}
