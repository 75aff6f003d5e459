package doctor

import (
	"errors"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"

	"kuorum/internal/cluster"
)

const (
	mib = 1 << 20
	gib = 1 << 30
)

// goodFacts is a machine on which nothing is wrong.
func goodFacts() Facts {
	return Facts{
		Release: "6.1.0-26-amd64", Overlay: true, Nft: "1.0.6", Controllers: []string{"cpu", "cpuset", "io", "memory", "pids"},
		Memory: Memory{Total: 8 * gib, Available: 6 * gib}, Processors: 4,
		Disk: Disk{Dir: "/var/lib", Kind: "ext4", Free: 50 * gib, Size: 100 * gib}, Root: true, LowerOOM: true, Inotify: Inotify{Used: 20, Limit: 128},
	}
}

func allChecks(f Facts, need Need) []Check {
	return append(append(f.System(), f.Space(need)...), f.More(need)...)
}

func TestMachine(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*Facts)
		want   string // STATE NAME: what; of the only check that is not plain ok
	}{
		{"a good machine", func(*Facts) {}, ""},
		{"no nft", func(f *Facts) { f.Nft = "" }, "failed nft: the program nft is missing"},
		{"an old nft", func(f *Facts) { f.Nft = "0.9.8" }, "failed nft: the program nft is too old: 0.9.8, it must be 1.0.1"},
		{"a nearly old enough nft", func(f *Facts) { f.Nft = "1.0.0" }, "failed nft: the program nft is too old: 1.0.0, it must be 1.0.1"},
		{"just new enough", func(f *Facts) { f.Nft, f.Release = "1.0.1", "5.13" }, ""},
		{"an nft of unknown age", func(f *Facts) { f.Nft = "unknown" }, ""},
		{"an old kernel", func(f *Facts) { f.Release = "5.10.0-30-amd64" }, "failed kernel: the kernel is too old: 5.10.0-30-amd64, it must be 5.13"},
		{"a kernel of few words", func(f *Facts) { f.Release = "5" }, "failed kernel: the kernel is too old: 5, it must be 5.13"},
		{"a kernel with a suffix", func(f *Facts) { f.Release = "5.13-rc1" }, ""},
		{"a major version", func(f *Facts) { f.Release = "10.0.1" }, ""},
		{"no overlay", func(f *Facts) { f.Overlay = false }, "failed overlay: this kernel has no overlay file system"},
		{"no namespaces", func(f *Facts) { f.NoNamespace = []string{"net", "ipc"} }, "failed namespaces: this kernel has no net, ipc namespaces"},
		{"no memory controller", func(f *Facts) { f.Controllers = []string{"cpu", "cpuset", "pids"} }, "failed cgroups: control groups lack the controllers memory"},
		{"no control groups", func(f *Facts) { f.Controllers = nil }, "failed cgroups: there are no control groups"},
		{"version 1", func(f *Facts) { f.CgroupV1 = true }, ""},
		{"no free memory", func(f *Facts) { f.Memory.Available = 500*mib - 1 }, "failed memory: there is too little free memory for a server"},
		{"enough free memory", func(f *Facts) { f.Memory.Available = 500 * mib }, ""},
		{"little memory", func(f *Facts) { f.Memory.Total = 1700*mib - 1 }, "warning memory: the machine has little memory: a server should have 1.7 GiB"},
		{"no free disk", func(f *Facts) { f.Disk.Free = 300*mib - 1 }, "failed disk: there is too little free disk for a server"},
		{"little disk", func(f *Facts) { f.Disk.Free = 5*gib - 1 }, "warning disk: there is little free disk: a server should have 5.0 GiB"},
		{"enough disk", func(f *Facts) { f.Disk.Free = 5 * gib }, ""},
		{"one processor", func(f *Facts) { f.Processors = 1 }, "warning processors: a server should have 2 processors"},
		{"swap that is not used", func(f *Facts) { f.Memory.SwapTotal, f.Memory.SwapFree = gib, gib }, "ok swap: swap is on"},
		{"swap that is used", func(f *Facts) { f.Memory.SwapTotal, f.Memory.SwapFree = gib, gib-101*mib }, "warning swap: programs of this machine are swapped out"},
		{"few inotify instances", func(f *Facts) { f.Inotify.Used = 101 }, "failed inotify: there are too few inotify instances for a server: a server needs 28, 27 of 128 are free"},
		{"just enough of them", func(f *Facts) { f.Inotify.Used = 100 }, ""},
		{"no capability", func(f *Facts) { f.LowerOOM = false }, "ok rights: programs cannot be protected from the kernel's killer"},
		{"not root", func(f *Facts) { f.Root = false }, "warning rights: what needs root was skipped"},
	} {
		f := goodFacts()
		tc.change(&f)
		var got []string
		for _, c := range allChecks(f, ServerNeed()) {
			if c.Measured == "" || c.Why == "" || c.State != StateOK && c.Do == "" {
				t.Errorf("%s: %+v says too little", tc.name, c)
			}
			if c.What != "" {
				got = append(got, string(c.State)+" "+c.Name+": "+c.What)
			}
		}
		if diff := cmp.Diff(tc.want, strings.Join(got, "\n")); diff != "" {
			t.Errorf("%s:\n%s", tc.name, diff)
		}
	}
}

// TestNeeds is what `kuorum up` refuses, in its words.
func TestNeeds(t *testing.T) {
	spec, err := cluster.New("x", 3, 1)
	if err != nil {
		t.Fatal(err)
	}
	apart, err := cluster.NewApart("x", 3, 1, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name         string
		need         Need
		memory, disk int64
		want         string
		do           string
	}{
		{"a lab that fits", LabNeed(spec), 1750 * mib, 1200 * mib, "", ""},
		{"a lab without memory", LabNeed(spec), 1750*mib - 1, 1200 * mib, "there is too little free memory for this lab: 4 machines need 1750 MiB, 1749 MiB are available", "kuorum up --servers 1"},
		{"a lab without disk", LabNeed(spec), 1750 * mib, 0, "there is too little free disk for this lab: 4 machines need 1200 MiB in /var/lib, 0 MiB are free", "KUORUM_STATE="},
		{"a lab with etcd nodes", LabNeed(apart), 740*mib - 1, 1200 * mib, "there is too little free memory for this lab: 4 machines need 740 MiB, 739 MiB are available", ""},
		{"one more etcd node", MachineNeed(cluster.RoleEtcd), 80*mib - 1, 300 * mib, "there is too little free memory for one more machine: it needs 80 MiB, 79 MiB are available", ""},
		{"a running node", RunningNeed("this node"), 100 * mib, 500 * mib, "", ""},
		{"a running node that evicts", RunningNeed("this node"), 99 * mib, 500 * mib, "there is too little free memory for this node: kubelet evicts pods below that, so there must be 100 MiB, 99 MiB are available", "memory"},
	} {
		f := goodFacts()
		f.Memory.Available, f.Disk.Free = tc.memory, tc.disk
		err := FirstProblem(f.Space(tc.need))
		if tc.want == "" {
			if err != nil {
				t.Errorf("%s: %v", tc.name, err)
			}
			continue
		}
		problem, ok := errors.AsType[*cluster.Problem](err)
		if !ok || problem.Error() != tc.want || !strings.Contains(problem.Do, tc.do) {
			t.Errorf("%s: got %v", tc.name, err)
		}
	}
}

func TestParseMeminfo(t *testing.T) {
	const text = "MemTotal:       2048 kB\nMemFree: 1 kB\nMemAvailable:   1024 kB\nHugePages_Total:       0\nSwapTotal: 10 kB\nSwapFree: 4 kB\n"
	got, err := parseMeminfo([]byte(text))
	if diff := cmp.Diff(Memory{Total: 2 * mib, Available: mib, SwapTotal: 10 << 10, SwapFree: 4 << 10}, got); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
	for text, want := range map[string]string{
		"MemAvailable: much kB\n": "cannot read the free memory",
		"MemTotal: 9999999 kB\n":  "/proc/meminfo has no MemAvailable",
		"":                        "/proc/meminfo has no MemAvailable",
	} {
		if _, err := parseMeminfo([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestMissingNamespaces(t *testing.T) {
	got := missingNamespaces(func(path string) error {
		switch filepath.Base(path) {
		case "uts":
			return fs.ErrNotExist
		case "pid":
			return fs.ErrPermission // it is there
		}
		return nil
	})
	if diff := cmp.Diff([]string{"uts"}, got); diff != "" {
		t.Error(diff)
	}
}

// TestMeasure: a directory that is not there yet is judged by the one that
// will hold it.
func TestMeasure(t *testing.T) {
	dir := t.TempDir()
	f, err := Measure(t.Context(), filepath.Join(dir, "not", "yet"))
	if err != nil || f.Disk.Dir != dir || f.Disk.Size <= 0 || f.Disk.Kind == "" || f.Memory.Available <= 0 || f.Release == "" || f.Processors < 1 {
		t.Errorf("got %+v, %v", f, err)
	}
	f, err = Measure(t.Context(), "/proc")
	if err != nil || f.Disk.Free != 0 || f.Disk.Kind != "proc" {
		t.Errorf("a file system without room: %+v, %v", f.Disk, err)
	}
}

func TestExitCode(t *testing.T) {
	for _, tc := range []struct {
		states []State
		want   int
	}{
		{nil, cluster.ExitOK},
		{[]State{StateOK, StateSkipped}, cluster.ExitOK},
		{[]State{StateOK, StateWarning}, cluster.ExitDegraded},
		{[]State{StateWarning, StateFailed, StateOK}, cluster.ExitError},
	} {
		var checks []Check
		for _, s := range tc.states {
			checks = append(checks, Check{State: s})
		}
		if got := ExitCode(checks); got != tc.want {
			t.Errorf("%v: %d, want %d", tc.states, got, tc.want)
		}
	}
}

func TestBalancerPrograms(t *testing.T) {
	has := func(paths ...string) func(string) error {
		return func(path string) error {
			if slices.Contains(paths, filepath.Base(path)) {
				return nil
			}
			return fs.ErrNotExist
		}
	}
	if c := balancer(has("haproxy", "keepalived", "curl")); c.State != StateOK {
		t.Errorf("%+v", c)
	}
	c := balancer(has("haproxy"))
	if c.State != StateFailed || !strings.Contains(c.What, "keepalived, curl") || !strings.HasPrefix(c.Do, "apt-get install keepalived curl ") {
		t.Errorf("%+v", c)
	}
}

// TestVirtualIPInClouds: a machine of a cloud is told before it is too late, a lab on one
// is left alone.
func TestVirtualIPInClouds(t *testing.T) {
	hardware := fstest.MapFS{"class/net/eth0/device": {Mode: fs.ModeDir}, "class/net/lo/operstate": {}}
	machine := func(file, text string) fstest.MapFS {
		sys := maps.Clone(hardware)
		sys["class/dmi/id/"+file] = &fstest.MapFile{Data: []byte(text + "\n")}
		return sys
	}
	inLab := machine("sys_vendor", "Amazon EC2")
	delete(inLab, "class/net/eth0/device")
	for want, systems := range map[string][]fstest.MapFS{
		"Amazon EC2":      {machine("sys_vendor", "Amazon EC2")},
		"Microsoft Azure": {machine("chassis_asset_tag", "7783-7084-3265-9085-8269-3286-77")},
		"OpenStack":       {machine("product_name", "OpenStack Nova"), machine("product_name", "OpenStack Compute")},
		"":                {hardware, inLab, {}, machine("sys_vendor", "QEMU"), machine("sys_vendor", "Microsoft Corporation")},
	} {
		for i, sys := range systems {
			if got := cloud(sys); got != want {
				t.Errorf("%q, %d: taken for %q", want, i, got)
			}
		}
	}
	vip, local := cluster.Endpoint{Type: cluster.EndpointVIP}, cluster.Endpoint{Type: cluster.EndpointLocal}
	if c := (Facts{}).VirtualIP(vip); c.State != StateOK {
		t.Errorf("%+v", c)
	}
	if c := (Facts{Cloud: "Amazon EC2"}).VirtualIP(local); c.State != StateSkipped {
		t.Errorf("%+v", c)
	}
	if c := (Facts{Cloud: "Amazon EC2"}).VirtualIP(vip); c.State != StateWarning || !strings.Contains(c.What, "Amazon EC2") || !strings.Contains(c.Do, "type: address") {
		t.Errorf("%+v", c)
	}
}
