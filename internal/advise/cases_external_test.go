package advise

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"kuorum/internal/cluster"
)

// wellWorldExternal has servers cp1... and an etcd that somebody else runs, of
// members m1... that follow m1 and answer at 10.0.0.1...; each has an endpoint.
func wellWorldExternal(t *testing.T, members, servers, workers int) *world {
	t.Helper()
	w := wellWorld(t, servers, workers)
	w.spec.Spec.Etcd = cluster.Etcd{}
	var list []cluster.EtcdMember
	for i := range members {
		name, at := fmt.Sprintf("m%d", i+1), fmt.Sprintf("https://10.0.0.%d:2379", i+1)
		w.spec.Spec.Etcd.External.Endpoints = append(w.spec.Spec.Etcd.External.Endpoints, at)
		list = append(list, cluster.EtcdMember{ID: idOf(name), Name: name, ClientURLs: []string{at}, PeerURLs: []string{fmt.Sprintf("https://10.0.0.%d:2380", i+1)}})
	}
	for _, r := range w.reports {
		s := r.Status
		s.Etcd = nil
		for i, c := range s.Components {
			if c.Name == etcd {
				s.Components = append(s.Components[:i:i], s.Components[i+1:]...)
				break
			}
		}
		if r.Role != cluster.RoleServer {
			continue
		}
		s.External = &cluster.ExternalEtcdStatus{}
		for i, m := range list {
			s.External.Endpoints = append(s.External.Endpoints, cluster.EtcdEndpoint{
				URL: w.spec.Spec.Etcd.External.Endpoints[i],
				EtcdStatus: cluster.EtcdStatus{
					ID: m.ID, Leader: idOf("m1"), Version: "3.6.0", Term: 5, RaftIndex: 100_000, AppliedIndex: 100_000,
					DBBytes: 20 * mib, DBUsedBytes: 15 * mib, QuotaBytes: 2 * gib, Members: list,
				},
			})
		}
	}
	return w
}

// eachEndpoint changes what servers, all if none is named, see at an endpoint.
func (w *world) eachEndpoint(number int, change func(*cluster.EtcdStatus), servers ...string) {
	for _, r := range w.reports {
		if r.Status == nil || r.Status.External == nil || len(servers) > 0 && !strings.Contains(strings.Join(servers, " "), r.Name) {
			continue
		}
		change(&r.Status.External.Endpoints[number-1].EtcdStatus)
	}
}

// deaf makes servers, all if none is named, not reach an endpoint.
func (w *world) deaf(number int, servers ...string) {
	w.eachEndpoint(number, func(s *cluster.EtcdStatus) { *s = cluster.EtcdStatus{Error: "connection refused"} }, servers...)
}

// unname takes endpoints from cluster.yaml, all but the first.
func (w *world) unname() {
	w.spec.Spec.Etcd.External.Endpoints = w.spec.Spec.Etcd.External.Endpoints[:1]
	for _, r := range w.reports {
		if r.Status.External != nil {
			r.Status.External.Endpoints = r.Status.External.Endpoints[:1]
		}
	}
}

// headless is an etcd without a leader, as all members that answer tell it.
func (w *world) headless() {
	for i := range w.spec.Spec.Etcd.External.Endpoints {
		w.eachEndpoint(i+1, func(s *cluster.EtcdStatus) { s.Leader, s.Term = "", s.Term+1 })
	}
}

// onAll changes every member that answers.
func (w *world) onAll(change func(*cluster.EtcdStatus)) {
	for i := range w.spec.Spec.Etcd.External.Endpoints {
		w.eachEndpoint(i+1, change)
	}
}

// externalScenes are of clusters whose etcd somebody else runs.
func externalScenes() []scene {
	all := []scene{
		{name: "external, nothing wrong", external: 3, workers: 1, change: func(*world) {}, state: cluster.StateHealthy},
		{name: "external, one member", external: 1, change: func(*world) {}, state: cluster.StateHealthy, want: []string{"info etcd-single"}},
		{name: "external, two members", external: 2, change: func(*world) {}, state: cluster.StateHealthy, want: []string{"info etcd-even"}},
		{name: "external, a server lost", external: 3, servers: 2, change: func(w *world) { w.lose("cp2") }, state: cluster.StateDegraded, want: []string{
			"warning node-unreachable cp2",
		}},
		{name: "external, all servers lost", external: 3, servers: 2, change: func(w *world) { w.lose("cp1", "cp2") }, state: cluster.StateNoQuorum, want: []string{
			"critical no-quorum", "warning node-unreachable cp1", "warning node-unreachable cp2",
		}},
		{name: "external, a member lost", external: 3, change: func(w *world) { w.deaf(3) }, state: cluster.StateDegraded, want: []string{"critical etcd-down"}},
		{name: "external, two members lost", external: 3, change: func(w *world) {
			w.deaf(2)
			w.deaf(3)
			w.eachEndpoint(1, func(s *cluster.EtcdStatus) { s.Leader, s.Term = "", 6 })
			w.phase("cp1", phaseStarting, "kube-apiserver")
		}, state: cluster.StateNoQuorum, want: []string{"critical no-quorum"}},
		{name: "external, all members lost", external: 3, change: func(w *world) { w.deaf(1); w.deaf(2); w.deaf(3) }, state: cluster.StateNoQuorum, want: []string{"critical no-quorum"}},
		{name: "external, members have no leader", external: 3, change: func(w *world) { w.headless() }, state: cluster.StateNoQuorum, want: []string{"critical no-quorum"}},
		{name: "external, a server is cut off from a member", external: 3, change: func(w *world) { w.deaf(3, "cp2") }, state: cluster.StateDegraded, want: []string{
			"warning etcd-endpoint cp2",
		}},
		{name: "external, each server is cut off from another", external: 3, servers: 3, change: func(w *world) {
			w.deaf(1, "cp1")
			w.deaf(2, "cp2")
			w.deaf(3, "cp3")
		}, state: cluster.StateDegraded, want: []string{"warning etcd-endpoint cp1", "warning etcd-endpoint cp2", "warning etcd-endpoint cp3"}},
		{name: "external, a quorum agrees that nobody here reaches", external: 3, change: func(w *world) {
			w.deaf(2)
			w.deaf(3)
			w.node("cp1").External.Agrees = true
		}, state: cluster.StateDegraded, want: []string{"critical etcd-down", "critical etcd-down"}},
		{name: "external, no endpoints of two members", external: 3, change: func(w *world) {
			w.unname()
			w.node("cp2").External.Agrees = true
		}, state: cluster.StateDegraded, want: []string{"warning etcd-unnamed", "warning etcd-unnamed"}},
		{name: "external, no endpoint of the leader", external: 3, change: func(w *world) {
			w.onAll(func(s *cluster.EtcdStatus) { s.Leader = idOf("m2") })
			w.unname()
		}, state: cluster.StateDegraded, want: []string{"warning etcd-unnamed", "warning etcd-unnamed"}},
		{name: "external, an endpoint too many", external: 3, change: func(w *world) {
			w.onAll(func(s *cluster.EtcdStatus) { s.Members = s.Members[:2] })
			w.deaf(3)
		}, state: cluster.StateDegraded, want: []string{"warning etcd-endpoint", "info etcd-even"}},
		{name: "external, the data is another's", external: 3, change: func(w *world) {
			for _, name := range []string{"cp1", "cp2", "cp3"} {
				w.node(name).External.Foreign = "it is of cluster shop"
				w.phase(name, "waiting", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
				w.phase(name, phaseStarting, "endpoint")
			}
		}, state: cluster.StateDegraded, want: []string{"critical etcd-foreign"}},
	}
	return append(all, externalMemberScenes()...)
}

func externalMemberScenes() []scene {
	alarm := func(kind, member string) func(*world) {
		return func(w *world) {
			w.onAll(func(s *cluster.EtcdStatus) { s.Alarms = []cluster.EtcdAlarm{{Member: member, Kind: kind}} })
		}
	}
	return []scene{
		{name: "external, a member called as a server", external: 3, change: func(w *world) {
			w.onAll(func(s *cluster.EtcdStatus) {
				s.Members = append([]cluster.EtcdMember{}, s.Members...)
				s.Members[2].Name = "cp3"
			})
			w.lose("cp3")
		}, state: cluster.StateDegraded, want: []string{"warning node-unreachable cp3"}},
		{name: "external, full", external: 3, change: alarm(alarmNoSpace, idOf("m2")), state: cluster.StateDegraded, want: []string{"critical etcd-nospace"}},
		{name: "external, damaged", external: 3, change: alarm(alarmCorrupt, idOf("m2")), state: cluster.StateDegraded, want: []string{"critical etcd-corrupt"}},
		{name: "external, nearly full", external: 3, change: func(w *world) {
			w.eachEndpoint(2, func(s *cluster.EtcdStatus) { s.DBBytes, s.DBUsedBytes = 1900*mib, 1800*mib })
		}, state: cluster.StateDegraded, want: []string{"warning etcd-quota-near"}},
		{name: "external, mostly free", external: 3, change: func(w *world) {
			w.eachEndpoint(2, func(s *cluster.EtcdStatus) { s.DBBytes, s.DBUsedBytes = 200*mib, 20*mib })
		}, state: cluster.StateHealthy, want: []string{"info etcd-fragmented"}},
		{name: "external, behind", external: 3, change: func(w *world) {
			w.eachEndpoint(2, func(s *cluster.EtcdStatus) { s.AppliedIndex -= 6000 })
		}, state: cluster.StateDegraded, want: []string{"warning etcd-behind"}},
		{name: "external, cut off from the others", external: 3, change: func(w *world) {
			w.eachEndpoint(2, func(s *cluster.EtcdStatus) { s.Leader, s.Term = "", 6 })
		}, state: cluster.StateDegraded, want: []string{"critical etcd-no-leader"}},
		{name: "external, a learner", external: 4, change: func(w *world) {
			w.onAll(func(s *cluster.EtcdStatus) {
				s.Members = append([]cluster.EtcdMember{}, s.Members...)
				s.Members[3].Learner = true
			})
			w.eachEndpoint(4, func(s *cluster.EtcdStatus) { s.Learner, s.Members = true, nil })
		}, state: cluster.StateHealthy, want: []string{"info etcd-learner"}},
		{name: "external, the given certificate ends soon", external: 3, change: func(w *world) {
			s := w.node("cp1")
			s.Certificates = append(s.Certificates, cluster.CertificateStatus{File: "pki/etcd-external/client.crt", From: noon().Add(-300 * day), Until: noon().Add(5 * day)})
		}, state: cluster.StateDegraded, want: []string{"warning certificate-expiring cp1"}},
		{name: "external, one has never started", external: 3, change: func(w *world) {
			w.onAll(func(s *cluster.EtcdStatus) {
				s.Members = append([]cluster.EtcdMember{}, s.Members...)
				s.Members[2].Name, s.Members[2].ClientURLs = "", nil
			})
			w.deaf(3)
		}, state: cluster.StateDegraded, want: []string{"warning etcd-never-started"}},
	}
}

// TestNobodyIsToldToMendTheirs: what is to be done about an etcd that somebody else
// runs is theirs, and no verb is named that would be refused.
func TestNobodyIsToldToMendTheirs(t *testing.T) {
	t.Parallel()
	for _, s := range externalScenes() {
		for _, f := range s.play(t).Findings {
			if strings.Contains(f.Do, "kuorum etcd") || strings.Contains(f.Do, " etcd:") || strings.HasSuffix(f.Do, " etcd") || f.Do == "" {
				t.Errorf("%s: %s asks for %q", s.name, f.Code, f.Do)
			}
			for _, text := range []string{f.What, f.Why} {
				if text == "" || strings.Contains(text, "  ") || strings.Contains(text, " of  ") {
					t.Errorf("%s: %s says %q, %q", s.name, f.Code, f.What, f.Why)
				}
			}
		}
	}
}

// TestExternalVoters: who is missing is named with what its endpoint answers, and
// no voter is ever a node's, whatever it is called.
func TestExternalVoters(t *testing.T) {
	t.Parallel()
	w := wellWorldExternal(t, 3, 2, 0)
	w.onAll(func(s *cluster.EtcdStatus) {
		s.Members = append([]cluster.EtcdMember{}, s.Members...)
		s.Members[0].Name = "cp1"
	})
	w.deaf(3)
	voters := Voters(w.spec, w.reports)
	if sum := cluster.SumOf(voters); sum.Voters != 3 || sum.Healthy != 2 || cluster.Without(voters, "cp1") != sum || cluster.Removed(voters, "cp1") != sum {
		t.Errorf("voters are %+v", voters)
	}
	e := ReviewEtcd(w.spec, w.reports, noon())
	var lines []string
	for _, m := range e.Members {
		lines = append(lines, fmt.Sprintf("%s at %q: %s, %v, %s", m.Label, m.Node, m.State, m.Healthy, m.Why))
	}
	want := []string{
		`cp1 at "": leader, true, `,
		`m2 at "": follower, true, `,
		`m3 at "": down, false, does not answer at https://10.0.0.3:2379: connection refused`,
	}
	if diff := cmp.Diff(want, lines); diff != "" {
		t.Errorf("members (-want +got):\n%s", diff)
	}
	w.unname()
	w.node("cp1").External.Agrees = true
	e = ReviewEtcd(w.spec, w.reports, noon())
	if got := e.Quorum.String(); got != "3 voters, 2 healthy, quorum 2, may lose 0" || e.Members[2].State != MemberUnknown {
		t.Errorf("a quorum that agrees is told as %s, the last as %s", got, e.Members[2].State)
	}
}
