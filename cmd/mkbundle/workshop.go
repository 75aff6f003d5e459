package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"kuorum/internal/bundle"
	"kuorum/internal/host"
)

const heartbeat = 20 * time.Second

// workshop builds parts into a directory bundle. A part is written beside it,
// renamed into place, and then its key is written: the key vouches for it.
type workshop struct {
	out  string // the bundle: manifest.json, bin, images
	keys string // one file a part: the key it was built for, and its SHA-256
	work string // unfinished files; emptied at the start
	goes string // the Go version and platform, part of every key

	steps, step, built int
}

// job is a part that is to be made.
type job struct {
	part bundle.Part // without checksum and size
	key  string      // what decides its content, hashed
	make func(ctx context.Context, to string) error
}

func openWorkshop(ctx context.Context, out string) (*workshop, error) {
	goes, err := output(ctx, ".", "go", "version")
	if err != nil {
		return nil, err
	}
	state := out + ".state"
	w := &workshop{out: out, keys: filepath.Join(state, "keys"), work: filepath.Join(state, "work"), goes: goes}
	if err := w.close(); err != nil { // what a killed build left
		return nil, err
	}
	for _, dir := range []string{w.keys, w.work, filepath.Join(out, "bin"), filepath.Join(out, "images")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, fmt.Errorf("cannot make a directory: %w", err)
		}
	}
	return w, nil
}

func (w *workshop) close() error { return os.RemoveAll(w.work) }

// build makes every part that is not up to date and writes the manifest.
func (w *workshop) build(ctx context.Context) (bundle.Manifest, error) {
	var m bundle.Manifest
	list := recipes()
	w.steps = len(list) + 2 // the pause program and its image
	for _, r := range list {
		j, err := w.goJob(ctx, r)
		if err != nil {
			return m, err
		}
		p, err := w.ensure(ctx, j)
		if err != nil {
			return m, err
		}
		m.Parts = append(m.Parts, p)
	}
	pause, err := w.pause(ctx)
	if err != nil {
		return m, err
	}
	m.Parts = append(m.Parts, pause...)
	if err := w.linkAndClean(m); err != nil {
		return m, err
	}
	data, err := m.JSON()
	if err != nil {
		return m, err
	}
	if _, err := bundle.ParseManifest(data); err != nil {
		return m, err
	}
	return m, host.WriteFile(filepath.Join(w.out, bundle.ManifestName), data, 0o644)
}

// ensure returns the finished part of j, made now unless it is up to date.
func (w *workshop) ensure(ctx context.Context, j job) (bundle.Part, error) {
	w.step++
	key := digest(j.key, w.goes, j.part.Name, j.part.Version, j.part.File)
	place := filepath.Join(w.out, j.part.File)
	keyFile := filepath.Join(w.keys, filepath.Base(j.part.File))
	p := j.part
	var err error
	if p.SHA256, p.Size, err = bundle.Sum(place); err == nil {
		if was, err := os.ReadFile(keyFile); err == nil && string(was) == key+" "+p.SHA256 {
			return p, nil
		}
	}
	work := filepath.Join(w.work, filepath.Base(j.part.File))
	if err := w.timed(ctx, p, func() error { return j.make(ctx, work) }); err != nil {
		return p, fmt.Errorf("cannot build %s: %w", p.Name, err)
	}
	if p.SHA256, p.Size, err = bundle.Sum(work); err != nil {
		return p, err
	}
	if err := os.Rename(work, place); err != nil {
		return p, fmt.Errorf("cannot finish %s: %w", p.Name, err)
	}
	w.built++
	return p, host.WriteFile(keyFile, []byte(key+" "+p.SHA256), 0o644)
}

// timed runs do and says when it starts, that it is alive, and when it ends.
func (w *workshop) timed(ctx context.Context, p bundle.Part, do func() error) error {
	start := time.Now()
	line := fmt.Sprintf("[%d/%d] %s %s", w.step, w.steps, p.Name, p.Version)
	say("%s: building", line)
	done := make(chan error, 1)
	go func() { done <- do() }()
	tick := time.NewTicker(heartbeat)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			say("%s: still building after %s", line, time.Since(start).Round(time.Second))
		case err := <-done:
			if err != nil {
				return errors.Join(err, context.Cause(ctx))
			}
			info, err := os.Stat(filepath.Join(w.work, filepath.Base(p.File)))
			if err != nil {
				return err
			}
			say("%s: built in %s (%d MB)", line, time.Since(start).Round(100*time.Millisecond), (info.Size()+500_000)/1_000_000)
			return nil
		}
	}
}

// linkAndClean gives programs their further names, so that the directory can
// be used by hand, and removes files that no recipe makes any more.
func (w *workshop) linkAndClean(m bundle.Manifest) error {
	var known []string
	for _, p := range m.Parts {
		known = append(known, p.File)
		for _, name := range p.Links {
			link := filepath.Join(filepath.Dir(p.File), name)
			known = append(known, link)
			err := os.Symlink(filepath.Base(p.File), filepath.Join(w.out, link))
			if err != nil && !errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("cannot link %s: %w", name, err)
			}
		}
	}
	for _, dir := range []string{"bin", "images"} {
		entries, err := os.ReadDir(filepath.Join(w.out, dir))
		if err != nil {
			return fmt.Errorf("cannot list the bundle: %w", err)
		}
		for _, e := range entries {
			file := filepath.Join(dir, e.Name())
			if slices.Contains(known, file) {
				continue
			}
			if err := os.Remove(filepath.Join(w.out, file)); err != nil {
				return fmt.Errorf("cannot remove an old part: %w", err)
			}
		}
	}
	return nil
}

func digest(texts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(texts, "\x00")))
	return hex.EncodeToString(sum[:])
}
