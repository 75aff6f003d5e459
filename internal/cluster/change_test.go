package cluster

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestWithAndWithout: a spec grows and shrinks, gives out addresses, stays
// valid, and the one before it is not changed.
func TestWithAndWithout(t *testing.T) {
	spec, err := New("demo", 1, 0)
	if err != nil {
		t.Fatal(err)
	}
	two, err := spec.With(Node{Name: "cp2", Role: RoleServer})
	if err != nil || len(two.Servers()) != 2 || two.Servers()[1].Address != "198.18.0.12" {
		t.Fatalf("got %+v, %v", two, err)
	}
	moved, err := two.With(Node{Name: "cp2", Role: RoleServer, Address: "198.18.0.50"})
	if err != nil || len(moved.Servers()) != 2 || moved.Servers()[1].Address != "198.18.0.50" {
		t.Errorf("got %+v, %v", moved, err)
	}
	if _, err := two.With(Node{Name: "cp3", Role: RoleServer, Address: "198.18.0.11"}); err == nil {
		t.Error("two nodes have one address")
	}
	if _, err := two.With(Node{Name: "cp3", Role: "boss"}); err == nil {
		t.Error("a node has a role that does not exist")
	}
	one, err := two.Without("cp1")
	if err != nil || len(one.Spec.Nodes) != 1 || one.Spec.Nodes[0].Name != "cp2" {
		t.Errorf("got %+v, %v", one, err)
	}
	if _, err := one.Without("cp2"); err == nil {
		t.Error("a cluster is left without a node")
	}
	worker, err := one.With(Node{Name: "w1", Role: RoleWorker})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := worker.Without("cp2"); err == nil {
		t.Error("a cluster is left without a server")
	}
	if len(spec.Spec.Nodes) != 1 || len(two.Spec.Nodes) != 2 || two.Spec.Nodes[1].Address != "198.18.0.12" {
		t.Error("the spec itself was changed")
	}
}

// TestWithTimers: other timers are a spec of their own, and bad ones none.
func TestWithTimers(t *testing.T) {
	spec, err := New("demo", 3, 0)
	if err != nil {
		t.Fatal(err)
	}
	fast, err := spec.WithTimers(20*time.Millisecond, 200*time.Millisecond)
	if err != nil || fast.Spec.Etcd.Heartbeat != Duration(20*time.Millisecond) || fast.Spec.Etcd.ElectionTimeout != Duration(200*time.Millisecond) {
		t.Errorf("got %+v, %v", fast.Spec.Etcd, err)
	}
	if spec.Spec.Etcd.Heartbeat != Duration(100*time.Millisecond) || spec.Spec.Etcd.ElectionTimeout != Duration(time.Second) {
		t.Errorf("the first spec has changed: %+v", spec.Spec.Etcd)
	}
	if _, err := spec.WithTimers(100*time.Millisecond, 200*time.Millisecond); err == nil {
		t.Error("an election after two heartbeats is taken")
	}
}

// TestEtcdStaysWhereItIs: etcd nodes come and go, but the first and the last
// would move all of etcd's members at once.
func TestEtcdStaysWhereItIs(t *testing.T) {
	stacked, err := New("demo", 3, 0)
	if err != nil {
		t.Fatal(err)
	}
	apart, err := NewApart("demo", 2, 1, 1)
	if err != nil {
		t.Fatal(err)
	}
	refused := func(what string, err error) {
		t.Helper()
		problem, ok := errors.AsType[*Problem](err)
		if !ok || problem.ExitCode() != ExitRefused || problem.Do == "" {
			t.Errorf("%s: got %v", what, err)
		}
	}
	_, err = stacked.With(Node{Name: "e1", Role: RoleEtcd})
	refused("the first etcd node", err)
	_, err = stacked.With(Node{Name: "cp3", Role: RoleEtcd})
	refused("a server that becomes an etcd node", err)
	grown, err := apart.With(Node{Name: "e3", Role: RoleEtcd})
	if err != nil || len(grown.EtcdNodes()) != 3 || grown.EtcdNodes()[2].Address != "198.18.0.53" {
		t.Errorf("got %+v, %v", grown, err)
	}
	one, err := apart.Without("e1")
	if err != nil || len(one.EtcdNodes()) != 1 {
		t.Fatalf("got %+v, %v", one, err)
	}
	_, err = one.Without("e2")
	refused("the last etcd node", err)
	_, err = one.With(Node{Name: "e2", Role: RoleWorker})
	refused("the last etcd node as a worker", err)
	if _, err := one.Without("cp1"); err == nil {
		t.Error("a cluster is left without a server")
	}
}

// TestLastBalancerStays: with it the address of the API would go.
func TestLastBalancerStays(t *testing.T) {
	spec, err := Parse("cluster.yaml", []byte("apiVersion: kuorum.dev/v1alpha1\nkind: Cluster\nmetadata: {name: a}\nspec:\n  endpoint: {type: haproxy}\n"))
	if err != nil {
		t.Fatal(err)
	}
	one, err := spec.Without("lb1")
	if err != nil || len(one.Balancers()) != 1 || one.Balancers()[0].Address != "198.18.0.42" {
		t.Fatalf("%+v, %v", one, err)
	}
	_, err = one.Without("lb2")
	problem, ok := errors.AsType[*Problem](err)
	if !ok || problem.Exit != ExitRefused || !strings.Contains(problem.Why, spec.Spec.Endpoint.Address) {
		t.Errorf("the last one: %v", err)
	}
	if _, err := one.With(Node{Name: "lb2", Role: RoleWorker}); err == nil {
		t.Error("the last one becomes a worker")
	}
	two, err := one.With(Node{Name: "lb9", Role: RoleBalancer})
	if err != nil || two.Balancers()[1].Address != "198.18.0.41" {
		t.Errorf("%+v, %v", two, err)
	}
	if spec.ServersHoldVIP() || !spec.Spec.Endpoint.HasVIP() || one.Balancers()[0].Role.RunsPods() {
		t.Error("who holds the address, and who runs pods, is mixed up")
	}
}

// TestWhoHasAMember: etcd is where its nodes are, else on the servers.
func TestWhoHasAMember(t *testing.T) {
	names := func(nodes []Node) (list []string) {
		for _, n := range nodes {
			list = append(list, n.Name)
		}
		return list
	}
	for _, c := range []struct {
		etcd                     int
		apart                    bool
		voters, kubernetes, have []string
	}{
		{0, false, []string{"cp1", "cp2"}, []string{"cp1", "cp2", "w1"}, []string{"cp1", "cp2"}},
		{1, true, []string{"e1"}, []string{"cp1", "cp2", "w1"}, []string{"e1"}},
		{3, true, []string{"e1", "e2", "e3"}, []string{"cp1", "cp2", "w1"}, []string{"e1", "e2", "e3"}},
	} {
		s, err := NewApart("demo", c.etcd, 2, 1)
		if err != nil {
			t.Fatal(err)
		}
		var have []string
		for _, n := range s.Spec.Nodes {
			if s.HasMember(n) {
				have = append(have, n.Name)
			}
		}
		if s.EtcdApart() != c.apart {
			t.Errorf("%d etcd nodes: apart is %v", c.etcd, s.EtcdApart())
		}
		want := [][]string{c.voters, c.kubernetes, c.have}
		if diff := cmp.Diff(want, [][]string{names(s.EtcdNodes()), names(s.KubernetesNodes()), have}); diff != "" {
			t.Errorf("%d etcd nodes (-want +got):\n%s", c.etcd, diff)
		}
	}
}

// TestEtcdOfSomebodyElse: no node has a member and none can get one, what is
// theirs has no defaults, and the files are named where the cluster is made only.
func TestEtcdOfSomebodyElse(t *testing.T) {
	text := head + `spec:
  servers: 2
  workers: 1
  etcd: {external: {endpoints: ["https://10.0.0.1:2379"], ca: ca.crt, certificate: c.crt, key: c.key}}
`
	spec, err := Parse("cluster.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	e := spec.Spec.Etcd
	if !spec.EtcdExternal() || spec.EtcdApart() || len(spec.EtcdNodes()) != 0 || e.Heartbeat != 0 || e.ElectionTimeout != 0 || e.QuotaMiB != 0 {
		t.Errorf("got %+v, members on %v", e, spec.EtcdNodes())
	}
	for _, n := range append(spec.Spec.Nodes, Node{Name: "e1", Role: RoleEtcd}) {
		if spec.HasMember(n) {
			t.Errorf("%s has a member", n.Name)
		}
	}
	kept := spec.WithoutEtcdFiles()
	if diff := cmp.Diff(ExternalEtcd{Endpoints: e.External.Endpoints}, kept.Spec.Etcd.External); diff != "" || !spec.Spec.Etcd.External.NamesFiles() {
		t.Errorf("kept is (-want +got):\n%s", diff)
	}
	if err := kept.Validate(); err != nil || kept.Spec.Etcd.External.NamesFiles() {
		t.Errorf("what is kept is refused: %v", err)
	}
	_, err = kept.With(Node{Name: "e1", Role: RoleEtcd})
	if problem, ok := errors.AsType[*Problem](err); !ok || problem.ExitCode() != ExitRefused {
		t.Errorf("an etcd node is answered with %v", err)
	}
	if grown, err := kept.With(Node{Name: "cp3", Role: RoleServer}); err != nil || len(grown.Servers()) != 3 {
		t.Errorf("got %v, %v", grown, err)
	}
}
