package cli

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"kuorum/internal/advise"
	"kuorum/internal/cluster"
	"kuorum/internal/membership"
	"kuorum/internal/step"
)

// etcdTimers is the verb that shows etcd's timers, and sets them.
type etcdTimers struct {
	etcdWork
	apply               bool
	heartbeat, election time.Duration
}

func (a *app) etcdTimers() *cobra.Command {
	w := &etcdTimers{etcdWork: etcdWork{app: a}}
	cmd := &cobra.Command{
		Use:   "timers",
		Short: "How soon etcd notices a dead leader: measure, show, set",
		Long: `Without flags it shows the timers that etcd runs with, what the members measure of their network and disks, and which
timers these allow. Short ones find a dead leader sooner; too short, a late packet or write costs a live leader its lead.

--apply sets the timers that the measurements allow, --heartbeat others. They are written to the cluster's cluster.yaml; the
nodes see that, and one member after the other starts with them, the leader last, each as soon as all are well again, also
if this command is interrupted. The API server of a member's machine starts again with it; writes go to the others.
Measure while the cluster does its usual work: an idle disk promises too much.`,
		Example: `  kuorum etcd timers
  kuorum etcd timers --apply --dry-run
  kuorum etcd timers --heartbeat 50ms --election-timeout 500ms`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if w.apply || w.heartbeat != 0 {
				w.ask = "set its timers"
			}
			return w.run(cmd.Context(), w.show)
		},
	}
	w.bind(cmd, 10*time.Minute)
	cmd.Flags().BoolVar(&w.apply, "apply", false, "set the timers that the measurements allow")
	cmd.Flags().DurationVar(&w.heartbeat, "heartbeat", 0, "set this time between two heartbeats of the leader")
	cmd.Flags().DurationVar(&w.election, "election-timeout", 0, "how long nothing is heard of the leader before an election (default ten heartbeats)")
	cmd.MarkFlagsMutuallyExclusive("apply", "heartbeat")
	cmd.MarkFlagsMutuallyExclusive("apply", "election-timeout")
	return cmd
}

func (w *etcdTimers) show(ctx context.Context) error {
	if w.election != 0 && w.heartbeat == 0 {
		return usage("--election-timeout goes with --heartbeat")
	}
	now, err := w.review(ctx)
	if err != nil {
		return err
	}
	if err := known(now); err != nil {
		return err
	}
	rtt, fsync := advise.Slowest(now)
	advice := advise.Timers(rtt, fsync)
	switch {
	case w.apply:
		return w.set(ctx, now, advice.Heartbeat, advice.Election)
	case w.heartbeat != 0:
		return w.set(ctx, now, w.heartbeat, cmp.Or(w.election, advise.ElectionOf(w.heartbeat)))
	}
	if err := w.app.table(func(out io.Writer) { writeTimers(out, now) }); err != nil {
		return err
	}
	if w.target.spec.EtcdExternal() {
		w.app.talk("what it measures, and runs with, only those know who run it\n")
		return nil
	}
	_, err = fmt.Fprintf(w.app.process.Out, "\npossible: heartbeat %v, election timeout %v (kuorum etcd timers --apply)\n  %s\n",
		advice.Heartbeat, advice.Election, strings.Join(advice.Reasons, "\n  "))
	return err
}

// writeTimers is a line for each member, of what it says itself.
func writeTimers(w io.Writer, e advise.Etcd) {
	fmt.Fprintln(w, "MEMBER\tHEARTBEAT\tELECTION TIMEOUT\tFSYNC P99\tRTT TO THE FURTHEST")
	for _, m := range e.Members {
		if m.Status == nil || m.Status.Heartbeat == 0 {
			fmt.Fprintf(w, "%s\t-\t-\t-\t-\n", m.Label)
			continue
		}
		s := m.Status
		fmt.Fprintf(w, "%s\t%v\t%v\t%s\t%s\n", m.Label, s.Heartbeat, s.ElectionTimeout, measured(s.FsyncP99), measured(s.PeerRTT))
	}
}

// set gives all members these timers. What was interrupted is finished by the
// same command.
func (w *etcdTimers) set(ctx context.Context, now advise.Etcd, heartbeat, election time.Duration) error {
	register := membership.NewRegister(w.client)
	if _, err := w.target.spec.WithTimers(heartbeat, election); err != nil {
		return err
	}
	if err := spareOne(now); err != nil && !w.dryRun {
		return err
	}
	steps := []step.Step{{
		Name: fmt.Sprintf("write heartbeat %v and election timeout %v to cluster.yaml", heartbeat, election),
		Do:   func(ctx context.Context) error { return register.SetTimers(ctx, heartbeat, election) },
	}}
	for _, m := range leaderLast(now.Members) {
		steps = append(steps, step.Step{
			Name: fmt.Sprintf("wait until etcd of %s runs with them", m.Label),
			Do:   func(ctx context.Context) error { return w.awaitTimers(ctx, m, heartbeat, election) },
		})
	}
	return w.steps(ctx, steps, w.app.newProgress())
}

// spareOne refuses unless each member can start again while the others go on.
func spareOne(e advise.Etcd) error {
	why := unwell(e, 0)
	if why == "" && e.Quorum.Voters > 1 && e.Quorum.MayLose == 0 {
		why = e.Quorum.String()
	}
	if why == "" {
		return nil
	}
	return &cluster.Problem{
		What: "the timers cannot be changed now", Why: "each member starts again, which the others must carry: " + why,
		Do: "kuorum etcd status", Exit: cluster.ExitRefused,
	}
}

// leaderLast puts the leader behind the others, so that the lead changes once.
func leaderLast(members []advise.Member) []advise.Member {
	leads := func(m advise.Member) bool { return m.State == advise.MemberLeader }
	followers := slices.DeleteFunc(slices.Clone(members), leads)
	return append(followers, slices.DeleteFunc(slices.Clone(members), func(m advise.Member) bool { return !leads(m) })...)
}

// awaitTimers waits until the member's node has had its turn: its etcd runs with
// the timers, and all of its components are ready.
func (w *etcdTimers) awaitTimers(ctx context.Context, m advise.Member, heartbeat, election time.Duration) error {
	node, ok := w.target.spec.Node(m.Node)
	if !ok {
		return fmt.Errorf("cannot wait for %s: no node of cluster.yaml runs it", memberText(m))
	}
	return until(ctx, "etcd of "+node.Name+" does not run with the new timers yet: its agent goes on", func() (string, error) {
		reports, err := w.target.reports(ctx)
		if err != nil {
			return "", err
		}
		i := slices.IndexFunc(reports, func(r cluster.NodeReport) bool { return r.Name == node.Name })
		if i < 0 || reports[i].Status == nil {
			return node.Name + " does not answer", nil // its agent is starting
		}
		status := reports[i].Status
		if s := status.Etcd; s != nil && time.Duration(s.Heartbeat) == heartbeat && time.Duration(s.ElectionTimeout) == election {
			return unreadyText(*status), nil
		}
		return cmp.Or(advise.Turn(w.target.spec, reports, node.Name), node.Name+" is about to start it again"), nil
	})
}

// unreadyText names the components of a node that are not ready.
func unreadyText(s cluster.NodeStatus) string {
	var names []string
	for _, c := range s.Components {
		if c.Phase != "ready" {
			names = append(names, fmt.Sprintf("%s is %s", c.Name, c.Phase))
		}
	}
	if len(names) == 0 {
		return ""
	}
	return s.Name + ": " + strings.Join(names, ", ")
}
