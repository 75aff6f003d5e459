package node

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"kuorum/internal/agent"
	"kuorum/internal/cluster"
	"kuorum/internal/component"
	"kuorum/internal/membership"
	"kuorum/internal/pki"
)

// etcdNode is the API of e1's agent over TLS: a node with a member that is no
// server. Nobody else answers.
func etcdNode(t *testing.T) *routes {
	t.Helper()
	spec, err := cluster.NewApart("demo", 3, 2, 1)
	if err != nil {
		t.Fatal(err)
	}
	set, err := pki.NewSet(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	r := &routes{spec: spec, set: set}
	e1, _ := spec.Node("e1")
	r.own = r.pair(t, e1)
	config, err := pki.ClientTLS(set.Agents.Pair().Cert, r.own, "")
	if err != nil {
		t.Fatal(err)
	}
	nobody := func(context.Context, string) (net.Conn, error) { return nil, syscall.ECONNREFUSED }
	r.agent = &Agent{
		options: Options{Log: slog.New(slog.DiscardHandler)}, machine: component.Machine{Spec: spec, Node: e1}, member: &member{},
		agents: agent.NewClient(config, nobody), removed: make(chan struct{}), complete: make(chan struct{}), reread: make(chan struct{}, 1),
	}
	r.agent.spec.Store(spec)
	close(r.agent.complete)
	web := httptest.NewUnstartedServer(membersOnly(r.agent.membersAPI()))
	if web.TLS, err = pki.ServerTLS(set.Agents.Pair().Cert, r.own); err != nil {
		t.Fatal(err)
	}
	web.StartTLS()
	t.Cleanup(web.Close)
	r.url = web.URL
	return r
}

// TestWhoMayCallAnEtcdNode: it serves no membership, and lets servers, the
// administrator and itself have its member replaced, for which it asks a server.
func TestWhoMayCallAnEtcdNode(t *testing.T) {
	t.Parallel()
	r := etcdNode(t)
	admin, err := r.set.AgentClientPair("somebody", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	pair := func(name string) *pki.Pair {
		n, ok := r.spec.Node(name)
		if !ok {
			t.Fatalf("no node %s", name)
		}
		p := r.pair(t, n)
		return &p
	}
	gone := pair("cp2")
	shrunk, err := r.spec.Without("cp2")
	if err != nil {
		t.Fatal(err)
	}
	r.agent.spec.Store(shrunk) // it was removed, and its certificate is still good
	const asks, who, no = http.StatusServiceUnavailable, http.StatusUnauthorized, http.StatusConflict
	for _, caller := range []struct {
		name string
		pair *pki.Pair
		want int
	}{
		{"stranger", nil, who},
		{"admin", &admin, asks},
		{"cp1", pair("cp1"), asks},
		{"cp2", gone, no},
		{"e1", &r.own, asks},
		{"e2", pair("e2"), no},
		{"w1", pair("w1"), no},
	} {
		if code, said := r.call(t, caller.pair, http.MethodPost, membership.RebuildPath, nothing{}); code != caller.want {
			t.Errorf("%s: rebuild answers %d, want %d: %.200s", caller.name, code, caller.want, said)
		}
	}
	for _, path := range []string{membership.JoinPath, membership.RemovePath, membership.TokensPath, membership.RenewPath, membership.RejoinPath} {
		if code, said := r.call(t, &admin, http.MethodPost, path, nothing{}); code != http.StatusNotFound {
			t.Errorf("an etcd node answers %s with %d: %.200s", path, code, said)
		}
	}
}

// TestAnEtcdNodeIsNoServer: its certificate opens nothing that a worker's does
// not.
func TestAnEtcdNodeIsNoServer(t *testing.T) {
	t.Parallel()
	r := newRoutes(t) // a server's routes
	ours := r.spec
	apart, err := cluster.NewApart("demo", 1, 2, 2)
	if err != nil {
		t.Fatal(err)
	}
	e1, _ := apart.Node("e1")
	r.spec = apart // or nobody would make files for e1
	pair := r.pair(t, e1)
	r.spec = ours
	for _, test := range []struct {
		path string
		in   any
	}{
		{membership.TokensPath, membership.TokenOrder{Role: "server", Life: cluster.Duration(time.Hour)}},
		{membership.RemovePath, membership.Removal{Name: "w1"}},
		{membership.RejoinPath, membership.RejoinRequest{Name: "cp2"}},
		{membership.RenewPath, membership.Renewal{Name: "w1"}},
		{membership.LeftPath, membership.LeftReport{Name: "cp2"}},
	} {
		if code, said := r.call(t, &pair, http.MethodPost, test.path, test.in); code != http.StatusConflict || strings.Contains(said, "secrets") {
			t.Errorf("%s answers %d: %.200s", test.path, code, said)
		}
	}
}

// TestOutdated: one more etcd node outdates API servers and nothing else, one
// more server nothing at all.
func TestOutdated(t *testing.T) {
	t.Parallel()
	machine := func(etcdNodes, servers int) component.Machine {
		spec, err := cluster.NewApart("demo", etcdNodes, servers, 1)
		if err != nil {
			t.Fatal(err)
		}
		return component.Machine{Spec: spec, Node: spec.Spec.Nodes[0], Bundle: "/bundle", Kuorum: "/kuorum"}
	}
	running := component.For(machine(3, 2))
	for _, test := range []struct {
		etcd, servers int
		want          []string
	}{{3, 2, nil}, {3, 3, nil}, {5, 2, []string{"kube-apiserver"}}} {
		if diff := cmp.Diff(test.want, outdated(running, component.For(machine(test.etcd, test.servers)))); diff != "" {
			t.Errorf("%d etcd nodes, %d servers (-want +got):\n%s", test.etcd, test.servers, diff)
		}
	}
}

// TestServerReadsEtcdItself: one without a member asks no other server.
func TestServerReadsEtcdItself(t *testing.T) {
	t.Parallel()
	r := newRoutes(t)
	r.agent.server.apart, r.agent.server.members.Apart = true, true // what its client asks is not its own member
	r.agent.complete = make(chan struct{})
	close(r.agent.complete)
	got, err := r.agent.quorumSpec(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(r.spec, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if !r.agent.etcdFollows(t.Context()) {
		t.Error("etcd has a leader, and it is not seen")
	}
	if err := r.agent.server.etcd.Close(); err != nil {
		t.Fatal(err)
	}
	if r.agent.etcdFollows(t.Context()) {
		t.Error("nobody answers, and that is taken for a leader")
	}
}
