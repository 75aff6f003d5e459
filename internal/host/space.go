package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// Space is how many bytes the file system of path has, and how many of them
// root can still fill.
func Space(path string) (free, size int64, err error) {
	var s syscall.Statfs_t
	if err := syscall.Statfs(path, &s); err != nil {
		return 0, 0, fmt.Errorf("cannot measure the file system of %s: %w", path, err)
	}
	return int64(s.Bfree) * s.Bsize, int64(s.Blocks) * s.Bsize, nil //nolint:gosec // no disk has 2^63 bytes
}

// Existing is path, or the nearest directory above it that exists: what is
// going to be made there will be on the same file system.
func Existing(path string) string {
	for path != "/" && path != "." {
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			return path
		}
		path = filepath.Dir(path)
	}
	return path
}

// FileSystem is the kind ("ext4") of the file system that an absolute path is
// on, from the lines of a /proc/PID/mountinfo; empty when none has it. Of
// several mounts at one place the last one is seen.
func FileSystem(mountinfo []byte, path string) string {
	kind, longest := "", -1
	for line := range strings.Lines(string(mountinfo)) {
		before, after, ok := strings.Cut(line, " - ")
		left, right := strings.Fields(before), strings.Fields(after)
		if !ok || len(left) < 5 || len(right) < 1 {
			continue
		}
		at := strings.TrimSuffix(left[4], "/")
		if (path == at || strings.HasPrefix(path, at+"/")) && len(at) >= longest {
			kind, longest = right[0], len(at)
		}
	}
	return kind
}
