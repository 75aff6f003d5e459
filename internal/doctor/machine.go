package doctor

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"kuorum/internal/cluster"
	"kuorum/internal/loadbalancer"
)

// The oldest versions that work.
const (
	leastKernel = "5.13"
	leastNft    = "1.0.1"
)

// swapUsed is how much may be swapped out before it is worth a warning.
const swapUsed = 100 << 20

// System is what nothing works without: the kernel's parts and the programs of
// the machine. `kuorum up` asks for the same.
func (f Facts) System() []Check {
	return []Check{f.nft(), f.kernel(), f.overlay(), f.namespaces(), f.cgroups()}
}

// Space is whether there is room for what is needed. `kuorum up` asks for the
// same.
func (f Facts) Space(need Need) []Check {
	return []Check{f.memory(need), f.disk(need), f.inotify(need)}
}

// More is what is good to know beside System and Space.
func (f Facts) More(need Need) []Check {
	return []Check{f.processors(need), f.swap(), f.rights()}
}

// Balancer is whether this machine has the programs of nodes with the role balancer.
func Balancer() Check {
	return balancer(func(path string) error {
		_, err := os.Stat(path)
		return err
	})
}

func balancer(stat func(path string) error) Check {
	c := Check{Name: "balancer", State: StateOK, Measured: "haproxy, keepalived and curl", Why: "balancers run the distribution's own (spec.endpoint.type haproxy)"}
	var missing []string
	for _, path := range []string{loadbalancer.HAProxyPath, loadbalancer.KeepalivedPath, loadbalancer.CurlPath} {
		if stat(path) != nil {
			missing = append(missing, filepath.Base(path))
		}
	}
	if len(missing) == 0 {
		return c
	}
	names := strings.Join(missing, ", ")
	c.Measured = "missing: " + names
	return c.found(StateFailed, "programs of a balancer are missing: "+names, "apt-get install "+strings.Join(missing, " ")+"    (or your distribution's packages of these names)")
}

// VirtualIP is whether the servers of a cluster with that endpoint can have one address
// in turns here.
func (f Facts) VirtualIP(e cluster.Endpoint) Check {
	c := Check{Name: "virtual-ip", State: StateOK, Measured: "not a machine of a known cloud", Why: "the servers hold the address of the API in turns (spec.endpoint)"}
	switch {
	case !e.HasVIP():
		return c.skipped("the endpoint is of the type " + string(e.Type))
	case f.Cloud != "":
		c.Measured = f.Cloud
		return c.found(StateWarning, "the network of "+f.Cloud+" does not carry an address that moves between machines by itself",
			"make the cluster with the address of the cloud's load balancer for TCP: spec.endpoint {type: address, address: NAME}, or with {type: local}; see docs/endpoints.md")
	}
	return c
}

func (f Facts) nft() Check {
	c := Check{Name: "nft", State: StateOK, Measured: f.Nft + ", needs " + leastNft, Why: "kube-proxy and flannel write their rules with it"}
	const do = "apt-get install nftables    (or your distribution's package of that name)"
	switch {
	case f.Nft == "":
		c.Measured = "missing"
		return c.found(StateFailed, "the program nft is missing", do)
	case older(f.Nft, leastNft):
		return c.found(StateFailed, fmt.Sprintf("the program nft is too old: %s, it must be %s", f.Nft, leastNft), do)
	}
	return c
}

func (f Facts) kernel() Check {
	c := Check{Name: "kernel", State: StateOK, Measured: f.Release + ", needs " + leastKernel, Why: "kube-proxy asks for it in its nftables mode"}
	if older(f.Release, leastKernel) {
		return c.found(StateFailed, fmt.Sprintf("the kernel is too old: %s, it must be %s", f.Release, leastKernel), "use a newer kernel of your distribution")
	}
	return c
}

func (f Facts) overlay() Check {
	c := Check{Name: "overlay", State: StateOK, Measured: "in the kernel", Why: "machines and containers are made with it"}
	if !f.Overlay {
		c.Measured = "missing"
		return c.found(StateFailed, "this kernel has no overlay file system", "modprobe overlay    (or a kernel with CONFIG_OVERLAY_FS)")
	}
	return c
}

func (f Facts) namespaces() Check {
	c := Check{Name: "namespaces", State: StateOK, Measured: "all 6 kinds", Why: "machines of a lab and pods are sets of namespaces"}
	if len(f.NoNamespace) > 0 {
		c.Measured = "missing: " + strings.Join(f.NoNamespace, ", ")
		return c.found(StateFailed, fmt.Sprintf("this kernel has no %s namespaces", strings.Join(f.NoNamespace, ", ")),
			"use a kernel with CONFIG_NAMESPACES and all of its kinds")
	}
	return c
}

func (f Facts) cgroups() Check {
	c := Check{Name: "cgroups", State: StateOK, Why: "kubelet limits and counts what pods use by them"}
	needed := []string{"cpu", "cpuset", "memory", "pids"}
	missing := slices.DeleteFunc(slices.Clone(needed), func(name string) bool { return slices.Contains(f.Controllers, name) })
	version := "v2"
	if f.CgroupV1 {
		version = "v1"
	}
	switch {
	case len(missing) == len(needed):
		c.Measured = "none"
		return c.found(StateFailed, "there are no control groups", "mount them: mount -t cgroup2 cgroup2 /sys/fs/cgroup")
	case len(missing) > 0:
		c.Measured = version + ", missing: " + strings.Join(missing, ", ")
		return c.found(StateFailed, "control groups lack the controllers "+strings.Join(missing, ", "),
			"enable them: the kernel's command line (cgroup_enable=, cgroup_disable=) or its configuration")
	}
	c.Measured = version + ": " + strings.Join(needed, ", ")
	return c
}

func (f Facts) memory(need Need) Check {
	m := f.Memory
	c := Check{
		Name: "memory", State: StateOK, Measured: fmt.Sprintf("%s of %s available, needs %s", cluster.Size(m.Available), cluster.Size(m.Total), cluster.Size(need.Free.Memory)),
		Why: "the kernel kills programs when there is none left",
	}
	switch {
	case m.Available < need.Free.Memory:
		c.Why = fmt.Sprintf("%s %d MiB, %d MiB are available", need.Who, need.Free.Memory>>20, m.Available>>20)
		return c.found(StateFailed, "there is too little free memory for "+need.For, need.MemoryDo)
	case m.Total < need.Total.Memory:
		return c.found(StateWarning, fmt.Sprintf("the machine has little memory: %s should have %s", need.For, cluster.Size(need.Total.Memory)), need.MemoryDo)
	}
	return c
}

func (f Facts) disk(need Need) Check {
	d := f.Disk
	c := Check{
		Name: "disk", State: StateOK, Measured: fmt.Sprintf("%s of %s free, needs %s (%s, %s)",
			cluster.Size(d.Free), cluster.Size(d.Size), cluster.Size(need.Free.Disk), d.Dir, cmp.Or(d.Kind, "unknown")),
		Why: "etcd ends when its disk is full, and kubelet evicts pods before",
	}
	switch {
	case d.Free < need.Free.Disk:
		c.Why = fmt.Sprintf("%s %d MiB in %s, %d MiB are free", need.Who, need.Free.Disk>>20, d.Dir, d.Free>>20)
		return c.found(StateFailed, "there is too little free disk for "+need.For, need.DiskDo)
	case d.Free < need.Total.Disk:
		return c.found(StateWarning, fmt.Sprintf("there is little free disk: %s should have %s", need.For, cluster.Size(need.Total.Disk)), need.DiskDo)
	}
	return c
}

func (f Facts) processors(need Need) Check {
	c := Check{Name: "processors", State: StateOK, Measured: strconv.Itoa(f.Processors), Why: "etcd that waits for a processor loses elections"}
	if f.Processors < need.Processors {
		return c.found(StateWarning, fmt.Sprintf("%s should have %d processors", need.For, need.Processors), "Give the machine more processors.")
	}
	return c
}

// inotify runs out unseen: programs start, and then say "too many open files"
// of a limit that nobody thinks of.
func (f Facts) inotify(need Need) Check {
	free := f.Inotify.Limit - f.Inotify.Used
	c := Check{
		Name: "inotify", State: StateOK, Measured: fmt.Sprintf("%d of %d instances free", free, f.Inotify.Limit),
		Why: "kubelet, kube-apiserver and others watch their files with it, and end without",
	}
	if free >= need.Inotify {
		return c
	}
	return c.found(StateFailed,
		fmt.Sprintf("there are too few inotify instances for %s: %s %d, %d of %d are free", need.For, need.Who, need.Inotify, free, f.Inotify.Limit),
		fmt.Sprintf("sysctl -w fs.inotify.max_user_instances=%d    (and a file in /etc/sysctl.d to keep it)", f.Inotify.Enough(need)))
}

func (f Facts) swap() Check {
	used := f.Memory.SwapTotal - f.Memory.SwapFree
	c := Check{Name: "swap", State: StateOK, Measured: "none", Why: "etcd with memory on disk answers late, and pods' limits do not count what is there"}
	switch {
	case f.Memory.SwapTotal == 0:
		return c
	case used > swapUsed:
		c.Measured = fmt.Sprintf("%s of %s in use", cluster.Size(used), cluster.Size(f.Memory.SwapTotal))
		return c.found(StateWarning, "programs of this machine are swapped out", "give it more memory, or turn swap off: swapoff -a")
	}
	c.Measured = fmt.Sprintf("%s, %s of it in use", cluster.Size(f.Memory.SwapTotal), cluster.Size(used))
	return c.found(StateOK, "swap is on", "On a node better without: swapoff -a, and its line in /etc/fstab.")
}

// rights are a remark only where the kernel's killer is concerned: all works
// without, but the pause containers are not protected.
func (f Facts) rights() Check {
	c := Check{Name: "rights", State: StateOK, Measured: "root, CAP_SYS_RESOURCE", Why: "some checks need root, as every node does"}
	switch {
	case !f.Root:
		c.Measured = "not root"
		return c.found(StateWarning, "what needs root was skipped", "sudo kuorum doctor")
	case !f.LowerOOM:
		c.Measured, c.Why = "root without CAP_SYS_RESOURCE", "what the kernel kills first when memory is short is decided without it"
		return c.found(StateOK, "programs cannot be protected from the kernel's killer", "give the capability, if this is a container")
	}
	return c
}

// older compares the leading numbers of versions, part by part. One that has
// no number at its start is not older: nobody knows.
func older(version, least string) bool {
	have, want := numbers(version), numbers(least)
	if len(have) == 0 {
		return false
	}
	for len(have) < len(want) {
		have = append(have, 0)
	}
	return slices.Compare(have[:len(want)], want) < 0
}

// numbers are the parts of "5.13.0-rc1" up to the first that has more than
// digits, with the digits of that one.
func numbers(version string) []int {
	var list []int
	for part := range strings.SplitSeq(version, ".") {
		digits := part
		if end := strings.IndexFunc(part, func(r rune) bool { return r < '0' || '9' < r }); end >= 0 {
			digits = part[:end]
		}
		n, err := strconv.Atoi(digits)
		if err != nil {
			break
		}
		list = append(list, n)
		if digits != part {
			break
		}
	}
	return list
}
