package host

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// ErrLocked says that another process, or another part of this one, holds a
// lock.
var ErrLocked = errors.New("lock is held")

// LockExclusive takes the lock at path, a file made if it is missing and never removed,
// or fails at once with ErrLocked. Close releases it; so does the end of the
// process, however it comes.
//
// The lock (flock(2)) belongs to the open file, which a child shares from its
// fork until its exec. Whoever gets the lock therefore knows that each child of
// the former holder has either ended or shows its own program and environment.
func LockExclusive(path string) (io.Closer, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("cannot make the directory of %s: %w", path, err)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot lock %s: %w", path, err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = ErrLocked
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("cannot lock %s: %w", path, err), f.Close())
	}
	return f, nil
}
