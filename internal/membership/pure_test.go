package membership

import (
	"testing"
	"time"

	"kuorum/internal/cluster"
	"kuorum/internal/component"
	"kuorum/internal/pki"
)

// TestAdmits: every refusal, and that each hides the ones after it.
func TestAdmits(t *testing.T) {
	t.Parallel()
	secret, err := pki.NewToken()
	must(t, err)
	wrong, err := pki.NewToken()
	must(t, err)
	wrong.ID = secret.ID
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	fresh := Token{ID: secret.ID, Hash: secret.Hash(), Role: cluster.RoleWorker, Expires: now.Add(time.Second)}
	used := fresh
	used.UsedBy = "w1"
	for _, test := range []struct {
		name  string
		token Token
		shown pki.Token
		node  string
		role  cluster.Role
		at    time.Time
		says  string
	}{
		{"good", fresh, secret, "w1", cluster.RoleWorker, now, ""},
		{"again, by the same node", used, secret, "w1", cluster.RoleWorker, now, ""},
		{"to the last moment", fresh, secret, "w1", cluster.RoleWorker, fresh.Expires.Add(-1), ""},
		{"used", used, secret, "w2", cluster.RoleWorker, now, "it was used by w1"},
		{"role, before used", used, secret, "w2", cluster.RoleServer, now, "it is for a worker, not for a server"},
		{"no role", fresh, secret, "w1", "", now, "it is for a worker, not for a "},
		{"expired, before role and used", used, secret, "w2", cluster.RoleServer, fresh.Expires, "it expired at 2026-01-02T03:04:06Z"},
		{"secret, before all", used, wrong, "w2", cluster.RoleServer, fresh.Expires, "its secret is wrong"},
		{"without a hash", Token{Role: cluster.RoleWorker, Expires: fresh.Expires}, secret, "w1", cluster.RoleWorker, now, "its secret is wrong"},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := test.token.admits(test.shown, test.node, test.role, test.at)
			if test.says == "" && err != nil {
				t.Error(err)
			}
			if test.says != "" {
				wants(t, err, cluster.ExitRefused, "the join token is refused: "+test.says)
			}
		})
	}
}

func TestInitialCluster(t *testing.T) {
	t.Parallel()
	cp3 := cluster.Node{Name: "cp3", Role: cluster.RoleServer, Address: "10.0.0.3"}
	got := initialCluster([]cluster.EtcdMember{
		{ID: "a", Name: "cp1", PeerURLs: []string{"https://10.0.0.1:2380", "https://10.1.0.1:2380"}},
		{ID: "b", PeerURLs: []string{"https://10.0.0.2:2380"}}, // has never started
		{ID: "c", PeerURLs: []string{"https://10.0.0.3:2380"}, Learner: true},
	}, cp3)
	want := component.InitialCluster{
		Members: "cp1=https://10.0.0.1:2380,cp1=https://10.1.0.1:2380,b=https://10.0.0.2:2380,cp3=https://10.0.0.3:2380", State: "existing",
	}
	if got != want {
		t.Errorf("got %+v", got)
	}
}

func TestBelongs(t *testing.T) {
	t.Parallel()
	cp1 := cluster.Node{Name: "cp1", Role: cluster.RoleServer, Address: "10.0.0.1"}
	w1 := cluster.Node{Name: "w1", Role: cluster.RoleWorker, Address: "10.0.0.1"}
	here, there := []string{"https://10.0.0.1:2380"}, []string{"https://10.0.0.2:2380"}
	for _, test := range []struct {
		member cluster.EtcdMember
		node   cluster.Node
		want   bool
	}{
		{cluster.EtcdMember{Name: "cp1", PeerURLs: here}, cp1, true},
		{cluster.EtcdMember{Name: "cp1", PeerURLs: there}, cp1, true}, // it has moved
		{cluster.EtcdMember{PeerURLs: here}, cp1, true},               // it has never started
		{cluster.EtcdMember{PeerURLs: there}, cp1, false},
		{cluster.EtcdMember{Name: "cp2", PeerURLs: there}, cp1, false},
		{cluster.EtcdMember{Name: "cp2", PeerURLs: here}, w1, false},
		{cluster.EtcdMember{PeerURLs: []string{""}, Name: ""}, cp1, false},
	} {
		if got := belongs(test.member, test.node); got != test.want {
			t.Errorf("%+v of %s: %v", test.member, test.node.Name, got)
		}
	}
}

// TestBehindOf: who follows another cluster.yaml, or has not had its turn, is
// behind; who does not answer is not waited for.
func TestBehindOf(t *testing.T) {
	spec, err := cluster.NewApart("demo", 3, 2, 0)
	must(t, err)
	report := func(config string, stale ...string) []cluster.NodeReport {
		return []cluster.NodeReport{{Name: "cp1", Error: "it is off"}, {Name: "cp2", Status: &cluster.NodeStatus{Config: config, Stale: stale}}}
	}
	other, err := spec.Without("e3")
	must(t, err)
	for name, test := range map[string]struct {
		reports []cluster.NodeReport
		want    string
	}{
		"all know":  {report(spec.Digest()), ""},
		"older":     {report(other.Digest()), "cp2"},
		"in turn":   {report(spec.Digest(), "kube-apiserver"), "cp2"},
		"old agent": {report(""), "cp2"},
	} {
		if got := behindOf(spec, test.reports); got != test.want {
			t.Errorf("%s: %q is behind, want %q", name, got, test.want)
		}
	}
}
