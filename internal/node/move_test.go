package node

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"net/url"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"kuorum/internal/cluster"
	"kuorum/internal/component"
	"kuorum/internal/membership"
	"kuorum/internal/pki"
	"kuorum/internal/relocation"
)

func TestFindPlace(t *testing.T) {
	t.Parallel()
	spec, err := cluster.New("demo", 1, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name   string
		have   []string
		astray bool
		want   []string
	}{
		{"at home", []string{"198.18.0.11"}, false, []string{"198.18.0.11"}},
		{"at home, with more addresses", []string{"10.244.0.1", "198.18.0.11", "198.18.0.61"}, false, []string{"198.18.0.11"}},
		{"at another address", []string{"10.244.0.1", "198.18.0.61"}, true, []string{"198.18.0.61"}},
		{"at two others", []string{"198.18.0.61", "198.18.0.62"}, true, []string{"198.18.0.61", "198.18.0.62"}},
		{"in another network", []string{"10.1.2.3", "192.0.2.1"}, true, []string{"10.1.2.3", "192.0.2.1"}},
		{"nowhere", nil, true, nil},
	} {
		var have []netip.Addr
		for _, text := range test.have {
			have = append(have, netip.MustParseAddr(text))
		}
		got := findPlace(spec, "198.18.0.11", have)
		if diff := cmp.Diff(test.want, got.addresses); diff != "" || got.astray != test.astray {
			t.Errorf("%s: astray %v\n%s", test.name, got.astray, diff)
		}
		if !got.same(findPlace(spec, "198.18.0.11", have)) || got.same(place{astray: !test.astray, addresses: test.want}) {
			t.Errorf("%s: it is compared wrongly", test.name)
		}
	}
}

// TestSettle brings moves to their end as a server's agent does: the register
// learns of them, and keeps the note of each until that node has arrived.
func TestSettle(t *testing.T) {
	t.Parallel()
	r := newRoutes(t)
	a, register := r.agent, r.agent.server.members.Register
	a.server.members.Log = slog.New(slog.DiscardHandler)
	moved, err := relocation.Apply(r.spec, map[string]string{"cp1": "198.18.0.61", "cp2": "198.18.0.62", "w1": "198.18.0.64"})
	if err != nil {
		t.Fatal(err)
	}
	settle := func() *cluster.Spec {
		t.Helper()
		a.detour = relocation.Detour(a.spec.Load(), a.machine.Node.Name) // as if it were loaded
		for range 2 {                                                    // twice is as good as once
			if err := a.settle(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		spec, err := register.Spec(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return spec
	}
	if diff := cmp.Diff(r.spec, settle()); diff != "" {
		t.Errorf("nobody has moved:\n%s", diff)
	}
	// It was told, and is not made anew yet: it has not arrived.
	a.spec.Store(moved)
	if diff := cmp.Diff(moved, settle()); diff != "" {
		t.Errorf("the register has not learned of the moves:\n%s", diff)
	}
	a.machine.Node, _ = moved.Node("cp1")
	want := relocation.Arrived(moved, relocation.Arrival{Name: "cp1", Address: "198.18.0.61"})
	if diff := cmp.Diff(want, settle()); diff != "" {
		t.Errorf("cp1 has arrived, the others have not:\n%s", diff)
	}
	w1, _ := moved.Node("w1")
	pair := r.pair(t, r.spec.Spec.Nodes[2])
	for address, text := range map[string]string{"198.18.0.101": "elsewhere", w1.Address: "there"} {
		code, said := r.call(t, &pair, "POST", relocation.ArrivedPath, relocation.Arrival{Name: "w1", Address: address})
		if code != 200 {
			t.Errorf("w1 says that it is %s: %d %s", text, code, said)
		}
	}
	want = relocation.Arrived(want, relocation.Arrival{Name: "w1", Address: w1.Address})
	if diff := cmp.Diff(want, settle()); diff != "" {
		t.Errorf("w1 has arrived as well:\n%s", diff)
	}
}

// TestCorrectMembers: etcd learns the new address of a member, which stays the
// member that it is.
func TestCorrectMembers(t *testing.T) {
	t.Parallel()
	r := newRoutes(t)
	s := r.agent.server
	before, err := s.etcd.Members(t.Context())
	if err != nil || len(before) != 1 {
		t.Fatalf("%v, %v", before, err)
	}
	at, err := url.Parse(before[0].PeerURLs[0])
	if err != nil {
		t.Fatal(err)
	}
	spec := *r.spec
	spec.Spec.Nodes = []cluster.Node{{
		Name: "cp1", Role: cluster.RoleServer, Address: "198.18.0.61", Moved: cluster.Move{Times: 1, From: []string{at.Hostname()}},
	}}
	for range 2 {
		if done, err := s.correctMembers(t.Context(), &spec); err != nil || !done {
			t.Fatal(done, err)
		}
	}
	want := before
	want[0].PeerURLs = []string{"https://198.18.0.61:2380"}
	after, err := s.etcd.Members(t.Context())
	if diff := cmp.Diff(want, after); diff != "" || err != nil {
		t.Errorf("%v\n%s", err, diff)
	}
	r.agent.member = &member{etcd: s.etcd}
	if names := r.agent.sees(t.Context(), &spec); names(at.Hostname()) || !names("198.18.0.61") {
		t.Error("its own member still looks for it where it was")
	}
}

// TestOrderOfAJoiningNode is refused: its files are not complete.
func TestOrderOfAJoiningNode(t *testing.T) {
	t.Parallel()
	r := newRoutes(t)
	r.agent.complete = make(chan struct{})
	admin, err := r.set.AgentClientPair("somebody", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	code, said := r.call(t, &admin, "POST", relocation.MovePath, relocation.Order{Addresses: map[string]string{"w1": "198.18.0.64"}})
	if code != 409 || r.agent.spec.Load() != r.spec {
		t.Error(fmt.Sprint(code), said)
	}
}

// TestLoses: a server without a member leaves its programs alone as long as they
// know one address of etcd that is right.
func TestLoses(t *testing.T) {
	t.Parallel()
	spec, err := cluster.NewApart("demo", 3, 2, 0)
	if err != nil {
		t.Fatal(err)
	}
	cp1, _ := spec.Node("cp1")
	a := &Agent{machine: component.Machine{Spec: spec, Node: cp1}, server: &server{apart: true}}
	now := spec
	for i, name := range []string{"e1", "e2", "e3"} {
		if now, err = relocation.Apply(now, map[string]string{name: fmt.Sprintf("198.18.0.7%d", i)}); err != nil {
			t.Fatal(err)
		}
		if got := a.loses(now); got != (name == "e3") {
			t.Errorf("once %s has moved: %v", name, got)
		}
	}
	if a.server.apart = false; a.loses(now) {
		t.Error("a server with a member asks no other")
	}
	if a.server = nil; a.loses(now) {
		t.Error("a node that is no server does not ask etcd")
	}
}

// TestRenewalOfANodeThatMoves: a server signs for where it was told that the node
// is, if need be without a quorum; for one that does not move, or that the
// register does not have any more, it does not.
func TestRenewalOfANodeThatMoves(t *testing.T) {
	t.Parallel()
	r := newRoutes(t)
	moved, err := relocation.Apply(r.spec, map[string]string{"w1": "198.18.0.64"})
	if err != nil {
		t.Fatal(err)
	}
	keys, err := pki.NewNodeKeys(cluster.RoleWorker)
	if err != nil {
		t.Fatal(err)
	}
	requests, err := keys.Requests()
	if err != nil {
		t.Fatal(err)
	}
	w1, _ := r.spec.Node("w1")
	pair := r.pair(t, w1)
	register := r.agent.server.members.Register
	for _, step := range []struct {
		name string
		do   func() error
		mine *cluster.Spec
		at   string // empty: it is refused
	}{
		{"nobody has moved", nil, r.spec, w1.Address},
		{"the register does not know yet", nil, moved, "198.18.0.64"},
		{"it was removed while it moved", func() error {
			return register.Change(t.Context(), "test", func(spec *cluster.Spec) (*cluster.Spec, error) { return spec.Without("w1") })
		}, moved, ""},
		{"no quorum", r.agent.server.etcd.Close, moved, "198.18.0.64"},
		{"no quorum, and it does not move", nil, r.spec, ""},
	} {
		if step.do != nil {
			if err := step.do(); err != nil {
				t.Fatal(err)
			}
		}
		r.agent.spec.Store(step.mine)
		code, said := r.call(t, &pair, "POST", membership.RenewPath, membership.Renewal{Name: "w1", Requests: requests})
		var got membership.Admission
		if step.at == "" || code != 200 {
			if step.at != "" || code == 200 {
				t.Errorf("%s: %d %s", step.name, code, said)
			}
			continue
		}
		if err := json.Unmarshal([]byte(said), &got); err != nil {
			t.Fatal(err)
		}
		if n, _ := got.Spec.Node("w1"); n.Address != step.at {
			t.Errorf("%s: signed for %s", step.name, n.Address)
		}
	}
}
