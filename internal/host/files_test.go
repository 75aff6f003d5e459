package host

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// names lists a directory.
func names(t *testing.T, dir string) (list []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

func TestWriteFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "dirs", "file")
	for _, tc := range []struct {
		data string
		mode os.FileMode
	}{{"first", 0o600}, {"second, longer", 0o644}, {"", 0o400}, {"again", 0o755}} {
		if err := WriteFile(path, []byte(tc.data), tc.mode); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := content(t, path); got != tc.data || info.Mode() != tc.mode {
			t.Errorf("got %q, %o, want %q, %o", got, info.Mode(), tc.data, tc.mode)
		}
	}
	if got := names(t, filepath.Dir(path)); len(got) != 1 {
		t.Errorf("something was left: %q", got)
	}
}

// TestWriteFileThatFails: what was there stays, and no temporary file does.
func TestWriteFileThatFails(t *testing.T) {
	dir := t.TempDir()
	taken := filepath.Join(dir, "taken")
	if err := WriteFile(filepath.Join(taken, "inner"), []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := WriteFile(taken, []byte("new"), 0o600); err == nil {
		t.Error("a directory was written")
	}
	if got := content(t, filepath.Join(taken, "inner")); got != "old" {
		t.Errorf("the old content is %q", got)
	}
	if err := WriteFile(filepath.Join(taken, "inner", "below"), []byte("new"), 0o600); err == nil || !strings.Contains(err.Error(), "cannot make the directory") {
		t.Errorf("below a file: %v", err)
	}
	if got := names(t, dir); len(got) != 1 {
		t.Errorf("something was left: %q", got)
	}
}

// TestWriteFileOnABadDisk: full at first, then read-only. The disk exists in a
// mount namespace of the helper process alone.
func TestWriteFileOnABadDisk(t *testing.T) { inNamespace(t, "disk", t.TempDir()) }

func TestSysctl(t *testing.T) {
	if err := Sysctl("kernel/no_such_thing", "1"); err == nil || !strings.Contains(err.Error(), "this kernel does not have it") {
		t.Errorf("got %v", err)
	}
	// The value it holds already is not written: this file cannot be.
	release := strings.TrimSpace(content(t, "/proc/sys/kernel/ostype"))
	if err := Sysctl("kernel/ostype", release); err != nil {
		t.Errorf("a setting that holds the value: %v", err)
	}
	if err := Sysctl("kernel/ostype", release+"x"); err == nil {
		t.Error("a read-only setting was set")
	}
}
