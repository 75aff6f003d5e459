package cli

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"kuorum/internal/advise"
	"kuorum/internal/cluster"
	"kuorum/internal/component"
	"kuorum/internal/etcd"
)

const (
	etcdBinary    = "../../build/bundle/bin/etcd"
	etcdctlBinary = "../../build/bundle/bin/etcdctl"
)

// realEtcd is a cluster of etcd processes at the addresses of a spec's servers,
// without TLS, and what a command sees of it.
type realEtcd struct {
	spec *cluster.Spec
	dirs map[string]string
	work *etcdWork
	talk func() string
	out  func() string
}

func startEtcd(t *testing.T, servers int) *realEtcd {
	t.Helper()
	if _, err := os.Stat(etcdBinary); err != nil {
		t.Fatalf("run make bundle first: %v", err)
	}
	spec, err := cluster.New("real", servers, 0)
	if err != nil {
		t.Fatal(err)
	}
	r := &realEtcd{spec: spec, dirs: map[string]string{}}
	net := rand.N(250)
	for i := range spec.Spec.Nodes {
		spec.Spec.Nodes[i].Address = fmt.Sprintf("127.%d.%d.%d", 2+net, rand.N(250), 11+i)
	}
	a, out, talk := testApp(t, nil)
	r.out, r.talk = out, talk
	dial := func(endpoints ...string) (*etcd.Client, error) {
		plain := strings.Split(strings.ReplaceAll(strings.Join(endpoints, " "), "https:", "http:"), " ")
		return etcd.Dial(etcd.Config{Endpoints: plain})
	}
	var all []string
	for _, n := range spec.Servers() {
		all = append(all, component.ClientURL(n))
	}
	client, err := dial(all...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	r.work = &etcdWork{app: a, client: client, target: target{spec: spec, etcd: dial, reports: func(ctx context.Context) ([]cluster.NodeReport, error) {
		var reports []cluster.NodeReport
		for _, n := range spec.Servers() {
			reports = append(reports, reportOf(ctx, t, n))
		}
		return reports, nil
	}}}
	return r
}

// reportOf is what the agent of a server would say.
func reportOf(ctx context.Context, t *testing.T, n cluster.Node) cluster.NodeReport {
	t.Helper()
	own, err := etcd.Dial(etcd.Config{Endpoints: []string{strings.Replace(component.ClientURL(n), "https:", "http:", 1)}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = own.Close() }()
	limited, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	status := own.Status(limited)
	return cluster.NodeReport{Name: n.Name, Role: n.Role, Address: n.Address, Status: &cluster.NodeStatus{Name: n.Name, Role: n.Role, Etcd: &status}}
}

// start runs the member of a node; state is new or existing, members the nodes
// of its cluster.
func (r *realEtcd) start(t *testing.T, state string, name string, members ...string) {
	t.Helper()
	var list []string
	for _, other := range members {
		n, _ := r.spec.Node(other)
		list = append(list, fmt.Sprintf("%s=http://%s:2380", n.Name, n.Address))
	}
	n, _ := r.spec.Node(name)
	r.dirs[name] = t.TempDir()
	client, peer := "http://"+n.Address+":2379", "http://"+n.Address+":2380"
	cmd := exec.Command(etcdBinary, "--name="+name, "--data-dir="+filepath.Join(r.dirs[name], "data"),
		"--listen-client-urls="+client, "--advertise-client-urls="+client, "--listen-peer-urls="+peer, "--initial-advertise-peer-urls="+peer,
		"--initial-cluster="+strings.Join(list, ","), "--initial-cluster-state="+state, "--initial-cluster-token=test",
		"--heartbeat-interval=20", "--election-timeout=400", "--unsafe-no-fsync", "--quota-backend-bytes=33554432")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
}

// ctl runs etcdctl on a member.
func (r *realEtcd) ctl(t *testing.T, name, stdin string, args ...string) (string, error) {
	t.Helper()
	n, _ := r.spec.Node(name)
	cmd := exec.Command(etcdctlBinary, append([]string{"--endpoints=http://" + n.Address + ":2379"}, args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// await waits until etcd is as it should be.
func (r *realEtcd) await(t *testing.T, ok func(advise.Etcd) bool) advise.Etcd {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var now advise.Etcd
	err := until(ctx, "etcd is not as it should be", func() (string, error) {
		var err error
		if now, err = r.work.review(ctx); err != nil || ok(now) {
			return "", err
		}
		return fmt.Sprintf("%+v", now), nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return now
}

// does runs a verb that must end with that exit code and have said so.
func (r *realEtcd) does(t *testing.T, verb string, code int, says string, do func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 40*time.Second)
	defer cancel()
	before := len(r.talk())
	err := do(ctx)
	said := r.talk()[before:]
	if err != nil {
		said += err.Error()
	}
	if exitOf(err) != code || !strings.Contains(said, says) {
		t.Fatalf("%s: exit code %d, want %d and %q:\n%s", verb, exitOf(err), code, says, said)
	}
}

// TestVerbsOnRealMembers looks after a real cluster from a full database to the
// last member.
func TestVerbsOnRealMembers(t *testing.T) {
	t.Parallel()
	r := startEtcd(t, 3)
	for _, name := range []string{"cp1", "cp2"} {
		r.start(t, "new", name, "cp1", "cp2")
	}
	whole := func(voters int) func(advise.Etcd) bool {
		return func(e advise.Etcd) bool {
			return e.Quorum.Voters == voters && e.Quorum.Healthy == voters && e.Leader != ""
		}
	}
	w := r.work
	r.await(t, whole(2))

	for i := 0; ; i++ {
		out, err := r.ctl(t, "cp1", strings.Repeat("x", 1<<20), "put", "k")
		if err != nil && strings.Contains(out, "database space exceeded") {
			break
		}
		if err != nil || i > 70 {
			t.Fatalf("put %d: %v %s", i, err, out)
		}
	}
	r.await(t, func(e advise.Etcd) bool { return len(e.Alarms) > 0 })
	r.does(t, "disarm too early", cluster.ExitRefused, "below 95 % of its quota", w.disarm)
	r.does(t, "compact", 0, "nothing to do: the revision is ", func(ctx context.Context) error { return w.compact(ctx, 0, 1000) })
	r.does(t, "compact", 0, "history is kept from revision ", func(ctx context.Context) error { return w.compact(ctx, 0, 0) })
	r.does(t, "defrag", 0, "cp2 gave ", func(ctx context.Context) error { return w.defrag(ctx, nil, etcd.DefragOrder) })
	if got := strings.Count(r.talk(), " MiB back: "); got != 2 {
		t.Errorf("%d members gave room back:\n%s", got, r.talk())
	}
	r.does(t, "disarm", 0, "disarm NOSPACE of member", w.disarm)
	r.does(t, "disarm again", 0, "etcd has no alarms", w.disarm)
	r.does(t, "defrag again", 0, "nothing to do: no free pages", func(ctx context.Context) error { return w.defrag(ctx, nil, etcd.DefragOrder) })
	r.does(t, "defrag one", 0, "cp1 gave ", func(ctx context.Context) error { return w.defrag(ctx, []string{"cp1"}, etcd.DefragAll) })
	if out, err := r.ctl(t, "cp1", "y", "put", "k"); err != nil {
		t.Fatalf("a write after that: %v %s", err, out)
	}

	cp3, _ := r.spec.Node("cp3")
	var added cluster.EtcdMember
	r.does(t, "add a learner", 0, "", func(ctx context.Context) error {
		return w.settled(ctx, func() (err error) {
			added, err = w.client.AddLearner(ctx, "http://"+cp3.Address+":2380")
			return err
		})
	})
	short, cancel := context.WithTimeout(t.Context(), 3*time.Second/2)
	defer cancel()
	if err := w.promote(short, added.ID); exitOf(err) != cluster.ExitTimeout || !strings.Contains(r.talk(), "cp3 has 0 % of the leader's log: it has never started") {
		t.Errorf("promoted a learner that never started: %v\n%s", err, r.talk())
	}
	r.start(t, "existing", "cp3", "cp1", "cp2", "cp3")
	r.does(t, "promote", 0, "promote learner ", func(ctx context.Context) error { return w.promote(ctx, added.ID) })
	r.does(t, "promote again", 0, "cp3 votes already", func(ctx context.Context) error { return w.promote(ctx, "cp3") })
	leader := r.await(t, whole(3)).Leader

	w.dryRun = true
	r.does(t, "dry run", 0, "after this: 2 voters, quorum 2, may lose 0", func(ctx context.Context) error { return w.remove(ctx, leader, false) })
	r.does(t, "dry run", 0, "", func(ctx context.Context) error { return w.defrag(ctx, nil, etcd.DefragAll) })
	w.dryRun = false
	if got := r.out(); !strings.Contains(got, "2. hand the lead from "+leader+" to ") || strings.Count(got, ". defragment cp") != 3 {
		t.Errorf("dry runs print\n%s", got)
	}
	r.does(t, "remove", 0, leader+" is off the list: 2 voters, quorum 2, may lose 0", func(ctx context.Context) error { return w.remove(ctx, leader, false) })
	left := r.await(t, whole(2))
	r.does(t, "remove again", cluster.ExitUsage, "etcd has no member", func(ctx context.Context) error { return w.remove(ctx, leader, false) })
	r.does(t, "remove", 0, "1 voter, quorum 1, may lose 0", func(ctx context.Context) error { return w.remove(ctx, left.Members[0].ID, false) })
	last := r.await(t, whole(1)).Members[0]
	r.does(t, "remove the last", cluster.ExitRefused, "it is the last voter", func(ctx context.Context) error { return w.remove(ctx, last.ID, true) })
}
