package cli

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"kuorum/internal/advise"
	"kuorum/internal/cluster"
	"kuorum/internal/component"
	"kuorum/internal/etcd"
	"kuorum/internal/step"
)

func (a *app) etcdCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "etcd",
		Short: "etcd's members and their databases: look, remove, promote, rebuild, make room, set timers",
		Long: `What only looks (status, members, alarms, and timers without flags) asks the nodes' agents and needs no quorum. What
changes something does, but for defrag, which is refused while any member is not well. Where somebody else runs etcd
(spec.etcd.external) nothing is changed: such verbs are refused (exit code 5).`,
		Example: `  kuorum etcd status                       every member, how far it is and how full
  kuorum etcd members                      the member list
  kuorum etcd remove cp3                   take a member off the list for good
  kuorum etcd promote cp3                  give a learner its vote
  kuorum etcd compact --keep 0             make room in full databases: forget history,
  kuorum etcd defrag                       give the room back to the disk,
  kuorum etcd alarms --disarm              and let etcd write again
  kuorum etcd timers                       how soon a dead leader is noticed, and could be`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.etcdStatus(), a.etcdMembers(), a.etcdRemove(), a.etcdPromote(), a.etcdRebuild(), a.etcdDefrag(), a.etcdCompact(), a.etcdAlarms(), a.etcdTimers())
	return cmd
}

// etcdWork is a verb that changes something in etcd.
type etcdWork struct {
	app     *app
	target  target
	client  *etcd.Client // of all members
	timeout time.Duration
	dryRun  bool
	// ask is what to ask those for who run etcd, if somebody else does: it is not
	// done then. Empty: the verb changes nothing.
	ask string
}

func (w *etcdWork) bind(cmd *cobra.Command, timeout time.Duration) {
	cmd.Flags().DurationVar(&w.timeout, "timeout", timeout, "give up after this long")
	cmd.Flags().BoolVar(&w.dryRun, "dry-run", false, "print the steps and do nothing")
}

// run does the work on etcd of the chosen cluster.
func (w *etcdWork) run(ctx context.Context, do func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, w.timeout)
	defer cancel()
	var err error
	if w.target, err = w.app.target(); err != nil {
		return err
	}
	if w.target.spec.EtcdExternal() {
		if w.ask != "" {
			return refuseTheirs(w.target.spec, w.ask)
		}
		return do(ctx) // which asks agents only
	}
	if w.client, err = w.target.etcd(component.ClientURLs(w.target.spec)...); err != nil {
		return err
	}
	defer w.client.Close() //nolint:errcheck // all has been said by then
	return do(ctx)
}

// steps runs a procedure, or prints it.
func (w *etcdWork) steps(ctx context.Context, steps []step.Step, report *progress) error {
	if w.dryRun {
		return w.app.printSteps(steps)
	}
	return step.Run(ctx, steps, report)
}

func (w *etcdWork) review(ctx context.Context) (advise.Etcd, error) { return reviewEtcd(ctx, w.target) }

func reviewEtcd(ctx context.Context, t target) (advise.Etcd, error) {
	reports, err := t.reports(ctx)
	if err != nil {
		return advise.Etcd{}, err
	}
	return advise.ReviewEtcd(t.spec, reports, time.Now()), nil
}

// member finds the member that word names now.
func (w *etcdWork) member(ctx context.Context, word string) (advise.Etcd, advise.Member, error) {
	now, err := w.review(ctx)
	if err != nil {
		return now, advise.Member{}, err
	}
	m, err := chooseMember(now, word)
	return now, m, err
}

// chooseMember finds a member by its name or its hexadecimal ID.
func chooseMember(e advise.Etcd, word string) (advise.Member, error) {
	if err := known(e); err != nil {
		return advise.Member{}, err
	}
	id := strings.TrimLeft(strings.TrimPrefix(strings.ToLower(word), "0x"), "0")
	var found []advise.Member
	var names, ids []string
	for _, m := range e.Members {
		names = append(names, memberText(m))
		if m.Label == word || m.ID == id {
			found = append(found, m)
			ids = append(ids, m.ID)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return advise.Member{}, &cluster.Problem{
			What: fmt.Sprintf("etcd has no member %q, or not any more", word),
			Why:  "its members are " + strings.Join(names, ", "), Exit: cluster.ExitUsage,
		}
	}
	return advise.Member{}, &cluster.Problem{
		What: fmt.Sprintf("%q names more than one member of etcd", word),
		Why:  "they are " + strings.Join(ids, " and "), Do: "name one by its ID", Exit: cluster.ExitUsage,
	}
}

// known refuses to go on when nobody could tell the member list.
func known(e advise.Etcd) error {
	if e.Known {
		return nil
	}
	var lines []string
	for _, m := range e.Members {
		lines = append(lines, m.Label+" "+m.Why)
	}
	return &cluster.Problem{What: "no etcd member answers", Why: strings.Join(lines, "\n"), Do: "kuorum status", Exit: cluster.ExitNoQuorum}
}

// memberText names a member so that no other can be meant.
func memberText(m advise.Member) string {
	if m.Label == m.ID {
		return m.ID
	}
	return fmt.Sprintf("%s (%s)", m.Label, m.ID)
}

// completeMembers offers the nodes with a member of etcd, but those named already; more
// than limit are of no use.
func (a *app) completeMembers(limit int) cobra.CompletionFunc {
	return func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) >= limit {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		t, err := a.target()
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		var names []string
		for _, n := range t.spec.EtcdNodes() {
			if !slices.Contains(args, n.Name) {
				names = append(names, n.Name)
			}
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}

// etcdDocument is what `etcd status -o json` prints.
type etcdDocument struct {
	APIVersion string    `json:"apiVersion"`
	Kind       string    `json:"kind"`
	Cluster    string    `json:"cluster"`
	Time       time.Time `json:"time"`
	advise.Etcd
}

func (a *app) etcdStatus() *cobra.Command {
	output := ""
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Every member: state, term, index, lag, size of its database, alarms",
		Long: `Asks the agent of every node, so it needs no quorum. INDEX is the last entry that a member has
applied, LAG how many it has applied less than the furthest one.

Exit codes: 0 all members are well, 3 degraded, 4 no quorum or nobody to ask.`,
		Example: `  kuorum etcd status
  kuorum etcd status -o json | jq .members[].lag`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			t, err := a.target()
			if err != nil {
				return err
			}
			e, err := reviewEtcd(cmd.Context(), t)
			if err != nil {
				return err
			}
			if err := a.printEtcd(t.spec.Metadata.Name, e, output); err != nil {
				return err
			}
			return judge(cluster.Status{State: e.State})
		},
	}
	outputFlag(cmd, &output)
	return cmd
}

func (a *app) printEtcd(name string, e advise.Etcd, output string) error {
	if output != "table" {
		return a.printData(etcdDocument{APIVersion: cluster.APIVersion, Kind: "EtcdStatus", Cluster: name, Time: time.Now(), Etcd: e}, output)
	}
	var text strings.Builder
	fmt.Fprintf(&text, "etcd of cluster %s: %s\n%s\n\n", name, e.State, e.Quorum)
	w := tabwriter.NewWriter(&text, 0, 8, 3, ' ', 0)
	fmt.Fprintln(w, "MEMBER\tID\tSTATE\tVERSION\tTERM\tINDEX\tLAG\tSIZE\tIN USE\tALARMS\tWHY")
	for _, m := range e.Members {
		fmt.Fprintln(w, strings.Join(etcdRow(m, e.Alarms), "\t"))
	}
	_ = w.Flush() // into memory
	writeFindings(&text, e.Findings)
	_, err := io.WriteString(a.process.Out, text.String())
	return err
}

// etcdRow is one line of the table; a dash is what a member does not tell, or
// does not have.
func etcdRow(m advise.Member, alarms []cluster.EtcdAlarm) []string {
	row := []string{m.Label, dash(m.ID), m.State, "-", "-", "-", "-", "-", "-", "-", dash(m.Why)}
	if s := m.Status; s != nil {
		copy(row[3:], []string{
			s.Version, fmt.Sprint(s.Term), fmt.Sprint(s.AppliedIndex), fmt.Sprint(m.Lag), bytesText(s.DBBytes), bytesText(s.DBUsedBytes),
		})
	}
	var kinds []string
	for _, alarm := range alarms {
		if alarm.Member == m.ID {
			kinds = append(kinds, alarm.Kind)
		}
	}
	row[9] = dash(strings.Join(kinds, ","))
	return row
}

func dash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

func (a *app) etcdMembers() *cobra.Command {
	output := ""
	cmd := &cobra.Command{
		Use:   "members",
		Short: "The member list, which also a member without a quorum knows",
		Example: `  kuorum etcd members
  kuorum etcd members -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			t, err := a.target()
			if err != nil {
				return err
			}
			e, err := reviewEtcd(cmd.Context(), t)
			if err != nil {
				return err
			}
			if err := known(e); err != nil {
				return err
			}
			return a.printMembers(e.Members, output)
		},
	}
	outputFlag(cmd, &output)
	return cmd
}

func (a *app) printMembers(members []advise.Member, output string) error {
	if output != "table" {
		list := slices.Clone(members)
		for i := range list {
			list[i].Status = nil // is for status
		}
		return a.printData(map[string]any{"apiVersion": cluster.APIVersion, "kind": "EtcdMemberList", "items": list}, output)
	}
	return a.table(func(w io.Writer) {
		fmt.Fprintln(w, "MEMBER\tID\tVOTES\tHEALTHY\tPEER URL\tWHY")
		for _, m := range members {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", m.Label, m.ID, readyWord(!m.Learner), readyWord(m.Healthy), strings.Join(m.PeerURLs, ","), dash(m.Why))
		}
	})
}
