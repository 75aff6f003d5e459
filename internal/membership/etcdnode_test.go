package membership

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"kuorum/internal/agent"
	"kuorum/internal/cluster"
	"kuorum/internal/component"
	"kuorum/internal/etcd"
	"kuorum/internal/pki"
)

// asks is the request of a node that has made its own keys, and the keys.
func (w *world) asks(t *testing.T, role cluster.Role, name, address string) (Request, pki.NodeKeys) {
	t.Helper()
	keys, err := pki.NewNodeKeys(role)
	must(t, err)
	r := request(w.token(t, role), name, role, address)
	r.Requests, err = keys.Requests()
	must(t, err)
	return r, keys
}

// TestEtcdNodeJoins as a learner, with keys of its own and none of anybody
// else; the server that lets it in has no member itself.
func TestEtcdNodeJoins(t *testing.T) {
	t.Parallel()
	w := newWorldApart(t, 1, 1)
	w.livesAsLeader(t)
	r, keys := w.asks(t, cluster.RoleEtcd, "e2", "198.18.0.52")
	got, err := w.service.Join(within(t), r)
	must(t, err)
	node, ok := got.Spec.Node("e2")
	if !ok || len(got.Secrets) != 0 || got.Initial.State != component.InitialExisting {
		t.Fatalf("got %+v, %d secrets, %+v", node, len(got.Secrets), got.Initial)
	}
	const both = "e1=https://198.18.0.51:2380,e2=https://198.18.0.52:2380"
	if members := slices.Sorted(strings.SplitSeq(got.Initial.Members, ",")); strings.Join(members, ",") != both {
		t.Errorf("its etcd is told %v", members)
	}
	if _, err := keys.Files(got.Spec, node, got.Certificates, got.Trust); err != nil {
		t.Errorf("what it gets is of no use to it: %v", err)
	}
	if keys, urls := w.left(t); len(keys) != 2 || len(urls) != 2 {
		t.Fatalf("its join is %q, members are at %q", keys, urls)
	}
	if p, err := w.service.Progress(within(t), Report{Name: "e2", Ready: true}); err != nil || p.Done || p.Waits != "its etcd does not answer yet" {
		t.Errorf("ready without a vote: %+v, %v", p, err)
	}
	must(t, w.service.Cancel(within(t), r))
	if keys, urls := w.left(t); len(keys) != 0 || len(urls) != 1 || !cmp.Equal(w.now(t), w.spec) {
		t.Errorf("a join that was given up leaves %q %q", keys, urls)
	}
}

// TestServerJoinsEtcdApart: it gets the authorities and no member, and has
// joined once it is ready.
func TestServerJoinsEtcdApart(t *testing.T) {
	t.Parallel()
	w := newWorldApart(t, 1, 1) // no agent answers, so a voter would not be let in
	got, err := w.service.Join(within(t), request(w.token(t, cluster.RoleServer), "cp2", cluster.RoleServer, "198.18.0.12"))
	must(t, err)
	if diff := cmp.Diff(w.set.Files(), got.Secrets); diff != "" || got.Initial != (component.InitialCluster{}) {
		t.Errorf("its etcd is told %+v, secrets:\n%s", got.Initial, diff)
	}
	if _, urls := w.left(t); len(urls) != 1 {
		t.Errorf("members are at %q", urls)
	}
	if p, err := w.service.Progress(within(t), Report{Name: "cp2"}); err != nil || p.Done {
		t.Errorf("got %+v, %v", p, err)
	}
	for range 2 {
		if p, err := w.service.Progress(within(t), Report{Name: "cp2", Ready: true}); err != nil || !p.Done {
			t.Errorf("got %+v, %v", p, err)
		}
	}
}

// TestNoKeysForEtcdNodes: what a token is for cannot be changed by what is said
// beside it, and a cluster keeps etcd where it is.
func TestNoKeysForEtcdNodes(t *testing.T) {
	t.Parallel()
	w := newWorldApart(t, 1, 1)
	w.livesAsLeader(t)
	before := w.now(t)
	etcdToken := w.token(t, cluster.RoleEtcd)
	_, err := w.service.Join(within(t), request(etcdToken, "cp2", cluster.RoleServer, "198.18.0.12"))
	wants(t, err, cluster.ExitRefused, "it is for an etcd node, not for a server")
	r, _ := w.asks(t, cluster.RoleWorker, "e2", "198.18.0.52")
	r.Token, r.Role = etcdToken, cluster.RoleEtcd
	if _, err = w.service.Join(within(t), r); err == nil || !strings.Contains(err.Error(), "cannot sign") {
		t.Errorf("a worker's requests were signed for an etcd node: %v", err)
	}
	if keys, urls := w.left(t); len(keys) != 0 || len(urls) != 1 || !cmp.Equal(w.now(t), before) {
		t.Errorf("left: %q %q", keys, urls)
	}

	stacked := newWorld(t, 1)
	_, _, err = stacked.service.Register.CreateToken(within(t), cluster.RoleEtcd, time.Hour, time.Now())
	wants(t, err, cluster.ExitRefused, "its etcd is on the servers, and stays there")
}

// TestSweepEtcdApart: one of the servers acts, and goes on to; where it has
// gone, another does.
func TestSweepEtcdApart(t *testing.T) {
	t.Parallel()
	w := newWorldApart(t, 1, 2)
	other := *w.service
	other.Self = "cp2"
	for _, turn := range []struct {
		service *Service
		want    bool
	}{{w.service, true}, {&other, false}, {w.service, true}} {
		if mine, err := turn.service.Acts(within(t)); err != nil || mine != turn.want {
			t.Errorf("%s acts: %v, %v", turn.service.Self, mine, err)
		}
	}
	w.workerJoins(t, "w2", "198.18.0.112")
	w.falls(t, "w2")
	must(t, other.sweep(within(t)))
	if keys, _ := w.left(t); len(keys) != 1 {
		t.Errorf("both act: %q", keys)
	}
	must(t, w.service.sweep(within(t)))
	if keys, _ := w.left(t); len(keys) != 0 || !cmp.Equal(w.now(t), w.spec) {
		t.Errorf("left: %q", keys)
	}
	record, err := w.service.Etcd.Record(within(t), sweeperKey)
	must(t, err)
	if string(record.Value) != "cp1" {
		t.Errorf("it is the turn of %q", record.Value)
	}
	_, err = w.service.Etcd.Commit(within(t), "test", etcd.Change{Key: sweeperKey, Always: true}) // as the end of its lease
	must(t, err)
	if mine, err := other.Acts(within(t)); err != nil || !mine {
		t.Errorf("cp2 does not take its turn: %v", err)
	}
}

// TestRemoveEtcdApart: the quorum is that of the etcd nodes. A server may go
// whatever it is, an etcd node not if that costs it; the last never.
func TestRemoveEtcdApart(t *testing.T) {
	t.Parallel()
	w := newWorldApart(t, 2, 3) // e2 is in cluster.yaml, and no member
	w.livesAsLeader(t)
	sums, err := w.service.Remove(within(t), Removal{Name: "cp3"})
	must(t, err)
	if sums.Before.Voters != 1 || sums.After != sums.Before {
		t.Errorf("a server without a member costs votes: %+v", sums)
	}
	_, err = w.service.Remove(within(t), Removal{Name: "e1"})
	wants(t, err, cluster.ExitRefused, "etcd would lose its quorum")
	begin := time.Now()
	_, err = w.service.Remove(within(t), Removal{Name: "e2"})
	must(t, err)
	if took := time.Since(begin); took > leaveLife/2 {
		t.Errorf("it was waited for, for %v", took)
	}
	_, err = w.service.Remove(within(t), Removal{Name: "e1", Force: true})
	wants(t, err, cluster.ExitRefused, "the last etcd node")
	var names []string
	for _, n := range w.now(t).Spec.Nodes {
		names = append(names, n.Name)
	}
	if diff := cmp.Diff([]string{"cp1", "cp2", "e1", "w1"}, names); diff != "" {
		t.Errorf("nodes (-want +got):\n%s", diff)
	}
}

func TestSuccession(t *testing.T) {
	t.Parallel()
	of := func(id, leader string, term uint64) cluster.EtcdStatus {
		return cluster.EtcdStatus{ID: id, Leader: leader, Term: term}
	}
	learner := of("l", "a", 3)
	learner.Learner = true
	for _, test := range []struct {
		name         string
		statuses     []cluster.EtcdStatus
		going        []string
		leader, heir string
	}{
		{"its own member", []cluster.EtcdStatus{of("a", "b", 3)}, []string{"b"}, "b", "a"},
		{"its own member goes", []cluster.EtcdStatus{of("a", "a", 3)}, []string{"a"}, "a", ""},
		{"the leader goes", []cluster.EtcdStatus{of("a", "a", 3), of("b", "a", 3), of("c", "a", 3)}, []string{"a"}, "a", "b"},
		{"one is silent", []cluster.EtcdStatus{of("a", "a", 3), {Error: "x"}, of("c", "a", 3)}, []string{"a"}, "a", "c"},
		{"a learner is no heir", []cluster.EtcdStatus{learner, of("a", "a", 3), of("c", "a", 3)}, []string{"a"}, "a", "c"},
		{"one follows an old leader", []cluster.EtcdStatus{of("b", "z", 2), of("a", "a", 3), of("c", "a", 3)}, []string{"a"}, "a", "c"},
		{"nobody answers", []cluster.EtcdStatus{{Error: "x"}}, []string{"a"}, "", ""},
		{"no leader", []cluster.EtcdStatus{of("a", "", 3), of("b", "", 3)}, []string{"a"}, "", ""},
	} {
		if leader, heir := succession(test.statuses, test.going); leader != test.leader || heir != test.heir {
			t.Errorf("%s: leader %q, heir %q", test.name, leader, heir)
		}
	}
}

// TestReachEtcdApart: a server needs the etcd nodes as a client does, an etcd
// node as their peer, a worker not at all.
func TestReachEtcdApart(t *testing.T) {
	t.Parallel()
	node := func(role cluster.Role) cluster.Node {
		return cluster.Node{Name: "n", Role: role, Address: loopbackNet() + "1"}
	}
	open := func(n cluster.Node, ports ...int) cluster.Node {
		for _, port := range ports {
			ln, err := net.Listen("tcp", fmt.Sprintf("%s:%d", n.Address, port))
			must(t, err)
			t.Cleanup(func() { _ = ln.Close() })
		}
		return n
	}
	both := open(node(cluster.RoleServer), agent.Port, component.PortAPIServer)
	quiet := open(node(cluster.RoleServer), agent.Port)
	client, peer := open(node(cluster.RoleEtcd), component.PortEtcdClient), open(node(cluster.RoleEtcd), component.PortEtcdPeer)
	for _, test := range []struct {
		role         cluster.Role
		server, etcd cluster.Node
		want         string
	}{
		{cluster.RoleServer, both, client, ""},
		{cluster.RoleServer, both, peer, "does not reach the etcd nodes of the cluster: n at " + peer.Address + ": port 2379"},
		{cluster.RoleServer, quiet, client, "does not reach the servers of the cluster"},
		{cluster.RoleEtcd, quiet, peer, ""},
		{cluster.RoleEtcd, both, client, "port 2380"},
		{cluster.RoleWorker, both, node(cluster.RoleEtcd), ""},
		{cluster.RoleWorker, quiet, client, "port 6444"},
	} {
		err := reachAll(t.Context(), test.role, Plan{Servers: []cluster.Node{test.server}, Etcd: []cluster.Node{test.etcd}}, 0)
		if test.want != "" {
			wants(t, err, cluster.ExitRefused, test.want)
		} else if err != nil {
			t.Errorf("%s: %v", test.role, err)
		}
	}
}

func TestPortsEtcdApart(t *testing.T) {
	t.Parallel()
	apart, err := cluster.NewApart("demo", 1, 1, 1)
	must(t, err)
	for role, want := range map[cluster.Role][]int{
		cluster.RoleServer: {9443, 10250, 6444}, cluster.RoleWorker: {9443, 10250}, cluster.RoleEtcd: {9443, 2379, 2380},
	} {
		if diff := cmp.Diff(want, portsOf(apart, cluster.Node{Role: role})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", role, diff)
		}
	}
}
