package host

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

const inotifyLimit = "fs/inotify/max_user_instances"

// Inotify is how many instances of inotify all processes of root hold, and how
// many they may (inotify(7)). The kernel counts them per user, across all
// containers and namespaces that have no user namespace of their own.
func Inotify() (used, limit int, err error) {
	text, err := os.ReadFile(filepath.Join("/proc/sys", inotifyLimit))
	if err != nil {
		return 0, 0, fmt.Errorf("cannot read the limit of inotify: %w", err)
	}
	if limit, err = strconv.Atoi(strings.TrimSpace(string(text))); err != nil {
		return 0, 0, fmt.Errorf("cannot read the limit of inotify: %w", err)
	}
	links, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return 0, 0, fmt.Errorf("cannot count what uses inotify: %w", err)
	}
	for _, link := range links {
		if to, err := os.Readlink(link); err == nil && to == "anon_inode:inotify" && rootOwns(link) {
			used++
		}
	}
	return used, limit, nil
}

// LimitInotify sets how many instances the processes of each user may hold, on
// the whole host and until it starts again.
func LimitInotify(limit int) error { return Sysctl(inotifyLimit, strconv.Itoa(limit)) }

// rootOwns tells whether the process whose descriptor that is runs as root.
func rootOwns(link string) bool {
	process, err := os.Stat(filepath.Dir(filepath.Dir(link)))
	if err != nil {
		return false
	}
	stat, ok := process.Sys().(*syscall.Stat_t)
	return ok && stat.Uid == 0
}
