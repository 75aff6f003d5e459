package cli

import (
	"fmt"
	"slices"
	"strings"

	"kuorum/internal/advise"
	"kuorum/internal/cluster"
	"kuorum/internal/relocation"
)

// rollingOrder is servers before all others, since those ask them; then etcd
// nodes, workers, balancers. Of the nodes with a member the one that leads etcd is the
// last, so that it leads on as long as it can.
func rollingOrder(spec *cluster.Spec, leader string) []cluster.Node {
	nodes := slices.Clone(spec.Spec.Nodes)
	rank := func(n cluster.Node) int {
		place := 2 * slices.Index([]cluster.Role{cluster.RoleServer, cluster.RoleEtcd, cluster.RoleWorker, cluster.RoleBalancer}, n.Role)
		if n.Name == leader {
			place++
		}
		return place
	}
	slices.SortStableFunc(nodes, func(a, b cluster.Node) int { return rank(a) - rank(b) })
	return nodes
}

// allWell refuses to go on while a node is not well, moves or has a restart due,
// which would fall together with those of the rotation, or while the quorum could
// not spare the named one's member. An only member is spared by nobody.
func allWell(spec *cluster.Spec, reports []cluster.NodeReport, name string) error {
	var ill []string
	for _, n := range spec.Spec.Nodes {
		i := slices.IndexFunc(reports, func(r cluster.NodeReport) bool { return r.Name == n.Name })
		switch {
		case i < 0 || reports[i].Status == nil && reports[i].Error == "":
			ill = append(ill, n.Name+" does not answer")
		case reports[i].Status == nil:
			ill = append(ill, n.Name+": "+reports[i].Error)
		case !reports[i].Status.Ready:
			ill = append(ill, n.Name+" is not ready")
		case len(reports[i].Status.Stale) > 0:
			ill = append(ill, n.Name+" has yet to restart "+strings.Join(reports[i].Status.Stale, " and ")+" for a changed cluster.yaml")
		}
	}
	for _, n := range relocation.Moving(spec) {
		ill = append(ill, n.Name+" is moving to "+n.Address)
	}
	voters := advise.Voters(spec, reports)
	for _, v := range voters {
		if !v.Healthy {
			ill = append(ill, "the etcd of "+v.Name+" takes no part")
		}
	}
	if members := len(spec.EtcdNodes()); len(voters) != members && !spec.EtcdExternal() {
		ill = append(ill, fmt.Sprintf("%d %s have %d votes in etcd", members, memberNoun(spec), len(voters)))
	}
	before, after := cluster.SumOf(voters), cluster.Without(voters, name)
	if len(voters) > 1 && !after.Holds() && before.Holds() {
		ill = append(ill, fmt.Sprintf("etcd cannot spare %s: %s", name, before))
	}
	if ill == nil {
		return nil
	}
	return &cluster.Problem{
		What: "refused to replace the authorities: not all of the cluster is well", Why: strings.Join(ill, "\n"),
		Do: "kuorum status, and again when all is well", Exit: cluster.ExitRefused,
	}
}

// memberNoun is what the nodes with etcd's members are called.
func memberNoun(spec *cluster.Spec) string {
	if spec.EtcdApart() {
		return "etcd nodes"
	}
	return "servers"
}
