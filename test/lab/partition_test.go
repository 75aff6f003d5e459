//go:build lab

package lab_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// writeAt writes by one server's own API server, which has the time that a person
// has; it reports whether that was acknowledged.
func (l *lab) writeAt(t *testing.T, server, object string) bool {
	t.Helper()
	r := l.tryOn(t, server, "kuorum", "kubectl", "--server", "https://"+addressOf(server)+":6444", "--request-timeout=4s", "create", "configmap",
		fmt.Sprintf("%s-%d", object, time.Now().UnixNano()))
	return r.code == 0
}

// parting is a network that is broken in one way.
type parting struct {
	name string
	// cut is what `kuorum fault cut` takes, of the leader and the two others.
	cut func(leader, second, third string) []string
	// minority is the side that must acknowledge nothing.
	minority func(leader, second, third string) []string
	// elections is how many terms it may cost.
	elections int
}

func partings() []parting {
	leaderAlone := func(leader, _, _ string) []string { return []string{leader} }
	nobody := func(_, _, _ string) []string { return nil }
	return []parting{
		{"the leader alone", func(a, b, c string) []string { return []string{a + "|" + b + "," + c} }, leaderAlone, 3},
		{"a follower alone", func(a, b, c string) []string { return []string{a + "," + b + "|" + c} }, func(_, _, c string) []string { return []string{c} }, 2},
		{"what the leader says is lost", func(a, b, c string) []string { return []string{a + "|" + b + "," + c, "--one-way"} }, leaderAlone, 3},
		{"what the leader should hear is lost", func(a, b, c string) []string { return []string{b + "," + c + "|" + a, "--one-way"} }, leaderAlone, 3},
		{"the leader and one other, who both see the third", func(a, b, _ string) []string { return []string{a + "|" + b} }, nobody, 6},
		{"the port of the leader's etcd", func(a, b, c string) []string { return []string{a + "|" + b + "," + c, "--port", "2380"} }, leaderAlone, 3},
		{"the port of the leader's API server", func(a, b, c string) []string { return []string{a + "|" + b + "," + c, "--port", "6444"} }, nobody, 1},
	}
}

// TestPartings: whichever way the network breaks, who asks from outside can write
// again soon, a side without a quorum acknowledges nothing, the virtual IP is at one
// server of each side at most, and when the network is whole again so is the cluster,
// with all that it has acknowledged.
func TestPartings(t *testing.T) {
	l := threeServers(t)
	for _, p := range partings() {
		t.Run(strings.ReplaceAll(p.name, " ", "_"), func(t *testing.T) { l.part(t, p) })
	}
}

func (l *lab) part(t *testing.T, p parting) {
	t.Helper()
	l.awaitReady(t)
	l.holder(t, "cp1", "cp2", "cp3")
	leader := l.awaitEtcd(t, "healthy").Leader
	rest := others(leader)
	before := l.leads(t)["etcd"].Term
	w, end := l.underWrites(t, "part")
	w.patience = 15 * time.Second // etcd's own timers, and a busy host
	t.Cleanup(func() { l.run(t, "fault", "heal", "--all") })
	l.fault(t, append([]string{"cut"}, p.cut(leader, rest[0], rest[1])...)...)
	have := w.count()
	eventually(t, w.patience, func() error { return atLeast(w, have+10) })

	minority := p.minority(leader, rest[0], rest[1])
	for _, server := range minority {
		if l.writeAt(t, server, "minority") {
			t.Errorf("%s has no quorum and acknowledges a write", server)
		}
	}
	majority := slices.DeleteFunc([]string{"cp1", "cp2", "cp3"}, func(name string) bool { return slices.Contains(minority, name) })
	if minority == nil {
		majority = nil // two that do not see each other may both have it, or all see all
	}
	for _, side := range [][]string{minority, majority} {
		eventually(t, 5*time.Second, func() error {
			if has := l.holders(t, side...); len(has) > 1 {
				return fmt.Errorf("the virtual IP is at %q, which see each other", has)
			}
			return nil
		})
	}
	l.run(t, "fault", "heal", "--all")
	l.awaitReady(t)
	l.holder(t, "cp1", "cp2", "cp3")
	end()
	l.awaitEtcd(t, "healthy")
	if after := l.leads(t)["etcd"].Term; after-before > p.elections {
		t.Errorf("it cost %d elections", after-before)
	}
	t.Logf("writes stopped for %v at most", w.gap.Round(10*time.Millisecond))
}

// TestFlappingLink: a server whose link comes and goes every second, for a minute,
// takes the others at most half of the time, and no storm of elections.
func TestFlappingLink(t *testing.T) {
	const minute = time.Minute
	l := threeServers(t)
	l.awaitReady(t)
	leader := l.awaitEtcd(t, "healthy").Leader
	before := l.leads(t)["etcd"].Term
	w, end := l.underWrites(t, "flap")
	w.patience = minute / 2
	t.Cleanup(func() { l.run(t, "fault", "heal", "--all") })
	beat := time.NewTicker(time.Second)
	defer beat.Stop()
	for begin := time.Now(); time.Since(begin) < minute; {
		l.run(t, "fault", "cut", leader, "--for", "1s")
		<-beat.C
		<-beat.C
	}
	l.run(t, "fault", "heal", "--all")
	l.awaitReady(t)
	end()
	after := l.leads(t)["etcd"].Term
	t.Logf("writes stopped for %v in all, %v at most; %d elections", w.outage.Round(10*time.Millisecond), w.gap.Round(10*time.Millisecond), after-before)
	if w.outage > minute/2 {
		t.Errorf("writes stopped for %v of %v", w.outage, minute)
	}
	if after-before > 15 {
		t.Errorf("%d elections", after-before)
	}
}

// TestEvenSplit: six servers of which no side has a quorum refuse all together and
// say why; of seven, four go on without three.
func TestEvenSplit(t *testing.T) {
	restShared(t) // seven servers are enough for one host
	l := ownLab(t, "split", "--servers", "7", "--no-switch")
	l.awaitReady(t)
	w, end := l.underWrites(t, "split")
	w.patience = 20 * time.Second
	l.run(t, "fault", "cut", "cp1,cp2,cp3,cp4|cp5,cp6,cp7")
	have := w.count()
	eventually(t, w.patience, func() error { return atLeast(w, have+10) })
	for _, server := range []string{"cp5", "cp6", "cp7"} {
		if l.writeAt(t, server, "minority") {
			t.Errorf("%s is one of three of seven and acknowledges a write", server)
		}
	}
	l.run(t, "fault", "heal", "--all")
	l.awaitReady(t)
	end()

	l.run(t, "lab", "remove", "cp7")
	l.awaitMembers(t, []string{"cp1", "cp2", "cp3", "cp4", "cp5", "cp6"})
	l.run(t, "fault", "cut", "cp1,cp2,cp3|cp4,cp5,cp6")
	eventually(t, 20*time.Second, func() error {
		for _, server := range []string{"cp1", "cp4"} {
			if l.writeAt(t, server, "even") {
				return errors.New("a write was acknowledged by " + server)
			}
		}
		return nil
	})
	s := l.status(t)
	if s.Quorum.Voters != 6 || s.Quorum.Quorum != 4 {
		t.Errorf("the status says %+v", s.Quorum)
	}
	for _, server := range []string{"cp2", "cp3", "cp5", "cp6"} {
		if l.writeAt(t, server, "even") {
			t.Errorf("%s is one of three of six and acknowledges a write", server)
		}
	}
	l.run(t, "fault", "heal", "--all")
	l.awaitReady(t)
	l.kubectl(t, "create", "configmap", "whole")
}
