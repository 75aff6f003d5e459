package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"kuorum/internal/bundle"
)

// module is what the go command knows of a pinned module.
type module struct {
	Version string
	Time    string // RFC 3339; when the version was made
	Dir     string // empty until it has been downloaded
}

// goJob is the part that r describes.
func (w *workshop) goJob(ctx context.Context, r recipe) (job, error) {
	dir := filepath.Join("upstream", r.dir)
	m, err := pinned(ctx, dir, r.module)
	if err != nil {
		return job{}, err
	}
	source, err := sourceOf(dir)
	if err != nil {
		return job{}, err
	}
	args := r.args(m)
	return job{
		part: bundle.Part{Name: filepath.Base(r.file), Version: m.Version, File: r.file, Links: r.links},
		key:  digest(slices.Concat([]string{source}, r.env(), args)...),
		make: func(ctx context.Context, to string) error {
			to, err := filepath.Abs(to)
			if err != nil {
				return err
			}
			_, err = outputEnv(ctx, dir, r.env(), slices.Concat([]string{"go", "build", "-o", to}, args)...)
			return err
		},
	}, nil
}

// args is what follows "go build -o FILE".
func (r recipe) args(m module) []string {
	number := strings.Split(strings.TrimPrefix(m.Version, "v"), ".")
	fill := strings.NewReplacer("{version}", m.Version, "{major}", number[0], "{minor}", number[1], "{time}", m.Time)
	flags := slices.Concat([]string{"-s", "-w"}, r.ldflags)
	for _, stamp := range r.stamps {
		flags = append(flags, "-X", fill.Replace(stamp))
	}
	return []string{"-trimpath", "-buildvcs=false", "-tags=" + strings.Join(r.tags, ","), "-ldflags=" + strings.Join(flags, " "), r.pkg}
}

// env is the environment of the build beside what make was started with.
func (r recipe) env() []string {
	cgo := "CGO_ENABLED=0"
	if r.cgo {
		cgo = "CGO_ENABLED=1"
	}
	return []string{cgo, "GOWORK=off", "GOFLAGS=-mod=readonly"}
}

// pinned asks the go command, which reads go.mod as it will for the build.
func pinned(ctx context.Context, dir, path string) (module, error) {
	var m module
	text, err := output(ctx, dir, "go", "list", "-m", "-json", path)
	if err != nil {
		return m, err
	}
	if err := json.Unmarshal([]byte(text), &m); err != nil {
		return m, fmt.Errorf("cannot read the version of %s: %w", path, err)
	}
	if strings.Count(m.Version, ".") < 2 {
		return m, fmt.Errorf("cannot build %s: %s/go.mod pins no version of it", path, dir)
	}
	return m, nil
}

// sourceOf digests all that decides a build besides the recipe: the pins, their
// checksums and our own few lines.
func sourceOf(dir string) (string, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		return "", fmt.Errorf("cannot list %s: %w", dir, err)
	}
	var texts []string
	for _, file := range append(files, filepath.Join(dir, "go.mod"), filepath.Join(dir, "go.sum")) {
		text, err := os.ReadFile(file)
		if err != nil {
			return "", fmt.Errorf("cannot read the pins: %w", err)
		}
		texts = append(texts, filepath.Base(file), string(text))
	}
	return digest(texts...), nil
}

// output runs a program and returns what it wrote, trimmed.
func output(ctx context.Context, dir string, argv ...string) (string, error) {
	return outputEnv(ctx, dir, nil, argv...)
}

func outputEnv(ctx context.Context, dir string, env []string, argv ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGINT) }
	// A killed mkbundle must not leave a compiler behind.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := cmd.Run(); err != nil {
		text := strings.TrimSpace(stderr.String() + stdout.String())
		return "", errors.Join(fmt.Errorf("%s in %s: %w", strings.Join(argv[:min(2, len(argv))], " "), dir, err), errors.New(text))
	}
	return strings.TrimSpace(stdout.String()), nil
}
