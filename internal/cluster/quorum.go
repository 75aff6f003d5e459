package cluster

import (
	"fmt"
	"slices"
)

// Quorum is how many of a cluster's voters must agree on a write: more than
// half of them, so that two groups can never both have it.
func Quorum(voters int) int { return max(voters, 0)/2 + 1 }

// MayLose is how many voters can fail while the others still are a quorum.
func MayLose(voters int) int { return max(voters-Quorum(voters), 0) }

// Voter is an etcd member that votes.
type Voter struct {
	Name    string
	Healthy bool // it runs and takes part
}

// QuorumSum is the arithmetic of a set of voters.
type QuorumSum struct {
	Voters  int `json:"voters"`
	Healthy int `json:"healthy"`
	Quorum  int `json:"quorum"`
	MayLose int `json:"mayLose"` // of the healthy ones, before writes stop; 0 also when they have
}

// SumOf counts voters.
func SumOf(voters []Voter) QuorumSum {
	s := QuorumSum{Voters: len(voters), Quorum: Quorum(len(voters))}
	for _, v := range voters {
		if v.Healthy {
			s.Healthy++
		}
	}
	s.MayLose = max(s.Healthy-s.Quorum, 0)
	return s
}

// Holds tells whether writes are possible.
func (s QuorumSum) Holds() bool { return s.Voters > 0 && s.Healthy >= s.Quorum }

// String is the sum in the words that every command uses.
func (s QuorumSum) String() string {
	text := fmt.Sprintf("%d voters", s.Voters)
	if s.Voters == 1 {
		text = "1 voter"
	}
	if s.Healthy < s.Voters {
		text += fmt.Sprintf(", %d healthy", s.Healthy)
	}
	text += fmt.Sprintf(", quorum %d, ", s.Quorum)
	if !s.Holds() {
		return text + "no quorum"
	}
	return text + fmt.Sprintf("may lose %d", s.MayLose)
}

// Without is the sum after the voter of that name stopped: it counts as a
// voter still, but does not take part. One that is no voter changes nothing.
func Without(voters []Voter, name string) QuorumSum {
	left := make([]Voter, len(voters))
	for i, v := range voters {
		left[i] = Voter{Name: v.Name, Healthy: v.Healthy && v.Name != name}
	}
	return SumOf(left)
}

// Removed is the sum after the voter of that name was taken off the member
// list: unlike one that stopped it does not count any more. One that is no
// voter changes nothing.
func Removed(voters []Voter, name string) QuorumSum {
	return SumOf(slices.DeleteFunc(slices.Clone(voters), func(v Voter) bool { return v.Name == name }))
}

// GuardQuorum is the one check of every verb that takes a voter away: nil
// when the quorum holds afterwards, or did not hold before, else a Problem
// with exit code 5. verb is what is asked for: "stop cp1".
func GuardQuorum(verb string, before, after QuorumSum) error {
	if after.Holds() || !before.Holds() {
		return nil
	}
	return &Problem{
		What: "refused to " + verb + ": etcd would lose its quorum, and nothing could be written any more",
		Why:  fmt.Sprintf("now: %s\nafter this: %s", before, after),
		Do:   "bring the other voters back first (kuorum status), or go on with --force-quorum-loss",
		Exit: ExitRefused,
	}
}
