package lab

import (
	"context"
	"fmt"
	"io"
	"os/exec"
	"strings"

	"kuorum/internal/cluster"
	"kuorum/internal/host"
)

// command is a program to run inside a machine.
type command struct {
	argv           []string
	env            []string
	stdin          io.Reader
	stdout, stderr io.Writer
}

// run runs c inside the machine, in all of its namespaces, and waits for it.
func (m MachineStatus) run(ctx context.Context, c command) error {
	if m.Power != PowerOn {
		return offProblem(m.Name)
	}
	// A shell looks the program up inside; exec would have looked it up here.
	cmd := exec.CommandContext(ctx, "/bin/sh", append([]string{"-c", `exec "$@"`, "sh"}, c.argv...)...)
	cmd.Env = append([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "USER=root"}, c.env...)
	cmd.Dir = "/"
	cmd.Stdin, cmd.Stdout, cmd.Stderr = c.stdin, c.stdout, c.stderr
	return host.RunIn(m.PID, cmd)
}

// Console runs argv inside the machine with the caller's own streams; an
// error of the program itself is an *exec.ExitError.
func (m MachineStatus) Console(ctx context.Context, argv, env []string, streams Streams) error {
	return m.run(ctx, command{argv: argv, env: env, stdin: streams.In, stdout: streams.Out, stderr: streams.Err})
}

// Streams are a caller's standard streams. Files are handed on as they are,
// so that a program inside sees the terminal itself.
type Streams struct {
	In       io.Reader
	Out, Err io.Writer
}

func offProblem(name string) error {
	return &cluster.Problem{
		What: fmt.Sprintf("machine %s is off", name),
		Do:   "kuorum lab start " + name,
		Exit: cluster.ExitNoQuorum,
	}
}

// Machine picks a machine by name.
func (s Status) Machine(name string) (MachineStatus, error) {
	var names []string
	for _, m := range s.Machines {
		if m.Name == name {
			return m, nil
		}
		names = append(names, m.Name)
	}
	return MachineStatus{}, &cluster.Problem{
		What: fmt.Sprintf("lab %s has no machine %q", s.Name, name),
		Why:  "its machines are " + strings.Join(names, ", "),
		Exit: cluster.ExitUsage,
	}
}
