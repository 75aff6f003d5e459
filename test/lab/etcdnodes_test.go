//go:build lab

package lab_test

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// voters are the members that vote and are well, by name.
func (s etcdStatus) voters() []string {
	var names []string
	for _, m := range s.Members {
		if m.Healthy && !m.Learner {
			names = append(names, m.Name)
		}
	}
	slices.Sort(names)
	return names
}

// awaitVoters waits until exactly these members vote.
func (l *lab) awaitVoters(t *testing.T, names ...string) {
	t.Helper()
	eventually(t, time.Minute, func() error {
		s := l.etcd(t)
		if diff := cmp.Diff(names, s.voters()); diff != "" || s.Quorum.Voters != len(names) {
			return fmt.Errorf("voters %+v (-want +have):\n%s", s.Quorum, diff)
		}
		return nil
	})
}

// TestEtcdNodes: etcd on three machines of its own, under two servers. One of
// them loses its power while the API is written to; the quorum is reckoned by
// them and not by servers; they, and servers, come and go.
func TestEtcdNodes(t *testing.T) {
	restShared(t)                                                           // eight machines are enough for one host
	l := ownLab(t, "apart", "--etcd", "3", "--servers", "2", "--no-switch") // with a first pod
	l.awaitReady(t)
	all := []string{"e1", "e2", "e3"}
	l.awaitVoters(t, all...)
	if got := l.kubectl(t, "get", "nodes", "-o", "jsonpath={.items[*].metadata.name}"); got != "cp1 cp2" {
		t.Errorf("nodes of Kubernetes are %q", got)
	}
	for _, name := range all {
		if r := l.tryOn(t, name, "pgrep", "-l", "kube|containerd|flannel|coredns"); r.out != "" {
			t.Errorf("on %s run\n%s", name, r.out)
		}
		for _, secret := range []string{"ca.key", "agent-ca.key", "etcd/ca.key", "sa.key", "encryption.key"} {
			if _, err := os.Stat(l.disk(name, "etc/kuorum/pki/"+secret)); err == nil {
				t.Errorf("%s holds %s", name, secret)
			}
		}
	}
	if r := l.tryOn(t, "cp1", "pgrep", "-x", "etcd"); r.out != "" {
		t.Errorf("etcd runs on a server: %s", r.out)
	}
	here := l.run(t, "etcd", "members")
	for _, name := range []string{"cp2", "e1"} {
		if there := l.on(t, name, "kuorum", "etcd", "members"); there != here {
			t.Errorf("%s says\n%s\nthe host\n%s", name, there, here)
		}
		if out := l.on(t, name, "kuorum", "etcdctl", "get", "--keys-only", "/kuorum/cluster.yaml"); !strings.Contains(out, "/kuorum/cluster.yaml") {
			t.Errorf("etcdctl on %s says %q", name, out)
		}
	}

	w, end := l.underWrites(t, "apart")
	t.Run("the leader's machine is off", func(t *testing.T) { l.losesEtcdLeader(t, w) })
	t.Run("another takes the place of one", l.replacesEtcdNode)
	t.Run("servers come and go", func(t *testing.T) {
		l.run(t, "lab", "add")
		l.awaitVoters(t, all...)
		l.kubectl(t, "wait", "node/cp3", "--for=condition=Ready", "--timeout=60s")
		l.run(t, "lab", "remove", "cp3")
		l.awaitVoters(t, all...)
	})
	end()
}

// goesOn waits until ten more writes are acknowledged. One that went to a member
// which vanished without a word is given up after 10 s.
func (w *writer) goesOn(t *testing.T) {
	t.Helper()
	have := w.count()
	eventually(t, 15*time.Second, func() error { return atLeast(w, have+10) })
}

func (l *lab) losesEtcdLeader(t *testing.T, w *writer) {
	leader := l.etcd(t).Leader
	l.run(t, "lab", "stop", "--power", leader)
	t.Cleanup(func() {
		l.run(t, "lab", "start", leader)
		l.awaitVoters(t, "e1", "e2", "e3")
	})
	l.awaitEtcd(t, "degraded")
	w.goesOn(t)
	other := "e1"
	if leader == other {
		other = "e2"
	}
	for _, args := range [][]string{{"lab", "stop", other}, {"lab", "stop", "--power", other}, {"node", "remove", other}} {
		r := try(t, append([]string{"-c", l.name}, args...)...)
		if r.code != 5 || !strings.Contains(r.talk, "now: 3 voters, 2 healthy, quorum 2, may lose 0") {
			t.Errorf("%v ends with %d: %s%s", args, r.code, r.out, r.talk)
		}
	}
	if r := try(t, "-c", l.name, "lab", "add", "--role", "etcd"); r.code != 5 || !strings.Contains(r.talk, "no etcd node can join while a voter is missing: "+leader) {
		t.Errorf("another etcd node is answered with %d: %s%s", r.code, r.out, r.talk)
	}
	l.run(t, "lab", "stop", "cp2") // takes no voter away
	w.goesOn(t)
	l.run(t, "lab", "start", "cp2")
}

func (l *lab) replacesEtcdNode(t *testing.T) {
	l.run(t, "lab", "remove", "e3")
	l.awaitVoters(t, "e1", "e2")
	l.run(t, "lab", "add", "--role", "etcd") // takes the free name
	l.awaitVoters(t, "e1", "e2", "e3")

	// API servers are told of the etcd nodes when they start, which they do in turn.
	l.run(t, "lab", "add", "--role", "etcd", "e4")
	l.awaitVoters(t, "e1", "e2", "e3", "e4")
	l.awaitKnown(t, "198.18.0.54:2379", true)
	l.run(t, "lab", "remove", "e4")
	l.awaitVoters(t, "e1", "e2", "e3")
	l.awaitKnown(t, "198.18.0.54:2379", false)
}

// awaitKnown waits until the API servers of cp1 and cp2 know that address of an
// etcd node, or do not any more, and run with it.
func (l *lab) awaitKnown(t *testing.T, address string, want bool) {
	t.Helper()
	eventually(t, time.Minute, func() error {
		for _, name := range []string{"cp1", "cp2"} {
			argv := l.tryOn(t, name, "sh", "-c", "tr '\\0' ' ' < /proc/$(pidof -s kube-apiserver)/cmdline").out
			if strings.Contains(argv, address) != want || argv == "" {
				return fmt.Errorf("the API server of %s runs as %s", name, argv)
			}
		}
		for _, f := range l.status(t).Findings {
			if f.Code == "restart-due" || f.Code == "component-down" {
				return errors.New(f.What)
			}
		}
		return nil
	})
}

// TestEtcdGrowsToSeven: voters come one by one, up to seven, and then the founder
// and a leader go, under writes.
func TestEtcdGrowsToSeven(t *testing.T) {
	restShared(t)
	l := ownLab(t, "seven", "--etcd", "1", "--servers", "2", "--no-switch")
	_, end := l.underWrites(t, "seven")
	var voters []string
	for i := range 7 {
		if i > 0 {
			l.run(t, "lab", "add", "--role", "etcd")
		}
		voters = append(voters, fmt.Sprintf("e%d", i+1))
		l.awaitVoters(t, voters...)
	}
	if s := l.etcd(t); s.Quorum.Quorum != 4 || s.Quorum.MayLose != 3 {
		t.Errorf("seven voters: %+v", s.Quorum)
	}
	for _, name := range []func() string{func() string { return "e1" }, func() string { return l.etcd(t).Leader }} {
		gone := name()
		l.run(t, "lab", "remove", gone)
		voters = slices.DeleteFunc(voters, func(voter string) bool { return voter == gone })
		l.awaitVoters(t, voters...)
	}
	end()
	l.awaitKnown(t, "198.18.0.57:2379", true)
}
