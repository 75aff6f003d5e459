package advise

import "kuorum/internal/cluster"

// apartScenes are of clusters whose etcd runs on machines of its own.
func apartScenes() []scene {
	return []scene{
		{name: "etcd apart, nothing wrong", etcd: 3, servers: 2, workers: 1, change: func(*world) {}, state: cluster.StateHealthy},
		{name: "an etcd node alone", etcd: 1, servers: 3, change: func(*world) {}, state: cluster.StateHealthy, want: []string{"info etcd-single"}},
		{name: "four etcd nodes", etcd: 4, servers: 1, change: func(*world) {}, state: cluster.StateHealthy, want: []string{"info etcd-even"}},
		{name: "all servers lost, etcd well", etcd: 3, servers: 2, change: func(w *world) { w.lose("cp1", "cp2") }, state: cluster.StateDegraded, want: []string{
			"warning node-unreachable cp1", "warning node-unreachable cp2",
		}},
		{name: "an etcd node lost", etcd: 3, servers: 2, change: func(w *world) { w.lose("e3") }, state: cluster.StateDegraded, want: []string{
			"warning node-unreachable e3",
		}},
		{name: "two etcd nodes and a server lost", etcd: 3, servers: 2, change: func(w *world) {
			w.lose("e1", "e2", "cp2")
			w.follow("", 6, "e3")
			w.phase("e3", phaseStarting, "etcd")
			w.phase("cp1", phaseStarting, "kube-apiserver")
			w.phase("cp1", "waiting", "kube-controller-manager", "kube-scheduler")
		}, state: cluster.StateNoQuorum, want: []string{
			"critical no-quorum", "critical node-unreachable e1", "critical node-unreachable e2", "warning node-unreachable cp2",
		}},
		{name: "all etcd nodes lost", etcd: 3, servers: 1, change: func(w *world) {
			w.lose("e1", "e2", "e3")
			w.phase("cp1", phaseStarting, "kube-apiserver", "endpoint")
		}, state: cluster.StateNoQuorum, want: []string{
			"critical no-quorum", "critical node-unreachable e1", "critical node-unreachable e2", "critical node-unreachable e3",
		}},
		{name: "an API server without etcd of its own keeps ending", etcd: 3, servers: 2, change: func(w *world) {
			w.phase("cp1", phaseBackoff, "kube-apiserver")
			w.phase("cp1", "waiting", "kube-controller-manager")
		}, state: cluster.StateDegraded, want: []string{"critical component-crash-loop cp1"}},
		{name: "etcd of an etcd node is silent", etcd: 3, servers: 2, change: func(w *world) {
			w.silence("e2")
			w.phase("e2", phaseStarting, "etcd")
		}, state: cluster.StateDegraded, want: []string{"critical etcd-down e2"}},
		{name: "an etcd node that is no member", etcd: 3, servers: 2, change: func(w *world) {
			w.silence("e3")
			w.phase("e3", phaseBackoff, "etcd")
			w.remove("e3")
		}, state: cluster.StateDegraded, want: []string{"warning etcd-not-a-member e3", "info etcd-even"}},
		{name: "API servers with an old list", etcd: 3, servers: 2, change: func(w *world) {
			w.node("cp1").Stale, w.node("cp2").Stale = []string{"kube-apiserver"}, []string{"kube-apiserver"}
		}, state: cluster.StateHealthy, want: []string{"info restart-due"}},
	}
}
