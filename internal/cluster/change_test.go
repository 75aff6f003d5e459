package cluster

import (
	"testing"
	"time"
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
