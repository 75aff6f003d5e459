package lab

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// archive is a tar of name, content, name, content...
func archive(t testing.TB, words ...string) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for i := 0; i < len(words); i += 2 {
		if err := w.WriteHeader(&tar.Header{Name: words[i], Size: int64(len(words[i+1])), Mode: 0o644}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(words[i+1])); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func zipped(t testing.TB, data []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func blob(content string) string {
	sum := sha256.Sum256([]byte(content))
	return "blobs/sha256/" + hex.EncodeToString(sum[:])
}

func TestCheckImage(t *testing.T) {
	oci := archive(t, "oci-layout", "{}", "index.json", "{}", blob("layer"), "layer")
	docker := archive(t, "manifest.json", "[]", "abc/layer.tar", strings.Repeat("x", 2000))
	damaged := archive(t, "index.json", "{}", blob("layer"), "lawyer")
	flipped := zipped(t, oci)
	flipped[len(flipped)-6] ^= 1 // in gzip's checksum, after all of its data
	for _, tc := range []struct {
		name string
		data []byte
		want string // in the error; "" is none
	}{
		{"OCI", oci, ""},
		{"OCI with gzip", zipped(t, oci), ""},
		{"OCI with ./", archive(t, "./index.json", "{}", "./"+blob("x"), "x"), ""},
		{"docker", docker, ""},
		{"with blanks of GNU tar", append(bytes.Clone(oci), make([]byte, 8192)...), ""},
		{"empty", nil, "it is empty"},
		{"text", bytes.Repeat([]byte("no archive\n"), 100), "it is no archive of tar"},
		{"short text", []byte("no archive\n"), "it is no archive of tar"},
		{"half a magic", []byte{0x1f, 0x8b}, "it is damaged"},
		{"zip that is no tar", zipped(t, []byte("text")), "it is no archive of tar"},
		{"another tar", archive(t, "readme", "text"), "it is no image archive"},
		{"tar of nothing", archive(t), "it is no image archive"},
		{"a blob that lies", damaged, "the archive is damaged: blob"},
		{"a blob that lies, with ./", archive(t, "index.json", "{}", "./"+blob("a"), "b"), "the archive is damaged: blob"},
		{"cut in a file", oci[:2048+512+2], "cut short"},
		{"cut in a header", oci[:2048+100], "cut short"},
		{"cut between files", oci[:2048], "cut short"},
		{"end missing", oci[:len(oci)-1024], "cut short"},
		{"cut gzip", zipped(t, oci)[:60], ""},
		{"gzip without its end", zipped(t, oci)[:len(zipped(t, oci))-4], "cut short or damaged"},
		{"wrong checksum of gzip", flipped, "damaged"},
	} {
		file := filepath.Join(t.TempDir(), "image.tar")
		if err := os.WriteFile(file, tc.data, 0o600); err != nil {
			t.Fatal(err)
		}
		err := CheckImage(file)
		if tc.name == "cut gzip" {
			if err == nil {
				t.Errorf("%s: accepted", tc.name)
			}
			continue
		}
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: got %v, want %q", tc.name, err, tc.want)
		}
	}
	if err := CheckImage(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("a file that does not exist was accepted")
	}
}

// TestCheckImageCutAnywhere: no archive that lacks a part of its end is taken
// for whole, wherever it was cut. Of the two blocks of zeros, one may be gone.
func TestCheckImageCutAnywhere(t *testing.T) {
	whole := archive(t, "index.json", "{}", blob("layer"), "layer")
	file := filepath.Join(t.TempDir(), "image.tar")
	for size := range len(whole) - 1024 {
		if err := os.WriteFile(file, whole[:size], 0o600); err != nil {
			t.Fatal(err)
		}
		if CheckImage(file) == nil {
			t.Fatalf("%d of %d bytes were accepted", size, len(whole))
		}
	}
}

// FuzzCheckImage: nothing that is accepted holds a blob that lies.
func FuzzCheckImage(f *testing.F) {
	whole := archive(f, "index.json", "{}", blob("layer"), "layer")
	f.Add(whole)
	f.Add(zipped(f, whole))
	f.Add(archive(f, "manifest.json", "[]"))
	f.Add([]byte{0x1f, 0x8b, 8})
	f.Fuzz(func(t *testing.T, data []byte) {
		file := filepath.Join(t.TempDir(), "image.tar")
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if CheckImage(file) == nil && !bytes.Contains(data, []byte{0x1f, 0x8b}) && !bytes.Contains(data, []byte(".json")) {
			t.Errorf("%q was accepted", data)
		}
	})
}

func TestSavedImages(t *testing.T) {
	said := "docker.io/library/hello:1               \tsaved\t\napplication/vnd.docker.distribution.manifest.v2+json sha256:82\nImporting\telapsed: 0.3 s\n"
	if diff := cmp.Diff([]string{"docker.io/library/hello:1"}, savedImages(said)); diff != "" {
		t.Error(diff)
	}
}
