// Package cli is what people type: one file a command, which binds flags and
// calls the packages that do the work. Data goes to stdout, talk to stderr,
// an error is printed once, and its kind decides the exit code.
package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"kuorum/internal/cluster"
	"kuorum/internal/lab"
)

// Process is what this process was given.
type Process struct {
	Args    []string // the name it was called by first
	Env     func(string) string
	Environ []string
	In      *os.File
	Out     *os.File
	Err     *os.File
}

// errInterrupted is the cause of a context ended by ^C or SIGTERM.
var errInterrupted = errors.New("interrupted")

// Main runs the command that p asks for and returns the exit code. The first
// ^C ends what can be ended between two steps, the second ends the process.
func Main(p Process) int {
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	interrupts := make(chan os.Signal, 2)
	signal.Notify(interrupts, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(interrupts)
	go func() {
		<-interrupts
		signal.Stop(interrupts) // the second one has its usual effect
		cancel(errInterrupted)
	}()
	a := &app{process: p, context: ctx}
	root := a.command()
	root.SetArgs(arguments(p.Args))
	err := root.ExecuteContext(ctx)
	return a.finish(ctx, err)
}

// arguments makes "kubectl get nodes" out of a call by that name, and keeps
// cobra from looking at a tool's own flags.
func arguments(args []string) []string {
	name := filepath.Base(args[0])
	for _, tool := range lab.Tools() {
		if name == tool {
			return append([]string{tool}, args[1:]...)
		}
	}
	return args[1:]
}

// finish prints err, if there is one to print, and chooses the exit code.
func (a *app) finish(ctx context.Context, err error) int {
	if err == nil {
		return cluster.ExitOK
	}
	problem, ok := errors.AsType[*cluster.Problem](err)
	if exit, ended := errors.AsType[*exec.ExitError](err); ended && !ok {
		return exit.ExitCode() // the program has said why itself
	}
	if code, said := errors.AsType[verdict](err); said && !ok {
		return int(code)
	}
	if errors.Is(context.Cause(ctx), errInterrupted) {
		fmt.Fprintln(a.process.Err, "interrupted: run the same command again to complete it")
		return cluster.ExitInterrupted
	}
	if !ok {
		problem = &cluster.Problem{What: err.Error()}
	}
	a.print(problem)
	return problem.ExitCode()
}

// print shows a problem as people read it: what, why, what to do.
func (a *app) print(p *cluster.Problem) {
	w := a.process.Err
	fmt.Fprintf(w, "error: %s\n", p.What)
	why := p.Why
	if p.Err != nil {
		why = strings.TrimPrefix(why+": "+p.Err.Error(), ": ")
	}
	for _, part := range []struct{ label, text string }{{"why", why}, {"do", p.Do}, {"log", p.Log}} {
		if part.text == "" {
			continue
		}
		lines := strings.Split(part.text, "\n")
		fmt.Fprintf(w, "  %-4s %s\n", part.label+":", lines[0])
		for _, line := range lines[1:] {
			fmt.Fprintf(w, "       %s\n", strings.TrimLeft(line, " "))
		}
	}
}

func usage(format string, args ...any) error {
	return &cluster.Problem{What: fmt.Sprintf(format, args...), Exit: cluster.ExitUsage}
}

// refuseArguments is a command's bad call: the words, and where to read more.
func refuseArguments(cmd *cobra.Command, err error) error {
	return &cluster.Problem{What: err.Error(), Do: cmd.CommandPath() + " --help", Exit: cluster.ExitUsage}
}
