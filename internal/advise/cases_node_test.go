package advise

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"kuorum/internal/cluster"
)

func diskScenes() []scene {
	disk := func(free, size int64) func(*world) {
		return func(w *world) { w.node("w1").Disk = cluster.DiskStatus{FreeBytes: free, SizeBytes: size} }
	}
	fsync := func(d time.Duration) func(*world) {
		return func(w *world) { w.etcd("cp1").FsyncP99 = cluster.Duration(d) }
	}
	return []scene{
		{name: "disk full", workers: 1, change: disk(511*mib, 2*gib), state: cluster.StateDegraded, want: []string{"critical disk-full w1"}},
		{name: "disk low", workers: 1, change: disk(4*gib, 100*gib), state: cluster.StateDegraded, want: []string{"warning disk-low w1"}},
		{name: "little of a large disk", workers: 1, change: disk(6*gib, 1000*gib), state: cluster.StateHealthy},
		{name: "much of a small disk", workers: 1, change: disk(2*gib, 8*gib), state: cluster.StateHealthy},
		{name: "a disk nobody knows", workers: 1, change: disk(0, 0), state: cluster.StateHealthy},
		{name: "a good fsync", change: fsync(10 * time.Millisecond), state: cluster.StateHealthy},
		{name: "a slow fsync", change: fsync(11 * time.Millisecond), state: cluster.StateHealthy, want: []string{"info disk-slow cp1"}},
		{name: "an fsync at the limit", change: fsync(100 * time.Millisecond), state: cluster.StateHealthy, want: []string{"info disk-slow cp1"}},
		{name: "a bad fsync", change: fsync(101 * time.Millisecond), state: cluster.StateDegraded, want: []string{"warning disk-slow cp1"}},
		{name: "a bad fsync for short elections", change: func(w *world) {
			w.spec.Spec.Etcd.ElectionTimeout = cluster.Duration(500 * time.Millisecond)
			fsync(51 * time.Millisecond)(w)
		}, state: cluster.StateDegraded, want: []string{"warning disk-slow cp1"}},
		{name: "a bad fsync for long elections", change: func(w *world) {
			w.spec.Spec.Etcd.ElectionTimeout = cluster.Duration(5 * time.Second)
			fsync(101 * time.Millisecond)(w)
		}, state: cluster.StateDegraded, want: []string{"warning disk-slow cp1"}},
	}
}

func clockScenes() []scene {
	offsets := func(list ...time.Duration) func(*world) {
		return func(w *world) {
			for i, d := range list {
				w.setClock(i, d)
			}
		}
	}
	ends := func(after ...time.Duration) func(*world) {
		return func(w *world) {
			list := &w.node("cp1").Certificates
			for i, d := range after {
				*list = append(*list, cluster.CertificateStatus{
					File: fmt.Sprintf("pki/%d.crt", i), From: noon().Add(d - 365*day), Until: noon().Add(d),
				})
			}
		}
	}
	short := func(left time.Duration) func(*world) {
		return func(w *world) {
			w.node("cp1").Certificates = []cluster.CertificateStatus{{File: "short", From: noon().Add(left - 10*day), Until: noon().Add(left)}}
		}
	}
	return []scene{
		{name: "a clock a little ahead", change: offsets(time.Second), state: cluster.StateHealthy},
		{name: "a clock ahead", change: offsets(1100 * time.Millisecond), state: cluster.StateDegraded, want: []string{"warning clock-off cp1"}},
		{name: "a clock behind", change: offsets(0, -2*time.Second), state: cluster.StateDegraded, want: []string{"warning clock-off cp2"}},
		{name: "a clock far behind", change: offsets(0, -6*time.Minute), state: cluster.StateDegraded, want: []string{"critical clock-off cp2"}},
		{name: "the asker's clock", change: offsets(time.Hour, time.Hour+time.Second, time.Hour), state: cluster.StateDegraded, want: []string{"warning clock-off"}},
		{name: "the asker's clock, one lost", change: func(w *world) {
			offsets(-time.Hour, -time.Hour)(w)
			w.lose("cp3")
		}, state: cluster.StateDegraded, want: []string{"warning clock-off", "warning node-unreachable cp3"}},
		{name: "two clocks of three", change: offsets(3*time.Second, 3*time.Second), state: cluster.StateDegraded, want: []string{"warning clock-off cp1", "warning clock-off cp2"}},
		{name: "clocks in all directions", change: offsets(2*time.Second, -2*time.Second, 10*time.Minute), state: cluster.StateDegraded, want: []string{
			"critical clock-off cp3", "warning clock-off cp1", "warning clock-off cp2",
		}},
		{name: "the only clock", servers: 1, change: offsets(2 * time.Second), state: cluster.StateDegraded, want: []string{"warning clock-off cp1", "info etcd-single"}},

		{name: "certificates expire", change: ends(29*day, 20*day), state: cluster.StateDegraded, want: []string{"warning certificate-expiring cp1"}},
		{name: "certificates last", change: ends(31*day, 400*day), state: cluster.StateHealthy},
		{name: "certificates expired", change: ends(-day, 20*day), state: cluster.StateDegraded, want: []string{"critical certificate-expired cp1"}},
		{name: "a certificate expires now", change: ends(0), state: cluster.StateDegraded, want: []string{"critical certificate-expired cp1"}},
		{name: "a short certificate lasts", change: short(3 * day), state: cluster.StateHealthy},
		{name: "a short certificate expires", change: short(47 * time.Hour), state: cluster.StateDegraded, want: []string{"warning certificate-expiring cp1"}},
	}
}

func lostScenes() []scene {
	lost := func(addresses []string, nodes ...string) func(*world) {
		return func(w *world) {
			for _, node := range nodes {
				s := w.node(node)
				s.Lost, s.Addresses, s.Ready, s.Leaders = w.report(node).Address, addresses, false, nil
				for _, c := range s.Components {
					w.phase(node, "waiting", c.Name)
				}
				if s.Etcd != nil {
					w.silence(node)
				}
			}
		}
	}
	return []scene{
		{name: "a worker at another address", workers: 1, change: lost([]string{"198.18.0.64"}, "w1"), state: cluster.StateDegraded, want: []string{"critical address-lost w1"}},
		{name: "a server at another address", change: lost([]string{"198.18.0.62"}, "cp2"), state: cluster.StateDegraded, want: []string{"critical address-lost cp2"}},
		{name: "a server without address", change: lost(nil, "cp2"), state: cluster.StateDegraded, want: []string{"critical address-lost cp2"}},
		{name: "all servers at other addresses", change: lost([]string{"198.18.0.62"}, "cp1", "cp2", "cp3"), state: cluster.StateNoQuorum, want: []string{
			"critical no-quorum", "critical address-lost cp1", "critical address-lost cp2", "critical address-lost cp3",
		}},
	}
}

// TestLostSaysWhatToDo: the one command that brings a cluster back whose servers
// have all moved is told with its quorum.
func TestLostSaysWhatToDo(t *testing.T) {
	w := wellWorld(t, 3, 0)
	for _, node := range []string{"cp1", "cp2", "cp3"} {
		w.node(node).Lost, w.node(node).Addresses = w.report(node).Address, []string{"198.18.0.6" + node[2:], "10.0.0.1"}
		w.silence(node)
	}
	var do []string
	for _, f := range w.review().Findings {
		do = append(do, f.Code+": "+f.Do)
	}
	want := []string{
		"no-quorum: kuorum node address cp1=198.18.0.61 cp2=198.18.0.62 cp3=198.18.0.63",
		"address-lost: kuorum node address cp1=198.18.0.61",
		"address-lost: kuorum node address cp2=198.18.0.62",
		"address-lost: kuorum node address cp3=198.18.0.63",
	}
	if diff := cmp.Diff(want, do); diff != "" {
		t.Error(diff)
	}
}
