//go:build lab

package lab_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"kuorum/internal/datadir"
)

// TestTwoOfThreeServersOff: without a quorum writes are refused soon and in
// words, reads that need none are served, and everything comes back by itself.
func TestTwoOfThreeServersOff(t *testing.T) {
	l := threeServers(t)
	l.kubectl(t, "create", "configmap", "before", "--from-literal=a=b")
	defer l.kubectl(t, "delete", "configmap", "before")
	on := func(args ...string) []string { return append([]string{"-c", l.name, "kubectl"}, args...) }
	for _, name := range []string{"cp1", "cp2"} {
		l.run(t, "lab", "stop", "--power", "--force-quorum-loss", name)
	}
	const soon = 20 * time.Second
	begin := time.Now()
	if r := try(t, on("create", "configmap", "during", "--from-literal=a=b", "--request-timeout=60s")...); r.code == 0 || time.Since(begin) > soon || r.talk == "" {
		t.Errorf("a write ended with %d after %v: %s", r.code, time.Since(begin), r.talk)
	}
	eventually(t, soon, func() error {
		r := try(t, on("get", "--raw", "/api/v1/namespaces/default/configmaps/before?resourceVersion=0")...)
		if r.code != 0 || !strings.Contains(r.out, `"a":"b"`) {
			return fmt.Errorf("a read from the cache ended with %d: %s", r.code, r.talk)
		}
		return nil
	})
	l.awaitStatus(t, "no quorum", "no-quorum ", "node-unreachable cp1", "node-unreachable cp2")
	l.run(t, "lab", "start", "--wait=false", "cp2")
	eventually(t, 90*time.Second, func() error {
		if r := try(t, on("create", "configmap", "after", "--from-literal=a=b")...); r.code != 0 {
			return errors.New(r.talk)
		}
		return nil
	})
	l.run(t, "lab", "start", "cp1")
	l.kubectl(t, "delete", "configmap", "after")
	l.awaitReady(t)
}

// TestComponentThatDiesEverySecond: it is started again with pauses, the status
// says so, and no other component notices.
func TestComponentThatDiesEverySecond(t *testing.T) {
	l := threeServers(t)
	const victim = "kube-scheduler"
	before := l.machine(t, "cp2").pids()
	killed := 0
	eventually(t, time.Minute, func() error {
		m := l.machine(t, "cp2")
		if pid := m.pids()[victim]; pid > 0 {
			if r := try(t, "-c", l.name, "lab", "console", "cp2", "--", "kill", "-9", strconv.Itoa(pid)); r.code == 0 {
				killed++
			}
		}
		for _, cause := range l.status(t).causes() {
			if cause == "component-crash-loop cp2" && killed > 3 {
				return nil
			}
		}
		return fmt.Errorf("killed %d times, the status has %q", killed, l.status(t).causes())
	})
	for _, f := range l.status(t).Findings {
		if f.Code == "component-crash-loop" && (!strings.Contains(f.What, victim) || !strings.Contains(f.Do, "kuorum logs cp2 "+victim)) {
			t.Errorf("it says %q, %q", f.What, f.Do)
		}
	}
	l.awaitReady(t)
	after := l.machine(t, "cp2").pids()
	delete(before, victim)
	delete(after, victim)
	if !maps.Equal(before, after) {
		t.Errorf("others were restarted: %v became %v", before, after)
	}
}

// TestFlippedByte: a member whose database or log was damaged on its disk takes
// no part, the others go on, and one command gives it a new copy of the data.
func TestFlippedByte(t *testing.T) {
	l := threeServers(t)
	t.Run("database", func(t *testing.T) { l.flippedByte(t, "flip-this-byte-", "snap/db") })
	t.Run("log", func(t *testing.T) { l.flippedByte(t, "turn-this-byte-", "wal/*.wal") })
	t.Run("database in use", l.flippedWhileItRuns)
}

// flippedWhileItRuns: etcd compares its members' data after a compaction, at
// most a minute later, and refuses all writes once they differ.
func (l *lab) flippedWhileItRuns(t *testing.T) {
	marker := strings.Repeat("bend-this-byte-", 40)
	l.kubectl(t, "create", "configmap", "marker", "--from-literal=text="+marker)
	defer l.kubectl(t, "delete", "configmap", "marker")
	db := filepath.Join(tests.dir, "labs", l.name, "machines/cp3/var/lib/kuorum/etcd/member/snap/db")
	eventually(t, time.Minute, func() error { // etcd writes what is new to its database when it likes, and may move the page meanwhile
		flip(t, db, marker)
		r := l.tryOn(t, "cp3", "kuorum", "etcdctl", "get", "/registry/configmaps/default/marker", "--consistency=s") // of its own member
		if r.code != 0 || strings.Contains(r.out, marker) {
			return fmt.Errorf("cp3 does not read the damaged marker yet: %d %s", r.code, r.talk)
		}
		return nil
	})
	l.run(t, "etcd", "compact", "--keep", "0")
	eventually(t, 2*time.Minute, func() error {
		if causes := l.status(t).causes(); !slices.Contains(causes, "etcd-corrupt cp3") {
			return fmt.Errorf("the status has %q", causes)
		}
		return nil
	})
	if r := try(t, "-c", l.name, "kubectl", "create", "configmap", "meanwhile", "--from-literal=a=b"); r.code == 0 {
		t.Error("a write is taken, and may spread the damage")
		l.kubectl(t, "delete", "configmap", "meanwhile")
	}
	l.run(t, "etcd", "rebuild", "cp3")
	l.awaitReady(t)
	if s := l.status(t); s.Quorum.Healthy != 3 || len(s.causes()) > 0 {
		t.Errorf("after that: %+v, %q", s.Quorum, s.Findings)
	}
}

func (l *lab) flippedByte(t *testing.T, word, files string) {
	marker := strings.Repeat(word, 40)
	l.kubectl(t, "create", "configmap", "marker", "--from-literal=text="+marker)
	defer l.kubectl(t, "delete", "configmap", "marker")
	l.run(t, "lab", "stop", "cp3")
	if !flip(t, filepath.Join(tests.dir, "labs", l.name, "machines/cp3/var/lib/kuorum/etcd/member", files), marker) {
		t.Fatalf("the marker is in none of %s", files)
	}
	l.run(t, "lab", "start", "--wait=false", "cp3")
	eventually(t, time.Minute, func() error {
		for _, f := range l.status(t).Findings {
			if f.Node == "cp3" && (f.Code == "component-crash-loop" || f.Code == "etcd-corrupt") {
				return nil
			}
		}
		return fmt.Errorf("the status has %q", l.status(t).Findings)
	})
	log := l.run(t, "logs", "cp3", "etcd", "--tail", "200")
	if !strings.Contains(log, "corrupt") && !strings.Contains(log, "inconsistency") && !strings.Contains(log, "crc mismatch") {
		t.Error("etcd's log does not say that its data is damaged")
	}
	l.kubectl(t, "create", "configmap", "meanwhile", "--from-literal=a=b")
	l.kubectl(t, "delete", "configmap", "meanwhile")
	l.run(t, "etcd", "rebuild", "cp3")
	l.awaitReady(t)
	if s := l.status(t); s.Quorum.Healthy != 3 || len(s.causes()) > 0 {
		t.Errorf("after that: %+v, %q", s.Quorum, s.Findings)
	}
	text := l.on(t, "cp3", "kuorum", "etcdctl", "get", "/registry/configmaps/default/marker", "--consistency=s") // of its own member
	if !strings.Contains(text, marker) {
		t.Error("the new member does not have what the others have")
	}
}

// flip changes one byte of each copy of the marker in the files, in place: who has
// them mapped sees it. It tells whether there was one.
func flip(t *testing.T, pattern, marker string) (found bool) {
	t.Helper()
	paths, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		file, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		for at := 0; bytes.Contains(data[at:], []byte(marker)); found = true {
			at += bytes.Index(data[at:], []byte(marker))
			if _, err := file.WriteAt([]byte("F"), int64(at)); err != nil {
				t.Fatal(err)
			}
			at += len(marker)
		}
		if err := file.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return found
}

// TestFullDisk fills the disk of a follower, then that of the leader: the others
// go on, nothing acknowledged is lost, the status names the disk, and when there
// is room again the member comes back by itself.
func TestFullDisk(t *testing.T) {
	l := ownLab(t, "disk", "--servers", "3")
	l.awaitReady(t)
	leader := l.awaitEtcd(t, "healthy").Leader
	follower := map[string]string{"cp1": "cp2", "cp2": "cp3", "cp3": "cp1"}[leader]
	for _, victim := range []string{follower, leader} {
		t.Run(victim, func(t *testing.T) { l.fullDisk(t, victim) })
	}
}

func (l *lab) fullDisk(t *testing.T, victim string) {
	l.ownDisk(t, victim)
	w, end := l.underWrites(t, "disk-"+victim)
	w.patience = 15 * time.Second // a leader may hang on its disk before it ends
	l.on(t, victim, "sh", "-c", `mount -o remount,size=$(( $(df -k --output=used /var/lib/kuorum | tail -1) + 64 ))k /var/lib/kuorum`)
	eventually(t, noticed, func() error {
		if causes := l.status(t).causes(); !slices.Contains(causes, "disk-full "+victim) {
			return fmt.Errorf("the status has %q", causes)
		}
		return nil
	})
	big := strings.Repeat("x", 900<<10)
	eventually(t, time.Minute, func() error { // until its etcd cannot write any more
		cmd := tests.command("-c", l.name, "kubectl", "create", "configmap", fmt.Sprintf("big-%s-%d", victim, time.Now().UnixNano()), "--from-file=x=/dev/stdin")
		cmd.Stdin = strings.NewReader(big)
		finish(t, cmd)
		for _, m := range l.etcd(t).Members {
			if m.Name == victim && m.State == "down" {
				return nil
			}
		}
		return fmt.Errorf("etcd of %s runs on a full disk", victim)
	})
	have := w.count()
	eventually(t, 30*time.Second, func() error { return atLeast(w, have+20) }) // they go on without it
	l.on(t, victim, "mount", "-o", "remount,size=6g", "/var/lib/kuorum")
	eventually(t, time.Minute, func() error {
		if s := l.etcd(t); s.State != "healthy" {
			return fmt.Errorf("it is not back: %+v", s)
		}
		return nil
	})
	l.awaitReady(t)
	end()
}

// ownDisk puts a machine's /var/lib/kuorum on a file system of its own, with the
// data as a power cut would leave it.
func (l *lab) ownDisk(t *testing.T, machine string) {
	t.Helper()
	l.on(t, machine, "sh", "-ec", `
		etcd=$(pidof -s etcd)
		mkdir /run/disk
		mount -t tmpfs -o size=6g,mode=755 tmpfs /run/disk
		kill -STOP $etcd
		cp -a /var/lib/kuorum/. /run/disk
		mount --bind /run/disk /var/lib/kuorum
		kill -KILL $etcd`)
	eventually(t, time.Minute, func() error {
		if s := l.etcd(t); s.State != "healthy" {
			return fmt.Errorf("etcd is %s: %+v", s.State, s)
		}
		return nil
	})
	l.awaitReady(t)
}

// TestOldCopyIsRefused: a server whose etcd gets back an older copy of its own data, or
// all of its disk, does not start etcd, whatever it was that put it there. The status
// says why, the others go on, and one command gives it a new member.
func TestOldCopyIsRefused(t *testing.T) {
	l := threeServers(t)
	data, kept, mark := l.disk("cp3", "var/lib/kuorum/etcd"), l.disk("cp3", "old-etcd"), l.disk("cp3", "var/lib/kuorum/etcd-mark.json")
	t.Cleanup(func() { _ = os.RemoveAll(kept) })
	l.run(t, "lab", "stop", "cp3")
	copyTree(t, data, kept)
	l.run(t, "lab", "start", "cp3")
	old, err := datadir.Last(kept)
	if err != nil {
		t.Fatal(err)
	}
	w, end := l.underWrites(t, "old")
	eventually(t, time.Minute, func() error { return atLeast(w, 50) })
	eventually(t, 3*time.Minute, func() error { // two looks, 30 s apart
		own, err := datadir.ReadMark(mark)
		if err != nil {
			return err
		}
		if own.Index <= old.Index+50 {
			return fmt.Errorf("the mark is %+v; the copy ends at %d", own, old.Index)
		}
		var others datadir.Mark
		text := l.run(t, "etcdctl", "get", "--print-value-only", "/kuorum/marks/cp3")
		if err := json.Unmarshal([]byte(text), &others); err != nil {
			return err
		}
		if others.Index <= old.Index+50 || others.Member != own.Member {
			return fmt.Errorf("etcd has %q; the copy ends at %d", text, old.Index)
		}
		return nil
	})
	putBack := func(t *testing.T, more ...string) {
		t.Helper()
		l.run(t, "lab", "stop", "cp3")
		for _, path := range append(more, data) {
			if err := os.RemoveAll(path); err != nil {
				t.Fatal(err)
			}
		}
		copyTree(t, kept, data)
		l.run(t, "lab", "start", "--wait=false", "cp3")
		l.awaitOldData(t, "cp3")
	}
	t.Run("its data", func(t *testing.T) { putBack(t) })
	t.Run("its disk", func(t *testing.T) { putBack(t, mark) }) // only the others know
	have := w.count()
	eventually(t, 30*time.Second, func() error { return atLeast(w, have+20) }) // they go on without it
	l.awaitOldData(t, "cp3")                                                   // and it stays so
	l.run(t, "etcd", "rebuild", "cp3")
	l.awaitReady(t)
	eventually(t, time.Minute, func() error {
		if s := l.status(t); s.Quorum.Healthy != 3 || s.Quorum.Voters != 3 || len(s.causes()) > 0 {
			return fmt.Errorf("after that: %+v, %q", s.Quorum, s.Findings)
		}
		return nil
	})
	end()
}

// awaitOldData waits until the status tells that a server's data is old, and nothing
// else, and sees that its etcd does not run.
func (l *lab) awaitOldData(t *testing.T, server string) {
	t.Helper()
	eventually(t, 30*time.Second, func() error {
		s := l.status(t)
		if !slices.Equal(s.causes(), []string{"etcd-data-old " + server}) || s.Quorum.Healthy != 2 {
			return fmt.Errorf("it is %s, %+v, with %q", s.State, s.Quorum, s.Findings)
		}
		return nil
	})
	for _, f := range l.status(t).Findings {
		if f.Code == "etcd-data-old" && (!strings.Contains(f.Why, "older copy") || f.Do != "kuorum etcd rebuild "+server) {
			t.Errorf("it says %q, %q", f.Why, f.Do)
		}
	}
	if pid := l.machine(t, server).pids()["etcd"]; pid != 0 {
		t.Errorf("etcd of %s runs on old data, as process %d", server, pid)
	}
}
