package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"kuorum/internal/cluster"
	"kuorum/internal/lab"
)

func (a *app) imageCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "image",
		Short: "Container images on the machines",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(&cobra.Command{
		Use:   "import FILE...",
		Short: "Give image archives (OCI or docker, plain or gzip) to every machine",
		Example: `  docker save -o app.tar app:1 && kuorum image import app.tar
  kubectl create deployment app --image app:1`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.importImages(cmd.Context(), args) },
	})
	return cmd
}

// importImages checks every archive before any machine is given one.
func (a *app) importImages(ctx context.Context, files []string) error {
	l, err := a.open()
	if err != nil {
		return err
	}
	for _, file := range files {
		if err := lab.CheckImage(file); err != nil {
			return err
		}
	}
	status, err := l.Status(ctx)
	if err != nil {
		return err
	}
	for _, file := range files {
		if err := a.importImage(ctx, l, status, file); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) importImage(ctx context.Context, l *lab.Lab, status lab.Status, file string) error {
	machines := withPods(status)
	said := make([]string, len(machines))
	group, inner := errgroup.WithContext(ctx)
	for i, m := range machines {
		if m.Power != lab.PowerOn {
			said[i] = "off: not imported there"
			continue
		}
		group.Go(func() error {
			names, err := l.ImportImage(inner, m, file)
			said[i] = strings.Join(names, " ")
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return &cluster.Problem{What: "cannot give " + file + " to every machine", Err: err, Do: "kuorum image import " + file}
	}
	for i, m := range machines {
		a.talk("%s: %s\n", m.Name, said[i])
	}
	_, err := fmt.Fprintln(a.process.Out, file)
	return err
}
