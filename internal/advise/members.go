package advise

import (
	"slices"
	"strings"
	"time"

	"kuorum/internal/cluster"
)

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
