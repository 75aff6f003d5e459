package host

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Hierarchy is one mounted cgroup file system. A machine with cgroup v1 has
// one for each controller (or pair of them), and often a v2 one beside them.
type Hierarchy struct {
	Mount   string // where it is mounted on this machine
	V2      bool
	Options string // what a second mount of the same hierarchy must name
}

// Hierarchies lists the cgroup file systems in a /proc/PID/mountinfo, parents
// before children. The first mount of each hierarchy counts.
func Hierarchies(mountinfo []byte) []Hierarchy {
	var found []Hierarchy
	for line := range bytes.Lines(mountinfo) {
		before, after, ok := strings.Cut(strings.TrimSpace(string(line)), " - ")
		left, right := strings.Fields(before), strings.Fields(after)
		if !ok || len(left) < 5 || len(right) < 3 {
			continue
		}
		h := Hierarchy{Mount: left[4], V2: right[0] == "cgroup2"}
		if right[0] == "cgroup" {
			h.Options = v1Options(right[2])
		}
		same := func(o Hierarchy) bool { return o.V2 == h.V2 && o.Options == h.Options }
		if (right[0] == "cgroup" || h.V2) && !slices.ContainsFunc(found, same) {
			found = append(found, h)
		}
	}
	slices.SortStableFunc(found, func(a, b Hierarchy) int { return len(a.Mount) - len(b.Mount) })
	return found
}

// v1Options keeps the words of a v1 mount's super options that name the
// hierarchy: its controllers, or name=X for one without any.
func v1Options(super string) string {
	var words []string
	for word := range strings.SplitSeq(super, ",") {
		switch {
		case strings.HasPrefix(word, "name="):
			return "none," + word
		case slices.Contains(notControllers(), word) || strings.HasPrefix(word, "release_agent="):
		default:
			words = append(words, word)
		}
	}
	return strings.Join(words, ",")
}

// notControllers are words that the kernel adds to the super options by itself.
func notControllers() []string {
	return []string{"rw", "ro", "seclabel", "xattr", "clone_children", "noprefix", "cpuset_v2_mode"}
}

// MountedHierarchies lists the cgroup file systems this process sees.
func MountedHierarchies() ([]Hierarchy, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("cannot list cgroup mounts: %w", err)
	}
	found := Hierarchies(data)
	if len(found) == 0 {
		return nil, errors.New("cannot find a cgroup file system: mount one at /sys/fs/cgroup")
	}
	return found, nil
}

// IsV1 tells whether controllers are split over v1 hierarchies, as kubelet
// sees it: anything but a v2 file system at the place of the first mount.
func IsV1(hierarchies []Hierarchy) bool {
	return len(hierarchies) > 0 && !hierarchies[0].V2
}

// Cgroup is one control group, the same path in every hierarchy.
type Cgroup struct {
	path        string
	hierarchies []Hierarchy
}

// NewCgroup names the group at path ("/kuorum/lab/cp1") in hierarchies; it
// makes nothing.
func NewCgroup(hierarchies []Hierarchy, path string) *Cgroup {
	return &Cgroup{path: path, hierarchies: hierarchies}
}

// Create makes the group and its parents wherever they are missing. On v1 a
// new cpuset group gets its parent's cpus and mems first, since without them
// no process may enter; on v2 every controller is handed down to it.
func (c *Cgroup) Create() error {
	for _, h := range c.hierarchies {
		dir := h.Mount
		for part := range strings.SplitSeq(strings.Trim(c.path, "/"), "/") {
			if err := c.handDown(h, dir); err != nil {
				return err
			}
			parent := dir
			dir = filepath.Join(dir, part)
			if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("cannot make cgroup %s: %w", dir, err)
			}
			if err := inheritCpuset(parent, dir); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *Cgroup) handDown(h Hierarchy, dir string) error {
	if !h.V2 {
		return nil
	}
	return DelegateControllers(dir)
}

// DelegateControllers lets the children of the v2 group at dir use every
// controller that the group itself has. The group must hold no process,
// unless it is the root of the whole hierarchy (cgroup-v2, "no internal
// processes").
func DelegateControllers(dir string) error {
	data, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return fmt.Errorf("cannot read the controllers of cgroup %s: %w", dir, err)
	}
	var words []string
	for name := range strings.FieldsSeq(string(data)) {
		words = append(words, "+"+name)
	}
	if len(words) == 0 {
		return nil
	}
	file := filepath.Join(dir, "cgroup.subtree_control")
	if err := os.WriteFile(file, []byte(strings.Join(words, " ")), 0o644); err != nil {
		return fmt.Errorf("cannot hand the controllers of cgroup %s down: %w", dir, err)
	}
	return nil
}

func inheritCpuset(parent, dir string) error {
	for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
		own, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || len(bytes.TrimSpace(own)) > 0 {
			continue // not a cpuset hierarchy, or set already
		}
		data, err := os.ReadFile(filepath.Join(parent, name))
		if err != nil || len(bytes.TrimSpace(data)) == 0 {
			continue // v2, where empty means "as the parent"
		}
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			return fmt.Errorf("cannot give cgroup %s its %s: %w", dir, name, err)
		}
	}
	return nil
}

// Add moves the process pid, with all of its threads, into the group.
func (c *Cgroup) Add(pid int) error {
	for _, h := range c.hierarchies {
		file := filepath.Join(h.Mount, c.path, "cgroup.procs")
		if err := os.WriteFile(file, []byte(strconv.Itoa(pid)), 0o644); err != nil {
			return fmt.Errorf("cannot move process %d into cgroup %s: %w", pid, c.path, err)
		}
	}
	return nil
}

// PIDs lists the processes in the group and in the groups below it.
func (c *Cgroup) PIDs() []int {
	seen := map[int]bool{}
	for _, h := range c.hierarchies {
		for _, dir := range groupsUnder(filepath.Join(h.Mount, c.path)) {
			data, _ := os.ReadFile(filepath.Join(dir, "cgroup.procs")) // gone meanwhile is empty
			lines := bufio.NewScanner(bytes.NewReader(data))
			for lines.Scan() {
				if pid, err := strconv.Atoi(lines.Text()); err == nil && pid > 0 {
					seen[pid] = true
				}
			}
		}
	}
	var pids []int
	for pid := range seen {
		pids = append(pids, pid)
	}
	slices.Sort(pids)
	return pids
}

// Freeze holds every process of the group, and of the groups below it, where
// it is until Thaw. It blocks until all stand still, which takes some
// milliseconds; if ctx ends first they go on.
func (c *Cgroup) Freeze(ctx context.Context) error {
	f, ok := c.freezer()
	if !ok {
		return c.stopAll(ctx)
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		// v1 makes another try by another write when some did not stop.
		if err := os.WriteFile(f.file, []byte(f.freeze), 0o644); err != nil {
			return fmt.Errorf("cannot freeze cgroup %s: %w", c.path, err)
		}
		if state, err := os.ReadFile(f.state); err == nil && strings.Contains(string(state), f.frozen) {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("cannot freeze cgroup %s: %w", c.path, context.Cause(ctx)), c.Thaw())
		case <-tick.C:
		}
	}
}

// Thaw lets the processes of the group go on. A group that is not frozen, or
// does not exist, stays as it is.
func (c *Cgroup) Thaw() error {
	f, ok := c.freezer()
	if !ok {
		for _, pid := range c.PIDs() {
			_ = syscall.Kill(pid, syscall.SIGCONT) // it may have ended meanwhile
		}
		return nil
	}
	if err := os.WriteFile(f.file, []byte(f.thaw), 0o644); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot thaw cgroup %s: %w", c.path, err)
	}
	return nil
}

// thawAll thaws the groups below as well: v1 leaves those as they are that were
// frozen themselves.
func (c *Cgroup) thawAll() {
	_ = c.Thaw()
	for _, h := range c.hierarchies {
		below, _ := filepath.Glob(filepath.Join(h.Mount, c.path, "*", "freezer.state"))
		for _, file := range below {
			_ = os.WriteFile(file, []byte("THAWED"), 0o644)
		}
	}
}

// freezer is how one hierarchy freezes a group.
type freezer struct {
	file, freeze, thaw string // what is written to the file
	state, frozen      string // what stands in the other when all are frozen
}

// freezer is false where no hierarchy has one. That of v2 comes first, also
// beside v1: only there does a frozen process end by SIGKILL at once.
func (c *Cgroup) freezer() (freezer, bool) {
	var found freezer
	for _, h := range c.hierarchies {
		dir := filepath.Join(h.Mount, c.path)
		if _, err := os.Stat(filepath.Join(dir, "cgroup.freeze")); h.V2 && err == nil {
			return freezer{filepath.Join(dir, "cgroup.freeze"), "1", "0", filepath.Join(dir, "cgroup.events"), "frozen 1"}, true
		}
		if slices.Contains(strings.Split(h.Options, ","), "freezer") {
			state := filepath.Join(dir, "freezer.state")
			found = freezer{state, "FROZEN", "THAWED", state, "FROZEN"}
		}
	}
	return found, found.file != ""
}

// stopAll is Freeze on a kernel without a freezer: it stops one process after
// the other until a look at the group finds no new one.
func (c *Cgroup) stopAll(ctx context.Context) error {
	stopped := map[int]bool{}
	for {
		before := len(stopped)
		for _, pid := range c.PIDs() {
			_ = syscall.Kill(pid, syscall.SIGSTOP) // it may have ended meanwhile
			stopped[pid] = true
		}
		if len(stopped) == before {
			return nil
		}
		if ctx.Err() != nil {
			return errors.Join(fmt.Errorf("cannot freeze cgroup %s: %w", c.path, context.Cause(ctx)), c.Thaw())
		}
	}
}

// Remove ends every process in the group with SIGKILL, also one that is
// frozen, and removes the group with all below it. It blocks until the kernel
// has let go of them or ctx ends. A group that does not exist is removed
// already.
func (c *Cgroup) Remove(ctx context.Context) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		for _, pid := range c.PIDs() {
			_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended meanwhile
		}
		c.thawAll() // where v1 freezes, nothing ends before; if it failed, so will the removal
		left := c.removeEmpty()
		if left == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("cannot remove cgroup %s: %w", c.path, left)
		case <-tick.C:
		}
	}
}

func (c *Cgroup) removeEmpty() error {
	var left error
	for _, h := range c.hierarchies {
		dirs := groupsUnder(filepath.Join(h.Mount, c.path))
		for _, dir := range slices.Backward(dirs) {
			if err := syscall.Rmdir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
				left = fmt.Errorf("%s: %w", dir, err)
			}
		}
	}
	return left
}

// groupsUnder lists dir and every directory below it, parents first.
func groupsUnder(dir string) []string {
	var dirs []string
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return nil // a group that vanished while we looked is no error
	})
	return dirs
}

// CPU is the processor time that the processes of the group have used so far,
// those that ended included.
func (c *Cgroup) CPU() (time.Duration, error) {
	for _, h := range c.hierarchies {
		dir := filepath.Join(h.Mount, c.path)
		if data, err := os.ReadFile(filepath.Join(dir, "cpuacct.usage")); err == nil {
			n, err := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64)
			return time.Duration(n), err
		}
		data, err := os.ReadFile(filepath.Join(dir, "cpu.stat"))
		if usec, ok := strings.CutPrefix(firstLine(data), "usage_usec "); err == nil && ok && h.V2 && !IsV1(c.hierarchies) {
			n, err := strconv.ParseInt(usec, 10, 64)
			return time.Duration(n) * time.Microsecond, err
		}
	}
	return 0, fmt.Errorf("cannot read the CPU time of cgroup %s: no hierarchy counts it", c.path)
}

func firstLine(data []byte) string {
	line, _, _ := strings.Cut(string(data), "\n")
	return line
}

// RemoveIfEmpty removes the group where nothing is in it and leaves it alone
// elsewhere.
func (c *Cgroup) RemoveIfEmpty() {
	for _, h := range c.hierarchies {
		_ = syscall.Rmdir(filepath.Join(h.Mount, c.path)) // refused while it is in use
	}
}

// Controllers lists the cgroup controllers that hierarchies have, wherever they are,
// in order of name.
func Controllers(hierarchies []Hierarchy) ([]string, error) {
	var names []string
	for _, h := range hierarchies {
		if !h.V2 {
			names = append(names, strings.Split(h.Options, ",")...)
			continue
		}
		data, err := os.ReadFile(filepath.Join(h.Mount, "cgroup.controllers"))
		if err != nil {
			return nil, fmt.Errorf("cannot read the controllers of %s: %w", h.Mount, err)
		}
		names = append(names, strings.Fields(string(data))...)
	}
	names = slices.DeleteFunc(names, func(name string) bool { return name == "none" || strings.HasPrefix(name, "name=") })
	slices.Sort(names)
	return slices.Compact(names), nil
}
