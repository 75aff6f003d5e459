//go:build lab

package lab_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// faultEntry is one of what `kuorum fault list -o json` prints.
type faultEntry struct {
	ID, Kind, Target, Why string
	Resolved              struct {
		Left, Right []string
		Component   string
	}
	Start, End time.Time
}

func (l *lab) faults(t *testing.T, args ...string) []faultEntry {
	t.Helper()
	var list struct {
		Kind  string
		Items []faultEntry
	}
	out := l.run(t, append([]string{"fault", "list", "-o", "json"}, args...)...)
	if err := json.Unmarshal([]byte(out), &list); err != nil || list.Kind != "FaultList" {
		t.Fatalf("%v\n%s", err, out)
	}
	return list.Items
}

// fault breaks something and returns it as the list has it.
func (l *lab) fault(t *testing.T, args ...string) faultEntry {
	t.Helper()
	id := strings.TrimSpace(l.run(t, append([]string{"fault"}, args...)...))
	return l.faultOf(t, id)
}

func (l *lab) faultOf(t *testing.T, id string) faultEntry {
	t.Helper()
	list := l.faults(t, "--all")
	i := slices.IndexFunc(list, func(f faultEntry) bool { return f.ID == id })
	if i < 0 {
		t.Fatalf("there is no %q in %+v", id, list)
	}
	return list[i]
}

// others are the servers but this one.
func others(name string) []string {
	return slices.DeleteFunc([]string{"cp1", "cp2", "cp3"}, func(other string) bool { return other == name })
}

// switchRules are the packet filters of the lab's switch.
func (l *lab) switchRules(t *testing.T) string {
	t.Helper()
	pid, err := os.ReadFile(filepath.Join(tests.dir, "labs", l.name, "lab.pid"))
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "nsenter", "-t", strings.TrimSpace(string(pid)), "-n", "nft", "list", "ruleset").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return string(out)
}

func (l *lab) awaitCause(t *testing.T, cause string) {
	t.Helper()
	eventually(t, 10*time.Second, func() error {
		if causes := l.status(t).causes(); !slices.Contains(causes, cause) {
			return fmt.Errorf("the status has %q", causes)
		}
		return nil
	})
}

// TestFaults: what is broken on purpose is broken as it was ordered, is found
// by the status, ends by itself or by hand, and leaves an account and nothing else.
func TestFaults(t *testing.T) {
	l := threeServers(t)
	t.Cleanup(func() {
		l.run(t, "fault", "heal", "--all")
		l.run(t, "up", l.name)
		l.awaitReady(t)
	})
	t.Run("kill", l.killFaults)
	t.Run("pause", l.pauseFaults)
	t.Run("leader cut off", l.cutLeader)
	t.Run("cable out", l.cutCable)
	t.Run("unknown names", func(t *testing.T) {
		r := try(t, "-c", l.name, "fault", "kill", "cp1/etcdd")
		if r.code != 2 || !strings.Contains(r.talk, "did you mean etcd?") {
			t.Errorf("exit code %d: %s", r.code, r.talk)
		}
		if r := try(t, "-c", l.name, "fault", "heal", "f999"); r.code != 2 {
			t.Errorf("exit code %d: %s", r.code, r.talk)
		}
	})

	l.fault(t, "cut", "cp1|cp2", "--port", "7000")
	l.fault(t, "pause", "cp2/kube-scheduler")
	l.run(t, "fault", "heal", "--all")
	if left := l.faults(t); len(left) != 0 {
		t.Errorf("still active: %+v", left)
	}
	if rules := l.switchRules(t); rules != "" {
		t.Errorf("the switch still has\n%s", rules)
	}
	for i, f := range l.faults(t, "--all") {
		if f.ID != fmt.Sprintf("f%d", i+1) || f.Why == "" || f.End.Before(f.Start) {
			t.Errorf("the account has %+v", f)
		}
	}
	l.awaitReady(t)
}

func (l *lab) killFaults(t *testing.T) {
	l.awaitReady(t)
	leader := l.awaitEtcd(t, "healthy").Leader
	m := l.machine(t, leader)
	f := l.fault(t, "kill", "leader/etcd")
	if f.Why != "once" || f.Target != "leader/etcd" || !slices.Equal(f.Resolved.Left, []string{leader}) || f.Resolved.Component != "etcd" {
		t.Errorf("got %+v, the leader was %s", f, leader)
	}
	again := func(node machine, name string) {
		t.Helper()
		eventually(t, 15*time.Second, func() error {
			if pid := l.recordedPID(t, node.PID, name); pid == 0 || pid == node.pids()[name] {
				return errors.New(name + " has not been started again")
			}
			return nil
		})
	}
	again(m, "etcd")
	l.awaitReady(t)

	m = l.machine(t, "cp2")
	l.fault(t, "stop", "cp2/kube-scheduler")
	again(m, "kube-scheduler")
	l.awaitReady(t)
	m = l.machine(t, "cp2")
	l.fault(t, "kill", "cp2/agent")
	eventually(t, 15*time.Second, func() error {
		if now := l.machine(t, "cp2"); now.Agent == nil || !now.Agent.Started.After(m.Agent.Started) {
			return fmt.Errorf("no new agent: %s", now.Error)
		}
		return nil
	})

	l.fault(t, "kill", "cp3")
	if m := l.machine(t, "cp3"); m.Power != "off" {
		t.Errorf("cp3 is %s", m.Power)
	}
	l.run(t, "lab", "start", "cp3")
	l.awaitReady(t)
}

func (l *lab) pauseFaults(t *testing.T) {
	l.awaitReady(t)
	victim := others(l.awaitEtcd(t, "healthy").Leader)[0]
	const lasts = 10 * time.Second
	f := l.fault(t, "pause", victim, "--for", lasts.String())
	l.awaitCause(t, "node-unreachable "+victim)
	if m := l.machine(t, victim); m.Power != "on" {
		t.Errorf("a frozen machine is %s", m.Power)
	}
	eventually(t, lasts+20*time.Second, func() error {
		if f = l.faultOf(t, f.ID); f.End.IsZero() {
			return errors.New("it is frozen")
		}
		return nil
	})
	if took := f.End.Sub(f.Start); f.Why != "timer" || took < lasts || took > lasts+2*time.Second {
		t.Errorf("it ended after %v by %s", took, f.Why)
	}
	l.awaitReady(t)

	f = l.fault(t, "pause", victim+"/etcd")
	l.awaitStatus(t, "degraded", "etcd-down "+victim)
	l.run(t, "fault", "heal", f.ID)
	l.awaitReady(t)

	f = l.fault(t, "pause", victim)
	l.run(t, "lab", "stop", "--power", victim)
	l.run(t, "lab", "start", victim)
	eventually(t, 5*time.Second, func() error {
		if f = l.faultOf(t, f.ID); f.Why != "machine off" {
			return fmt.Errorf("after a power cut: %+v", f)
		}
		return nil
	})
	l.awaitReady(t)
}

// cutLeader: the other two elect one of theirs and write, the old one cannot.
func (l *lab) cutLeader(t *testing.T) {
	l.awaitReady(t)
	old := l.awaitEtcd(t, "healthy").Leader
	rest := others(old)
	t.Cleanup(func() { l.on(t, rest[0], "kuorum", "etcdctl", "del", "/fault-test") })
	f := l.fault(t, "cut", "leader|"+strings.Join(rest, ","))
	if !slices.Equal(f.Resolved.Left, []string{old}) || !slices.Equal(f.Resolved.Right, rest) || !f.End.IsZero() {
		t.Errorf("got %+v", f)
	}
	eventually(t, 20*time.Second, func() error {
		if s := l.etcd(t); !slices.Contains(rest, s.Leader) {
			return fmt.Errorf("the leader is %q", s.Leader)
		}
		return nil
	})
	put := func(node, value string) result {
		return l.tryOn(t, node, "kuorum", "etcdctl", "--command-timeout=3s", "put", "/fault-test", value)
	}
	if r := put(old, "minority"); r.code == 0 {
		t.Errorf("a member without a quorum took a write: %s", r.out)
	}
	eventually(t, 15*time.Second, func() error {
		if r := put(rest[0], "majority"); r.code != 0 {
			return errors.New(r.talk)
		}
		return nil
	})
	l.run(t, "fault", "heal", f.ID)
	l.awaitEtcd(t, "healthy")
	if got := l.on(t, old, "kuorum", "etcdctl", "get", "--print-value-only", "/fault-test"); strings.TrimSpace(got) != "majority" {
		t.Errorf("%s reads %q", old, got)
	}
	l.awaitReady(t)
}

// cutCable: nobody reaches the machine, neither does the host, also when it has
// been off in between.
func (l *lab) cutCable(t *testing.T) {
	l.awaitReady(t)
	victim := others(l.awaitEtcd(t, "healthy").Leader)[1]
	f := l.fault(t, "cut", victim)
	l.awaitCause(t, "node-unreachable "+victim)
	if r := l.tryOn(t, others(victim)[0], "curl", "-sk", "--max-time", "2", "https://"+victim+":6444/livez"); r.code == 0 {
		t.Errorf("it answers: %s", r.out)
	}
	l.run(t, "lab", "stop", "--power", victim)
	l.run(t, "lab", "start", "--wait=false", victim)
	if m := l.machine(t, victim); m.Power != "on" || m.Agent != nil {
		t.Errorf("after a power cut its cable is in: %+v", m)
	}
	l.run(t, "fault", "heal", f.ID)
	if f = l.faultOf(t, f.ID); f.Why != "heal" {
		t.Errorf("got %+v", f)
	}
	l.awaitReady(t)
}
