package advise

import (
	"cmp"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"kuorum/internal/cluster"
)

func (s scene) play(t *testing.T) cluster.Status {
	t.Helper()
	w := wellWorldApart(t, s.etcd, cmp.Or(s.servers, 3), s.workers)
	if s.external > 0 {
		w = wellWorldExternal(t, s.external, cmp.Or(s.servers, 3), s.workers)
	}
	s.change(w)
	return w.review()
}

func TestFindings(t *testing.T) {
	for _, s := range scenes() {
		t.Run(s.name, func(t *testing.T) {
			got := s.play(t)
			if diff := gocmp.Diff(append([]string{}, s.want...), codes(got.Findings)); diff != "" {
				t.Errorf("findings (-want +got):\n%s%+v", diff, got.Findings)
			}
			if got.State != s.state {
				t.Errorf("state is %q, want %q", got.State, s.state)
			}
			for _, f := range got.Findings {
				if f.What == "" || f.Why == "" || f.Do == "" || strings.ContainsAny(f.What+f.Why+f.Do, "\n") {
					t.Errorf("want what, why and what to do, a line each: %+v", f)
				}
			}
		})
	}
}

// TestWords reads what people get to read.
func TestWords(t *testing.T) {
	said := map[string]string{}
	for _, s := range scenes() {
		for _, f := range s.play(t).Findings {
			said[s.name] += f.What + " | " + f.Why + " | " + f.Do + "\n"
		}
	}
	for scene, want := range map[string]string{
		"two of three servers lost":                "0 of 3 voters, 2 needed; missing: cp1, cp2, cp3 | cp1 does not answer: no route to host; cp2 does not answer: no route to host; cp3 knows no leader | kuorum lab start --wait=false cp1; kuorum lab start --wait=false cp2",
		"two etcd nodes and a server lost":         "missing: e1, e2, e3 | e1 does not answer: no route to host; e2 does not answer: no route to host; e3 knows no leader | kuorum lab start --wait=false e1",
		"an older copy of a member's data":         "its log ends at entry 90000; it had 99990 at 2026-05-04T11:00:00Z. An older copy was put back: it no longer has what it has acknowledged | kuorum etcd rebuild cp3\n",
		"an older copy, and no quorum":             "cp3 does not start etcd: its data is older than what it had | kuorum lab start cp2",
		"older copies of two of three":             "Put the newest data of cp2 and cp3 back, or take what is there",
		"an etcd node alone":                       "one etcd node survives no failure",
		"four etcd nodes":                          "Have an odd number of etcd nodes: 3 or 5.",
		"an etcd node that is no member":           "e3 is an etcd node, and its etcd is no member",
		"API servers with an old list":             "does not count everywhere yet: cp1, cp2 | kube-apiserver of cp1, kube-apiserver of cp2: they start again in turn, each when the others can do without it | nothing; if it stays: kuorum logs cp1 agent",
		"the last of three restarted alone":        "cp3 runs no etcd that answers: connection refused; its process is starting",
		"etcd of two servers keeps ending":         "etcd of cp1 keeps ending: 12 restarts | exit status 1; starts again after 10s | kuorum logs cp1 etcd",
		"an old leader cut off still names itself": "follows cp1 in term 5, others cp2 in term 6",
		"an alarm of space":                        "2.0 GiB of a quota of 2.0 GiB, 2.0 GiB of it in use; the alarm stays until it is disarmed | kuorum etcd compact --keep 0 && kuorum etcd defrag && kuorum etcd alarms --disarm",
		"four servers":                             "4 voters survive no more failures than 3 | 4 voters: quorum 3, may lose 1; 3 voters: quorum 2, may lose 1",
		"a bad fsync":                              "101ms",
		"a clock behind":                           "2s behind",
		"the asker's clock":                        "all 3 nodes that answer are 1h0m0s ahead",
		"certificates expire":                      "2 certificates of cp1 will expire, first on 2026-05-24 | pki/1.crt, pki/0.crt",
		"two versions":                             "v1 on cp1, cp2, cp3; v2 on w1",
		"a lease nobody renews":                    "no kube-scheduler is at work: nobody holds its lease | it lasts 15s, and cp2 renewed it 1m0s ago | kuorum logs cp2 kube-scheduler",
		"kubelet not ready":                        "kubelet of w1 is not ready: starting for 1m30s | kubelet says why | kuorum logs w1 kubelet",
		"a member of no node":                      "old | no node of cluster.yaml has its name or address https://198.18.0.77:2380 | kuorum etcd remove f00",
		"near the quota and half empty":            "16 MiB of it in use | kuorum etcd defrag\n",
		"a learner whose API server waits":         "99990 entries behind | kuorum etcd promote cp4",
		"a removed member that ends":               "the member list has only cp1, cp2; connection refused; its process is backoff; exit status 1",
	} {
		if !strings.Contains(said[scene], want) {
			t.Errorf("%s: it is not said that\n  %s\nbut\n  %s", scene, want, said[scene])
		}
	}
}

func TestCertificatesAreNamedUpToThree(t *testing.T) {
	w := wellWorld(t, 3, 0)
	for _, file := range []string{"e", "d", "c", "b", "a"} {
		w.node("cp1").Certificates = append(w.node("cp1").Certificates,
			cluster.CertificateStatus{File: file, From: noon().Add(-360 * day), Until: noon().Add(5 * day)})
	}
	if got, want := w.review().Findings[0].Why, "a, b, c and 2 more"; got != want {
		t.Errorf("files are %q, want %q", got, want)
	}
}

// TestWhatRenewsACertificate: a node's certificates are renewed, an authority is
// replaced.
func TestWhatRenewsACertificate(t *testing.T) {
	for _, test := range []struct {
		name string
		cert cluster.CertificateStatus
		want string
	}{
		{"a node's", cluster.CertificateStatus{Renew: noon(), Key: "a"}, "kuorum certs renew cp1"},
		{"an authority", cluster.CertificateStatus{Key: "a"}, "kuorum certs rotate-ca"},
		{"as an older agent tells it", cluster.CertificateStatus{}, "kuorum certs renew cp1"},
	} {
		w := wellWorld(t, 3, 0)
		test.cert.File, test.cert.From, test.cert.Until = "x", noon().Add(-360*day), noon().Add(5*day)
		w.node("cp1").Certificates = append(w.node("cp1").Certificates, test.cert)
		if got := w.review().Findings[0].Do; got != test.want {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
	}
}

func TestStatusOfAWholeCluster(t *testing.T) {
	w := wellWorld(t, 3, 1)
	newest := noon().Add(-time.Second)
	w.node("cp3").Leaders[0].Renewed, w.node("cp3").Leaders[0].Holder = newest, "cp3"
	w.reports[0], w.reports[3] = w.reports[3], w.reports[0]
	got := w.review()
	if got.Cluster != "test" || !got.Time.Equal(noon()) || got.Leader != "cp1" {
		t.Errorf("status is %+v", got)
	}
	if want := (cluster.QuorumSum{Voters: 3, Healthy: 3, Quorum: 2, MayLose: 1}); got.Quorum != want {
		t.Errorf("quorum is %+v, want %+v", got.Quorum, want)
	}
	var nodes, holders []string
	for _, n := range got.Nodes {
		nodes = append(nodes, n.Name)
	}
	for _, l := range got.Leaders {
		holders = append(holders, l.Name+" "+l.Holder)
	}
	if diff := gocmp.Diff([]string{"cp1", "cp2", "cp3", "w1"}, nodes); diff != "" {
		t.Errorf("nodes (-want +got):\n%s", diff)
	}
	if diff := gocmp.Diff([]string{"kube-controller-manager cp2", "kube-scheduler cp3"}, holders); diff != "" {
		t.Errorf("leaders (-want +got):\n%s", diff)
	}
	if got.Findings == nil {
		t.Error("findings are nil, and would be null in JSON")
	}
}

func TestVoters(t *testing.T) {
	all := func(healthy ...bool) []cluster.Voter {
		var voters []cluster.Voter
		for i, h := range healthy {
			voters = append(voters, cluster.Voter{Name: []string{"cp1", "cp2", "cp3", "cp4", "cp5"}[i], Healthy: h})
		}
		return voters
	}
	for _, c := range []struct {
		name    string
		servers int
		change  func(*world)
		want    []cluster.Voter
		leader  string
	}{
		{"all well", 3, func(*world) {}, all(true, true, true), "cp1"},
		{"all lost", 3, func(w *world) { w.lose("cp1", "cp2", "cp3") }, all(false, false, false), ""},
		{"two of five lost", 5, func(w *world) { w.lose("cp1", "cp2") }, all(false, false, true, true, true), "cp1"},
		{"a learner is none", 4, func(w *world) { w.learner("cp4") }, all(true, true, true), "cp1"},
		{"only the learner answers", 2, func(w *world) { w.learner("cp2"); w.lose("cp1") }, all(false, false), ""},
		{"the minority of a partition", 5, func(w *world) {
			w.follow("cp4", 6, "cp3", "cp4", "cp5")
			w.follow("cp1", 5, "cp1", "cp2")
		}, all(false, false, true, true, true), "cp4"},
		{"one of the spec that never started, by its address", 3, func(w *world) {
			w.members(unstarted("cp2"))
			w.silence("cp2")
		}, all(true, false, true), "cp1"},
		{"one without a node, by its ID", 1, func(w *world) {
			w.add(cluster.EtcdMember{ID: "f00", PeerURLs: []string{"://", "https://198.18.0.99:2380"}})
		}, []cluster.Voter{{Name: "cp1", Healthy: true}, {Name: "f00"}}, "cp1"},
		{"a member with an old list at a higher term", 5, func(w *world) {
			old := *w.etcd("cp5")
			w.remove("cp4", "cp5")
			w.node("cp5").Etcd = &old
			w.follow("", 60, "cp5")
			w.lose("cp4")
		}, all(true, true, true), "cp1"},
		{"the list of the one that has applied most", 4, func(w *world) {
			old := *w.etcd("cp1")
			w.remove("cp4")
			old.AppliedIndex--
			w.node("cp1").Etcd = &old
		}, all(true, true, true), "cp1"},
		{"an answer without members counts for nothing", 3, func(w *world) { w.etcd("cp1").Members = nil }, all(true, true, true), "cp1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := wellWorld(t, c.servers, 0)
			c.change(w)
			if diff := gocmp.Diff(c.want, Voters(w.spec, w.reports)); diff != "" {
				t.Errorf("voters (-want +got):\n%s", diff)
			}
			if got := w.review().Leader; got != c.leader {
				t.Errorf("leader is %q, want %q", got, c.leader)
			}
		})
	}
}
