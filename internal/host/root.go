package host

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Root is the root file system of a lab machine: an overlay of the host's
// root, with directories of its own where programs write for real.
type Root struct {
	// Dir is the machine's directory on disk. The overlay's upper and work
	// directories lie in it, so it must be on a file system that can carry
	// them (not on an overlay).
	Dir string
	// Own are paths of the machine ("/var") backed by Dir/PATH directly, not
	// by the overlay: containerd's and kubelet's own mounts need that.
	Own []string
	// Binds are host paths shown inside, read-only, as inside path: host path.
	Binds map[string]string
	// Sysctls are shown as files that already hold the value a program
	// wants, so that nobody writes the host's.
	Sysctls map[string]string
}

// Enter builds the root and makes it this process's. The caller must be the
// first process of new mount and pid namespaces, inside the machine's cgroup
// and a cgroup namespace. Nothing of it is visible outside the namespace, and
// all of it goes when its last process does.
func (r Root) Enter(hierarchies []Hierarchy) error {
	root := filepath.Join(r.Dir, "root")
	steps := []func(string) error{
		r.overlay, r.own, r.kernel, cgroupMounts(hierarchies), r.sysctls, r.binds, pivot,
	}
	for _, step := range steps {
		if err := step(root); err != nil {
			return err
		}
	}
	return nil
}

func (r Root) overlay(root string) error {
	if err := mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	upper, work := filepath.Join(r.Dir, "upper"), filepath.Join(r.Dir, "work")
	for _, dir := range []string{root, upper, work} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("cannot make the machine's root: %w", err)
		}
	}
	if err := mount("overlay", root, "overlay", 0, "lowerdir=/,upperdir="+upper+",workdir="+work); err != nil {
		return err
	}
	return bindSeparate(root)
}

// bindSeparate shows the system directories that are file systems of their
// own on the host (a /usr partition, NixOS's /nix): an overlay of / lacks them.
func bindSeparate(root string) error {
	for _, dir := range []string{"/usr", "/opt", "/nix"} {
		var own, top unix.Stat_t
		if unix.Stat(dir, &own) != nil || unix.Stat("/", &top) != nil || own.Dev == top.Dev {
			continue
		}
		if err := bindReadOnly(dir, filepath.Join(root, dir)); err != nil {
			return err
		}
	}
	return nil
}

func (r Root) own(root string) error {
	for _, path := range r.Own {
		from, to := filepath.Join(r.Dir, path), filepath.Join(root, path)
		if err := errors.Join(os.MkdirAll(from, 0o755), os.MkdirAll(to, 0o755)); err != nil {
			return fmt.Errorf("cannot make the machine's %s: %w", path, err)
		}
		if err := mount(from, to, "", unix.MS_BIND, ""); err != nil {
			return err
		}
	}
	return nil
}

// kernel mounts what the kernel shows to this machine. Devices are the host's.
func (r Root) kernel(root string) error {
	tmpfs := func(path, mode string) error {
		return mount("tmpfs", filepath.Join(root, path), "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode="+mode)
	}
	return errors.Join(
		mount("proc", filepath.Join(root, "proc"), "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""),
		mount("sysfs", filepath.Join(root, "sys"), "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""),
		mount("/dev", filepath.Join(root, "dev"), "", unix.MS_BIND|unix.MS_REC, ""),
		tmpfs("run", "0755"), tmpfs("tmp", "1777"), tmpfs("dev/shm", "1777"),
	)
}

// cgroupMounts mounts every hierarchy anew: inside a cgroup namespace its
// root is the machine's own group, so the machine looks like a whole one.
func cgroupMounts(hierarchies []Hierarchy) func(string) error {
	return func(root string) error {
		top := filepath.Join(root, "/sys/fs/cgroup")
		if IsV1(hierarchies) {
			if err := mount("tmpfs", top, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0755"); err != nil {
				return err
			}
		}
		for _, h := range hierarchies {
			if err := mountHierarchy(root, h); err != nil {
				return err
			}
		}
		return copyLinks("/sys/fs/cgroup", top)
	}
}

func mountHierarchy(root string, h Hierarchy) error {
	to := filepath.Join(root, h.Mount)
	if err := os.MkdirAll(to, 0o755); err != nil {
		return fmt.Errorf("cannot make the machine's cgroup directory: %w", err)
	}
	kind := "cgroup"
	if h.V2 {
		kind = "cgroup2"
	}
	return mount(kind, to, kind, unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, h.Options)
}

// copyLinks repeats the host's names for joined controllers (cpu -> cpu,cpuacct).
func copyLinks(from, to string) error {
	entries, err := os.ReadDir(from)
	if err != nil {
		return fmt.Errorf("cannot read %s: %w", from, err)
	}
	for _, e := range entries {
		if e.Type()&fs.ModeSymlink == 0 {
			continue
		}
		target, err := os.Readlink(filepath.Join(from, e.Name()))
		if err == nil {
			err = os.Symlink(target, filepath.Join(to, e.Name()))
		}
		if err != nil {
			return fmt.Errorf("cannot link cgroup %s: %w", e.Name(), err)
		}
	}
	return nil
}

// sysctls shows r.Sysctls and makes all of /proc/sys but the network's part
// (which belongs to the machine's namespace) read-only.
func (r Root) sysctls(root string) error {
	sys := filepath.Join(root, "proc/sys")
	if err := mount(sys, sys, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	network := filepath.Join(sys, "net")
	if err := mount(network, network, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	for name, value := range r.Sysctls {
		if err := r.fakeSysctl(sys, name, value); err != nil {
			return err
		}
	}
	return mount("", sys, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
}

func (r Root) fakeSysctl(sys, name, value string) error {
	target := filepath.Join(sys, name)
	if _, err := os.Stat(target); errors.Is(err, fs.ErrNotExist) {
		return nil // this kernel has no such knob
	}
	file := filepath.Join(r.Dir, "sysctl", strings.ReplaceAll(name, "/", "."))
	if err := WriteFile(file, []byte(value+"\n"), 0o444); err != nil {
		return err
	}
	return mount(file, target, "", unix.MS_BIND, "")
}

func (r Root) binds(root string) error {
	var inside []string
	for path := range r.Binds {
		inside = append(inside, path)
	}
	slices.Sort(inside) // parents before children
	for _, path := range inside {
		if err := bindReadOnly(r.Binds[path], filepath.Join(root, path)); err != nil {
			return err
		}
	}
	return nil
}

func bindReadOnly(from, to string) error {
	info, err := os.Stat(from)
	if err != nil {
		return fmt.Errorf("cannot show %s to the machine: %w", from, err)
	}
	target := makeFile
	if info.IsDir() {
		target = func(path string) error { return os.MkdirAll(path, 0o755) }
	}
	if err := target(to); err != nil {
		return fmt.Errorf("cannot show %s to the machine: %w", from, err)
	}
	if err := mount(from, to, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return err
	}
	return mount("", to, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")
}

// makeFile makes an empty file for a mount to hide.
func makeFile(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o644)
	if err != nil {
		return err
	}
	return f.Close()
}

func pivot(root string) error {
	if err := os.Chdir(root); err != nil {
		return fmt.Errorf("cannot enter the machine's root: %w", err)
	}
	// With both arguments the same directory the old root ends up on top of
	// the new one and can be let go of without a place of its own
	// (pivot_root(2), NOTES).
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("cannot make %s the root: %w", root, err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("cannot let go of the host's root: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return fmt.Errorf("cannot enter the machine's root: %w", err)
	}
	// Mounts must propagate inside (kubelet's bidirectional ones); nothing
	// comes back to the host, from which overlay has cut us.
	return mount("", "/", "", unix.MS_REC|unix.MS_SHARED, "")
}

func mount(from, to, kind string, flags uintptr, options string) error {
	if err := unix.Mount(from, to, kind, flags, options); err != nil {
		return fmt.Errorf("cannot mount %s at %s: %w", cmp.Or(kind, from, "(flags)"), to, err)
	}
	return nil
}
