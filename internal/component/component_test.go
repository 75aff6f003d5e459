package component

import (
	"encoding/json"
	"flag"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"kuorum/internal/cluster"
)

var update = flag.Bool("update", false, "write the golden files anew")

func testMachine(t *testing.T, name string) Machine {
	t.Helper()
	return machineOf(t, 0, name)
}

// machineOf is a machine of a cluster with that many etcd nodes.
func machineOf(t *testing.T, etcdNodes int, name string) Machine {
	t.Helper()
	spec, err := cluster.NewApart("demo", etcdNodes, 3, 1)
	if err != nil {
		t.Fatal(err)
	}
	node, ok := spec.Node(name)
	if !ok {
		t.Fatalf("no node %s", name)
	}
	return Machine{Spec: spec, Node: node, Bundle: "/bundle", Kuorum: "/usr/local/bin/kuorum", LowerOOM: true, Initial: Founders(spec)}
}

// find returns the component of that name.
func find(t *testing.T, m Machine, name string) Component {
	t.Helper()
	list := For(m)
	i := slices.IndexFunc(list, func(c Component) bool { return c.Name == name })
	if i < 0 {
		t.Fatalf("%s has no %s", m.Node.Name, name)
	}
	return list[i]
}

func render(list []Component, m Machine) string {
	var out strings.Builder
	for _, c := range list {
		fmt.Fprintf(&out, "=== %s\npath %s\nafter %v\nstop %s\nenv %v\n", c.Name, c.Path, c.After, c.StopTimeout, c.Environ(m))
		for _, a := range c.Args {
			fmt.Fprintf(&out, "  %s\n", a)
		}
		for _, d := range c.Dirs {
			fmt.Fprintf(&out, "dir %s\n", d)
		}
		for _, f := range c.Files {
			fmt.Fprintf(&out, "--- %s %o\n%s", f.Path, f.Mode, f.Data)
		}
		out.WriteString("\n")
	}
	return out.String()
}

// TestGolden shows in a review what a change does to the programs' flags and
// files. What must never change is in the security tests.
func TestGolden(t *testing.T) {
	machines := map[string]Machine{"cp1": testMachine(t, "cp1"), "w1": testMachine(t, "w1"), "lb1": balancerMachine(t, "lb1")}
	for name, m := range machines {
		got := render(For(m), m)
		file := filepath.Join("testdata", name+".golden")
		if *update {
			if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), got); diff != "" {
			t.Errorf("%s (-want +got), go test -update accepts it:\n%s", file, diff)
		}
	}
}

// balancerMachine is one of two in front of three servers.
func balancerMachine(t *testing.T, name string) Machine {
	t.Helper()
	spec, err := cluster.Parse("cluster.yaml", []byte("apiVersion: kuorum.dev/v1alpha1\nkind: Cluster\nmetadata: {name: demo}\nspec:\n  servers: 3\n  endpoint: {type: haproxy}\n"))
	if err != nil {
		t.Fatal(err)
	}
	m := testMachine(t, "w1")
	m.Spec, m.Link = spec, "eth0"
	m.Node, _ = spec.Node(name)
	return m
}

// TestBalancersFollowServers: what changes with them, or with the authorities, is read
// again by programs that go on; who has the address, and on which link, too.
func TestBalancersFollowServers(t *testing.T) {
	m := balancerMachine(t, "lb1")
	before := For(m)
	if len(before) != 2 || before[0].Name != "haproxy" || before[1].Name != "keepalived" {
		t.Fatalf("it runs %+v", before)
	}
	grown, err := m.Spec.With(cluster.Node{Name: "cp4", Role: cluster.RoleServer})
	if err != nil {
		t.Fatal(err)
	}
	alone, err := m.Spec.Without("lb2")
	if err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct {
		change func(*Machine)
		loaded []bool // whether haproxy, keepalived read their files again
	}{
		"nothing":       {func(*Machine) {}, []bool{false, false}},
		"a server":      {func(m *Machine) { m.Spec = grown }, []bool{true, false}},
		"an authority":  {func(m *Machine) { m.Trust = map[string][]string{clusterCA: {"a", "b"}} }, []bool{true, false}},
		"the last peer": {func(m *Machine) { m.Spec = alone }, []bool{false, true}},
	} {
		now := m
		c.change(&now)
		for i, after := range For(now) {
			if after.Digest() != before[i].Digest() {
				t.Errorf("%s: %s would be restarted", what, after.Name)
			}
			if got := after.Loaded() != before[i].Loaded(); got != c.loaded[i] {
				t.Errorf("%s: %s reads its files again: %v", what, after.Name, got)
			}
		}
	}
}

func TestRoles(t *testing.T) {
	serverOnly := []string{"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"}
	names := func(m Machine) (list []string) {
		for _, c := range For(m) {
			list = append(list, c.Name)
		}
		return list
	}
	server, worker := names(testMachine(t, "cp2")), names(testMachine(t, "w1"))
	for _, name := range serverOnly {
		if !slices.Contains(server, name) || slices.Contains(worker, name) {
			t.Errorf("%s must be on servers only: server %v, worker %v", name, server, worker)
		}
	}
	for _, name := range worker {
		if !slices.Contains(server, name) {
			t.Errorf("%s is on the worker only", name)
		}
	}
}

// TestStartOrder walks After: every name exists and there is no circle.
func TestStartOrder(t *testing.T) {
	for _, name := range []string{"cp1", "w1"} {
		started, list := map[string]bool{}, For(testMachine(t, name))
		for range list {
			for _, c := range list {
				if !slices.ContainsFunc(c.After, func(a string) bool { return !started[a] }) {
					started[c.Name] = true
				}
			}
		}
		for _, c := range list {
			if !started[c.Name] {
				t.Errorf("%s: %s can never start after %v", name, c.Name, c.After)
			}
			if !filepath.IsAbs(c.Path) || c.Ready == nil || c.StopTimeout <= 0 {
				t.Errorf("%s: %s lacks an absolute path, a probe or a stop timeout", name, c.Name)
			}
		}
		if len(started) != len(list) {
			t.Errorf("%s: two components share a name", name)
		}
	}
}

func TestDigestChangesWithEveryInput(t *testing.T) {
	base := func() Component {
		return Component{
			Path: "/bin/a", Args: []string{"x", "y"}, Env: []string{"K=V"},
			Files: []File{{Path: "/f", Data: []byte("data"), Mode: 0o600}},
		}
	}
	changes := map[string]func(*Component){
		"nothing":       func(*Component) {},
		"path":          func(c *Component) { c.Path = "/bin/b" },
		"argument":      func(c *Component) { c.Args[1] = "z" },
		"arguments cut": func(c *Component) { c.Args = []string{"x y"} },
		"environment":   func(c *Component) { c.Env = nil },
		"file's path":   func(c *Component) { c.Files[0].Path = "/g" },
		"file's data":   func(c *Component) { c.Files[0].Data = []byte("Data") },
		"file's mode":   func(c *Component) { c.Files[0].Mode = fs.FileMode(0o644) },
		"file more":     func(c *Component) { c.Files = append(c.Files, File{Path: "/g"}) },
	}
	seen := map[string]string{}
	for name, change := range changes {
		c := base()
		change(&c)
		if other, ok := seen[c.Digest()]; ok {
			t.Errorf("%q and %q have the same digest", name, other)
		}
		seen[c.Digest()] = name
		if again := base(); name == "nothing" && again.Digest() != c.Digest() {
			t.Error("the digest of the same component differs")
		}
	}
}

// What a program reads again by itself is no reason to restart it; that it
// begins or ends to do so is.
func TestDigestLeavesOutWhatIsReread(t *testing.T) {
	c := func(data string, reread bool) Component {
		return Component{Path: "/bin/a", Files: []File{{Path: "/f", Data: []byte(data), Mode: 0o600, Reread: reread}}}
	}
	if c("one", true).Digest() != c("two", true).Digest() {
		t.Error("the digest depends on a file that is read again")
	}
	if c("one", true).Digest() == c("one", false).Digest() {
		t.Error("a file that is read again counts as one that is not")
	}
}

// TestMoreNodesRestartNothing: nodes join a cluster that works.
func TestMoreNodesRestartNothing(t *testing.T) {
	larger, err := cluster.New("demo", 5, 2)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"cp1", "w1"} {
		before := testMachine(t, name)
		after := before
		after.Spec = larger
		for _, c := range For(before) {
			if got := find(t, after, c.Name); got.Digest() != c.Digest() {
				t.Errorf("%s: %s is restarted:\n%s", name, c.Name, cmp.Diff(render([]Component{c}, before), render([]Component{got}, after)))
			}
		}
		backends, _ := fileOf(t, find(t, after, "endpoint"), "endpoint.yaml")["backends"].([]any)
		if len(backends) != 5 {
			t.Errorf("%s: the balancer's file lists %v, want five servers", name, backends)
		}
	}
}

// TestRenderingIsStable: feature gates and labels are maps, whose order must
// not restart programs.
func TestRenderingIsStable(t *testing.T) {
	m := testMachine(t, "cp1")
	m.Spec.Spec.Kubernetes.FeatureGates = map[string]bool{"A": true, "B": false, "C": true, "D": true}
	m.Node.Labels = map[string]string{"z": "1", "y": "2", "x": "3"}
	first := render(For(m), m)
	for range 50 {
		if diff := cmp.Diff(first, render(For(m), m)); diff != "" {
			t.Fatalf("(-first +later):\n%s", diff)
		}
	}
}

func TestFeatureGates(t *testing.T) {
	m := testMachine(t, "cp1")
	if got := featureGates(m); got != nil {
		t.Errorf("no gates give %q", got)
	}
	m.Spec.Spec.Kubernetes.FeatureGates = map[string]bool{"Ours": false, "Theirs": true}
	got := featureGates(m, "Ours=true", "More=true")
	if diff := cmp.Diff([]string{"--feature-gates=More=true,Ours=false,Theirs=true"}, got); diff != "" {
		t.Errorf("the cluster's choice must stand (-want +got):\n%s", diff)
	}
}

func TestParseSubnet(t *testing.T) {
	for _, tc := range []struct {
		name, text, subnet string
		mtu                int
	}{
		{"as flannel writes it", "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.2.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n", "10.244.2.0/24", 1450},
		{"blanks and order", " FLANNEL_MTU=1500 \n\nFLANNEL_SUBNET=10.1.0.1/26", "10.1.0.0/26", 1500},
		{"empty", "", "", 0},
		{"half written", "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUB", "", 0},
		{"no MTU yet", "FLANNEL_SUBNET=10.244.2.1/24\n", "", 0},
		{"not a number", "FLANNEL_SUBNET=10.244.2.1/24\nFLANNEL_MTU=big\n", "", 0},
		{"not a range", "FLANNEL_SUBNET=10.244.2.1\nFLANNEL_MTU=1450\n", "", 0},
	} {
		subnet, mtu, err := ParseSubnet([]byte(tc.text))
		if tc.subnet == "" {
			if err == nil {
				t.Errorf("%s: read as %s", tc.name, subnet)
			}
			continue
		}
		if err != nil || subnet.String() != tc.subnet || mtu != tc.mtu {
			t.Errorf("%s: got %s, %d, %v", tc.name, subnet, mtu, err)
		}
	}
}

// FuzzParseSubnet: whatever is in the file, what is read can be given to CNI.
func FuzzParseSubnet(f *testing.F) {
	f.Add([]byte("FLANNEL_SUBNET=10.244.2.1/24\nFLANNEL_MTU=1450\n"))
	f.Add([]byte("FLANNEL_SUBNET=fe80::1%eth0/64\nFLANNEL_MTU=-1"))
	f.Add([]byte("=\n==\nFLANNEL_SUBNET"))
	f.Fuzz(func(t *testing.T, data []byte) {
		subnet, mtu, err := ParseSubnet(data)
		if err != nil {
			return
		}
		if subnet != subnet.Masked() || !json.Valid(CNI(subnet, mtu)) {
			t.Errorf("%q gives %s and %s", data, subnet, CNI(subnet, mtu))
		}
	})
}

func TestCNI(t *testing.T) {
	var got struct {
		CNIVersion string
		Plugins    []struct {
			Type   string
			MTU    int
			IPMasq *bool
			IPAM   struct {
				Type   string
				Ranges [][]struct{ Subnet netip.Prefix }
			}
		}
	}
	subnet := netip.MustParsePrefix("10.244.3.0/24")
	if err := json.Unmarshal(CNI(subnet, 1450), &got); err != nil {
		t.Fatal(err)
	}
	first := got.Plugins[0]
	if first.Type != "ptp" || first.MTU != 1450 || first.IPMasq == nil || *first.IPMasq || first.IPAM.Ranges[0][0].Subnet != subnet {
		t.Errorf("got %+v", first)
	}
}

func TestShare(t *testing.T) {
	goldenHeap := Component{Heap: "GOGC=50", Env: []string{"A=b"}}
	tests := map[string]struct {
		share Share
		in    Component
		env   []string
		slack time.Duration
	}{
		"a computer of its own":        {Share{Processors: 8}, goldenHeap, []string{"A=b"}, 0},
		"alone in its lab":             {Share{1, 8}, goldenHeap, []string{"GOGC=50", "GOMAXPROCS=8", "A=b"}, lateTimers},
		"three on eight processors":    {Share{3, 8}, goldenHeap, []string{SmallHeap, "GOMAXPROCS=2", "A=b"}, lateTimers},
		"three on two processors":      {Share{3, 2}, Component{}, []string{SmallHeap, "GOMAXPROCS=1"}, lateTimers},
		"all writes go through it":     {Share{3, 2}, Component{Busy: true, Env: []string{"A=b"}}, []string{"A=b"}, lateTimers},
		"pods inherit exact timers":    {Share{3, 2}, Component{ExactTimers: true}, []string{SmallHeap, "GOMAXPROCS=1"}, 0},
		"no heap of its own, no crowd": {Share{1, 2}, Component{}, []string{SmallHeap, "GOMAXPROCS=2"}, lateTimers},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got := tt.share.limit(tt.in)
			if diff := cmp.Diff(tt.env, got.Env); diff != "" {
				t.Error(diff)
			}
			if got.TimerSlack != tt.slack {
				t.Errorf("slack %v, want %v", got.TimerSlack, tt.slack)
			}
		})
	}
}

// The timers of pods must be the kernel's own, and a running component must
// be restarted when its share changes.
func TestSharesReachComponents(t *testing.T) {
	m := testMachine(t, "cp1")
	alone := find(t, m, "kube-scheduler")
	m.Share = Share{Machines: 3, Processors: 2}
	if find(t, m, "containerd").TimerSlack != 0 {
		t.Error("containerd hands late timers on to pods")
	}
	shared := find(t, m, "kube-scheduler")
	if shared.TimerSlack != lateTimers || shared.Digest() == alone.Digest() {
		t.Errorf("the scheduler has slack %v, and digest %s as alone", shared.TimerSlack, shared.Digest())
	}
	if etcd := find(t, m, "etcd"); etcd.TimerSlack != lateTimers || len(etcd.Env) > 0 {
		t.Errorf("etcd has slack %v and is limited by %v", etcd.TimerSlack, etcd.Env)
	}
}

// TestElectionFlags: only what differs from upstream's defaults is a flag, or the
// programs of clusters that exist would be started again.
func TestElectionFlags(t *testing.T) {
	m := testMachine(t, "cp1")
	for _, name := range []string{cluster.ControllerManagerName, cluster.SchedulerName} {
		if args := electionArgs(find(t, m, name)); !slices.Equal(args, []string{"--leader-elect=true"}) {
			t.Errorf("%s has %v by default", name, args)
		}
	}
	k := &m.Spec.Spec.Kubernetes
	k.ControllerManager.LeaderElection.LeaseDuration = cluster.Duration(20 * time.Second)
	k.Scheduler.LeaderElection = cluster.LeaderElection{
		LeaseDuration: cluster.Duration(4 * time.Second), RenewDeadline: cluster.Duration(3 * time.Second),
		RetryPeriod: cluster.Duration(500 * time.Millisecond), ResourceName: "one", ResourceNamespace: "two", ResourceLock: "leases",
	}
	for name, want := range map[string][]string{
		cluster.ControllerManagerName: {"--leader-elect=true", "--leader-elect-lease-duration=20s"},
		cluster.SchedulerName: {
			"--leader-elect=true", "--leader-elect-lease-duration=4s", "--leader-elect-renew-deadline=3s",
			"--leader-elect-retry-period=500ms", "--leader-elect-resource-name=one", "--leader-elect-resource-namespace=two",
		},
	} {
		if diff := cmp.Diff(want, electionArgs(find(t, m, name))); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func electionArgs(c Component) []string {
	return slices.DeleteFunc(slices.Clone(c.Args), func(a string) bool { return !strings.HasPrefix(a, "--leader-elect") })
}

// TestPlannedStopReleasesTheLease: without the gate a controller-manager that is
// told to end keeps its lease, unless the cluster says otherwise.
func TestPlannedStopReleasesTheLease(t *testing.T) {
	const gate = "ControllerManagerReleaseLeaderElectionLockOnExit"
	m := testMachine(t, "cp1")
	for _, tc := range []struct {
		chosen map[string]bool
		want   string
	}{
		{nil, "--feature-gates=" + gate + "=true"},
		{map[string]bool{"Other": true}, "--feature-gates=" + gate + "=true,Other=true"},
		{map[string]bool{gate: false}, "--feature-gates=" + gate + "=false"},
	} {
		m.Spec.Spec.Kubernetes.FeatureGates = tc.chosen
		if c := find(t, m, cluster.ControllerManagerName); !slices.Contains(c.Args, tc.want) {
			t.Errorf("with %v: %v", tc.chosen, c.Args)
		}
		if c := find(t, m, cluster.SchedulerName); tc.chosen == nil && strings.Contains(strings.Join(c.Args, " "), gate) {
			t.Errorf("the scheduler, which does not know the gate: %v", c.Args)
		}
	}
}
