package membership

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"kuorum/internal/agent"
	"kuorum/internal/cluster"
	"kuorum/internal/keyring"
	"kuorum/internal/pki"
)

// village is servers' agents at addresses of the loopback, for a machine that
// joins.
type village struct {
	spec *cluster.Spec
	set  *pki.Set
	pin  string
}

func newVillage(t *testing.T) *village {
	t.Helper()
	spec, err := cluster.New("demo", 3, 1)
	must(t, err)
	local := loopbackNet()
	for i := range spec.Spec.Nodes {
		spec.Spec.Nodes[i].Address = fmt.Sprintf("%s%d", local, 11+i)
	}
	set, err := pki.NewSet(time.Now())
	must(t, err)
	pin, err := pki.Pin(set.Agents.Pair().Cert)
	must(t, err)
	return &village{spec: spec, set: set, pin: pin}
}

// serve has the agent of a node answer a path.
func (v *village) serve(t *testing.T, name, path string, answer func(json.RawMessage) (any, error)) {
	t.Helper()
	n, _ := v.spec.Node(name)
	config, err := pki.ServerTLS(v.set.Agents.Pair().Cert, agentPair(t, v.set, v.spec, n))
	must(t, err)
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+path, func(w http.ResponseWriter, r *http.Request) {
		var in json.RawMessage
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
			t.Error(err)
		}
		out, err := answer(in)
		if err != nil {
			refusal, code := agent.Refuse(err)
			w.WriteHeader(code)
			out = refusal
		}
		_ = json.NewEncoder(w).Encode(out) // the caller has gone
	})
	server := httptest.NewUnstartedServer(mux)
	must(t, server.Listener.Close())
	if server.Listener, err = net.Listen("tcp", fmt.Sprintf("%s:%d", n.Address, agent.Port)); err != nil {
		t.Fatal(err)
	}
	server.TLS = config
	server.StartTLS()
	t.Cleanup(server.Close)
}

func (v *village) joiner(servers ...string) *Joiner {
	j := &Joiner{Token: "id.secret", Pin: v.pin, Node: cluster.Node{Name: "w9", Role: cluster.RoleWorker, Address: "127.0.0.9"}}
	for _, name := range servers {
		n, _ := v.spec.Node(name)
		j.Servers = append(j.Servers, n.Address)
	}
	return j
}

// TestAsk: one server after the other, until one answers; a refusal is the end,
// and nobody gets the token whose authority has another pin.
func TestAsk(t *testing.T) {
	t.Parallel()
	v := newVillage(t)
	plan := Plan{Cluster: "demo", Servers: v.spec.Servers()}
	v.serve(t, "cp2", CheckPath, func(in json.RawMessage) (any, error) {
		var r Request
		if err := json.Unmarshal(in, &r); err != nil || r.Nonce != "n" || r.Token != "id.secret" || r.Name != "w9" || time.Since(r.Time) > time.Minute {
			t.Errorf("asked with %+v, %v", r, err)
		}
		return plan, nil
	})
	v.serve(t, "cp3", CheckPath, func(json.RawMessage) (any, error) { return nil, refusedToken("because") })
	j := v.joiner("cp1", "cp2", "cp3") // cp1 is off
	if err := j.ask(t.Context(), "n"); err != nil || j.plan.Cluster != "demo" || j.server != j.Servers[1] {
		t.Errorf("got %v, %+v from %s", err, j.plan, j.server)
	}
	wants(t, v.joiner("cp3", "cp2").ask(t.Context(), "n"), cluster.ExitRefused, "because")
	wants(t, v.joiner("cp1").ask(t.Context(), "n"), cluster.ExitNoQuorum, "no server of the cluster answers: ")

	j = v.joiner("cp2")
	j.Pin = newVillage(t).pin
	wants(t, j.ask(t.Context(), "n"), cluster.ExitRefused, "another cluster, or somebody in between")
	j.Pin = "sha256:0"
	wants(t, j.ask(t.Context(), "n"), cluster.ExitUsage, "the pin of the authority cannot be used")
}

func TestCheckMachine(t *testing.T) {
	t.Parallel()
	v := newVillage(t)
	j := v.joiner("cp1")
	j.Dir, j.Data = filepath.Join(t.TempDir(), "etc"), filepath.Join(t.TempDir(), "var")
	must(t, j.checkMachine(t.Context()))
	must(t, os.MkdirAll(filepath.Join(j.Data, "etcd/member"), 0o700))
	wants(t, j.checkMachine(t.Context()), cluster.ExitRefused, "has the data of an etcd member")
	must(t, testDisk(t).Write(j.Dir))
	wants(t, j.checkMachine(t.Context()), cluster.ExitRefused, "is node cp1 of cluster demo already")
	must(t, os.Remove(filepath.Join(j.Dir, specFile)))
	if err := j.checkMachine(t.Context()); err == nil || errors.Is(err, ErrNoNode) {
		t.Errorf("a damaged node: %v", err)
	}
}

// TestWorkersFiles: what a worker writes is complete, and its agent can ask
// others with it. A cluster whose answer leaves it out is not believed.
func TestWorkersFiles(t *testing.T) {
	t.Parallel()
	v := newVillage(t)
	spec, err := cluster.New("demo", 1, 1)
	must(t, err)
	w1, _ := spec.Node("w1")
	keys, err := pki.NewNodeKeys(cluster.RoleWorker)
	must(t, err)
	requests, err := keys.Requests()
	must(t, err)
	certificates, err := v.set.SignRequests(spec, w1, requests, time.Now())
	must(t, err)
	j := v.joiner("cp1")
	j.Node, j.Dir, j.keys = w1, t.TempDir(), keys
	j.admission = Admission{Spec: spec, Certificates: certificates, Trust: v.set.Trust()}
	must(t, j.writeDisk())
	got, err := Read(j.Dir)
	if err != nil || got.Name != "w1" || !got.Joining {
		t.Fatalf("got %+v, %v", got, err)
	}
	if _, err := NodeClient(j.Dir); err != nil {
		t.Error(err)
	}
	if _, err := keyring.Keys(j.Dir); err == nil {
		t.Error("a worker has the cluster's keys")
	}
	j.Node.Name = "w7"
	if err := j.writeDisk(); err == nil || !strings.Contains(err.Error(), "has no node w7") {
		t.Errorf("got %v", err)
	}
}

// TestMovedNodeRenews: a node that is no server asks for new certificates when
// they do not name its address, however young they are, and takes none for
// another. Those of an etcd node name where it was until its move is complete.
func TestMovedNodeRenews(t *testing.T) {
	t.Parallel()
	for name, paths := range map[string][]string{
		"w1": {"pki/agent.crt", "pki/kubelet.crt"}, "e1": {"pki/agent.crt", "pki/etcd/server.crt", "pki/etcd/peer.crt"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			movedNodeRenews(t, name, paths)
		})
	}
}

func movedNodeRenews(t *testing.T, name string, paths []string) {
	t.Helper()
	w := newWorldApart(t, 1, 1)
	w1, _ := w.spec.Node(name)
	files, err := w.set.NodeFiles(w.spec, w1, time.Now())
	must(t, err)
	have := map[string][]byte{}
	for _, f := range files {
		have[f.Path] = f.Data
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+RenewPath, func(rw http.ResponseWriter, r *http.Request) {
		var in Renewal
		err := json.NewDecoder(r.Body).Decode(&in)
		signed, other := w.service.Renew(r.Context(), in)
		if err := errors.Join(err, other); err != nil {
			http.Error(rw, err.Error(), http.StatusInternalServerError)
			return
		}
		_ = json.NewEncoder(rw).Encode(signed)
	})
	w.answers(t, "cp1", mux)
	mine := w.spec
	renew := func(node cluster.Node) ([]pki.File, error) {
		got, err := AskRenewal(within(t), w.service.Agents, mine, node, have)
		for _, f := range got {
			have[f.Path] = f.Data
		}
		return got, err
	}
	madeOutTo := func(address string, also ...string) bool {
		return !slices.ContainsFunc(paths, func(path string) bool { return !pki.MadeOutTo(have[path], address, also...) })
	}
	if got, err := renew(w1); got != nil || err != nil {
		t.Errorf("nothing has changed: %v, %v", got, err)
	}
	moved := w1
	moved.Address, moved.Moved = "198.18.0.64", cluster.Move{Times: 1, From: []string{w1.Address}}
	if got, err := renew(moved); got != nil || err == nil { // the register has it where it was
		t.Errorf("it takes certificates for where it was: %v, %v", got, err)
	}
	for _, node := range []cluster.Node{moved, {Name: name, Role: w1.Role, Address: moved.Address, Moved: cluster.Move{Times: 1}}} {
		must(t, w.service.Register.Change(within(t), "test", func(spec *cluster.Spec) (*cluster.Spec, error) { return spec.With(node) }))
		mine, err = w.service.Register.Spec(within(t))
		must(t, err)
		_, err = renew(node)
		must(t, err)
		both := w1.Role == cluster.RoleEtcd && len(node.Moved.From) > 0
		if !madeOutTo(node.Address, w1.Address) || madeOutTo(node.Address) == both {
			t.Errorf("they do not name where it is: %+v", node.Moved)
		}
		if got, err := renew(node); got != nil || err != nil {
			t.Errorf("it asks again: %v, %v", got, err)
		}
	}
}

// TestFinish asks the servers but itself until its join is done, was taken
// back, or time is up.
func TestFinish(t *testing.T) {
	t.Parallel()
	v := newVillage(t)
	cp3, _ := v.spec.Node("cp3")
	answers := make(chan any, 4)
	v.serve(t, "cp2", ProgressPath, func(in json.RawMessage) (any, error) { // cp1 is off
		var r Report
		if err := json.Unmarshal(in, &r); err != nil || r.Name != "cp3" || !r.Ready {
			t.Errorf("reported %+v, %v", r, err)
		}
		next := <-answers
		if err, ok := next.(error); ok {
			return nil, err
		}
		return next, nil
	})
	v.serve(t, "cp3", ProgressPath, func(json.RawMessage) (any, error) {
		t.Error("it asks itself")
		return Progress{Done: true}, nil
	})
	admin, err := v.set.AgentClientPair("test", time.Now())
	must(t, err)
	config, err := pki.ClientTLS(v.set.Agents.Pair().Cert, admin, "")
	must(t, err)
	var told []Progress
	finish := func(ctx context.Context) error {
		ready := func(context.Context) (cluster.NodeStatus, error) { return cluster.NodeStatus{Ready: true}, nil }
		return Finish{
			Agents: agent.NewClient(config, nil), Servers: v.spec.Servers(), Self: cp3, Status: ready,
			Tell: func(p Progress) { told = append(told, p) },
		}.Run(ctx)
	}
	answers <- &cluster.Problem{What: "no quorum", Exit: cluster.ExitNoQuorum} // goes away
	answers <- Progress{Percent: 7, Waits: "it has not caught up"}
	answers <- Progress{Done: true}
	if err := finish(within(t)); err != nil || len(told) != 1 || told[0].Percent != 7 {
		t.Errorf("got %v, told %+v", err, told)
	}
	answers <- &cluster.Problem{What: "taken back", Exit: cluster.ExitRefused}
	wants(t, finish(within(t)), cluster.ExitRefused, "taken back")

	ended, cancel := context.WithCancel(t.Context())
	cancel()
	wants(t, finish(ended), cluster.ExitTimeout, "it goes on by itself")
}
