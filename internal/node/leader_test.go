package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"kuorum/internal/apiservice"
	"kuorum/internal/cluster"
	"kuorum/internal/component"
	"kuorum/internal/endpoint"
	"kuorum/internal/history"
	"kuorum/internal/lease"
	"kuorum/internal/supervise"
	"kuorum/internal/tickle"
)

// election is an API server with one Lease.
type election struct {
	mu      sync.Mutex
	holder  string // HOSTNAME_UUID
	at      time.Time
	paths   []string
	updates []string
}

func (e *election) Get(_ context.Context, path string, into any) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.paths = append(e.paths, path)
	return json.Unmarshal(fmt.Appendf(nil, `{"metadata":{"resourceVersion":"1"},"spec":{"holderIdentity":%q,"acquireTime":%q,"renewTime":%q}}`,
		e.holder, e.at.Format(time.RFC3339Nano), e.at.Format(time.RFC3339Nano)), into)
}

func (e *election) Update(_ context.Context, path, body string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.holder, e.updates = "", append(e.updates, path+" "+body)
	return nil
}

func (e *election) take(holder string, at time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.holder, e.at = holder, at
}

func (e *election) since() time.Time {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.at
}

func (e *election) of() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.holder
}

func testBook(t *testing.T, node string) *history.Book {
	t.Helper()
	dir := t.TempDir()
	return history.NewBook(filepath.Join(dir, "leaders.jsonl"), filepath.Join(dir, "vip.jsonl"), node)
}

// written are the changes in the book of a, without times.
func written(t *testing.T, a *Agent) (changes []history.Change) {
	t.Helper()
	account, err := a.book.Since(time.Time{}, func(string) string { return "" })
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range account.Changes {
		if c.At.IsZero() {
			t.Errorf("%+v has no time", c)
		}
		c.At = time.Time{}
		changes = append(changes, c)
	}
	return changes
}

// TestMourn: the two programs that are elected are mourned, by the lease that
// cluster.yaml names, and not before the node has joined.
func TestMourn(t *testing.T) {
	spec, err := cluster.New("demo", 1, 0)
	if err != nil {
		t.Fatal(err)
	}
	spec.Spec.Kubernetes.Scheduler.LeaderElection.ResourceName = "own"
	var log bytes.Buffer
	e := &election{}
	a := testAgent(&log)
	a.machine.Spec, a.machine.Node, a.complete, a.book = spec, spec.Spec.Nodes[0], make(chan struct{}), testBook(t, "cp1")
	list := func() []supervise.Process {
		return []supervise.Process{{Name: "etcd"}, {Name: cluster.ControllerManagerName}, {Name: cluster.SchedulerName}}
	}
	for _, p := range a.mourn(list()) {
		if p.Died != nil {
			t.Errorf("%s is mourned on a node that is no server", p.Name)
		}
	}
	a.server = &server{leases: e}
	processes := a.mourn(list())
	if processes[0].Died != nil || processes[1].Died == nil || processes[2].Died == nil {
		t.Fatal("the wrong processes are mourned")
	}
	a.options.Hostname = "clone"
	for _, p := range a.mourn(list()) {
		if p.Died != nil {
			t.Errorf("%s is mourned on a host of another name, whose leases may be another's", p.Name)
		}
	}
	a.options.Hostname = "cp1"
	if a.mourn(list())[2].Died == nil {
		t.Error("the scheduler is not mourned on a host of the node's name")
	}
	died := time.Now()
	e.take("cp1_x", died.Add(-time.Minute))
	processes[2].Died(t.Context(), died)
	if len(e.paths) != 0 {
		t.Errorf("a node that joins has asked for %v: the lease may be that of the machine in whose place it comes", e.paths)
	}
	close(a.complete)
	processes[2].Died(t.Context(), died)
	if len(e.updates) != 1 || !strings.Contains(e.updates[0], "/namespaces/kube-system/leases/own ") || !strings.Contains(log.String(), "the lease of a dead component is released") {
		t.Errorf("updates %v, log %s", e.updates, &log)
	}
	e.take("cp2_x", died.Add(-time.Minute))
	processes[1].Died(t.Context(), died)
	if len(e.updates) != 1 || e.of() != "cp2_x" {
		t.Errorf("another's lease was released: %v", e.updates)
	}
	want := []history.Change{{What: "scheduler", From: "cp1", Why: "kube-scheduler of cp1 died, and its agent gave the lease up", By: "cp1"}}
	if diff := cmp.Diff(want, written(t, a)); diff != "" {
		t.Errorf("written down (-want +got):\n%s", diff)
	}
}

// TestHandOver: cp1 leads and is asked to hand over, over the agents' API. Real
// processes stand for the schedulers; a start of one takes a lease that is free, as
// upstream's does.
func TestHandOver(t *testing.T) {
	v := newVillage(t)
	e := &election{}
	began := time.Now()
	for _, name := range []string{"cp1", "cp2"} {
		a := v.agents[name]
		_, a.server.api = testAPI(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) })
		a.server.leases = e
		a.complete = make(chan struct{})
		close(a.complete)
		starts := 0
		s, err := supervise.New(t.TempDir(), slog.New(slog.DiscardHandler), []supervise.Process{{
			Name: cluster.SchedulerName, Path: "/bin/sleep", Args: []string{"100"},
			May: func(context.Context) error {
				if starts++; e.of() == "" {
					e.take(fmt.Sprintf("%s_%d", name, starts), time.Now())
				}
				return nil
			},
			Died: func(_ context.Context, at time.Time) { // what upstream's does when it is told to end
				if strings.HasPrefix(e.of(), name+"_") && at.After(e.since()) {
					e.take("", time.Now())
				}
			},
		}})
		if err != nil {
			t.Fatal(err)
		}
		a.supervisor = s
		ctx, cancel := context.WithCancel(t.Context())
		ran := make(chan error, 1)
		go func() { ran <- s.Run(ctx) }()
		t.Cleanup(func() {
			cancel()
			if err := errors.Join(<-ran, s.Stop(context.WithoutCancel(t.Context()))); err != nil {
				t.Error(err)
			}
		})
		limited, done := context.WithTimeout(t.Context(), 20*time.Second)
		defer done()
		if err := s.Wait(limited); err != nil {
			t.Fatal(err)
		}
	}
	if e.of() != "cp1_1" {
		t.Fatalf("%s leads", e.of())
	}
	pid := func(name string) int { return v.agents[name].supervisor.States()[0].PID }
	first, second := pid("cp1"), pid("cp2")

	var moved lease.Moved
	err := v.post(t, "w1", "cp1", order{lease.MovePath, lease.Order{Program: cluster.SchedulerName}, &moved})
	if !isRefused(err) || pid("cp1") != first {
		t.Errorf("a worker has moved the lead: %v", err)
	}
	if err := v.post(t, "cp2", "cp1", order{lease.MovePath, lease.Order{Program: "etcd"}, &moved}); err == nil || pid("cp1") != first {
		t.Errorf("there is no lease of etcd: %v", err)
	}
	// cp2 does not lead: nothing happens there, and the caller hears who does.
	if err := v.post(t, "somebody", "cp2", order{lease.MovePath, lease.Order{Program: cluster.SchedulerName, To: "cp1"}, &moved}); err != nil || moved.Leader != "cp1" || pid("cp2") != second {
		t.Errorf("got %+v, %v", moved, err)
	}
	if err := v.post(t, "somebody", "cp1", order{lease.MovePath, lease.Order{Program: cluster.SchedulerName}, &moved}); err != nil || moved.Leader != "cp2" || e.of() != "cp2_2" {
		t.Errorf("got %+v, %v, and %s leads", moved, err, e.of())
	}
	for _, name := range []string{"cp1", "cp2"} {
		limited, done := context.WithTimeout(t.Context(), 20*time.Second)
		defer done()
		if err := v.agents[name].supervisor.Wait(limited); err != nil {
			t.Error(err)
		}
	}
	if pid("cp1") == first || pid("cp2") == second || e.of() != "cp2_2" {
		t.Errorf("after %v the processes are %d and %d, as before %d and %d; %s leads", time.Since(began), pid("cp1"), pid("cp2"), first, second, e.of())
	}
	v.agents["cp1"].yieldLeads(t.Context())
	if e.of() != "cp2_2" {
		t.Errorf("a server that does not lead has handed over to %s", e.of())
	}
	// A standby that leads by now is left alone.
	leading := pid("cp2")
	if err := v.post(t, "cp1", "cp2", order{lease.StandbyPath, lease.Order{Program: cluster.SchedulerName}, nil}); err != nil || pid("cp2") != leading {
		t.Errorf("the leader was restarted as a standby: %v", err)
	}
	v.agents["cp2"].yieldLeads(t.Context())
	if e.of() != "cp1_3" {
		t.Errorf("cp2 is about to stop, and %s leads", e.of())
	}
	for name, want := range map[string][]history.Change{
		"cp1": {{What: "scheduler", From: "cp1", To: "cp2", Why: "handed over by order", By: "cp1"}},
		"cp2": {{What: "scheduler", From: "cp2", To: "cp1", Why: "handed over, since cp2 stops", By: "cp2"}},
	} {
		if diff := cmp.Diff(want, written(t, v.agents[name])); diff != "" {
			t.Errorf("%s has written down (-want +got):\n%s", name, diff)
		}
	}
}

// TestTellHistory: whoever has a certificate may ask, a worker has nothing to tell.
func TestTellHistory(t *testing.T) {
	v := newVillageApart(t, 1)
	for _, name := range []string{"cp1", "e1"} {
		for i, second := range []int64{100, 200} {
			err := v.agents[name].book.See(history.Sight{What: history.Scheduler, Holder: "cp1", Term: uint64(i) + 1, Since: time.Unix(second, 0)}, "")
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, caller := range []string{"somebody", "cp2", "w1"} {
		for _, node := range []string{"cp1", "e1"} {
			for since, want := range map[string]int{"": 2, "?since=1970-01-01T00:03:20Z": 1, "?since=1970-01-01T00:03:21Z": 0} {
				var account history.Account
				if err := v.post(t, caller, node, order{history.Path + since, nil, &account}); err != nil || len(account.Changes) != want {
					t.Errorf("%s asks %s%s and hears %+v, %v", caller, node, since, account, err)
				}
			}
		}
	}
	err := v.post(t, "somebody", "cp1", order{history.Path + "?since=soon", nil, nil})
	if problem, ok := errors.AsType[*cluster.Problem](err); !ok || problem.Exit != cluster.ExitUsage {
		t.Errorf("since soon: %v", err)
	}
	if err := v.post(t, "somebody", "w1", order{history.Path, nil, nil}); err == nil {
		t.Error("a worker has a history")
	}
}

// raft is a member that counts what it is asked.
type raft struct {
	status  cluster.EtcdStatus
	members int // how often its list was asked for
}

func (r *raft) Statuses(context.Context) []cluster.EtcdStatus {
	s := r.status
	s.Members = nil
	return []cluster.EtcdStatus{s}
}

func (r *raft) Status(context.Context) cluster.EtcdStatus {
	r.members++
	return r.status
}

// TestLookAtEtcd: the member list is asked for only when another leads, and what is not
// known is left out.
func TestLookAtEtcd(t *testing.T) {
	members := []cluster.EtcdMember{{ID: "a1", Name: "cp1"}, {ID: "a2", Name: "cp2"}, {ID: "a3"}}
	r, led := &raft{}, &ledMember{}
	for _, step := range []struct {
		leader string
		term   uint64
		fails  string
		want   string // who leads; empty: it is left out
		asked  int
	}{
		{"", 1, "", "", 0},
		{"a1", 2, "", "cp1", 1},
		{"a1", 2, "", "cp1", 1},
		{"", 3, "", "", 1},
		{"a1", 2, "off", "", 1},
		{"a1", 2, "", "cp1", 1},
		{"a1", 4, "", "cp1", 2},
		{"a2", 5, "", "cp2", 3},
		{"a1", 5, "", "cp1", 4}, // of another etcd, in its place
		{"a3", 6, "", "", 5},
		{"a9", 7, "", "", 6},
	} {
		r.status = cluster.EtcdStatus{Error: step.fails, Leader: step.leader, Term: step.term, Members: members}
		got, want := led.look(t.Context(), r), []history.Sight(nil)
		if step.want != "" {
			want = []history.Sight{{What: history.Etcd, Holder: step.want, Term: step.term}}
		}
		if diff := cmp.Diff(want, got); diff != "" || r.members != step.asked {
			t.Errorf("%+v: its list was asked for %d times (-want +got):\n%s", step, r.members, diff)
		}
	}
}

func TestSightOf(t *testing.T) {
	now := time.Unix(100, 0)
	got := sightOf(cluster.LeaseStatus{
		Name: cluster.ControllerManagerName, Holder: "cp1", Since: now, Renewed: now.Add(time.Second), Lasts: cluster.Duration(15 * time.Second), Transitions: 3,
	})
	want := history.Sight{What: history.ControllerManager, Holder: "cp1", Term: 3, Since: now, Renewed: now.Add(time.Second), Lasts: 15 * time.Second}
	if diff := cmp.Diff(want, got); diff != "" || ledWord(cluster.SchedulerName) != history.Scheduler {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestMoveVIP: what the balancer says comes back, with an exit code.
func TestMoveVIP(t *testing.T) {
	v := newVillage(t)
	cp1, cp2 := v.agents["cp1"], v.agents["cp2"]
	moves := func(to string, balancer endpoint.Control) (code int, says string) {
		err := cp1.moveVIP(t.Context(), balancer, to)
		if err == nil {
			return cluster.ExitOK, ""
		}
		problem, ok := errors.AsType[*cluster.Problem](err)
		if !ok {
			t.Fatalf("to %s: %v", to, err)
		}
		return problem.ExitCode(), err.Error()
	}
	if code, says := moves("cp2", v.control("cp1")); code != cluster.ExitNoQuorum || !strings.Contains(says, "the balancer of cp1 does not move") {
		t.Errorf("no balancer: %d, %s", code, says)
	}
	var asked []string
	refuses := true
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+endpoint.MovePath, func(w http.ResponseWriter, r *http.Request) {
		if asked = append(asked, r.URL.Query().Get("to")); refuses {
			http.Error(w, "this router is not active", http.StatusConflict)
		}
	})
	serveUnix(t, v.control("cp1"), mux)
	for _, to := range []string{"w1", "cp9", ""} {
		if code, says := moves(to, v.control("cp1")); code != cluster.ExitUsage || !strings.Contains(says, "is no server") || asked != nil {
			t.Errorf("to %q: %d, %s", to, code, says)
		}
	}
	if code, says := moves("cp2", v.control("cp1")); code != cluster.ExitRefused || !strings.Contains(says, "not moved to cp2: this router is not active") {
		t.Errorf("it is not here: %d, %s", code, says)
	}
	refuses = false
	if code, says := moves("cp2", v.control("cp1")); code != cluster.ExitOK {
		t.Errorf("it is here: %d, %s", code, says)
	}
	address := cp2.machine.Node.Address
	if diff := cmp.Diff([]string{address, address}, asked); diff != "" {
		t.Errorf("the balancer is asked (-want +got):\n%s", diff)
	}
}

// TestPassVIP: the first other that can have it gets it, and the next if that one
// does not take it.
func TestPassVIP(t *testing.T) {
	v := newVillage(t)
	a := v.agents["w1"] // a third, so that both servers are others
	at := map[string]string{}
	for _, n := range v.spec.Servers() {
		at[n.Address] = n.Name
	}
	var asked []string
	takes := ""
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+endpoint.MovePath, func(w http.ResponseWriter, r *http.Request) {
		name := at[r.URL.Query().Get("to")]
		if asked = append(asked, name); name != takes {
			http.Error(w, "nobody took it", http.StatusConflict)
		}
	})
	serveUnix(t, v.control("w1"), mux)
	backup := cluster.VIPStatus{State: cluster.VIPBackup}
	impaired := cluster.VIPStatus{State: cluster.VIPBackup, Impaired: true}
	active := cluster.VIPStatus{State: cluster.VIPActive}
	for name, tc := range map[string]struct {
		vips  []*cluster.VIPStatus // of cp1 and cp2; nil: no status at all
		takes string
		want  []string
	}{
		"the first takes it":     {[]*cluster.VIPStatus{&backup, &backup}, "cp1", []string{"cp1"}},
		"the second does":        {[]*cluster.VIPStatus{&backup, &backup}, "cp2", []string{"cp1", "cp2"}},
		"nobody does":            {[]*cluster.VIPStatus{&backup, &backup}, "", []string{"cp1", "cp2"}},
		"the first is impaired":  {[]*cluster.VIPStatus{&impaired, &backup}, "cp2", []string{"cp2"}},
		"the first is silent":    {[]*cluster.VIPStatus{nil, &backup}, "cp2", []string{"cp2"}},
		"another has it already": {[]*cluster.VIPStatus{&active, &impaired}, "cp1", nil},
	} {
		t.Run(name, func(t *testing.T) {
			asked, takes = nil, tc.takes
			reports := []cluster.NodeReport{{Name: "w1", Status: &cluster.NodeStatus{VIP: &backup}}} // itself
			for i, n := range v.spec.Servers() {
				r := cluster.NodeReport{Name: n.Name}
				if tc.vips[i] != nil {
					r.Status = &cluster.NodeStatus{VIP: tc.vips[i]}
				}
				reports = append(reports, r)
			}
			a.passVIP(t.Context(), v.control("w1"), append(reports, cluster.NodeReport{Name: "cp2", Status: &cluster.NodeStatus{}}))
			if diff := cmp.Diff(tc.want, asked); diff != "" {
				t.Errorf("asked (-want +got):\n%s", diff)
			}
		})
	}
}

// TestDropVIP: of a server that was removed the leases' holders end first, then the
// balancer, and nothing else; where no virtual IP can be, nobody.
func TestDropVIP(t *testing.T) {
	dir := t.TempDir()
	ends := filepath.Join(dir, "ends")
	var processes []supervise.Process
	var components []component.Component
	for _, name := range []string{"etcd", "kube-apiserver", "endpoint", cluster.ControllerManagerName, cluster.SchedulerName} {
		up := filepath.Join(dir, "up-"+name)
		script := fmt.Sprintf("trap 'echo %s >> %s; exit' TERM; : > %s; while :; do sleep 0.05; done", name, ends, up)
		processes = append(processes, supervise.Process{
			Name: name, Path: "/bin/sh", Args: []string{"-c", script}, Env: os.Environ(),
			Ready: func(context.Context) error { _, err := os.Stat(up); return err },
		})
		components = append(components, component.Component{Name: name})
	}
	var log bytes.Buffer
	a := testAgent(&log)
	spec, err := cluster.New("demo", 3, 0)
	if err != nil {
		t.Fatal(err)
	}
	a.machine.Spec, a.components = spec, components
	if a.supervisor, err = supervise.New(filepath.Join(dir, "run"), slog.New(slog.DiscardHandler), processes); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- a.supervisor.Run(ctx) }()
	limited, done := context.WithTimeout(t.Context(), 20*time.Second)
	defer done()
	if err := a.supervisor.Wait(limited); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-ran; err != nil {
		t.Error(err)
	}
	t.Cleanup(func() {
		if err := a.supervisor.Stop(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	ended := func() string {
		text, err := os.ReadFile(ends)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		return strings.Join(strings.Fields(string(text)), " ")
	}
	a.machine.Spec.Spec.Endpoint.Type = cluster.EndpointLocal
	if a.dropVIP(limited); ended() != "" {
		t.Errorf("without a virtual IP there ends %s", ended())
	}
	a.machine.Spec.Spec.Endpoint.Type, a.server = cluster.EndpointVIP, nil
	if a.dropVIP(limited); ended() != "" {
		t.Errorf("on a node that is no server there ends %s", ended())
	}
	a.server = &server{}
	over, end := context.WithCancel(t.Context())
	end()
	a.dropVIP(over)
	if strings.Count(log.String(), "cannot stop a component of a removed server") != 3 || ended() != "" {
		t.Errorf("without time there ends %q, and is said: %s", ended(), &log)
	}
	log.Reset()
	a.dropVIP(limited)
	if got := ended(); got != "kube-controller-manager kube-scheduler endpoint" || log.Len() > 0 {
		t.Errorf("there ends %q; %s", got, &log)
	}
}

func serveUnix(t *testing.T, at endpoint.Control, handler http.Handler) {
	t.Helper()
	ln, err := net.Listen("unix", string(at))
	if err != nil {
		t.Fatal(err)
	}
	web := &httptest.Server{Listener: ln, Config: &http.Server{Handler: handler}}
	web.Start()
	t.Cleanup(web.Close)
}

// TestViewOfTheAPIServers: servers ask each other what their balancers say, and one
// that is about to stop says so first.
func TestViewOfTheAPIServers(t *testing.T) {
	v := newVillage(t)
	cp1, _ := v.spec.Node("cp1")
	a := v.agents["cp1"]
	said := endpoint.States{Backends: []endpoint.BackendStatus{{Backend: endpoint.Backend{Name: "cp1", Address: cp1.Address + ":6444"}, State: endpoint.Healthy}}}
	var away error
	a.server.service = apiservice.New(apiservice.Config{
		Self: "cp1", Balancer: func(context.Context, uint64) (endpoint.States, error) { return said, away },
	})
	a.complete = make(chan struct{})
	close(a.complete)
	var got apiservice.View
	ask := order{apiservice.Path, nil, &got}
	for _, caller := range []string{"cp2", "somebody"} {
		if err := v.post(t, caller, "cp1", ask); err != nil || !got.Healthy[cp1.Address] || got.Leaving {
			t.Errorf("%s is told %+v, %v", caller, got, err)
		}
	}
	if err := v.post(t, "cp2", "w1", ask); err == nil {
		t.Errorf("a worker says %+v", got)
	}
	a.server.leases = &election{}
	a.yieldLeads(t.Context())
	if err := v.post(t, "cp2", "cp1", ask); err != nil || !got.Leaving {
		t.Errorf("before it stops it says %+v, %v", got, err)
	}
	away = errors.New("no balancer")
	if err := v.post(t, "cp2", "cp1", ask); err == nil || !strings.Contains(err.Error(), "no balancer") {
		t.Errorf("without a balancer it says %+v, %v", got, err)
	}
}

// balancerOf answers orders as the balancer of a server does. It returns whom the
// server serves at the virtual IP, and what it is told of others.
func balancerOf(t *testing.T, v *village, name string) (*tickle.Clients, <-chan endpoint.VIPClients) {
	t.Helper()
	own, told := tickle.NewClients(), make(chan endpoint.VIPClients, 100)
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+endpoint.ClientsPath, func(w http.ResponseWriter, r *http.Request) {
		since, err := strconv.ParseUint(r.URL.Query().Get("since"), 10, 64)
		if err != nil {
			t.Error(err)
		}
		writeJSON(w, own.Wait(r.Context(), since))
	})
	mux.HandleFunc("POST "+endpoint.ClientsPath, func(w http.ResponseWriter, r *http.Request) {
		var in endpoint.VIPClients
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
			t.Error(err)
		}
		if told <- in; len(in.Clients) > 1 {
			http.Error(w, "too many", http.StatusConflict)
		}
	})
	serveUnix(t, v.control(name), mux)
	return own, told
}

// TestClientsOfTheVirtualIP: servers learn of each other's clients through their
// agents, workers do not, and nobody who waits for news holds an agent up that ends.
func TestClientsOfTheVirtualIP(t *testing.T) {
	v := newVillage(t)
	var list tickle.List
	ask := func(caller, path string) error {
		list = tickle.List{}
		return v.post(t, caller, "cp1", order{path, nil, &list})
	}
	if err := ask("cp2", clientsPath); err == nil || isRefused(err) {
		t.Errorf("cp1 has no balancer, and says %v", err)
	}
	own, _ := balancerOf(t, v, "cp1")
	_, told := balancerOf(t, v, "cp2")
	guest := netip.MustParseAddrPort("192.0.2.1:40000")
	own.Add(guest, nil)
	if err := ask("w1", clientsPath); !isRefused(err) || len(list.Clients) > 0 {
		t.Errorf("a worker is told %v, %v", list, err)
	}
	for _, caller := range []string{"cp2", "somebody", "cp1"} {
		if err := ask(caller, clientsPath); err != nil || len(list.Clients) != 1 || list.Clients[0] != guest {
			t.Errorf("%s is told %v, %v", caller, list, err)
		}
	}

	cp2 := v.agents["cp2"]
	cp1, _ := v.spec.Node("cp1")
	if others := cp2.otherServers(); len(others) != 1 || others[0].String() != cp1.Address {
		t.Fatalf("the other servers are %v", others)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		cp2.clientLearner(v.control("cp2")).Run(ctx, cp2.otherServers)
	}()
	if in := <-told; in.From.String() != cp1.Address || len(in.Clients) != 1 || in.Clients[0] != guest {
		t.Errorf("the balancer of cp2 is told %v", in)
	}
	own.Add(netip.MustParseAddrPort("192.0.2.2:40000"), nil)
	if in := <-told; len(in.Clients) != 2 {
		t.Errorf("the balancer of cp2 is told %v", in)
	}
	cancel()
	<-done
	if err := v.control("cp2").Tell(t.Context(), netip.MustParseAddr(cp1.Address), make([]netip.AddrPort, 2)); err == nil || !strings.Contains(err.Error(), "too many") {
		t.Errorf("its balancer refuses, and that is %v", err)
	}

	waits := make(chan error)
	begin := time.Now()
	if err := ask("cp2", clientsPath); err != nil {
		t.Fatal(err)
	}
	go func() { waits <- ask("cp2", newsSince(clientsPath, list.Version)) }()
	v.end()
	if err := <-waits; err == nil || time.Since(begin) > tickle.Patience {
		t.Errorf("after %v: %v", time.Since(begin), err)
	}
}

// TestClientsAreSentElsewhere: the balancers of all servers are told of one whose API
// server is about to stop, by itself or by an administrator.
func TestClientsAreSentElsewhere(t *testing.T) {
	v := newVillage(t)
	told := make(chan string, 10)
	for _, name := range []string{"cp1", "cp2"} {
		mux := http.NewServeMux()
		mux.HandleFunc("POST "+endpoint.PartPath, func(w http.ResponseWriter, r *http.Request) {
			address := r.URL.Query().Get("address")
			if told <- name + " " + address; name == "cp2" {
				http.Error(w, "no other backend works", http.StatusConflict)
			}
		})
		serveUnix(t, v.control(name), mux)
	}
	address := func(name string) string {
		n, _ := v.spec.Node(name)
		return n.Address + ":6444"
	}
	parting := func(name string) order { return order{apiservice.PartPath, apiservice.Parting{Name: name}, nil} }
	for _, caller := range []string{"cp2", "somebody"} {
		if err := v.post(t, caller, "cp1", parting("cp2")); err != nil {
			t.Errorf("%s: %v", caller, err)
		} else if got := <-told; got != "cp1 "+address("cp2") {
			t.Errorf("%s has told %q", caller, got)
		}
	}
	if err := v.post(t, "w1", "cp1", parting("cp2")); !isRefused(err) {
		t.Errorf("a worker may do that: %v", err)
	}
	for _, name := range []string{"w1", "cp9", ""} {
		if err := v.post(t, "cp2", "cp1", parting(name)); err == nil || !strings.Contains(err.Error(), "is no server") {
			t.Errorf("%q is taken for a server: %v", name, err)
		}
	}
	if err := v.post(t, "cp1", "cp2", parting("cp1")); !isRefused(err) || !strings.Contains(err.Error(), "no other backend works") {
		t.Errorf("its balancer does not, and that is %v", err)
	}
	<-told
	v.agents["cp1"].yieldAPI(t.Context(), v.spec.Servers())
	got := []string{<-told, <-told}
	slices.Sort(got)
	if diff := cmp.Diff([]string{"cp1 " + address("cp1"), "cp2 " + address("cp1")}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
