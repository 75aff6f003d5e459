package host

import (
	"fmt"
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
