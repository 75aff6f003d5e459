// Command mkbundle builds the programs that kuorum runs from the modules
// pinned in upstream/*/go.mod and packs them for the build tag bundled. It is
// a tool of the build (make bundle), not of users.
//
//	mkbundle needs   installs what a build needs from the distribution; with
//	                 "tests" what only tests need, too
//	mkbundle         builds what is not up to date, into build/bundle,
//	                 and packs it into internal/bundle/data
//
// A part is up to date while its pins, its recipe and the Go version stay. It
// may be killed at any time: what is finished stays finished.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"kuorum/internal/bundle"
	"kuorum/internal/host"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "mkbundle:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	switch {
	case len(args) == 1 && args[0] == "needs":
		return ensure(ctx, slices.Concat(buildNeeds(), runtimeNeeds()))
	case len(args) == 2 && args[0] == "needs" && args[1] == "tests":
		return ensure(ctx, slices.Concat(buildNeeds(), runtimeNeeds(), testNeeds()))
	case len(args) == 0:
		if _, err := os.Stat("upstream"); err != nil {
			return errors.New("run me in the top directory of the source: make bundle")
		}
		return makeBundle(ctx)
	default:
		return errors.New("usage: mkbundle [needs [tests]]")
	}
}

// makeBundle brings build/bundle and internal/bundle/data up to date.
func makeBundle(ctx context.Context) (err error) {
	if err := ensure(ctx, buildNeeds()); err != nil {
		return err
	}
	lock, err := host.LockExclusive(filepath.Join("build", ".mkbundle.lock"))
	if err != nil {
		return fmt.Errorf("another make bundle may be running: %w", err)
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	start := time.Now()
	w, err := openWorkshop(ctx, filepath.Join("build", "bundle"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	manifest, err := w.build(ctx)
	if err != nil {
		return err
	}
	packed, err := pack(ctx, manifest, w.out, filepath.Join("internal", "bundle", "data"))
	if err != nil {
		return err
	}
	if w.built == 0 && packed == 0 {
		say("bundle is up to date: %d parts", len(manifest.Parts))
		return nil
	}
	say("bundle is ready: %d of %d parts built, %d packed, in %s",
		w.built, len(manifest.Parts), packed, time.Since(start).Round(time.Second))
	return nil
}

// say writes one line of progress.
func say(format string, args ...any) { fmt.Fprintf(os.Stdout, format+"\n", args...) }

// manifestOf reads the manifest in dir; an empty one if there is none that can
// be used.
func manifestOf(dir string) bundle.Manifest {
	data, err := os.ReadFile(filepath.Join(dir, bundle.ManifestName))
	if err != nil {
		return bundle.Manifest{}
	}
	m, err := bundle.ParseManifest(data)
	if err != nil {
		return bundle.Manifest{}
	}
	return m
}
