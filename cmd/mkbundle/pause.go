package main

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"

	"kuorum/internal/bundle"
)

// pauseRepository is the image's name; upstream's, so that nothing has to be
// configured differently from the books.
const pauseRepository = "registry.k8s.io/pause"

// pause makes the program that holds a pod's namespaces open, from the C file
// in the Kubernetes module, and the image of it.
func (w *workshop) pause(ctx context.Context) ([]bundle.Part, error) {
	dir := filepath.Join("upstream", "kubernetes")
	if _, err := output(ctx, dir, "go", "mod", "download", "k8s.io/kubernetes"); err != nil {
		return nil, err
	}
	m, err := pinned(ctx, dir, "k8s.io/kubernetes")
	if err != nil {
		return nil, err
	}
	source := filepath.Join(m.Dir, "build", "pause")
	version, err := pauseVersion(filepath.Join(source, "Makefile"))
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(filepath.Join(source, "linux", "pause.c"))
	if err != nil {
		return nil, fmt.Errorf("cannot read the pause program: %w", err)
	}
	program, err := w.ensure(ctx, job{
		part: bundle.Part{Name: "pause", Version: version, File: "bin/pause"},
		key:  digest(string(text)),
		make: func(ctx context.Context, to string) error {
			_, err := output(ctx, ".", "gcc", "-Os", "-Wall", "-Werror", "-static", "-s", "-DVERSION="+version, "-o", to,
				filepath.Join(source, "linux", "pause.c"))
			return err
		},
	})
	if err != nil {
		return nil, err
	}
	image, err := w.ensure(ctx, job{
		part: bundle.Part{Name: "pause-image", Version: version, File: "images/pause.tar"},
		key:  digest(program.SHA256, "1"), // count up when pauseImage changes
		make: func(_ context.Context, to string) error {
			binary, err := os.ReadFile(filepath.Join(w.out, program.File))
			if err != nil {
				return err
			}
			data, err := pauseImage(binary, pauseRepository+":"+version[1:])
			if err != nil {
				return err
			}
			return os.WriteFile(to, data, 0o644)
		},
	})
	return []bundle.Part{program, image}, err
}

// pauseVersion reads the version that this Kubernetes wants, as "v3.10.2".
func pauseVersion(makefile string) (string, error) {
	text, err := os.ReadFile(makefile)
	if err != nil {
		return "", fmt.Errorf("cannot read the version of pause: %w", err)
	}
	found := regexp.MustCompile(`(?m)^TAG \?= (\d+\.\d+(\.\d+)?)$`).FindSubmatch(text)
	if found == nil {
		return "", fmt.Errorf("cannot read the version of pause: no TAG in %s", makefile)
	}
	return "v" + string(found[1]), nil
}

// pauseImage is a docker-archive, the format of "docker save", with one image
// of one layer of one file. Times are zero: the same program makes the same
// image.
func pauseImage(program []byte, name string) ([]byte, error) {
	layer, err := archive(entry{"pause", 0o755, program})
	if err != nil {
		return nil, err
	}
	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH,
		"os":           "linux",
		"config":       map[string]any{"Entrypoint": []string{"/pause"}, "User": "65535:65535", "WorkingDir": "/"},
		"rootfs":       map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + hash(layer)}},
	})
	if err != nil {
		return nil, fmt.Errorf("cannot describe the pause image: %w", err)
	}
	files := map[string]string{"config": hash(config) + ".json", "layer": hash(layer) + "/layer.tar"}
	manifest, err := json.Marshal([]map[string]any{{
		"Config": files["config"], "RepoTags": []string{name}, "Layers": []string{files["layer"]},
	}})
	if err != nil {
		return nil, fmt.Errorf("cannot describe the pause image: %w", err)
	}
	return archive(
		entry{files["layer"], 0o644, layer},
		entry{files["config"], 0o644, config},
		entry{"manifest.json", 0o644, manifest},
	)
}

type entry struct {
	name string
	mode int64
	data []byte
}

func archive(entries ...entry) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		head := &tar.Header{Typeflag: tar.TypeReg, Name: e.name, Mode: e.mode, Size: int64(len(e.data)), Format: tar.FormatUSTAR}
		if err := w.WriteHeader(head); err != nil {
			return nil, fmt.Errorf("cannot archive %s: %w", e.name, err)
		}
		if _, err := w.Write(e.data); err != nil {
			return nil, fmt.Errorf("cannot archive %s: %w", e.name, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("cannot finish an archive: %w", err)
	}
	return b.Bytes(), nil
}

func hash(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}
