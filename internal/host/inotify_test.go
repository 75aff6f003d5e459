package host

import (
	"os"
	"syscall"
	"testing"
)

// TestInotify counts an instance of our own.
func TestInotify(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("must run as root")
	}
	before, limit, err := Inotify()
	if err != nil || limit <= 0 {
		t.Fatalf("%d of %d, %v", before, limit, err)
	}
	fd, err := syscall.InotifyInit1(syscall.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = syscall.Close(fd) }()
	own := 0
	links, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if to, err := os.Readlink("/proc/self/fd/" + l.Name()); err == nil && to == "anon_inode:inotify" {
			own++
		}
	}
	if used, _, err := Inotify(); err != nil || own == 0 || used < own {
		t.Errorf("it counts %d, of which we alone have %d: %v", used, own, err)
	}
}

func TestLimitInotify(t *testing.T) {
	_, limit, err := Inotify()
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := LimitInotify(limit); err != nil {
			t.Error(err)
		}
	}()
	if err := LimitInotify(limit + 7); err != nil {
		t.Fatal(err)
	}
	if _, now, err := Inotify(); err != nil || now != limit+7 {
		t.Errorf("the limit is %d, %v", now, err)
	}
}
