//go:build lab

package lab_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// clusterStatus is what `kuorum status -o json` prints.
type clusterStatus struct {
	Kind, State, Leader string
	Quorum              struct{ Voters, Healthy, Quorum, MayLose int }
	Leaders             []struct{ Name, Holder string }
	Nodes               []struct {
		Name   string
		Status *struct {
			Etcd *struct {
				Leader, Version string
				Revision        int64
				DBBytes         int64
				FsyncP99        string
			}
			Certificates []struct{ File string }
		}
	}
	Findings []struct{ Code, Node, Severity, What, Why, Do string }
}

// status runs the command once, which must say the same with its exit code.
func (l *lab) status(t *testing.T) clusterStatus {
	t.Helper()
	r := try(t, "-c", l.name, "status", "-o", "json")
	var s clusterStatus
	if err := json.Unmarshal([]byte(r.out), &s); err != nil {
		t.Fatalf("%v\n%s%s", err, r.out, r.talk)
	}
	if want := map[string]int{"healthy": 0, "degraded": 3, "no quorum": 4}[s.State]; r.code != want {
		t.Errorf("exit code %d for %q", r.code, s.State)
	}
	return s
}

// causes are the findings that are more than a remark: "code node".
func (s clusterStatus) causes() []string {
	var list []string
	for _, f := range s.Findings {
		if f.Severity != "info" && f.Code != "disk-slow" { // the disk is the host's, and others use it
			list = append(list, f.Code+" "+f.Node)
		}
	}
	return list
}

// awaitStatus waits until the status has exactly these causes, which it must
// soon.
func (l *lab) awaitStatus(t *testing.T, state string, causes ...string) {
	t.Helper()
	eventually(t, noticed, func() error {
		s := l.status(t)
		if s.State != state || !slices.Equal(s.causes(), causes) {
			return fmt.Errorf("it is %s, with %q", s.State, s.Findings)
		}
		return nil
	})
}

// noticed is how long a fault may be unknown to the status.
const noticed = 3 * time.Second

// TestStatusTellsEachFault: each fault shows within three seconds, under its
// own name and no other, and is gone when it is mended.
func TestStatusTellsEachFault(t *testing.T) {
	l := threeServers(t)
	const mended = time.Minute
	well := func(t *testing.T) {
		t.Helper()
		eventually(t, mended, func() error {
			if s := l.status(t); len(s.causes()) > 0 {
				return fmt.Errorf("it has %q", s.Findings)
			}
			return nil
		})
	}
	well(t)
	s := l.status(t)
	if s.Kind != "ClusterStatus" || s.Quorum.Voters != 3 || s.Quorum.Healthy != 3 || s.Quorum.MayLose != 1 || s.Leader == "" || len(s.Leaders) != 2 {
		t.Errorf("got %+v", s)
	}
	for _, n := range s.Nodes {
		if n.Status == nil || n.Status.Etcd == nil || n.Status.Etcd.Revision == 0 || len(n.Status.Certificates) < 10 {
			t.Errorf("of %s it knows %+v", n.Name, n.Status)
		}
	}
	signal := func(t *testing.T, node, component, signal string) {
		t.Helper()
		l.on(t, node, "kill", "-"+signal, strconv.Itoa(l.machine(t, node).pids()[component]))
	}
	t.Run("a frozen scheduler", func(t *testing.T) {
		signal(t, "cp1", "kube-scheduler", "STOP")
		defer well(t)
		defer signal(t, "cp1", "kube-scheduler", "CONT")
		l.awaitStatus(t, "degraded", "component-down cp1")
	})
	t.Run("a frozen member", func(t *testing.T) {
		signal(t, "cp2", "etcd", "STOP")
		defer well(t)
		defer signal(t, "cp2", "etcd", "CONT")
		l.awaitStatus(t, "degraded", "etcd-down cp2")
	})
	t.Run("an unplugged cable", func(t *testing.T) {
		l.run(t, "leader", "move", "etcd", "cp1") // an election would take most of the time
		l.on(t, "cp3", "ip", "link", "set", "eth0", "down")
		defer well(t)
		defer l.on(t, "cp3", "ip", "link", "set", "eth0", "up")
		l.awaitStatus(t, "degraded", "node-unreachable cp3")
	})
	t.Run("no power", func(t *testing.T) {
		l.run(t, "lab", "stop", "--power", "cp3")
		defer well(t)
		defer l.run(t, "lab", "start", "cp3")
		l.awaitStatus(t, "degraded", "node-unreachable cp3")
	})
	t.Run("no quorum", func(t *testing.T) {
		defer well(t)
		for _, name := range []string{"cp2", "cp3"} {
			l.run(t, "lab", "stop", "--power", "--force-quorum-loss", name)
			defer l.run(t, "lab", "start", name)
			defer l.run(t, "lab", "start", "--wait=false", name)
		}
		l.awaitStatus(t, "no quorum", "no-quorum ", "node-unreachable cp2", "node-unreachable cp3")
		// A leader that lost its followers steps down an election later; then
		// nobody takes part in a quorum.
		if r := try(t, "-c", l.name, "status", "--wait", "--timeout", "2s"); r.code != 6 {
			t.Errorf("--wait: exit code %d\n%s", r.code, r.talk)
		}
		if r := try(t, "-c", l.name, "status", "--brief"); r.code != 4 || r.out != l.name+": no quorum; 3 voters, 0 healthy, quorum 2, no quorum; no-quorum, node-unreachable cp2, node-unreachable cp3\n" {
			t.Errorf("--brief: exit code %d\n%s", r.code, r.out)
		}
	})
}

// TestStatusOnANode: a node says the same of its cluster as the host does.
func TestStatusOnANode(t *testing.T) {
	l := threeServers(t)
	eventually(t, time.Minute, func() error {
		r := try(t, "-c", l.name, "lab", "console", "cp2", "--", "kuorum", "status", "--brief")
		if !strings.HasPrefix(r.out, l.name+": ") || !strings.Contains(r.out, "; 3 voters, quorum 2, may lose 1") {
			return fmt.Errorf("exit code %d\n%s%s", r.code, r.out, r.talk)
		}
		return nil
	})
}
