package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const (
	onlyV2 = `23 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
31 23 0:28 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot
`
	hybrid = `31 23 0:28 / /sys/fs/cgroup ro,nosuid,nodev,noexec shared:9 - tmpfs tmpfs ro,mode=755
38 31 0:33 / /sys/fs/cgroup/unified rw,relatime shared:10 - cgroup2 cgroup2 rw,nsdelegate
32 31 0:34 / /sys/fs/cgroup/systemd rw,relatime shared:11 - cgroup cgroup rw,xattr,name=systemd
33 31 0:35 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:15 master:3 - cgroup cgroup rw,cpu,cpuacct
34 31 0:36 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,seclabel,memory
`
	docker = `700 650 0:70 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime - tmpfs tmpfs rw,mode=755
701 700 0:34 /docker/0af1 /sys/fs/cgroup/systemd ro,nosuid master:11 - cgroup cgroup rw,xattr,release_agent=/lib/systemd/agent,name=systemd
702 700 0:36 /docker/0af1 /sys/fs/cgroup/memory ro,nosuid master:16 - cgroup memory rw,memory
703 700 0:36 /docker/0af1 /mnt/memory ro,nosuid - cgroup memory rw,memory
704 700 0:37 /docker/0af1 /sys/fs/cgroup/cpuset ro,nosuid - cgroup cpuset rw,cpuset,clone_children,noprefix,cpuset_v2_mode
`
)

func TestHierarchies(t *testing.T) {
	for _, tc := range []struct {
		name, text string
		want       []Hierarchy
		v1         bool
	}{
		{"v2", onlyV2, []Hierarchy{{Mount: "/sys/fs/cgroup", V2: true}}, false},
		{"hybrid", hybrid, []Hierarchy{
			{Mount: "/sys/fs/cgroup/memory", Options: "memory"},
			{Mount: "/sys/fs/cgroup/unified", V2: true},
			{Mount: "/sys/fs/cgroup/systemd", Options: "none,name=systemd"},
			{Mount: "/sys/fs/cgroup/cpu,cpuacct", Options: "cpu,cpuacct"},
		}, true},
		{"docker, one mounted twice", docker, []Hierarchy{
			{Mount: "/sys/fs/cgroup/memory", Options: "memory"},
			{Mount: "/sys/fs/cgroup/cpuset", Options: "cpuset"},
			{Mount: "/sys/fs/cgroup/systemd", Options: "none,name=systemd"},
		}, true},
		{"none", "23 1 8:1 / / rw - ext4 /dev/sda1 rw\n", nil, false},
		{"nonsense", "\n - \n1 2 - cgroup\n1 2 3 4 5 - cgroup2\n", nil, false},
	} {
		got := Hierarchies([]byte(tc.text))
		if diff := cmp.Diff(tc.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tc.name, diff)
		}
		if IsV1(got) != tc.v1 {
			t.Errorf("%s: v1 is %v", tc.name, IsV1(got))
		}
	}
}

func TestMountedHierarchies(t *testing.T) {
	found, err := MountedHierarchies()
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range found {
		if _, err := os.Stat(filepath.Join(h.Mount, "cgroup.procs")); err != nil {
			t.Errorf("%+v is no cgroup file system: %v", h, err)
		}
	}
}

// TestCgroupForReal makes a group of the host's, puts a process and its child
// group's process into it, and removes it with both.
func TestCgroupForReal(t *testing.T) {
	hierarchies, err := MountedHierarchies()
	if err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("/kuorum-test-%d", os.Getpid())
	top, inner := NewCgroup(hierarchies, name), NewCgroup(hierarchies, name+"/a/b")
	limited, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 30*time.Second)
	t.Cleanup(func() {
		defer cancel()
		if err := top.Remove(limited); err != nil {
			t.Error(err)
		}
	})
	for range 2 { // what is there already stays
		if err := inner.Create(); err != nil {
			t.Fatal(err)
		}
	}
	sleep := exec.Command("sleep", "300")
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- sleep.Wait() }()
	t.Cleanup(func() { _ = sleep.Process.Kill() }) // it has ended when all went well
	if err := inner.Add(sleep.Process.Pid); err != nil {
		t.Fatal(err)
	}
	if got := top.PIDs(); !slices.Equal(got, []int{sleep.Process.Pid}) {
		t.Errorf("the group has %v, want %d", got, sleep.Process.Pid)
	}
	if _, err := inner.CPU(); err != nil {
		t.Error(err)
	}
	inner.RemoveIfEmpty()
	if got := inner.PIDs(); len(got) != 1 {
		t.Errorf("RemoveIfEmpty emptied a group in use: %v", got)
	}
	if err := top.Remove(limited); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if exit, ok := errors.AsType[*exec.ExitError](err); !ok || !strings.Contains(exit.String(), "killed") {
			t.Errorf("the process ended with %v", err)
		}
	case <-limited.Done():
		t.Error("the process lives")
	}
	for _, h := range hierarchies {
		if _, err := os.Stat(h.Mount + name); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is still there: %v", h.Mount+name, err)
		}
	}
	if err := top.Remove(limited); err != nil {
		t.Errorf("removing what is gone: %v", err)
	}
}

// freezing lists the ways of this host to freeze a group, each alone, and the
// one for kernels that have none.
func freezing(t *testing.T) map[string][]Hierarchy {
	t.Helper()
	all, err := MountedHierarchies()
	if err != nil {
		t.Fatal(err)
	}
	ways := map[string][]Hierarchy{}
	for _, h := range all {
		switch {
		case h.V2:
			ways["v2"] = []Hierarchy{h}
		case h.Options == "freezer":
			ways["v1"] = []Hierarchy{h}
		case h.Options != "cpuset":
			ways["signals"] = []Hierarchy{h}
		}
	}
	if len(ways) == 0 {
		t.Fatalf("no way to freeze anything with %+v", all)
	}
	return ways
}

// worker counts in a file of a group below the frozen one.
func worker(t *testing.T, group *Cgroup) (cmd *exec.Cmd, count func() int) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "count")
	cmd = exec.Command("sh", "-c", `while :; do printf . >>"$0"; sleep 0.01; done`, file)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = cmd.Process.Kill(), cmd.Wait() })
	if err := errors.Join(group.Create(), group.Add(cmd.Process.Pid)); err != nil {
		t.Fatal(err)
	}
	return cmd, func() int {
		info, err := os.Stat(file)
		if err != nil {
			return 0
		}
		return int(info.Size())
	}
}

// TestFreeze holds a process of a group below still, lets it go on, and ends it
// although it is frozen.
func TestFreeze(t *testing.T) {
	for name, hierarchies := range freezing(t) {
		t.Run(name, func(t *testing.T) {
			path := fmt.Sprintf("/kuorum-freeze-%d-%s", os.Getpid(), name)
			top, inner := NewCgroup(hierarchies, path), NewCgroup(hierarchies, path+"/inner")
			if err := top.Thaw(); err != nil {
				t.Errorf("thawing what does not exist: %v", err)
			}
			limited, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 30*time.Second)
			t.Cleanup(func() {
				defer cancel()
				if err := top.Remove(limited); err != nil {
					t.Error(err)
				}
			})
			_, count := worker(t, inner)
			grows := func() {
				t.Helper()
				tick := time.NewTicker(time.Millisecond)
				defer tick.Stop()
				for before := count(); count() == before; <-tick.C {
					if limited.Err() != nil {
						t.Fatal("it stands still")
					}
				}
			}
			grows()
			for range 2 { // also what is frozen already
				if err := top.Freeze(limited); err != nil {
					t.Fatal(err)
				}
			}
			frozen := count()
			<-time.After(200 * time.Millisecond) // twenty rounds of it
			if now := count(); now != frozen {
				t.Errorf("a frozen process went from %d to %d", frozen, now)
			}
			if err := top.Thaw(); err != nil {
				t.Fatal(err)
			}
			grows()
			if err := top.Freeze(limited); err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(top.Thaw(), inner.Freeze(limited)); err != nil { // below, what is removed is not itself frozen
				t.Fatal(err)
			}
			if err := top.Remove(limited); err != nil {
				t.Errorf("what is frozen is not removed: %v", err)
			}
			if left := top.PIDs(); len(left) != 0 {
				t.Errorf("still there: %v", left)
			}
		})
	}
}

// TestFreezeGivesUp: a group that does not come to rest is let go again.
func TestFreezeGivesUp(t *testing.T) {
	root := fakeFiles(t, map[string]string{"g/cgroup.freeze": "0", "g/cgroup.events": "populated 1\nfrozen 0\n"})
	g := NewCgroup([]Hierarchy{{Mount: root, V2: true}}, "/g")
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := g.Freeze(ended); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if data, err := os.ReadFile(filepath.Join(root, "g/cgroup.freeze")); err != nil || string(data) != "0" {
		t.Errorf("the group is left as %q, %v", data, err)
	}
}

// fakeFiles makes a directory tree that looks like a hierarchy.
func fakeFiles(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, data := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func content(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestCreateInheritsCpuset(t *testing.T) {
	root := fakeFiles(t, map[string]string{
		"cpuset.cpus": "0-3\n", "cpuset.mems": "0\n",
		"a/cpuset.cpus": "\n", "a/cpuset.mems": "\n",
		"a/b/cpuset.cpus": "2\n", "a/b/cpuset.mems": "\n",
	})
	if err := NewCgroup([]Hierarchy{{Mount: root, Options: "cpuset"}}, "/a/b").Create(); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{
		"a/cpuset.cpus": "0-3\n", "a/cpuset.mems": "0\n", "a/b/cpuset.cpus": "2\n", "a/b/cpuset.mems": "0\n",
	} {
		if got := content(t, filepath.Join(root, file)); got != want {
			t.Errorf("%s is %q, want %q", file, got, want)
		}
	}
}

func TestCreateHandsControllersDown(t *testing.T) {
	root := fakeFiles(t, map[string]string{
		"cgroup.controllers": "cpu memory pids\n", "a/cgroup.controllers": "cpu\n", "a/b/cgroup.controllers": "",
	})
	if err := NewCgroup([]Hierarchy{{Mount: root, V2: true}}, "/a/b").Create(); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{"cgroup.subtree_control": "+cpu +memory +pids", "a/cgroup.subtree_control": "+cpu"} {
		if got := content(t, filepath.Join(root, file)); got != want {
			t.Errorf("%s is %q, want %q", file, got, want)
		}
	}
	if _, err := os.Stat(filepath.Join(root, "a/b/cgroup.subtree_control")); err == nil {
		t.Error("the group itself, which holds processes, hands controllers down")
	}
	if err := DelegateControllers(filepath.Join(root, "none")); err == nil {
		t.Error("a group that does not exist hands controllers down")
	}
}

func TestCgroupAddWritesEveryHierarchy(t *testing.T) {
	one, two := fakeFiles(t, map[string]string{"g/cgroup.procs": ""}), fakeFiles(t, map[string]string{"g/cgroup.procs": ""})
	c := NewCgroup([]Hierarchy{{Mount: one}, {Mount: two, V2: true}}, "/g")
	if err := c.Add(4711); err != nil {
		t.Fatal(err)
	}
	for _, root := range []string{one, two} {
		if got := content(t, filepath.Join(root, "g/cgroup.procs")); got != "4711" {
			t.Errorf("got %q", got)
		}
	}
}

// TestRemoveGivesUp: a group that cannot be removed must not block for ever.
func TestRemoveGivesUp(t *testing.T) {
	root := fakeFiles(t, map[string]string{"g/file": "in the way"})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	err := NewCgroup([]Hierarchy{{Mount: root}}, "/g").Remove(ctx)
	if err == nil || !strings.Contains(err.Error(), "cannot remove cgroup /g") {
		t.Errorf("got %v", err)
	}
}

func TestCPU(t *testing.T) {
	v1 := fakeFiles(t, map[string]string{"g/cpuacct.usage": "1500000000\n"})
	v2 := fakeFiles(t, map[string]string{"g/cpu.stat": "usage_usec 2500000\nuser_usec 1\n"})
	for _, tc := range []struct {
		name        string
		hierarchies []Hierarchy
		want        time.Duration
	}{
		{"v1", []Hierarchy{{Mount: v1}}, 1500 * time.Millisecond},
		{"v2", []Hierarchy{{Mount: v2, V2: true}}, 2500 * time.Millisecond},
		{"hybrid", []Hierarchy{{Mount: v1}, {Mount: v2, V2: true}}, 1500 * time.Millisecond},
	} {
		got, err := NewCgroup(tc.hierarchies, "/g").CPU()
		if err != nil || got != tc.want {
			t.Errorf("%s: got %v, %v", tc.name, got, err)
		}
	}
	if _, err := NewCgroup([]Hierarchy{{Mount: t.TempDir()}}, "/g").CPU(); err == nil {
		t.Error("a hierarchy that counts nothing has a CPU time")
	}
}
