package cli

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/google/go-cmp/cmp"

	"kuorum/internal/advise"
	"kuorum/internal/agent"
	"kuorum/internal/cluster"
	"kuorum/internal/lease"
)

// ledCluster is three servers: cp2 leads etcd, cp3, whose clock is 2 s ahead, the
// scheduler, and nobody the controller-manager.
func ledCluster(now time.Time) cluster.Status {
	s := cluster.Status{Time: now, Leader: "cp2"}
	for _, name := range []string{"cp1", "cp2", "cp3"} {
		s.Nodes = append(s.Nodes, cluster.NodeReport{Name: name, Status: &cluster.NodeStatus{
			Etcd: &cluster.EtcdStatus{Term: 4}, Components: []cluster.ComponentStatus{{Name: cluster.SchedulerName, Phase: "ready"}},
		}})
	}
	s.Nodes[1].Status.Etcd.Term = 5
	s.Nodes[2].ClockOffset = cluster.Duration(2 * time.Second)
	s.Leaders = []cluster.LeaseStatus{
		{Name: cluster.ControllerManagerName, Transitions: 3},
		{Name: cluster.SchedulerName, Holder: "cp3", Since: now.Add(-90 * time.Second), Renewed: now, Lasts: cluster.Duration(15 * time.Second), Transitions: 7},
	}
	return s
}

func TestLeads(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	want := []lead{
		{What: "etcd", Leader: "cp2", Term: 5},
		{What: "scheduler", Leader: "cp3", Since: now.Add(-90 * time.Second), Term: 7, LeaseLeft: cluster.Duration(13 * time.Second)},
		{What: "controller-manager", Term: 3},
	}
	got := leads(ledCluster(now))
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	empty := []lead{{What: "etcd"}, {What: "scheduler"}, {What: "controller-manager"}}
	if diff := cmp.Diff(empty, leads(cluster.Status{})); diff != "" {
		t.Errorf("of a cluster that says nothing (-want +got):\n%s", diff)
	}
	got[1].LeaseLeft = -1
	for i, text := range []string{
		"etcd nobody - 0 -;scheduler nobody - 0 -;controller-manager nobody - 0 -",
		"etcd cp2 - 5 -;scheduler cp3 2026-01-02 03:02:35 (1m30s) 7 none;controller-manager nobody - 3 -",
		"etcd cp2 - 5 -;scheduler cp3 2026-01-02 03:02:35 (1m30s) 7 13s;controller-manager nobody - 3 -",
	} {
		var out bytes.Buffer
		w := tabwriter.NewWriter(&out, 0, 8, 1, ' ', 0)
		writeLeads(w, [][]lead{empty, got, leads(ledCluster(now))}[i], now)
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		var lines []string
		for line := range strings.Lines(out.String()) {
			lines = append(lines, strings.Join(strings.Fields(line), " "))
		}
		if diff := cmp.Diff(text, strings.Join(lines[1:], ";")); diff != "" {
			t.Error(diff)
		}
	}
}

func TestLeadChanges(t *testing.T) {
	first := []lead{{What: "etcd", Leader: "cp1", Term: 4}, {What: "scheduler", Leader: "cp1", Term: 2}, {What: "controller-manager"}}
	next := []lead{{What: "etcd", Leader: "cp2", Term: 5}, {What: "scheduler", Leader: "cp1", Term: 3}, {What: "controller-manager", Leader: "cp3", Term: 1}}
	for _, tc := range []struct {
		before, now []lead
		want        []string
	}{
		{nil, first, []string{"etcd: cp1, term 4", "scheduler: cp1, term 2", "controller-manager: nobody, term 0"}},
		{first, first, nil},
		{first, next, []string{"etcd: cp1 -> cp2, term 5", "scheduler: cp1 again, term 3", "controller-manager: nobody -> cp3, term 1"}},
	} {
		if diff := cmp.Diff(tc.want, leadChanges(tc.before, tc.now)); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
}

func TestEtcdHeir(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*advise.Etcd)
		to     string
		want   string
		code   int
		says   string
	}{
		"any":                   {to: "", want: "cp1"},
		"a wish":                {to: "cp3", want: "cp3"},
		"by its ID":             {to: "a3", want: "cp3"},
		"the leader":            {to: "cp2", want: "cp2"},
		"one that is off":       {change: func(e *advise.Etcd) { fail(&e.Members[2]) }, to: "cp3", code: cluster.ExitRefused, says: "does not answer: it is off"},
		"a learner":             {change: func(e *advise.Etcd) { learn(&e.Members[2]) }, to: "cp3", code: cluster.ExitRefused, says: "its state is: learner"},
		"any, the first is off": {change: func(e *advise.Etcd) { fail(&e.Members[0]) }, want: "cp3"},
		"no other":              {change: func(e *advise.Etcd) { e.Members = e.Members[1:2] }, code: cluster.ExitRefused, says: "no other member can lead"},
		"nobody leads":          {change: func(e *advise.Etcd) { e.Members[1].State = "no leader" }, code: cluster.ExitNoQuorum, says: "no leader"},
		"unknown":               {to: "cp9", code: cluster.ExitUsage, says: `no member "cp9"`},
	} {
		e := threeMembers()
		if tc.change != nil {
			tc.change(&e)
		}
		leader, heir, err := etcdHeir(e, tc.to)
		if exitOf(err) != tc.code || tc.code != 0 && !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: got %v", name, err)
		}
		if tc.code == 0 && (heir.Label != tc.want || leader.Label != "cp2") {
			t.Errorf("%s: from %s to %s", name, leader.Label, heir.Label)
		}
	}
}

// TestProgramSteps: what --dry-run prints, and that a target which is not ready
// stops it before anybody is asked to end anything.
func TestProgramSteps(t *testing.T) {
	spec, err := cluster.New("demo", 3, 0)
	if err != nil {
		t.Fatal(err)
	}
	now := ledCluster(time.Now())
	now.Nodes[0].Status.Components[0].Phase = "starting"
	asked := errors.New("an agent was asked")
	w := &etcdWork{target: target{
		spec:    spec,
		reports: func(context.Context) ([]cluster.NodeReport, error) { return now.Nodes, nil },
		agents:  func() (*agent.Client, error) { return nil, asked },
	}}
	run := func(to string) (names []string, err error) {
		for _, s := range w.programSteps(lease.Order{Program: cluster.SchedulerName, To: to}, "cp3") {
			names = append(names, s.Name)
			if err == nil {
				err = s.Do(t.Context())
			}
		}
		return names, err
	}
	names, err := run("cp1")
	want := []string{
		"check that cp1 is ready",
		"end kube-scheduler of cp3, start that of cp1 again, and wait until it leads",
		"wait until both are ready again",
	}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if exitOf(err) != cluster.ExitRefused || errors.Is(err, asked) {
		t.Errorf("a target that is not ready: %v", err)
	}
	if _, err := run("cp2"); !errors.Is(err, asked) {
		t.Errorf("a target that is ready: %v", err)
	}
	if got := unreadyOf(now.Nodes, cluster.SchedulerName, "cp1", "cp2"); got != "kube-scheduler of cp1 is starting" {
		t.Errorf("waits for %q", got)
	}
}

// agentsOf is a client of agents that answer all alike.
func agentsOf(t *testing.T, answer func(path string, o lease.Order) (any, error)) func() (*agent.Client, error) {
	t.Helper()
	web := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var o lease.Order
		if err := json.NewDecoder(r.Body).Decode(&o); err != nil {
			t.Error(err)
		}
		out, err := answer(r.Host+r.URL.Path, o)
		if err != nil {
			refusal, status := agent.Refuse(err)
			w.WriteHeader(status)
			out = refusal
		}
		if err := json.NewEncoder(w).Encode(out); err != nil {
			t.Error(err)
		}
	}))
	t.Cleanup(web.Close)
	client := agent.NewClient(&tls.Config{InsecureSkipVerify: true}, func(ctx context.Context, _ string) (net.Conn, error) { //nolint:gosec // the agents are made up
		return (&net.Dialer{}).DialContext(ctx, "tcp", web.Listener.Addr().String())
	})
	return func() (*agent.Client, error) { return client, nil }
}

// TestHandOn: whom it asks, and with which exit code it ends.
func TestHandOn(t *testing.T) {
	spec, err := cluster.New("demo", 3, 0)
	if err != nil {
		t.Fatal(err)
	}
	name := map[string]string{}
	for _, n := range spec.Servers() {
		name[n.Address] = n.Name
	}
	for what, tc := range map[string]struct {
		leader string
		moved  map[string]string // who leads after each was asked
		fails  error
		asked  []string
		code   int
		says   string
	}{
		"at once":              {leader: "cp3", moved: map[string]string{"cp3": "cp1"}, asked: []string{"cp3"}},
		"a third was quicker":  {leader: "cp3", moved: map[string]string{"cp3": "cp2", "cp2": "cp1"}, asked: []string{"cp3", "cp2"}},
		"others always are":    {leader: "cp3", moved: map[string]string{"cp3": "cp2", "cp2": "cp3"}, asked: []string{"cp3", "cp2", "cp3"}, code: cluster.ExitTimeout, says: "others were quicker: cp2 leads now"},
		"nobody leads then":    {leader: "cp3", moved: map[string]string{"cp3": ""}, asked: []string{"cp3"}, code: cluster.ExitTimeout, says: "nobody leads now"},
		"no node":              {leader: "host7", code: cluster.ExitRefused, says: `"host7", is no node of cluster.yaml`},
		"a third that is none": {leader: "cp3", moved: map[string]string{"cp3": "host7"}, asked: []string{"cp3"}, code: cluster.ExitRefused, says: `"host7"`},
		"it refuses":           {leader: "cp3", fails: &cluster.Problem{What: "not now", Exit: cluster.ExitRefused}, asked: []string{"cp3"}, code: cluster.ExitRefused, says: "not now"},
		"too late":             {leader: "cp3", fails: &cluster.Problem{What: "too late", Exit: cluster.ExitTimeout}, asked: []string{"cp3"}, code: cluster.ExitTimeout, says: "too late"},
		"an error of any kind": {leader: "cp3", fails: errors.New("its disk is full"), asked: []string{"cp3"}, code: cluster.ExitError, says: "its disk is full"},
		"it says nothing":      {leader: "cp3", fails: &cluster.Problem{}, asked: []string{"cp3"}, code: cluster.ExitNoQuorum, says: "the agent of cp3 does not do it"},
	} {
		t.Run(what, func(t *testing.T) {
			var asked []string
			looked := 0
			reports := func(context.Context) ([]cluster.NodeReport, error) {
				nodes := ledCluster(time.Now()).Nodes
				if looked++; looked%2 == 1 { // cp1's was started again, in vain
					for i, c := range nodes[0].Status.Components {
						if c.Name == cluster.SchedulerName {
							nodes[0].Status.Components[i].Phase = "starting"
						}
					}
				}
				return nodes, nil
			}
			w := &etcdWork{target: target{spec: spec, reports: reports, agents: agentsOf(t, func(path string, o lease.Order) (any, error) {
				if looked != 2*len(asked) {
					t.Errorf("%s is asked before cp1 is ready", path)
				}
				address, rest, _ := strings.Cut(path, ":9443")
				if rest != lease.MovePath || o.Program != cluster.SchedulerName || o.To != "cp1" {
					t.Errorf("%s is asked for %+v", path, o)
				}
				asked = append(asked, name[address])
				return lease.Moved{Leader: tc.moved[name[address]]}, tc.fails
			})}}
			err := w.handOn(t.Context(), lease.Order{Program: cluster.SchedulerName, To: "cp1"}, tc.leader)
			if exitOf(err) != tc.code || err != nil && !strings.Contains(err.Error(), tc.says) {
				t.Errorf("got %v with exit code %d, want %q and %d", err, exitOf(err), tc.says, tc.code)
			}
			if diff := cmp.Diff(tc.asked, asked); diff != "" {
				t.Errorf("asked (-want +got):\n%s", diff)
			}
		})
	}
	w := &etcdWork{target: target{spec: spec, agents: func() (*agent.Client, error) {
		return agent.NewClient(&tls.Config{MinVersion: tls.VersionTLS12}, func(context.Context, string) (net.Conn, error) { return nil, syscall.ECONNREFUSED }), nil
	}}}
	err = w.handOn(t.Context(), lease.Order{Program: cluster.SchedulerName, To: "cp1"}, "cp3")
	if exitOf(err) != cluster.ExitNoQuorum || !strings.Contains(err.Error(), "its agent does not run") {
		t.Errorf("an agent that does not run: %v", err)
	}
}

// TestLeadersAsData: the names of the fields are API.
func TestLeadersAsData(t *testing.T) {
	a, out, _ := testApp(t, nil)
	now := ledCluster(time.Now())
	spec, err := cluster.New("demo", 3, 0)
	if err != nil {
		t.Fatal(err)
	}
	tell := target{spec: spec, reports: func(context.Context) ([]cluster.NodeReport, error) { return now.Nodes, nil }}
	if err := a.leaders(t.Context(), tell, "json"); err != nil {
		t.Fatal(err)
	}
	var list struct {
		Kind  string
		Items []map[string]any
	}
	if err := json.Unmarshal([]byte(out()), &list); err != nil {
		t.Fatal(err)
	}
	if list.Kind != "LeaderList" || len(list.Items) != 3 || list.Items[0]["what"] != "etcd" || list.Items[1]["leader"] != "" {
		t.Errorf("got %s", out())
	}
	silent := target{spec: spec, reports: func(ctx context.Context) ([]cluster.NodeReport, error) {
		return agent.NewClient(&tls.Config{MinVersion: tls.VersionTLS12}, nil).Reports(ctx, []cluster.Node{{Name: "cp1", Address: "127.9.9.9"}}), nil
	}}
	if err := a.leaders(t.Context(), silent, "table"); exitOf(err) != cluster.ExitNoQuorum {
		t.Errorf("nobody answers: %v", err)
	}
}
