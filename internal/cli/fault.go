package cli

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"kuorum/internal/cluster"
	"kuorum/internal/fault"
	"kuorum/internal/lab"
)

func (a *app) faultCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "fault",
		Short: "Break a lab on purpose: machines, components, cables",
		Long: `Breaks something in a lab, and mends it. No quorum is guarded: that is what it is for. The lab's own
process does it and heals it in time, also when this command has long ended.

NODE is a machine's name, or leader: the node whose member leads etcd at that moment, or vip: the one that
holds the virtual IP. COMPONENT is a name as kuorum logs NODE has it: etcd, kube-apiserver, endpoint, kubelet,
containerd, agent, ...`,
		Example: `  kuorum fault kill leader                      cut its power
  kuorum fault kill cp2/etcd                    kill -9 one component
  kuorum fault stop cp2/kubelet                 SIGTERM, after which its agent starts it again
  kuorum fault pause cp1 --for 30s              freeze a whole machine
  kuorum fault cut 'cp1|cp2,cp3'                nothing gets from one side to the other
  kuorum fault list                             what is broken now
  kuorum fault heal                             mend it all`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.faultKill(), a.faultStop(), a.faultPause(), a.faultCut(), a.faultHeal(), a.faultList())
	return cmd
}

func (a *app) faultKill() *cobra.Command {
	return &cobra.Command{
		Use:   "kill NODE[/COMPONENT]",
		Short: "End a machine or a component at once, without a warning",
		Long: `Cuts the power of a machine, which is off afterwards, or sends SIGKILL to one of its components, which its
agent starts again.`,
		Example: `  kuorum fault kill cp1
  kuorum fault kill leader/etcd
  kuorum fault kill vip`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeVictims,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.makeFault(cmd.Context(), fault.Order{Kind: fault.Kill, Target: args[0]})
		},
	}
}

func (a *app) faultStop() *cobra.Command {
	return &cobra.Command{
		Use:   "stop NODE/COMPONENT",
		Short: "Let a component end in peace (SIGTERM); its agent starts it again",
		Long: `Sends SIGTERM to a component. It ends as it does for a restart, and its agent starts it again; the agent itself
first stops all components of its node, and is started again with them.`,
		Example:           `  kuorum fault stop cp2/kube-apiserver`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeVictims,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.makeFault(cmd.Context(), fault.Order{Kind: fault.Stop, Target: args[0]})
		},
	}
}

func (a *app) faultPause() *cobra.Command {
	o := fault.Order{Kind: fault.Pause}
	cmd := &cobra.Command{
		Use:   "pause NODE[/COMPONENT]",
		Short: "Freeze a machine or a component: it is there, and does nothing",
		Long: `Holds all processes of a machine where they are, pods too, or sends SIGSTOP to one component. Connections stay
open and are not answered. A machine that goes off is not paused any more when it is on again.`,
		Example: `  kuorum fault pause cp1 --for 30s
  kuorum fault pause leader/etcd`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeVictims,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.Target = args[0]
			return a.makeFault(cmd.Context(), o)
		},
	}
	faultDuration(cmd, &o)
	return cmd
}

func (a *app) faultCut() *cobra.Command {
	o := fault.Order{Kind: fault.Cut}
	cmd := &cobra.Command{
		Use:   "cut NODE,...['|'NODE,...]",
		Short: "Lose all packets between machines, or those of a TCP port",
		Long: `Drops on the lab's switch what goes between the machines left and right of the bar; within a side, and with all
others, everything works. Without a bar the cables of the machines are out: nobody reaches them, neither does the host.
Nobody is told, as with a cable; connections stay open until somebody's patience ends. Machines keep their cuts
while they are off and when they are on again. The bar is the shell's own sign: quote it.`,
		Example: `  kuorum fault cut cp1                              its cable is out
  kuorum fault cut 'cp1,cp2|cp3' --for 30s
  kuorum fault cut 'leader|cp2' --one-way           what the leader sends to cp2 is lost
  kuorum fault cut 'cp1|cp2,cp3' --port 2380        etcd's peers only`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeSides,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.Target = args[0]
			return a.makeFault(cmd.Context(), o)
		},
	}
	cmd.Flags().BoolVar(&o.OneWay, "one-way", false, "only what goes from the left to the right, or from the machine; ARP passes")
	cmd.Flags().IntSliceVar(&o.Ports, "port", nil, "only TCP connections to these ports, whoever opens them")
	faultDuration(cmd, &o)
	return cmd
}

func faultDuration(cmd *cobra.Command, o *fault.Order) {
	cmd.Flags().DurationVar((*time.Duration)(&o.For), "for", 0, "heal it after this long (default: when it is healed by hand)")
}

// labOnly opens the lab: nothing else can be broken, or mended, from here.
func (a *app) labOnly() (*lab.Lab, error) {
	if onMachine() {
		return nil, &cluster.Problem{
			What: "faults are made in the lab only for now", Why: "this machine is a node, and has nobody above it that could mend it",
			Do: "on the host of a lab: kuorum fault ...", Exit: cluster.ExitRefused,
		}
	}
	return a.open()
}

// makeFault prints the ID on stdout, and what was done on stderr.
func (a *app) makeFault(ctx context.Context, o fault.Order) error {
	if err := o.Check(); err != nil {
		return err
	}
	target, err := fault.Parse(o.Kind, o.Target)
	if err != nil {
		return err
	}
	l, err := a.labOnly()
	if err != nil {
		return err
	}
	if err := target.Check(machineNames(l)); err != nil {
		return err
	}
	f, err := l.MakeFault(ctx, o)
	if err != nil {
		return err
	}
	a.talk("%s\n", faultText(f))
	_, err = fmt.Fprintln(a.process.Out, f.ID)
	return err
}

func machineNames(l *lab.Lab) []string {
	var names []string
	for _, n := range l.Spec.Spec.Nodes {
		names = append(names, n.Name)
	}
	return names
}

// faultText says what a fault has done, and what comes next.
func faultText(f fault.Fault) string {
	machine, component := f.Resolved.Left[0], f.Resolved.Component
	again := "its agent starts it again"
	if component == "agent" {
		again = "it is started again"
	}
	switch {
	case f.Kind == fault.Kill && component == "":
		return fmt.Sprintf("%s has lost its power; to switch it on: kuorum lab start %s", machine, machine)
	case f.Kind == fault.Kill:
		return fmt.Sprintf("%s was killed; %s", f.Text(), again)
	case f.Kind == fault.Stop:
		return fmt.Sprintf("%s was told to end; %s", f.Text(), again)
	}
	text := f.Text() + " stands still"
	if f.Kind == fault.Cut {
		text = f.Text() + ": packets are lost"
	}
	if f.Until.IsZero() {
		return fmt.Sprintf("%s; to heal it: kuorum fault heal %s", text, f.ID)
	}
	return fmt.Sprintf("%s, for %v", text, time.Duration(f.For))
}

func (a *app) faultHeal() *cobra.Command {
	all := false
	cmd := &cobra.Command{
		Use:   "heal [ID...]",
		Short: "Mend what is broken: some of it, or all",
		Long: `Heals the faults of these IDs, or all that are active. Machines without power are not among them: kuorum lab start
switches them on.`,
		Example: `  kuorum fault heal f3
  kuorum fault heal --all`,
		ValidArgsFunction: a.completeFaults,
		RunE: func(cmd *cobra.Command, args []string) error {
			if all && len(args) > 0 {
				return usage("--all heals every fault: name none")
			}
			l, err := a.labOnly()
			if err != nil {
				return err
			}
			healed, err := l.HealFaults(cmd.Context(), args...)
			if err != nil {
				return err
			}
			if len(healed) == 0 {
				a.talk("nothing was left to heal\n")
			}
			for _, f := range healed {
				a.talk("%s is healed: %s of %s\n", f.ID, f.Kind, f.Text())
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "all that are active, which is also meant when no ID is given")
	return cmd
}

func (a *app) faultList() *cobra.Command {
	output, all := "", false
	cmd := &cobra.Command{
		Use:   "list",
		Short: "What is broken on purpose now, or ever was",
		Example: `  kuorum fault list
  kuorum fault list --all -o json | jq '.items[] | {id, kind, start, end}'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := a.labOnly()
			if err != nil {
				return err
			}
			list, err := l.Faults(cmd.Context())
			if err != nil {
				return err
			}
			if !all {
				list = slices.DeleteFunc(list, func(f fault.Fault) bool { return !f.Active() })
			}
			if output != "table" {
				return a.printData(map[string]any{"apiVersion": cluster.APIVersion, "kind": "FaultList", "items": list}, output)
			}
			return a.printFaults(list, time.Now())
		},
	}
	outputFlag(cmd, &output)
	cmd.Flags().BoolVar(&all, "all", false, "those that are over too")
	return cmd
}

func (a *app) printFaults(list []fault.Fault, now time.Time) error {
	if len(list) == 0 {
		a.talk("nothing is broken on purpose\n")
		return nil
	}
	return a.table(func(w io.Writer) {
		fmt.Fprintln(w, "ID\tKIND\tTARGET\tWHAT\tSTARTED\tEND")
		for _, f := range list {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", f.ID, f.Kind, f.Target, f.Text(), f.Start.Local().Format(time.DateTime), faultEnd(f, now))
		}
	})
}

// faultEnd is when and why a fault ended, or how long it lasts.
func faultEnd(f fault.Fault, now time.Time) string {
	switch {
	case !f.Active():
		return fmt.Sprintf("%s, after %v", f.Why, f.End.Sub(f.Start).Round(100*time.Millisecond))
	case f.Until.IsZero():
		return "when it is healed"
	}
	return fmt.Sprintf("in %v", max(0, f.Until.Sub(now)).Round(time.Second))
}

// completeVictims offers machines and fault.Words, and behind a slash the
// components that have a log there.
func (a *app) completeVictims(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	node, _, named := strings.Cut(word, "/")
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	l, err := a.open()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	names := append(machineNames(l), fault.Words()...)
	if !named {
		if cmd.Name() == string(fault.Stop) {
			return slashed(names), cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
		}
		return append(names, slashed(names)...), cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
	}
	files := map[string]bool{}
	for _, name := range machineNames(l) {
		if name != node && slices.Contains(machineNames(l), node) {
			continue
		}
		paths, _ := filepath.Glob(filepath.Join(l.LogDir(name), "*.log")) // the pattern is right
		for _, path := range paths {
			if component := strings.TrimSuffix(filepath.Base(path), ".log"); component != "audit" {
				files[node+"/"+component] = true
			}
		}
	}
	return sortedKeys(files), cobra.ShellCompDirectiveNoFileComp
}

func slashed(names []string) []string {
	var list []string
	for _, name := range names {
		list = append(list, name+"/")
	}
	return list
}

// completeSides offers machines behind the last comma or bar.
func (a *app) completeSides(_ *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	l, err := a.open()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	typed := word[:strings.LastIndexAny(word, ",|")+1]
	there := strings.FieldsFunc(typed, func(r rune) bool { return r == ',' || r == '|' })
	var list []string
	for _, name := range append(machineNames(l), fault.Words()...) {
		if !slices.Contains(there, name) {
			list = append(list, typed+name)
		}
	}
	return list, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
}

// completeFaults offers the active ones that are not named yet.
func (a *app) completeFaults(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	l, err := a.open()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	limited, cancel := context.WithTimeout(cmd.Context(), time.Second)
	defer cancel()
	faults, err := l.Faults(limited)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var ids []string
	for _, f := range faults {
		if f.Active() && !slices.Contains(args, f.ID) {
			ids = append(ids, f.ID)
		}
	}
	return ids, cobra.ShellCompDirectiveNoFileComp
}
