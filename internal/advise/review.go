// Package advise turns what the agents of a cluster's nodes say into one
// picture: who votes, whether they are a quorum, and findings that name what
// is wrong, why, and what to do. It decides only: no disk, no network, no
// clock. People read its findings at night, so each names a root cause, and
// what merely follows from another finding is left out.
package advise

import (
	"cmp"
	"slices"
	"time"

	"kuorum/internal/cluster"
)

// Review makes the Status of the whole cluster from what each node's agent
// said, or why it did not. reports holds a node at most once, in any order; a
// node of the spec without a report counts as one that does not answer. now is
// the asker's time, at which the reports were taken. The same reports give the
// same Status; nothing of them is changed.
func Review(spec *cluster.Spec, reports []cluster.NodeReport, now time.Time) cluster.Status {
	v := newView(spec, reports, now)
	findings := v.findings()
	return cluster.Status{
		Cluster:  spec.Metadata.Name,
		Time:     now,
		State:    stateOf(v.sum, findings),
		Quorum:   v.sum,
		Leader:   v.leader(),
		Leaders:  v.leases(),
		Nodes:    v.nodes,
		Findings: findings,
	}
}

// view is a cluster as its nodes' agents describe it.
type view struct {
	spec  *cluster.Spec
	now   time.Time
	nodes []cluster.NodeReport // in the spec's order, then strangers by name
	// best is the member whose word counts, see newView; nil when none
	// answers.
	best    *cluster.EtcdStatus
	members []member // of best's list, or the spec's etcd nodes without one
	// presumed are the IDs of members that somebody else runs, that do not answer, and
	// that take part by what others say.
	presumed map[string]bool
	sum      cluster.QuorumSum
}

func newView(spec *cluster.Spec, reports []cluster.NodeReport, now time.Time) *view {
	v := &view{spec: spec, now: now, nodes: ordered(spec, reports)}
	v.best = best(v.nodes)
	v.members = v.listMembers()
	v.presume()
	v.sum = cluster.SumOf(v.voters())
	return v
}

// ordered is one report for each node of the spec, in its order, and then
// those of other nodes, by name.
func ordered(spec *cluster.Spec, reports []cluster.NodeReport) []cluster.NodeReport {
	given := map[string]cluster.NodeReport{}
	for _, r := range reports {
		given[r.Name] = r
	}
	nodes := make([]cluster.NodeReport, 0, len(reports))
	for _, n := range spec.Spec.Nodes {
		r, found := given[n.Name]
		if !found {
			r = cluster.NodeReport{Name: n.Name, Role: n.Role, Address: n.Address, Error: "nobody asked its agent"}
		}
		nodes = append(nodes, r)
		delete(given, n.Name)
	}
	known := len(nodes)
	for _, r := range given {
		nodes = append(nodes, r)
	}
	slices.SortFunc(nodes[known:], func(a, b cluster.NodeReport) int { return cmp.Compare(a.Name, b.Name) })
	return nodes
}

// report is what is known of a node; the zero report, which did not answer,
// of a name that no node has.
func (v *view) report(name string) cluster.NodeReport {
	for _, r := range v.nodes {
		if r.Name == name {
			return r
		}
	}
	return cluster.NodeReport{Name: name}
}

// answering lists the reports of the nodes whose agents answered.
func (v *view) answering() []cluster.NodeReport {
	var nodes []cluster.NodeReport
	for _, r := range v.nodes {
		if answered(r) {
			nodes = append(nodes, r)
		}
	}
	return nodes
}

func answered(r cluster.NodeReport) bool { return r.Error == "" && r.Status != nil }

// findings lists everything there is to say, the worst first. It is never nil.
func (v *view) findings() []cluster.Finding {
	all := []cluster.Finding{}
	for _, look := range []func() []cluster.Finding{
		v.quorum, v.reserve, v.memberFaults, v.notMembers, v.space, v.alarms,
		v.unreachable, v.lost, v.components, v.leaseHolders, v.virtualIP, v.clocks, v.versions, v.stale, v.foreign, v.endpoints,
	} {
		all = append(all, look()...)
	}
	for i, f := range all {
		all[i] = v.theirs(f)
	}
	for _, r := range v.answering() {
		all = append(all, v.disk(r)...)
		all = append(all, v.certificates(r)...)
	}
	slices.SortFunc(all, func(a, b cluster.Finding) int {
		return cmp.Or(
			cmp.Compare(rank(a.Severity), rank(b.Severity)),
			cmp.Compare(a.Node, b.Node),
			cmp.Compare(a.Code, b.Code),
			cmp.Compare(a.What, b.What),
			cmp.Compare(a.Why, b.Why),
		)
	})
	return all
}

// rank is the place of a severity in a list: the worst first.
func rank(s cluster.Severity) int {
	return slices.Index([]cluster.Severity{cluster.SeverityCritical, cluster.SeverityWarning, cluster.SeverityInfo}, s)
}

func stateOf(sum cluster.QuorumSum, findings []cluster.Finding) cluster.State {
	if !sum.Holds() {
		return cluster.StateNoQuorum
	}
	for _, f := range findings {
		if f.Severity != cluster.SeverityInfo {
			return cluster.StateDegraded
		}
	}
	return cluster.StateHealthy
}
