// Package host is the Linux machine kuorum runs on: files written so that a
// power cut cannot halve them, processes, namespaces, mounts, cgroups and
// links. It is the only package that speaks netlink or raw system calls; it
// knows nothing of Kubernetes.
package host

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// WriteFile writes data to path so that a reader, or a machine that lost its
// power, sees the old content or the new, never a part: temporary file,
// fsync, rename, fsync of the directory. Missing parent directories are made
// with mode 0755.
func WriteFile(path string, data []byte, mode fs.FileMode) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("cannot make the directory of %s: %w", path, err)
	}
	tmp, err := os.CreateTemp(dir, ".tmp-"+filepath.Base(path)+"-*")
	if err != nil {
		return fmt.Errorf("cannot write %s: %w", path, err)
	}
	if err := errors.Join(fill(tmp, data, mode), tmp.Close()); err != nil {
		return errors.Join(fmt.Errorf("cannot write %s: %w", path, err), os.Remove(tmp.Name()))
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return errors.Join(fmt.Errorf("cannot write %s: %w", path, err), os.Remove(tmp.Name()))
	}
	return syncDir(dir)
}

func fill(f *os.File, data []byte, mode fs.FileMode) error {
	if _, err := f.Write(data); err != nil {
		return err
	}
	if err := f.Chmod(mode); err != nil {
		return err
	}
	return f.Sync()
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("cannot sync %s: %w", dir, err)
	}
	return errors.Join(d.Sync(), d.Close())
}

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
