package relocation

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"kuorum/internal/cluster"
	"kuorum/internal/component"
)

func newSpec(t *testing.T, servers, workers int) *cluster.Spec {
	t.Helper()
	spec, err := cluster.New("demo", servers, workers)
	if err != nil {
		t.Fatal(err)
	}
	return spec
}

func mustApply(t *testing.T, spec *cluster.Spec, order map[string]string) *cluster.Spec {
	t.Helper()
	next, err := Apply(spec, order)
	if err != nil {
		t.Fatal(err)
	}
	return next
}

func nodeOf(spec *cluster.Spec, name string) cluster.Node {
	n, _ := spec.Node(name)
	return n
}

func TestApply(t *testing.T) {
	t.Parallel()
	spec := newSpec(t, 3, 1)
	before, err := spec.YAML()
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name  string
		order map[string]string
		exit  int // 0: it is done
		says  string
	}{
		{"one", map[string]string{"cp2": "198.18.0.62"}, 0, ""},
		{"all", map[string]string{"cp1": "198.18.0.61", "cp2": "198.18.0.62", "cp3": "198.18.0.63", "w1": "198.18.0.64"}, 0, ""},
		{"where it is", map[string]string{"cp2": "198.18.0.12"}, 0, ""},
		{"nobody", nil, cluster.ExitUsage, "no node"},
		{"a stranger", map[string]string{"cp9": "198.18.0.62"}, cluster.ExitUsage, `"cp9"`},
		{"nowhere", map[string]string{"cp2": ""}, cluster.ExitUsage, "cp2"},
		{"no address", map[string]string{"cp2": "here"}, cluster.ExitRefused, "here"},
		{"another network", map[string]string{"cp2": "10.1.2.3"}, cluster.ExitRefused, "198.18.0.0/24"},
		{"the address of another", map[string]string{"cp2": "198.18.0.11"}, cluster.ExitRefused, "198.18.0.11"},
		{"two at one", map[string]string{"cp2": "198.18.0.62", "cp3": "198.18.0.62"}, cluster.ExitRefused, "198.18.0.62"},
		{"two change places", map[string]string{"cp2": "198.18.0.13", "cp3": "198.18.0.12"}, cluster.ExitRefused, "still looked for"},
		{"one where another was", map[string]string{"cp2": "198.18.0.13", "cp3": "198.18.0.63"}, cluster.ExitRefused, "still looked for"},
	} {
		next, err := Apply(spec, test.order)
		problem, refused := errors.AsType[*cluster.Problem](err)
		if refused != (test.exit != 0) || refused && (problem.ExitCode() != test.exit || !strings.Contains(problem.What+fmt.Sprint(problem.Err), test.says)) {
			t.Errorf("%s: %v", test.name, err)
			continue
		}
		if refused {
			continue
		}
		for _, n := range next.Spec.Nodes {
			was, want := nodeOf(spec, n.Name), nodeOf(spec, n.Name)
			if to := test.order[n.Name]; to != "" && to != was.Address {
				want.Address, want.Moved = to, cluster.Move{Times: 1, From: []string{was.Address}}
			}
			if diff := cmp.Diff(want, n); diff != "" {
				t.Errorf("%s:\n%s", test.name, diff)
			}
		}
		if again := mustApplyAny(next, test.order); !cmp.Equal(next, again) {
			t.Errorf("%s: a second time it is something else:\n%s", test.name, cmp.Diff(next, again))
		}
	}
	after, err := spec.YAML()
	if err != nil || string(before) != string(after) {
		t.Errorf("the spec itself was changed, %v", err)
	}
}

func mustApplyAny(spec *cluster.Spec, order map[string]string) *cluster.Spec {
	next, err := Apply(spec, order)
	if err != nil {
		return nil
	}
	return next
}

// TestApplyAgain: a node may move on, and back, before its move is complete.
func TestApplyAgain(t *testing.T) {
	t.Parallel()
	spec := newSpec(t, 1, 0)
	for i, step := range []struct {
		to   string
		from []string
	}{
		{"198.18.0.61", []string{"198.18.0.11"}},
		{"198.18.0.62", []string{"198.18.0.11", "198.18.0.61"}},
		{"198.18.0.11", []string{"198.18.0.61", "198.18.0.62"}},
		{"198.18.0.62", []string{"198.18.0.61", "198.18.0.11"}},
	} {
		spec = mustApply(t, spec, map[string]string{"cp1": step.to})
		if diff := cmp.Diff(cluster.Move{Times: i + 1, From: step.from}, nodeOf(spec, "cp1").Moved); diff != "" {
			t.Errorf("at %s:\n%s", step.to, diff)
		}
		text, err := spec.YAML()
		if err != nil {
			t.Fatal(err)
		}
		read, err := cluster.Parse("cluster.yaml", text)
		if err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		if diff := cmp.Diff(spec, read); diff != "" {
			t.Errorf("read back it is something else:\n%s", diff)
		}
	}
}

func TestSame(t *testing.T) {
	t.Parallel()
	at := func(address string, from ...string) cluster.Node {
		return cluster.Node{Name: "w1", Address: address, Moved: cluster.Move{Times: len(from), From: from}}
	}
	for _, test := range []struct {
		name string
		a, b cluster.Node
		want bool
	}{
		{"nothing has changed", at("1"), at("1"), true},
		{"it has moved", at("1"), at("2", "1"), true},
		{"it has moved twice", at("1"), at("3", "1", "2"), true},
		{"it was told of two moves in different order", at("2", "1"), at("3", "1"), true},
		{"another machine has its name", at("1"), at("2"), false},
		{"another machine has its name, and has moved", at("1"), at("3", "2"), false},
		{"it moves while another machine takes its name", at("2", "1"), at("3"), false},
	} {
		if Same(test.a, test.b) != test.want || Same(test.b, test.a) != test.want {
			t.Errorf("%s: want %v", test.name, test.want)
		}
	}
}

func TestMerge(t *testing.T) {
	t.Parallel()
	spec := newSpec(t, 3, 0)
	moved := mustApply(t, spec, map[string]string{"cp2": "198.18.0.62"})
	onward := mustApply(t, moved, map[string]string{"cp2": "198.18.0.72"})
	complete := Arrived(moved, Arrival{Name: "cp2", Address: "198.18.0.62"})
	without, err := moved.Without("cp2")
	if err != nil {
		t.Fatal(err)
	}
	replaced, err := spec.With(cluster.Node{Name: "cp2", Role: cluster.RoleServer, Address: "198.18.0.99"})
	if err != nil {
		t.Fatal(err)
	}
	all := func(string) bool { return true }
	none := func(string) bool { return false }
	for _, test := range []struct {
		name        string
		mine, heard *cluster.Spec
		names       func(string) bool
		want        *cluster.Spec
	}{
		{"the others do not know of the move yet", moved, spec, none, moved},
		{"they know of an earlier one", onward, moved, none, onward},
		{"they know of it first", spec, moved, none, moved},
		{"they know of a later one", moved, onward, none, onward},
		{"it is complete", moved, complete, none, complete},
		{"it is complete, but our member is behind", moved, complete, all, moved},
		{"the node was removed", moved, without, all, without},
		{"another machine has its name", moved, replaced, all, replaced},
	} {
		if diff := cmp.Diff(test.want, Merge(test.mine, test.heard, test.names)); diff != "" {
			t.Errorf("%s (-want +have):\n%s", test.name, diff)
		}
	}
}

func TestDetour(t *testing.T) {
	t.Parallel()
	spec := newSpec(t, 3, 1)
	gone := "table ip kuorum-moved {}\ndelete table ip kuorum-moved\n"
	if diff := cmp.Diff(gone, Detour(spec, "cp1")); diff != "" {
		t.Errorf("nobody moves:\n%s", diff)
	}
	spec = mustApply(t, spec, map[string]string{"cp1": "198.18.0.61", "cp2": "198.18.0.62", "w1": "198.18.0.64"})
	spec = mustApply(t, spec, map[string]string{"cp2": "198.18.0.72"})
	want := gone + `table ip kuorum-moved {
	map moved {
		type ipv4_addr : ipv4_addr
		elements = { 198.18.0.12 : 198.18.0.72, 198.18.0.62 : 198.18.0.72 }
	}
	chain output {
		type nat hook output priority -100; policy accept;
		tcp dport { 2379, 2380 } dnat to ip daddr map @moved
	}
}
`
	if diff := cmp.Diff(want, Detour(spec, "cp1")); diff != "" {
		t.Errorf("a worker, and the server itself, need no detour:\n%s", diff)
	}
}

// TestDetourToEtcdNodes: where etcd is apart, its nodes are looked for by each
// other and by the servers, and a server that moves by nobody.
func TestDetourToEtcdNodes(t *testing.T) {
	t.Parallel()
	spec, err := cluster.NewApart("demo", 3, 2, 0)
	if err != nil {
		t.Fatal(err)
	}
	spec = mustApply(t, spec, map[string]string{"e1": "198.18.0.71", "cp1": "198.18.0.61"})
	var members []cluster.EtcdMember
	for name, address := range map[string]string{"e1": "198.18.0.51", "e2": "198.18.0.52", "e3": "198.18.0.53", "cp1": "198.18.0.11"} {
		members = append(members, cluster.EtcdMember{ID: "at " + address, Name: name, PeerURLs: []string{"https://" + address + ":2380"}})
	}
	want := []Correction{{Node: "e1", ID: "at 198.18.0.51", PeerURL: "https://198.18.0.71:2380"}}
	if diff := cmp.Diff(want, Corrections(spec, members)); diff != "" {
		t.Error(diff)
	}
	for self, want := range map[string]bool{"e1": false, "e2": true, "cp1": true, "cp2": true} {
		rules := Detour(spec, self)
		if strings.Contains(rules, "{ 198.18.0.51 : 198.18.0.71 }") != want || strings.Contains(rules, "198.18.0.11") {
			t.Errorf("the detour of %s:\n%s", self, rules)
		}
	}
}

// TestLoadSaysWhy: what nft refuses is told in its words.
func TestLoadSaysWhy(t *testing.T) {
	t.Parallel()
	err := Load(t.Context(), "nonsense\n")
	if err == nil || !strings.Contains(err.Error(), "nft") {
		t.Errorf("%v", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if Load(ended, "") == nil {
		t.Error("it did not end with its context")
	}
}

func TestCorrections(t *testing.T) {
	t.Parallel()
	spec := newSpec(t, 3, 1)
	var members []cluster.EtcdMember
	for _, n := range spec.Servers() {
		members = append(members, cluster.EtcdMember{ID: "id-" + n.Name, Name: n.Name, PeerURLs: []string{component.PeerURL(n)}})
	}
	if got := Corrections(spec, members); got != nil {
		t.Errorf("nobody has moved: %v", got)
	}
	moved := mustApply(t, spec, map[string]string{"cp3": "198.18.0.63", "w1": "198.18.0.64"})
	want := []Correction{{Node: "cp3", ID: "id-cp3", PeerURL: "https://198.18.0.63:2380"}}
	if diff := cmp.Diff(want, Corrections(moved, members)); diff != "" {
		t.Error(diff)
	}
	names := Names(members)
	if !names("198.18.0.13") || names("198.18.0.63") || names("198.18.0.1") || !Names(nil)("198.18.0.63") {
		t.Error("the addresses in the member list are others")
	}
}

// world is a cluster whose nodes move: what each has on its disk, what its
// member knows, what the register has, and where the machines are.
type world struct {
	t        *testing.T
	disks    map[string]*cluster.Spec
	views    map[string][]cluster.EtcdMember
	register *cluster.Spec
	members  []cluster.EtcdMember
	at       map[string]string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	spec := newSpec(t, 3, 1)
	w := &world{t: t, disks: map[string]*cluster.Spec{}, views: map[string][]cluster.EtcdMember{}, register: spec, at: map[string]string{}}
	for _, n := range spec.Spec.Nodes {
		w.disks[n.Name], w.at[n.Name] = spec, n.Address
		if n.Role == cluster.RoleServer {
			w.members = append(w.members, cluster.EtcdMember{ID: "id-" + n.Name, Name: n.Name, PeerURLs: []string{component.PeerURL(n)}})
		}
	}
	for name := range w.disks {
		w.views[name] = slices.Clone(w.members)
	}
	return w
}

// tell is the command on its way: the nodes of names have written it down.
func (w *world) tell(order map[string]string, names ...string) {
	for _, name := range names {
		w.disks[name] = mustApply(w.t, w.disks[name], order)
	}
}

// hear is a node that learns what the register has. It must find itself there,
// or it would stop and put its state away.
func (w *world) hear(name string) {
	mine := w.disks[name]
	if !Same(nodeOf(mine, name), nodeOf(w.register, name)) {
		w.t.Fatalf("%s takes itself for replaced: %+v in %+v", name, nodeOf(mine, name), nodeOf(w.register, name))
	}
	names := func(string) bool { return false }
	if nodeOf(mine, name).Role == cluster.RoleServer {
		names = Names(w.views[name])
	}
	next := Merge(mine, w.register, names)
	if next.Validate() == nil {
		w.disks[name] = next
	}
}

// settle is what the agent does every other second, where it is on its feet.
func (w *world) settle(name string) {
	mine := nodeOf(w.disks[name], name)
	if mine.Address != w.at[name] {
		return // astray
	}
	if mine.Role == cluster.RoleServer {
		for _, c := range Corrections(w.disks[name], w.members) {
			i := slices.IndexFunc(w.members, func(m cluster.EtcdMember) bool { return m.ID == c.ID })
			w.members[i].PeerURLs = []string{c.PeerURL}
		}
		next, err := Record(w.disks[name], w.register)
		if err != nil {
			return
		}
		w.register = next
	}
	w.register = Arrived(w.register, Arrival{Name: name, Address: mine.Address})
}

func (w *world) look(name string) {
	w.views[name] = nil
	for _, m := range w.members {
		m.PeerURLs = slices.Clone(m.PeerURLs)
		w.views[name] = append(w.views[name], m)
	}
}

// TestMovesEnd cuts commands off after any number of nodes and lets the nodes
// do their parts in any order: none ever takes itself for replaced, no member
// changes its ID, and once the last command got through all agree.
func TestMovesEnd(t *testing.T) {
	t.Parallel()
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // which is enough for a test
		w := newWorld(t)
		names := []string{"cp1", "cp2", "cp3", "w1"}
		var order map[string]string
		for round := range 3 {
			order = map[string]string{}
			for i, name := range names {
				if i == 0 || rng.IntN(2) == 0 {
					order[name] = fmt.Sprintf("198.18.0.%d", 100+50*(round%2)+20+i) // the third is the first again
					w.at[name] = order[name]
				}
			}
			// Those that have moved are told first.
			told := slices.Clone(names)
			slices.SortStableFunc(told, func(a, b string) int { return strings.Compare(order[b], order[a]) })
			w.tell(order, told[:max(len(order), rng.IntN(len(told)+1))]...)
			for range rng.IntN(40) {
				name := names[rng.IntN(len(names))]
				[]func(string){w.hear, w.settle, w.look}[rng.IntN(3)](name)
			}
		}
		w.tell(order, names...)
		for range 6 {
			for _, name := range names {
				w.settle(name)
				w.look(name)
				w.hear(name)
			}
		}
		for _, name := range names {
			if diff := cmp.Diff(w.register, w.disks[name]); diff != "" {
				t.Fatalf("seed %d: %s has something else than the register:\n%s", seed, name, diff)
			}
			n := nodeOf(w.register, name)
			if n.Address != w.at[name] || len(n.Moved.From) > 0 {
				t.Fatalf("seed %d: %s is at %s: %+v", seed, name, w.at[name], n)
			}
		}
		for _, m := range w.members {
			if want := []string{component.PeerURL(nodeOf(w.register, m.Name))}; m.ID != "id-"+m.Name || !slices.Equal(m.PeerURLs, want) {
				t.Fatalf("seed %d: etcd has %+v, want %v", seed, m, want)
			}
		}
		if got := Detour(w.register, "cp1"); strings.Contains(got, "dnat") {
			t.Fatalf("seed %d: the detour stays:\n%s", seed, got)
		}
	}
}
