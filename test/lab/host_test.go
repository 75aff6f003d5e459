//go:build lab

package lab_test

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/go-cmp/cmp"
)

// snapshot is everything of a host that a lab could leave a trace in.
type snapshot map[string][]string

func takeSnapshot() (snapshot, error) {
	s := snapshot{}
	for name, argv := range map[string][]string{
		"links":     {"ip", "-o", "link"},
		"addresses": {"ip", "-o", "-4", "address"},
		"routes":    {"ip", "route", "show", "table", "all"},
		"rules":     {"ip", "rule"},
		"nftables":  {"nft", "list", "ruleset"},
		"sysctls":   {"sysctl", "-a", "-r", `^(vm\.(overcommit|panic)|kernel\.(panic|keys)|net\.(ipv4\.(ip_forward|conf)|bridge|netfilter\.nf_conntrack_max))`},
	} {
		out, err := exec.Command(argv[0], argv[1:]...).Output()
		if err != nil {
			return nil, fmt.Errorf("%v: %w", argv, err)
		}
		s[name] = strings.Split(strings.TrimSpace(string(out)), "\n")
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return nil, err
	}
	s["mounts"] = strings.Split(string(mounts), "\n")
	s["loop devices"], _ = filepath.Glob("/sys/block/loop*/loop/backing_file")
	s["cgroups"] = kuorumCgroups()
	s["processes"] = kuorumProcesses()
	s["namespaces"] = networkNamespaces()
	return s, nil
}

// kuorumCgroups lists the groups that labs of the tests could have made.
func kuorumCgroups() []string {
	var found []string
	_ = filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && strings.Contains(path, "/kuorum") {
			found = append(found, path)
		}
		return nil // a group that vanished meanwhile
	})
	slices.Sort(found)
	return found
}

// kuorumProcesses lists what belongs to a lab: every process of one has our
// program or the bundle's path in its command line.
func kuorumProcesses() []string {
	var found []string
	paths, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range paths {
		data, _ := os.ReadFile(path) // ended meanwhile is empty
		line := strings.ReplaceAll(string(data), "\x00", " ")
		if strings.Contains(line, "/var/lib/kuorum/bundle/") || strings.Contains(line, "kuorum machine") || strings.Contains(line, "kuorum lab process") {
			found = append(found, line)
		}
	}
	slices.Sort(found)
	return found
}

// networkNamespaces lists the distinct ones that processes are in.
func networkNamespaces() []string {
	var found []string
	paths, _ := filepath.Glob("/proc/[0-9]*/ns/net")
	for _, path := range paths {
		if target, err := os.Readlink(path); err == nil {
			found = append(found, target)
		}
	}
	slices.Sort(found)
	return slices.Compact(found)
}

func (s snapshot) diff(after snapshot) string { return cmp.Diff(s, after) }

// network is the part of a snapshot that a running lab must not change either.
func (s snapshot) network() snapshot {
	part := snapshot{}
	for _, name := range []string{"links", "addresses", "routes", "rules", "nftables", "sysctls", "mounts", "loop devices"} {
		part[name] = s[name]
	}
	return part
}
