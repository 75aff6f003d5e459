package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"

	"kuorum/internal/host"
)

// Facts are what was measured of a machine without loading it. Those that
// nobody asked for, or may ask, are empty.
type Facts struct {
	Release     string   // of the kernel
	Overlay     bool     // the kernel has the file system
	NoNamespace []string // kinds of namespaces that the kernel lacks
	Nft         string   // version; empty: there is no such program
	CgroupV1    bool
	Controllers []string // of control groups
	Memory      Memory
	Processors  int
	Disk        Disk
	Inotify     Inotify
	Root        bool   // we have root's rights
	LowerOOM    bool   // we may protect programs from the kernel's killer
	Cloud       string // whose machine this is, of those that carry no virtual IP; empty: nobody's that is known
}

// Memory of a machine, in bytes.
type Memory struct{ Total, Available, SwapTotal, SwapFree int64 }

// Inotify is how many instances root's processes hold, and may hold.
type Inotify struct{ Used, Limit int }

// Enough is a limit that has what need takes: the one that is, or a higher one.
func (i Inotify) Enough(need Need) int {
	if i.Limit-i.Used >= need.Inotify {
		return i.Limit
	}
	return max(512, 2*i.Limit, i.Used+2*need.Inotify)
}

// Disk is the file system that a directory is on, or will be.
type Disk struct {
	Dir        string // the directory, or the nearest above it that exists
	Kind       string // "ext4"
	Free, Size int64  // bytes
}

// Measure looks at this machine; dir is where kuorum keeps its data. It takes
// milliseconds and changes nothing.
func Measure(ctx context.Context, dir string) (Facts, error) {
	f := Facts{Processors: runtime.NumCPU(), Root: os.Geteuid() == 0, LowerOOM: host.CanLowerOOMScore()}
	var err error
	f.Cloud = cloud(os.DirFS("/sys"))
	if f.Release, err = host.KernelRelease(); err != nil {
		return f, err
	}
	filesystems, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		return f, fmt.Errorf("cannot read the kernel's file systems: %w", err)
	}
	f.Overlay = strings.Contains(string(filesystems), "\toverlay\n")
	f.NoNamespace = missingNamespaces(func(path string) error {
		_, err := os.Lstat(path)
		return err
	})
	f.Nft = nftVersion(ctx)
	hierarchies, err := host.MountedHierarchies()
	if err == nil {
		f.CgroupV1 = host.IsV1(hierarchies)
		f.Controllers, _ = host.Controllers(hierarchies) // none: the check says so
	}
	meminfo, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return f, fmt.Errorf("cannot read the free memory: %w", err)
	}
	if f.Memory, err = parseMeminfo(meminfo); err != nil {
		return f, err
	}
	if f.Inotify.Used, f.Inotify.Limit, err = host.Inotify(); err != nil {
		return f, err
	}
	f.Disk, err = measureDisk(dir)
	return f, err
}

// clouds are known by what their machines' firmware says (DMI). Their networks drop the
// packets of an address that they have not given to a machine themselves.
func clouds() []struct{ file, text, name string } {
	return []struct{ file, text, name string }{
		{"sys_vendor", "Amazon EC2", "Amazon EC2"},
		{"bios_vendor", "Amazon EC2", "Amazon EC2"},
		{"product_name", "Google Compute Engine", "Google Cloud"},
		{"chassis_asset_tag", "7783-7084-3265-9085-8269-3286-77", "Microsoft Azure"}, // Hyper-V elsewhere has another
		{"chassis_asset_tag", "OracleCloud.com", "Oracle Cloud"},
		{"sys_vendor", "Alibaba Cloud", "Alibaba Cloud"},
		{"sys_vendor", "DigitalOcean", "DigitalOcean"},
		{"sys_vendor", "Hetzner", "Hetzner Cloud"},
		{"sys_vendor", "Scaleway", "Scaleway"},
		{"sys_vendor", "Vultr", "Vultr"},
		{"sys_vendor", "Linode", "Linode"},
		{"sys_vendor", "Akamai", "Linode"},
		{"sys_vendor", "UpCloud", "UpCloud"},
		{"product_name", "OpenStack", "OpenStack"},
	}
}

// cloud reads sysfs. A machine of a lab, or a container, has no hardware link: it is in
// a network of its own, whosever the computer is.
func cloud(sys fs.FS) string {
	links, err := fs.Glob(sys, "class/net/*/device")
	if err != nil || len(links) == 0 {
		return ""
	}
	for _, c := range clouds() {
		data, err := fs.ReadFile(sys, "class/dmi/id/"+c.file)
		if err == nil && strings.Contains(string(data), c.text) {
			return c.name
		}
	}
	return ""
}

func measureDisk(dir string) (Disk, error) {
	d := Disk{Dir: host.Existing(dir)}
	var err error
	if d.Free, d.Size, err = host.Space(d.Dir); err != nil {
		return d, err
	}
	mountinfo, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return d, fmt.Errorf("cannot list the mounts: %w", err)
	}
	d.Kind = host.FileSystem(mountinfo, d.Dir)
	return d, nil
}

// missingNamespaces asks, by the names of /proc, for those that a machine of a
// lab, or a pod, is made of.
func missingNamespaces(lstat func(string) error) []string {
	var missing []string
	for _, name := range []string{"net", "pid", "mnt", "uts", "ipc", "cgroup"} {
		if errors.Is(lstat("/proc/self/ns/"+name), fs.ErrNotExist) {
			missing = append(missing, name)
		}
	}
	return missing
}

// nftVersion is what the program says of itself: "nftables v1.0.6 (name)".
func nftVersion(ctx context.Context) string {
	path, err := exec.LookPath("nft")
	if err != nil {
		return ""
	}
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	fields := strings.Fields(string(out))
	if err != nil || len(fields) < 2 {
		return "unknown"
	}
	return strings.TrimPrefix(fields[1], "v")
}

// parseMeminfo reads /proc/meminfo. A kernel without swap has no lines for it.
func parseMeminfo(data []byte) (Memory, error) {
	values := map[string]int64{}
	for line := range strings.Lines(string(data)) {
		name, value, _ := strings.Cut(line, ":")
		kib, isKiB := strings.CutSuffix(strings.TrimSpace(value), " kB")
		if !isKiB {
			continue
		}
		n, err := strconv.ParseInt(kib, 10, 64)
		if err != nil {
			return Memory{}, fmt.Errorf("cannot read the free memory: %w", err)
		}
		values[name] = n << 10
	}
	if _, ok := values["MemAvailable"]; !ok {
		return Memory{}, errors.New("cannot read the free memory: /proc/meminfo has no MemAvailable")
	}
	return Memory{
		Total: values["MemTotal"], Available: values["MemAvailable"],
		SwapTotal: values["SwapTotal"], SwapFree: values["SwapFree"],
	}, nil
}
