package cli

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"kuorum/internal/endpoint"
	"kuorum/internal/lab"
	"kuorum/internal/node"
)

func (a *app) agentCommand() *cobra.Command {
	var options node.Options
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "The node agent: keeps the components of this machine running",
		Long: `Runs the node that /etc/kuorum describes; where there is none, it waits until kuorum join has
made the machine one. SIGTERM stops its components in reverse
order and ends it; SIGUSR1, or a crash, ends the agent alone and leaves them to
the next one.`,
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE:   func(cmd *cobra.Command, _ []string) error { return a.agent(cmd.Context(), options) },
	}
	cmd.Flags().StringVar(&options.Bundle, "bundle", "", "directory of the unpacked bundle")
	cmd.Flags().IntVar(&options.Machines, "machines", 0, "how many machines of a lab share this computer; 0: it is the node's own")
	return cmd
}

func (a *app) agent(ctx context.Context, options node.Options) error {
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("cannot find our own program: %w", err)
	}
	leave := make(chan os.Signal, 1)
	signal.Notify(leave, syscall.SIGUSR1)
	defer signal.Stop(leave)
	running, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	go func() {
		select {
		case <-leave:
			cancel()
		case <-running.Done():
		}
	}()
	if options.Hostname, err = os.Hostname(); err != nil {
		return fmt.Errorf("cannot tell what this machine is called: %w", err)
	}
	options.Version, options.Kuorum, options.Log, options.Stop = release, exe, a.logger(), ctx.Done()
	return node.Run(running, options)
}

func (a *app) endpointCommand() *cobra.Command {
	file := ""
	cmd := &cobra.Command{
		Use:    "endpoint",
		Short:  "The API balancer of this machine",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return endpoint.Run(cmd.Context(), file, a.logger())
		},
	}
	cmd.Flags().StringVar(&file, "config", "", "configuration file")
	return cmd
}

// labProcess is what `up` starts in the background.
func (a *app) labProcess() *cobra.Command {
	var state, bundleDir string
	cmd := &cobra.Command{
		Use:    "process NAME",
		Short:  "The background process of a lab (started by up)",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			exe, err := os.Executable()
			if err != nil {
				return fmt.Errorf("cannot find our own program: %w", err)
			}
			return lab.Store{Root: state, Exe: exe}.Serve(cmd.Context(), args[0], bundleDir, a.logger())
		},
	}
	cmd.Flags().StringVar(&state, "state", "", "where labs live")
	cmd.Flags().StringVar(&bundleDir, "bundle", "", "directory of the unpacked bundle")
	return cmd
}

// machineCommand is what the lab process starts in a machine's namespaces.
func (a *app) machineCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "machine", Short: "A lab machine's first process (started by the lab)", Hidden: true, Args: cobra.NoArgs}
	cmd.AddCommand(
		&cobra.Command{Use: "wait", Args: cobra.NoArgs, RunE: func(*cobra.Command, []string) error { return lab.WaitForPower() }},
		&cobra.Command{Use: "init", Args: cobra.NoArgs, RunE: func(*cobra.Command, []string) error {
			signal.Ignore(syscall.SIGTERM, os.Interrupt, syscall.SIGHUP)
			return lab.Init(a.logger())
		}},
	)
	return cmd
}
