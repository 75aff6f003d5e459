package membership

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"kuorum/internal/cluster"
	"kuorum/internal/datadir"
	"kuorum/internal/etcd"
	"kuorum/internal/pki"
)

func (w *world) workerJoins(t *testing.T, name, address string) Request {
	t.Helper()
	keys, err := pki.NewNodeKeys(cluster.RoleWorker)
	must(t, err)
	r := request(w.token(t, cluster.RoleWorker), name, cluster.RoleWorker, address)
	r.Requests, err = keys.Requests()
	must(t, err)
	_, err = w.service.Join(within(t), r)
	must(t, err)
	return r
}

// falls silent: its lease ends.
func (w *world) falls(t *testing.T, name string) {
	t.Helper()
	_, err := w.service.Etcd.Commit(within(t), "test", etcd.Change{Key: alivePrefix + name, Always: true})
	must(t, err)
}

// TestSweep takes back the joins of machines that are silent and no other.
func TestSweep(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	w.livesAsLeader(t)
	w.workerJoins(t, "w2", "198.18.0.112")
	_, err := w.service.Join(within(t), request(w.token(t, cluster.RoleServer), "cp2", cluster.RoleServer, "198.18.0.12"))
	must(t, err)
	must(t, w.service.sweep(within(t)))
	if keys, urls := w.left(t); len(keys) != 4 || len(urls) != 2 {
		t.Fatalf("a join that lives was taken back: %q %q", keys, urls)
	}
	must(t, w.service.Register.Mark(within(t), "cp2", datadir.Mark{Member: "a2"}))
	w.falls(t, "cp2")
	must(t, w.service.sweep(within(t)))
	keys, urls := w.left(t)
	if diff := cmp.Diff([]string{joinPrefix + "w2", alivePrefix + "w2"}, keys); diff != "" || len(urls) != 1 {
		t.Errorf("members %q, keys\n%s", urls, diff)
	}
	if _, ok := w.now(t).Node("cp2"); ok {
		t.Error("its node stays")
	}
	w.falls(t, "w2")
	must(t, w.service.sweep(within(t)))
	if keys, _ := w.left(t); len(keys) != 0 || !cmp.Equal(w.now(t), w.spec) {
		t.Errorf("left: %q", keys)
	}
}

// TestLeaseEndsTheSignOfLife: the key that tells of life is tied to the lease
// of the join, and each report renews it.
func TestLeaseEndsTheSignOfLife(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	w.workerJoins(t, "w2", "198.18.0.112")
	joins, _, err := w.service.Register.joins(within(t))
	must(t, err)
	must(t, w.service.Etcd.Renew(within(t), joins["w2"].Lease))
	short, err := w.service.Etcd.Grant(within(t), 2*time.Second)
	must(t, err)
	_, err = w.service.Etcd.Commit(within(t), "test", etcd.Change{Key: alivePrefix + "w2", Value: []byte("{}"), Always: true, Lease: short})
	must(t, err)
	waitFor(t, "the sweep to see the end of the lease", func() error {
		if err := w.service.sweep(within(t)); err != nil {
			return err
		}
		_, err := w.service.Progress(within(t), Report{Name: "w2"})
		if err == nil {
			return etcd.ErrNoLease // it is still there
		}
		wants(t, err, cluster.ExitRefused, "was taken back")
		return nil
	})
}

// TestTakeBackIsForOneJoin: what was meant for a join that has ended meanwhile
// leaves the next one of that name alone.
func TestTakeBackIsForOneJoin(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	r := w.workerJoins(t, "w2", "198.18.0.112")
	joins, revisions, err := w.service.Register.joins(within(t))
	must(t, err)
	must(t, w.service.Cancel(within(t), r))
	must(t, w.service.takeBack(within(t), joins["w2"], revisions["w2"])) // it is done already
	_, err = w.service.Join(within(t), r)
	must(t, err)
	must(t, w.service.takeBack(within(t), joins["w2"], revisions["w2"]))
	if keys, _ := w.left(t); len(keys) != 2 {
		t.Errorf("the next join was taken back: %q", keys)
	}
}

// TestTakeBackRestoresTheReplaced: a dead worker is in cluster.yaml as before
// when the machine in its place does not arrive.
func TestTakeBackRestoresTheReplaced(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	r := w.workerJoins(t, "w1", "198.18.0.150") // w1's agent does not answer
	if n, _ := w.now(t).Node("w1"); n.Address != "198.18.0.150" {
		t.Fatalf("got %+v", n)
	}
	again := r
	again.Address = "198.18.0.151" // the same machine, at another address
	_, err := w.service.Join(within(t), again)
	must(t, err)
	must(t, w.service.Cancel(within(t), again))
	if diff := cmp.Diff(w.spec, w.now(t)); diff != "" {
		t.Error(diff)
	}
}

func TestRemove(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 2) // cp2 is a learner that never starts
	w.livesAsLeader(t)
	_, err := w.service.Etcd.AddLearner(within(t), "https://198.18.0.12:2380")
	must(t, err)
	remove := func(r Removal) (Removed, error) { return w.service.Remove(within(t), r) }
	_, err = remove(Removal{Name: "nobody"})
	wants(t, err, cluster.ExitUsage, `no node "nobody": its nodes are cp1, cp2, w1`)
	_, err = remove(Removal{Name: "cp1", Force: true})
	wants(t, err, cluster.ExitRefused, "cannot remove itself")
	got, err := remove(Removal{Name: "cp2", Dry: true})
	one := cluster.QuorumSum{Voters: 1, Healthy: 1, Quorum: 1}
	if diff := cmp.Diff(Removed{Before: one, After: one}, got); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
	if _, urls := w.left(t); len(urls) != 2 || len(w.deleted) != 0 || !cmp.Equal(w.now(t), w.spec) {
		t.Fatalf("a dry run did something: %q, %q", urls, w.deleted)
	}
	for _, name := range []string{"cp2", "w1"} {
		_, err = remove(Removal{Name: name})
		must(t, err)
	}
	if _, urls := w.left(t); len(urls) != 1 || !slices.Equal(w.deleted, []string{"cp2", "w1"}) || len(w.now(t).Spec.Nodes) != 1 {
		t.Errorf("left %q %q %+v", urls, w.deleted, w.now(t).Spec.Nodes)
	}
}

// TestRemoveGuardsTheQuorum asks a server whose own name is not the voter's, so
// that the voter is another's: removing it would leave nobody.
func TestRemoveGuardsTheQuorum(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 2)
	w.livesAsLeader(t)
	w.service.Self = "cp2"
	_, err := w.service.Remove(within(t), Removal{Name: "cp1"})
	wants(t, err, cluster.ExitRefused, "refused to remove cp1: etcd would lose its quorum")
	if _, err := w.service.Remove(within(t), Removal{Name: "cp1", Force: true, Dry: true}); err != nil {
		t.Errorf("force does not: %v", err)
	}
	if _, urls := w.left(t); len(urls) != 1 || !cmp.Equal(w.now(t), w.spec) {
		t.Errorf("a refusal did something: %q", urls)
	}
}

// TestRemoveEndsAJoin, so that the sweep finds nothing of it.
func TestRemoveEndsAJoin(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	w.workerJoins(t, "w2", "198.18.0.112")
	w.service.Self = "cp9"
	_, err := w.service.Remove(within(t), Removal{Name: "w2"})
	must(t, err)
	if keys, _ := w.left(t); len(keys) != 0 || !cmp.Equal(w.now(t), w.spec) {
		t.Errorf("left: %q", keys)
	}
}
