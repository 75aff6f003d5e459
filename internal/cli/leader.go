package cli

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"kuorum/internal/cluster"
	"kuorum/internal/lease"
)

// What is led: the words of the command line.
const (
	leadEtcd   = "etcd"
	kubePrefix = "kube-" // of the programs that the other words mean
)

// lead is who leads one thing, as kuorum leader prints it.
type lead struct {
	What   string    `json:"what"`
	Leader string    `json:"leader"` // a node; empty: nobody does, or nobody can tell
	Since  time.Time `json:"since,omitzero"`
	// Term is etcd's raft term, or how often a lease has changed hands.
	Term uint64 `json:"term"`
	// LeaseLeft is when others may take the lease, unless it is renewed before; it
	// has run out when it is negative. Etcd's lead and the virtual IP have no such
	// time.
	LeaseLeft cluster.Duration `json:"leaseLeft,omitzero"`
}

func (a *app) leaderCommand() *cobra.Command {
	output, watch, past := "table", false, pastLeaders{}
	cmd := &cobra.Command{
		Use:   "leader",
		Short: "Who leads: etcd's member, the scheduler and controller-manager at work, the virtual IP",
		Long: `One of etcd's members leads, and of the schedulers and the controller-managers on the servers one each is at work: the
holder of a lease, which it renews every 2 s by default. One server holds the virtual IP. The agents tell, so this is true also when
the API is gone.

Since when a member leads etcd is not known. The term is etcd's own, how often the lease has changed hands, or how often a
server took or gave up the virtual IP.

--history tells who led before, when that changed and why, as far as anybody knows: each server and etcd node remembers the last
1000 changes that it has seen itself, and those of one that does not answer are missing. Only the virtual IP's, or only etcd's:
name it. An etcd that somebody else runs has no history here.

Exit codes: 0, 4 nobody to ask.`,
		Example: `  kuorum leader
  kuorum leader --watch                 a line for each change
  kuorum leader --history --since 1h    every change of the last hour, and why
  kuorum leader --history vip
  kuorum leader move etcd cp2
  kuorum leader move scheduler          to whichever server is ready`,
		Args: func(cmd *cobra.Command, args []string) error {
			if past.asked {
				return nil // it has words of its own
			}
			return cobra.NoArgs(cmd, args)
		},
		ValidArgsFunction: past.complete,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := past.check(cmd, args); err != nil {
				return err
			}
			t, err := a.target()
			if err != nil {
				return err
			}
			switch {
			case watch:
				return a.watchLeaders(cmd.Context(), t)
			case past.asked:
				return a.leadersBefore(cmd.Context(), t, past, output)
			}
			return a.leaders(cmd.Context(), t, output)
		},
	}
	outputFlag(cmd, &output)
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "print a line for each change until ^C")
	past.bind(cmd)
	cmd.MarkFlagsMutuallyExclusive("watch", "output")
	cmd.MarkFlagsMutuallyExclusive("watch", "history")
	cmd.AddCommand(a.leaderMove())
	return cmd
}

func (a *app) leaders(ctx context.Context, t target, output string) error {
	s, err := answers(ctx, t)
	if err != nil {
		return err
	}
	list := leads(s)
	if output != "table" {
		return a.printData(map[string]any{"apiVersion": cluster.APIVersion, "kind": "LeaderList", "items": list}, output)
	}
	return a.table(func(w io.Writer) { writeLeads(w, list, s.Time) })
}

// answers is the cluster's status, or a Problem if nobody answers.
func answers(ctx context.Context, t target) (cluster.Status, error) {
	s, err := review(ctx, t)
	if err == nil && !slices.ContainsFunc(s.Nodes, func(r cluster.NodeReport) bool { return r.Status != nil }) {
		err = &cluster.Problem{What: "no agent answers, so nobody can tell who leads", Do: "kuorum status", Exit: cluster.ExitNoQuorum}
	}
	return s, err
}

// leads lists who leads what, always in the same order. Whatever else comes to be
// led gets its line here, and its verb in moveLead.
func leads(s cluster.Status) []lead {
	list := []lead{{What: leadEtcd, Leader: s.Leader, Term: raftTerm(s)}}
	for _, program := range []string{cluster.SchedulerName, cluster.ControllerManagerName} {
		list = append(list, leaseLead(s, program))
	}
	if l, ok := vipLead(s); ok {
		list = append(list, l)
	}
	return list
}

// vipLead is who holds the virtual IP; false where there is none. Who says that
// it holds it counts most, and of several the last to take it.
func vipLead(s cluster.Status) (lead, bool) {
	l, there := lead{What: lease.VIP}, false
	byAddress := map[string]string{}
	for _, n := range s.Nodes {
		byAddress[n.Address] = n.Name
	}
	for _, n := range s.Nodes {
		if n.Status == nil || n.Status.VIP == nil {
			continue
		}
		v := n.Status.VIP
		there = true
		l.Term = max(l.Term, uint64(max(0, v.Transitions))) //nolint:gosec // not negative
		switch {
		case v.State == cluster.VIPActive && v.Since.After(l.Since):
			l.Leader, l.Since = n.Name, v.Since
		case l.Leader == "" && v.Holder != "":
			l.Leader = byAddress[v.Holder]
		}
	}
	return l, there
}

// raftTerm is the newest that a member tells.
func raftTerm(s cluster.Status) uint64 {
	var term uint64
	for _, n := range s.Nodes {
		for _, e := range membersSeen(n) {
			term = max(term, e.Term)
		}
	}
	return term
}

func leaseLead(s cluster.Status, program string) lead {
	l := lead{What: leadWord(program)}
	i := slices.IndexFunc(s.Leaders, func(have cluster.LeaseStatus) bool { return have.Name == program })
	if i < 0 {
		return l
	}
	told := s.Leaders[i]
	l.Leader, l.Term = told.Holder, uint64(max(0, told.Transitions)) //nolint:gosec // not negative
	if told.Holder == "" {
		return l
	}
	l.Since = told.Since
	now := s.Time // by the clock of the holder, who wrote the times
	for _, n := range s.Nodes {
		if n.Name == told.Holder {
			now = now.Add(time.Duration(n.ClockOffset))
		}
	}
	l.LeaseLeft = cluster.Duration(told.Renewed.Add(time.Duration(told.Lasts)).Sub(now))
	return l
}

// leadWord is what a program is called on the command line.
func leadWord(program string) string { return strings.TrimPrefix(program, kubePrefix) }

func writeLeads(w io.Writer, list []lead, now time.Time) {
	fmt.Fprintln(w, "WHAT\tLEADER\tSINCE\tTERM\tLEASE LEFT")
	for _, l := range list {
		since, left := "-", "-"
		if !l.Since.IsZero() {
			since = fmt.Sprintf("%s (%s)", l.Since.UTC().Format(time.DateTime), lifeText(max(0, now.Sub(l.Since))))
		}
		if !l.Since.IsZero() && l.LeaseLeft <= 0 && l.What != lease.VIP {
			left = "none"
		} else if l.LeaseLeft > 0 {
			left = time.Duration(l.LeaseLeft).Round(100 * time.Millisecond).String()
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\n", l.What, leaderText(l), since, l.Term, left)
	}
}

func leaderText(l lead) string {
	if l.Leader == "" {
		return "nobody"
	}
	return l.Leader
}

// watchLeaders prints who leads, then a line for each change, until ^C, which is how
// it is meant to end.
func (a *app) watchLeaders(ctx context.Context, t target) error {
	tick := time.NewTicker(waitEvery)
	defer tick.Stop()
	var before []lead
	for {
		s, err := answers(ctx, t)
		if ctx.Err() != nil {
			return nil //nolint:nilerr // ^C ends it well
		}
		if err == nil {
			now := leads(s)
			for _, line := range leadChanges(before, now) {
				fmt.Fprintln(a.process.Out, s.Time.UTC().Format(time.TimeOnly), line)
			}
			before = now
		} else if before != nil {
			fmt.Fprintln(a.process.Out, time.Now().UTC().Format(time.TimeOnly), err)
			before = nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// leadChanges is a line for whatever is led otherwise now; before is nil at first.
func leadChanges(before, now []lead) []string {
	var lines []string
	for i, l := range now {
		switch {
		case before == nil || i >= len(before):
			lines = append(lines, fmt.Sprintf("%s: %s, term %d", l.What, leaderText(l), l.Term))
		case before[i].Leader != l.Leader:
			lines = append(lines, fmt.Sprintf("%s: %s -> %s, term %d", l.What, leaderText(before[i]), leaderText(l), l.Term))
		case before[i].Term != l.Term && before[i].Term != 0:
			lines = append(lines, fmt.Sprintf("%s: %s again, term %d", l.What, leaderText(l), l.Term))
		}
	}
	return lines
}
