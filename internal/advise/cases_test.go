package advise

import (
	"time"

	"kuorum/internal/cluster"
)

// scene is one thing that is wrong, and all that is to be said of it.
type scene struct {
	name             string
	servers, workers int // 0 servers mean 3
	etcd             int // nodes of etcd's own
	external         int // members that somebody else runs
	change           func(w *world)
	state            cluster.State
	want             []string // as codes writes them
}

func scenes() []scene {
	all := []scene{
		{name: "nothing wrong", workers: 2, change: func(*world) {}, state: cluster.StateHealthy},
		{name: "one server", servers: 1, change: func(*world) {}, state: cluster.StateHealthy, want: []string{"info etcd-single"}},
		{name: "two servers", servers: 2, change: func(*world) {}, state: cluster.StateHealthy, want: []string{"info etcd-even"}},
		{name: "four servers", servers: 4, change: func(*world) {}, state: cluster.StateHealthy, want: []string{"info etcd-even"}},
	}
	for _, list := range [][]scene{
		lossScenes(), partitionScenes(), memberScenes(), componentScenes(), spaceScenes(), diskScenes(), clockScenes(), lostScenes(), otherScenes(), apartScenes(), externalScenes(),
	} {
		all = append(all, list...)
	}
	return all
}

func lossScenes() []scene {
	return []scene{
		{name: "a server lost", change: func(w *world) { w.lose("cp3") }, state: cluster.StateDegraded, want: []string{
			"warning node-unreachable cp3",
		}},
		{name: "a worker lost", workers: 1, change: func(w *world) { w.lose("w1") }, state: cluster.StateDegraded, want: []string{
			"warning node-unreachable w1",
		}},
		{name: "a node nobody asked", change: func(w *world) { w.reports = w.reports[:2] }, state: cluster.StateDegraded, want: []string{
			"warning node-unreachable cp3",
		}},
		{name: "an empty answer", change: func(w *world) { w.report("cp3").Status = nil }, state: cluster.StateDegraded, want: []string{
			"warning node-unreachable cp3",
		}},
		{name: "two of three servers lost", workers: 1, change: func(w *world) {
			w.lose("cp1", "cp2", "w1")
			w.follow("", 6, "cp3")
			w.blockServer("cp3")
			w.phase("cp3", phaseStarting, "endpoint")
		}, state: cluster.StateNoQuorum, want: []string{
			"critical no-quorum", "critical node-unreachable cp1", "critical node-unreachable cp2", "warning node-unreachable w1",
		}},
		{name: "the last of three restarted alone", change: func(w *world) {
			w.lose("cp1", "cp2")
			w.silence("cp3") // etcd serves nobody before it has joined
			w.blockServer("cp3")
		}, state: cluster.StateNoQuorum, want: []string{
			"critical no-quorum", "critical node-unreachable cp1", "critical node-unreachable cp2",
		}},
		{name: "all lost", change: func(w *world) { w.lose("cp1", "cp2", "cp3") }, state: cluster.StateNoQuorum, want: []string{
			"critical no-quorum", "critical node-unreachable cp1", "critical node-unreachable cp2", "critical node-unreachable cp3",
		}},
		{name: "two of five servers lost", servers: 5, change: func(w *world) { w.lose("cp4", "cp5") }, state: cluster.StateDegraded, want: []string{
			"warning node-unreachable cp4", "warning node-unreachable cp5",
		}},
		{name: "three of five servers lost", servers: 5, change: func(w *world) {
			w.lose("cp3", "cp4", "cp5")
			w.follow("", 5, "cp1", "cp2")
		}, state: cluster.StateNoQuorum, want: []string{
			"critical no-quorum", "critical node-unreachable cp3", "critical node-unreachable cp4", "critical node-unreachable cp5",
		}},
		{name: "etcd of two servers keeps ending", change: func(w *world) {
			for _, node := range []string{"cp1", "cp2"} {
				w.blockServer(node)
				w.phase(node, phaseBackoff, "etcd")
			}
			w.silence("cp1", "cp2")
			w.follow("", 5, "cp3")
			w.blockServer("cp3")
		}, state: cluster.StateNoQuorum, want: []string{
			"critical no-quorum", "critical component-crash-loop cp1", "critical component-crash-loop cp2",
		}},
		{name: "etcd of two servers is stopped", change: func(w *world) {
			w.phase("cp1", "stopped", "etcd")
			w.phase("cp2", "stopped", "etcd")
			w.silence("cp1", "cp2")
			w.follow("", 5, "cp3")
		}, state: cluster.StateNoQuorum, want: []string{
			"critical no-quorum", "critical etcd-down cp1", "critical etcd-down cp2",
		}},
		{name: "an election", change: func(w *world) {
			w.follow("", 6, "cp2", "cp3")
			w.follow("", 5, "cp1")
		}, state: cluster.StateNoQuorum, want: []string{"critical no-quorum"}},
		{name: "one server that does not answer", servers: 1, change: func(w *world) {
			w.silence("cp1")
			w.phase("cp1", phaseBackoff, "etcd")
		}, state: cluster.StateNoQuorum, want: []string{"critical no-quorum", "critical component-crash-loop cp1"}},
	}
}

func partitionScenes() []scene {
	apart := []string{"critical etcd-no-leader cp1"}
	return []scene{
		{name: "one server cut off knows no leader", change: func(w *world) {
			w.follow("cp2", 6, "cp2", "cp3")
			w.follow("", 5, "cp1")
			w.blockServer("cp1")
		}, state: cluster.StateDegraded, want: apart},
		{name: "an old leader cut off still names itself", change: func(w *world) {
			w.follow("cp2", 6, "cp2", "cp3")
			w.etcd("cp1").AppliedIndex += 10
		}, state: cluster.StateDegraded, want: apart},
		{name: "one server cut off goes to higher terms alone", change: func(w *world) {
			w.follow("cp2", 6, "cp2", "cp3")
			w.follow("", 90, "cp1")
			w.blockServer("cp1")
		}, state: cluster.StateDegraded, want: apart},
		{name: "the asker sees the minority only", change: func(w *world) {
			w.lose("cp2", "cp3")
			w.follow("", 5, "cp1")
		}, state: cluster.StateNoQuorum, want: []string{
			"critical no-quorum", "critical node-unreachable cp2", "critical node-unreachable cp3",
		}},
		{name: "a learner cut off", change: func(w *world) {
			w.learner("cp3")
			w.follow("", 5, "cp3")
		}, state: cluster.StateDegraded, want: []string{"critical etcd-no-leader cp3", "info etcd-even"}},
	}
}

func componentScenes() []scene {
	down := func(node, phase string, names ...string) func(*world) {
		return func(w *world) { w.phase(node, phase, names...) }
	}
	return []scene{
		{name: "kubelet not ready", workers: 1, change: down("w1", phaseStarting, "kubelet"), state: cluster.StateDegraded, want: []string{"critical component-down w1"}},
		{name: "containerd takes kubelet with it", change: func(w *world) {
			w.phase("cp1", phaseStarting, "containerd")
			w.phase("cp1", phaseBackoff, "kubelet")
			w.phase("cp1", "waiting", "coredns", "kube-proxy", "flannel")
		}, state: cluster.StateDegraded, want: []string{"critical component-down cp1"}},
		{name: "two causes on one node", change: down("cp1", phaseStarting, "containerd", "kube-scheduler"), state: cluster.StateDegraded, want: []string{
			"critical component-down cp1", "warning component-down cp1",
		}},
		{name: "coredns keeps ending", change: down("cp2", phaseBackoff, "coredns"), state: cluster.StateDegraded, want: []string{"warning component-crash-loop cp2"}},
		{name: "kube-apiserver keeps ending", change: func(w *world) {
			w.phase("cp1", phaseBackoff, "kube-apiserver")
			w.phase("cp1", "waiting", "kube-scheduler", "kube-controller-manager")
		}, state: cluster.StateDegraded, want: []string{"critical component-crash-loop cp1"}},
		{name: "waiting for nothing", change: down("cp1", "waiting", "kube-proxy"), state: cluster.StateDegraded, want: []string{"warning component-down cp1"}},
		{name: "no API server works", workers: 1, change: func(w *world) {
			for _, node := range []string{"cp1", "cp2", "cp3"} {
				w.phase(node, phaseStarting, "kube-apiserver", "endpoint")
			}
			w.phase("w1", phaseStarting, "endpoint")
		}, state: cluster.StateDegraded, want: []string{
			"critical component-down cp1", "critical component-down cp2", "critical component-down cp3",
		}},
		{name: "a worker reaches no API server", workers: 1, change: down("w1", phaseStarting, "endpoint", "kubelet", "coredns"), state: cluster.StateDegraded, want: []string{
			"warning component-down w1",
		}},
		{name: "etcd answers and is not ready", change: down("cp1", phaseStarting, "etcd", "kube-apiserver"), state: cluster.StateDegraded, want: []string{
			"critical component-down cp1",
		}},
		{name: "etcd does not answer", change: func(w *world) {
			w.silence("cp1")
			w.blockServer("cp1")
		}, state: cluster.StateDegraded, want: []string{"critical etcd-down cp1"}},
		{name: "a server runs no etcd", change: func(w *world) { w.node("cp1").Etcd = nil }, state: cluster.StateDegraded, want: []string{"critical etcd-down cp1"}},
		{name: "etcd keeps ending", change: func(w *world) {
			w.silence("cp1")
			w.blockServer("cp1")
			w.phase("cp1", phaseBackoff, "etcd")
		}, state: cluster.StateDegraded, want: []string{"critical component-crash-loop cp1"}},
	}
}

func otherScenes() []scene {
	stale := func(name string) func(*world) {
		return func(w *world) {
			for _, node := range []string{"cp1", "cp2", "cp3"} {
				for i := range w.node(node).Leaders {
					if l := &w.node(node).Leaders[i]; l.Name == name {
						l.Renewed = noon().Add(-time.Minute)
					}
				}
			}
		}
	}
	given := func(ago time.Duration) func(*world) { // up, of a scheduler that ended
		return func(w *world) {
			for _, node := range []string{"cp1", "cp2", "cp3"} {
				w.node(node).Leaders[0] = cluster.LeaseStatus{Name: "kube-scheduler", Renewed: noon().Add(-ago), Lasts: cluster.Duration(time.Second)}
			}
		}
	}
	// vip has each server in that state; the last is whom backups take for the holder.
	vip := func(states [3]string, holder string, more ...func(*world)) func(*world) {
		return func(w *world) {
			at := ""
			if holder != "" {
				at = w.report(holder).Address
			}
			for i, node := range []string{"cp1", "cp2", "cp3"} {
				w.node(node).VIP = &cluster.VIPStatus{State: states[i], Holder: at}
				if states[i] == "" {
					w.node(node).VIP.Error = "connection refused"
				}
			}
			for _, change := range more {
				change(w)
			}
		}
	}
	return []scene{
		{name: "a virtual IP", change: vip([3]string{"backup", "active", "backup"}, "cp2"), state: cluster.StateHealthy},
		{name: "a virtual IP that nobody holds", change: vip([3]string{"backup", "backup", "initialize"}, ""), state: cluster.StateDegraded, want: []string{"critical vip-nobody"}},
		{name: "a virtual IP that is believed elsewhere", change: vip([3]string{"backup", "backup", "backup"}, "cp2"), state: cluster.StateDegraded, want: []string{"critical vip-nobody"}},
		{name: "a virtual IP at two servers", change: vip([3]string{"active", "backup", "active"}, "cp1"), state: cluster.StateDegraded, want: []string{"critical vip-twice"}},
		{name: "a virtual IP at a server without an agent", change: vip([3]string{"backup", "backup", ""}, "cp3", func(w *world) { w.lose("cp3") }), state: cluster.StateDegraded, want: []string{"warning node-unreachable cp3"}},
		{name: "a virtual IP at two servers, and perhaps at a third", change: vip([3]string{"active", "active", ""}, "cp3", func(w *world) { w.lose("cp3") }), state: cluster.StateDegraded, want: []string{"critical vip-twice", "warning node-unreachable cp3"}},
		{name: "a virtual IP in which nobody takes part", change: vip([3]string{"", "", ""}, ""), state: cluster.StateDegraded, want: []string{"critical vip-nobody"}},
		{name: "a virtual IP nobody can tell of", change: vip([3]string{"", "", ""}, "", func(w *world) {
			for _, node := range []string{"cp1", "cp2", "cp3"} {
				w.phase(node, phaseBackoff, "endpoint")
			}
		}), state: cluster.StateDegraded, want: []string{"warning component-crash-loop cp1", "warning component-crash-loop cp2", "warning component-crash-loop cp3"}},
		{name: "a lease that was given up", change: given(6 * time.Second), state: cluster.StateHealthy},
		{name: "a lease that was given up, and nobody takes it", change: given(7 * time.Second), state: cluster.StateDegraded, want: []string{"warning no-lease-holder"}},
		{name: "two versions", workers: 1, change: func(w *world) { w.node("w1").Version = "v2" }, state: cluster.StateHealthy, want: []string{"info version-differs"}},
		{name: "a lease nobody renews", change: stale("kube-scheduler"), state: cluster.StateDegraded, want: []string{"warning no-lease-holder"}},
		{name: "a lease that one node sees late", change: func(w *world) {
			w.node("cp1").Leaders[0].Renewed = noon().Add(-time.Minute)
		}, state: cluster.StateHealthy},
		{name: "a lease nobody renews since no program runs", change: func(w *world) {
			stale("kube-scheduler")(w)
			for _, node := range []string{"cp1", "cp2", "cp3"} {
				w.phase(node, phaseStarting, "kube-scheduler")
			}
		}, state: cluster.StateDegraded, want: []string{
			"warning component-down cp1", "warning component-down cp2", "warning component-down cp3",
		}},
		{name: "a lease nobody can renew", change: func(w *world) {
			stale("kube-scheduler")(w)
			w.follow("", 5, "cp1", "cp2", "cp3")
		}, state: cluster.StateNoQuorum, want: []string{"critical no-quorum"}},
		{name: "a lease renewed by a clock that is behind", change: func(w *world) {
			stale("kube-scheduler")(w)
			w.report("cp2").ClockOffset = cluster.Duration(-58 * time.Second)
		}, state: cluster.StateDegraded, want: []string{"warning clock-off cp2"}},
	}
}
