package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"kuorum/internal/cluster"
	"kuorum/internal/fault"
	"kuorum/internal/host"
)

// controlSocket is where the lab process answers, in the lab's directory.
const controlSocket = "control.sock"

// Running tells whether the lab's process lives, and its pid. The lock tells
// it: the kernel lets go of it when the process ends.
func (l *Lab) Running() (int, bool) {
	if _, err := os.Stat(l.path("lab.lock")); errors.Is(err, fs.ErrNotExist) {
		return 0, false // taking the lock would make the lab's directory
	}
	held, err := lock(l.path("lab.lock"))
	if err == nil {
		_ = held.Close()
		return 0, false
	}
	data, err := os.ReadFile(l.path("lab.pid"))
	if err != nil {
		return 0, true // it has not written its pid yet
	}
	pid, _ := strconv.Atoi(strings.TrimSpace(string(data))) // 0 when damaged
	return pid, true
}

// Status asks the lab process for the state of the lab's machines.
func (l *Lab) Status(ctx context.Context) (Status, error) {
	var s Status
	err := l.call(ctx, http.MethodGet, "/v1/status", &s)
	return s, err
}

// StartMachine powers a machine on and returns when its init runs.
func (l *Lab) StartMachine(ctx context.Context, name string) error {
	return l.call(ctx, http.MethodPost, "/v1/machines/"+name+"/start", nil)
}

// StopMachine shuts a machine down cleanly and returns when it is off.
func (l *Lab) StopMachine(ctx context.Context, name string) error {
	return l.call(ctx, http.MethodPost, "/v1/machines/"+name+"/stop", nil)
}

// PowerOffMachine cuts a machine's power.
func (l *Lab) PowerOffMachine(ctx context.Context, name string) error {
	return l.call(ctx, http.MethodPost, "/v1/machines/"+name+"/poweroff", nil)
}

// MakeFault has the lab process break something, which goes on after this call.
func (l *Lab) MakeFault(ctx context.Context, order fault.Order) (fault.Fault, error) {
	data, err := json.Marshal(order)
	if err != nil {
		return fault.Fault{}, fmt.Errorf("cannot ask lab %s: %w", l.Name, err)
	}
	var made fault.Fault
	err = l.call(ctx, http.MethodPost, fault.Path+"?"+url.Values{"order": {string(data)}}.Encode(), &made)
	return made, err
}

// Faults lists what was ever broken on purpose in the lab, the oldest first.
func (l *Lab) Faults(ctx context.Context) ([]fault.Fault, error) {
	var list []fault.Fault
	err := l.call(ctx, http.MethodGet, fault.Path, &list)
	return list, err
}

// HealFaults ends faults before their time, all if no ID is given, and returns
// those that it has ended.
func (l *Lab) HealFaults(ctx context.Context, ids ...string) ([]fault.Fault, error) {
	var healed []fault.Fault
	err := l.call(ctx, http.MethodDelete, fault.Path+"?"+url.Values{"id": ids}.Encode(), &healed)
	return healed, err
}

func (l *Lab) call(ctx context.Context, method, path string, into any) error {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) { return l.control(ctx) }
	transport := &http.Transport{DialContext: dial, DisableKeepAlives: true}
	req, err := http.NewRequestWithContext(ctx, method, "http://lab"+path, nil)
	if err != nil {
		return fmt.Errorf("cannot ask lab %s: %w", l.Name, err)
	}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if p, ok := errors.AsType[*cluster.Problem](err); ok {
		return p
	}
	if err != nil {
		return fmt.Errorf("cannot ask lab %s: %w", l.Name, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return fmt.Errorf("cannot ask lab %s: %w", l.Name, err)
	}
	if resp.StatusCode != http.StatusOK {
		return refusal(resp.Status, body)
	}
	if into == nil {
		return nil
	}
	if err := json.Unmarshal(body, into); err != nil {
		return fmt.Errorf("cannot read the answer of lab %s: %w", l.Name, err)
	}
	return nil
}

// control connects to the lab process.
func (l *Lab) control(ctx context.Context) (net.Conn, error) {
	if _, ok := l.Running(); !ok {
		return nil, &cluster.Problem{
			What: fmt.Sprintf("lab %q is not running", l.Name),
			Do:   "kuorum up " + l.Name,
			Exit: cluster.ExitNoQuorum,
		}
	}
	return (&net.Dialer{}).DialContext(ctx, "unix", l.path(controlSocket))
}

// refusal is what the lab process said instead of doing something.
func refusal(status string, body []byte) error {
	var failed report
	if json.Unmarshal(body, &failed) != nil || failed.Error == "" {
		failed.Error = status
	}
	if p := failed.Problem; p != nil {
		return &cluster.Problem{What: p.What, Why: p.Why, Do: p.Do, Exit: p.Exit}
	}
	return errors.New(failed.Error)
}

// waitGone blocks until the lab's process has ended.
func (l *Lab) waitGone(ctx context.Context) error {
	return poll(ctx, 20*time.Millisecond, func() error {
		if _, ok := l.Running(); ok {
			return fmt.Errorf("the process of lab %s still runs", l.Name)
		}
		return nil
	})
}

// poll calls try until it succeeds, spaced by every; when ctx ends first it
// returns what try said last.
func poll(ctx context.Context, every time.Duration, try func() error) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(context.Cause(ctx), err)
		case <-tick.C:
		}
	}
}

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
