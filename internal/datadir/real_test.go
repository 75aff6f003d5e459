package datadir

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

const etcdBinary = "../../build/bundle/bin/etcd"

// realEtcd is a member alone, at an address of its own.
type realEtcd struct {
	dir, at string
	client  *clientv3.Client
	cmd     *exec.Cmd
}

func newEtcd(t *testing.T) *realEtcd {
	t.Helper()
	if _, err := os.Stat(etcdBinary); err != nil {
		t.Fatalf("run make bundle first: %v", err)
	}
	e := &realEtcd{dir: t.TempDir(), at: fmt.Sprintf("http://127.%d.%d.%d:", 2+rand.N(250), rand.N(256), 1+rand.N(250))}
	var err error
	e.client, err = clientv3.New(clientv3.Config{Endpoints: []string{e.at + "2379"}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		e.kill()
		_ = e.client.Close() // nothing was lost with it
	})
	return e
}

func (e *realEtcd) start(t *testing.T, flags ...string) {
	t.Helper()
	e.cmd = exec.CommandContext(context.WithoutCancel(t.Context()), etcdBinary, append([]string{
		"--name=m1", "--data-dir=" + e.dir, "--listen-client-urls=" + e.at + "2379", "--advertise-client-urls=" + e.at + "2379",
		"--listen-peer-urls=" + e.at + "2380", "--initial-advertise-peer-urls=" + e.at + "2380", "--initial-cluster=m1=" + e.at + "2380",
		"--heartbeat-interval=20", "--election-timeout=200",
	}, flags...)...)
	e.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := e.cmd.Start(); err != nil {
		t.Fatal(err)
	}
}

func (e *realEtcd) kill() {
	if e.cmd != nil && e.cmd.ProcessState == nil {
		_, _ = e.cmd.Process.Kill(), e.cmd.Wait()
	}
}

// put writes as soon as there is a leader, and returns what the member says after.
func (e *realEtcd) put(t *testing.T, values ...string) *clientv3.StatusResponse {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for i, v := range values {
		for {
			_, err := e.client.Put(ctx, fmt.Sprint("key", i%3), v)
			if err == nil {
				break
			}
			if ctx.Err() != nil {
				t.Fatal(err)
			}
		}
	}
	status, err := e.client.Status(ctx, e.at+"2379")
	if err != nil {
		t.Fatal(err)
	}
	return status
}

// same compares the log of a member that has just been killed with what it said.
func (e *realEtcd) same(t *testing.T, said *clientv3.StatusResponse) Position {
	t.Helper()
	got, err := Last(e.dir)
	if err != nil {
		t.Fatal(err)
	}
	want := Position{Cluster: said.Header.ClusterId, Member: said.Header.MemberId, Index: said.RaftIndex, Term: said.RaftTerm}
	// Something of its own may have come after the question, and no one is told of it.
	if got.Index > want.Index && got.Index <= want.Index+2 {
		want.Index = got.Index
	}
	if got != want {
		t.Errorf("the log ends at %+v, and the member said %+v", got, want)
	}
	return got
}

// TestRealLog compares with what etcd itself says: after kills at any moment, with
// snapshots, over the end of a file, and from a copy that is put back.
func TestRealLog(t *testing.T) {
	t.Parallel()
	e := newEtcd(t)
	if _, err := Last(e.dir); err != ErrNoData { //nolint:errorlint // as it is
		t.Errorf("before the first start: %v", err)
	}
	e.start(t, "--snapshot-count=7")
	said := e.put(t, strings.Split(strings.Repeat("a", 30), "")...)
	if got, err := Last(e.dir); err != nil || got.Index < said.RaftIndex {
		t.Errorf("of a member that runs: %+v, %v; it said %d", got, err, said.RaftIndex)
	}
	e.kill()
	early := e.same(t, said)
	old := t.TempDir()
	if err := os.CopyFS(filepath.Join(old, "member"), os.DirFS(filepath.Join(e.dir, "member"))); err != nil {
		t.Fatal(err)
	}

	e.start(t, "--unsafe-no-fsync", "--snapshot-count=7")
	big := strings.Repeat("b", 1<<20)
	said = e.put(t, strings.Split(strings.TrimSuffix(strings.Repeat(big+",", 70), ","), ",")...)
	e.kill()
	later := e.same(t, said)
	if files, err := logFiles(filepath.Join(e.dir, "member", "wal")); err != nil || len(files) < 2 {
		t.Errorf("no second file was begun: %q, %v", files, err)
	}
	if later.Index < early.Index+70 || later.Member != early.Member {
		t.Errorf("first %+v, then %+v", early, later)
	}

	mark := Mark{Cluster: hex(later.Cluster), Member: hex(later.Member), Index: said.RaftIndex}
	if found := Check(early, []Mark{mark}, 3); found == nil || found.Has != early.Index {
		t.Errorf("of the copy it is said: %+v", found)
	}
	if found := Check(later, []Mark{mark}, 3); found != nil {
		t.Errorf("of the data as it should be: %+v", found)
	}
	e.dir = old // etcd takes it, and goes on where the copy ends: so it must not start
	e.start(t)
	said = e.put(t, "c")
	if said.RaftIndex >= mark.Index {
		t.Errorf("etcd knows of entry %d from somewhere", said.RaftIndex)
	}
	e.kill()
	e.same(t, said)
}

// TestTornReal cuts the end off a real log, byte by byte: it never goes further back
// than by what was cut.
func TestTornReal(t *testing.T) {
	t.Parallel()
	e := newEtcd(t)
	e.start(t)
	said := e.put(t, "a", "b", "c")
	e.kill()
	whole := e.same(t, said)
	path := filepath.Join(e.dir, "member", "wal", first)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	end := len(data)
	for end > 0 && data[end-1] == 0 {
		end--
	}
	last := whole.Index
	for ; end > 600; end -= 13 {
		clear(data[end:])
		if err := os.WriteFile(path, data[:end], 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := Last(e.dir)
		if err != nil || got.Index > last || got.Member != whole.Member {
			t.Fatalf("cut to %d bytes: %+v, %v; before %d", end, got, err, last)
		}
		last = got.Index
	}
	if last >= whole.Index {
		t.Error("nothing was cut off")
	}
}

// TestMarkIsNeverAhead kills one of three members under writes, again and again, and lets
// it get the others' snapshots meanwhile: what it may be marked with is always on its disk.
func TestMarkIsNeverAhead(t *testing.T) {
	t.Parallel()
	members := []*realEtcd{newEtcd(t), newEtcd(t), newEtcd(t)}
	var list []string
	for i, m := range members {
		list = append(list, fmt.Sprintf("m%d=%s2380", i, m.at))
	}
	start := func(i int) {
		members[i].start(t, fmt.Sprintf("--name=m%d", i), "--initial-cluster="+strings.Join(list, ","), "--snapshot-count=40", "--snapshot-catchup-entries=5")
	}
	for i := range members {
		start(i)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var writers sync.WaitGroup
	defer writers.Wait()
	defer cancel()
	for w := range 8 {
		writers.Go(func() {
			for ctx.Err() == nil {
				_, _ = members[w%2].client.Put(ctx, fmt.Sprint("key", w), "x") // it may have no leader now
			}
		})
	}
	const victim = 2
	last := Position{}
	for round := range 5 {
		mark := members[victim].watch(ctx, t, round+1, 5+rand.N(30))
		members[victim].kill()
		now, err := Last(members[victim].dir)
		if err != nil || now.Index < mark || now.Index <= last.Index {
			t.Fatalf("round %d: the log ends at %+v, %v; it would be marked with %d, and ended at %d before", round, now, err, mark, last.Index)
		}
		last = now
		for said := uint64(0); said < last.Index+100; { // more than they keep for it
			if status, err := members[0].client.Status(ctx, members[0].at+"2379"); err == nil {
				said = status.RaftIndex
			} else if ctx.Err() != nil {
				t.Fatal(err)
			}
		}
		start(victim)
	}
}

// watch looks at a member until it has been marked so often, and returns the last mark.
func (e *realEtcd) watch(ctx context.Context, t *testing.T, process, marks int) uint64 {
	t.Helper()
	var saved Saved
	var mark uint64
	for ctx.Err() == nil {
		limited, cancel := context.WithTimeout(ctx, time.Second)
		status, err := e.client.Status(limited, e.at+"2379")
		cancel()
		if err != nil {
			continue
		}
		if index, ok := saved.See(process, status.RaftIndex); ok {
			mark, marks = index, marks-1
		}
		if marks <= 0 {
			return mark
		}
	}
	t.Fatal("the member does not go on")
	return 0
}
