package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"kuorum/internal/bundle"
	"kuorum/internal/cluster"
	"kuorum/internal/kubeconfig"
	"kuorum/internal/lab"
)

// defaultState is where labs and bundles live; KUORUM_STATE names another.
const defaultState = "/var/lib/kuorum"

// app is what all commands share.
type app struct {
	process Process
	context context.Context // ends with ^C
	cluster string          // --cluster
	quiet   bool
}

const examples = `  kuorum up                      three servers on this machine, ready to use
  kuorum kubectl get nodes       the real kubectl, pointed at them
  kuorum lab stop --power cp1    cut a server's power: the API goes on
  kuorum status                  how it is, and what to do about it
  kuorum leader                  who leads, and kuorum leader move
  kuorum logs cp2 etcd -f        what a component says
  kuorum list                    labs, and how they are
  kuorum down                    remove it all`

func (a *app) command() *cobra.Command {
	root := &cobra.Command{
		Use:           "kuorum",
		Short:         "Highly available Kubernetes: designed, built, broken and proven by one binary",
		Example:       examples,
		SilenceErrors: true,
		SilenceUsage:  true,
		// Flags before a tool's name are ours, those after it the tool's.
		TraverseChildren: true,
		Args:             cobra.NoArgs,
		RunE:             func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetIn(a.process.In)
	root.SetOut(a.process.Out)
	root.SetErr(a.process.Err)
	root.SetFlagErrorFunc(refuseArguments)
	flags := root.PersistentFlags()
	flags.StringVarP(&a.cluster, "cluster", "c", "", "cluster to work on (default: $KUORUM_CLUSTER, the current context, or the only one)")
	flags.BoolVarP(&a.quiet, "quiet", "q", false, "print errors only")
	if err := root.RegisterFlagCompletionFunc("cluster", a.completeLabs); err != nil {
		panic(err) // the flag was defined above
	}
	for _, g := range []cobra.Group{{ID: "lab", Title: "Learn and lab:"}, {ID: "see", Title: "See:"}, {ID: "operate", Title: "Operate:"}, {ID: "tool", Title: "Tools, with certificates and endpoints set:"}} {
		root.AddGroup(&g)
	}
	group(root, "lab", a.upCommand(), a.downCommand(), a.listCommand(), a.labCommand(), a.faultCommand(), a.imageCommand())
	group(root, "see", a.statusCommand(), a.leaderCommand(), a.doctorCommand(), a.logsCommand(), a.configCommand(), a.versionCommand())
	group(root, "operate", a.tokenCommand(), a.joinCommand(), a.leaveCommand(), a.nodeCommand(), a.certsCommand(), a.etcdCommand(), a.lbCommand())
	for _, tool := range lab.Tools() {
		group(root, "tool", a.toolCommand(tool))
	}
	root.AddCommand(a.agentCommand(), a.endpointCommand(), a.machineCommand(), exitCodesTopic())
	refuseBadArguments(root)
	refuseUnknownTopics(root)
	return root
}

func group(root *cobra.Command, id string, commands ...*cobra.Command) {
	for _, c := range commands {
		c.GroupID = id
		root.AddCommand(c)
	}
}

// refuseBadArguments makes every command's own complaint about its arguments,
// or about flags that exclude each other, a usage error.
func refuseBadArguments(cmd *cobra.Command) {
	if check := cmd.Args; check != nil {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			switch err := check(cmd, args); {
			case err == nil:
				if err := cmd.ValidateFlagGroups(); err != nil { // cobra's own look comes later
					return refuseArguments(cmd, err)
				}
				return nil
			case cmd.HasSubCommands():
				return unknownCommand(cmd, args[0])
			default:
				return refuseArguments(cmd, err)
			}
		}
	}
	for _, sub := range cmd.Commands() {
		refuseBadArguments(sub)
	}
}

// unknownCommand names the commands below parent that were perhaps meant.
func unknownCommand(parent *cobra.Command, name string) error {
	parent.SuggestionsMinimumDistance = 2 // letters that may differ
	p := &cluster.Problem{
		What: fmt.Sprintf("unknown command %q for %q", name, parent.CommandPath()),
		Do:   parent.CommandPath() + " --help", Exit: cluster.ExitUsage,
	}
	if close := parent.SuggestionsFor(name); len(close) > 0 {
		p.Why = "did you mean " + strings.Join(close, " or ") + "?"
	}
	return p
}

// refuseUnknownTopics makes "help" of what does not exist a usage error; it
// would print the general help as if it had been asked for.
func refuseUnknownTopics(root *cobra.Command) {
	root.InitDefaultHelpCmd()
	help, _, err := root.Find([]string{"help"})
	if err != nil {
		panic(err) // it was added just now
	}
	show := help.Run
	help.Run = nil
	help.RunE = func(cmd *cobra.Command, args []string) error {
		parent, rest, err := root.Find(args)
		if err != nil {
			return refuseArguments(cmd, err)
		}
		if len(rest) > 0 && parent.HasSubCommands() {
			return unknownCommand(parent, rest[0])
		}
		show(cmd, args)
		return nil
	}
}

func (a *app) store() (lab.Store, error) {
	exe, err := os.Executable()
	if err != nil {
		return lab.Store{}, fmt.Errorf("cannot find our own program: %w", err)
	}
	root := a.process.Env("KUORUM_STATE")
	if root == "" {
		root = defaultState
	}
	root, err = filepath.Abs(root)
	if err != nil {
		return lab.Store{}, fmt.Errorf("cannot use KUORUM_STATE: %w", err)
	}
	return lab.Store{Root: root, Exe: exe}, nil
}

// bundle opens the programs built into this one, or those that make bundle
// left beside it.
func (a *app) bundle() (*bundle.Bundle, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("cannot find our own program: %w", err)
	}
	return bundle.Open(a.process.Env("KUORUM_BUNDLE"), filepath.Join(filepath.Dir(exe), "..", "build", "bundle"))
}

func (a *app) kubeconfig() (kubeconfig.File, error) {
	return kubeconfig.Find(a.process.Env, func(name string) (string, error) {
		u, err := user.Lookup(name)
		if err != nil {
			return "", err
		}
		return u.HomeDir, nil
	})
}

// choose names the lab to work on: the flag, the environment, the current
// context if it is one of ours, or the only lab there is.
func (a *app) choose(store lab.Store) (string, error) {
	names, err := store.Names()
	if err != nil {
		return "", err
	}
	for _, name := range []string{a.cluster, a.process.Env("KUORUM_CLUSTER"), a.currentContext(names)} {
		if name != "" {
			return name, nil
		}
	}
	switch len(names) {
	case 0:
		return "", &cluster.Problem{What: "there is no cluster", Do: "kuorum up", Exit: cluster.ExitUsage}
	case 1:
		return names[0], nil
	}
	return "", &cluster.Problem{
		What: "no cluster is chosen", Why: "there are " + strings.Join(names, ", "),
		Do: "name one: --cluster " + names[0] + ", or KUORUM_CLUSTER=" + names[0], Exit: cluster.ExitUsage,
	}
}

func (a *app) currentContext(names []string) string {
	k, err := a.kubeconfig()
	if err != nil {
		return ""
	}
	current, err := k.Current()
	if err != nil {
		return "" // no file, or one that kubectl itself will complain about
	}
	name, ours := strings.CutPrefix(current, "kuorum-")
	if !ours || !slices.Contains(names, name) {
		return ""
	}
	return name
}

// open opens the chosen lab.
func (a *app) open() (*lab.Lab, error) {
	store, err := a.store()
	if err != nil {
		return nil, err
	}
	name, err := a.choose(store)
	if err != nil {
		return nil, err
	}
	return a.openNamed(store, name)
}

func (a *app) openNamed(store lab.Store, name string) (*lab.Lab, error) {
	l, err := store.Open(name)
	if errors.Is(err, os.ErrPermission) {
		return nil, &cluster.Problem{What: "labs belong to root", Err: err, Do: "sudo kuorum ..."}
	}
	if !errors.Is(err, lab.ErrNoLab) {
		return l, err
	}
	names, err := store.Names()
	if err != nil {
		return nil, err
	}
	why := "there is none yet"
	if len(names) > 0 {
		why = "there are " + strings.Join(names, ", ")
	}
	return nil, &cluster.Problem{What: fmt.Sprintf("there is no lab %q", name), Why: why, Do: "kuorum up " + name, Exit: cluster.ExitUsage}
}

func (a *app) completeLabs(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	store, err := a.store()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	names, err := store.Names()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// completeNodes offers the nodes of the chosen lab for the first argument.
func (a *app) completeNodes(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	l, err := a.open()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var names []string
	for _, n := range l.Spec.Spec.Nodes {
		names = append(names, n.Name)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

func exitCodesTopic() *cobra.Command {
	return &cobra.Command{
		Use:   "exit-codes",
		Short: "What kuorum's exit codes mean",
		Long: `Exit codes are part of kuorum's interface and never change their meaning:

  0    done, or healthy
  1    error
  2    bad usage: flags, arguments, cluster.yaml
  3    degraded: quorum held, something is down
  4    no quorum, or unreachable
  5    refused by a safety guard
  6    timed out waiting
  130  interrupted

The embedded tools (kubectl, etcdctl, etcdutl, ctr) return their own.`,
	}
}
