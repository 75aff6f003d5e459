//go:build lab

package lab_test

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// copyTree copies a directory of a machine's disk on the host.
func copyTree(t *testing.T, from, to string) {
	t.Helper()
	if out, err := exec.Command("cp", "-a", from, to).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// TestNodeRemoveAndLeave: a server leaves alive, is not let in with the data of
// its old member, joins again, is removed dead, and puts itself away when it
// comes back.
func TestNodeRemoveAndLeave(t *testing.T) {
	l := threeServers(t)
	three := []string{"cp1", "cp2", "cp3"}
	before := l.shape(t)
	_, end := l.underWrites(t, "leave")
	defer end()
	t.Cleanup(func() { l.run(t, "lab", "remove", "x1") })
	l.run(t, "lab", "add", "x1")
	l.awaitMembers(t, append([]string{"x1"}, three...))
	old := l.disk("x1", "old-etcd")
	copyTree(t, l.disk("x1", "var/lib/kuorum/etcd"), old)

	l.on(t, "x1", "kuorum", "leave")
	l.awaitSpare(t, "x1")
	l.awaitMembers(t, three)
	l.unchanged(t, taken, before)

	t.Run("old data is refused", func(t *testing.T) {
		copyTree(t, old, l.disk("x1", "var/lib/kuorum/etcd"))
		token := l.token(t, "server")
		r := l.tryJoin(t, "x1", token)
		if r.code != 5 || !strings.Contains(r.talk, "this machine has the data of an etcd member") || !strings.Contains(r.talk, "kuorum leave --force") {
			t.Fatalf("a join over old data ends with %d: %s", r.code, r.talk)
		}
		l.unchanged(t, taken, before)
		l.on(t, "x1", "kuorum", "leave", "--force")
		if _, err := os.Stat(l.disk("x1", "var/lib/kuorum/left/etcd/member")); err != nil {
			t.Errorf("the old data was not put away: %v", err)
		}
		l.join(t, "x1", token)
		l.awaitMembers(t, append([]string{"x1"}, three...))
	})
	t.Run("a dead one is removed", func(t *testing.T) {
		l.run(t, "lab", "stop", "--power", "x1")
		l.run(t, "node", "remove", "x1")
		l.unchanged(t, taken, before)
		l.run(t, "lab", "start", "--wait=false", "x1")
		l.awaitSpare(t, "x1")
		l.awaitMembers(t, three)
	})
}

// TestJoinWhileAMemberIsDown: with one of three servers off no server may come
// and none may go, a worker may; then the one that is off comes back with an
// empty disk, under its old name.
func TestJoinWhileAMemberIsDown(t *testing.T) {
	l := threeServers(t)
	three := []string{"cp1", "cp2", "cp3"}
	_, end := l.underWrites(t, "down")
	defer end()
	before := l.shape(t)
	l.run(t, "lab", "stop", "--power", "cp3")
	restored := false
	t.Cleanup(func() {
		if !restored {
			l.run(t, "lab", "start", "cp3")
		}
	})
	l.awaitEtcd(t, "degraded")
	r := try(t, "-c", l.name, "lab", "add", "x1")
	if r.code != 5 || !strings.Contains(r.talk, "no server can join while a voter is missing: cp3") {
		t.Errorf("another server is answered with %d: %s%s", r.code, r.out, r.talk)
	}
	const sums = "now: 3 voters, 2 healthy, quorum 2, may lose 0\nafter this: 2 voters, 1 healthy, quorum 2, no quorum"
	for _, args := range [][]string{{"node", "remove", "cp1"}, {"node", "remove", "cp1", "--dry-run"}, {"lab", "remove", "cp1"}} {
		r := try(t, append([]string{"-c", l.name}, args...)...)
		if talk := strings.Join(strings.Fields(r.talk), " "); r.code != 5 || !strings.Contains(talk, strings.Join(strings.Fields(sums), " ")) {
			t.Errorf("%v ends with %d: %s%s", args, r.code, r.out, r.talk)
		}
	}
	if r := l.tryOn(t, "cp1", "kuorum", "leave"); r.code != 5 {
		t.Errorf("leave ends with %d: %s", r.code, r.talk)
	}
	l.unchanged(t, taken, before)
	l.run(t, "lab", "add", "--role", "worker", "w1")
	l.run(t, "lab", "remove", "w1")
	l.unchanged(t, taken, before)

	t.Run("it comes back with an empty disk", func(t *testing.T) {
		for _, path := range []string{"etc/kuorum", "var/lib/kuorum/etcd"} {
			if err := os.RemoveAll(l.disk("cp3", path)); err != nil {
				t.Fatal(err)
			}
		}
		restored = true
		l.run(t, "lab", "start", "--wait=false", "cp3")
		l.join(t, "cp3", l.token(t, "server"))
		l.awaitMembers(t, three)
		l.awaitReady(t)
	})
}
