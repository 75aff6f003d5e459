package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// labs is where labs keep their files.
const labs = "/var/lib/kuorum/labs"

// warmUp is how long probes run before the fault.
const warmUp = 2 * time.Second

// settle is the time between a system's recovery and the next fault.
const settle = 5 * time.Second

// system is what is compared: a lab, and what leads clients to its API.
type system struct {
	name string
	spec string // cluster.yaml below "spec:"
	vip  string // HOST:PORT
	// peer runs the balancer of others; nil: the lab's own.
	peer *peer
	// slow is how long the slowest recovery takes to watch; 0: no longer than ours.
	slow time.Duration
}

func (s system) title() string { return s.name }

func systems() []system {
	const quick = "  etcd: {heartbeat: 20ms, electionTimeout: 200ms}\n"
	const theirs = "198.18.0.253:8443"
	return []system{
		{name: "kuorum", spec: quick, vip: "198.18.0.254:6443"},
		{name: "guide", spec: "  endpoint: {type: local}\n", vip: theirs, peer: &peer{haproxy: guideHAProxy, keepalived: guideKeepalived}, slow: time.Minute},
		{name: "tuned", spec: quick + "  endpoint: {type: local}\n", vip: theirs, peer: &peer{haproxy: tunedHAProxy, keepalived: tunedKeepalived}, slow: 50 * time.Second},
	}
}

func (s system) lab() string { return "failover-" + s.name }

// kuorum runs a command on the lab.
func (s system) kuorum(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "bin/kuorum", args...)
	var out, talk bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &talk
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("kuorum %v: %w\n%s%s", args, err, out.String(), talk.String())
	}
	return out.String(), nil
}

func (s system) on(ctx context.Context, args ...string) (string, error) {
	return s.kuorum(ctx, append([]string{"-c", s.lab()}, args...)...)
}

// round makes the lab, has each fault n times, and removes it.
func (s system) round(ctx context.Context, faults []fault, n int, every time.Duration, raw bool, seen results) error { //nolint:revive // the flag is the user's
	dir, err := os.MkdirTemp("", "failover-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	file := filepath.Join(dir, "cluster.yaml")
	text := fmt.Sprintf("apiVersion: kuorum.dev/v1alpha1\nkind: Cluster\nmetadata: {name: %s}\nspec:\n  servers: 3\n%s", s.lab(), s.spec)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return err
	}
	defer func() { _, _ = s.kuorum(context.WithoutCancel(ctx), "down", s.lab()) }()
	if _, err := s.kuorum(ctx, "up", "-f", file, "--no-kubeconfig"); err != nil {
		return err
	}
	admin, err := s.on(ctx, "lab", "console", "cp1", "--", "cat", "/etc/kuorum/admin.conf")
	if err != nil {
		return err
	}
	config := filepath.Join(dir, "admin.conf")
	if err := os.WriteFile(config, []byte(admin), 0o600); err != nil {
		return err
	}
	if s.peer != nil {
		if err := s.peer.start(ctx, s, "cp1", "cp2", "cp3"); err != nil {
			return err
		}
	}
	for _, f := range faults {
		for range n {
			traces, err := s.try(ctx, f, config, every, raw)
			if err != nil {
				return fmt.Errorf("%s, %s: %w", s.name, f.text, err)
			}
			for kind, t := range traces {
				seen.add(key{s.name, f.name, kind}, t)
			}
			if raw {
				line, _ := json.Marshal(traces)
				fmt.Fprintf(os.Stderr, "%s %s %s\n", s.name, f.name, line)
			}
		}
	}
	return nil
}

// try has one fault happen to the server that does everything.
func (s system) try(ctx context.Context, f fault, config string, every time.Duration, raw bool) (map[string]trace, error) { //nolint:revive // the flag is the user's
	victim, err := s.gather(ctx)
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	pid, err := os.ReadFile(filepath.Join(labs, s.lab(), "lab.pid")) // its network is the machines' switch
	if err != nil {
		return nil, err
	}
	probes := exec.CommandContext(ctx, "nsenter", "-t", strings.TrimSpace(string(pid)), "-n", self, "probe",
		"-kubeconfig", config, "-server", "https://"+s.vip, "-every", every.String(), "-for", (warmUp + f.length(s)).String())
	var out bytes.Buffer
	probes.Stdout, probes.Stderr = &out, os.Stderr
	if err := probes.Start(); err != nil {
		return nil, err
	}
	begun := time.Now()
	<-time.After(warmUp)
	var failed error
	for _, order := range f.orders(victim) {
		if raw {
			fmt.Fprintf(os.Stderr, "%s %s: %.1f s: %v\n", s.name, f.name, time.Since(begun).Seconds(), order)
		}
		if _, failed = s.on(ctx, order...); failed != nil {
			break
		}
	}
	if err := probes.Wait(); err != nil {
		return nil, fmt.Errorf("the probes: %w", err)
	}
	if failed != nil {
		return nil, failed
	}
	var traces map[string]trace
	if err := json.Unmarshal(out.Bytes(), &traces); err != nil {
		return nil, err
	}
	return traces, s.mend(ctx, f, victim)
}

// mend makes the lab whole again.
func (s system) mend(ctx context.Context, f fault, victim string) error {
	if f.off {
		if _, err := s.on(ctx, "lab", "start", victim); err != nil {
			return err
		}
	}
	if _, err := s.on(ctx, "fault", "heal", "--all"); err != nil {
		return err
	}
	if _, err := s.on(ctx, "status", "--wait", "--brief", "--timeout", "2m"); err != nil {
		return err
	}
	if s.peer != nil && f.off {
		if err := s.peer.start(ctx, s, victim); err != nil {
			return err
		}
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(settle):
		return nil
	}
}

// gather has all that leads on the machine that holds the virtual IP.
func (s system) gather(ctx context.Context) (string, error) {
	holder, err := s.holder(ctx)
	if err != nil {
		return "", err
	}
	for _, what := range []string{"scheduler", "controller-manager", "etcd"} {
		if err := s.eventually(ctx, func(ctx context.Context) error {
			_, err := s.on(ctx, "leader", "move", what, holder)
			return err
		}); err != nil {
			return "", err
		}
	}
	return holder, nil
}

// eventually tries for a minute: programs may still be starting after the last
// fault.
func (s system) eventually(ctx context.Context, try func(context.Context) error) error {
	limited, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		err := try(limited)
		if err == nil {
			return nil
		}
		select {
		case <-limited.Done():
			return err
		case <-time.After(time.Second):
		}
	}
}

// holder is the machine that has the virtual IP, once exactly one has.
func (s system) holder(ctx context.Context) (string, error) {
	host, _, _ := strings.Cut(s.vip, ":")
	var holder string
	err := s.eventually(ctx, func(ctx context.Context) error {
		var has []string
		for _, name := range servers() {
			out, err := s.on(ctx, "lab", "console", name, "--", "ip", "-brief", "-4", "address", "show", "dev", "eth0")
			if err == nil && strings.Contains(out, host+"/") {
				has = append(has, name)
			}
		}
		if len(has) != 1 {
			return fmt.Errorf("the virtual IP %s is at %v", host, has)
		}
		holder = has[0]
		return nil
	})
	return holder, err
}
