package kubeconfig

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"kuorum/internal/host"
)

// nobody is what host.Self would have said in a process that has ended.
func nobody(t *testing.T) string {
	t.Helper()
	cmd := exec.Command("true")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	self, err := host.Self()
	if err != nil {
		t.Fatal(err)
	}
	boot, _, _ := strings.Cut(self, ".")
	return boot + "." + strconv.Itoa(cmd.Process.Pid) + ".1"
}

// TestLockLeftBehind: what a kuorum left that was killed keeps nobody out; what
// may still be held does.
func TestLockLeftBehind(t *testing.T) {
	self, err := host.Self()
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name, target string
		age          time.Duration
		free         bool
	}{
		{"of a process that has ended", lockMark + nobody(t), 0, true},
		{"of this process", lockMark + self, time.Hour, false},
		{"of another machine", lockMark + "other-boot.1.1", time.Second, false},
		{"of another boot", lockMark + "other-boot.1.1", time.Hour, true},
		{"of somebody else", "elsewhere", time.Hour, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "config")
			if err := os.Symlink(test.target, path+".lock"); err != nil {
				t.Fatal(err)
			}
			then := time.Now().Add(-test.age).Format(time.RFC3339)
			if out, err := exec.Command("touch", "-h", "-d", then, path+".lock").CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			unlock, err := lock(path)
			if (err == nil) != test.free {
				t.Fatalf("got %v", err)
			}
			if !test.free {
				return
			}
			if now, _ := os.Readlink(path + ".lock"); now != lockMark+self {
				t.Errorf("the lock is %q", now)
			}
			unlock()
			if left, _ := os.ReadDir(filepath.Dir(path)); len(left) > 0 {
				t.Errorf("%v is left", left)
			}
		})
	}
}

// TestLockAgainstKubectl: kubectl makes its lock file so, and must find ours.
func TestLockAgainstKubectl(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config")
	unlock, err := lock(path)
	if err != nil {
		t.Fatal(err)
	}
	if f, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_EXCL, 0); err == nil {
		t.Fatalf("kubectl took it as well: %v", f.Close())
	}
	unlock()
	f, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_EXCL, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(100*time.Millisecond, func() { _ = os.Remove(path + ".lock") })
	unlock, err = lock(path)
	if err != nil {
		t.Fatalf("it does not wait: %v", err)
	}
	unlock()
}

// TestLockExcludes: many at once, each beginning with a lock that was left.
func TestLockExcludes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config")
	if err := os.Symlink(lockMark+nobody(t), path+".lock"); err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	errs := make([]error, 8)
	for i := range errs {
		all.Go(func() {
			unlock, err := lock(path)
			if err != nil {
				errs[i] = err
				return
			}
			defer unlock()
			f, err := os.OpenFile(path+".held", os.O_CREATE|os.O_EXCL, 0o600)
			if err != nil {
				errs[i] = fmt.Errorf("two hold it: %w", err)
				return
			}
			_ = f.Close()
			<-time.After(time.Millisecond)
			errs[i] = os.Remove(path + ".held")
		})
	}
	all.Wait()
	for _, err := range errs {
		if err != nil {
			t.Error(err)
		}
	}
}
