package component

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"kuorum/internal/cluster"
)

// TestEtcdNodeRunsEtcdAlone: an etcd node is no node of Kubernetes, and its
// etcd is told what that of a server would be.
func TestEtcdNodeRunsEtcdAlone(t *testing.T) {
	m := machineOf(t, 3, "e2")
	list := For(m)
	if len(list) != 1 || list[0].Name != "etcd" || len(list[0].After) != 0 {
		t.Fatalf("e2 runs %+v", list)
	}
	const members = "e1=https://198.18.0.51:2380,e2=https://198.18.0.52:2380,e3=https://198.18.0.53:2380"
	for flag, want := range map[string]string{
		"name": "e2", "initial-cluster": members, "initial-cluster-state": "new",
		"listen-peer-urls":   "https://198.18.0.52:2380",
		"listen-client-urls": "https://198.18.0.52:2379,https://127.0.0.1:2379",
	} {
		if got := flagOf(t, list[0], flag); got != want {
			t.Errorf("--%s is %s, want %s", flag, got, want)
		}
	}
	var ports []string
	for _, p := range Ports(m.Spec, m.Node) {
		ports = append(ports, p.Address.String()+" "+p.Program)
	}
	want := []string{
		"198.18.0.52:2379 etcd", "198.18.0.52:2380 etcd", "127.0.0.1:2379 etcd", "127.0.0.1:2381 etcd",
		"198.18.0.52:9443 agent", "127.0.0.1:9443 agent",
	}
	if diff := cmp.Diff(want, ports); diff != "" {
		t.Errorf("ports (-want +got):\n%s", diff)
	}
}

// TestServerWithoutMember: its API server asks all etcd nodes and waits for no
// etcd of its own; all else is as on a server that has one.
func TestServerWithoutMember(t *testing.T) {
	apart, stacked := machineOf(t, 3, "cp1"), machineOf(t, 0, "cp1")
	want := "https://198.18.0.51:2379,https://198.18.0.52:2379,https://198.18.0.53:2379"
	if got := flagOf(t, find(t, apart, "kube-apiserver"), "etcd-servers"); got != want {
		t.Errorf("--etcd-servers is %s, want %s", got, want)
	}
	if after := find(t, apart, "kube-apiserver").After; len(after) != 0 {
		t.Errorf("kube-apiserver waits for %v", after)
	}
	var without []Component
	for _, c := range For(stacked) {
		if c.Name != "etcd" {
			without = append(without, c)
		}
	}
	list := For(apart)
	at := slices.IndexFunc(list, func(c Component) bool { return c.Name == "kube-apiserver" })
	list[at], without[at] = Component{}, Component{}
	if diff := cmp.Diff(render(without, stacked), render(list, apart)); diff != "" {
		t.Errorf("a server with and without a member (-with +without):\n%s", diff)
	}
	for _, p := range Ports(apart.Spec, apart.Node) {
		if p.Program == "etcd" {
			t.Errorf("it has the port %s of etcd", p.Address)
		}
	}
}

// TestEtcdEndpoints: a member's own node asks that member alone.
func TestEtcdEndpoints(t *testing.T) {
	for _, c := range []struct {
		etcd int
		node string
		want string
	}{
		{0, "cp2", EtcdClient},
		{3, "e1", EtcdClient},
		{1, "cp2", "https://198.18.0.51:2379"},
		{2, "cp2", "https://198.18.0.51:2379 https://198.18.0.52:2379"},
	} {
		m := machineOf(t, c.etcd, c.node)
		if got := strings.Join(EtcdEndpoints(m.Spec, m.Node), " "); got != c.want {
			t.Errorf("%s with %d etcd nodes asks %s, want %s", c.node, c.etcd, got, c.want)
		}
	}
}

// TestChangedEtcdNodesRestartTheAPIServerOnly: that is what it is told of them
// for; their own etcd is told once.
func TestChangedEtcdNodesRestartTheAPIServerOnly(t *testing.T) {
	larger, err := cluster.NewApart("demo", 5, 3, 1)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string][]string{"cp1": {"kube-apiserver"}, "w1": nil, "e1": nil} {
		before := machineOf(t, 3, name)
		after := before
		after.Spec = larger
		var changed []string
		for _, c := range For(before) {
			if find(t, after, c.Name).Digest() != c.Digest() {
				changed = append(changed, c.Name)
			}
		}
		if diff := cmp.Diff(want, changed); diff != "" {
			t.Errorf("%s restarts (-want +got):\n%s", name, diff)
		}
	}
}

// TestServerOnEtcdOfSomebodyElse: it runs no etcd and waits for none, asks their
// endpoints with what they gave, and is in all else as one whose etcd is apart.
func TestServerOnEtcdOfSomebodyElse(t *testing.T) {
	apart := machineOf(t, 3, "cp1")
	external := apart
	spec := *apart.Spec
	spec.Spec.Etcd = cluster.Etcd{External: cluster.ExternalEtcd{Endpoints: []string{"https://10.0.0.1:2379", "https://etcd.example.com:2379"}}}
	spec.Spec.Nodes = spec.KubernetesNodes()
	external.Spec = &spec
	server := find(t, external, "kube-apiserver")
	for flag, want := range map[string]string{
		"etcd-servers": "https://10.0.0.1:2379,https://etcd.example.com:2379", "etcd-cafile": "/etc/kuorum/pki/etcd-external/ca.crt",
		"etcd-certfile": "/etc/kuorum/pki/etcd-external/client.crt", "etcd-keyfile": "/etc/kuorum/pki/etcd-external/client.key",
	} {
		if got := flagOf(t, server, flag); got != want {
			t.Errorf("--%s is %s, want %s", flag, got, want)
		}
	}
	if len(server.After) != 0 || len(server.With) != 0 {
		t.Errorf("kube-apiserver waits for %v, goes with %v", server.After, server.With)
	}
	var names, same []string
	for _, c := range For(external) {
		names = append(names, c.Name)
	}
	for _, c := range For(apart) {
		same = append(same, c.Name)
	}
	if diff := cmp.Diff(same, names); diff != "" {
		t.Errorf("components (-apart +external):\n%s", diff)
	}
	own := EtcdFilesOf(apart.Spec, EtcDir)
	if want := (EtcdFiles{CA: "/etc/kuorum/pki/etcd/ca.crt", Cert: "/etc/kuorum/pki/etcd/agent-client.crt", Key: "/etc/kuorum/pki/etcd/agent-client.key"}); own != want {
		t.Errorf("an agent shows %+v to the cluster's own etcd", own)
	}
	for _, p := range Ports(external.Spec, external.Node) {
		if p.Program == "etcd" {
			t.Errorf("it has the port %s of etcd", p.Address)
		}
	}
}
