package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"kuorum/internal/advise"
	"kuorum/internal/cluster"
)

const (
	watchEvery = time.Second
	waitEvery  = 500 * time.Millisecond
)

type statusOptions struct {
	output             string
	watch, wait, brief bool
	timeout            time.Duration
}

// statusDocument is what -o json and yaml print.
type statusDocument struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	cluster.Status
}

func (a *app) statusCommand() *cobra.Command {
	var o statusOptions
	cmd := &cobra.Command{
		Use:   "status",
		Short: "How the cluster is: the quorum, every node, and what to do about what is wrong",
		Long: `Asks the agent of every node, each of which probes its own components and its own
etcd member. It needs neither the API nor a quorum, so what it says is true also
when both are gone. Its findings are explained in docs/findings.md.

Exit codes: 0 healthy, 3 degraded, 4 no quorum or nobody to ask, 6 --wait timed out.`,
		Example: `  kuorum status
  kuorum status --watch              again every second
  kuorum status --wait               until it is healthy
  kuorum status --brief              one line
  kuorum status -o json | jq .quorum`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.status(cmd.Context(), o) },
	}
	outputFlag(cmd, &o.output)
	cmd.Flags().BoolVarP(&o.watch, "watch", "w", false, "print it again every second until ^C")
	cmd.Flags().BoolVar(&o.wait, "wait", false, "wait until the cluster is healthy")
	cmd.Flags().BoolVar(&o.brief, "brief", false, "one line only")
	cmd.Flags().DurationVar(&o.timeout, "timeout", 3*time.Minute, "give --wait up after this long")
	cmd.MarkFlagsMutuallyExclusive("watch", "wait")
	return cmd
}

func (a *app) status(ctx context.Context, o statusOptions) error {
	t, err := a.target()
	if err != nil {
		return err
	}
	if o.watch {
		return a.watchStatus(ctx, t, o)
	}
	s, err := review(ctx, t)
	if o.wait {
		s, err = waitHealthy(ctx, t, o.timeout)
	}
	if err != nil && s.Quorum.Voters == 0 {
		return err // nothing to show
	}
	if printed := a.printStatus(s, o); printed != nil || err != nil {
		return errors.Join(printed, err)
	}
	return judge(s)
}

func review(ctx context.Context, t target) (cluster.Status, error) {
	reports, err := t.reports(ctx)
	if err != nil {
		return cluster.Status{}, err
	}
	return advise.Review(t.spec, reports, time.Now()), nil
}

// judge is the exit code for a status.
func judge(s cluster.Status) error {
	switch s.State {
	case cluster.StateHealthy:
		return nil
	case cluster.StateDegraded:
		return verdict(cluster.ExitDegraded)
	default:
		return verdict(cluster.ExitNoQuorum)
	}
}

// waitHealthy returns the first healthy status, or the last one with a Problem
// when time is up.
func waitHealthy(ctx context.Context, t target, patience time.Duration) (cluster.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tick := time.NewTicker(waitEvery)
	defer tick.Stop()
	var last cluster.Status
	for {
		s, err := review(ctx, t)
		if err == nil {
			last = s
		}
		if err == nil && s.State == cluster.StateHealthy {
			return s, nil
		}
		select {
		case <-ctx.Done():
			if !errors.Is(context.Cause(ctx), context.DeadlineExceeded) {
				return cluster.Status{}, context.Cause(ctx)
			}
			return last, &cluster.Problem{
				What: fmt.Sprintf("the cluster is not healthy after %v", patience), Err: err,
				Do: "kuorum status", Exit: cluster.ExitTimeout,
			}
		case <-tick.C:
		}
	}
}

// watchStatus prints until ^C, which is how it is meant to end. A terminal is
// cleared each time; elsewhere the brief line appears whenever it changes.
func (a *app) watchStatus(ctx context.Context, t target, o statusOptions) error {
	info, err := a.process.Out.Stat()
	tty := err == nil && info.Mode()&os.ModeCharDevice != 0
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for last := ""; ; {
		s, err := review(ctx, t)
		line := briefStatus(s)
		switch {
		case ctx.Err() != nil:
			return nil //nolint:nilerr // ^C ends it well
		case err != nil:
			line = err.Error()
			fallthrough
		case !tty && o.output == "table":
			if line != last {
				fmt.Fprintln(a.process.Out, time.Now().UTC().Format(time.TimeOnly), line)
			}
		default:
			if tty {
				fmt.Fprint(a.process.Out, "\033[H\033[2J")
			}
			if err := a.printStatus(s, o); err != nil {
				return err
			}
		}
		last = line
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (a *app) printStatus(s cluster.Status, o statusOptions) error {
	if o.output != "table" {
		return a.printData(statusDocument{APIVersion: cluster.APIVersion, Kind: "ClusterStatus", Status: s}, o.output)
	}
	var text strings.Builder
	if o.brief {
		text.WriteString(briefStatus(s) + "\n")
	} else {
		writeStatus(&text, s)
	}
	_, err := io.WriteString(a.process.Out, text.String())
	return err
}

// briefStatus is the whole in one line.
func briefStatus(s cluster.Status) string {
	line := fmt.Sprintf("%s: %s; %s", s.Cluster, s.State, s.Quorum)
	var codes []string
	for _, f := range s.Findings {
		if f.Severity != cluster.SeverityInfo {
			codes = append(codes, strings.TrimSuffix(f.Code+" "+f.Node, " "))
		}
	}
	if len(codes) > 0 {
		line += "; " + strings.Join(codes, ", ")
	}
	return line
}

func writeStatus(w io.Writer, s cluster.Status) {
	fmt.Fprintf(w, "cluster %s: %s\n%s\n\n", s.Cluster, s.State, s.Quorum)
	writeNodes(w, s)
	fmt.Fprintf(w, "\nleaders:       %s\n", leadersText(s))
	if text := databaseText(s); text != "" {
		fmt.Fprintf(w, "database:      %s\n", text)
	}
	if text := certificatesText(s); text != "" {
		fmt.Fprintf(w, "certificates:  %s\n", text)
	}
	writeFindings(w, s.Findings)
}

func writeNodes(out io.Writer, s cluster.Status) {
	w := tabwriter.NewWriter(out, 0, 8, 3, ' ', 0)
	fmt.Fprintln(w, "NODE\tROLE\tREADY\tAPI\tETCD\tTERM\tINDEX\tLAG\tFSYNC P99\tDISK FREE\tCLOCK")
	for _, n := range s.Nodes {
		fmt.Fprintln(w, strings.Join(nodeRow(n, s), "\t"))
	}
	_ = w.Flush() // into memory
}

// nodeRow is one line of the table; a dash is what a node does not have or
// does not tell.
func nodeRow(n cluster.NodeReport, s cluster.Status) []string {
	row := []string{n.Name, string(n.Role), "-", "-", "-", "-", "-", "-", "-", "-", "-"}
	if n.Status == nil {
		row[2] = "no answer"
		return row
	}
	row[2], row[3] = readyWord(n.Status.Ready), componentWord(*n.Status, "kube-apiserver")
	copy(row[4:], etcdWords(n.Status.Etcd, s))
	if e := n.Status.External; e != nil {
		row[4] = reachText(*e)
	}
	if d := n.Status.Disk; d.SizeBytes > 0 {
		row[9] = bytesText(d.FreeBytes)
	}
	row[10] = clockWord(time.Duration(n.ClockOffset))
	return row
}

func readyWord(ready bool) string { //nolint:revive // a word for a flag
	if ready {
		return "yes"
	}
	return "no"
}

func componentWord(s cluster.NodeStatus, name string) string {
	for _, c := range s.Components {
		if c.Name == name {
			return c.Phase
		}
	}
	return "-"
}

// etcdWords are state, term, index, lag and fsync time of a member.
func etcdWords(e *cluster.EtcdStatus, s cluster.Status) []string {
	if e == nil {
		return nil
	}
	if e.Error != "" {
		return []string{"down"}
	}
	var newest uint64
	for _, n := range s.Nodes {
		if n.Status != nil && n.Status.Etcd != nil {
			newest = max(newest, n.Status.Etcd.AppliedIndex)
		}
	}
	word := "follower"
	switch {
	case e.Leader == "":
		word = "no leader"
	case e.Learner:
		word = "learner"
	case e.Leader == e.ID:
		word = "leader"
	}
	return []string{word, fmt.Sprint(e.Term), fmt.Sprint(e.AppliedIndex), fmt.Sprint(newest - e.AppliedIndex), measured(e.FsyncP99)}
}

// measured is a time with as many digits as a person reads; a dash for none.
func measured(d cluster.Duration) string {
	if d <= 0 {
		return "-"
	}
	return time.Duration(d).Round(100 * time.Microsecond).String()
}

func clockWord(offset time.Duration) string {
	if offset.Abs() < 100*time.Millisecond {
		return "ok"
	}
	return fmt.Sprintf("%+.1fs", offset.Seconds())
}

func leadersText(s cluster.Status) string {
	leader := s.Leader
	if leader == "" {
		leader = "nobody"
	}
	parts := []string{"etcd " + leader}
	for _, l := range s.Leaders {
		holder := l.Holder
		if holder == "" {
			holder = "nobody"
		}
		parts = append(parts, l.Name+" "+holder)
	}
	if l, there := vipLead(s); there {
		parts = append(parts, "virtual IP "+leaderText(l))
	}
	return strings.Join(parts, ", ")
}

// databaseText is the size of etcd's database where it is largest.
func databaseText(s cluster.Status) string {
	var largest *cluster.EtcdStatus
	for _, n := range s.Nodes {
		for _, e := range membersSeen(n) {
			if e.Error == "" && (largest == nil || e.DBBytes > largest.DBBytes) {
				largest = e
			}
		}
	}
	if largest == nil {
		return ""
	}
	return fmt.Sprintf("%s, %s in use, quota %s; revision %d; etcd %s",
		bytesText(largest.DBBytes), bytesText(largest.DBUsedBytes), bytesText(largest.QuotaBytes), largest.Revision, largest.Version)
}

func certificatesText(s cluster.Status) string {
	var first cluster.CertificateStatus
	node := ""
	for _, n := range s.Nodes {
		if n.Status == nil {
			continue
		}
		for _, c := range n.Status.Certificates {
			if node == "" || c.Until.Before(first.Until) {
				first, node = c, n.Name
			}
		}
	}
	if node == "" {
		return ""
	}
	return fmt.Sprintf("the first ends in %s (%s, %s)", lifeText(first.Until.Sub(s.Time)), node, first.File)
}

// lifeText is a long time in the largest unit that is not too coarse.
func lifeText(d time.Duration) string {
	switch {
	case d < 0:
		return "the past"
	case d < 2*time.Hour:
		return d.Round(time.Second).String()
	case d < 4*24*time.Hour:
		return fmt.Sprintf("%d hours", int(d.Hours()))
	}
	return fmt.Sprintf("%d days", int(d.Hours()/24))
}

func writeFindings(w io.Writer, findings []cluster.Finding) {
	for _, f := range findings {
		fmt.Fprintf(w, "\n%s: %s (%s)\n", f.Severity, f.What, f.Code)
		for _, part := range []struct{ label, text string }{{"why", f.Why}, {"do", f.Do}} {
			if part.text != "" {
				fmt.Fprintf(w, "  %-4s %s\n", part.label+":", part.text)
			}
		}
	}
}
