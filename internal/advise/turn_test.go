package advise

import (
	"strings"
	"testing"

	"kuorum/internal/cluster"
)

// TestTurn: cp1 leads. Whoever has something to replace waits until the others
// can do without it.
func TestTurn(t *testing.T) {
	stale := func(names ...string) func(w *world) {
		return func(w *world) {
			for _, name := range names {
				w.node(name).Stale = []string{etcd, apiserver}
			}
		}
	}
	for _, test := range []struct {
		name    string
		servers int
		change  func(w *world)
		node    string
		waits   string // empty: it may
	}{
		{"a follower", 3, stale("cp1", "cp2", "cp3"), "cp3", ""},
		{"the leader before the others", 3, stale("cp1", "cp2"), "cp1", "cp2 comes before the leader"},
		{"the leader at last", 3, stale("cp1"), "cp1", ""},
		{"nothing to do", 3, stale("cp1"), "cp2", "nothing to replace"},
		{"a silent one", 3, func(w *world) { stale("cp2")(w); w.lose("cp2") }, "cp2", "nothing to replace"},
		{"another server is off", 3, func(w *world) { stale("cp2")(w); w.lose("cp3") }, "cp2", "the quorum would be lost"},
		{"the first to have its turn is not well", 3, func(w *world) {
			stale("cp1", "cp2")(w)
			w.node("cp3").Ready = false
		}, "cp2", "cp3 is not ready"},
		{"an ill one whose turn comes", 3, func(w *world) {
			stale("cp2", "cp3")(w)
			w.node("cp3").Ready = false
		}, "cp2", ""},
		{"a worker is not well", 3, func(w *world) { stale("cp2")(w); w.node("w1").Ready = false }, "cp2", ""},
		{"a worker lies", 3, func(w *world) {
			stale("cp2")(w)
			w.lose("cp3")
			lie := *w.etcd("cp1")
			lie.AppliedIndex, lie.Members = 1_000_000, lie.Members[:1]
			w.node("w1").Etcd, w.node("w1").Stale = &lie, []string{etcd}
		}, "cp2", "the quorum would be lost"},
		{"a worker is off", 3, func(w *world) { stale("cp2")(w); w.lose("w1") }, "cp2", ""},
		{"the only server", 1, stale("cp1"), "cp1", ""},
		{"two servers", 2, stale("cp2"), "cp2", "the quorum would be lost"},
		{"no other API server", 3, func(w *world) {
			w.node("cp2").Stale = []string{apiserver}
			for _, name := range []string{"cp1", "cp3"} {
				w.node(name).Stale = []string{apiserver}
				w.phase(name, phaseStarting, apiserver)
			}
		}, "cp2", "no other API server is ready"},
		{"API servers alone need no quorum", 3, func(w *world) {
			w.node("cp2").Stale = []string{apiserver}
			w.lose("cp3")
		}, "cp2", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := wellWorld(t, test.servers, 1)
			test.change(w)
			got := Turn(w.spec, w.reports, test.node)
			if (got == "") != (test.waits == "") || !strings.Contains(got, test.waits) {
				t.Errorf("it waits for %q, want %q", got, test.waits)
			}
		})
	}
}

// TestNothingToLose: without a word of etcd only a server goes on whose API
// server does not work, and that has no member.
func TestNothingToLose(t *testing.T) {
	apart, err := cluster.NewApart("demo", 3, 2, 1)
	if err != nil {
		t.Fatal(err)
	}
	stacked, err := cluster.New("demo", 3, 1)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		spec  *cluster.Spec
		name  string
		phase string
		want  bool
	}{
		{apart, "cp1", phaseStarting, true},
		{apart, "cp1", phaseReady, false},
		{apart, "e1", phaseReady, false},
		{apart, "w1", phaseReady, false},
		{stacked, "cp1", phaseStarting, false},
	} {
		reports := []cluster.NodeReport{{Name: test.name, Status: &cluster.NodeStatus{
			Name: test.name, Components: []cluster.ComponentStatus{{Name: apiserver, Phase: test.phase}},
		}}}
		if got := NothingToLose(test.spec, reports, test.name); got != test.want {
			t.Errorf("%s, whose API server is %s: %v", test.name, test.phase, got)
		}
	}
}
