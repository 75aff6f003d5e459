package lab

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"kuorum/internal/cluster"
)

// What a lab needs of its host. A server was measured at 330 MB, a worker at
// 150 MB; the rest is for pods. Disk is for logs, images and etcd; the bundle
// is counted by itself when it is unpacked.
const (
	serverMemoryMiB = 500
	workerMemoryMiB = 250
	machineDiskMiB  = 300
)

// checkHost refuses what could not work before anything is made.
func checkHost(root string, spec *cluster.Spec, l *Lab) error {
	if err := RequireRoot("kuorum up " + spec.Metadata.Name); err != nil {
		return err
	}
	if _, err := exec.LookPath("nft"); err != nil {
		return &cluster.Problem{
			What: "the program nft is missing", Why: "kube-proxy and flannel write their rules with it",
			Do: "apt-get install nftables    (or your distribution's package of that name)",
		}
	}
	if err := checkKernel(os.ReadFile); err != nil {
		return err
	}
	if err := checkPath(l); err != nil {
		return err
	}
	if _, running := l.Running(); running {
		return nil // it has what it needs
	}
	meminfo, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return fmt.Errorf("cannot read the free memory: %w", err)
	}
	if err := checkMemory(meminfo, spec); err != nil {
		return err
	}
	return checkDisk(root, spec)
}

// RequireRoot refuses to go on without root's rights; command is what to call
// with them.
func RequireRoot(command string) error {
	if os.Geteuid() == 0 {
		return nil
	}
	return &cluster.Problem{
		What: "this needs root", Why: "a lab is made of namespaces, mounts and control groups",
		Do: "sudo " + command,
	}
}

// checkKernel looks for what no later step could name as clearly.
func checkKernel(read func(string) ([]byte, error)) error {
	filesystems, err := read("/proc/filesystems")
	if err != nil {
		return fmt.Errorf("cannot read the kernel's file systems: %w", err)
	}
	if !bytes.Contains(filesystems, []byte("\toverlay\n")) {
		return &cluster.Problem{
			What: "this kernel has no overlay file system", Why: "machines and containers are made with it",
			Do: "modprobe overlay    (or a kernel with CONFIG_OVERLAY_FS)",
		}
	}
	for _, name := range []string{"net", "pid", "mnt", "uts", "ipc", "cgroup"} {
		if _, err := read("/proc/self/ns/" + name); errors.Is(err, fs.ErrNotExist) {
			return &cluster.Problem{
				What: fmt.Sprintf("this kernel has no %s namespaces", name), Why: "a machine is a set of namespaces",
				Do: "use a kernel with CONFIG_NAMESPACES and all of its kinds",
			}
		}
	}
	return nil
}

// maxSocketPath is what the kernel takes for a unix socket (unix(7)).
const maxSocketPath = 107

func checkPath(l *Lab) error {
	path := l.path(controlSocket)
	if len(path) <= maxSocketPath {
		return nil
	}
	return &cluster.Problem{
		What: "the place for labs has too long a path", Why: fmt.Sprintf("a socket's path has at most %d bytes, %s has %d", maxSocketPath, path, len(path)),
		Do: "use a shorter one: KUORUM_STATE=/var/lib/kuorum",
	}
}

func checkMemory(meminfo []byte, spec *cluster.Spec) error {
	need := serverMemoryMiB*len(spec.Servers()) + workerMemoryMiB*len(spec.Workers())
	for line := range strings.Lines(string(meminfo)) {
		value, ok := strings.CutPrefix(line, "MemAvailable:")
		if !ok {
			continue
		}
		kib, err := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(value), " kB"))
		if err != nil {
			return fmt.Errorf("cannot read the free memory: %w", err)
		}
		if kib>>10 < need {
			return &cluster.Problem{
				What: "there is too little free memory for this lab",
				Why:  fmt.Sprintf("%d machines need %d MiB, %d MiB are available", len(spec.Spec.Nodes), need, kib>>10),
				Do:   "kuorum up --servers 1    (or end something else)",
			}
		}
		return nil
	}
	return errors.New("cannot read the free memory: /proc/meminfo has no MemAvailable")
}

func checkDisk(root string, spec *cluster.Spec) error {
	dir := root
	var stat syscall.Statfs_t
	for errors.Is(syscall.Statfs(dir, &stat), fs.ErrNotExist) {
		dir = filepath.Dir(dir)
	}
	free := int(stat.Bavail * uint64(stat.Bsize) >> 20)
	need := machineDiskMiB * len(spec.Spec.Nodes)
	if free < need {
		return &cluster.Problem{
			What: "there is too little free disk for this lab",
			Why:  fmt.Sprintf("%d machines need %d MiB in %s, %d MiB are free", len(spec.Spec.Nodes), need, dir, free),
			Do:   "free some space there, or use another disk: KUORUM_STATE=/other/disk/kuorum",
		}
	}
	return nil
}
