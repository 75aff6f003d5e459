package main

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"kuorum/internal/bundle"
	"kuorum/internal/component"
)

func TestRecipeStamps(t *testing.T) {
	r := recipe{pkg: "example.org/x", tags: []string{"a", "b"}, ldflags: []string{"-extldflags", "-static"}, stamps: each([]string{"p.", "q."}, "v={version}", "n={major}.{minor}", "t={time}")}
	got := r.args(module{Version: "v1.36.3", Time: "2026-01-02T03:04:05Z"})
	want := []string{
		"-trimpath", "-buildvcs=false", "-tags=a,b",
		"-ldflags=-s -w -extldflags -static -X p.v=v1.36.3 -X p.n=1.36 -X p.t=2026-01-02T03:04:05Z -X q.v=v1.36.3 -X q.n=1.36 -X q.t=2026-01-02T03:04:05Z",
		"example.org/x",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("arguments (-want +got):\n%s", diff)
	}
}

func TestRecipesNameEachFileOnce(t *testing.T) {
	var names []string
	for _, r := range recipes() {
		names = append(names, r.file)
		for _, link := range r.links {
			names = append(names, "bin/"+link)
		}
	}
	slices.Sort(names)
	if all := len(names); len(slices.Compact(names)) != all {
		t.Errorf("a file has two recipes: %v", names)
	}
}

// A bundle that was built before a pin changed must not be shipped.
func TestBuiltBundleHasThePinnedVersions(t *testing.T) {
	m := manifestOf("../../build/bundle")
	if len(m.Parts) == 0 {
		return // none was built: nothing can be wrong with it
	}
	for _, r := range recipes() {
		pin, err := pinned(t.Context(), filepath.Join("../../upstream", r.dir), r.module)
		if err != nil {
			t.Fatal(err)
		}
		p, ok := m.Part(filepath.Base(r.file))
		if !ok || p.Version != pin.Version {
			t.Errorf("the bundle has %s %q, upstream/%s pins %s: make bundle", r.file, p.Version, r.dir, pin.Version)
		}
	}
	image, _ := m.Part("pause-image")
	if name := pauseRepository + ":" + strings.TrimPrefix(image.Version, "v"); name != component.PauseImage {
		t.Errorf("the bundle has the image %s, containerd is told to use %s", name, component.PauseImage)
	}
}

func testWorkshop(t *testing.T) *workshop {
	t.Helper()
	w, err := openWorkshop(t.Context(), filepath.Join(t.TempDir(), "bundle"))
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// textJob makes a file of the text.
func textJob(key, text string) job {
	return job{
		part: bundle.Part{Name: "tool", Version: "v1.0.0", File: "bin/tool"},
		key:  key,
		make: func(_ context.Context, to string) error { return os.WriteFile(to, []byte(text), 0o755) },
	}
}

func TestPartsAreBuiltOnlyWhenTheyMust(t *testing.T) {
	w := testWorkshop(t)
	steps := []struct {
		name   string
		change func()
		job    job
		built  bool
		want   string
	}{
		{"first", func() {}, textJob("a", "one"), true, "one"},
		{"again", func() {}, textJob("a", "two"), false, "one"},
		{"new key", func() {}, textJob("b", "three"), true, "three"},
		{"damaged", func() { write(t, filepath.Join(w.out, "bin/tool"), "threE") }, textJob("b", "three"), true, "three"},
		{"removed", func() { _ = os.Remove(filepath.Join(w.out, "bin/tool")) }, textJob("b", "three"), true, "three"},
		{"new compiler", func() { w.goes = "go version go9" }, textJob("b", "four"), true, "four"},
	}
	for _, s := range steps {
		s.change()
		before := w.built
		p, err := w.ensure(t.Context(), s.job)
		if err != nil {
			t.Fatalf("%s: %v", s.name, err)
		}
		if built := w.built > before; built != s.built {
			t.Errorf("%s: built is %t, want %t", s.name, built, s.built)
		}
		if got := read(t, filepath.Join(w.out, "bin/tool")); got != s.want || p.SHA256 != hash([]byte(s.want)) || p.Size != int64(len(s.want)) {
			t.Errorf("%s: the file holds %q, the part is %+v; want %q", s.name, got, p, s.want)
		}
	}
}

// A failed or killed build leaves the part that was there, and no key for it.
func TestFailedBuildKeepsTheOldPart(t *testing.T) {
	w := testWorkshop(t)
	if _, err := w.ensure(t.Context(), textJob("a", "old")); err != nil {
		t.Fatal(err)
	}
	broken := errors.New("broken")
	half := textJob("b", "")
	half.make = func(_ context.Context, to string) error {
		write(t, to, "half")
		return broken
	}
	if _, err := w.ensure(t.Context(), half); !errors.Is(err, broken) {
		t.Errorf("error is %v", err)
	}
	if got := read(t, filepath.Join(w.out, "bin/tool")); got != "old" {
		t.Errorf("the part is now %q", got)
	}
	if _, err := w.ensure(t.Context(), textJob("b", "new")); err != nil || read(t, filepath.Join(w.out, "bin/tool")) != "new" {
		t.Errorf("the next build does not make up for it: %v", err)
	}
}

func TestLinkAndClean(t *testing.T) {
	w := testWorkshop(t)
	write(t, filepath.Join(w.out, "bin/tool"), "x")
	write(t, filepath.Join(w.out, "bin/former"), "x")
	write(t, filepath.Join(w.out, "images/former.tar"), "x")
	m := bundle.Manifest{Parts: []bundle.Part{{File: "bin/tool", Links: []string{"other"}}}}
	for range 2 {
		if err := w.linkAndClean(m); err != nil {
			t.Fatal(err)
		}
		if read(t, filepath.Join(w.out, "bin/other")) != "x" {
			t.Error("bin/other does not lead to bin/tool")
		}
		if left := list(t, w.out, "bin"); !slices.Equal(left, []string{"other", "tool"}) {
			t.Errorf("bin holds %v", left)
		}
		if left := list(t, w.out, "images"); len(left) > 0 {
			t.Errorf("images holds %v", left)
		}
	}
}

func TestPack(t *testing.T) {
	from, to := t.TempDir(), filepath.Join(t.TempDir(), "data")
	var m bundle.Manifest
	for _, name := range []string{"one", "two"} {
		write(t, filepath.Join(from, "bin", name), name)
		m.Parts = append(m.Parts, bundle.Part{Name: name, Version: "v1.0.0", File: "bin/" + name, SHA256: hash([]byte(name)), Size: 3})
	}
	expect := func(want int) {
		t.Helper()
		if n, err := pack(t.Context(), m, from, to); err != nil || n != want {
			t.Errorf("packed %d parts, %v, want %d", n, err, want)
		}
		if diff := cmp.Diff(m, manifestOf(to)); diff != "" {
			t.Errorf("manifest (-want +got):\n%s", diff)
		}
		if got := list(t, to); !slices.Equal(got, []string{"manifest.json", "one.zst", "two.zst"}) {
			t.Errorf("packed files are %v", got)
		}
	}
	expect(2)
	first := read(t, filepath.Join(to, "two.zst"))
	expect(0)
	write(t, filepath.Join(from, "bin/one"), "uno")
	m.Parts[0].SHA256 = hash([]byte("uno"))
	write(t, filepath.Join(to, ".one.zst"), "left by a killed one")
	expect(1)
	if err := os.Remove(filepath.Join(to, "two.zst")); err != nil {
		t.Fatal(err)
	}
	expect(1)
	if read(t, filepath.Join(to, "two.zst")) != first {
		t.Error("the same part is packed in two ways")
	}
}

func TestPauseImage(t *testing.T) {
	image, err := pauseImage([]byte("program"), "example.org/pause:1")
	if err != nil {
		t.Fatal(err)
	}
	if again, err := pauseImage([]byte("program"), "example.org/pause:1"); err != nil || !bytes.Equal(image, again) {
		t.Errorf("the same program makes two images: %v", err)
	}
	files := untar(t, image)
	var manifest []struct {
		Config           string
		RepoTags, Layers []string
	}
	if err := json.Unmarshal(files["manifest.json"], &manifest); err != nil || len(manifest) != 1 || len(manifest[0].Layers) != 1 {
		t.Fatalf("manifest.json is %s: %v", files["manifest.json"], err)
	}
	if diff := cmp.Diff([]string{"example.org/pause:1"}, manifest[0].RepoTags); diff != "" {
		t.Errorf("names (-want +got):\n%s", diff)
	}
	layer := files[manifest[0].Layers[0]]
	if diff := cmp.Diff(map[string][]byte{"pause": []byte("program")}, untar(t, layer)); diff != "" {
		t.Errorf("layer (-want +got):\n%s", diff)
	}
	var config struct {
		Config struct{ Entrypoint []string }
		RootFS struct {
			DiffIDs []string `json:"diff_ids"`
		}
	}
	if err := json.Unmarshal(files[manifest[0].Config], &config); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(config.Config.Entrypoint, []string{"/pause"}) || !slices.Equal(config.RootFS.DiffIDs, []string{"sha256:" + hash(layer)}) {
		t.Errorf("config is %+v", config)
	}
}

func TestMissingNeedsAreNamed(t *testing.T) {
	t.Setenv("PATH", t.TempDir()) // neither gcc nor apt-get
	err := ensure(t.Context(), slices.Concat(buildNeeds(), runtimeNeeds(), testNeeds()))
	for _, word := range []string{"gcc", "libseccomp-dev", "pkg-config", "nftables", "keepalived", "haproxy", "nginx", "apt-get install"} {
		if err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("error does not name %s: %v", word, err)
		}
	}
}

// TestServicesAreNotStarted: packages are told so while they are installed, and
// never again.
func TestServicesAreNotStarted(t *testing.T) {
	policy := filepath.Join(t.TempDir(), "policy-rc.d")
	failed := errors.New("no such package")
	err := withoutServices(policy, func() error {
		exit, ok := errors.AsType[*exec.ExitError](exec.CommandContext(t.Context(), policy).Run())
		if !ok || exit.ExitCode() != 101 {
			t.Errorf("the policy says %v", exit)
		}
		return failed
	})
	if _, there := os.Stat(policy); !errors.Is(err, failed) || !errors.Is(there, fs.ErrNotExist) {
		t.Errorf("got %v, and the policy: %v", err, there)
	}
	if err := os.WriteFile(policy, []byte("theirs"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := withoutServices(policy, func() error { return nil }); err != nil {
		t.Error(err)
	}
	if text, err := os.ReadFile(policy); string(text) != "theirs" || err != nil {
		t.Errorf("the policy of the machine is %q, %v", text, err)
	}
}

func untar(t *testing.T, data []byte) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	for r := tar.NewReader(bytes.NewReader(data)); ; {
		head, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		if files[head.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o600)); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func list(t *testing.T, path ...string) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(path...))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}
