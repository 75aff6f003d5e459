package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"kuorum/internal/advise"
	"kuorum/internal/agent"
	"kuorum/internal/cluster"
	"kuorum/internal/lease"
	"kuorum/internal/step"
)

// maxThirds is how often a lead is handed on again that a third server took.
const maxThirds = 3

func (a *app) leaderMove() *cobra.Command {
	w := &etcdWork{app: a, ask: "move its lead"}
	words := []string{leadEtcd, leadWord(cluster.SchedulerName), leadWord(cluster.ControllerManagerName), lease.VIP}
	cmd := &cobra.Command{
		Use:   "move " + strings.Join(words, "|") + " [NODE]",
		Short: "Hand a lead over to another node that is ready",
		Long: `Etcd's leader hands over to another voter, in milliseconds. Of the other two, the program that is at work ends and so gives
its lease up; the one on NODE starts again, which makes it look at the lease at once, and is at work within about a
second; the first waits for that, up to 5 s. Should a third server be quicker, the lead is handed on from there. The
virtual IP goes over within its interval; connections to it are made again.

It is refused (exit code 5) for a node that is not ready. Nothing is lost by it, also if it fails: then whoever led leads
again, or another does.`,
		Example: `  kuorum leader move etcd cp2
  kuorum leader move controller-manager cp3 --dry-run
  kuorum leader move scheduler`,
		Args: cobra.RangeArgs(1, 2),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 0 {
				return words, cobra.ShellCompDirectiveNoFileComp
			}
			return a.completeNodes(cmd, args[1:], prefix)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return w.moveLead(cmd.Context(), args[0], slices.Concat(args[1:], []string{""})[0])
		},
	}
	w.bind(cmd, time.Minute)
	return cmd
}

// moveLead hands over what is led; an empty node means any that is ready.
func (w *etcdWork) moveLead(ctx context.Context, what, node string) error {
	switch program := kubePrefix + strings.TrimPrefix(what, kubePrefix); {
	case what == leadEtcd:
		return w.run(ctx, func(ctx context.Context) error { return w.moveEtcd(ctx, node) })
	case what == lease.VIP:
		return w.moveVIP(ctx, node)
	case program == cluster.SchedulerName, program == cluster.ControllerManagerName:
		return w.moveProgram(ctx, lease.Order{Program: program, To: node})
	}
	return &cluster.Problem{
		What: fmt.Sprintf("nothing called %q is led", what), Why: "it is etcd, scheduler, controller-manager or vip",
		Do: "kuorum leader move --help", Exit: cluster.ExitUsage,
	}
}

func (w *etcdWork) moveEtcd(ctx context.Context, name string) error {
	now, err := w.review(ctx)
	if err != nil {
		return err
	}
	leader, heir, err := etcdHeir(now, name)
	if err != nil {
		return err
	}
	if heir.ID == leader.ID {
		w.app.talk("%s leads etcd already\n", leader.Label)
		return nil
	}
	return w.steps(ctx, []step.Step{
		{Name: "hand the lead of etcd from " + leader.Label + " to " + heir.Label, Do: func(ctx context.Context) error {
			return w.client.MoveLeader(ctx, heir.ID)
		}},
		{Name: "wait until " + heir.Label + " leads", Do: func(ctx context.Context) error {
			return until(ctx, heir.Label+" does not lead", func() (string, error) {
				now, err := w.review(ctx)
				if err != nil || now.Leader == heir.Label {
					return "", err
				}
				return leaderText(lead{Leader: now.Leader}) + " leads", nil
			})
		}},
	}, w.app.newProgress())
}

// etcdHeir is who leads etcd, and who is to: the member of that name, or without a
// name the first that can. Only a voter that follows can.
func etcdHeir(e advise.Etcd, name string) (leader, heir advise.Member, err error) {
	if err := known(e); err != nil {
		return leader, heir, err
	}
	i := slices.IndexFunc(e.Members, func(m advise.Member) bool { return m.State == advise.MemberLeader })
	if i < 0 {
		return leader, heir, &cluster.Problem{What: "etcd has no leader that could hand over", Do: "kuorum etcd status", Exit: cluster.ExitNoQuorum}
	}
	leader = e.Members[i]
	if name == "" {
		heir, ok := heirOf(e, leader)
		if !ok {
			err = &cluster.Problem{What: "no other member can lead etcd", Why: "it takes a voter that follows", Do: "kuorum etcd status", Exit: cluster.ExitRefused}
		}
		return leader, heir, err
	}
	if heir, err = chooseMember(e, name); err != nil {
		return leader, heir, err
	}
	if heir.ID != leader.ID && heir.State != advise.MemberFollower {
		why := heir.Why
		if why == "" {
			why = "its state is: " + heir.State
		}
		err = &cluster.Problem{What: heir.Label + " cannot lead etcd", Why: why, Do: "kuorum etcd status", Exit: cluster.ExitRefused}
	}
	return leader, heir, err
}

// moveProgram hands over the lead of a program whose lease the servers' agents look
// after.
func (w *etcdWork) moveProgram(ctx context.Context, o lease.Order) error {
	ctx, cancel := context.WithTimeout(ctx, w.timeout)
	defer cancel()
	var err error
	if w.target, err = w.app.target(); err != nil {
		return err
	}
	s, err := answers(ctx, w.target)
	if err != nil {
		return err
	}
	leader := leaseLead(s, o.Program).Leader
	if leader == "" {
		return &cluster.Problem{What: "nobody leads " + o.Program + ", so nobody can hand over", Do: "kuorum status", Exit: cluster.ExitRefused}
	}
	heir, err := lease.Heir(w.target.spec, s.Nodes, o, leader)
	if err != nil {
		return err
	}
	if heir.Name == leader {
		w.app.talk("%s leads %s already\n", leader, o.Program)
		return nil
	}
	o.To = heir.Name
	return w.steps(ctx, w.programSteps(o, leader), w.app.newProgress())
}

func (w *etcdWork) programSteps(o lease.Order, leader string) []step.Step {
	return []step.Step{
		{Name: "check that " + o.To + " is ready", Do: func(ctx context.Context) error {
			s, err := answers(ctx, w.target)
			if err == nil {
				_, err = lease.Heir(w.target.spec, s.Nodes, o, leader)
			}
			return err
		}},
		{
			Name: fmt.Sprintf("end %s of %s, start that of %s again, and wait until it leads", o.Program, leader, o.To),
			Do:   func(ctx context.Context) error { return w.handOn(ctx, o, leader) },
		},
		{Name: "wait until both are ready again", Do: func(ctx context.Context) error {
			return w.awaitProgram(ctx, o.Program, leader, o.To)
		}},
	}
}

// awaitProgram waits until a program is ready on all those nodes.
func (w *etcdWork) awaitProgram(ctx context.Context, program string, nodes ...string) error {
	return until(ctx, program+" is not ready again", func() (string, error) {
		reports, err := w.target.reports(ctx)
		if err != nil {
			return "", err
		}
		return unreadyOf(reports, program, nodes...), nil
	})
}

// handOn has the leader's agent hand over, and that of a third that was quicker.
func (w *etcdWork) handOn(ctx context.Context, o lease.Order, leader string) error {
	for range maxThirds {
		node, ok := w.target.spec.Node(leader)
		if !ok {
			return &cluster.Problem{
				What: "cannot move the lead of " + o.Program, Why: fmt.Sprintf("its holder, %q, is no node of cluster.yaml", leader),
				Do: "kuorum leader", Exit: cluster.ExitRefused,
			}
		}
		moved, err := w.order(ctx, node, o)
		if err != nil {
			return err
		}
		if moved.Leader == o.To {
			return nil
		}
		if leader = moved.Leader; leader == "" {
			break
		}
		if err := w.awaitProgram(ctx, o.Program, o.To); err != nil { // it was started again, in vain
			return err
		}
	}
	return &cluster.Problem{
		What: fmt.Sprintf("%s does not lead %s: others were quicker", o.To, o.Program),
		Why:  leaderText(lead{Leader: leader}) + " leads now", Do: "try again", Exit: cluster.ExitTimeout,
	}
}

// order asks the agent of the node that leads. What it refuses is its own
// *cluster.Problem.
func (w *etcdWork) order(ctx context.Context, holder cluster.Node, o lease.Order) (moved lease.Moved, err error) {
	agents, err := w.target.agents()
	if err != nil {
		return moved, err
	}
	err = agents.Call(ctx, holder.Address, lease.MovePath, o, &moved)
	if _, refused := errors.AsType[*cluster.Problem](err); err == nil || refused {
		return moved, err
	}
	return moved, &cluster.Problem{
		What: "the agent of " + holder.Name + " does not do it", Why: agent.Explain(err), Do: "kuorum status", Exit: cluster.ExitNoQuorum,
	}
}

// unreadyOf names the nodes whose program is not ready.
func unreadyOf(reports []cluster.NodeReport, program string, nodes ...string) string {
	var waits []string
	for _, r := range reports {
		if !slices.Contains(nodes, r.Name) {
			continue
		}
		if r.Status == nil {
			waits = append(waits, r.Name+" does not answer")
		} else if phase := componentWord(*r.Status, program); phase != "ready" {
			waits = append(waits, fmt.Sprintf("%s of %s is %s", program, r.Name, phase))
		}
	}
	return strings.Join(waits, ", ")
}

// moveVIP hands the virtual IP over; an empty node means any server whose balancer
// reaches the API.
func (w *etcdWork) moveVIP(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, w.timeout)
	defer cancel()
	var err error
	if w.target, err = w.app.target(); err != nil {
		return err
	}
	s, err := answers(ctx, w.target)
	if err != nil {
		return err
	}
	now, there := vipLead(s)
	if !there {
		return &cluster.Problem{What: "this cluster has no virtual IP", Why: "spec.endpoint.type is " + string(w.target.spec.Spec.Endpoint.Type), Exit: cluster.ExitRefused}
	}
	heir, err := vipHeir(w.target.spec, s, name, now.Leader)
	if err != nil {
		return err
	}
	if heir == now.Leader {
		w.app.talk("%s holds the virtual IP already\n", heir)
		return nil
	}
	holder, ok := w.target.spec.Node(now.Leader)
	if !ok {
		return &cluster.Problem{What: "nobody holds the virtual IP, so nobody can hand it over", Do: "kuorum status", Exit: cluster.ExitRefused}
	}
	return w.steps(ctx, []step.Step{{Name: "hand the virtual IP from " + holder.Name + " to " + heir, Do: func(ctx context.Context) error {
		_, err := w.order(ctx, holder, lease.Order{Program: lease.VIP, To: heir})
		return err
	}}}, w.app.newProgress())
}

// vipHeir is the node of that name, or without a name the first that can hold the
// virtual IP and does not.
func vipHeir(spec *cluster.Spec, s cluster.Status, name, holder string) (string, error) {
	var unfit, names []string
	for _, n := range spec.VIPHolders() {
		names = append(names, n.Name)
	}
	for _, n := range s.Nodes {
		why := ""
		switch {
		case !slices.Contains(names, n.Name) || name == "" && n.Name == holder || name != "" && n.Name != name:
			continue
		case n.Name == holder:
		case n.Status == nil || n.Status.VIP == nil || n.Status.VIP.Error != "":
			why = n.Name + " does not answer"
		case n.Status.VIP.Impaired:
			why = "the balancer of " + n.Name + " reaches no API server"
		}
		if why == "" {
			return n.Name, nil
		}
		unfit = append(unfit, why)
	}
	if unfit == nil && name != "" {
		return "", &cluster.Problem{
			What: fmt.Sprintf("%q is no node of cluster %s that holds the virtual IP", name, spec.Metadata.Name),
			Why:  "those that can are " + strings.Join(names, ", "), Exit: cluster.ExitUsage,
		}
	}
	return "", &cluster.Problem{What: "no other node can hold the virtual IP", Why: strings.Join(unfit, "\n"), Do: "kuorum status", Exit: cluster.ExitRefused}
}
