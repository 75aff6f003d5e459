package supervise

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// appender writes numbered lines as a component does: holding the file open.
type appender struct {
	file *os.File
	next int
	all  strings.Builder
}

func newAppender(t *testing.T) (*appender, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "log")
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o640)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return &appender{file: f}, path
}

func (a *appender) write(t *testing.T, lines int) {
	t.Helper()
	for range lines {
		line := fmt.Sprintf("line %08d\n", a.next)
		a.next++
		a.all.WriteString(line)
		if _, err := a.file.WriteString(line); err != nil {
			t.Fatal(err)
		}
	}
}

func content(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return string(data)
}

func TestRotateKeepsEveryByteInOrder(t *testing.T) {
	a, path := newAppender(t)
	small := limits{rotate: 1000, drop: 4000}
	for round := range 5 {
		a.write(t, 100+round)
		if err := rotate(path, small); err != nil {
			t.Fatal(err)
		}
		if got := content(t, path); got != "" {
			t.Fatalf("round %d: %d bytes are left in the log", round, len(got))
		}
	}
	a.write(t, 10)
	if err := rotate(path, small); err != nil {
		t.Fatal(err)
	}
	// Rounds 2, 3, 4 and the rest are kept; 0 and 1 were dropped as a whole.
	got := content(t, path+".3") + content(t, path+".2") + content(t, path+".1") + content(t, path)
	lost := 14 * (100 + 101)
	if want := a.all.String()[lost:]; got != want {
		t.Errorf("%d bytes are kept, want %d that begin with %.14q", len(got), len(want), want)
	}
	info, err := os.Stat(path + ".1")
	if err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("kept log has mode %v (%v), want that of the log", info.Mode(), err)
	}
	for _, extra := range []string{".4", ".partial"} {
		if _, err := os.Stat(path + extra); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("log%s is left: %v", extra, err)
		}
	}
}

func TestRotateLeavesSmallAndMissingLogs(t *testing.T) {
	a, path := newAppender(t)
	a.write(t, 10)
	if err := rotate(path, limits{rotate: 140, drop: 1000}); err != nil {
		t.Error(err)
	}
	if got := content(t, path); got != a.all.String() {
		t.Errorf("a log at its limit was changed to %q", got)
	}
	if err := rotate(path+".none", limits{}); err != nil {
		t.Errorf("missing log: %v", err)
	}
}

// What stands in the way of a copy here is a directory; a full disk fails in
// the same places.
func TestRotateWithoutRoom(t *testing.T) {
	for name, block := range map[string]func(path string) error{
		"no copy": func(path string) error { return os.Mkdir(path+".partial", 0o755) },
		"no shift": func(path string) error {
			return errors.Join(os.WriteFile(path+".2", []byte("old"), 0o644), os.MkdirAll(path+".3/x", 0o755))
		},
	} {
		t.Run(name, func(t *testing.T) {
			a, path := newAppender(t)
			if err := block(path); err != nil {
				t.Fatal(err)
			}
			a.write(t, 100)
			if err := rotate(path, limits{rotate: 1000, drop: 2000}); err == nil {
				t.Error("no error")
			}
			if got := content(t, path); got != a.all.String() {
				t.Errorf("below the second limit, %d of %d bytes are left", len(got), a.all.Len())
			}
			if info, err := os.Stat(path + ".partial"); err == nil && !info.IsDir() {
				t.Error("a partial copy is left")
			}
			a.write(t, 100)
			if err := rotate(path, limits{rotate: 1000, drop: 2000}); err == nil || !strings.Contains(err.Error(), "lost") {
				t.Errorf("error is %v, want one that says what is lost", err)
			}
			if got := content(t, path); got != "" {
				t.Errorf("beyond the second limit, %d bytes are left", len(got))
			}
		})
	}
}

func TestRotateReportsAnUnreadableLog(t *testing.T) {
	if err := rotate(t.TempDir(), limits{}); !errors.Is(err, syscall.EISDIR) {
		t.Errorf("error is %v, want %v", err, syscall.EISDIR)
	}
}
