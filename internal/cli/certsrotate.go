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
	"kuorum/internal/keyring"
	"kuorum/internal/membership"
	"kuorum/internal/step"
)

const (
	// nodePatience is how long a node may take to be well again, with programs
	// that have all been started anew.
	nodePatience = 3 * time.Minute
	// orderPatience bounds the writing of a node's files.
	orderPatience = 30 * time.Second
)

// caRotation replaces the authorities. It keeps nothing: how far it is, it reads
// from the nodes before each of its steps, so that another run goes on.
type caRotation struct {
	app     *app
	look    func(context.Context) (target, []cluster.NodeReport, error)
	sync    func(context.Context) error // brings this host's own copies up to date; nil where there are none
	until   string
	timeout time.Duration
	dryRun  bool
	report  *progress
}

func (a *app) certsRotate() *cobra.Command {
	c := caRotation{app: a}
	cmd := &cobra.Command{
		Use:   "rotate-ca",
		Short: "Replace the cluster's authorities while it runs",
		Long: `Makes new authorities in place of all four (Kubernetes, agents, etcd, front proxy), in three phases, each on all
nodes before the next begins:

  trust    the new ones are trusted beside the old ones
  sign     the new ones sign, and all certificates are made anew
  forget   the old ones count no more

Programs that do not read authorities again are restarted, on one node at a time, and the next one waits until all is
well again. Pods are not restarted. What was interrupted goes on when it is run again, where it was.

Pods that speak to the API and read its authority only when they start must be restarted between trust and sign: stop
there with --until trust, and once kube-root-ca.crt has two authorities, restart them, then run it again. Kubeconfigs
that people copied hold the old authorities: fetch them anew before the old ones are forgotten (--until sign). Join
tokens end, since they pin the old authority. The key of service account tokens, and that of secrets, stay.

It is refused unless all nodes are well, none is moving or has a restart due, and etcd can spare a member: two cannot, a
single one may. With one server the API is away for some seconds, three times; with several and one etcd node, twice.`,
		Example: `  kuorum certs rotate-ca --dry-run
  kuorum certs rotate-ca
  kuorum certs rotate-ca --until sign    the old ones are still trusted; run it again to forget them`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return c.run(cmd.Context()) },
	}
	cmd.Flags().StringVar(&c.until, "until", string(keyring.PhaseForget), "stop after this phase: trust, sign or forget")
	cmd.Flags().DurationVar(&c.timeout, "timeout", 30*time.Minute, "give up after this long")
	cmd.Flags().BoolVar(&c.dryRun, "dry-run", false, "print the steps and do nothing")
	err := cmd.RegisterFlagCompletionFunc("until", cobra.FixedCompletions([]string{"trust", "sign", "forget"}, cobra.ShellCompDirectiveNoFileComp))
	if err != nil {
		panic(err) // the flag was defined above
	}
	return cmd
}

func (c *caRotation) run(ctx context.Context) error {
	if !slices.Contains(keyring.Phases(), keyring.Phase(c.until)) {
		return usage("unknown phase %q: trust, sign or forget", c.until)
	}
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	if err := c.connect(); err != nil {
		return err
	}
	c.report = c.app.newProgress()
	steps, err := c.steps(ctx)
	if err != nil {
		return err
	}
	if c.dryRun {
		return c.app.printSteps(steps)
	}
	if err := step.Run(ctx, steps, c.report); err != nil {
		return err
	}
	if phase := keyring.Phase(c.until); phase != keyring.PhaseForget {
		c.app.talk("the old authorities are still trusted; to go on: kuorum certs rotate-ca\n")
	}
	return nil
}

// connect finds the cluster. It is looked at with new eyes each time: its nodes
// change, and so do the certificates with which they are asked.
func (c *caRotation) connect() error {
	c.look = func(ctx context.Context) (target, []cluster.NodeReport, error) {
		t, err := c.app.target()
		if err != nil {
			return target{}, nil, err
		}
		reports, err := t.reports(ctx)
		return t, reports, err
	}
	if onMachine() {
		return nil
	}
	l, err := c.app.open()
	if err != nil {
		return err
	}
	c.sync = func(context.Context) error {
		if err := l.FollowAuthorities(time.Now()); err != nil {
			return err
		}
		k, err := c.app.kubeconfig()
		if err != nil {
			return err
		}
		if has, err := k.Has(l.Context()); err != nil || !has {
			return err // it was made with --no-kubeconfig
		}
		k.Switch = false
		return k.Merge(l.Kubeconfig(), l.Context())
	}
	return nil
}

// steps are what is left to do, as the nodes are now.
func (c *caRotation) steps(ctx context.Context) ([]step.Step, error) {
	t, reports, err := c.look(ctx)
	if err != nil {
		return nil, err
	}
	if err := allWell(t.spec, reports, ""); err != nil {
		return nil, err
	}
	r, err := keyring.Survey(t.spec.Spec.Nodes, reports)
	if err != nil {
		return nil, err
	}
	order := rollingOrder(t.spec, advise.Review(t.spec, reports, time.Now()).Leader)
	steps := []step.Step{{Name: "check that all nodes are well, and that etcd can spare one", Do: c.check}}
	steps = append(steps, c.syncStep("bring this host's copies up to date")...)
	next, waiting := r.Next(order)
	switch {
	case r.New == nil:
		maker := t.spec.Servers()[0]
		steps = append(steps, step.Step{Name: "make new authorities on " + maker.Name, Do: func(ctx context.Context) error { return c.begin(ctx, maker) }})
		next, waiting = keyring.PhaseTrust, order
	case next == "":
		return steps, nil
	}
	phases := keyring.Phases()
	last := slices.Index(phases, keyring.Phase(c.until))
	for at := slices.Index(phases, next); at <= last; at++ {
		steps = append(steps, c.phaseSteps(phases[at], waiting)...)
		waiting = order
	}
	return steps, nil
}

func (c *caRotation) phaseSteps(phase keyring.Phase, nodes []cluster.Node) []step.Step {
	var steps []step.Step
	for _, n := range nodes {
		steps = append(steps, step.Step{Name: phaseText(phase, n.Name), Do: func(ctx context.Context) error { return c.move(ctx, phase, n) }})
	}
	steps = append(steps, step.Step{
		Name: fmt.Sprintf("see that no node is left before phase %s", phase),
		Do:   func(ctx context.Context) error { return c.complete(ctx, phase) },
	})
	if phase == keyring.PhaseSign {
		steps = append(steps, step.Step{Name: "revoke join tokens, which pin the old authority", Do: c.revokeTokens})
	}
	return append(steps, c.syncStep(fmt.Sprintf("bring this host's copies into phase %s", phase))...)
}

func phaseText(phase keyring.Phase, node string) string {
	switch phase {
	case keyring.PhaseTrust:
		return fmt.Sprintf("trust: %s trusts the new authorities too", node)
	case keyring.PhaseSign:
		return fmt.Sprintf("sign: %s gets certificates of the new authorities", node)
	default:
		return fmt.Sprintf("forget: %s trusts the new authorities only", node)
	}
}

func (c *caRotation) syncStep(name string) []step.Step {
	if c.sync == nil {
		return nil
	}
	return []step.Step{{Name: name, Do: c.sync}}
}

func (c *caRotation) check(ctx context.Context) error {
	t, reports, err := c.look(ctx)
	if err != nil {
		return err
	}
	// "" is no member's: where somebody else runs etcd, no node has one.
	for _, n := range append([]cluster.Node{{}}, t.spec.EtcdNodes()...) {
		if err := allWell(t.spec, reports, n.Name); err != nil {
			return err
		}
	}
	if len(t.spec.Servers()) == 1 {
		c.report.note("there is one server only: the API is away for some seconds in each phase")
	} else if len(t.spec.EtcdNodes()) == 1 {
		c.report.note("there is one etcd node only: the API is away for some seconds in two of the phases")
	}
	return nil
}

// begin has a server make the new authorities. Their keys stay among servers.
func (c *caRotation) begin(ctx context.Context, n cluster.Node) error {
	t, _, err := c.look(ctx)
	if err != nil {
		return err
	}
	return command(ctx, t, n, keyring.BeginPath, struct{}{})
}

// command posts to a node's agent.
func command(ctx context.Context, t target, n cluster.Node, path string, in any) error {
	agents, err := t.agents()
	if err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, orderPatience)
	defer cancel()
	err = agents.Call(limited, n.Address, path, in, nil)
	if _, refused := errors.AsType[*cluster.Problem](err); err == nil || refused {
		return err
	}
	return &cluster.Problem{
		What: "the agent of " + n.Name + " does not do it", Why: agent.Explain(err),
		Do: "kuorum status, then kuorum certs rotate-ca again: it goes on where it is", Exit: cluster.ExitNoQuorum,
	}
}

// move brings a node into a phase, unless it is there, and waits until all is
// well again.
func (c *caRotation) move(ctx context.Context, phase keyring.Phase, n cluster.Node) error {
	t, reports, err := c.look(ctx)
	if err != nil {
		return err
	}
	r, err := keyring.Survey(t.spec.Spec.Nodes, reports)
	if err != nil {
		return err
	}
	present, waiting := r.Next(t.spec.Spec.Nodes)
	if present != phase || !slices.ContainsFunc(waiting, func(other cluster.Node) bool { return other.Name == n.Name }) {
		return nil // it is further, or no node any more
	}
	if err := allWell(t.spec, reports, n.Name); err != nil {
		return err
	}
	from, _ := t.spec.Node(r.From)
	before := startedAt(reports, n.Name)
	if err := command(ctx, t, n, keyring.RotationPath, keyring.Order{Phase: phase, New: r.New, From: from.Address}); err != nil {
		return err
	}
	return c.await(ctx, n.Name, before)
}

func startedAt(reports []cluster.NodeReport, name string) time.Time {
	for _, r := range reports {
		if r.Name == name && r.Status != nil {
			return r.Status.Started
		}
	}
	return time.Time{}
}

// await waits until another agent of the node than the one that started at
// before has replaced what must be, and all nodes are well.
func (c *caRotation) await(ctx context.Context, name string, before time.Time) error {
	limited, cancel := context.WithTimeout(ctx, nodePatience)
	defer cancel()
	tick := time.NewTicker(tryEvery)
	defer tick.Stop()
	for {
		t, reports, err := c.look(limited)
		if err == nil {
			err = allWell(t.spec, reports, "")
		}
		if err == nil && !startedAt(reports, name).Equal(before) {
			return nil
		}
		select {
		case <-limited.Done():
			if !errors.Is(context.Cause(limited), context.DeadlineExceeded) {
				return context.Cause(limited)
			}
			return &cluster.Problem{
				What: name + " is not well again in time", Err: err,
				Do: "kuorum status, then kuorum certs rotate-ca again: it goes on where it is", Exit: cluster.ExitTimeout,
			}
		case <-tick.C:
		}
	}
}

// complete brings nodes into the phase that have joined since the steps were
// listed, and any that must first catch up.
func (c *caRotation) complete(ctx context.Context, phase keyring.Phase) error {
	phases := keyring.Phases()
	for last := ""; ; {
		t, reports, err := c.look(ctx)
		if err != nil {
			return err
		}
		r, err := keyring.Survey(t.spec.Spec.Nodes, reports)
		if err != nil {
			return err
		}
		next, waiting := r.Next(rollingOrder(t.spec, ""))
		if next == "" || slices.Index(phases, next) > slices.Index(phases, phase) {
			return nil
		}
		now := string(next) + " " + waiting[0].Name
		if now == last {
			return &cluster.Problem{
				What: fmt.Sprintf("%s does not get into phase %s", waiting[0].Name, next), Why: "it has been told, and has still other files",
				Do: "kuorum certs list " + waiting[0].Name + ", kuorum logs " + waiting[0].Name + " agent",
			}
		}
		last = now
		if err := c.move(ctx, next, waiting[0]); err != nil {
			return err
		}
	}
}

// revokeTokens ends join tokens that nobody has used: they lead to an authority
// that signs no more.
func (c *caRotation) revokeTokens(ctx context.Context) error {
	t, _, err := c.look(ctx)
	if err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, callPatience)
	defer cancel()
	var tokens []membership.Token
	if err := t.call(limited, membership.TokensPath, nil, &tokens, ""); err != nil {
		return err
	}
	for _, token := range tokens {
		if token.UsedBy != "" || !time.Now().Before(token.Expires) {
			continue
		}
		if err := t.call(limited, membership.RevokePath, membership.TokenID{ID: token.ID}, nil, ""); err != nil {
			return err
		}
		c.report.note("join token %s counts no more: kuorum token create", token.ID)
	}
	return nil
}
