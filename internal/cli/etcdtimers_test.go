package cli

import (
	"context"
	"strings"
	"testing"
	"time"

	"kuorum/internal/cluster"
)

func timersWork(t *testing.T, change func([]cluster.NodeReport)) (w *etcdTimers, out func() string) {
	t.Helper()
	spec, err := cluster.New("demo", 3, 0)
	if err != nil {
		t.Fatal(err)
	}
	var members []cluster.EtcdMember
	for i, n := range spec.Servers() {
		members = append(members, cluster.EtcdMember{ID: string("abc"[i]), Name: n.Name, PeerURLs: []string{"https://" + n.Address + ":2380"}})
	}
	var reports []cluster.NodeReport
	for i, n := range spec.Servers() {
		reports = append(reports, cluster.NodeReport{Name: n.Name, Role: n.Role, Address: n.Address, Status: &cluster.NodeStatus{
			Name: n.Name, Ready: true, Etcd: &cluster.EtcdStatus{
				ID: members[i].ID, Leader: "b", Members: members, AppliedIndex: 100, RaftIndex: 100, Term: 3,
				FsyncP99: cluster.Duration(time.Duration(7*(i+1)) * time.Millisecond), PeerRTT: cluster.Duration(300 * time.Microsecond),
				Heartbeat: spec.Spec.Etcd.Heartbeat, ElectionTimeout: spec.Spec.Etcd.ElectionTimeout,
			},
		}})
	}
	change(reports)
	a, out, _ := testApp(t, nil)
	w = &etcdTimers{etcdWork: etcdWork{app: a, dryRun: true, target: target{spec: spec, reports: func(context.Context) ([]cluster.NodeReport, error) {
		return reports, nil
	}}}}
	return w, out
}

func TestTimersShowWhatIsPossible(t *testing.T) {
	w, out := timersWork(t, func([]cluster.NodeReport) {})
	if err := w.show(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"cp3      100ms       1s                 21ms        300\u00b5s", "possible: heartbeat 25ms, election timeout 250ms", "fsync p99 21ms"} {
		if !strings.Contains(out(), want) {
			t.Errorf("%q is missing in\n%s", want, out())
		}
	}
}

func TestTimersToSet(t *testing.T) {
	none := func([]cluster.NodeReport) {}
	for _, test := range []struct {
		name   string
		flags  etcdTimers
		change func([]cluster.NodeReport)
		dry    bool
		exit   int
		says   string
	}{
		{"measured", etcdTimers{apply: true}, none, true, 0, "write heartbeat 25ms and election timeout 250ms to cluster.yaml"},
		{"chosen", etcdTimers{heartbeat: 50 * time.Millisecond}, none, true, 0, "write heartbeat 50ms and election timeout 500ms"},
		{"both chosen", etcdTimers{heartbeat: 50 * time.Millisecond, election: time.Second}, none, true, 0, "write heartbeat 50ms and election timeout 1s"},
		{"half chosen", etcdTimers{election: time.Second}, none, true, cluster.ExitUsage, "goes with --heartbeat"},
		{"too short", etcdTimers{heartbeat: time.Millisecond}, none, true, cluster.ExitUsage, "heartbeat"},
		{"an election too soon", etcdTimers{heartbeat: 100 * time.Millisecond, election: 200 * time.Millisecond}, none, true, cluster.ExitUsage, "5 heartbeats"},
		{"a member is away", etcdTimers{apply: true}, func(r []cluster.NodeReport) { r[2].Status, r[2].Error = nil, "it is off" }, false, cluster.ExitRefused, "the others must carry"},
	} {
		t.Run(test.name, func(t *testing.T) {
			w, out := timersWork(t, test.change)
			w.apply, w.heartbeat, w.election, w.dryRun = test.flags.apply, test.flags.heartbeat, test.flags.election, test.dry
			err := w.show(t.Context())
			text := out()
			if err != nil {
				text = err.Error()
			}
			if exitOf(err) != test.exit || !strings.Contains(text, test.says) {
				t.Errorf("exit code %d, %v:\n%s", exitOf(err), err, text)
			}
			if test.exit == 0 && strings.Index(text, "etcd of cp3 runs") > strings.Index(text, "etcd of cp2 runs") {
				t.Errorf("the leader is not the last:\n%s", text)
			}
		})
	}
}
