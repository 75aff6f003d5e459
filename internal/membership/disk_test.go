package membership

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"kuorum/internal/cluster"
	"kuorum/internal/component"
	"kuorum/internal/pki"
)

func testDisk(t *testing.T) Disk {
	t.Helper()
	spec, err := cluster.New("demo", 1, 0)
	must(t, err)
	return Disk{
		Spec: spec, Name: "cp1", Initial: component.Founders(spec), Joining: true,
		Files: []pki.File{{Path: "pki/ca.key", Data: []byte("secret"), Mode: 0o600}, {Path: "pki/ca.crt", Data: []byte("public"), Mode: 0o644}},
	}
}

func TestDisk(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "kuorum")
	if _, err := Read(dir); !errors.Is(err, ErrNoNode) {
		t.Fatalf("nothing is there: %v", err)
	}
	want := testDisk(t)
	for range 2 { // it may be run again
		must(t, want.Write(dir))
	}
	got, err := Read(dir)
	if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(Disk{}, "Files")); err != nil || diff != "" {
		t.Fatalf("%v\n%s", err, diff)
	}
	if info, err := os.Stat(filepath.Join(dir, "pki/ca.key")); err != nil || info.Mode() != 0o600 {
		t.Errorf("a secret is kept as %v, %v", info, err)
	}
	for range 2 {
		must(t, Joined(dir))
	}
	if got, err = Read(dir); err != nil || got.Joining {
		t.Errorf("it still joins: %v, %v", got.Joining, err)
	}
	for _, name := range []string{specFile, initialFile} {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte("{"), 0o600))
		if _, err := Read(dir); err == nil || errors.Is(err, ErrNoNode) {
			t.Errorf("a damaged %s must not count as no node: %v", name, err)
		}
		must(t, want.Write(dir))
		must(t, os.Remove(filepath.Join(dir, name)))
		if _, err := Read(dir); err == nil || errors.Is(err, ErrNoNode) {
			t.Errorf("without %s: %v", name, err)
		}
		must(t, want.Write(dir))
	}
}

// TestInterruptedWrite fails at each file in turn: the machine is no node until
// all are there, since the name comes last.
func TestInterruptedWrite(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"pki/ca.key", "pki/ca.crt", initialFile, specFile, joiningFile, nameFile} {
		dir := t.TempDir()
		blocker := filepath.Join(dir, name)
		must(t, os.MkdirAll(filepath.Join(blocker, "x"), 0o755)) // nothing can be renamed to it
		d := testDisk(t)
		if err := d.Write(dir); err == nil {
			t.Fatalf("%s was written over a directory", name)
		}
		if name != nameFile {
			if _, err := Read(dir); !errors.Is(err, ErrNoNode) {
				t.Errorf("stopped at %s it is a node: %v", name, err)
			}
		}
		must(t, os.RemoveAll(blocker))
		must(t, d.Write(dir))
		if _, err := Read(dir); err != nil {
			t.Errorf("stopped at %s, then written: %v", name, err)
		}
	}
}

func TestLeave(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	dir, data := filepath.Join(root, "etc"), filepath.Join(root, "var")
	member := func(where, content string) {
		t.Helper()
		must(t, os.MkdirAll(filepath.Join(data, where), 0o700))
		must(t, os.WriteFile(filepath.Join(data, where, "db"), []byte(content), 0o600))
	}
	reads := func(path, want string) {
		t.Helper()
		if got, err := os.ReadFile(filepath.Join(data, leftDir, path)); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", path, got, err)
		}
	}
	for _, content := range []string{"first", "second"} { // of two nodes that left
		must(t, testDisk(t).Write(dir))
		member("etcd/member", content)
		member("history", content)
		must(t, Leave(dir, data))
		reads("etcd/member/db", content)
		reads("history/db", content)
		reads("etc/pki/ca.key", "secret")
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("%s still has %v, %v", dir, entries, err)
	}
	for _, name := range []string{"etcd", "history"} {
		if _, err := os.Stat(filepath.Join(data, name)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is still there: %v", name, err)
		}
	}
	if info, err := os.Stat(filepath.Join(data, leftDir)); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("what was secret may be read: %v, %v", info, err)
	}
	// A worker has no etcd; an interrupted leave has no name any more.
	must(t, testDisk(t).Write(dir))
	must(t, os.Remove(filepath.Join(dir, nameFile)))
	must(t, Leave(dir, data))
	if _, err := Read(dir); !errors.Is(err, ErrNoNode) {
		t.Error(err)
	}
}
