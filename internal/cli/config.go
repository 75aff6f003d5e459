package cli

import (
	"github.com/spf13/cobra"

	"kuorum/internal/cluster"
)

func (a *app) configCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config",
		Short: "cluster.yaml: check it, and see every default",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	file, output := "", "yaml"
	show := &cobra.Command{
		Use:   "show [NAME]",
		Short: "Print a cluster.yaml with all defaults filled in",
		Example: `  kuorum config show                    the chosen lab's, as its host has it, or a new one's
  kuorum config show -f cluster.yaml    check a file and see what it means`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: a.completeLabs,
		RunE: func(_ *cobra.Command, args []string) error {
			return a.showConfig(file, args, output)
		},
	}
	show.Flags().StringVarP(&file, "file", "f", "", "cluster.yaml to check (- is stdin)")
	show.Flags().StringVarP(&output, "output", "o", "yaml", "yaml or json")
	cmd.AddCommand(show)
	return cmd
}

func (a *app) showConfig(file string, args []string, output string) error {
	spec, err := a.configOf(file, args)
	if err != nil {
		return err
	}
	for _, warning := range spec.Warnings() {
		a.talk("note: %s\n", warning)
	}
	switch output {
	case "yaml":
	case "json":
		return a.printData(spec, output)
	default:
		return usage("unknown output %q: yaml or json", output)
	}
	data, err := spec.YAML()
	if err != nil {
		return err
	}
	_, err = a.process.Out.Write(data)
	return err
}

func (a *app) configOf(file string, args []string) (*cluster.Spec, error) {
	if file != "" {
		name := ""
		if len(args) == 1 {
			name = args[0]
		}
		return a.readSpec(file, name)
	}
	store, err := a.store()
	if err != nil {
		return nil, err
	}
	names, err := store.Names()
	if err != nil {
		return nil, err
	}
	if len(args) == 1 {
		a.cluster = args[0]
	}
	if len(names) == 0 && a.cluster == "" {
		return cluster.New("kuorum", 3, 0)
	}
	l, err := a.open()
	if err != nil {
		return nil, err
	}
	return l.Spec, nil
}
