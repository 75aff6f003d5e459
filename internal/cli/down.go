package cli

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"kuorum/internal/lab"
	"kuorum/internal/step"
)

type downOptions struct {
	name    string
	keep    bool
	dryRun  bool
	timeout time.Duration
}

func (a *app) downCommand() *cobra.Command {
	var o downOptions
	cmd := &cobra.Command{
		Use:   "down [NAME]",
		Short: "Remove a cluster from this machine, or only stop it",
		Long: `Ends a lab and removes every trace of it: processes, namespaces, mounts, control
groups, files and its entries in your kubeconfig. With --keep its machines are
shut down cleanly and their disks stay; "kuorum up" starts them again.`,
		Example: `  kuorum down             remove it
  kuorum down --keep      stop it; up brings it back with its data`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: a.completeLabs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				o.name = args[0]
			}
			return a.down(cmd.Context(), o)
		},
	}
	cmd.Flags().BoolVar(&o.keep, "keep", false, "stop the machines and keep their disks")
	cmd.Flags().BoolVar(&o.dryRun, "dry-run", false, "print the steps and do nothing")
	cmd.Flags().DurationVar(&o.timeout, "timeout", 3*time.Minute, "give up after this long")
	return cmd
}

func (a *app) down(ctx context.Context, o downOptions) error {
	store, err := a.store()
	if err != nil {
		return err
	}
	name := o.name
	if name == "" {
		if name, err = a.choose(store); err != nil {
			return err
		}
	}
	names, err := store.Names()
	if err != nil {
		return err
	}
	if !slices.Contains(names, name) { // an interrupted lab is one as well
		_, err := a.openNamed(store, name)
		return err
	}
	if err := lab.RequireRoot("kuorum down " + name); err != nil {
		return err
	}
	d := &lab.Down{Store: store, Name: name, Keep: o.keep}
	if d.KubeconfigFile, err = a.kubeconfig(); err != nil {
		return err
	}
	if o.dryRun {
		return a.printSteps(d.Steps())
	}
	limited, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	return errors.Join(step.Run(limited, d.Steps(), a.newProgress()), d.Close())
}
