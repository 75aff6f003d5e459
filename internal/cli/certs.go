package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"kuorum/internal/agent"
	"kuorum/internal/cluster"
	"kuorum/internal/keyring"
)

// renewPatience bounds a renewal: a node that is none asks one server after the other.
const renewPatience = 30 * time.Second

func (a *app) certsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "certs",
		Short: "Certificates of the nodes: list, renew, replace the authorities",
		Long: `The nodes renew their certificates by themselves when two thirds of their life are over. What is here shows them,
makes new ones at once, and replaces the authorities that sign them.`,
		Example: `  kuorum certs list                 every certificate of every node
  kuorum certs renew cp1            new ones for a node, now
  kuorum certs rotate-ca --dry-run  what replacing the authorities would do`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.certsList(), a.certsRenew(), a.certsRotate())
	return cmd
}

// certificateRow is a certificate of a node, as -o json prints it.
type certificateRow struct {
	Node string `json:"node"`
	cluster.CertificateStatus
}

// silentRow is a node that does not tell its certificates.
type silentRow struct {
	Node  string `json:"node"`
	Error string `json:"error"`
}

func (a *app) certsList() *cobra.Command {
	output := ""
	cmd := &cobra.Command{
		Use:   "list [NODE]",
		Short: "Every certificate: who signed it, when it ends, when it is renewed",
		Long: `Asks the nodes' agents, and needs no quorum. SIGNED BY is the authority's name and the beginning of its key's; while
the authorities are replaced a node has two of each, of which the first one listed signs.

Exit codes: 0 all nodes have answered, 3 some have not, 4 none has.`,
		Example: `  kuorum certs list
  kuorum certs list cp1 -o json | jq '.items[] | select(.renew) | .until'`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: a.completeNodes,
		RunE: func(cmd *cobra.Command, args []string) error {
			t, err := a.target()
			if err != nil {
				return err
			}
			nodes, err := chooseNodes(t.spec, args)
			if err != nil {
				return err
			}
			reports, err := t.reports(cmd.Context())
			if err != nil {
				return err
			}
			return a.printCertificates(t.spec, nodes, reports, output)
		},
	}
	outputFlag(cmd, &output)
	return cmd
}

// chooseNodes finds the named nodes, in the order of the Spec, or all.
func chooseNodes(spec *cluster.Spec, names []string) ([]cluster.Node, error) {
	var known []string
	for _, n := range spec.Spec.Nodes {
		known = append(known, n.Name)
	}
	for _, name := range names {
		if !slices.Contains(known, name) {
			return nil, &cluster.Problem{
				What: fmt.Sprintf("cluster %s has no node %q", spec.Metadata.Name, name),
				Why:  "its nodes are " + strings.Join(known, ", "), Exit: cluster.ExitUsage,
			}
		}
	}
	return slices.DeleteFunc(slices.Clone(spec.Spec.Nodes), func(n cluster.Node) bool {
		return len(names) > 0 && !slices.Contains(names, n.Name)
	}), nil
}

func (a *app) printCertificates(spec *cluster.Spec, nodes []cluster.Node, reports []cluster.NodeReport, output string) error {
	rows, silent := certificateRows(nodes, reports)
	if output != "table" {
		err := a.printData(map[string]any{
			"apiVersion": cluster.APIVersion, "kind": "CertificateList", "cluster": spec.Metadata.Name, "items": rows, "silent": silent,
		}, output)
		return errors.Join(err, silence(len(nodes), silent))
	}
	if len(rows) > 0 {
		err := a.table(func(w io.Writer) {
			fmt.Fprintln(w, "NODE\tCERTIFICATE\tSIGNED BY\tENDS\tRENEWED AT")
			for _, r := range rows {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", r.Node, r.File, signerText(r.CertificateStatus), momentText(r.Until), momentText(r.Renew))
			}
		})
		if err != nil {
			return err
		}
	}
	for _, s := range silent {
		a.talk("%s does not tell: %s\n", s.Node, s.Error)
	}
	return silence(len(nodes), silent)
}

func certificateRows(nodes []cluster.Node, reports []cluster.NodeReport) ([]certificateRow, []silentRow) {
	rows, silent := []certificateRow{}, []silentRow{}
	for _, n := range nodes {
		i := slices.IndexFunc(reports, func(r cluster.NodeReport) bool { return r.Name == n.Name })
		switch {
		case i < 0:
			silent = append(silent, silentRow{n.Name, "nobody has asked it"})
		case reports[i].Status == nil:
			silent = append(silent, silentRow{n.Name, reports[i].Error})
		default:
			for _, c := range reports[i].Status.Certificates {
				rows = append(rows, certificateRow{n.Name, c})
			}
		}
	}
	return rows, silent
}

// silence is the exit code for nodes that have not answered.
func silence(asked int, silent []silentRow) error {
	switch len(silent) {
	case 0:
		return nil
	case asked:
		return verdict(cluster.ExitNoQuorum)
	}
	return verdict(cluster.ExitDegraded)
}

// signerText names an authority by its name and the beginning of its key's:
// old and new ones have the same name.
func signerText(c cluster.CertificateStatus) string {
	return strings.TrimSpace(dash(c.By) + " " + c.Key[:min(8, len(c.Key))])
}

func momentText(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format("2006-01-02 15:04")
}

func (a *app) certsRenew() *cobra.Command {
	return &cobra.Command{
		Use:   "renew [NODE...]",
		Short: "Make new certificates for all nodes, or those named, whatever the age of the old ones",
		Long: `Each node makes new keys and certificates: a server signs for itself, the others ask a server. Nothing is restarted:
every program reads its files again, some of them after five minutes. Prints the files that are new.`,
		Example: `  kuorum certs renew
  kuorum certs renew cp1 w1`,
		Args: cobra.ArbitraryArgs,
		ValidArgsFunction: func(cmd *cobra.Command, _ []string, word string) ([]string, cobra.ShellCompDirective) {
			return a.completeNodes(cmd, nil, word)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			t, err := a.target()
			if err != nil {
				return err
			}
			nodes, err := chooseNodes(t.spec, args)
			if err != nil {
				return err
			}
			return a.renewCertificates(cmd.Context(), t, nodes)
		},
	}
}

// renewCertificates asks one node after the other; one that does not do it does
// not keep the others from it.
func (a *app) renewCertificates(ctx context.Context, t target, nodes []cluster.Node) error {
	agents, err := t.agents()
	if err != nil {
		return err
	}
	var failed []string
	for _, n := range nodes {
		renewed, err := renewNode(ctx, agents, n)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			failed = append(failed, n.Name+": "+agent.Explain(err))
			continue
		}
		for _, file := range renewed.Files {
			fmt.Fprintf(a.process.Out, "%s %s\n", n.Name, file)
		}
	}
	if failed == nil {
		return nil
	}
	return &cluster.Problem{
		What: fmt.Sprintf("%d of %d nodes have no new certificates", len(failed), len(nodes)), Why: strings.Join(failed, "\n"),
		Do: "kuorum status", Exit: cluster.ExitDegraded,
	}
}

func renewNode(ctx context.Context, agents *agent.Client, n cluster.Node) (keyring.Renewed, error) {
	limited, cancel := context.WithTimeout(ctx, renewPatience)
	defer cancel()
	var renewed keyring.Renewed
	err := agents.Call(limited, n.Address, keyring.RenewNowPath, struct{}{}, &renewed)
	return renewed, err
}
