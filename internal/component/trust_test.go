package component

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestWhoRestartsForAnAuthority: a program is restarted when it must know an
// authority that it has not read, or show a certificate that it still keeps, and
// not otherwise. The step from one phase of a rotation to the next is a row.
func TestWhoRestartsForAnAuthority(t *testing.T) {
	clients := []string{"kubelet", "kube-proxy", "flannel", "coredns"}
	server := slices.Concat([]string{"kube-apiserver", "kube-controller-manager", "kube-scheduler"}, clients)
	one := func(path string, keys ...string) map[string][]string { return map[string][]string{path: keys} }
	all := func(keys ...string) map[string][]string {
		trust := map[string][]string{}
		for _, path := range []string{"ca.crt", "agent-ca.crt", "etcd/ca.crt", "front-proxy-ca.crt"} {
			trust[path] = keys
		}
		return trust
	}
	for _, test := range []struct {
		name, node    string
		before, after map[string][]string
		want          []string
		etcd          int // nodes of etcd's own
	}{
		{"an agent that did not look yet", "cp1", nil, all("a"), nil, 0},
		{"after an upgrade", "w1", nil, all("a"), nil, 0},
		{"trust", "cp1", all("a"), all("a", "b"), append([]string{"etcd"}, server...), 0},
		{"sign", "cp1", all("a", "b"), all("b", "a"), server, 0},
		{"forget", "cp1", all("b", "a"), all("b"), append([]string{"etcd"}, server...), 0},
		{"trust, a worker", "w1", all("a"), all("a", "b"), clients, 0},
		{"sign, a worker", "w1", all("a", "b"), all("b", "a"), clients, 0},
		{"forget, a worker", "w1", all("b", "a"), all("b"), clients, 0},
		{"etcd's only", "cp1", all("a"), one("etcd/ca.crt", "a", "b"), []string{"etcd", "kube-apiserver"}, 0},
		{"the agents'", "cp1", all("a"), one("agent-ca.crt", "a", "b"), nil, 0},
		{"the front proxy's", "cp1", all("a"), one("front-proxy-ca.crt", "a", "b"), nil, 0},
		{"trust, an etcd node", "e1", all("a"), all("a", "b"), []string{"etcd"}, 3},
		{"sign, an etcd node", "e1", all("a", "b"), all("b", "a"), nil, 3},
		{"forget, an etcd node", "e1", all("b", "a"), all("b"), []string{"etcd"}, 3},
		{"trust, a server without a member", "cp1", all("a"), all("a", "b"), server, 3},
		{"sign, a server without a member", "cp1", all("a", "b"), all("b", "a"), server, 3},
		{"forget, a server without a member", "cp1", all("b", "a"), all("b"), server, 3},
	} {
		before, after := machineOf(t, test.etcd, test.node), machineOf(t, test.etcd, test.node)
		before.Trust, after.Trust = test.before, test.after
		var got []string
		for i, c := range For(before) {
			if next := For(after)[i]; next.Digest() != c.Digest() {
				got = append(got, c.Name)
			}
		}
		want := slices.Clone(test.want)
		slices.Sort(got)
		slices.Sort(want)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s restarts (-want +got):\n%s", test.name, diff)
		}
	}
}

// TestControllerManagerSignsWithOne: it does not start with a file of two.
func TestControllerManagerSignsWithOne(t *testing.T) {
	m := testMachine(t, "cp1")
	for want, keys := range map[string][]string{"/ca.crt": {"a"}, "/cluster-signing.crt": {"a", "b"}} {
		m.Trust = map[string][]string{"ca.crt": keys}
		if args := strings.Join(find(t, m, "kube-controller-manager").Args, " "); !strings.Contains(args, "--cluster-signing-cert-file=/etc/kuorum/pki"+want+" ") ||
			!strings.Contains(args, "--root-ca-file=/etc/kuorum/pki/ca.crt ") {
			t.Errorf("with %d authorities: %s", len(keys), args)
		}
	}
}
