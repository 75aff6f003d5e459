package cli

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"kuorum/internal/agent"
	"kuorum/internal/cluster"
	"kuorum/internal/history"
)

// historyPatience is how long all agents may take together to tell what they
// remember.
const historyPatience = 3 * time.Second

// ledWords are what has a history.
func ledWords() []string {
	return []string{history.Etcd, history.Scheduler, history.ControllerManager, history.VIP}
}

// pastLeaders is what is asked of the past.
type pastLeaders struct {
	asked bool
	since time.Duration // ago; 0: all that is remembered
	what  string        // empty: everything
}

func (p *pastLeaders) bind(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&p.asked, "history", false, "who led before, and why that changed")
	cmd.Flags().DurationVar(&p.since, "since", 0, "only changes of so long ago and later (with --history)")
}

func (p *pastLeaders) check(cmd *cobra.Command, args []string) error {
	switch {
	case !p.asked && cmd.Flags().Changed("since"):
		return refuseArguments(cmd, usage("--since is for --history"))
	case p.since < 0:
		return refuseArguments(cmd, usage("--since cannot be %v: it is how long ago", p.since))
	case len(args) > 1:
		return refuseArguments(cmd, usage("one thing has a history at a time: %s", strings.Join(args, ", ")))
	case len(args) == 1 && !slices.Contains(ledWords(), leadWord(args[0])):
		return refuseArguments(cmd, usage("nothing called %q is led: it is etcd, scheduler, controller-manager or vip", args[0]))
	case len(args) == 1:
		p.what = leadWord(args[0])
	}
	return nil
}

func (p *pastLeaders) complete(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if !p.asked || len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return ledWords(), cobra.ShellCompDirectiveNoFileComp
}

// leadersBefore prints what the agents remember, and names those that do not answer.
func (a *app) leadersBefore(ctx context.Context, t target, past pastLeaders, output string) error {
	if _, err := t.reports(ctx); err != nil { // it says best what is wrong with a whole cluster
		return err
	}
	agents, err := t.agents()
	if err != nil {
		return err
	}
	path := history.Path
	if past.since > 0 {
		path += "?since=" + time.Now().Add(-past.since).UTC().Format(time.RFC3339)
	}
	lines, silent, err := remembered(ctx, t.spec, func(ctx context.Context, n cluster.Node) (account history.Account, err error) {
		return account, agents.Call(ctx, n.Address, path, nil, &account)
	})
	if err != nil {
		return err
	}
	for _, why := range silent {
		a.talk("%s\n", why)
	}
	return a.printHistory(lines, past, output)
}

func (a *app) printHistory(lines []history.Line, past pastLeaders, output string) error {
	if past.what != "" {
		lines = slices.DeleteFunc(lines, func(l history.Line) bool { return l.What != past.what })
	}
	if output != "table" {
		return a.printData(map[string]any{"apiVersion": cluster.APIVersion, "kind": "LeaderChangeList", "items": lines}, output)
	}
	if len(lines) == 0 {
		a.talk("no change is remembered\n")
		return nil
	}
	return a.table(func(w io.Writer) { writeHistory(w, lines) })
}

// remembered asks all nodes that can know, at once. Silent says of each that does not
// answer why, in the order of cluster.yaml; when that is all of them it is a Problem.
func remembered(ctx context.Context, spec *cluster.Spec, ask func(context.Context, cluster.Node) (history.Account, error)) (lines []history.Line, silent []string, err error) {
	limited, cancel := context.WithTimeout(ctx, historyPatience)
	defer cancel()
	nodes := slices.DeleteFunc(slices.Clone(spec.Spec.Nodes), func(n cluster.Node) bool { return !n.Role.MayVote() && n.Role != cluster.RoleBalancer })
	accounts, errs := make([]history.Account, len(nodes)), make([]error, len(nodes))
	var all sync.WaitGroup
	for i, n := range nodes {
		all.Go(func() { accounts[i], errs[i] = ask(limited, n) })
	}
	all.Wait()
	var changes []history.Change
	for i, n := range nodes {
		if errs[i] != nil {
			silent = append(silent, n.Name+" does not tell what it remembers: "+agent.Explain(errs[i]))
			continue
		}
		changes = append(changes, accounts[i].Changes...)
	}
	if len(silent) == len(nodes) {
		return nil, nil, &cluster.Problem{
			What: "no agent answers, so nobody can tell who led", Why: strings.Join(silent, "\n"), Do: "kuorum status", Exit: cluster.ExitNoQuorum,
		}
	}
	return append([]history.Line{}, history.Merge(changes)...), silent, nil
}

func writeHistory(w io.Writer, lines []history.Line) {
	fmt.Fprintln(w, "TIME\tWHAT\tFROM\tTO\tNOBODY FOR\tWHY")
	for _, l := range lines {
		from, nobody, why := l.From, "-", l.Why
		if from == "" {
			from = "-"
		}
		if l.Nobody > 0 {
			nobody = time.Duration(l.Nobody).String()
		}
		if why == "" {
			why = "-"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", l.At.UTC().Format("2006-01-02 15:04:05.000"), l.What, from, leaderText(lead{Leader: l.To}), nobody, why)
	}
}
