package membership

import (
	"net/url"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"kuorum/internal/cluster"
	"kuorum/internal/datadir"
)

// struck is a world whose server cp2 was struck off the list, and whoever did
// so died then. Its member is a learner that never starts.
func struck(t *testing.T) (*world, leave) {
	t.Helper()
	w := newWorld(t, 2)
	w.livesAsLeader(t)
	_, err := w.service.Etcd.AddLearner(within(t), "https://198.18.0.12:2380")
	must(t, err)
	node, _ := w.spec.Node("cp2")
	l, err := w.service.strike(within(t), node)
	must(t, err)
	if len(l.Members) != 1 {
		t.Fatalf("it has the members %q", l.Members)
	}
	return w, l
}

// TestInterruptedRemoval is finished by who asks again, and by the sweep when
// nobody does, but not before its time.
func TestInterruptedRemoval(t *testing.T) {
	t.Parallel()
	for name, finish := range map[string]func(*world) error{
		"asked again": func(w *world) error {
			_, err := w.service.Remove(within(t), Removal{Name: "cp2"})
			return err
		},
		"swept": func(w *world) error { return w.service.sweepLeaves(within(t), time.Now().Add(time.Hour)) },
	} {
		w, _ := struck(t)
		must(t, w.service.Register.Mark(within(t), "cp2", datadir.Mark{Member: "a2"})) // it lives still
		must(t, w.service.sweepLeaves(within(t), time.Now()))
		if keys, urls := w.left(t); len(urls) != 2 || !slices.Contains(keys, leavePrefix+"cp2") {
			t.Fatalf("%s: swept at once: %q %q", name, keys, urls)
		}
		if got, err := w.service.Remove(within(t), RemovalOf(url.Values{"name": {"cp2"}})); err != nil || got != (Removed{}) {
			t.Errorf("%s: asked what it would do: %+v, %v", name, got, err)
		}
		if keys, urls := w.left(t); len(urls) != 2 || !slices.Contains(keys, leavePrefix+"cp2") {
			t.Fatalf("%s: a question finished it: %q %q", name, keys, urls)
		}
		must(t, finish(w))
		if keys, urls := w.left(t); len(urls) != 1 || len(keys) != 0 || !slices.Equal(w.deleted, []string{"cp2"}) {
			t.Errorf("%s: left %q %q, deleted %q", name, keys, urls, w.deleted)
		}
	}
}

// TestRemovalSparesTheNextJoin: a removal that was begun and not finished must
// not take the member of a machine that has joined under that name since.
func TestRemovalSparesTheNextJoin(t *testing.T) {
	t.Parallel()
	w, old := struck(t)
	_, err := w.service.Join(within(t), request(w.token(t, cluster.RoleServer), "cp2", cluster.RoleServer, "198.18.0.12"))
	must(t, err)
	node, _ := w.now(t).Node("cp2")
	joined, err := w.service.membersOf(within(t), node)
	must(t, err)
	if len(joined) != 1 || joined[0] == old.Members[0] {
		t.Fatalf("after the join it has %q, before it %q", joined, old.Members)
	}
	before := len(w.deleted)
	must(t, w.service.finishLeave(within(t), old)) // a sweep that had read the note in time
	must(t, w.service.sweepLeaves(within(t), time.Now().Add(time.Hour)))
	if now, err := w.service.membersOf(within(t), node); err != nil || !slices.Equal(now, joined) || len(w.deleted) != before {
		t.Errorf("it has %q now, %v; deleted %q", now, err, w.deleted)
	}
	if _, ok := w.now(t).Node("cp2"); !ok {
		t.Error("it is no node any more")
	}
}

// TestMarks are read without a quorum, each node's newest.
func TestMarks(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	register := w.service.Register
	if got, err := register.Marks(within(t)); err != nil || len(got) != 0 {
		t.Errorf("before the first: %+v, %v", got, err)
	}
	one := datadir.Mark{Cluster: "c1", Member: "a1", Index: 7, At: time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC)}
	two := one
	two.Member = "a2"
	must(t, register.Mark(within(t), "cp1", one))
	must(t, register.Mark(within(t), "cp2", two))
	one.Index = 9
	must(t, register.Mark(within(t), "cp1", one))
	got, err := register.Marks(within(t))
	must(t, err)
	if diff := cmp.Diff([]datadir.Mark{one, two}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
