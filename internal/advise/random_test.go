package advise

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"kuorum/internal/cluster"
)

// TestWhateverNodesSay reviews two thousand clusters whose nodes say anything,
// also what no etcd would ever say.
func TestWhateverNodesSay(t *testing.T) {
	states := map[cluster.State]int{}
	for seed := range uint64(2000) {
		w := randomWorld(t, seed)
		got := w.review()
		states[got.State]++
		if diff := gocmp.Diff(randomWorld(t, seed).reports, w.reports); diff != "" {
			t.Fatalf("seed %d: reports were changed:\n%s", seed, diff)
		}
		rand.New(rand.NewPCG(seed, 1)).Shuffle(len(w.reports), func(i, j int) { w.reports[i], w.reports[j] = w.reports[j], w.reports[i] })
		if diff := gocmp.Diff(got, w.review()); diff != "" {
			t.Fatalf("seed %d: the order of reports matters:\n%s", seed, diff)
		}
		holds(t, w, got)
		if t.Failed() {
			t.Fatalf("seed %d: %+v", seed, got)
		}
	}
	for _, s := range []cluster.State{cluster.StateHealthy, cluster.StateDegraded, cluster.StateNoQuorum} {
		if states[s] < 50 {
			t.Errorf("only %d clusters were %s: the test says little of them", states[s], s)
		}
	}
}

// holds checks what is true of every status.
func holds(t *testing.T, w *world, s cluster.Status) {
	t.Helper()
	if (s.State == cluster.StateNoQuorum) == s.Quorum.Holds() {
		t.Error("state and quorum disagree")
	}
	if s.Quorum != cluster.SumOf(Voters(w.spec, w.reports)) {
		t.Error("quorum is not the sum of the voters")
	}
	if s.Quorum.Healthy < s.Quorum.Voters && s.State == cluster.StateHealthy {
		t.Error("a voter is missing and nothing is wrong")
	}
	if s.Findings == nil || !slices.IsSortedFunc(s.Findings, order) {
		t.Error("findings are not in order")
	}
	if got := count(s.Findings, codeNoQuorum) == 1; got == s.Quorum.Holds() {
		t.Error("no-quorum is not found when it is so")
	}
	for _, n := range s.Nodes {
		if !answered(n) {
			aboutLost(t, s.Findings, n.Name)
			continue
		}
		aboutAnswering(t, s, n)
	}
}

// aboutLost: of a node that does not answer nothing else is said, but for
// alarms, which others tell of.
func aboutLost(t *testing.T, findings []cluster.Finding, name string) {
	t.Helper()
	var said []string
	for _, f := range findings {
		if f.Node == name && f.Code != codeEtcdNoSpace && f.Code != codeEtcdCorrupt {
			said = append(said, f.Code)
		}
	}
	if diff := gocmp.Diff([]string{codeNodeUnreachable}, said); diff != "" {
		t.Errorf("of %s, which does not answer (-want +got):\n%s", name, diff)
	}
}

// aboutAnswering: what is not ready has a cause that is found. A learner is
// none: it is on its way.
func aboutAnswering(t *testing.T, s cluster.Status, n cluster.NodeReport) {
	t.Helper()
	if s.State != cluster.StateHealthy || slices.ContainsFunc(s.Findings, func(f cluster.Finding) bool {
		return f.Code == codeEtcdLearner && f.Node == n.Name
	}) {
		return
	}
	for _, c := range n.Status.Components {
		if c.Phase != phaseReady {
			t.Errorf("the cluster is healthy and %s of %s is %s", c.Name, n.Name, c.Phase)
		}
	}
}

func order(a, b cluster.Finding) int {
	key := func(f cluster.Finding) string {
		return fmt.Sprint(map[cluster.Severity]int{
			cluster.SeverityCritical: 1, cluster.SeverityWarning: 2, cluster.SeverityInfo: 3,
		}[f.Severity], "\x00", f.Node, "\x00", f.Code)
	}
	return gocompare(key(a), key(b))
}

func gocompare(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

func count(findings []cluster.Finding, code string) int {
	n := 0
	for _, f := range findings {
		if f.Code == code {
			n++
		}
	}
	return n
}

// randomWorld is a cluster to which up to eight random things happened. The
// same seed gives the same.
func randomWorld(t *testing.T, seed uint64) *world {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 0))
	w := wellWorldApart(t, []int{0, 0, 3}[r.IntN(3)], 1+r.IntN(5), r.IntN(3))
	if r.IntN(4) == 0 {
		w = wellWorldExternal(t, 1+r.IntN(5), 1+r.IntN(3), r.IntN(3))
	}
	for range r.IntN(9) {
		report := &w.reports[r.IntN(len(w.reports))]
		if report.Status == nil {
			continue
		}
		switch r.IntN(4) {
		case 0:
			happenToNode(r, report)
		case 1:
			c := &report.Status.Components[r.IntN(len(report.Status.Components))]
			c.Phase = []string{"waiting", "starting", "ready", "backoff", "stopping", "stopped"}[r.IntN(6)]
		default:
			happenToEtcd(r, w, report.Status)
		}
	}
	return w
}

func happenToNode(r *rand.Rand, report *cluster.NodeReport) {
	s := report.Status
	switch r.IntN(7) {
	case 0:
		report.Status, report.Error = nil, "no route to host"
	case 1:
		report.Status = nil
	case 2:
		report.Name += "x" // nobody asked this one, and a stranger answers
	case 3:
		report.ClockOffset = cluster.Duration(r.Int64() - r.Int64())
	case 4:
		s.Disk = cluster.DiskStatus{FreeBytes: r.Int64N(10 * gib), SizeBytes: r.Int64N(100 * gib)}
	case 5:
		s.Certificates[0].Until = noon().Add(time.Duration(r.Int64N(int64(60*day))) - 10*day)
	case 6:
		s.Leaders, s.Version = nil, "v2"
	}
}

func happenToEtcd(r *rand.Rand, w *world, s *cluster.NodeStatus) {
	e := s.Etcd
	if s.External != nil {
		at := &s.External.Endpoints[r.IntN(len(s.External.Endpoints))]
		switch r.IntN(5) {
		case 0:
			s.External = nil
			return
		case 1:
			at.EtcdStatus = cluster.EtcdStatus{Error: "connection refused"}
			return
		case 2:
			s.External.Agrees = true
			return
		case 3:
			s.External.Foreign = "it is of another"
			return
		}
		e = &at.EtcdStatus
		if e.Error != "" {
			return
		}
	}
	if e == nil {
		return
	}
	ids := []string{"", "0", "f00", idOf("cp1"), idOf("cp2"), idOf("cp3"), idOf("cp4")}
	id := func() string { return ids[r.IntN(len(ids))] }
	switch r.IntN(11) {
	case 0:
		s.Etcd = nil
	case 1:
		s.Etcd = &cluster.EtcdStatus{Error: "connection refused"}
	case 2:
		e.ID = id()
	case 3:
		e.Leader = id()
	case 4:
		e.Term += r.Uint64N(3)
	case 5:
		e.AppliedIndex = r.Uint64N(200_000)
	case 6:
		e.Learner = !e.Learner
	case 7:
		e.Alarms = append(e.Alarms, cluster.EtcdAlarm{Member: id(), Kind: []string{alarmNoSpace, alarmCorrupt, "NEW"}[r.IntN(3)]})
	case 8:
		e.DBBytes, e.DBUsedBytes = r.Int64N(3*gib), r.Int64N(3*gib)
	case 9:
		e.Members = e.Members[:r.IntN(len(e.Members)+1)]
	case 10:
		m := cluster.EtcdMember{ID: id(), Name: []string{"", "cp2", "cp9"}[r.IntN(3)], Learner: r.IntN(2) == 0}
		m.PeerURLs = [][]string{nil, {"%"}, {"https://198.18.0.13:2380"}, {"https://198.18.0.99:2380"}}[r.IntN(4)]
		if r.IntN(2) == 0 {
			w.add(m)
		} else {
			e.Members = append(slices.Clone(e.Members), m)
		}
	}
}
