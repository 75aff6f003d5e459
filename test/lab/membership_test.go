//go:build lab

package lab_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// shape is what a join that fails must leave as it was.
type shape struct{ Spec, Joins, Members, Nodes string }

func (l *lab) shape(t *testing.T) shape {
	t.Helper()
	return shape{
		Spec:    l.run(t, "etcdctl", "get", "--print-value-only", "/kuorum/cluster.yaml"),
		Joins:   l.run(t, "etcdctl", "get", "--prefix", "--keys-only", "/kuorum/joins"),
		Members: l.run(t, "etcdctl", "member", "list"),
		Nodes:   l.kubectl(t, "get", "nodes", "-o", "name"),
	}
}

// unchanged waits until the cluster is as it was.
func (l *lab) unchanged(t *testing.T, limit time.Duration, before shape) {
	t.Helper()
	begin := time.Now()
	eventually(t, limit, func() error {
		if diff := cmp.Diff(before, l.shape(t)); diff != "" {
			return fmt.Errorf("the cluster is not what it was (-before +after):\n%s", diff)
		}
		return nil
	})
	t.Logf("as it was after %v", time.Since(begin).Round(100*time.Millisecond))
}

// awaitMembers waits until everybody agrees on who the servers are, and that
// there are no workers: status, etcd, Kubernetes.
func (l *lab) awaitMembers(t *testing.T, servers []string) {
	t.Helper()
	eventually(t, time.Minute, func() error {
		s := l.status(t)
		if len(s.causes()) > 0 || s.Quorum.Voters != len(servers) {
			return fmt.Errorf("it is %s, %+v, with %q", s.State, s.Quorum, s.causes())
		}
		var voters, nodes []string
		for _, m := range l.etcd(t).Members {
			if m.Healthy && !m.Learner {
				voters = append(voters, m.Name)
			}
		}
		for _, n := range s.Nodes {
			nodes = append(nodes, n.Name)
		}
		slices.Sort(voters)
		slices.Sort(nodes)
		all := slices.Sorted(slices.Values(servers))
		ready := l.kubectl(t, "get", "nodes", "-o", `jsonpath={range .items[?(@.status.conditions[-1].status=="True")]}{.metadata.name} {end}`)
		if diff := cmp.Diff([][]string{slices.Sorted(slices.Values(servers)), all, all}, [][]string{voters, nodes, strings.Fields(ready)}); diff != "" {
			return errors.New("they do not agree (-want +have):\n" + diff)
		}
		return nil
	})
}

// underWrites runs a writer until the function that it returns is called,
// which checks what the writer was told.
func (l *lab) underWrites(t *testing.T, prefix string) (w *writer, end func()) {
	t.Helper()
	w = &writer{maps: l.client(t).ConfigMaps("default"), prefix: prefix, every: 100 * time.Millisecond}
	ctx, cancel := context.WithCancel(t.Context())
	var done sync.WaitGroup
	done.Go(func() { w.run(ctx) })
	t.Cleanup(func() { cancel(); done.Wait() })
	return w, func() {
		t.Helper()
		have := w.count()
		eventually(t, 15*time.Second, func() error { return atLeast(w, have+10) }) // they go on
		cancel()
		done.Wait()
		t.Logf("%d writes acknowledged, the longest gap between two: %v", len(w.acked), w.gap.Round(time.Millisecond))
		if w.gap > max(longestGap, w.patience) {
			t.Errorf("for %v nothing could be written", w.gap)
		}
		w.checkKept(t)
	}
}

// longestGap is what a planned change of the members may cost writers. Most of
// it is for a busy computer: it is a quarter of a second on a quiet one.
const longestGap = 5 * time.Second

// joinToken is what `kuorum token create -o json` prints.
type joinToken struct{ ID, Role, Secret, Pin, Server string }

func (l *lab) token(t *testing.T, role string, more ...string) joinToken {
	t.Helper()
	var token joinToken
	out := l.run(t, append([]string{"token", "create", "--role", role, "-o", "json"}, more...)...)
	if err := json.Unmarshal([]byte(out), &token); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return token
}

// tryJoin runs on a machine the line of the token; more flags win.
func (l *lab) tryJoin(t *testing.T, machine string, token joinToken, more ...string) result {
	t.Helper()
	argv := []string{"kuorum", "join", token.Server, "--role", token.Role, "--token", token.Secret, "--pin", token.Pin}
	return l.tryOn(t, machine, append(argv, more...)...)
}

func (l *lab) tryOn(t *testing.T, machine string, argv ...string) result {
	t.Helper()
	return try(t, append([]string{"-c", l.name, "lab", "console", machine, "--"}, argv...)...)
}

func (l *lab) join(t *testing.T, machine string, token joinToken) {
	t.Helper()
	if r := l.tryJoin(t, machine, token); r.code != 0 {
		t.Fatalf("%s does not join: exit code %d\n%s%s", machine, r.code, r.out, r.talk)
	}
}

func (l *lab) disk(machine, path string) string {
	return filepath.Join(tests.dir, "labs", l.name, "machines", machine, path)
}

func (l *lab) isNode(machine string) bool {
	_, err := os.Stat(l.disk(machine, "etc/kuorum/node"))
	return err == nil
}

// awaitSpare waits until a machine is no node any more: nothing of it runs.
func (l *lab) awaitSpare(t *testing.T, machine string) {
	t.Helper()
	eventually(t, time.Minute, func() error {
		if l.isNode(machine) {
			return fmt.Errorf("%s is still a node", machine)
		}
		return nil
	})
	if r := l.tryOn(t, machine, "pgrep", "-l", "etcd|kube|containerd|flannel|coredns"); r.out != "" {
		t.Errorf("on %s still run\n%s", machine, r.out)
	}
}

// spare is an empty machine of the lab, which ends with the test.
func (l *lab) spare(t *testing.T, name string) {
	t.Helper()
	t.Cleanup(func() { l.run(t, "lab", "remove", name) })
	l.run(t, "lab", "add", "--role", "worker", name) // quicker than a server
	l.run(t, "node", "remove", name)
	l.awaitSpare(t, name)
}

// TestGrowAndShrink takes a lab from one server to five and back under writes,
// without its founder in the end.
func TestGrowAndShrink(t *testing.T) {
	restShared(t) // eight servers are enough for one host
	l := ownLab(t, "grow", "--servers", "1", "--no-switch")
	_, end := l.underWrites(t, "grow")
	step := func(name string, servers []string, verbs ...[]string) {
		t.Helper()
		begin := time.Now()
		for _, verb := range verbs {
			l.run(t, append([]string{"lab"}, verb...)...)
		}
		l.awaitMembers(t, servers)
		t.Logf("%s: %v", name, time.Since(begin).Round(100*time.Millisecond))
	}
	l.twoJoinersAtOnce(t)
	l.awaitMembers(t, []string{"cp1", "cp2", "cp3"})
	step("to five", []string{"cp1", "cp2", "cp3", "cp4", "cp5"}, []string{"add"}, []string{"add"})
	step("without the founder", []string{"cp2", "cp3", "cp4", "cp5"}, []string{"remove", "cp1"})
	servers := []string{"cp2", "cp3", "cp4", "cp5"}
	for len(servers) > 1 { // the leader each time
		leader := l.etcd(t).Leader
		servers = slices.DeleteFunc(servers, func(name string) bool { return name == leader })
		step("without its leader "+leader, servers, []string{"remove", leader})
	}
	if r := try(t, "-c", l.name, "lab", "remove", servers[0]); r.code != 5 || !strings.Contains(r.talk, "is the only server") {
		t.Errorf("removing the last server ends with %d: %s", r.code, r.talk)
	}
	end()
}

// twoJoinersAtOnce: etcd takes one learner at a time, so the second waits.
func (l *lab) twoJoinersAtOnce(t *testing.T) {
	t.Helper()
	var both sync.WaitGroup
	for _, name := range []string{"cp2", "cp3"} {
		both.Go(func() {
			if out, err := tests.command("-c", l.name, "lab", "add", name).CombinedOutput(); err != nil {
				t.Errorf("%s does not join beside the other: %v\n%s", name, err, out)
			}
		})
	}
	both.Wait()
	if t.Failed() {
		t.FailNow()
	}
}
