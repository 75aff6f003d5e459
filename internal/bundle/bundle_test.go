package bundle

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"kuorum/internal/cluster"
)

func TestUnpack(t *testing.T) {
	for name, make := range map[string]func(*testing.T) *Bundle{"packed": packedBundle, "directory": directoryBundle} {
		t.Run(name, func(t *testing.T) {
			b, root := make(t), filepath.Join(t.TempDir(), "not", "there", "yet")
			var last, total int64
			dir, err := b.Unpack(t.Context(), root, func(done, all int64) {
				if done <= last || done > all {
					t.Errorf("progress went from %d to %d of %d", last, done, all)
				}
				last, total = done, all
			})
			if err != nil {
				t.Fatal(err)
			}
			if dir != b.Dir(root) {
				t.Errorf("unpacked into %s, Dir says %s", dir, b.Dir(root))
			}
			if diff := cmp.Diff(whole(), tree(t, dir)); diff != "" {
				t.Errorf("unpacked tree (-want +got):\n%s", diff)
			}
			if want := size(b.Manifest.Parts); last != want || total != want {
				t.Errorf("progress ended at %d of %d, want %d", last, total, want)
			}
			if _, err := b.Unpack(t.Context(), root, func(_, _ int64) { t.Error("an intact bundle was written again") }); err != nil {
				t.Error(err)
			}
		})
	}
}

// The two kinds of bundle share what they unpacked: content decides.
func TestKindsOfBundleHaveTheSameDirectory(t *testing.T) {
	if a, b := packedBundle(t).Dir("/x"), directoryBundle(t).Dir("/x"); a != b {
		t.Errorf("packed: %s, directory: %s", a, b)
	}
}

func TestUnpackRepairsDamage(t *testing.T) {
	flip := func(t *testing.T, path string) {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		data[len(data)/2] ^= 1
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	remove := func(t *testing.T, path string) {
		if err := os.RemoveAll(path); err != nil {
			t.Fatal(err)
		}
	}
	tests := map[string]struct {
		damage  func(t *testing.T, dir string)
		damaged []string
	}{
		"one bit": {func(t *testing.T, dir string) { flip(t, filepath.Join(dir, "bin/kubernetes")) }, []string{"bin/kubernetes"}},
		"truncated": {func(t *testing.T, dir string) {
			if err := os.Truncate(filepath.Join(dir, "images/pause.tar"), 4095); err != nil {
				t.Fatal(err)
			}
		}, []string{"images/pause.tar"}},
		"missing": {func(t *testing.T, dir string) { remove(t, filepath.Join(dir, "bin/etcd")) }, []string{"bin/etcd"}},
		"not executable": {func(t *testing.T, dir string) {
			if err := os.Chmod(filepath.Join(dir, "bin/etcd"), 0o644); err != nil {
				t.Fatal(err)
			}
		}, []string{"bin/etcd"}},
		"a directory": {func(t *testing.T, dir string) {
			remove(t, filepath.Join(dir, "bin/etcd"))
			write(t, filepath.Join(dir, "bin/etcd/file"), nil)
		}, []string{"bin/etcd"}},
		"a link to a copy": {func(t *testing.T, dir string) {
			copied := filepath.Join(t.TempDir(), "copy")
			if err := errors.Join(os.Rename(filepath.Join(dir, "bin/etcd"), copied), os.Symlink(copied, filepath.Join(dir, "bin/etcd"))); err != nil {
				t.Fatal(err)
			}
		}, []string{"bin/etcd"}},
		"all of bin":  {func(t *testing.T, dir string) { remove(t, filepath.Join(dir, "bin")) }, []string{"bin/etcd", "bin/kubernetes"}},
		"a lost name": {func(t *testing.T, dir string) { remove(t, filepath.Join(dir, "bin/kubelet")) }, nil},
		"a name that leads elsewhere": {func(t *testing.T, dir string) {
			remove(t, filepath.Join(dir, "bin/kubelet"))
			write(t, filepath.Join(dir, "bin/kubelet"), []byte("other"))
		}, nil},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			b, root := packedBundle(t), t.TempDir()
			dir := unpack(t, b, root)
			test.damage(t, dir)
			parts, err := b.Damaged(t.Context(), dir)
			if err != nil {
				t.Fatal(err)
			}
			var files []string
			for _, p := range parts {
				files = append(files, p.File)
			}
			slices.Sort(files)
			if diff := cmp.Diff(test.damaged, files); diff != "" {
				t.Errorf("damage found (-want +got):\n%s", diff)
			}
			if again := unpack(t, b, root); again != dir {
				t.Errorf("repaired %s, not %s", again, dir)
			}
			if diff := cmp.Diff(whole(), tree(t, dir)); diff != "" {
				t.Errorf("repaired tree (-want +got):\n%s", diff)
			}
		})
	}
}

// A program that runs keeps its file; a repair gives the name to a new one.
func TestRepairDoesNotTouchOpenFiles(t *testing.T) {
	b, root := packedBundle(t), t.TempDir()
	dir := unpack(t, b, root)
	path := filepath.Join(dir, "bin/etcd")
	write(t, path, []byte("damaged"))
	running, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = running.Close() }()
	unpack(t, b, root)
	if data, err := io.ReadAll(running); err != nil || string(data) != "damaged" {
		t.Errorf("the open file now has %q, %v", data, err)
	}
}

func TestUnpackSweepsWhatAKilledOneLeft(t *testing.T) {
	b, root := packedBundle(t), t.TempDir()
	write(t, filepath.Join(root, workPrefix+"123", "kubernetes"), []byte("half"))
	dir := unpack(t, b, root)
	want := map[string]string{}
	for name, text := range whole() {
		want[filepath.Join(filepath.Base(dir), name)] = text
	}
	if diff := cmp.Diff(want, tree(t, root)); diff != "" {
		t.Errorf("root (-want +got):\n%s", diff)
	}
}

func TestUnpackAtTheSameTime(t *testing.T) {
	b, root := packedBundle(t), t.TempDir()
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			dir, err := b.Unpack(t.Context(), root, nil)
			if err != nil {
				t.Error(err)
				return
			}
			if diff := cmp.Diff(whole(), tree(t, dir)); diff != "" {
				t.Errorf("seen by one of them (-want +got):\n%s", diff)
			}
		})
	}
	group.Wait()
}

func TestUnpackWaitsOnlyAsLongAsItMay(t *testing.T) {
	b, root := packedBundle(t), t.TempDir()
	lock, err := lockRoot(t.Context(), root)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*lockPoll)
	defer cancel()
	if _, err := b.Unpack(ctx, root, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("with the lock held: %v", err)
	}
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	unpack(t, b, root)
}

// Whatever fails, root is left as it was.
func TestFailedUnpackLeavesNothing(t *testing.T) {
	huge := manifestFor(contents())
	huge.Parts[0].Size = 1 << 60
	other := contents()
	other["bin/etcd"] = []byte("not what the manifest says")
	less := contents()
	delete(less, "bin/etcd")
	cut := packedFS(t, manifestFor(contents()), contents())
	cut["kubernetes.zst"].Data = cut["kubernetes.zst"].Data[:20]
	tests := map[string]struct {
		files fs.FS
		want  string
	}{
		"full disk":          {packedFS(t, huge, contents()), "not enough disk space"},
		"wrong content":      {packedFS(t, manifestFor(contents()), other), "the bundle is damaged"},
		"part not there":     {packedFS(t, manifestFor(contents()), less), "etcd.zst"},
		"cut off in transit": {cut, "kubernetes"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			b, err := packed(test.files, "test")
			if err != nil {
				t.Fatal(err)
			}
			root := t.TempDir()
			_, err = b.Unpack(t.Context(), root, nil)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error is %v, want something about %q", err, test.want)
			}
			if left := tree(t, root); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

func TestCancelledUnpackLeavesNothing(t *testing.T) {
	b, root := packedBundle(t), t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	_, err := b.Unpack(ctx, root, func(_, _ int64) { cancel() })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v, want context.Canceled", err)
	}
	if left := tree(t, root); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestFullDiskIsAProblemWithNumbers(t *testing.T) {
	err := checkSpace(t.TempDir(), 1<<60)
	problem, ok := errors.AsType[*cluster.Problem](err)
	if !ok || !strings.Contains(problem.Why, "1152921504606846976 bytes") || problem.Do == "" {
		t.Errorf("error is %#v", err)
	}
}

func TestPrune(t *testing.T) {
	b, root := packedBundle(t), t.TempDir()
	dir := unpack(t, b, root)
	write(t, filepath.Join(root, strings.Repeat("0a", 8), "bin", "etcd"), nil)
	write(t, filepath.Join(root, "notes", "mine.txt"), []byte("keep"))
	if err := Prune(t.Context(), root, dir); err != nil {
		t.Fatal(err)
	}
	var left []string
	entries, err := os.ReadDir(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		left = append(left, e.Name())
	}
	want := []string{lockName, filepath.Base(dir), "notes"}
	if diff := cmp.Diff(want, left); diff != "" {
		t.Errorf("left (-want +got):\n%s", diff)
	}
}

func TestOpenPrefersWhatIsBuiltIn(t *testing.T) {
	b, err := open(packedFS(t, manifestFor(contents()), contents()), []string{t.TempDir()})
	if err != nil || b.Origin != "built in" {
		t.Errorf("opened %v, %v", b, err)
	}
}

func TestOpenWithoutBundle(t *testing.T) {
	dir := t.TempDir()
	_, err := open(nil, []string{"", dir})
	problem, ok := errors.AsType[*cluster.Problem](err)
	if !ok || !strings.Contains(problem.Do, "make bundle") || !strings.Contains(problem.Why, dir) {
		t.Errorf("error is %#v", err)
	}
	// A directory that has one, but a bad one, is not passed over in silence.
	write(t, filepath.Join(dir, ManifestName), []byte("{"))
	if _, err := open(nil, []string{dir}); err == nil || !strings.Contains(err.Error(), dir) {
		t.Errorf("error is %v", err)
	}
}
