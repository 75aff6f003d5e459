package node

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"kuorum/internal/cluster"
	"kuorum/internal/component"
	"kuorum/internal/etcd"
	"kuorum/internal/membership"
	"kuorum/internal/pki"
	"kuorum/internal/supervise"
)

// TestKnownToBeOurs: not before etcd has said so, whatever it does not say takes
// nothing back, and another cluster's data does.
func TestKnownToBeOurs(t *testing.T) {
	t.Parallel()
	foreign := &cluster.Problem{What: "no", Why: "it is of shop", Err: membership.ErrForeign, Exit: cluster.ExitRefused}
	silent := errors.New("connection refused")
	for _, c := range []struct {
		name  string
		notes []error
		want  string // empty: it is ours
	}{
		{"nobody was asked", nil, "etcd was not asked yet"},
		{"no answer", []error{silent}, "connection refused"},
		{"ours", []error{silent, nil}, ""},
		{"ours, then no answer", []error{nil, silent}, ""},
		{"another's", []error{foreign}, "it is of shop"},
		{"another's, then ours", []error{foreign, nil}, ""},
		{"ours, then another's", []error{nil, foreign}, "it is of shop"},
		{"another's, then no answer", []error{foreign, silent}, "connection refused"},
	} {
		e := &external{err: errNotAsked}
		for _, err := range c.notes {
			e.note(err)
		}
		err := e.known()
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: got %v, want %q", c.name, err, c.want)
		}
	}
	(*external)(nil).note(silent) // a cluster with an etcd of its own
}

// TestAPIServerIsHeldBack, and nothing else, and in no other cluster.
func TestAPIServerIsHeldBack(t *testing.T) {
	t.Parallel()
	e := &external{err: errNotAsked}
	list := func() []supervise.Process { return []supervise.Process{{Name: "containerd"}, {Name: "kube-apiserver"}} }
	for _, a := range []*Agent{{}, {server: &server{}}} {
		for _, p := range a.holdBack(list()) {
			if p.May != nil {
				t.Errorf("%s is held back", p.Name)
			}
		}
	}
	held := (&Agent{server: &server{external: e}}).holdBack(list())
	if held[0].May != nil || held[1].May == nil {
		t.Fatalf("got %+v", held)
	}
	if err := held[1].May(t.Context()); err == nil {
		t.Error("it may start on data that nobody has looked at")
	}
	e.note(nil)
	if err := held[1].May(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestServesOwnDataOnly: while etcd may be another cluster's nobody joins, or reads
// or changes what is there; the status tells it.
func TestServesOwnDataOnly(t *testing.T) {
	t.Parallel()
	r := newRoutes(t)
	r.agent.spec.Store(r.spec)
	admin, err := r.set.AgentClientPair("somebody", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	s := r.agent.server
	s.apart = true
	s.external = &external{id: "ours", endpoints: []string{"https://10.0.0.1:2379"}, etcd: s.etcd, err: errNotAsked}
	s.members.Register = membership.NewSharedRegister(s.etcd, "ours")
	r.agent.claimOnce(t) // newRoutes has written cluster.yaml without the ID
	if err := s.external.known(); !errors.Is(err, membership.ErrForeign) {
		t.Fatalf("it is known to be ours: %v", err)
	}
	r.serveAgain(t)
	for _, path := range []string{membership.JoinPath, membership.TokensPath, membership.RemovePath} {
		if code, said := r.call(t, &admin, http.MethodPost, path, nothing{}); code != http.StatusConflict || !strings.Contains(said, `is of cluster \"demo\"`) {
			t.Errorf("%s is answered with %d: %.200s", path, code, said)
		}
	}
	status := s.external.status(t.Context())
	if !strings.Contains(status.Foreign, `cluster "demo"`) || len(status.Endpoints) != 1 || status.Endpoints[0].URL != "https://10.0.0.1:2379" ||
		status.Endpoints[0].Error != "" || len(status.Endpoints[0].Members) != 1 || !status.Agrees {
		t.Errorf("status is %+v", status)
	}
	if _, err := r.agent.quorumSpec(t.Context()); err == nil {
		t.Error("another cluster's cluster.yaml is followed")
	}
}

// TestFollowsItsOwn: an empty etcd is claimed, and what is there is followed.
func TestFollowsItsOwn(t *testing.T) {
	t.Parallel()
	r := newRoutes(t)
	s := r.agent.server
	s.apart = true
	s.external = &external{id: "ours", endpoints: []string{"https://10.0.0.1:2379"}, etcd: s.etcd, err: errNotAsked}
	s.members.Register = membership.NewSharedRegister(s.etcd, "ours")
	if _, err := s.etcd.Commit(t.Context(), "test", etcd.Change{Key: "/kuorum/cluster.yaml", Always: true}); err != nil {
		t.Fatal(err)
	}
	r.agent.spec.Store(r.spec)
	r.agent.claimOnce(t)
	if err := s.external.known(); err != nil {
		t.Fatal(err)
	}
	spec, err := r.agent.quorumSpec(t.Context())
	if err != nil || !same(spec, r.spec) {
		t.Errorf("got %v, %v", spec, err)
	}
	if status := s.external.status(t.Context()); status.Foreign != "" {
		t.Errorf("status is %+v", status)
	}
}

// serveAgain makes the API anew, as serveAPI would.
func (r *routes) serveAgain(t *testing.T) {
	t.Helper()
	mux := http.NewServeMux()
	mux.Handle("/", membersOnly(r.agent.membersAPI()))
	r.agent.server.joinAPI(mux)
	web := httptest.NewUnstartedServer(mux)
	var err error
	if web.TLS, err = pki.ServerTLS(r.set.Agents.Pair().Cert, r.own); err != nil {
		t.Fatal(err)
	}
	web.StartTLS()
	t.Cleanup(web.Close)
	r.url = web.URL
}

// claimOnce asks once and does not try again.
func (a *Agent) claimOnce(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	a.server.external.note(a.server.members.Register.Claim(ctx, a.machine.Spec))
}

// TestExternalFiles: the agent shows etcd what was given for it.
func TestExternalFiles(t *testing.T) {
	t.Parallel()
	spec, err := cluster.New("demo", 1, 0)
	if err != nil {
		t.Fatal(err)
	}
	spec.Spec.Etcd = cluster.Etcd{External: cluster.ExternalEtcd{Endpoints: []string{"https://10.0.0.1:2379"}}}
	if _, err := dialEtcd(component.EtcdFilesOf(spec, t.TempDir())); err == nil || !strings.Contains(err.Error(), "etcd-external/ca.crt") {
		t.Errorf("got %v", err)
	}
}
