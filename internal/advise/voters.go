package advise

import (
	"cmp"
	"net/url"
	"slices"
	"strings"
	"time"

	"kuorum/internal/cluster"
)

// Voters lists the etcd members that vote, in the spec's order, and whether
// each takes part in the quorum now. Without any member that answers, the
// spec's etcd nodes stand for them, none of them healthy. Those that somebody else
// runs are called by their IDs, so that none is taken for a node. reports are as for
// Review.
func Voters(spec *cluster.Spec, reports []cluster.NodeReport) []cluster.Voter {
	v := &view{spec: spec, nodes: ordered(spec, reports)}
	v.best = best(v.nodes)
	v.members = v.listMembers()
	v.presume()
	return v.voters()
}

// member is one entry of the member list.
type member struct {
	cluster.EtcdMember
	// name is for people: the member's own; of one that has never started,
	// that of the node at its address; else the ID.
	name string
	node string // of the spec that it runs on; empty: none
	// status is what the member of this very ID says; nil when it does not
	// answer.
	status *cluster.EtcdStatus
}

// best is the member whose list and leader count. One that follows a leader
// wins over one that does not: a member that was cut off or removed may go on
// to higher terms alone. Among those the highest term wins, then the member
// that has applied most, then the first node.
func best(nodes []cluster.NodeReport) *cluster.EtcdStatus {
	var found *cluster.EtcdStatus
	for _, r := range nodes {
		for _, s := range statusesOf(r) {
			if len(s.Members) > 0 && (found == nil || trust(s, found) > 0) {
				found = s
			}
		}
	}
	return found
}

// trust compares how much the words of two members count.
func trust(a, b *cluster.EtcdStatus) int {
	return cmp.Or(
		cmp.Compare(min(len(a.Leader), 1), min(len(b.Leader), 1)),
		cmp.Compare(a.Term, b.Term),
		cmp.Compare(a.AppliedIndex, b.AppliedIndex),
	)
}

// etcdOf is what a node's member says; nil when it, or the agent, does not
// answer.
func etcdOf(r cluster.NodeReport) *cluster.EtcdStatus {
	if !answered(r) || r.Status.Etcd == nil || r.Status.Etcd.Error != "" {
		return nil
	}
	return r.Status.Etcd
}

// listMembers lists the members in the order of their nodes in the spec, then
// by name and ID.
func (v *view) listMembers() []member {
	var list []member
	if v.best == nil && v.spec.EtcdExternal() {
		return v.endpointsAsMembers()
	}
	if v.best == nil {
		for _, n := range v.spec.EtcdNodes() {
			list = append(list, member{EtcdMember: cluster.EtcdMember{Name: n.Name}, name: n.Name, node: n.Name})
		}
		return list
	}
	for _, m := range v.best.Members {
		node := ""
		if !v.spec.EtcdExternal() { // a member that somebody else runs may be called as a node is
			node = nodeOf(v.spec, m)
		}
		list = append(list, member{
			EtcdMember: m, name: cmp.Or(m.Name, node, m.ID), node: node, status: v.statusOf(m.ID),
		})
	}
	place := map[string]int{"": len(v.spec.Spec.Nodes)}
	for i, n := range v.spec.Spec.Nodes {
		place[n.Name] = i
	}
	slices.SortStableFunc(list, func(a, b member) int {
		return cmp.Or(cmp.Compare(place[a.node], place[b.node]), cmp.Compare(a.name, b.name), cmp.Compare(a.ID, b.ID))
	})
	return list
}

// nodeOf is the node of the spec that a member runs on, or nothing. A member
// has no name before it has started, but always an address.
func nodeOf(spec *cluster.Spec, m cluster.EtcdMember) string {
	if m.Name != "" {
		n, _ := spec.Node(m.Name)
		return n.Name
	}
	for _, text := range m.PeerURLs {
		u, err := url.Parse(text)
		if err != nil || u.Hostname() == "" {
			continue
		}
		for _, n := range spec.Spec.Nodes {
			if n.Address == u.Hostname() {
				return n.Name
			}
		}
	}
	return ""
}

// statusOf is what the member with that ID says; nil when none answers.
// Several servers may tell of one that somebody else runs: the newest counts.
func (v *view) statusOf(id string) *cluster.EtcdStatus {
	var found *cluster.EtcdStatus
	for _, r := range v.nodes {
		for _, s := range statusesOf(r) {
			if s.ID == id && (found == nil || trust(s, found) > 0) {
				found = s
			}
		}
	}
	return found
}

// listed tells whether a member of that ID is in the list.
func (v *view) listed(id string) bool {
	return slices.ContainsFunc(v.members, func(m member) bool { return m.ID == id })
}

// nameOf is the name of the member with that ID, or the ID.
func (v *view) nameOf(id string) string {
	for _, m := range v.members {
		if m.ID == id {
			return m.name
		}
	}
	return id
}

func (v *view) voters() []cluster.Voter {
	voters := []cluster.Voter{}
	for _, m := range v.members {
		name := m.name
		if v.spec.EtcdExternal() {
			name = "external/" + m.ID
		}
		if !m.Learner {
			voters = append(voters, cluster.Voter{Name: name, Healthy: v.takesPart(m)})
		}
	}
	return voters
}

// takesPart tells whether a voter is one of the quorum, if there is one: it
// answers, knows that it votes, and agrees with the best member on the leader
// and its term. One cut off may name an old leader for a while.
func (v *view) takesPart(m member) bool {
	return v.presumed[m.ID] || m.status != nil && !m.status.Learner && v.follows(m.status)
}

func (v *view) follows(s *cluster.EtcdStatus) bool {
	return s.Leader != "" && s.Leader == v.best.Leader && s.Term == v.best.Term
}

// leader is the name of the member that the healthy voters follow, or nothing.
func (v *view) leader() string {
	if v.sum.Healthy == 0 {
		return ""
	}
	return v.nameOf(v.best.Leader)
}

// Etcd is etcd as its members tell of it; the list is that of the member whose
// word counts most, so no quorum is needed for it.
type Etcd struct {
	State    cluster.State       `json:"state"` // of etcd alone
	Quorum   cluster.QuorumSum   `json:"quorum"`
	Leader   string              `json:"leader,omitempty"` // a member's Label
	Members  []Member            `json:"members"`          // in the spec's order; its etcd nodes when no member answers
	Alarms   []cluster.EtcdAlarm `json:"alarms,omitempty"`
	Findings []cluster.Finding   `json:"findings"` // those about etcd
	Known    bool                `json:"-"`        // some member told its list
}

// Member is one entry of the member list, and what that member says itself.
type Member struct {
	cluster.EtcdMember
	// Label names it for people: its name; of one that has never started, that
	// of its node; else its ID. It may be that of another member too.
	Label string `json:"label"`
	Node  string `json:"node,omitempty"` // of the spec that it runs on; empty: none
	// State is leader, follower, learner, apart (it follows no leader, or
	// another one), down, or unknown.
	State   string `json:"state"`
	Healthy bool   `json:"healthy"`       // it takes part; a learner: it follows the leader
	Why     string `json:"why,omitempty"` // it is not healthy
	Lag     uint64 `json:"lag"`           // entries that it has applied less than the best
	// Status is what it says itself; nil when it does not answer.
	Status *cluster.EtcdStatus `json:"status,omitempty"`
}

// States of a member.
const (
	MemberLeader   = "leader"
	MemberFollower = "follower"
	MemberLearner  = "learner"
	MemberApart    = "apart"
	MemberDown     = "down"
	MemberUnknown  = "unknown" // somebody else runs it, and nobody can ask it
)

// ReviewEtcd is the part of Review that is about etcd, in more detail.
// reports and now are as for Review.
func ReviewEtcd(spec *cluster.Spec, reports []cluster.NodeReport, now time.Time) Etcd {
	v := newView(spec, reports, now)
	e := Etcd{Quorum: v.sum, Leader: v.leader(), Known: v.best != nil, Findings: v.etcdFindings()}
	if v.best != nil {
		e.Alarms = slices.Clone(v.best.Alarms)
	}
	for _, m := range v.members {
		e.Members = append(e.Members, v.tell(m))
	}
	e.State = stateOf(v.sum, e.Findings)
	if e.State == cluster.StateHealthy && v.sum.Healthy < v.sum.Voters {
		e.State = cluster.StateDegraded // its machine is off: that is found with the node
	}
	return e
}

func (v *view) tell(m member) Member {
	told := Member{EtcdMember: m.EtcdMember, Label: m.name, Node: m.node, State: v.stateOf(m), Status: m.status}
	told.Healthy = m.status != nil && v.follows(m.status) && (m.Learner || v.takesPart(m)) || v.presumed[m.ID]
	if !told.Healthy {
		told.Why = v.absence(m)
	}
	if m.status != nil {
		told.Lag = v.lag(m)
	}
	return told
}

func (v *view) stateOf(m member) string {
	switch {
	case m.status == nil && v.presumed[m.ID] && m.ID == v.best.Leader:
		return MemberLeader
	case m.status == nil && v.faultOf(m) == faultUnnamed:
		return MemberUnknown
	case m.status == nil:
		return MemberDown
	case !v.follows(m.status):
		return MemberApart
	case m.Learner:
		return MemberLearner
	case m.ID == m.status.Leader:
		return MemberLeader
	}
	return MemberFollower
}

// etcdFindings are those about members and their quorum.
func (v *view) etcdFindings() []cluster.Finding {
	return slices.DeleteFunc(v.findings(), func(f cluster.Finding) bool {
		return f.Code != codeNoQuorum && !strings.HasPrefix(f.Code, "etcd-")
	})
}
