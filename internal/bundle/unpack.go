package bundle

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"kuorum/internal/cluster"
	"kuorum/internal/host"
)

const (
	lockName   = ".lock"
	workPrefix = ".unpack-"
	dirDigits  = 16 // of the digest, in the name of the directory
	lockPoll   = 20 * time.Millisecond
)

// Dir is where Unpack puts the bundle below root.
func (b *Bundle) Dir(root string) string { return filepath.Join(root, b.digest[:dirDigits]) }

// Unpack makes sure that root holds the bundle, whole and unchanged, and
// returns its directory: bin and images. Parts that are there already are only
// checked (well under a second for 500 MB in the page cache); those that are
// missing or damaged are written beside and renamed into place, so a program
// that runs from the directory is not disturbed. Callers at the same time, also
// in different processes, wait for each other; what a killed one left is
// removed. When it fails, the directory is as it was.
//
// progress may be nil. It is called with the bytes written and to be written,
// by one goroutine at a time, and not at all if nothing has to be written.
func (b *Bundle) Unpack(ctx context.Context, root string, progress func(done, total int64)) (dir string, err error) {
	lock, err := lockRoot(ctx, root)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	if err := sweep(root); err != nil {
		return "", err
	}
	dir = b.Dir(root)
	damaged, err := b.Damaged(ctx, dir)
	if err != nil {
		return "", err
	}
	if len(damaged) > 0 {
		if err := b.write(ctx, dir, damaged, progress); err != nil {
			return "", fmt.Errorf("cannot unpack the bundle into %s: %w", dir, err)
		}
	}
	if err := b.link(dir); err != nil {
		return "", fmt.Errorf("cannot unpack the bundle into %s: %w", dir, err)
	}
	return dir, nil
}

// write puts parts into dir: first all of them into a directory beside it, then,
// when nothing can run out of space any more, each into its place.
func (b *Bundle) write(ctx context.Context, dir string, parts []Part, progress func(done, total int64)) (err error) {
	root := filepath.Dir(dir)
	meter := &meter{total: size(parts), report: progress}
	if err := checkSpace(root, meter.total); err != nil {
		return err
	}
	work, err := os.MkdirTemp(root, workPrefix)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(runtime.NumCPU())
	for _, p := range parts {
		group.Go(func() error { return b.writePart(groupCtx, p, filepath.Join(work, path.Base(p.File)), meter) })
	}
	if err := group.Wait(); err != nil {
		return lackOfSpace(root, meter.total, err)
	}
	for _, p := range parts {
		if err := put(filepath.Join(work, path.Base(p.File)), filepath.Join(dir, p.File)); err != nil {
			return err
		}
	}
	return nil
}

func (b *Bundle) writePart(ctx context.Context, p Part, path string, m *meter) (err error) {
	r, err := b.open(p)
	if err != nil {
		return fmt.Errorf("cannot read %s: %w", p.File, err)
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode(p))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	hash := sha256.New()
	n, err := io.Copy(io.MultiWriter(f, hash, m, cancelled{ctx}), io.LimitReader(r, p.Size+1))
	if err != nil {
		return fmt.Errorf("cannot write %s: %w", p.File, err)
	}
	if n != p.Size || hex.EncodeToString(hash.Sum(nil)) != p.SHA256 {
		return &cluster.Problem{
			What: "the bundle is damaged",
			Why:  fmt.Sprintf("%s (%s) does not have the checksum of its manifest", p.File, b.Origin),
			Do:   "make bundle build",
		}
	}
	// The umask must not take the execute bits of other users.
	return errors.Join(f.Chmod(mode(p)), f.Sync())
}

// put moves a file to its place, whatever was there.
func put(from, to string) error {
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	if info, err := os.Lstat(to); err == nil && info.IsDir() {
		if err := os.RemoveAll(to); err != nil {
			return err
		}
	}
	if err := os.Rename(from, to); err != nil {
		return err
	}
	return syncDir(filepath.Dir(to))
}

// link gives the parts their further names.
func (b *Bundle) link(dir string) error {
	for _, p := range b.Manifest.Parts {
		for _, name := range p.Links {
			link, target := filepath.Join(dir, path.Dir(p.File), name), path.Base(p.File)
			if now, err := os.Readlink(link); err == nil && now == target {
				continue
			}
			fresh := filepath.Join(filepath.Dir(dir), workPrefix+name)
			if err := os.Symlink(target, fresh); err != nil {
				return err
			}
			if err := put(fresh, link); err != nil {
				return err
			}
		}
	}
	return nil
}

// Prune removes every unpacked bundle below root but the one in directory keep.
// Programs that run from a removed one go on, but cannot be started again.
func Prune(ctx context.Context, root, keep string) (err error) {
	lock, err := lockRoot(ctx, root)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	unpacked := regexp.MustCompile(fmt.Sprintf("^[0-9a-f]{%d}$", dirDigits))
	return remove(root, func(name string) bool {
		return unpacked.MatchString(name) && name != filepath.Base(keep)
	})
}

// sweep removes what killed unpackers left. The lock is held: none is alive.
func sweep(root string) error {
	return remove(root, func(name string) bool { return strings.HasPrefix(name, workPrefix) })
}

func remove(root string, match func(name string) bool) error {
	entries, err := os.ReadDir(root)
	if err != nil {
		return fmt.Errorf("cannot list bundles: %w", err)
	}
	for _, e := range entries {
		if !match(e.Name()) {
			continue
		}
		if err := os.RemoveAll(filepath.Join(root, e.Name())); err != nil {
			return fmt.Errorf("cannot remove an old bundle: %w", err)
		}
	}
	return nil
}

func lockRoot(ctx context.Context, root string) (io.Closer, error) {
	tick := time.NewTicker(lockPoll)
	defer tick.Stop()
	for {
		lock, err := host.LockExclusive(filepath.Join(root, lockName))
		if !errors.Is(err, host.ErrLocked) {
			return lock, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("cannot wait for another unpack in %s: %w", root, context.Cause(ctx))
		case <-tick.C:
		}
	}
}

func checkSpace(root string, needed int64) error {
	if free, err := freeBytes(root); err == nil && free < needed {
		return spaceProblem(root, needed, free)
	}
	return nil // where it cannot be told, writing will
}

// lackOfSpace explains err if the reason is a full disk.
func lackOfSpace(root string, needed int64, err error) error {
	if !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EDQUOT) {
		return err
	}
	free, _ := freeBytes(root) // 0 is near enough on a full disk
	return errors.Join(spaceProblem(root, needed, free), err)
}

func spaceProblem(root string, needed, free int64) error {
	return &cluster.Problem{
		What: "not enough disk space for the bundle",
		Why:  fmt.Sprintf("%s has %d MiB (%d bytes) free and needs %d MiB (%d bytes)", root, free>>20, free, needed>>20, needed),
		Do:   "free some space there: df -h " + root,
	}
}

func freeBytes(dir string) (int64, error) {
	var s syscall.Statfs_t
	if err := syscall.Statfs(dir, &s); err != nil {
		return 0, err
	}
	return int64(s.Bavail) * s.Bsize, nil
}

func mode(p Part) fs.FileMode {
	if path.Dir(p.File) == "bin" {
		return 0o755
	}
	return 0o644
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// meter adds up what several writers write.
type meter struct {
	mu          sync.Mutex
	done, total int64
	report      func(done, total int64)
}

func (m *meter) Write(b []byte) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.done += int64(len(b))
	if m.report != nil {
		m.report(m.done, m.total)
	}
	return len(b), nil
}

// cancelled is a writer that fails once its context has ended.
type cancelled struct{ ctx context.Context }

func (c cancelled) Write(b []byte) (int, error) {
	return len(b), context.Cause(c.ctx)
}
