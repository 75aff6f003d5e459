package membership

import (
	"errors"
	"net"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"kuorum/internal/agent"
	"kuorum/internal/cluster"
	"kuorum/internal/component"
	"kuorum/internal/etcd"
	"kuorum/internal/host"
	"kuorum/internal/pki"
)

const theirEndpoint = "https://10.0.0.1:2379"

// elsewhere is a spec whose etcd somebody else runs.
func elsewhere(t *testing.T, servers, workers int) *cluster.Spec {
	t.Helper()
	spec, err := cluster.New("demo", servers, workers)
	must(t, err)
	spec.Spec.Etcd = cluster.Etcd{External: cluster.ExternalEtcd{Endpoints: []string{theirEndpoint}}}
	must(t, spec.Validate())
	return spec
}

// content is everything in etcd.
func (w *world) content(t *testing.T) []etcd.Record {
	t.Helper()
	records, err := w.service.Etcd.Records(within(t), "/")
	must(t, err)
	return records
}

// write puts a key into etcd, or removes it, whatever is there.
func (w *world) write(t *testing.T, key string, value []byte) {
	t.Helper()
	_, err := w.service.Etcd.Commit(within(t), "test", etcd.Change{Key: key, Value: value, Always: true})
	must(t, err)
}

func foreignBecause(t *testing.T, err error, why string) {
	t.Helper()
	wants(t, err, cluster.ExitRefused, why)
	if !errors.Is(err, ErrForeign) {
		t.Errorf("%v is not ErrForeign", err)
	}
}

// TestClaim: an empty etcd is taken, by all founders at once; any other is refused
// and stays as it is, whatever the name of the cluster that uses it.
func TestClaim(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1) // has written cluster.yaml without an ID
	client, spec := w.service.Etcd, elsewhere(t, 2, 1)
	ours, other := NewSharedRegister(client, "ours"), NewSharedRegister(client, "other")
	before := w.content(t)
	foreignBecause(t, ours.Claim(within(t), spec), `is of cluster "demo", which is not this one, whatever its name`)
	foreignBecause(t, Vacant(within(t), client), `is of cluster "demo"`)
	if _, err := ours.Spec(within(t)); !errors.Is(err, ErrForeign) {
		t.Errorf("another's cluster.yaml is read: %v", err)
	}
	if diff := cmp.Diff(before, w.content(t)); diff != "" {
		t.Errorf("another's data was changed:\n%s", diff)
	}

	w.write(t, specKey, nil)
	w.write(t, "/registry/pods/a", []byte("1"))
	before = w.content(t)
	foreignBecause(t, ours.Claim(within(t), spec), "it has 1 keys below /registry/")
	foreignBecause(t, Vacant(within(t), client), "a Kubernetes cluster that kuorum does not know")
	if diff := cmp.Diff(before, w.content(t)); diff != "" {
		t.Errorf("another's data was changed:\n%s", diff)
	}

	w.write(t, "/registry/pods/a", nil)
	must(t, Vacant(within(t), client))
	var founders sync.WaitGroup
	for range 5 {
		founders.Go(func() {
			err := ours.Claim(within(t), spec)
			if err == nil { // its API server starts
				_, err = client.Commit(within(t), "test", etcd.Change{Key: "/registry/pods/b", Value: []byte("1"), Always: true})
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	founders.Wait()
	if got, err := ours.Spec(within(t)); err != nil || !cmp.Equal(got, spec) {
		t.Errorf("got %v, %v", got, err)
	}
	foreignBecause(t, other.Claim(within(t), spec), `is of cluster "demo"`)
	_, _, err := other.CreateToken(within(t), cluster.RoleEtcd, time.Hour, time.Now())
	foreignBecause(t, err, `is of cluster "demo"`)
	must(t, ours.Claim(within(t), spec))
}

// toExternal makes the world's etcd one that somebody else runs, whose member is
// called as its first server is; cp2 serves.
func toExternal(t *testing.T, w *world) {
	t.Helper()
	w.write(t, specKey, nil)
	spec := elsewhere(t, 3, 1)
	ca, err := pki.NewAuthority("theirs", time.Now(), time.Hour)
	must(t, err)
	pair, err := ca.Issue(pki.Request{CommonName: "kuorum", Client: true, NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour)})
	must(t, err)
	w.set.External, err = pki.NewExternalEtcd(ca.Pair().Cert, pair.Cert, pair.Key, time.Now())
	must(t, err)
	for name, data := range w.set.Files() {
		must(t, host.WriteFile(filepath.Join(w.service.Dir, "pki", name), data, 0o600))
	}
	id, err := ExternalID(w.service.Dir)
	must(t, err)
	w.spec, w.service.Self, w.service.Apart, w.service.External = spec, "cp2", true, true
	w.service.Register = NewSharedRegister(w.service.Etcd, id)
	must(t, w.service.Register.Claim(within(t), spec))
}

// TestMembershipWithEtcdOfSomebodyElse: servers and workers come and go, etcd nodes
// do not, and etcd's members stay as they are, even one with a node's name.
func TestMembershipWithEtcdOfSomebodyElse(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	toExternal(t, w)
	before, err := w.service.Etcd.Members(within(t))
	must(t, err)
	if len(before) != 1 || before[0].Name != "cp1" {
		t.Fatalf("members are %+v", before)
	}

	_, _, err = w.service.Register.CreateToken(within(t), cluster.RoleEtcd, time.Hour, time.Now())
	wants(t, err, cluster.ExitRefused, "somebody else runs its etcd")
	got, err := w.service.Join(within(t), request(w.token(t, cluster.RoleServer), "cp4", cluster.RoleServer, "198.18.0.14"))
	must(t, err)
	if diff := cmp.Diff(w.set.Files(), got.Secrets); diff != "" || got.Initial != (component.InitialCluster{}) {
		t.Errorf("its etcd is told %+v, secrets:\n%s", got.Initial, diff)
	}
	if p, err := w.service.Progress(within(t), Report{Name: "cp4", Ready: true}); err != nil || !p.Done {
		t.Errorf("got %+v, %v", p, err)
	}
	r, _ := w.asks(t, cluster.RoleWorker, "w2", "198.18.0.102")
	worker, err := w.service.Join(within(t), r)
	must(t, err)
	if len(worker.Secrets) != 0 || worker.Certificates["pki/etcd/agent-client"] != nil {
		t.Errorf("a worker gets %d secrets, certificates %v", len(worker.Secrets), worker.Certificates)
	}

	for _, name := range []string{"cp1", "cp4", "w1"} {
		sums, err := w.service.Remove(within(t), Removal{Name: name})
		if err != nil || sums.After != sums.Before {
			t.Errorf("removing %s: %+v, %v", name, sums, err)
		}
	}
	_, err = w.service.Rejoin(within(t), RejoinRequest{Name: "cp3"})
	if err == nil {
		t.Error("a member is made for a server")
	}
	after, err := w.service.Etcd.Members(within(t))
	must(t, err)
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("somebody else's members have changed (-before +after):\n%s", diff)
	}
}

// TestSweepLeavesAnotherClusterAlone: joins that another cluster has under way in
// the same etcd are not taken back.
func TestSweepLeavesAnotherClusterAlone(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	toExternal(t, w)
	_, err := w.service.Join(within(t), request(w.token(t, cluster.RoleServer), "cp4", cluster.RoleServer, "198.18.0.14"))
	must(t, err)
	w.write(t, alivePrefix+"cp4", nil) // it is silent
	ours := w.service.Register
	w.service.Register = NewSharedRegister(w.service.Etcd, "other")
	before := w.content(t)
	if err := w.service.sweep(within(t)); !errors.Is(err, ErrForeign) {
		t.Errorf("got %v", err)
	}
	if diff := cmp.Diff(before, w.content(t)); diff != "" {
		t.Errorf("another cluster's joins were touched:\n%s", diff)
	}
	w.service.Register = ours
	must(t, w.service.sweep(within(t)))
	if keys, _ := w.left(t); len(keys) != 0 {
		t.Errorf("its own is not taken back: %v", keys)
	}
}

// TestReachExternalEtcd: a server that joins needs one endpoint, others none.
func TestReachExternalEtcd(t *testing.T) {
	t.Parallel()
	server := cluster.Node{Name: "n", Role: cluster.RoleServer, Address: loopbackNet() + "1"}
	for _, port := range []int{agent.Port, component.PortAPIServer} {
		ln, err := net.Listen("tcp", net.JoinHostPort(server.Address, strconv.Itoa(port)))
		must(t, err)
		t.Cleanup(func() { _ = ln.Close() })
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	t.Cleanup(func() { _ = ln.Close() })
	open, closed := "https://"+ln.Addr().String(), "https://127.0.0.1:1"
	for _, test := range []struct {
		role      cluster.Role
		endpoints []string
		want      string
	}{
		{cluster.RoleServer, []string{open}, ""},
		{cluster.RoleServer, []string{closed, open}, ""},
		{cluster.RoleServer, []string{closed}, "does not reach the endpoints of etcd of the cluster: https://127.0.0.1:1: "},
		{cluster.RoleWorker, []string{closed}, ""},
	} {
		err := reachAll(t.Context(), test.role, Plan{Servers: []cluster.Node{server}, Endpoints: test.endpoints}, 0)
		if test.want != "" {
			wants(t, err, cluster.ExitRefused, test.want)
		} else if err != nil {
			t.Errorf("%s: %v", test.role, err)
		}
	}
}
