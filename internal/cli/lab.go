package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"kuorum/internal/advise"
	"kuorum/internal/agent"
	"kuorum/internal/cluster"
	"kuorum/internal/lab"
	"kuorum/internal/step"
)

func (a *app) labCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "lab",
		Short: "Machines of a lab: power, shutdown, more and fewer, console",
		Example: `  kuorum lab stop cp1            shut it down cleanly
  kuorum lab stop --power cp1    pull its plug
  kuorum lab start cp1           switch it on
  kuorum lab add                 one more server
  kuorum lab remove cp4          and one less
  kuorum lab address cp1 198.18.0.61    another address, while it is off
  kuorum lab console cp1         a shell on it`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.labStart(), a.labStop(), a.labReboot(), a.labAdd(), a.labRemove(), a.labAddress(), a.labConsole(), a.labProcess())
	return cmd
}

// machineVerb is a command on one machine of the chosen lab.
type machineVerb struct {
	use, short string
	wait       bool
	timeout    time.Duration
	dryRun     bool
	// stops tells that the machine's voter goes away: the quorum is guarded.
	stops     bool
	forceLoss bool
	// steps lists the procedure; it is called after flags are parsed.
	steps func(l *lab.Lab, name string) []step.Step
}

func (a *app) machineCommandFor(v *machineVerb) *cobra.Command {
	cmd := &cobra.Command{
		Use:               v.use + " NODE",
		Short:             v.short,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeNodes,
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := a.open()
			if err != nil {
				return err
			}
			if _, ok := l.Spec.Node(args[0]); !ok {
				return unknownNode(l, args[0])
			}
			return a.runMachineVerb(cmd.Context(), v, l, args[0])
		},
	}
	cmd.Flags().DurationVar(&v.timeout, "timeout", 3*time.Minute, "give up after this long")
	cmd.Flags().BoolVar(&v.dryRun, "dry-run", false, "print the steps and do nothing")
	if v.stops {
		cmd.Flags().BoolVar(&v.forceLoss, "force-quorum-loss", false, "go on even if etcd loses its quorum")
	}
	return cmd
}

func (a *app) runMachineVerb(ctx context.Context, v *machineVerb, l *lab.Lab, name string) error {
	ctx, cancel := context.WithTimeout(ctx, v.timeout)
	defer cancel()
	steps := v.steps(l, name)
	if v.stops {
		guard := &quorumGuard{lab: l, node: name, verb: v.use + " " + name, force: v.forceLoss}
		steps = append([]step.Step{{Name: "check the quorum", Do: guard.check}}, steps...)
		if v.dryRun {
			if err := a.printSteps(steps); err != nil {
				return err
			}
			err := guard.check(ctx)
			a.talk("%s", guard.explanation())
			return err
		}
	}
	if v.dryRun {
		return a.printSteps(steps)
	}
	return step.Run(ctx, steps, a.newProgress())
}

// quorumGuard is the first step of every verb that stops a machine.
type quorumGuard struct {
	lab           *lab.Lab
	node, verb    string
	force         bool
	before, after cluster.QuorumSum
}

// check asks the machines now. Between its answer and the stop another voter
// may fail: no guard can prevent that.
func (g *quorumGuard) check(ctx context.Context) error {
	look := func(ctx context.Context) ([]cluster.Voter, error) {
		status, err := g.lab.Status(ctx)
		return advise.Voters(g.lab.Nodes(), status.Reports()), err
	}
	voters, err := look(ctx)
	if err == nil && !g.force {
		voters, err = agent.Settled(ctx, look)
	}
	if err != nil {
		return err
	}
	g.before, g.after = cluster.SumOf(voters), cluster.Without(voters, g.node)
	if g.force {
		return nil
	}
	return cluster.GuardQuorum(g.verb, g.before, g.after)
}

func (g *quorumGuard) explanation() string {
	if g.before.Voters == 0 {
		return "" // nobody could be asked
	}
	return fmt.Sprintf("now:        %s\nafter this: %s\n", g.before, g.after)
}

func unknownNode(l *lab.Lab, name string) error {
	_, err := statusOf(l).Machine(name)
	return err
}

// statusOf names a lab's machines without asking its process.
func statusOf(l *lab.Lab) lab.Status {
	s := lab.Status{Name: l.Name}
	for _, n := range l.Spec.Spec.Nodes {
		s.Machines = append(s.Machines, lab.MachineStatus{Name: n.Name, Role: n.Role, Address: n.Address})
	}
	return s
}

func (a *app) labStart() *cobra.Command {
	v := &machineVerb{use: "start", short: "Switch a machine on and wait until its components are ready", wait: true}
	v.steps = func(l *lab.Lab, name string) []step.Step { return startSteps(l, name, v.wait) }
	cmd := a.machineCommandFor(v)
	cmd.Flags().BoolVar(&v.wait, "wait", true, "wait until every component is ready")
	return cmd
}

func startSteps(l *lab.Lab, name string, wait bool) []step.Step { //nolint:revive // the flag is the user's
	steps := []step.Step{{Name: "switch " + name + " on", Do: func(ctx context.Context) error { return l.StartMachine(ctx, name) }}}
	if wait {
		steps = append(steps, step.Step{Name: "wait for the components of " + name, Do: func(ctx context.Context) error { return l.WaitReady(ctx, name) }})
	}
	return steps
}

func (a *app) labStop() *cobra.Command {
	power := false
	v := &machineVerb{use: "stop", short: "Shut a machine down cleanly, or pull its plug", stops: true}
	v.steps = func(l *lab.Lab, name string) []step.Step {
		if power {
			return []step.Step{{Name: "cut the power of " + name, Do: func(ctx context.Context) error { return l.PowerOffMachine(ctx, name) }}}
		}
		return []step.Step{{Name: "shut " + name + " down", Do: func(ctx context.Context) error { return l.StopMachine(ctx, name) }}}
	}
	cmd := a.machineCommandFor(v)
	cmd.Flags().BoolVar(&power, "power", false, "cut the power instead: every process ends at once")
	return cmd
}

func (a *app) labReboot() *cobra.Command {
	v := &machineVerb{use: "reboot", short: "Shut a machine down cleanly and switch it on again", wait: true, stops: true}
	v.steps = func(l *lab.Lab, name string) []step.Step {
		stop := step.Step{Name: "shut " + name + " down", Do: func(ctx context.Context) error { return l.StopMachine(ctx, name) }}
		return append([]step.Step{stop}, startSteps(l, name, v.wait)...)
	}
	cmd := a.machineCommandFor(v)
	cmd.Flags().BoolVar(&v.wait, "wait", true, "wait until every component is ready")
	return cmd
}

func (a *app) labAddress() *cobra.Command {
	dryRun := false
	cmd := &cobra.Command{
		Use:   "address NODE ADDRESS",
		Short: "Give a machine that is off another address for its next start",
		Long: `Does to a machine what a network does that hands out addresses anew, or a move to another rack. The
cluster does not know of it: kuorum node address tells it, once the machine is on again.`,
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: a.completeNodes,
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := a.open()
			if err != nil {
				return err
			}
			name, address := args[0], args[1]
			if _, ok := l.Spec.Node(name); !ok {
				return unknownNode(l, name)
			}
			steps := []step.Step{{Name: "give " + name + " the address " + address, Do: func(ctx context.Context) error {
				return l.SetAddress(ctx, name, address)
			}}}
			if dryRun {
				return a.printSteps(steps)
			}
			return step.Run(cmd.Context(), steps, a.newProgress())
		},
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "print the steps and do nothing")
	return cmd
}

func (a *app) labConsole() *cobra.Command {
	return &cobra.Command{
		Use:   "console NODE [-- COMMAND...]",
		Short: "A shell on a machine, or one command there",
		Example: `  kuorum lab console cp1
  kuorum lab console cp1 -- ip route`,
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: a.completeNodes,
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := a.open()
			if err != nil {
				return err
			}
			argv := args[1:]
			if len(argv) == 0 {
				argv = []string{"/bin/sh", "-c", `PS1='\u@\h:\w# ' exec "$(command -v bash || echo sh)" --norc 2>/dev/null || exec sh`}
			}
			return a.inMachine(cmd.Context(), l, args[0], argv)
		},
	}
}

// inMachine runs argv on a machine with our own streams.
func (a *app) inMachine(ctx context.Context, l *lab.Lab, name string, argv []string) error {
	status, err := l.Status(ctx)
	if err != nil {
		return err
	}
	m, err := status.Machine(name)
	if err != nil {
		return err
	}
	// ^C is for the program inside, which shares our terminal.
	own := context.WithoutCancel(ctx)
	signal.Ignore(os.Interrupt)
	defer signal.Reset(os.Interrupt)
	return m.Console(own, argv, []string{"TERM=" + a.process.Env("TERM"), "LANG=" + a.process.Env("LANG"), "KUBECONFIG=/etc/kubernetes/admin.conf"}, lab.Streams{In: a.process.In, Out: a.process.Out, Err: a.process.Err})
}

// logger writes one line of text an event, for files that people read.
func (a *app) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(a.process.Err, nil))
}

var errNoMachine = errors.New("no machine of the lab is on")

// withPods are the machines that run containerd.
func withPods(s lab.Status) []lab.MachineStatus {
	return slices.DeleteFunc(slices.Clone(s.Machines), func(m lab.MachineStatus) bool { return !m.Role.RunsPods() })
}

// someMachine is the first machine for pods that is on.
func someMachine(s lab.Status) (lab.MachineStatus, error) {
	for _, m := range withPods(s) {
		if m.Power == lab.PowerOn {
			return m, nil
		}
	}
	return lab.MachineStatus{}, &cluster.Problem{What: "cannot reach lab " + s.Name, Err: errNoMachine, Do: "kuorum up " + s.Name, Exit: cluster.ExitNoQuorum}
}
