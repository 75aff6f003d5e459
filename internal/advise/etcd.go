package advise

import (
	"fmt"
	"strings"

	"kuorum/internal/cluster"
)

// behindEntries is by how many entries of the log a voter may lag. Under load
// a healthy one is some hundreds behind; etcd itself refuses requests at 5000
// entries between commit and apply.
const behindEntries = 5000

// fault is what keeps a member from taking part. A member has one: the most
// fundamental.
type fault int

const (
	faultNone         fault = iota
	faultUnreachable        // its node's agent does not answer
	faultStranger           // its node is not in the spec
	faultReplaced           // its node runs as another member of the list
	faultNotMember          // its node runs as a member that is in no list
	faultNeverStarted       // in the list, never seen
	faultSilent             // its node answers, etcd does not
	faultLearner            // does not vote yet
	faultLagging            // votes by the list, and does not know it yet
	faultApart              // follows no leader, or another one
	faultUnnamed            // somebody else runs it, and no endpoint leads to it
)

func (v *view) faultOf(m member) fault {
	if v.spec.EtcdExternal() {
		return v.externalFault(m)
	}
	switch r := v.report(m.node); {
	case m.node == "":
		return faultStranger
	case !answered(r):
		return faultUnreachable
	case m.status != nil:
		return v.standing(m)
	case m.Name == "":
		return faultNeverStarted
	case etcdOf(r) == nil:
		return faultSilent
	case v.listed(r.Status.Etcd.ID):
		return faultReplaced
	}
	return faultNotMember
}

// standing is the fault of a member that answers.
func (v *view) standing(m member) fault {
	switch {
	case !v.follows(m.status):
		return faultApart
	case m.Learner:
		return faultLearner
	case m.status.Learner:
		return faultLagging
	}
	return faultNone
}

// nodeFault is the fault of the member that a node runs, or should run.
func (v *view) nodeFault(r cluster.NodeReport) fault {
	s := etcdOf(r)
	for _, m := range v.members {
		if s != nil && m.ID == s.ID {
			return v.faultOf(m)
		}
	}
	for _, m := range v.members {
		if s == nil && m.node == r.Name {
			return v.faultOf(m)
		}
	}
	return faultNotMember
}

// memberFaults has a finding for each member with a fault of its own. What
// only follows from a lost quorum is left out: it is no fault.
func (v *view) memberFaults() []cluster.Finding {
	var all []cluster.Finding
	for _, m := range v.members {
		if v.spec.EtcdExternal() && m.status == nil {
			all = append(all, v.externalSilent(m)...)
			continue
		}
		switch v.faultOf(m) {
		case faultStranger, faultReplaced:
			all = append(all, v.unknownMember(m))
		case faultNeverStarted:
			all = append(all, v.neverStarted(m))
		case faultSilent:
			all = append(all, v.silent(m)...)
		case faultLearner:
			all = append(all, v.learner(m))
		case faultApart:
			all = append(all, v.apart(m)...)
		case faultLagging, faultNone:
			all = append(all, v.behind(m)...)
		default: // found with the node
		}
	}
	return all
}

func (v *view) unknownMember(m member) cluster.Finding {
	f := cluster.Finding{
		Code:     codeEtcdMemberUnknown,
		Severity: cluster.SeverityWarning,
		Node:     m.node,
		What:     "etcd's member list has a member that no node runs: " + m.name,
		Why:      "no node of cluster.yaml has its name or address " + strings.Join(m.PeerURLs, ", "),
		Do:       "kuorum etcd remove " + m.ID,
	}
	if m.node != "" {
		f.Why = fmt.Sprintf("%s runs member %s, not %s", m.node, v.report(m.node).Status.Etcd.ID, m.ID)
	}
	return f
}

func (v *view) neverStarted(m member) cluster.Finding {
	r := v.report(m.node)
	why := etcdError(r)
	if s := etcdOf(r); s != nil {
		why = fmt.Sprintf("%s runs member %s, not %s", m.node, s.ID, m.ID)
	}
	return cluster.Finding{
		Code:     codeEtcdNeverStarted,
		Severity: cluster.SeverityWarning,
		Node:     m.node,
		What:     fmt.Sprintf("etcd's member on %s was added and has never started", m.node),
		Why:      why,
		Do:       "kuorum logs " + m.node + " etcd",
	}
}

// silent is a member that does not answer. One that ends again and again is
// found as a component; one that runs and lacks a quorum cannot answer.
func (v *view) silent(m member) []cluster.Finding {
	r := v.report(m.node)
	phase := phaseOf(*r.Status, etcd)
	if old := oldData(r); old != nil && !astray(r) {
		return []cluster.Finding{v.dataOld(m.node, *old)}
	}
	if astray(r) || phase == phaseBackoff || phase == phaseStarting && !v.sum.Holds() {
		return nil
	}
	return []cluster.Finding{{
		Code:     codeEtcdDown,
		Severity: cluster.SeverityCritical,
		Node:     m.node,
		What:     fmt.Sprintf("etcd of %s does not answer", m.node),
		Why:      etcdError(r),
		Do:       "kuorum logs " + m.node + " etcd",
	}}
}

// oldData is why a node that answers does not start its etcd; nil: it does.
func oldData(r cluster.NodeReport) *cluster.OldData {
	if !answered(r) || r.Status.Etcd == nil {
		return nil
	}
	return r.Status.Etcd.Old
}

// dataOld is a node that got an older copy of its data. Only a quorum can replace its
// member.
func (v *view) dataOld(node string, old cluster.OldData) cluster.Finding {
	f := cluster.Finding{
		Code:     codeEtcdDataOld,
		Severity: cluster.SeverityCritical,
		Node:     node,
		What:     fmt.Sprintf("etcd of %s does not start: its data is older than what it had", node),
		Why:      old.Why(),
		Do:       "kuorum etcd rebuild " + node,
	}
	if !v.sum.Holds() {
		f.Do = "Bring back the other voters, then: " + f.Do
	}
	return f
}

func (v *view) learner(m member) cluster.Finding {
	return cluster.Finding{
		Code:     codeEtcdLearner,
		Severity: cluster.SeverityInfo,
		Node:     m.node,
		What:     fmt.Sprintf("etcd of %s is a learner: it does not vote yet", m.name),
		Why:      fmt.Sprintf("it is %d entries behind", v.lag(m)),
		Do:       "kuorum etcd promote " + m.name,
	}
}

// apart is a member that does not follow the leader of the others. Without a
// quorum that is nobody's own fault.
func (v *view) apart(m member) []cluster.Finding {
	if !v.sum.Holds() {
		return nil
	}
	return []cluster.Finding{{
		Code:     codeEtcdNoLeader,
		Severity: cluster.SeverityCritical,
		Node:     m.node,
		What:     fmt.Sprintf("etcd of %s does not follow the leader, %s", m.name, v.leader()),
		Why:      fmt.Sprintf("it %s: the others do not reach it, or it does not reach them (port 2380)", v.position(m.status)),
		Do:       "kuorum logs " + m.node + " etcd",
	}}
}

func (v *view) behind(m member) []cluster.Finding {
	f := cluster.Finding{Code: codeEtcdBehind, Severity: cluster.SeverityWarning, Node: m.node, Do: "kuorum etcd status"}
	switch lag := v.lag(m); {
	case m.status.Learner && !m.Learner:
		f.What = fmt.Sprintf("etcd of %s is behind: it does not know yet that it votes", m.name)
	case lag > behindEntries:
		f.What = fmt.Sprintf("etcd of %s is %d entries behind", m.name, lag)
	default:
		return nil
	}
	f.Why = fmt.Sprintf("it has applied entry %d, %s entry %d: its disk, processor or network is too slow",
		m.status.AppliedIndex, v.nameOf(v.best.ID), v.best.AppliedIndex)
	return []cluster.Finding{f}
}

// lag is by how many entries a member is behind the best.
func (v *view) lag(m member) uint64 {
	return v.best.AppliedIndex - min(m.status.AppliedIndex, v.best.AppliedIndex)
}

// notMembers are nodes that run, or should run, a member which is in no list.
func (v *view) notMembers() []cluster.Finding {
	if v.best == nil {
		return nil
	}
	var names []string
	for _, m := range v.members {
		names = append(names, m.name)
	}
	var all []cluster.Finding
	for _, r := range v.answering() {
		n, known := v.spec.Node(r.Name)
		if !known || !v.spec.HasMember(n) && r.Status.Etcd == nil || v.nodeFault(r) != faultNotMember || astray(r) {
			continue
		}
		why := "the member list has only " + strings.Join(names, ", ")
		if s := etcdOf(r); s != nil {
			why += "; it calls itself " + s.ID
		} else {
			why += "; " + etcdError(r)
		}
		all = append(all, cluster.Finding{
			Code:     codeEtcdNotAMember,
			Severity: cluster.SeverityWarning,
			Node:     r.Name,
			What:     fmt.Sprintf("%s is %s, and its etcd is no member", r.Name, n.Role.Noun()),
			Why:      why,
			Do:       "kuorum etcd rebuild " + r.Name,
		})
	}
	return all
}

// etcdError is why the member of a node that answers does not.
func etcdError(r cluster.NodeReport) string {
	var parts []string
	switch s := r.Status.Etcd; {
	case s == nil:
		parts = append(parts, "the agent runs no etcd")
	case s.Error != "":
		parts = append(parts, s.Error)
	}
	if c := componentOf(*r.Status, etcd); c.Phase != "" && c.Phase != phaseReady {
		parts = append(parts, "its process is "+c.Phase)
		parts = append(parts, exits(c)...)
	}
	return strings.Join(parts, "; ")
}
