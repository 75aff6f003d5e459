package cli

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"kuorum/internal/cluster"
	"kuorum/internal/keyring"
	"kuorum/internal/pki"
	"kuorum/internal/step"
)

// wellReports are a cluster of that many servers and a worker on which all is
// well.
func wellReports(t *testing.T, servers int) (*cluster.Spec, []cluster.NodeReport) {
	t.Helper()
	return wellApart(t, 0, servers)
}

// wellApart has that many etcd nodes as well. The second member leads, if there
// are etcd nodes, else the first.
func wellApart(t *testing.T, etcdNodes, servers int) (*cluster.Spec, []cluster.NodeReport) {
	t.Helper()
	spec, err := cluster.NewApart("demo", etcdNodes, servers, 1)
	if err != nil {
		t.Fatal(err)
	}
	var members []cluster.EtcdMember
	for _, n := range spec.EtcdNodes() {
		members = append(members, cluster.EtcdMember{ID: idOf(n), Name: n.Name, PeerURLs: []string{"https://" + n.Address + ":2380"}})
	}
	var reports []cluster.NodeReport
	for _, n := range spec.Spec.Nodes {
		status := &cluster.NodeStatus{Name: n.Name, Role: n.Role, Ready: true, Time: time.Now()}
		if spec.HasMember(n) {
			leader := members[min(etcdNodes, 2)/2]
			status.Etcd = &cluster.EtcdStatus{ID: idOf(n), Leader: leader.ID, Term: 2, Members: members}
		}
		reports = append(reports, cluster.NodeReport{Name: n.Name, Role: n.Role, Address: n.Address, Status: status})
	}
	return spec, reports
}

func idOf(n cluster.Node) string { return "1" + n.Name[len(n.Name)-1:] }

// certify gives nodes the certificates of a cluster.
func certify(t *testing.T, spec *cluster.Spec, reports []cluster.NodeReport) {
	t.Helper()
	set, err := pki.NewSet(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for i, n := range spec.Spec.Nodes {
		files, err := set.NodeFiles(spec, n, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		if err := keyring.Write(dir, files); err != nil {
			t.Fatal(err)
		}
		reports[i].Status.Certificates = keyring.Certificates(dir)
	}
}

func TestChooseNodes(t *testing.T) {
	spec, err := cluster.New("demo", 2, 1)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		words, want, why string
	}{
		{"", "cp1 cp2 w1", ""},
		{"w1", "w1", ""},
		{"w1 cp1 w1", "cp1 w1", ""},
		{"cp1 cp7", "", "its nodes are cp1, cp2, w1"},
	} {
		nodes, err := chooseNodes(spec, strings.Fields(test.words))
		var names []string
		for _, n := range nodes {
			names = append(names, n.Name)
		}
		if got := strings.Join(names, " "); got != test.want {
			t.Errorf("%q names %q, want %q", test.words, got, test.want)
		}
		problem, refused := errors.AsType[*cluster.Problem](err)
		if refused != (test.why != "") || refused && (problem.Why != test.why || problem.ExitCode() != cluster.ExitUsage) {
			t.Errorf("%q: %v", test.words, err)
		}
	}
}

func TestPrintCertificates(t *testing.T) {
	moment := time.Date(2027, 5, 4, 12, 30, 0, 0, time.UTC)
	spec := &cluster.Spec{}
	spec.Metadata.Name = "demo"
	nodes := []cluster.Node{{Name: "cp1"}, {Name: "w1"}}
	told := cluster.NodeReport{Name: "cp1", Status: &cluster.NodeStatus{Certificates: []cluster.CertificateStatus{
		{File: "pki/ca.crt", From: moment, Until: moment.AddDate(10, 0, 0), By: "kubernetes", Key: "0123456789abcdef"},
		{File: "pki/agent.crt", From: moment, Until: moment.AddDate(1, 0, 0), Renew: moment.AddDate(0, 8, 0), By: "kuorum-agents", Key: "fedcba9876543210"},
		{File: "pki/old.crt", From: moment, Until: moment.AddDate(1, 0, 0)}, // as an older agent tells it
	}}}
	silent := cluster.NodeReport{Name: "w1", Error: "it is off"}
	for _, test := range []struct {
		name    string
		reports []cluster.NodeReport
		code    int
		lines   []string
		talk    string
	}{
		{"all", []cluster.NodeReport{told, {Name: "w1", Status: &cluster.NodeStatus{}}}, cluster.ExitOK, []string{
			"NODE CERTIFICATE SIGNED BY ENDS RENEWED AT",
			"cp1 pki/ca.crt kubernetes 01234567 2037-05-04 12:30 -",
			"cp1 pki/agent.crt kuorum-agents fedcba98 2028-05-04 12:30 2028-01-04 12:30",
			"cp1 pki/old.crt - 2028-05-04 12:30 -",
		}, ""},
		{"one is silent", []cluster.NodeReport{told, silent}, cluster.ExitDegraded, nil, "w1 does not tell: it is off\n"},
		{"nobody", []cluster.NodeReport{silent}, cluster.ExitNoQuorum, []string{""}, "cp1 does not tell: nobody has asked it\nw1 does not tell: it is off\n"},
	} {
		a, out, talk := testApp(t, nil)
		code := cluster.ExitOK
		if v, ok := errors.AsType[verdict](a.printCertificates(spec, nodes, test.reports, "table")); ok {
			code = int(v)
		}
		if code != test.code || talk() != test.talk {
			t.Errorf("%s: exit code %d, it says %q", test.name, code, talk())
		}
		var lines []string
		for line := range strings.SplitSeq(strings.TrimSpace(out()), "\n") {
			lines = append(lines, strings.Join(strings.Fields(line), " "))
		}
		if diff := cmp.Diff(test.lines, lines); test.lines != nil && diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.name, diff)
		}
	}
	a, out, _ := testApp(t, nil)
	if v, ok := errors.AsType[verdict](a.printCertificates(spec, nodes, []cluster.NodeReport{told, silent}, "json")); !ok || int(v) != cluster.ExitDegraded {
		t.Error("json has another exit code")
	}
	for _, want := range []string{`"kind": "CertificateList"`, `"renew": "2028-01-04T12:30:00Z"`, `"key": "0123456789abcdef"`, `"error": "it is off"`} {
		if !strings.Contains(out(), want) {
			t.Errorf("the JSON has no %s:\n%s", want, out())
		}
	}
	if strings.Contains(out(), "0001-01-01") {
		t.Errorf("an authority is renewed in the year 1:\n%s", out())
	}
}

// TestRenewCertificates: one node that does not do it does not keep the others
// from it, and is named.
func TestRenewCertificates(t *testing.T) {
	t.Parallel()
	f := newFakeServers(t, "cp1", "cp3")
	f.tells["cp3"] = &cluster.Problem{What: "its disk is full", Exit: cluster.ExitError}
	a, _, _ := testApp(t, nil)
	f.answer = keyring.Renewed{Files: []string{"pki/agent.crt"}}
	err := a.renewCertificates(t.Context(), f.target, f.target.spec.Servers())
	problem, ok := errors.AsType[*cluster.Problem](err)
	if !ok || problem.ExitCode() != cluster.ExitDegraded || problem.What != "2 of 3 nodes have no new certificates" ||
		!strings.Contains(problem.Why, "cp3: its disk is full") || !strings.Contains(problem.Why, "cp2: ") {
		t.Errorf("%v", err)
	}
	if diff := cmp.Diff([]string{"cp1", "cp3"}, f.asked); diff != "" {
		t.Errorf("asked (-want +got):\n%s", diff)
	}
	if err := a.renewCertificates(t.Context(), f.target, f.target.spec.Servers()[:1]); err != nil {
		t.Error(err)
	}
}

// TestRotationIsGuarded: the authorities are replaced only while all is well,
// and the quorum can lose the one whose programs are restarted.
func TestRotationIsGuarded(t *testing.T) {
	for _, test := range []struct {
		name    string
		servers int
		change  func(spec *cluster.Spec, reports []cluster.NodeReport)
		says    string // nothing: it goes on
		etcd    int    // nodes of etcd's own
	}{
		{"well", 3, nil, "", 0},
		{"one server", 1, nil, "", 0},
		{"two servers", 2, nil, "etcd cannot spare cp1: 2 voters, quorum 2, may lose 0", 0},
		{"a worker is silent", 3, func(_ *cluster.Spec, r []cluster.NodeReport) { r[3].Status, r[3].Error = nil, "it is off" }, "w1: it is off", 0},
		{"a worker is not ready", 3, func(_ *cluster.Spec, r []cluster.NodeReport) { r[3].Status.Ready = false }, "w1 is not ready", 0},
		{"a server is not ready", 3, func(_ *cluster.Spec, r []cluster.NodeReport) { r[1].Status.Ready = false }, "cp2 is not ready", 0},
		{"a member is down", 3, func(_ *cluster.Spec, r []cluster.NodeReport) { r[2].Status.Etcd.Error = "down" }, "the etcd of cp3 takes no part", 0},
		{"no quorum", 3, func(_ *cluster.Spec, r []cluster.NodeReport) {
			r[1].Status.Etcd.Error, r[2].Status.Etcd.Error = "down", "down"
		}, "the etcd of cp2 takes no part", 0},
		{"a server joins", 3, func(_ *cluster.Spec, r []cluster.NodeReport) {
			for _, report := range r[:3] {
				report.Status.Etcd.Members[2].Learner = true
			}
		}, "3 servers have 2 votes in etcd", 0},
		{"a node that nobody has asked", 3, func(spec *cluster.Spec, _ []cluster.NodeReport) {
			spec.Spec.Nodes = append(spec.Spec.Nodes, cluster.Node{Name: "w2", Role: cluster.RoleWorker})
		}, "w2 does not answer", 0},
		{"a node moves", 3, func(spec *cluster.Spec, _ []cluster.NodeReport) {
			spec.Spec.Nodes[3].Moved = cluster.Move{Times: 1, From: []string{"198.18.0.9"}}
		}, "w1 is moving to 198.18.0.101", 0},
		{"a node has moved", 3, func(spec *cluster.Spec, _ []cluster.NodeReport) { spec.Spec.Nodes[3].Moved = cluster.Move{Times: 2} }, "", 0},
		{"a restart is due", 3, func(_ *cluster.Spec, r []cluster.NodeReport) { r[1].Status.Stale = []string{"etcd"} }, "cp2 has yet to restart etcd", 0},
		{"somebody else's etcd", 3, theirEtcd, "", 0},
		{"somebody else's etcd, and a worker is not ready", 3, func(spec *cluster.Spec, r []cluster.NodeReport) {
			theirEtcd(spec, r)
			r[3].Status.Ready = false
		}, "w1 is not ready", 0},
		{"etcd nodes", 2, nil, "", 3},
		{"one etcd node", 2, nil, "", 1},
		{"two etcd nodes", 3, nil, "etcd cannot spare e1: 2 voters, quorum 2, may lose 0", 2},
		{"an etcd node is silent", 2, func(spec *cluster.Spec, r []cluster.NodeReport) {
			i := slices.IndexFunc(spec.Spec.Nodes, func(n cluster.Node) bool { return n.Name == "e3" })
			r[i].Status, r[i].Error = nil, "it is off"
		}, "the etcd of e3 takes no part", 3},
		{"an etcd node joins", 2, func(_ *cluster.Spec, r []cluster.NodeReport) {
			for _, n := range r {
				if n.Status.Etcd != nil {
					n.Status.Etcd.Members[2].Learner = true
				}
			}
		}, "3 etcd nodes have 2 votes in etcd", 3},
	} {
		spec, reports := wellApart(t, test.etcd, test.servers)
		if test.change != nil {
			test.change(spec, reports)
		}
		c := rotationOf(t, spec, reports)
		err := c.check(t.Context())
		if test.says == "" {
			if err != nil {
				t.Errorf("%s: %v", test.name, err)
			}
			continue
		}
		problem, ok := errors.AsType[*cluster.Problem](err)
		if !ok || problem.ExitCode() != cluster.ExitRefused || !strings.Contains(problem.Why, test.says) {
			t.Errorf("%s: %v", test.name, err)
		}
	}
}

func rotationOf(t *testing.T, spec *cluster.Spec, reports []cluster.NodeReport) *caRotation {
	t.Helper()
	a, _, _ := testApp(t, nil)
	return &caRotation{
		app: a, until: string(keyring.PhaseForget), report: a.newProgress(),
		look: func(context.Context) (target, []cluster.NodeReport, error) { return target{spec: spec}, reports, nil },
	}
}

func names(steps []step.Step) []string {
	var list []string
	for _, s := range steps {
		list = append(list, s.Name)
	}
	return list
}

// TestRotationSteps: what is left to do is read from the nodes; followers come
// before the leader, servers before workers.
func TestRotationSteps(t *testing.T) {
	spec, reports := wellReports(t, 3)
	certify(t, spec, reports)
	c := rotationOf(t, spec, reports)
	check, revoke := "check that all nodes are well, and that etcd can spare one", "revoke join tokens, which pin the old authority"
	phase := func(text, verb string) []string {
		var list []string
		for _, name := range []string{"cp2", "cp3", "cp1", "w1"} {
			list = append(list, verb+": "+name+text)
		}
		return append(list, "see that no node is left before phase "+verb)
	}
	trust := phase(" trusts the new authorities too", "trust")
	sign := append(phase(" gets certificates of the new authorities", "sign"), revoke)
	forget := phase(" trusts the new authorities only", "forget")
	join := func(lists ...[]string) (all []string) {
		for _, list := range lists {
			all = append(all, list...)
		}
		return all
	}
	wants := func(name string, want []string) {
		t.Helper()
		steps, err := c.steps(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, names(steps)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	start := []string{check, "make new authorities on cp1"}
	wants("from the start", join(start, trust, sign, forget))
	c.until = "trust"
	wants("until trust", join(start, trust))
	c.until = "sign"
	wants("until sign", join(start, trust, sign))

	// Interrupted when cp2 trusted the new ones already.
	c.until = "forget"
	fresh, err := pki.NewSet(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for i := range reports[:2] {
		for path, key := range fresh.Signers() {
			reports[i].Status.Certificates = append(reports[i].Status.Certificates, cluster.CertificateStatus{File: "next/" + path, Key: key})
		}
	}
	for path, key := range fresh.Signers() {
		reports[1].Status.Certificates = append(reports[1].Status.Certificates, cluster.CertificateStatus{File: "pki/" + path, Key: key})
	}
	left := append([]string{trust[1], trust[2]}, trust[3:]...)
	wants("resumed", join([]string{check}, left, sign, forget))
	c.until = "trust"
	wants("resumed, until trust", join([]string{check}, left))

	// All trust them: nothing is left of the phase that was asked for.
	for i := range reports {
		reports[i].Status.Certificates = trusting(reports[i], fresh)
	}
	wants("done until trust", []string{check})
	c.until = "forget"
	wants("the rest", join([]string{check}, sign, forget))
	reports[3].Status = nil
	if _, err := c.steps(t.Context()); err == nil {
		t.Error("steps of a cluster that is not well")
	}
}

// TestRollingOrder: who signs comes before who asks, and the member that leads
// after the others.
func TestRollingOrder(t *testing.T) {
	for _, test := range []struct {
		etcd, servers int
		want          []string
	}{
		{0, 3, []string{"cp2", "cp3", "cp1", "w1"}},
		{3, 2, []string{"cp1", "cp2", "e1", "e3", "e2", "w1"}},
		{1, 1, []string{"cp1", "e1", "w1"}},
	} {
		spec, reports := wellApart(t, test.etcd, test.servers)
		certify(t, spec, reports)
		c := rotationOf(t, spec, reports)
		c.until = "trust"
		steps, err := c.steps(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var want []string
		for _, name := range test.want {
			want = append(want, "trust: "+name+" trusts the new authorities too")
		}
		if diff := cmp.Diff(want, names(steps[2:len(steps)-1])); diff != "" {
			t.Errorf("%d etcd nodes, %d servers (-want +got):\n%s", test.etcd, test.servers, diff)
		}
	}
}

// trusting is a node's certificates with those of fresh beside its authorities.
func trusting(r cluster.NodeReport, fresh *pki.Set) []cluster.CertificateStatus {
	list := r.Status.Certificates
	for path, key := range fresh.Signers() {
		has := func(file string) bool {
			for _, c := range list {
				if c.File == file && c.Key == key {
					return true
				}
			}
			return false
		}
		if r.Role == cluster.RoleWorker && strings.Contains(path, "etcd") || r.Role == cluster.RoleWorker && strings.Contains(path, "front") {
			continue
		}
		if !has("pki/" + path) {
			list = append(list, cluster.CertificateStatus{File: "pki/" + path, Key: key})
		}
		if r.Role == cluster.RoleServer && !has("next/"+path) {
			list = append(list, cluster.CertificateStatus{File: "next/" + path, Key: key})
		}
	}
	return list
}

// theirEtcd makes a cluster one on an etcd of one member that somebody else runs.
func theirEtcd(spec *cluster.Spec, reports []cluster.NodeReport) {
	const url = "https://10.0.0.1:2379"
	spec.Spec.Etcd.External.Endpoints = []string{url}
	member := cluster.EtcdStatus{ID: "a1", Leader: "a1", Term: 2, RaftIndex: 9, AppliedIndex: 9, Members: []cluster.EtcdMember{
		{ID: "a1", Name: "theirs", PeerURLs: []string{"https://10.0.0.1:2380"}, ClientURLs: []string{url}},
	}}
	for _, r := range reports {
		r.Status.Etcd = nil
		if r.Role == cluster.RoleServer {
			r.Status.External = &cluster.ExternalEtcdStatus{Endpoints: []cluster.EtcdEndpoint{{URL: url, EtcdStatus: member}}, Agrees: true}
		}
	}
}
