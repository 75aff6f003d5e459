package cli

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"kuorum/internal/cluster"
	"kuorum/internal/membership"
)

// callPatience bounds a question to a server's agent.
const callPatience = 15 * time.Second

func (a *app) tokenCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "token",
		Short: "Join tokens: make, list, revoke",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.tokenCreate(), a.tokenList(), a.tokenDelete())
	return cmd
}

func (a *app) tokenCreate() *cobra.Command {
	var role, output string
	var life time.Duration
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Make a token for one node, and print the line that joins it",
		Long: `Makes a token and prints the whole command to run on the new machine. The token is
good for one node of one role, until it expires; the cluster keeps a hash of it only. The line
also pins the cluster's authority, so that the new machine cannot be led to another cluster.`,
		Example: `  kuorum token create                       for a server
  kuorum token create --role worker --ttl 10m`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			t, err := a.target()
			if err != nil {
				return err
			}
			token, err := newToken(cmd.Context(), t, cluster.Role(role), life)
			if err != nil {
				return err
			}
			if output != "table" {
				return a.printData(token, output)
			}
			_, err = fmt.Fprintln(a.process.Out, joinLine(token))
			return err
		},
	}
	cmd.Flags().StringVar(&role, "role", string(cluster.RoleServer), "what the node will be: server, worker, etcd or balancer")
	cmd.Flags().DurationVar(&life, "ttl", membership.DefaultTokenLife, "how long it can be used")
	outputFlag(cmd, &output)
	completeRole(cmd)
	return cmd
}

func completeRole(cmd *cobra.Command) {
	var words []string
	for _, role := range cluster.Roles() {
		words = append(words, string(role))
	}
	err := cmd.RegisterFlagCompletionFunc("role", cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp))
	if err != nil {
		panic(err) // the flag was defined by the caller
	}
}

func newToken(ctx context.Context, t target, role cluster.Role, life time.Duration) (membership.NewToken, error) {
	limited, cancel := context.WithTimeout(ctx, callPatience)
	defer cancel()
	var token membership.NewToken
	err := t.call(limited, membership.TokensPath, membership.TokenOrder{Role: role, Life: cluster.Duration(life)}, &token, "")
	return token, err
}

// joinLine is what is typed on the new machine.
func joinLine(t membership.NewToken) string {
	return fmt.Sprintf("kuorum join %s --role %s --token %s --pin %s", t.Server, t.Role, t.Secret, t.Pin)
}

func (a *app) tokenList() *cobra.Command {
	output := ""
	cmd := &cobra.Command{
		Use:   "list",
		Short: "Tokens, and who used them; their secrets are not kept",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			t, err := a.target()
			if err != nil {
				return err
			}
			limited, cancel := context.WithTimeout(cmd.Context(), callPatience)
			defer cancel()
			var tokens []membership.Token
			if err := t.call(limited, membership.TokensPath, nil, &tokens, ""); err != nil {
				return err
			}
			if output != "table" {
				return a.printData(map[string]any{"apiVersion": cluster.APIVersion, "kind": "TokenList", "items": tokens}, output)
			}
			return a.printTokens(tokens, time.Now())
		},
	}
	outputFlag(cmd, &output)
	return cmd
}

func (a *app) printTokens(tokens []membership.Token, now time.Time) error {
	if len(tokens) == 0 {
		a.talk("there is no token: kuorum token create\n")
		return nil
	}
	return a.table(func(w io.Writer) {
		fmt.Fprintln(w, "ID\tROLE\tSTATE\tUSED BY")
		for _, t := range tokens {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", t.ID, t.Role, tokenState(t, now), t.UsedBy)
		}
	})
}

func tokenState(t membership.Token, now time.Time) string {
	switch {
	case !now.Before(t.Expires):
		return "expired"
	case t.UsedBy != "":
		return "used"
	}
	return "for " + t.Expires.Sub(now).Round(time.Second).String()
}

func (a *app) tokenDelete() *cobra.Command {
	return &cobra.Command{
		Use:   "delete ID",
		Short: "Revoke a token",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			t, err := a.target()
			if err != nil {
				return err
			}
			limited, cancel := context.WithTimeout(cmd.Context(), callPatience)
			defer cancel()
			return t.call(limited, membership.RevokePath, membership.TokenID{ID: args[0]}, nil, "")
		},
	}
}
