package bundle

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sync/errgroup"
)

// Damaged returns the parts that are not in dir exactly as the manifest has
// them: missing, changed by a single bit, or not executable. It reads every
// byte, on all cores. An error means that dir could not be judged.
func (b *Bundle) Damaged(ctx context.Context, dir string) ([]Part, error) {
	parts := b.Manifest.Parts
	bad := make([]bool, len(parts))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(runtime.NumCPU())
	for i, p := range parts {
		group.Go(func() error {
			bad[i] = !intact(ctx, filepath.Join(dir, p.File), p)
			return context.Cause(ctx)
		})
	}
	if err := group.Wait(); err != nil {
		return nil, fmt.Errorf("cannot check the bundle in %s: %w", dir, err)
	}
	var damaged []Part
	for i, p := range parts {
		if bad[i] {
			damaged = append(damaged, p)
		}
	}
	return damaged, nil
}

// intact tells if the file at path is p. What cannot be read is not.
func intact(ctx context.Context, path string, p Part) bool {
	info, err := os.Lstat(path)
	if err != nil || !info.Mode().IsRegular() || info.Mode().Perm() != mode(p) || info.Size() != p.Size {
		return false
	}
	sum, err := sumFile(ctx, path)
	return err == nil && sum == p.SHA256
}

// Sum returns the SHA-256 of the file at path, in hex, and its size in bytes.
func Sum(path string) (sum string, size int64, err error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", 0, fmt.Errorf("cannot hash a file: %w", err)
	}
	sum, err = sumFile(context.Background(), path)
	return sum, info.Size(), err
}

func sumFile(ctx context.Context, path string) (sum string, err error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("cannot hash a file: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	hash := sha256.New()
	if _, err := io.Copy(io.MultiWriter(hash, cancelled{ctx}), f); err != nil {
		return "", fmt.Errorf("cannot hash %s: %w", path, err)
	}
	return hex.EncodeToString(hash.Sum(nil)), nil
}
