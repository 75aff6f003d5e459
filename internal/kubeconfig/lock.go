package kubeconfig

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"kuorum/internal/cluster"
	"kuorum/internal/host"
)

const (
	// lockPatience is how long somebody else may hold the lock; kubectl takes
	// milliseconds.
	lockPatience = 2 * time.Second
	lockEvery    = 20 * time.Millisecond
	// foreignLife is after how long a lock of a kuorum on another machine, or
	// before a reboot, is taken for left behind: it cannot be asked about.
	foreignLife = time.Minute
	lockMark    = "kuorum."
)

// lock takes the lock that kubectl takes (client-go's): PATH.lock exists. Ours
// is a symbolic link that names its holder and leads nowhere, since that is
// made in one step: what a killed kuorum left is known by it and taken over.
// Kubectl's says nothing of its holder and is never removed. lock blocks for
// two seconds at most.
func lock(path string) (unlock func(), err error) {
	name := path + ".lock"
	self, err := host.Self()
	if err != nil {
		return nil, fmt.Errorf("cannot lock %s: %w", path, err)
	}
	for end := time.Now().Add(lockPatience); ; <-time.After(lockEvery) {
		err := os.Symlink(lockMark+self, name)
		if err == nil {
			return func() { _ = os.Remove(name) }, nil
		}
		if !errors.Is(err, os.ErrExist) {
			return nil, fmt.Errorf("cannot lock %s: %w", path, err)
		}
		if takeAway(name, self) {
			continue
		}
		if time.Now().After(end) {
			return nil, held(path, name)
		}
	}
}

// takeAway removes a lock that its holder has left behind.
func takeAway(name, self string) bool {
	holder, ours := readLock(name)
	if !ours || !leftBehind(name, holder) {
		return false
	}
	// Another kuorum may be faster and hold the lock by now: only what was
	// looked at may go.
	aside := name + "." + self
	if os.Rename(name, aside) != nil {
		return false
	}
	if now, _ := readLock(aside); now != holder {
		_ = os.Symlink(lockMark+now, name)
	}
	return os.Remove(aside) == nil
}

func readLock(name string) (holder string, ours bool) {
	target, err := os.Readlink(name)
	if err != nil {
		return "", false
	}
	return strings.CutPrefix(target, lockMark)
}

func leftBehind(name, holder string) bool {
	lives, sure := host.Lives(holder)
	if sure {
		return !lives
	}
	info, err := os.Lstat(name)
	return err == nil && time.Since(info.ModTime()) > foreignLife
}

func held(path, name string) error {
	age := "unknown"
	if info, err := os.Lstat(name); err == nil {
		age = time.Since(info.ModTime()).Round(time.Second).String()
	}
	return &cluster.Problem{
		What: "cannot change " + path, Why: fmt.Sprintf("somebody holds its lock %s for %s", name, age),
		Do: "try again; if kubectl was killed in the middle: rm " + name,
	}
}
