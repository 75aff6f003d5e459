package etcd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestRecords: changes are made together or not at all, and whoever follows a
// key hears of each.
func TestRecords(t *testing.T) {
	s := startCluster(t, 1)[0]
	c := dialTo(t, nil, s)
	ctx := within(t, patience)
	commit := func(want bool, changes ...Change) {
		t.Helper()
		done, err := c.Commit(ctx, "test", changes...)
		if err != nil || done != want {
			t.Fatalf("got %v, %v, want %v", done, err, want)
		}
	}
	following, stop := context.WithCancel(ctx)
	heard := make(chan string, 10)
	ended := make(chan error, 1)
	go func() { ended <- c.Follow(following, "/t/a", func(r Record) { heard <- string(r.Value) }) }()
	if first := <-heard; first != "" {
		t.Errorf("a key that is not there has the value %q", first)
	}
	commit(true, Change{Key: "/t/a", Value: []byte("1")}, Change{Key: "/t/b", Value: []byte("1")})
	commit(false, Change{Key: "/t/a", Value: []byte("2")}, Change{Key: "/t/c", Value: []byte("2")})
	a, err := c.Record(ctx, "/t/a")
	if err != nil || string(a.Value) != "1" || a.Revision == 0 {
		t.Fatalf("got %+v, %v", a, err)
	}
	commit(true, Change{Key: "/t/a", Value: []byte("3"), If: a.Revision}, Change{Key: "/t/b", Always: true})
	commit(false, Change{Key: "/t/a", Value: []byte("4"), If: a.Revision})
	records, err := c.Records(ctx, "/t/")
	if err != nil || len(records) != 1 || string(records[0].Value) != "3" {
		t.Errorf("got %+v, %v", records, err)
	}
	var got []string
	for range 2 {
		got = append(got, <-heard)
	}
	if !slices.Equal(got, []string{"1", "3"}) {
		t.Errorf("heard %q", got)
	}
	stop()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the watch ended with %v", err)
	}
}

// TestLocal: a member tells what it has without the others, and one that does not run
// holds nobody up.
func TestLocal(t *testing.T) {
	t.Parallel()
	servers := startCluster(t, 3, "--unsafe-no-fsync")
	c := dialTo(t, nil, servers[0])
	put(t, c, "/t/a", "1")
	put(t, c, "/t/b", "2")
	put(t, c, "/u", "3")
	servers[1].kill()
	servers[2].kill()
	records, err := c.Local(within(t, patience), "/t/")
	if err != nil || len(records) != 2 || records[1].Key != "/t/b" || string(records[1].Value) != "2" {
		t.Errorf("got %+v, %v", records, err)
	}
	servers[0].kill()
	waitFor(t, "the connection to be gone", func() error {
		begun := time.Now()
		if _, err = c.Local(t.Context(), "/t/"); err == nil || !strings.Contains(err.Error(), "cannot read /t/ in etcd: it ") {
			return fmt.Errorf("got %w", err)
		}
		if took := time.Since(begun); took > askWait/2 {
			return fmt.Errorf("it took %v", took)
		}
		return nil
	})
}

// TestFollowCount: it tells of what is there, of what comes, and of what goes,
// also with its lease.
func TestFollowCount(t *testing.T) {
	s := startCluster(t, 1)[0]
	c := dialTo(t, nil, s)
	ctx := within(t, patience)
	commit := func(changes ...Change) {
		t.Helper()
		_, err := c.Commit(ctx, "test", changes...)
		mustDo(t, err)
	}
	commit(Change{Key: "/t/a", Value: []byte("1")}, Change{Key: "/u", Value: []byte("1")})
	following, stop := context.WithCancel(ctx)
	heard := make(chan int, 10)
	ended := make(chan error, 1)
	go func() { ended <- c.FollowCount(following, "/t/", func(n int) { heard <- n }) }()
	got := []int{<-heard}
	lease, err := c.Grant(ctx, 2*time.Second)
	mustDo(t, err)
	commit(Change{Key: "/t/b", Value: []byte("1")}, Change{Key: "/t/c", Value: []byte("1"), Lease: lease})
	commit(Change{Key: "/t/a", Value: []byte("2"), Always: true})
	commit(Change{Key: "/u", Always: true})
	commit(Change{Key: "/t/a", Always: true}, Change{Key: "/t/b", Always: true})
	for range 4 {
		got = append(got, <-heard)
	}
	if !slices.Equal(got, []int{1, 3, 3, 1, 0}) {
		t.Errorf("heard %v", got)
	}
	stop()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the watch ended with %v", err)
	}
}

// TestLeases: a key goes with its lease, and stays with one that is renewed.
func TestLeases(t *testing.T) {
	s := startCluster(t, 1)[0]
	c := dialTo(t, nil, s)
	ctx := within(t, patience)
	short, err := c.Grant(ctx, 2*time.Second)
	mustDo(t, err)
	long, err := c.Grant(ctx, time.Hour)
	mustDo(t, err)
	_, err = c.Commit(ctx, "test",
		Change{Key: "/t/short", Value: []byte("x"), Lease: short}, Change{Key: "/t/long", Value: []byte("x"), Lease: long})
	mustDo(t, err)
	_, err = c.Commit(ctx, "test", Change{Key: "/t/long", Value: []byte("y"), Always: true, KeepLease: true})
	mustDo(t, err)
	mustDo(t, c.Renew(ctx, long))
	waitFor(t, "the short lease to end", func() error {
		if r, err := c.Record(ctx, "/t/short"); err != nil || r.Revision != 0 {
			return errors.Join(err, errors.New("it is still there"))
		}
		return nil
	})
	if err := c.Renew(ctx, short); !errors.Is(err, ErrNoLease) {
		t.Errorf("a lease that has ended: %v", err)
	}
	if r, err := c.Record(ctx, "/t/long"); err != nil || string(r.Value) != "y" {
		t.Errorf("got %+v, %v", r, err)
	}
}
