package relocation

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"kuorum/internal/cluster"
)

// TestReplacedAfterAMove: a node whose move is complete, and that a machine of
// its name replaces at the same address, is taken as the register has it.
func TestReplacedAfterAMove(t *testing.T) {
	t.Parallel()
	spec, err := cluster.NewApart("demo", 3, 2, 1)
	if err != nil {
		t.Fatal(err)
	}
	done := Arrived(mustApply(t, spec, map[string]string{"w1": "198.18.0.150"}), Arrival{"w1", "198.18.0.150"})
	for _, times := range []int{0, 1, 2} {
		register, err := done.With(cluster.Node{Name: "w1", Role: cluster.RoleWorker, Address: "198.18.0.150", Moved: cluster.Move{Times: times}})
		if err != nil {
			t.Fatal(err)
		}
		merged := Merge(done, register, func(string) bool { return false })
		if diff := cmp.Diff(register.Spec.Nodes, merged.Spec.Nodes); diff != "" {
			t.Errorf("moved %d times (-register +merged):\n%s", times, diff)
		}
	}
}

// TestReplacedInTheMiddleOfAMove: the machine that takes the name joins at the
// old address, and its new member is left where it is.
func TestReplacedInTheMiddleOfAMove(t *testing.T) {
	t.Parallel()
	spec, err := cluster.NewApart("demo", 3, 2, 0)
	if err != nil {
		t.Fatal(err)
	}
	mine := mustApply(t, spec, map[string]string{"e2": "198.18.0.62"})
	register, err := mine.With(cluster.Node{Name: "e2", Role: cluster.RoleEtcd, Address: "198.18.0.52", Moved: cluster.Move{Times: 2}}) // as a join writes it
	if err != nil {
		t.Fatal(err)
	}
	learner := []cluster.EtcdMember{{ID: "new", Learner: true, PeerURLs: []string{"https://198.18.0.52:2380"}}}
	for name, s := range map[string]*cluster.Spec{"merged": Merge(mine, register, Names(learner)), "mine": mine} {
		if got := Corrections(s, learner); len(got) > 0 {
			t.Errorf("%s: the new member is to go: %+v", name, got)
		}
	}
	recorded, err := Record(mine, register)
	if err != nil {
		t.Fatal(err)
	}
	if n, _ := recorded.Node("e2"); n.Address != "198.18.0.52" {
		t.Errorf("the register is to have %+v", n)
	}
}
