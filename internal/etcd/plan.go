package etcd

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"kuorum/internal/cluster"
)

const (
	// minDefragBytes is the step in which bbolt lets the file grow: a smaller
	// database has one that cannot get shorter.
	minDefragBytes = 16 << 20
	// Etcd uses free pages again by itself. Less than a quarter of them is not
	// worth the time that the member is away.
	maxUsedParts, ofParts = 3, 4
)

// DefragOrder is in which order the members of a cluster, by name, are to be
// defragmented: only those where it pays, one after the other, the leader
// last. It is empty when none does. A member that is at it takes no part in
// the quorum; therefore, unless all of them are well, it is refused (exit code
// 5), with the reasons. Learners are left out: they cannot do it.
//
// It holds for the first member. After that ask all of them again, since
// things change, and leave out those that are done.
func DefragOrder(statuses map[string]cluster.EtcdStatus) ([]string, error) {
	return order(statuses, pays)
}

// DefragAll is DefragOrder with the members where it does not pay as well.
func DefragAll(statuses map[string]cluster.EtcdStatus) ([]string, error) {
	return order(statuses, func(cluster.EtcdStatus) bool { return true })
}

func order(statuses map[string]cluster.EtcdStatus, wanted func(cluster.EtcdStatus) bool) ([]string, error) {
	if reasons := unfit(statuses); len(reasons) > 0 {
		return nil, &cluster.Problem{
			What: "refused to defragment: a member that is at it is as good as stopped, and not all others are well",
			Why:  strings.Join(reasons, "\n"),
			Do:   "mend that first; kuorum etcd status",
			Exit: cluster.ExitRefused,
		}
	}
	var followers, leader []string
	for _, name := range slices.Sorted(maps.Keys(statuses)) {
		s := statuses[name]
		switch {
		case s.Learner || !wanted(s):
		case s.ID == s.Leader:
			leader = append(leader, name)
		default:
			followers = append(followers, name)
		}
	}
	return append(followers, leader...), nil
}

// pays tells whether a defragmentation is worth its price. A full database
// that was compacted says for long that all is used: bbolt counts a page as
// free only after the next write, and a full database takes none.
func pays(s cluster.EtcdStatus) bool {
	full := slices.ContainsFunc(s.Alarms, func(a cluster.EtcdAlarm) bool { return a.Kind == "NOSPACE" })
	return s.DBBytes >= minDefragBytes && (full || s.DBUsedBytes < s.DBBytes/ofParts*maxUsedParts)
}

// unfit lists what speaks against taking any member away for a while. An alarm
// of a full database does not: that is what defragmenting is for.
func unfit(statuses map[string]cluster.EtcdStatus) []string {
	if len(statuses) == 0 {
		return []string{"no member is known"}
	}
	var reasons []string
	leaders, known := map[string]bool{}, map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(statuses)) {
		s := statuses[name]
		known[s.ID] = true
		if s.Error != "" {
			reasons = append(reasons, name+": "+s.Error)
			continue
		}
		if s.Leader == "" {
			reasons = append(reasons, name+": knows of no leader")
			continue
		}
		leaders[s.Leader] = true
	}
	if len(leaders) > 1 {
		reasons = append(reasons, "the members know different leaders")
	}
	return append(reasons, inLists(statuses, known)...)
}

// inLists finds voters that nobody asked, and damage that members tell of.
func inLists(statuses map[string]cluster.EtcdStatus, known map[string]bool) []string {
	found := map[string]bool{}
	for _, s := range statuses {
		for _, m := range s.Members {
			// One with an Error has been named, but has no ID.
			if asked := known[m.ID] || statuses[m.Name].Error != ""; !m.Learner && !asked {
				found[fmt.Sprintf("voter %s %s: was not asked", m.ID, m.Name)] = true
			}
		}
		for _, a := range s.Alarms {
			if a.Kind == "CORRUPT" {
				found[fmt.Sprintf("member %s: its data is not that of the others", a.Member)] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(found))
}

// Newest is the status, of those that members give, whose word counts: of a
// voter that follows a leader, in the newest term, the leader itself if it is
// among them. Without any such it is the first that answers, else the first.
func Newest(statuses []cluster.EtcdStatus) cluster.EtcdStatus {
	if len(statuses) == 0 {
		return cluster.EtcdStatus{Error: "nobody was asked"}
	}
	return slices.MaxFunc(statuses, func(a, b cluster.EtcdStatus) int {
		return cmp.Or(
			cmp.Compare(standing(a), standing(b)),
			cmp.Compare(a.Term, b.Term),
			cmp.Compare(oneIf(a.ID == a.Leader), oneIf(b.ID == b.Leader)),
		)
	})
}

// standing is how much a member can know: a voter with a leader, then anyone
// that answers.
func standing(s cluster.EtcdStatus) int {
	switch {
	case s.Error != "":
		return 0
	case s.Learner || s.Leader == "":
		return 1
	}
	return 2
}

func oneIf(condition bool) int { //nolint:revive // a number for a flag
	if condition {
		return 1
	}
	return 0
}

// CatchUp is how many percent of the leader's log a learner has applied, 0 to
// 100; 100 only when it has all of what the leader had. Etcd lets it be
// promoted from about 90. It is 0 while one of them does not answer.
func CatchUp(leader, learner cluster.EtcdStatus) int {
	if leader.RaftIndex == 0 {
		return 0
	}
	if learner.AppliedIndex >= leader.RaftIndex {
		return 100
	}
	// Never 100 by rounding.
	return min(99, int(100*(float64(learner.AppliedIndex)/float64(leader.RaftIndex))))
}
