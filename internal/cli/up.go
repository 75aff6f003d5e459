package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"kuorum/internal/cluster"
	"kuorum/internal/lab"
	"kuorum/internal/step"
)

type upOptions struct {
	name         string
	file         string
	servers      int
	etcd         int
	workers      int
	timeout      time.Duration
	wait         bool
	dryRun       bool
	noKubeconfig bool
	noSwitch     bool
}

func (a *app) upCommand() *cobra.Command {
	var o upOptions
	cmd := &cobra.Command{
		Use:   "up [NAME]",
		Short: "Make a cluster on this machine, or start it again",
		Long: `Makes a lab - real machines in namespaces, running real Kubernetes - or starts
it again, and waits until every node is Ready and a pod runs. It may be run at
any time: what is there already stays, what was interrupted is completed.`,
		Example: `  kuorum up                          three servers
  kuorum up small --servers 1        one server, in a lab of its own
  kuorum up apart --etcd 3           three servers, and etcd on three machines of its own
  kuorum up -f cluster.yaml          what the file says (see: kuorum config show)`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: a.completeLabs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				o.name = args[0]
			}
			return a.up(cmd, o)
		},
	}
	flags := cmd.Flags()
	flags.IntVar(&o.servers, "servers", 3, "machines that run the control plane and pods, and etcd without --etcd")
	flags.IntVar(&o.etcd, "etcd", 0, "machines that run etcd only, in place of the servers")
	flags.IntVar(&o.workers, "workers", 0, "machines that run pods only")
	flags.StringVarP(&o.file, "file", "f", "", "cluster.yaml to make (- is stdin)")
	flags.DurationVar(&o.timeout, "timeout", 5*time.Minute, "give up after this long")
	flags.BoolVar(&o.wait, "wait", true, "wait until nodes are Ready and a pod runs")
	flags.BoolVar(&o.dryRun, "dry-run", false, "print the steps and do nothing")
	flags.BoolVar(&o.noKubeconfig, "no-kubeconfig", false, "leave your kubeconfig alone")
	flags.BoolVar(&o.noSwitch, "no-switch", false, "do not make it the current context")
	return cmd
}

func (a *app) up(cmd *cobra.Command, o upOptions) error {
	store, err := a.store()
	if err != nil {
		return err
	}
	spec, err := a.wanted(store, cmd, o)
	if err != nil {
		return err
	}
	for _, warning := range spec.Warnings() {
		a.talk("note: %s\n", warning)
	}
	spec, external, err := takeEtcdFiles(store, o.file, spec, time.Now())
	if err != nil {
		return err
	}
	b, err := a.bundle()
	if err != nil {
		return err
	}
	u := &lab.Up{Store: store, Spec: spec, External: external, Bundle: b, Wait: o.wait}
	if !o.noKubeconfig {
		if u.KubeconfigFile, err = a.kubeconfig(); err != nil {
			return err
		}
		u.KubeconfigFile.Switch = !o.noSwitch
	}
	if o.dryRun {
		return a.printSteps(u.Steps())
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), o.timeout)
	defer cancel()
	begin := time.Now()
	err = errors.Join(step.Run(ctx, u.Steps(), a.newProgress()), u.Close())
	if err != nil {
		return err
	}
	a.welcome(u, time.Since(begin))
	return nil
}

// wanted is the Spec to bring up: the file's, that of the flags, or - with
// neither - that of the lab of this name as it is.
func (a *app) wanted(store lab.Store, cmd *cobra.Command, o upOptions) (*cluster.Spec, error) {
	counted := cmd.Flags().Changed("servers") || cmd.Flags().Changed("etcd") || cmd.Flags().Changed("workers")
	if o.file != "" && counted {
		return nil, usage("the file says how many machines there are: leave out --servers, --etcd and --workers")
	}
	if o.file != "" {
		return a.readSpec(o.file, o.name)
	}
	name := o.name
	if name == "" {
		name = a.cluster
	}
	if name == "" {
		name = "kuorum"
	}
	if !counted {
		if l, err := store.Open(name); err == nil {
			return l.Spec, nil
		}
	}
	if o.servers == 0 {
		return nil, usage("a cluster needs at least one server: --servers 1")
	}
	return cluster.NewApart(name, o.etcd, o.servers, o.workers)
}

func (a *app) readSpec(file, name string) (*cluster.Spec, error) {
	data, err := a.readFile(file)
	if err != nil {
		return nil, &cluster.Problem{What: "cannot read " + file, Err: err, Exit: cluster.ExitUsage}
	}
	spec, err := cluster.Parse(file, data)
	if err != nil {
		return nil, err
	}
	if name != "" && name != spec.Metadata.Name {
		return nil, usage("%s describes cluster %q, not %q", file, spec.Metadata.Name, name)
	}
	return spec, nil
}

func (a *app) readFile(file string) ([]byte, error) {
	if file == "-" {
		return io.ReadAll(a.process.In)
	}
	return os.ReadFile(file)
}

func (a *app) printSteps(steps []step.Step) error {
	for i, s := range steps {
		if _, err := fmt.Fprintf(a.process.Out, "%d. %s\n", i+1, s.Name); err != nil {
			return err
		}
	}
	return nil
}

// welcome says what there is now and what to try.
func (a *app) welcome(u *lab.Up, took time.Duration) {
	l := u.Lab()
	members := l.Spec.EtcdNodes()
	voters := len(members)
	sum := fmt.Sprintf("%s, quorum %d, may lose %d", count(voters, "voter"), cluster.Quorum(voters), cluster.MayLose(voters))
	if l.Spec.EtcdExternal() {
		sum = "etcd is run by somebody else, kuorum status tells how it is"
	}
	a.talk("\ncluster %s is up after %.1f s: %s\n", l.Name, took.Seconds(), sum)
	a.talk("API at %s", l.Server())
	if u.KubeconfigFile.Path != "" && u.KubeconfigFile.Switch {
		a.talk(", kubectl's context is now %s", l.Context())
	}
	a.talk("\n\ntry next:\n  kuorum kubectl get nodes -o wide\n")
	if cluster.MayLose(voters) > 0 {
		last := members[voters-1].Name
		a.talk("  kuorum lab stop --power %s      cut a machine's power, then look again\n", last)
	}
	a.talk("  kuorum status\n  kuorum down %s\n", l.Name)
}

func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// talk writes for people, on stderr.
func (a *app) talk(format string, args ...any) {
	if !a.quiet {
		fmt.Fprintf(a.process.Err, format, args...)
	}
}
