package lab

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"kuorum/internal/agent"
	"kuorum/internal/component"
	"kuorum/internal/host"
)

// wireFD is the number of the socket to the lab process in a machine's first
// process.
const wireFD = 3

// programPath is where a machine sees our own program.
const programPath = "/usr/local/bin/kuorum"

// report is the machine's answer to its blueprint, and the lab process' to what
// it does not do.
type report struct {
	Error string `json:"error,omitempty"`
	// Problem is the error where it was made for people.
	Problem *agent.Refusal `json:"problem,omitempty"`
}

// WaitForPower is the first thing that runs in a machine's namespaces. It
// waits until the lab has put it into its cgroup and plugged its cable, then
// becomes the machine's init in a cgroup namespace. It returns only on
// failure, or with nil when the lab went away.
func WaitForPower() error {
	wire := os.NewFile(wireFD, "lab")
	if _, err := wire.Read(make([]byte, 1)); err != nil {
		return nil //nolint:nilerr // the lab is gone, and so is the machine
	}
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("cannot find our own program: %w", err)
	}
	return host.Become([]string{exe, "machine", "init"}, os.Environ())
}

// Init is process 1 of a machine: it builds the machine, then starts the
// agent, starts it again whenever it ends, and reaps what nobody waits for.
// It ends, and with it the machine, when the lab says stop or goes away.
func Init(log *slog.Logger) error {
	file := os.NewFile(wireFD, "lab")
	wire, err := net.FileConn(file)
	if err != nil {
		return fmt.Errorf("cannot reach the lab: %w", err)
	}
	_ = file.Close() // wire has its own copy
	in := bufio.NewReader(wire)
	line, err := in.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("cannot read the blueprint: %w", err)
	}
	var plan blueprint
	if err := json.Unmarshal(line, &plan); err != nil {
		return fmt.Errorf("cannot read the blueprint: %w", err)
	}
	if err := build(plan); err != nil {
		_ = json.NewEncoder(wire).Encode(report{Error: err.Error()}) // the lab sees our end as well
		return err
	}
	children := make(chan os.Signal, 1)
	signal.Notify(children, syscall.SIGCHLD)
	if err := json.NewEncoder(wire).Encode(report{}); err != nil {
		return fmt.Errorf("cannot report to the lab: %w", err)
	}
	i := initProcess{argv: plan.Agent, log: log, children: children}
	return i.run(commands(in))
}

// build makes this process's namespaces into the machine of plan.
func build(plan blueprint) error {
	if err := host.SetHostname(plan.Hostname); err != nil {
		return err
	}
	if err := host.ConfigureMachine(plan.Address, plan.Gateway); err != nil {
		return err
	}
	if err := plan.Root.Enter(plan.Hierarchies); err != nil {
		return err
	}
	if err := settleCgroup(plan.Hierarchies); err != nil {
		return err
	}
	if err := os.WriteFile("/etc/hosts", []byte(plan.Hosts), 0o644); err != nil {
		return fmt.Errorf("cannot write /etc/hosts: %w", err)
	}
	if err := os.WriteFile("/etc/hostname", []byte(plan.Hostname+"\n"), 0o644); err != nil {
		return fmt.Errorf("cannot write /etc/hostname: %w", err)
	}
	return linkTools(plan.Tools)
}

// Tools are the names of upstream programs that kuorum is also called by.
func Tools() []string { return []string{"kubectl", "etcdctl", "etcdutl", "ctr"} }

// linkTools lets people on a machine's console call our program by the names
// of the tools in it. A program of that name that the host has is left alone.
func linkTools(names []string) error {
	for _, name := range names {
		path := filepath.Join(filepath.Dir(programPath), name)
		if err := os.Symlink(programPath, path); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("cannot link %s: %w", path, err)
		}
	}
	return nil
}

// settleCgroup moves this process into a group of its own on v2, since the
// machine's root group must hold no process when kubelet makes groups beside it.
func settleCgroup(hierarchies []host.Hierarchy) error {
	if host.IsV1(hierarchies) {
		return nil
	}
	own := host.NewCgroup(hierarchies, "/system")
	for _, h := range hierarchies {
		if err := os.MkdirAll(filepath.Join(h.Mount, "system"), 0o755); err != nil {
			return fmt.Errorf("cannot make the machine's system group: %w", err)
		}
	}
	if err := own.Add(os.Getpid()); err != nil {
		return err
	}
	for _, h := range hierarchies {
		if err := host.DelegateControllers(h.Mount); err != nil {
			return err
		}
	}
	return nil
}

// commands passes on what the lab says, a word a line; it is closed when the
// lab is gone.
func commands(in *bufio.Reader) <-chan string {
	words := make(chan string)
	go func() {
		defer close(words)
		for {
			line, err := in.ReadString('\n')
			if err != nil {
				return
			}
			words <- strings.TrimSpace(line)
		}
	}()
	return words
}

// initProcess keeps one agent running.
type initProcess struct {
	argv     []string
	log      *slog.Logger
	children <-chan os.Signal
	agent    int // pid, 0 while there is none
}

func (i *initProcess) run(words <-chan string) error {
	restart := time.NewTimer(0)
	defer restart.Stop()
	for {
		select {
		case <-restart.C:
			i.startAgent()
		case <-i.children:
			for _, pid := range host.Reap() {
				if pid == i.agent {
					i.agent = 0
					restart.Reset(200 * time.Millisecond)
				}
			}
		case word, ok := <-words:
			if !ok {
				return nil // the lab is gone: that is a power cut
			}
			if word == "stop" {
				i.shutDown(words)
				return nil
			}
		}
	}
}

func (i *initProcess) startAgent() {
	if i.agent != 0 {
		return
	}
	log, err := agentLog()
	if err != nil {
		i.log.Error("cannot start the agent", "error", err)
		return
	}
	defer log.Close()
	p, err := os.StartProcess(i.argv[0], i.argv, &os.ProcAttr{
		Dir: "/", Env: os.Environ(), Files: []*os.File{nil, log, log},
	})
	if err != nil {
		i.log.Error("cannot start the agent", "error", err)
		return
	}
	i.agent = p.Pid
	_ = p.Release() // we reap it ourselves
}

func agentLog() (*os.File, error) {
	if err := os.MkdirAll(component.LogDir, 0o755); err != nil {
		return nil, err
	}
	return os.OpenFile(filepath.Join(component.LogDir, component.AgentLog), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
}

// shutDown stops the agent, which stops the components; then pods and
// whatever else runs get SIGTERM and a moment. The kernel ends the rest with
// this process.
func (i *initProcess) shutDown(words <-chan string) {
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	if i.agent != 0 {
		_ = syscall.Kill(i.agent, syscall.SIGTERM)
		i.reapUntil(ctx, words, func() bool { return i.agent == 0 })
	}
	_ = syscall.Kill(-1, syscall.SIGTERM) // all but us
	rest, done := context.WithTimeout(ctx, 3*time.Second)
	defer done()
	i.reapUntil(rest, words, func() bool { return syscall.Kill(-1, 0) != nil })
}

func (i *initProcess) reapUntil(ctx context.Context, words <-chan string, done func() bool) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-ctx.Done():
			return
		case _, ok := <-words:
			if !ok {
				return
			}
		case <-i.children:
		case <-tick.C:
		}
		for _, pid := range host.Reap() {
			if pid == i.agent {
				i.agent = 0
			}
		}
	}
}
