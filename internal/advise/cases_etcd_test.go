package advise

import (
	"time"

	"kuorum/internal/cluster"
)

func memberScenes() []scene {
	return []scene{
		{name: "a learner", servers: 4, change: func(w *world) { w.learner("cp4") }, state: cluster.StateHealthy, want: []string{"info etcd-learner cp4"}},
		{name: "a learner whose API server waits", servers: 4, change: func(w *world) {
			w.learner("cp4")
			w.etcd("cp4").AppliedIndex = 10
			w.blockServer("cp4")
		}, state: cluster.StateHealthy, want: []string{"info etcd-learner cp4"}},
		{name: "a learner lost", servers: 4, change: func(w *world) {
			w.learner("cp4")
			w.lose("cp4")
		}, state: cluster.StateDegraded, want: []string{"warning node-unreachable cp4"}},
		{name: "an older copy of a member's data", change: func(w *world) { w.putBack("cp3") }, state: cluster.StateDegraded, want: []string{"critical etcd-data-old cp3"}},
		{name: "an older copy, and no quorum", change: func(w *world) {
			w.putBack("cp3")
			w.lose("cp2")
			w.follow("", 6, "cp1")
			w.blockServer("cp1")
		}, state: cluster.StateNoQuorum, want: []string{"critical no-quorum", "critical node-unreachable cp2", "critical etcd-data-old cp3"}},
		{name: "older copies of two of three", change: func(w *world) {
			w.putBack("cp2")
			w.putBack("cp3")
			w.follow("", 6, "cp1")
			w.blockServer("cp1")
		}, state: cluster.StateNoQuorum, want: []string{"critical no-quorum", "critical etcd-data-old cp2", "critical etcd-data-old cp3"}},
		{name: "an older copy of a member that was removed", change: func(w *world) {
			w.putBack("cp3")
			w.remove("cp3")
		}, state: cluster.StateDegraded, want: []string{"warning etcd-not-a-member cp3", "info etcd-even"}},
		{name: "a voter that does not know it", change: func(w *world) { w.etcd("cp3").Learner = true }, state: cluster.StateDegraded, want: []string{"warning etcd-behind cp3"}},
		{name: "a voter far behind", change: func(w *world) { w.etcd("cp3").AppliedIndex = 94_999 }, state: cluster.StateDegraded, want: []string{"warning etcd-behind cp3"}},
		{name: "a voter a little behind", change: func(w *world) { w.etcd("cp3").AppliedIndex = 95_000 }, state: cluster.StateHealthy},
		{name: "a joiner that never started", servers: 4, change: func(w *world) {
			w.silence("cp4")
			w.blockServer("cp4")
			w.members(unstarted("cp4"))
		}, state: cluster.StateDegraded, want: []string{"warning etcd-never-started cp4", "info etcd-even"}},
		{name: "a joiner that never arrived", servers: 4, change: func(w *world) {
			w.lose("cp4")
			w.members(unstarted("cp4"))
		}, state: cluster.StateDegraded, want: []string{"warning node-unreachable cp4", "info etcd-even"}},
		{name: "a member of no node", change: func(w *world) {
			w.add(cluster.EtcdMember{ID: "f00", Name: "old", PeerURLs: []string{"https://198.18.0.77:2380"}})
		}, state: cluster.StateDegraded, want: []string{"warning etcd-member-unknown", "info etcd-even"}},
		{name: "a member of no node that never started", change: func(w *world) {
			w.add(cluster.EtcdMember{ID: "f00", PeerURLs: []string{"https://198.18.0.77:2380"}})
		}, state: cluster.StateDegraded, want: []string{"warning etcd-member-unknown", "info etcd-even"}},
		{name: "a second member of one node", change: func(w *world) {
			w.add(cluster.EtcdMember{ID: "f00", Name: "cp3", PeerURLs: []string{"https://198.18.0.77:2380"}})
		}, state: cluster.StateDegraded, want: []string{"warning etcd-member-unknown cp3", "info etcd-even"}},
		{name: "a removed member that ends", change: func(w *world) {
			w.silence("cp3")
			w.blockServer("cp3")
			w.phase("cp3", phaseBackoff, "etcd")
			w.remove("cp3")
		}, state: cluster.StateDegraded, want: []string{"warning etcd-not-a-member cp3", "info etcd-even"}},
		{name: "a removed member that answers with the old list", servers: 4, change: func(w *world) {
			old := *w.etcd("cp4")
			w.remove("cp4")
			w.node("cp4").Etcd = &old
			w.follow("", 70, "cp4")
			w.blockServer("cp4")
		}, state: cluster.StateDegraded, want: []string{"warning etcd-not-a-member cp4"}},
		{name: "a member that began a cluster of its own", change: func(w *world) {
			w.etcd("cp3").ID, w.etcd("cp3").Leader, w.etcd("cp3").Term = "f00", "f00", 2
			w.etcd("cp3").Members = []cluster.EtcdMember{{ID: "f00", Name: "cp3"}}
		}, state: cluster.StateDegraded, want: []string{"warning etcd-not-a-member cp3"}},
		{name: "a new cluster of one while the old has no leader", change: func(w *world) {
			w.follow("", 9, "cp2", "cp3")
			w.etcd("cp1").ID, w.etcd("cp1").Leader, w.etcd("cp1").Term = "f00", "f00", 2
			w.etcd("cp1").Members = []cluster.EtcdMember{{ID: "f00", Name: "cp1"}}
		}, state: cluster.StateDegraded, want: []string{"warning etcd-not-a-member cp2", "warning etcd-not-a-member cp3"}},
	}
}

// putBack gives a server an older copy of its member's data.
func (w *world) putBack(node string) {
	w.t.Helper()
	w.silence(node)
	w.etcd(node).Old = &cluster.OldData{Has: 90_000, Had: 99_990, At: noon().Add(-time.Hour)}
	w.phase(node, "waiting", "etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
}

// unstarted takes the name of a node's member away, as it is before its first
// start.
func unstarted(node string) func([]cluster.EtcdMember) []cluster.EtcdMember {
	return func(list []cluster.EtcdMember) []cluster.EtcdMember {
		for i := range list {
			if list[i].Name == node {
				list[i].Name = ""
			}
		}
		return list
	}
}

func spaceScenes() []scene {
	size := func(file, used int64) func(*world) {
		return func(w *world) { w.etcd("cp2").DBBytes, w.etcd("cp2").DBUsedBytes = file, used }
	}
	alarm := func(kind, member string) func(*world) {
		return func(w *world) {
			for _, node := range []string{"cp1", "cp2", "cp3"} {
				w.etcd(node).Alarms = append(w.etcd(node).Alarms, cluster.EtcdAlarm{Member: member, Kind: kind})
			}
		}
	}
	return []scene{
		{name: "an alarm of space", change: func(w *world) {
			size(2*gib, 2*gib-mib)(w)
			alarm(alarmNoSpace, idOf("cp2"))(w)
			w.phase("cp1", phaseBackoff, "kube-controller-manager", "kube-scheduler")
			w.node("cp1").Leaders[0].Renewed = noon().Add(-time.Minute)
		}, state: cluster.StateDegraded, want: []string{"critical etcd-nospace cp2"}},
		{name: "an alarm of space nobody can check", change: func(w *world) {
			alarm(alarmNoSpace, idOf("cp3"))(w)
			w.lose("cp3")
		}, state: cluster.StateDegraded, want: []string{"critical etcd-nospace cp3", "warning node-unreachable cp3"}},
		{name: "an alarm of damage", change: func(w *world) {
			alarm(alarmCorrupt, idOf("cp3"))(w)
			for _, node := range []string{"cp1", "cp2", "cp3"} {
				w.blockServer(node)
				w.phase(node, phaseStarting, "endpoint")
			}
		}, state: cluster.StateDegraded, want: []string{"critical etcd-corrupt cp3"}},
		{name: "an alarm of a damaged member that was removed", change: alarm(alarmCorrupt, "abcdef"), state: cluster.StateDegraded, want: []string{"critical etcd-corrupt"}},
		{name: "a damaged member that ends at each start", change: func(w *world) {
			alarm(alarmCorrupt, idOf("cp3"))(w)
			w.silence("cp3")
			w.phase("cp3", phaseBackoff, "etcd")
		}, state: cluster.StateDegraded, want: []string{"critical etcd-corrupt cp3"}},
		{name: "two full databases, one cure", change: func(w *world) {
			alarm(alarmNoSpace, idOf("cp2"))(w)
			alarm(alarmNoSpace, idOf("cp3"))(w)
			size(2000*mib, 1900*mib)(w)
		}, state: cluster.StateDegraded, want: []string{"critical etcd-nospace"}},
		{name: "an alarm of damage nobody can place", change: alarm(alarmCorrupt, "0"), state: cluster.StateDegraded, want: []string{"critical etcd-corrupt"}},
		{name: "both alarms", change: func(w *world) {
			alarm(alarmCorrupt, idOf("cp3"))(w)
			alarm(alarmNoSpace, idOf("cp2"))(w)
			alarm(alarmNoSpace, idOf("cp2"))(w) // told once
		}, state: cluster.StateDegraded, want: []string{"critical etcd-nospace cp2", "critical etcd-corrupt cp3"}},
		{name: "near the quota", change: size(1700*mib, 1600*mib), state: cluster.StateDegraded, want: []string{"warning etcd-quota-near cp2"}},
		{name: "near the quota and half empty", change: size(1700*mib, 16*mib), state: cluster.StateDegraded, want: []string{"warning etcd-quota-near cp2"}},
		{name: "not near the quota", change: size(1600*mib, 1600*mib), state: cluster.StateHealthy},
		{name: "a quota nobody knows", change: func(w *world) { w.etcd("cp2").QuotaBytes = 0 }, state: cluster.StateHealthy},
		{name: "fragmented", change: size(300*mib, 100*mib), state: cluster.StateHealthy, want: []string{"info etcd-fragmented cp2"}},
		{name: "half in use", change: size(300*mib, 150*mib), state: cluster.StateHealthy},
		{name: "fragmented and small", change: size(100*mib, mib), state: cluster.StateHealthy},
	}
}
