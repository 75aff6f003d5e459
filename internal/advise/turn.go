package advise

import (
	"slices"
	"time"

	"kuorum/internal/cluster"
)

// Turn tells why the node of that name may not replace its stale components
// now; empty: it may. Only one node at a time should do so, which is not looked
// at here. The quorum and the API must go on without it, and whoever has had
// its turn must be well: what is wrong with a changed cluster.yaml must not go
// round. A single server, or a single voter, may: somebody asked for it.
func Turn(spec *cluster.Spec, reports []cluster.NodeReport, name string) (waitsFor string) {
	v := newView(spec, believed(spec, reports), time.Time{})
	own := v.report(name)
	if !answered(own) || len(own.Status.Stale) == 0 {
		return name + " has nothing to replace"
	}
	for _, r := range v.answering() {
		n, _ := spec.Node(r.Name)
		takesTurns := n.Role == cluster.RoleServer || spec.HasMember(n)
		if r.Name != name && takesTurns && len(r.Status.Stale) == 0 && !r.Status.Ready {
			return r.Name + " is not ready"
		}
	}
	if slices.Contains(own.Status.Stale, etcd) {
		if waitsFor := v.etcdTurn(name); waitsFor != "" {
			return waitsFor
		}
	}
	n, _ := spec.Node(name)
	if n.Role == cluster.RoleServer && len(spec.Servers()) > 1 && !v.apiWithout(name) {
		return "no other API server is ready"
	}
	return ""
}

// NothingToLose tells whether the node of that name may replace what is stale
// also when etcd cannot be asked whose turn it is: a server without a member
// whose API server does not work. It may know none of the members that are left.
func NothingToLose(spec *cluster.Spec, reports []cluster.NodeReport, name string) bool {
	n, ok := spec.Node(name)
	return ok && n.Role == cluster.RoleServer && !spec.HasMember(n) && !slices.ContainsFunc(reports, func(r cluster.NodeReport) bool {
		return r.Name == name && answered(r) && componentOf(*r.Status, apiserver).Phase == phaseReady
	})
}

// etcdTurn is Turn for a node whose member is to start again; the leader's is
// the last.
func (v *view) etcdTurn(name string) (waitsFor string) {
	if after := cluster.Without(v.voters(), name); len(v.voters()) > 1 && !after.Holds() {
		return "the quorum would be lost: " + after.String()
	}
	if v.leader() != name {
		return ""
	}
	for _, r := range v.answering() {
		if r.Name != name && slices.Contains(r.Status.Stale, etcd) {
			return name + " leads, and " + r.Name + " comes before the leader"
		}
	}
	return ""
}

// apiWithout tells whether an API server of another node is ready.
func (v *view) apiWithout(name string) bool {
	return slices.ContainsFunc(v.answering(), func(r cluster.NodeReport) bool {
		return r.Name != name && componentOf(*r.Status, apiserver).Phase == phaseReady
	})
}

// believed is reports without what workers cannot know: a worker has no word in
// what agents reckon of etcd and then do of their own accord. It takes a spec
// that is not behind: persons may ask with one that is, of which nothing would
// be left to see.
func believed(spec *cluster.Spec, reports []cluster.NodeReport) []cluster.NodeReport {
	reports = slices.Clone(reports)
	for i, r := range reports {
		if n, ok := spec.Node(r.Name); !ok || n.Role.MayVote() || r.Status == nil {
			continue
		}
		status := *r.Status
		status.Etcd, status.External, status.Stale = nil, nil, nil
		reports[i].Status = &status
	}
	return reports
}
