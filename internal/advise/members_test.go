package advise

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"kuorum/internal/cluster"
)

func TestReviewEtcd(t *testing.T) {
	stranger := cluster.EtcdMember{ID: "abc", Name: "old", PeerURLs: []string{"https://198.18.0.99:2380"}}
	for name, test := range map[string]struct {
		change func(*world)
		want   []string // label, state, healthy or why, lag
		state  cluster.State
		codes  []string
	}{
		"well": {
			change: func(*world) {},
			want:   []string{"cp1 leader healthy 0", "cp2 follower healthy 0", "cp3 follower healthy 0"},
			state:  cluster.StateHealthy,
		},
		"what is not etcd's": {
			change: func(w *world) { w.phase("cp2", phaseBackoff, "kube-scheduler"); w.node("cp1").Disk.FreeBytes = 1 },
			want:   []string{"cp1 leader healthy 0", "cp2 follower healthy 0", "cp3 follower healthy 0"},
			state:  cluster.StateHealthy,
		},
		"a machine is off": {
			change: func(w *world) { w.lose("cp3") },
			want:   []string{"cp1 leader healthy 0", "cp2 follower healthy 0", "cp3 down (does not answer: no route to host) 0"},
			state:  cluster.StateDegraded,
		},
		"cut off and behind": {
			change: func(w *world) { w.follow("", 6, "cp2"); w.etcd("cp2").AppliedIndex -= 7 },
			want:   []string{"cp1 leader healthy 0", "cp2 apart (knows no leader) 7", "cp3 follower healthy 0"},
			state:  cluster.StateDegraded,
			codes:  []string{"critical etcd-no-leader cp2"},
		},
		"an old leader": {
			change: func(w *world) { w.follow("cp2", 4, "cp2") },
			want:   []string{"cp1 leader healthy 0", "cp2 apart (follows cp2 in term 4, others cp1 in term 5) 0", "cp3 follower healthy 0"},
			state:  cluster.StateDegraded,
			codes:  []string{"critical etcd-no-leader cp2"},
		},
		"a learner": {
			change: func(w *world) { w.learner("cp3") },
			want:   []string{"cp1 leader healthy 0", "cp2 follower healthy 0", "cp3 learner healthy 0"},
			state:  cluster.StateHealthy,
			codes:  []string{"info etcd-even", "info etcd-learner cp3"},
		},
		"one of no node": {
			change: func(w *world) { w.add(stranger) },
			want: []string{
				"cp1 leader healthy 0", "cp2 follower healthy 0", "cp3 follower healthy 0",
				"old down (is on no node of cluster.yaml, so nobody can ask it) 0",
			},
			state: cluster.StateDegraded,
			codes: []string{"warning etcd-member-unknown", "info etcd-even"},
		},
		"nobody answers": {
			change: func(w *world) { w.lose("cp1", "cp2", "cp3") },
			want: []string{
				"cp1 down (does not answer: no route to host) 0", "cp2 down (does not answer: no route to host) 0",
				"cp3 down (does not answer: no route to host) 0",
			},
			state: cluster.StateNoQuorum,
			codes: []string{"critical no-quorum"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := wellWorld(t, 3, 1)
			test.change(w)
			got := ReviewEtcd(w.spec, w.reports, noon())
			var lines []string
			for _, m := range got.Members {
				health := "healthy"
				if !m.Healthy {
					health = "(" + m.Why + ")"
				}
				lines = append(lines, fmt.Sprintln(m.Label, m.State, health, m.Lag))
			}
			if diff := cmp.Diff(strings.Join(test.want, "\n")+"\n", strings.Join(lines, "")); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(append([]string{}, test.codes...), codes(got.Findings)); diff != "" {
				t.Errorf("findings (-want +got):\n%s", diff)
			}
			whole := w.review()
			if got.State != test.state || got.Quorum != whole.Quorum || got.Leader != whole.Leader {
				t.Errorf("got %s, %s, %q; the whole has %s, %q", got.State, got.Quorum, got.Leader, whole.Quorum, whole.Leader)
			}
			if known := got.State != cluster.StateNoQuorum; got.Known != known {
				t.Errorf("known is %v", got.Known)
			}
		})
	}
}
