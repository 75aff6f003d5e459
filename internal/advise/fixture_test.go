package advise

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"kuorum/internal/cluster"
)

const (
	mib = int64(1 << 20)
	gib = int64(1 << 30)
	day = 24 * time.Hour
)

// noon is the time of all tests.
func noon() time.Time { return time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC) }

// world is a cluster and what its agents say; nothing is wrong with it until a
// test changes something.
type world struct {
	t       *testing.T
	spec    *cluster.Spec
	reports []cluster.NodeReport
}

// wellWorld has servers cp1... that follow cp1, and workers w1... .
func wellWorld(t *testing.T, servers, workers int) *world {
	t.Helper()
	return wellWorldApart(t, 0, servers, workers)
}

// wellWorldApart has etcd nodes e1... too, if any, that follow e1.
func wellWorldApart(t *testing.T, etcdNodes, servers, workers int) *world {
	t.Helper()
	spec, err := cluster.NewApart("test", etcdNodes, servers, workers)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, spec: spec}
	for _, n := range spec.Spec.Nodes {
		w.reports = append(w.reports, cluster.NodeReport{Name: n.Name, Role: n.Role, Address: n.Address, Status: wellNode(spec, n)})
	}
	return w
}

func wellNode(spec *cluster.Spec, n cluster.Node) *cluster.NodeStatus {
	s := &cluster.NodeStatus{
		Name: n.Name, Role: n.Role, Version: "v1", Time: noon(), Started: noon().Add(-time.Hour), Ready: true,
		Disk:         cluster.DiskStatus{FreeBytes: 50 * gib, SizeBytes: 100 * gib},
		Certificates: []cluster.CertificateStatus{{File: "pki/agent.crt", From: noon().Add(-100 * day), Until: noon().Add(265 * day)}},
	}
	names := []string{"containerd", "endpoint", "kubelet", "flannel", "kube-proxy", "coredns"}
	if n.Role == cluster.RoleEtcd {
		names = nil
	}
	if spec.HasMember(n) {
		names = append(names, "etcd")
		s.Etcd = wellMember(spec, n)
	}
	if n.Role == cluster.RoleServer {
		names = append(names, "kube-apiserver", "kube-controller-manager", "kube-scheduler")
		for _, name := range []string{"kube-scheduler", "kube-controller-manager"} {
			s.Leaders = append(s.Leaders, cluster.LeaseStatus{
				Name: name, Holder: "cp2", Renewed: noon().Add(-2 * time.Second), Lasts: cluster.Duration(15 * time.Second),
			})
		}
	}
	for _, name := range names {
		s.Components = append(s.Components, cluster.ComponentStatus{Name: name, Phase: phaseReady, PID: 7, Since: noon().Add(-time.Hour)})
	}
	return s
}

func wellMember(spec *cluster.Spec, n cluster.Node) *cluster.EtcdStatus {
	s := &cluster.EtcdStatus{
		ID: idOf(n.Name), Leader: idOf(spec.EtcdNodes()[0].Name), Version: "3.6.0", Term: 5, RaftIndex: 100_000, AppliedIndex: 100_000,
		DBBytes: 20 * mib, DBUsedBytes: 15 * mib, QuotaBytes: 2 * gib, FsyncP99: cluster.Duration(4 * time.Millisecond),
	}
	for _, server := range spec.EtcdNodes() {
		s.Members = append(s.Members, memberOn(server))
	}
	return s
}

func memberOn(n cluster.Node) cluster.EtcdMember {
	return cluster.EtcdMember{ID: idOf(n.Name), Name: n.Name, PeerURLs: []string{"https://" + n.Address + ":2380"}}
}

// idOf is the ID of the member on a node.
func idOf(node string) string { return "8e9e05c52164" + fmt.Sprintf("%04s", node) }

func (w *world) review() cluster.Status { return Review(w.spec, w.reports, noon()) }

func (w *world) report(node string) *cluster.NodeReport {
	w.t.Helper()
	i := slices.IndexFunc(w.reports, func(r cluster.NodeReport) bool { return r.Name == node })
	if i < 0 {
		w.t.Fatalf("no node %s", node)
	}
	return &w.reports[i]
}

func (w *world) node(name string) *cluster.NodeStatus { w.t.Helper(); return w.report(name).Status }

func (w *world) etcd(node string) *cluster.EtcdStatus { w.t.Helper(); return w.node(node).Etcd }

// lose makes agents silent.
func (w *world) lose(nodes ...string) {
	w.t.Helper()
	for _, name := range nodes {
		r := w.report(name)
		r.Status, r.Error = nil, "no route to host"
	}
}

// setClock moves the clock of a node, which also writes the leases it holds.
func (w *world) setClock(node int, ahead time.Duration) {
	w.reports[node].ClockOffset = cluster.Duration(ahead)
	for _, r := range w.reports {
		if r.Status == nil {
			continue
		}
		for i := range r.Status.Leaders {
			if l := &r.Status.Leaders[i]; l.Holder == w.reports[node].Name {
				l.Renewed = l.Renewed.Add(ahead)
			}
		}
	}
}

// phase puts components of a node into a phase.
func (w *world) phase(node, phase string, names ...string) {
	w.t.Helper()
	s := w.node(node)
	for _, name := range names {
		i := slices.IndexFunc(s.Components, func(c cluster.ComponentStatus) bool { return c.Name == name })
		if i < 0 {
			w.t.Fatalf("no %s on %s", name, node)
		}
		c := &s.Components[i]
		c.Phase, c.Message, c.Since = phase, name+" says why", noon().Add(-90*time.Second)
		if phase == phaseBackoff {
			c.Message, c.LastExit, c.Restarts = "exit status 1; starts again after 10s", "exit status 1", 12
		}
	}
}

// blockServer puts what needs etcd on a server into the phases that follow.
func (w *world) blockServer(node string) {
	w.t.Helper()
	w.phase(node, phaseStarting, "etcd", "kube-apiserver")
	w.phase(node, "waiting", "kube-controller-manager", "kube-scheduler")
}

// silence makes the members of nodes give no answer.
func (w *world) silence(nodes ...string) {
	w.t.Helper()
	for _, node := range nodes {
		w.node(node).Etcd = &cluster.EtcdStatus{Error: "connection refused"}
	}
}

// members changes the member list of every member that answers.
func (w *world) members(change func([]cluster.EtcdMember) []cluster.EtcdMember) {
	for _, r := range w.reports {
		if s := etcdOf(r); s != nil {
			s.Members = change(slices.Clone(s.Members))
		}
	}
}

// follow sets leader and term of the members on nodes; no leader is empty.
func (w *world) follow(leader string, term uint64, nodes ...string) {
	w.t.Helper()
	for _, node := range nodes {
		s := w.etcd(node)
		s.Term, s.Leader = term, leader
		if leader != "" {
			s.Leader = idOf(leader)
		}
	}
}

// learner makes the member on a node one that does not vote, in every list.
func (w *world) learner(node string) {
	w.t.Helper()
	w.members(func(list []cluster.EtcdMember) []cluster.EtcdMember {
		for i := range list {
			list[i].Learner = list[i].Learner || list[i].ID == idOf(node)
		}
		return list
	})
	// A learner refuses to list members.
	w.etcd(node).Learner, w.etcd(node).Members = true, nil
}

// remove takes members off the list of those that answer.
func (w *world) remove(nodes ...string) {
	w.members(func(list []cluster.EtcdMember) []cluster.EtcdMember {
		return slices.DeleteFunc(list, func(m cluster.EtcdMember) bool {
			return slices.ContainsFunc(nodes, func(node string) bool { return m.ID == idOf(node) })
		})
	})
}

// add puts an entry on the list of those that answer.
func (w *world) add(m cluster.EtcdMember) {
	w.members(func(list []cluster.EtcdMember) []cluster.EtcdMember { return append(list, m) })
}

// codes writes findings as "severity code node", in order.
func codes(findings []cluster.Finding) []string {
	list := []string{}
	for _, f := range findings {
		text := string(f.Severity) + " " + f.Code
		if f.Node != "" {
			text += " " + f.Node
		}
		list = append(list, text)
	}
	return list
}
