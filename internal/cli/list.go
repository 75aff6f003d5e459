package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"kuorum/internal/advise"
	"kuorum/internal/cluster"
	"kuorum/internal/lab"
)

// Health words of a lab.
const (
	healthOK       = "ok"
	healthDegraded = "degraded"
	healthNoQuorum = "no-quorum"
	healthStopped  = "stopped"
	healthBroken   = "incomplete"
)

type labSummary struct {
	Name      string              `json:"name"`
	Health    string              `json:"health"`
	Servers   int                 `json:"servers"`
	Etcd      int                 `json:"etcdNodes,omitempty"` // machines of etcd's own
	Balancers int                 `json:"balancers,omitempty"` // machines with HAProxy and keepalived
	Workers   int                 `json:"workers"`
	API       string              `json:"api,omitempty"`
	Machines  []lab.MachineStatus `json:"machines,omitempty"`
	Error     string              `json:"error,omitempty"`
}

func (a *app) listCommand() *cobra.Command {
	output := "table"
	cmd := &cobra.Command{
		Use:   "list [NAME]",
		Short: "Labs of this machine, and how they are; with a name, its machines",
		Example: `  kuorum list
  kuorum list kuorum          every machine and what it waits for
  kuorum list -o json`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: a.completeLabs,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.list(cmd.Context(), args, output)
		},
	}
	outputFlag(cmd, &output)
	return cmd
}

func outputFlag(cmd *cobra.Command, output *string) {
	cmd.Flags().StringVarP(output, "output", "o", "table", "table, json or yaml")
	err := cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json", "yaml"}, cobra.ShellCompDirectiveNoFileComp))
	if err != nil {
		panic(err) // the flag was defined above
	}
}

func (a *app) list(ctx context.Context, args []string, output string) error {
	store, err := a.store()
	if err != nil {
		return err
	}
	names := args
	if len(args) == 0 {
		if names, err = store.Names(); err != nil {
			return err
		}
	} else if _, err := a.openNamed(store, args[0]); err != nil {
		return err
	}
	summaries := []labSummary{}
	for _, name := range names {
		summaries = append(summaries, summarize(ctx, store, name))
	}
	if output != "table" {
		return a.printData(map[string]any{"apiVersion": cluster.APIVersion, "kind": "LabList", "items": summaries}, output)
	}
	if len(args) == 1 {
		return a.printMachines(summaries[0])
	}
	return a.printLabs(summaries)
}

func summarize(ctx context.Context, store lab.Store, name string) labSummary {
	s := labSummary{Name: name, Health: healthBroken}
	l, err := store.Open(name)
	if err != nil {
		s.Error = err.Error()
		return s
	}
	s.Servers, s.Workers, s.API = len(l.Spec.Servers()), len(l.Spec.Workers()), l.Server()
	s.Balancers = len(l.Spec.Balancers())
	s.Etcd = len(l.Spec.Spec.Nodes) - s.Servers - s.Workers - s.Balancers
	if _, ok := l.Running(); !ok {
		s.Health = healthStopped
		return s
	}
	limited, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	status, err := l.Status(limited)
	if err != nil {
		s.Health, s.Error = healthNoQuorum, err.Error()
		return s
	}
	s.Machines, s.Health = status.Machines, health(advise.Review(l.Nodes(), status.Reports(), time.Now()).State)
	return s
}

// health is the word for a state, as scripts know it.
func health(state cluster.State) string {
	switch state {
	case cluster.StateHealthy:
		return healthOK
	case cluster.StateDegraded:
		return healthDegraded
	default:
		return healthNoQuorum
	}
}

func (a *app) printLabs(labs []labSummary) error {
	if len(labs) == 0 {
		a.talk("there is no lab yet: kuorum up\n")
		return nil
	}
	return a.table(func(w io.Writer) {
		fmt.Fprintln(w, "NAME\tHEALTH\tSERVERS\tWORKERS\tAPI")
		for _, l := range labs {
			fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%s\n", l.Name, l.Health, l.Servers, l.Workers, l.API)
		}
	})
}

func (a *app) printMachines(l labSummary) error {
	if l.Error != "" {
		return errors.New(l.Error)
	}
	if l.Machines == nil {
		a.talk("lab %s is stopped: kuorum up %s\n", l.Name, l.Name)
		return nil
	}
	return a.table(func(w io.Writer) {
		fmt.Fprintln(w, "NODE\tROLE\tADDRESS\tPOWER\tREADY\tRESTARTS\tWAITS FOR")
		for _, m := range l.Machines {
			ready, restarts, waits := "no", 0, m.Error
			if !m.Node {
				waits = "it is no node: kuorum join"
			}
			if m.Agent != nil {
				ready, restarts, waits = agentWords(*m.Agent)
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%d\t%s\n", m.Name, m.Role, m.Address, m.Power, ready, restarts, waits)
		}
	})
}

func agentWords(s cluster.NodeStatus) (ready string, restarts int, waits string) {
	var names []string
	for _, c := range s.Components {
		restarts += c.Restarts
		if c.Phase != "ready" {
			names = append(names, c.Name)
		}
	}
	ready = "no"
	if s.Ready {
		ready = "yes"
	}
	return ready, restarts, strings.Join(names, ", ")
}

func (a *app) table(fill func(io.Writer)) error {
	w := tabwriter.NewWriter(a.process.Out, 0, 8, 3, ' ', 0)
	fill(w)
	return w.Flush()
}

// printData prints a documented object as JSON or YAML.
func (a *app) printData(value any, output string) error {
	data, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return fmt.Errorf("cannot print: %w", err)
	}
	switch output {
	case "json":
		_, err = fmt.Fprintln(a.process.Out, string(data))
	case "yaml":
		if data, err = yaml.JSONToYAML(data); err == nil {
			_, err = a.process.Out.Write(data)
		}
	default:
		return usage("unknown output %q: table, json or yaml", output)
	}
	return err
}
