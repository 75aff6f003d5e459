package lab

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"kuorum/internal/cluster"
	"kuorum/internal/fault"
	"kuorum/internal/host"
)

// TestHolderOf: of two that say so it is the last to take it.
func TestHolderOf(t *testing.T) {
	t.Parallel()
	at := func(state string, minute int) *cluster.NodeStatus {
		return &cluster.NodeStatus{VIP: &cluster.VIPStatus{State: state, Since: time.Date(2026, 1, 1, 0, minute, 0, 0, time.UTC)}}
	}
	reports := []cluster.NodeReport{
		{Name: "off"},
		{Name: "worker", Status: &cluster.NodeStatus{}},
		{Name: "waits", Status: at(cluster.VIPBackup, 9)},
		{Name: "late", Status: at(cluster.VIPActive, 5)},
		{Name: "early", Status: at(cluster.VIPActive, 1)},
	}
	if got := holderOf(reports); got != "late" {
		t.Errorf("it is at %q", got)
	}
	if got := holderOf(reports[:3]); got != "" {
		t.Errorf("nobody has it, and it is at %q", got)
	}
}

func TestLeaderOf(t *testing.T) {
	member := func(name, id, leader string, term uint64) cluster.NodeReport {
		return cluster.NodeReport{Name: name, Status: &cluster.NodeStatus{Etcd: &cluster.EtcdStatus{ID: id, Leader: leader, Term: term}}}
	}
	silent := cluster.NodeReport{Name: "cp9", Error: "no answer"}
	worker := cluster.NodeReport{Name: "w1", Status: &cluster.NodeStatus{}}
	down := member("cp8", "", "", 0)
	for _, test := range []struct {
		name    string
		reports []cluster.NodeReport
		want    string
	}{
		{"nobody", nil, ""},
		{"nobody that leads", []cluster.NodeReport{silent, worker, down, member("cp1", "a", "b", 2), member("cp2", "c", "", 3)}, ""},
		{"one", []cluster.NodeReport{silent, member("cp1", "a", "b", 2), member("cp2", "b", "b", 2), worker, down}, "cp2"},
		{"one that is cut off", []cluster.NodeReport{member("cp1", "a", "a", 2), member("cp2", "b", "b", 3), member("cp3", "c", "b", 3)}, "cp2"},
		{"the same, seen first", []cluster.NodeReport{member("cp1", "b", "b", 3), member("cp2", "a", "a", 2)}, "cp1"},
	} {
		if got := leaderOf(test.reports); got != test.want {
			t.Errorf("%s: got %q, want %q", test.name, got, test.want)
		}
	}
}

// TestFaultsOfALab goes through the control socket's handler as far as it goes
// on machines that are off.
func TestFaultsOfALab(t *testing.T) {
	_, d := testDaemon(t, 2, 1)
	mux := d.handler()
	ask := func(method, query string) error {
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), method, fault.Path+query, nil))
		if w.Code == http.StatusOK {
			return nil
		}
		return refusal(w.Result().Status, w.Body.Bytes())
	}
	for _, test := range []struct {
		method, query string
		exit          int
		says          string
	}{
		{"POST", `?order={"kind":"pause","target":"cp9"}`, cluster.ExitUsage, `there is no machine "cp9": did you mean cp1? there are cp1, cp2, w1, leader, vip`},
		{"POST", `?order={"kind":"pause","target":"leader"}`, cluster.ExitNoQuorum, "there is no leader now: no member of etcd on the lab's machines says that it leads"},
		{"POST", `?order={"kind":"kill","target":"vip/haproxy"}`, cluster.ExitRefused, "nobody holds a virtual IP now: no agent says that its node does"},
		{"POST", `?order={"kind":"pause","target":"cp1"}`, cluster.ExitNoQuorum, "machine cp1 is off"},
		{"POST", `?order={"kind":"kill","target":"cp1/etcd"}`, cluster.ExitNoQuorum, "machine cp1 is off"},
		{"POST", `?order={"kind":"cut","target":"cp1"}`, cluster.ExitError, "there is no switch"},
		{"DELETE", "?id=f7", cluster.ExitUsage, `there is no fault "f7"`},
		{"DELETE", "", 0, ""},
		{"POST", `?order={"kind":"kill","target":"cp1"}`, 0, ""},
	} {
		err := ask(test.method, test.query)
		exit, says := 0, ""
		if err != nil {
			exit, says = cluster.ExitError, err.Error()
		}
		if p, ok := errors.AsType[*cluster.Problem](err); ok {
			exit = p.ExitCode()
		}
		if exit != test.exit || says != test.says {
			t.Errorf("%s %s: exit code %d, it says %q", test.method, test.query, exit, says)
		}
	}
	if list := d.faults.List(); len(list) != 1 || list[0].Why != fault.EndOnce {
		t.Errorf("the account has %+v", list)
	}
	if err := d.setAddress(t.Context(), "cp2", "198.18.0.62"); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]string{"cp1": "mc612000b", "cp2": "mc612003e", "w1": "mc6120065"}, d.Ports()); diff != "" {
		t.Errorf("the cables' ends:\n%s", diff)
	}
	for _, err := range []error{d.Freeze(t.Context(), "x"), d.Thaw("x"), d.PowerOff(t.Context(), "x"), d.Signal("x", "etcd", syscall.SIGKILL)} {
		if err == nil {
			t.Error("a machine that does not exist was broken")
		}
	}
	if err := d.Signal("cp1", "etcd", syscall.SIGCONT); !errors.Is(err, host.ErrGone) {
		t.Errorf("a machine that is off: %v", err)
	}
}

// TestFrozenMachineLosesItsPower with each way to freeze that this host has: a
// process that stands still ends like any other, and the next boot is not frozen.
func TestFrozenMachineLosesItsPower(t *testing.T) {
	all, err := host.MountedHierarchies()
	if err != nil {
		t.Fatal(err)
	}
	isV2 := func(h host.Hierarchy) bool { return h.V2 }
	for name, hierarchies := range map[string][]host.Hierarchy{"all": all, "v1": slices.DeleteFunc(slices.Clone(all), isV2)} {
		if len(hierarchies) == 0 {
			continue // a host with v2 alone
		}
		t.Run(name, func(t *testing.T) {
			group := host.NewCgroup(hierarchies, fmt.Sprintf("/kuorum-lab-%d-%s", os.Getpid(), name))
			limited, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 30*time.Second)
			t.Cleanup(func() {
				defer cancel()
				if err := group.Remove(limited); err != nil {
					t.Error(err)
				}
			})
			ours, theirs, err := socketPair()
			if err != nil {
				t.Fatal(err)
			}
			defer theirs.Close()
			cmd := exec.Command("sleep", "300")
			if err := errors.Join(group.Create(), cmd.Start()); err != nil {
				t.Fatal(err)
			}
			if err := group.Add(cmd.Process.Pid); err != nil {
				t.Fatal(err)
			}
			told := make(chan string, 1)
			m := &Machine{Node: cluster.Node{Name: "cp1"}, group: group, init: cmd, wire: ours, off: make(chan struct{})}
			m.whenOff = func(name string, _ time.Time) { told <- name }
			go m.wait(cmd, m.off)
			if err := m.freeze(limited); err != nil {
				t.Fatal(err)
			}
			if err := m.PowerOff(limited); err != nil {
				t.Fatal(err)
			}
			if m.init != nil || len(group.PIDs()) != 0 {
				t.Errorf("it is on: %v", group.PIDs())
			}
			select {
			case name := <-told:
				if name != "cp1" {
					t.Errorf("%s went off", name)
				}
			case <-limited.Done():
				t.Error("nobody was told")
			}
		})
	}
}

// inMachine stands for a machine's init with an agent, and etcd which that has
// recorded: in namespaces of its own, where other numbers hold.
const inMachine = `
	mount --make-rprivate /
	mount -t tmpfs tmpfs /run
	mkdir -p /run/kuorum/components
	cd /run
	echo 'while :; do sleep 1; done' > agent
	sh agent &
	KUORUM_LAUNCH="$1" setsid sleep 300 &
	echo '{"name": "etcd", "pid": 2, "launch": "'"$1"'"}' > /run/kuorum/components/etcd.json
	wait`

// TestSignalsReachAMachine: a component of another pid namespace gets the
// signal that is meant for it, also while it, and the agent, stand still.
func TestSignalsReachAMachine(t *testing.T) {
	launch := fmt.Sprintf("test-%d", os.Getpid())
	cmd := exec.Command("sh", "-ec", inMachine, "sh", launch)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = cmd.Process.Kill(), cmd.Wait() })
	m := &Machine{Node: cluster.Node{Name: "cp1"}, init: cmd}
	await := func(what string, done func() bool) {
		t.Helper()
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for end := time.Now().Add(30 * time.Second); !done(); <-tick.C {
			if time.Now().After(end) {
				t.Fatal("not so: ", what)
			}
		}
	}
	find := func() (int, error) {
		pid, _, err := host.FindLeader("KUORUM_LAUNCH=" + launch)
		return pid, err
	}
	await("it runs", func() bool {
		return m.signal("etcd", syscall.SIGCONT) == nil && m.signal("agent", syscall.SIGSTOP) == nil
	})
	pid, err := find()
	if err != nil {
		t.Fatal(err)
	}
	state := func() string {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return "gone"
		}
		_, rest, _ := strings.Cut(string(data), ") ")
		return rest[:1]
	}
	if err := m.signal("etcd", syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	await("etcd stands still", func() bool { return state() == "T" })
	for name, says := range map[string]string{"etcdd": "did you mean etcd?", "kubelet": "there are etcd, agent"} {
		err := m.signal(name, syscall.SIGKILL)
		if p, ok := errors.AsType[*cluster.Problem](err); !ok || !strings.Contains(p.Why, says) || !errors.Is(err, host.ErrGone) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if err := m.signal("etcd", syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	await("etcd is gone", func() bool { _, err := find(); return errors.Is(err, host.ErrGone) })
	if err := m.signal("etcd", syscall.SIGKILL); !errors.Is(err, host.ErrGone) {
		t.Errorf("what has ended: %v", err)
	}
}
