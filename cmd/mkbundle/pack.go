package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/klauspost/compress/zstd"

	"kuorum/internal/bundle"
	"kuorum/internal/host"
)

// pack compresses the parts below from into to, where the build tag bundled
// finds them, and returns how many were not up to date. The manifest is
// written last: one that is there describes what is there.
func pack(ctx context.Context, m bundle.Manifest, from, to string) (int, error) {
	if err := os.MkdirAll(to, 0o755); err != nil {
		return 0, fmt.Errorf("cannot pack the bundle: %w", err)
	}
	old := manifestOf(to)
	packed := 0
	names := []string{bundle.ManifestName}
	for _, p := range m.Parts {
		names = append(names, bundle.PackedName(p))
		if upToDate(old, p, to) {
			continue
		}
		if packed == 0 {
			say("packing into %s", to)
		}
		packed++
		if err := compress(ctx, filepath.Join(from, p.File), filepath.Join(to, bundle.PackedName(p))); err != nil {
			return packed, fmt.Errorf("cannot pack %s: %w", p.Name, err)
		}
	}
	if err := removeOthers(to, names); err != nil {
		return packed, err
	}
	data, err := m.JSON()
	if err != nil {
		return packed, err
	}
	path := filepath.Join(to, bundle.ManifestName)
	if now, err := os.ReadFile(path); err == nil && string(now) == string(data) {
		return packed, nil // a new time stamp would make a new build
	}
	return packed, host.WriteFile(path, data, 0o644)
}

func upToDate(old bundle.Manifest, p bundle.Part, dir string) bool {
	was, ok := old.Part(p.Name)
	if !ok || was.SHA256 != p.SHA256 {
		return false
	}
	_, err := os.Stat(filepath.Join(dir, bundle.PackedName(p)))
	return err == nil
}

// compress writes beside the target and renames, so that a kill leaves the old
// file or the new.
func compress(ctx context.Context, from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, in.Close()) }()
	work := filepath.Join(filepath.Dir(to), "."+filepath.Base(to))
	out, err := os.Create(work)
	if err != nil {
		return err
	}
	z, err := zstd.NewWriter(out, zstd.WithEncoderLevel(zstd.SpeedDefault))
	if err == nil {
		_, err = io.Copy(z, in)
		err = errors.Join(err, z.Close(), out.Sync())
	}
	if err := errors.Join(err, out.Close(), context.Cause(ctx)); err != nil {
		return errors.Join(err, os.Remove(work))
	}
	return os.Rename(work, to)
}

func removeOthers(dir string, names []string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("cannot list the packed bundle: %w", err)
	}
	for _, e := range entries {
		if slices.Contains(names, e.Name()) {
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("cannot remove an old part: %w", err)
		}
	}
	return nil
}
