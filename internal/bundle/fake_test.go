package bundle

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"testing/fstest"

	"github.com/klauspost/compress/zstd"
)

// contents is a small bundle: a program with links, one without, an image.
func contents() map[string][]byte {
	return map[string][]byte{
		"bin/kubernetes":   bytes.Repeat([]byte("kubernetes "), 30_000),
		"bin/etcd":         bytes.Repeat([]byte("etcd"), 5),
		"images/pause.tar": bytes.Repeat([]byte{0}, 4096),
	}
}

func manifestFor(files map[string][]byte) Manifest {
	var m Manifest
	for file, data := range files {
		p := Part{Name: filepath.Base(file), Version: "v1.2.3", File: file, SHA256: sum(data), Size: int64(len(data))}
		if file == "bin/kubernetes" {
			p.Links = []string{"kubelet", "kube-proxy"}
		}
		m.Parts = append(m.Parts, p)
	}
	return m
}

func manifestJSON(t *testing.T, m Manifest) []byte {
	t.Helper()
	data, err := m.JSON()
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// packedFS is files as "make bundle" packs them, under the manifest m.
func packedFS(t *testing.T, m Manifest, files map[string][]byte) fstest.MapFS {
	t.Helper()
	out := fstest.MapFS{ManifestName: {Data: manifestJSON(t, m)}}
	for file, data := range files {
		var b bytes.Buffer
		z, err := zstd.NewWriter(&b)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := z.Write(data); err != nil {
			t.Fatal(err)
		}
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
		out[PackedName(Part{File: file})] = &fstest.MapFile{Data: b.Bytes()}
	}
	return out
}

func packedBundle(t *testing.T) *Bundle {
	t.Helper()
	b, err := packed(packedFS(t, manifestFor(contents()), contents()), "test")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// directoryBundle is the same bundle as plain files.
func directoryBundle(t *testing.T) *Bundle {
	t.Helper()
	dir := t.TempDir()
	files := contents()
	files[ManifestName] = manifestJSON(t, manifestFor(contents()))
	for name, data := range files {
		write(t, filepath.Join(dir, name), data)
	}
	b, err := open(nil, []string{"", filepath.Join(dir, "none"), dir})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func write(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, data, 0o600)); err != nil {
		t.Fatal(err)
	}
}

// tree is everything below dir: type, permissions and content of each file.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	found := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || d.Name() == lockName {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		if d.Type() == fs.ModeSymlink {
			target, err := os.Readlink(path)
			found[name] = "-> " + target
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		data, err := os.ReadFile(path)
		found[name] = info.Mode().String() + " " + sum(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func sum(data []byte) string {
	s := sha256.Sum256(data)
	return hex.EncodeToString(s[:])
}

// whole is the tree of an unpacked bundle.
func whole() map[string]string {
	files := contents()
	return map[string]string{
		"bin/kubernetes":   "-rwxr-xr-x " + sum(files["bin/kubernetes"]),
		"bin/kubelet":      "-> kubernetes",
		"bin/kube-proxy":   "-> kubernetes",
		"bin/etcd":         "-rwxr-xr-x " + sum(files["bin/etcd"]),
		"images/pause.tar": "-rw-r--r-- " + sum(files["images/pause.tar"]),
	}
}

func unpack(t *testing.T, b *Bundle, root string) string {
	t.Helper()
	dir, err := b.Unpack(t.Context(), root, nil)
	if err != nil {
		t.Fatal(err)
	}
	return dir
}
