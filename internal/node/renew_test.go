package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"kuorum/internal/agent"
	"kuorum/internal/apiservice"
	"kuorum/internal/cluster"
	"kuorum/internal/component"
	"kuorum/internal/endpoint"
	"kuorum/internal/keyring"
	"kuorum/internal/kubeapi"
	"kuorum/internal/loadbalancer"
	"kuorum/internal/membership"
	"kuorum/internal/pki"
	"kuorum/internal/supervise"
)

// village is agents of two servers, a worker and maybe etcd nodes on addresses of
// their own, with their files in directories, and nothing that runs.
type village struct {
	spec   *cluster.Spec
	set    *pki.Set
	agents map[string]*Agent
	life   context.Context // of the agents
	end    context.CancelFunc
}

// control is where a server's balancer would take orders.
func (v *village) control(name string) endpoint.Control {
	return endpoint.Control(filepath.Join(v.agents[name].etc, "vip.sock"))
}

func newVillage(t *testing.T) *village {
	t.Helper()
	return newVillageApart(t, 0)
}

func newVillageApart(t *testing.T, etcdNodes int) *village {
	t.Helper()
	spec, err := cluster.NewApart("demo", etcdNodes, 2, 1)
	if err != nil {
		t.Fatal(err)
	}
	return newVillageOf(t, spec)
}

func newVillageOf(t *testing.T, spec *cluster.Spec) *village {
	t.Helper()
	set, err := pki.NewSet(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	local := fmt.Sprintf("127.%d.%d.", 2+rand.N(250), rand.N(256))
	for i := range spec.Spec.Nodes {
		spec.Spec.Nodes[i].Address = fmt.Sprintf("%s%d", local, 11+i)
	}
	v := &village{spec: spec, set: set, agents: map[string]*Agent{}}
	v.life, v.end = context.WithCancel(t.Context())
	for _, n := range spec.Spec.Nodes {
		v.settle(t, n)
	}
	return v
}

// settle gives a node its files, and serves its API as serveAPI does.
func (v *village) settle(t *testing.T, n cluster.Node) {
	t.Helper()
	files, err := v.set.NodeFiles(v.spec, n, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	a := &Agent{
		options: Options{Log: slog.New(slog.DiscardHandler)}, etc: t.TempDir(), machine: component.Machine{Spec: v.spec, Node: n},
		reread: make(chan struct{}, 1), removed: make(chan struct{}),
		book: testBook(t, n.Name),
	}
	a.spec.Store(v.spec)
	if n.Role == cluster.RoleServer {
		a.server = &server{service: apiservice.New(apiservice.Config{Self: n.Name})}
	}
	if n.Role == cluster.RoleEtcd {
		a.member = &member{}
	}
	if n.Role == cluster.RoleBalancer {
		a.vip = &loadbalancer.Watch{}
	}
	if err := keyring.Write(a.etc, files); err != nil {
		t.Fatal(err)
	}
	if a.agents, err = membership.NodeClient(a.etc); err != nil {
		t.Fatal(err)
	}
	if a.server != nil {
		api, err := kubeapi.New(filepath.Join(a.etc, "agent.conf"), askAPI) // nobody is there
		if err != nil {
			t.Fatal(err)
		}
		a.server.api = apiClient{api}
	}
	v.agents[n.Name] = a
	mux := http.NewServeMux()
	if n.Role == cluster.RoleServer { // as a server signs, without asking etcd for cluster.yaml
		mux.HandleFunc("POST "+membership.RenewPath, serve(func(_ *http.Request, in membership.Renewal) (membership.Admission, error) {
			set, err := keyring.Keys(a.etc)
			if err != nil {
				return membership.Admission{}, err
			}
			node, _ := v.spec.Node(in.Name)
			certs, err := set.SignRequests(v.spec, node, in.Requests, time.Now())
			return membership.Admission{Spec: v.spec, Certificates: certs, Trust: set.Trust()}, err
		}))
	}
	if n.Role == cluster.RoleServer {
		mux.Handle("GET "+clientsPath, membersOnly(a.tellClients(v.life, v.control(n.Name))))
		mux.Handle("POST "+apiservice.PartPath, membersOnly(a.partFrom(v.control(n.Name))))
	}
	mux.Handle("/", membersOnly(a.membersAPI()))
	web := httptest.NewUnstartedServer(mux)
	if err := web.Listener.Close(); err != nil {
		t.Fatal(err)
	}
	if web.Listener, err = net.Listen("tcp", fmt.Sprintf("%s:%d", n.Address, agent.Port)); err != nil {
		t.Fatal(err)
	}
	if web.TLS, err = agentTLS(a.etc); err != nil {
		t.Fatal(err)
	}
	web.StartTLS()
	t.Cleanup(web.Close)
}

// as asks with the certificate of an administrator, a node, or one that another
// set signed.
func (v *village) as(t *testing.T, name string) *agent.Client {
	t.Helper()
	if a, ok := v.agents[name]; ok {
		return a.agents
	}
	pair, err := v.set.AgentClientPair(name, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	config, err := pki.ClientTLS(v.set.Agents.Pair().Cert, pair, "")
	if err != nil {
		t.Fatal(err)
	}
	return agent.NewClient(config, nil)
}

// order is a request to an agent.
type order struct {
	path    string
	in, out any
}

func (v *village) post(t *testing.T, caller, node string, o order) error {
	t.Helper()
	n, _ := v.spec.Node(node)
	return v.as(t, caller).Call(t.Context(), n.Address, o.path, o.in, o.out)
}

// isRefused tells whether an error is that the caller may not.
func isRefused(err error) bool {
	problem, ok := errors.AsType[*cluster.Problem](err)
	return ok && problem.ExitCode() == cluster.ExitRefused
}

// TestWhoMayRotate: administrators and servers command, a worker only itself,
// and keys are told to servers alone.
func TestWhoMayRotate(t *testing.T) {
	t.Parallel()
	v := newVillage(t)
	for _, test := range []struct {
		path, node string
		in         any
		may, not   []string
	}{
		{keyring.BeginPath, "cp1", nothing{}, []string{"admin", "cp1", "cp2"}, []string{"w1"}},
		{keyring.NextPath, "cp1", nothing{}, []string{"cp1", "cp2"}, []string{"admin", "w1"}},
		{keyring.RenewNowPath, "cp1", nothing{}, []string{"admin", "cp1", "cp2"}, []string{"w1"}},
		{keyring.RenewNowPath, "w1", nothing{}, []string{"admin", "cp1", "cp2", "w1"}, nil},
		{keyring.RotationPath, "cp1", keyring.Order{Phase: keyring.PhaseForget}, nil, []string{"w1"}},
		{keyring.RotationPath, "w1", keyring.Order{Phase: keyring.PhaseForget}, []string{"admin", "cp1"}, []string{"w1"}},
	} {
		for _, caller := range test.may {
			if err := v.post(t, caller, test.node, order{test.path, test.in, nil}); err != nil {
				t.Errorf("%s may not POST %s to %s: %v", caller, test.path, test.node, err)
			}
		}
		before := snapshot(t, v.agents[test.node].etc)
		for _, caller := range test.not {
			if err := v.post(t, caller, test.node, order{test.path, test.in, nil}); !isRefused(err) {
				t.Errorf("%s may POST %s to %s: %v", caller, test.path, test.node, err)
			}
		}
		if diff := cmp.Diff(before, snapshot(t, v.agents[test.node].etc)); diff != "" {
			t.Errorf("a refused POST of %s changes files", test.path)
		}
	}
	// One that was a server, and is none any more by its node's cluster.yaml.
	without := *v.spec
	without.Spec.Nodes = slices.DeleteFunc(slices.Clone(v.spec.Spec.Nodes), func(n cluster.Node) bool { return n.Name == "cp2" })
	v.agents["cp1"].spec.Store(&without)
	for _, path := range []string{keyring.NextPath, keyring.BeginPath, keyring.RenewNowPath} {
		if err := v.post(t, "cp2", "cp1", order{path, nothing{}, nil}); !isRefused(err) {
			t.Errorf("a removed server may POST %s: %v", path, err)
		}
	}
	// A worker has no such routes: there is nothing that it could tell.
	if err := v.post(t, "cp1", "w1", order{keyring.NextPath, nothing{}, nil}); err == nil {
		t.Error("a worker tells keys")
	}
}

func snapshot(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		files[strings.TrimPrefix(path, dir)] = string(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// TestRotationOverTheAPI takes a cluster through all phases as the command does,
// by an administrator who never sees a key.
func TestRotationOverTheAPI(t *testing.T) {
	t.Parallel()
	v := newVillageApart(t, 1)
	old := v.set.Signers()
	if err := v.post(t, "admin", "cp2", order{keyring.BeginPath, nothing{}, nil}); err != nil {
		t.Fatal(err)
	}
	var steps []string
	nodes := slices.Concat(v.spec.Servers(), v.spec.EtcdNodes(), v.spec.Workers())
	for range 15 {
		r := v.survey(t)
		phase, waiting := r.Next(nodes)
		if phase == "" {
			break
		}
		from, _ := v.spec.Node(r.From)
		caller := "cp1"
		if phase == keyring.PhaseTrust {
			caller = "admin" // who has only the old authority
		}
		in := keyring.Order{Phase: phase, New: r.New, From: from.Address}
		if err := v.post(t, caller, waiting[0].Name, order{keyring.RotationPath, in, nil}); err != nil {
			t.Fatalf("%s of %s: %v", phase, waiting[0].Name, err)
		}
		v.reread(t, waiting[0].Name)
		steps = append(steps, string(phase)+" "+waiting[0].Name)
	}
	want := []string{
		"trust cp1", "trust cp2", "trust e1", "trust w1", "sign cp1", "sign cp2", "sign e1", "sign w1",
		"forget cp1", "forget cp2", "forget e1", "forget w1",
	}
	if diff := cmp.Diff(want, steps); diff != "" {
		t.Fatalf("steps (-want +got):\n%s", diff)
	}
	for path, keys := range keyring.Trust(v.agents["cp1"].etc) {
		if len(keys) != 1 || keys[0] == old[path] {
			t.Errorf("%s has %q", path, keys)
		}
	}
	if trust := keyring.Trust(v.agents["e1"].etc); len(trust) != 2 || len(trust["etcd/ca.crt"]) != 1 || trust["etcd/ca.crt"][0] == old["etcd/ca.crt"] {
		t.Errorf("the etcd node trusts %q", trust)
	}
	if err := v.post(t, "admin", "cp1", order{keyring.BeginPath, nothing{}, nil}); err == nil {
		t.Error("an administrator of the old authority is still let in")
	}
}

func (v *village) survey(t *testing.T) keyring.Rotation {
	t.Helper()
	var reports []cluster.NodeReport
	for name, a := range v.agents {
		reports = append(reports, cluster.NodeReport{Name: name, Status: &cluster.NodeStatus{Certificates: keyring.Certificates(a.etc)}})
	}
	r, err := keyring.Survey(v.spec.Spec.Nodes, reports)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// reread is what the agent does after an order: it reads its files again.
func (v *village) reread(t *testing.T, name string) {
	t.Helper()
	a := v.agents[name]
	select {
	case <-a.reread: // after it has answered
	case <-time.After(10 * time.Second):
		t.Fatalf("%s does not read its files again", name)
	}
	var err error
	if a.agents, err = membership.NodeClient(a.etc); err != nil {
		t.Fatal(err)
	}
	if a.server != nil {
		api, err := kubeapi.New(filepath.Join(a.etc, "agent.conf"), askAPI) // nobody is there
		if err != nil {
			t.Fatal(err)
		}
		a.server.api = apiClient{api}
	}
}

// TestRenewNow makes everything anew, names it, and restarts nothing: the
// authorities are what they were.
func TestRenewNow(t *testing.T) {
	t.Parallel()
	v := newVillage(t)
	asked := make(chan string, 8)
	_, v.agents["cp1"].server.api = testAPI(t, func(w http.ResponseWriter, r *http.Request) {
		asked <- r.Header.Get("Connection") + " " + r.URL.Path
		w.WriteHeader(http.StatusInternalServerError)
	})
	for _, name := range []string{"cp1", "w1"} {
		etc := v.agents[name].etc
		before := snapshot(t, etc)
		var renewed keyring.Renewed
		if err := v.post(t, "admin", name, order{keyring.RenewNowPath, nothing{}, &renewed}); err != nil {
			t.Fatal(err)
		}
		var changed []string
		after := snapshot(t, etc)
		for path, data := range after {
			if before[path] != data {
				changed = append(changed, strings.TrimPrefix(path, "/"))
			}
		}
		slices.Sort(changed)
		slices.Sort(renewed.Files)
		if diff := cmp.Diff(changed, renewed.Files); diff != "" || !slices.Contains(changed, "pki/agent.crt") || slices.Contains(changed, "pki/ca.crt") {
			t.Errorf("%s has others than it says (-files +said):\n%s", name, diff)
		}
		if !slices.Equal(slices.Sorted(maps.Keys(before)), slices.Sorted(maps.Keys(after))) {
			t.Errorf("%s has files that it had not", name)
		}
		select {
		case <-v.agents[name].reread:
			t.Errorf("%s restarts programs", name)
		default:
		}
	}
	close(asked)
	if got := <-asked; got != "Upgrade /api/v1/nodes/cp1/proxy/healthz" || len(asked) != 1 {
		t.Errorf("cp1's API server was asked for %q and %d others, want one", got, len(asked))
	}
}

// TestWorkerFollowsItsServer: a worker whose certificates are renewed by age gets
// what its server trusts, and its programs must know.
func TestWorkerFollowsItsServer(t *testing.T) {
	t.Parallel()
	v := newVillage(t)
	cp1, w1 := v.agents["cp1"], v.agents["w1"]
	if err := keyring.Begin(cp1.etc, time.Now()); err != nil {
		t.Fatal(err)
	}
	if err := keyring.Change(cp1.etc, v.spec, cp1.machine.Node, keyring.PhaseTrust); err != nil {
		t.Fatal(err)
	}
	names, err := w1.renewAll(t.Context())
	if err != nil || !slices.Contains(names, "pki/ca.crt") {
		t.Fatalf("renewed are %q, %v", names, err)
	}
	w1.follow(names)
	v.reread(t, "w1")
	if len(keyring.Trust(w1.etc)["ca.crt"]) != 2 {
		t.Error("the worker trusts one authority")
	}
}

// TestFetchNextFromNobody: a server that cannot ask says whom, and changes nothing.
func TestFetchNextFromNobody(t *testing.T) {
	t.Parallel()
	v := newVillage(t)
	cp2 := v.agents["cp2"]
	before := snapshot(t, cp2.etc)
	limited, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	other := maps.Clone(v.set.Signers())
	other["ca.crt"] = strings.Repeat("0", 40)
	for name, order := range map[string]keyring.Order{
		"nobody": {Phase: keyring.PhaseTrust, New: other, From: "127.0.0.255"},
		"others": {Phase: keyring.PhaseTrust, New: other, From: cp2.machine.Spec.Spec.Nodes[0].Address},
	} {
		var problem *cluster.Problem
		if err := cp2.rotate(limited, order); !errors.As(err, &problem) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if diff := cmp.Diff(before, snapshot(t, cp2.etc)); diff != "" {
		t.Error("files have changed")
	}
	if data, err := json.Marshal(keyring.Order{}); err != nil || strings.Contains(string(data), "key") {
		t.Errorf("an order has a place for keys: %s, %v", data, err)
	}
}

// TestNoRotationWhileNodesMove: neither is one begun, nor does a node go into
// another phase.
func TestNoRotationWhileNodesMove(t *testing.T) {
	t.Parallel()
	v := newVillageApart(t, 1)
	moving := *v.spec
	moving.Spec.Nodes = slices.Clone(v.spec.Spec.Nodes)
	w1 := slices.IndexFunc(moving.Spec.Nodes, func(n cluster.Node) bool { return n.Name == "w1" })
	moving.Spec.Nodes[w1].Moved = cluster.Move{Times: 1, From: []string{"198.18.0.99"}}
	for _, test := range []struct {
		path, node string
		in         any
	}{
		{keyring.RotationPath, "cp1", keyring.Order{Phase: keyring.PhaseForget}},
		{keyring.BeginPath, "cp1", nothing{}},
		{keyring.RotationPath, "e1", keyring.Order{Phase: keyring.PhaseTrust}},
	} {
		a := v.agents[test.node]
		a.spec.Store(&moving)
		before := snapshot(t, a.etc)
		if err := v.post(t, "admin", test.node, order{test.path, test.in, nil}); !isRefused(err) || !strings.Contains(err.Error(), "move") {
			t.Errorf("POST %s to %s while w1 moves: %v", test.path, test.node, err)
		}
		if diff := cmp.Diff(before, snapshot(t, a.etc)); diff != "" {
			t.Errorf("a refused POST of %s to %s changes files", test.path, test.node)
		}
		a.spec.Store(v.spec)
		if err := v.post(t, "admin", test.node, order{test.path, test.in, nil}); err != nil {
			t.Errorf("POST %s to %s while nobody moves: %v", test.path, test.node, err)
		}
	}
}

// TestRotationTakesATurn: no other node replaces components meanwhile, nor does
// this one while another does or while it serves somebody; a phase that fails leaves no turn behind.
func TestRotationTakesATurn(t *testing.T) {
	t.Parallel()
	r := newRoutes(t)
	register := r.agent.server.members.Register
	mine := func(name string) bool {
		t.Helper()
		got, err := register.TakeTurn(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	end := func(name string) {
		t.Helper()
		if err := register.EndTurn(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	if !mine("cp2") {
		t.Fatal("nobody has the turn, and cp2 does not get it")
	}
	before := snapshot(t, r.agent.etc)
	limited, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	forget := keyring.Order{Phase: keyring.PhaseForget}
	if err := r.agent.rotate(limited, forget); !isRefused(err) {
		t.Errorf("in another node's turn: %v", err)
	}
	if diff := cmp.Diff(before, snapshot(t, r.agent.etc)); diff != "" {
		t.Error("in another node's turn files have changed")
	}
	end("cp2")
	r.agent.changes.Store(2) // as the order comes, a node is being removed
	serving, done := context.WithTimeout(t.Context(), time.Second)
	defer done()
	if err := r.agent.rotate(serving, forget); !isRefused(err) {
		t.Errorf("while it serves a removal: %v", err)
	}
	r.agent.changes.Store(1)
	if err := r.agent.rotate(t.Context(), keyring.Order{Phase: "none"}); err == nil {
		t.Error("a phase that is none")
	}
	if !mine("cp2") {
		t.Error("a phase that failed keeps the turn")
	}
	end("cp2")
	if err := r.agent.rotate(t.Context(), forget); err != nil {
		t.Fatal(err)
	}
	if mine("cp2") {
		t.Error("another node gets the turn while this one's programs follow")
	}
}

// TestOutdatedIsNotReady: an old program that is about to be replaced does its
// work still, and is not what somebody waits for.
func TestOutdatedIsNotReady(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		state          supervise.State
		phase, message string
	}{
		{supervise.State{Phase: supervise.PhaseReady}, "ready", ""},
		{supervise.State{Phase: supervise.PhaseReady, Outdated: true}, "waiting", "is replaced when its turn comes"},
		{supervise.State{Phase: supervise.PhaseReady, Outdated: true, Message: "waits for etcd"}, "waiting", "waits for etcd"},
		{supervise.State{Phase: supervise.PhaseStopping, Outdated: true, Message: "ends"}, "stopping", "ends"},
	} {
		if got := tell(test.state); got.Phase != test.phase || got.Message != test.message {
			t.Errorf("%+v is told as %+v", test.state, got)
		}
	}
}
