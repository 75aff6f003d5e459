package etcd

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"kuorum/internal/cluster"
)

func TestStatusOfAHealthyMember(t *testing.T) {
	t.Parallel()
	s := startCluster(t, 1, "--quota-backend-bytes=100000000")[0]
	c := dialTo(t, nil, s)
	put(t, c, "k", "1")
	put(t, c, "k", "2")
	got := c.Status(within(t, patience))
	want := cluster.EtcdStatus{
		ID:         got.Members[0].ID,
		Cluster:    got.Cluster,
		Leader:     got.ID,
		Version:    "3.6.16",
		Revision:   3,
		QuotaBytes: 100_000_000,
		Members:    []cluster.EtcdMember{{ID: got.ID, Name: "m1", PeerURLs: []string{s.peer}, ClientURLs: []string{s.client}}},
	}
	moving := cmpopts.IgnoreFields(cluster.EtcdStatus{}, "Term", "RaftIndex", "AppliedIndex", "DBBytes", "DBUsedBytes")
	if diff := cmp.Diff(want, got, moving); diff != "" {
		t.Errorf("status differs (-want +got):\n%s", diff)
	}
	list, err := c.members[0].client.MemberList(within(t, patience))
	mustDo(t, err)
	if want := hex(list.Header.ClusterId); got.Cluster != want || got.Cluster == got.ID {
		t.Errorf("the cluster's ID is %q, want %q", got.Cluster, want)
	}
	if got.Term == 0 || got.AppliedIndex < 3 || got.RaftIndex < got.AppliedIndex || got.DBUsedBytes == 0 || got.DBBytes < got.DBUsedBytes {
		t.Errorf("figures make no sense: %+v", got)
	}
	revision, err := c.Revision(within(t, patience))
	if err != nil || revision != 3 {
		t.Errorf("revision is %d, %v", revision, err)
	}
	page, err := http.Get(s.client + "/metrics")
	mustDo(t, err)
	defer page.Body.Close()
	metrics, err := ParseMetrics(page.Body)
	mustDo(t, err)
	if p99 := metrics.Fsync.Quantile(0.99); p99 <= 0 {
		t.Errorf("two writes took no time on the disk: %v of %+v", p99, metrics)
	}
}

func TestFrozenMemberIsNamedInTime(t *testing.T) {
	t.Parallel()
	s := startCluster(t, 1, "--unsafe-no-fsync")[0]
	warm, fresh := dialTo(t, nil, s), dialTo(t, nil, s)
	if got := warm.Status(within(t, patience)); got.Error != "" {
		t.Fatal(got.Error)
	}
	s.freeze(t)
	for _, c := range []*Client{warm, fresh} { // connected already, and not
		begun := time.Now()
		got := c.Status(within(t, 300*time.Millisecond))
		if diff := cmp.Diff(cluster.EtcdStatus{Error: "does not answer within 300ms"}, got); diff != "" {
			t.Errorf("status differs (-want +got):\n%s", diff)
		}
		if took := time.Since(begun); took > 2*time.Second {
			t.Errorf("a frozen member held us up for %v", took)
		}
	}
	if got := dialTo(t, nil, s).Status(within(t, patience)).Error; !strings.HasPrefix(got, "takes connections, but says nothing") {
		t.Errorf("with time enough it says %q", got)
	}
	_, err := warm.Members(within(t, 5*time.Second))
	if exitCode(err) != cluster.ExitNoQuorum || !strings.Contains(err.Error(), "does not answer within 1s") {
		t.Errorf("members of a frozen member: %v", err)
	}
	s.signal(t, syscall.SIGCONT)
	waitFor(t, "both connections to go on", func() error {
		for _, c := range []*Client{warm, fresh} {
			if _, err := c.Members(within(t, time.Second)); err != nil {
				return err
			}
		}
		return nil
	})
}

func TestNobodyListens(t *testing.T) {
	t.Parallel()
	s := newServer(t, "m1")
	c := dialTo(t, nil, s)
	begun := time.Now()
	got := c.Status(within(t, patience))
	if !strings.HasPrefix(got.Error, "connection refused") || got.Members != nil {
		t.Errorf("status is %+v", got)
	}
	_, err := c.Members(within(t, patience))
	if exitCode(err) != cluster.ExitNoQuorum || !strings.Contains(err.Error(), s.client+": connection refused") {
		t.Errorf("members: %v", err)
	}
	err = c.Defragment(within(t, patience))
	if exitCode(err) != cluster.ExitNoQuorum || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("defragment: %v", err)
	}
	if took := time.Since(begun); took > patience/2 {
		t.Errorf("it took %v to learn that nobody listens", took)
	}
	// The same client must notice that it is there now.
	s.start(t, "new", s)
	waitFor(t, "it to answer", func() error {
		_, err := c.Members(within(t, time.Second))
		return err
	})
}

func TestParseAlarm(t *testing.T) {
	for _, test := range []struct {
		text string
		want cluster.EtcdAlarm
	}{
		{"memberID:10501334649042878790 alarm:NOSPACE ", cluster.EtcdAlarm{Member: "91bc3c398fb3c146", Kind: "NOSPACE"}},
		{"memberID:255  alarm:CORRUPT", cluster.EtcdAlarm{Member: "ff", Kind: "CORRUPT"}},
		{"alarm:CORRUPT", cluster.EtcdAlarm{Member: "0", Kind: "CORRUPT"}},
		{"etcdserver: no leader", cluster.EtcdAlarm{}},
		{"memberID:x alarm:NOSPACE", cluster.EtcdAlarm{}},
		{"memberID:1", cluster.EtcdAlarm{}},
		{"", cluster.EtcdAlarm{}},
	} {
		got, ok := parseAlarm(test.text)
		if ok != (test.want != cluster.EtcdAlarm{}) {
			t.Errorf("%q: ok is %v", test.text, ok)
		}
		if diff := cmp.Diff(test.want, got); ok && diff != "" {
			t.Errorf("%q differs (-want +got):\n%s", test.text, diff)
		}
	}
}

// TestStatusesOfAll: who is on none of the members' machines sees each of them,
// and goes on when any one of them is gone.
func TestStatusesOfAll(t *testing.T) {
	t.Parallel()
	servers := startCluster(t, 3, "--unsafe-no-fsync")
	c := dialTo(t, nil, servers...)
	ctx := within(t, patience)
	all := c.Statuses(ctx)
	leader := Newest(all)
	for i, s := range all {
		if own := dialTo(t, nil, servers[i]).Status(ctx); s.Error != "" || s.ID != own.ID || s.Leader != leader.ID || s.Members != nil {
			t.Errorf("m%d: %+v, by itself %+v", i+1, s, own)
		}
	}
	at := slices.IndexFunc(all, func(s cluster.EtcdStatus) bool { return s.ID == leader.ID })
	if leader.ID == "" || at < 0 {
		t.Fatalf("nobody leads: %+v", all)
	}
	servers[at].kill()
	var left []cluster.EtcdStatus
	waitFor(t, "the next leader", func() error {
		left = c.Statuses(ctx)
		if next := Newest(left); next.Error != "" || next.Leader == leader.ID || next.Leader != next.ID {
			return fmt.Errorf("it is %+v", next)
		}
		return nil
	})
	if left[at].Error == "" || left[at].ID != "" {
		t.Errorf("a dead member says %+v", left[at])
	}
	if done, err := c.Commit(ctx, "test", Change{Key: "k", Value: []byte("v")}); err != nil || !done {
		t.Errorf("without its leader: %v, %v", done, err)
	}
}

// TestLooks: all members tell their list, with and without a quorum; whether a
// quorum agrees one member alone can tell.
func TestLooks(t *testing.T) {
	t.Parallel()
	servers := startCluster(t, 3, "--unsafe-no-fsync")
	all, one := dialTo(t, nil, servers...), dialTo(t, nil, servers[0])
	put(t, one, "/registry/pods/a", "1")
	put(t, one, "/registry/pods/b", "1")
	if n, err := one.Count(within(t, patience), "/registry/"); err != nil || n != 2 {
		t.Errorf("counted %d, %v", n, err)
	}
	if n, err := one.Count(within(t, patience), "/kuorum/"); err != nil || n != 0 {
		t.Errorf("counted %d, %v", n, err)
	}
	waitFor(t, "all members to tell of three", func() error {
		for i, s := range all.Looks(within(t, patience)) {
			if s.Error != "" || len(s.Members) != 3 || s.Leader == "" {
				return fmt.Errorf("member %d says %+v", i, s)
			}
			for _, m := range s.Members {
				if len(m.ClientURLs) != 1 {
					return fmt.Errorf("%s is nowhere", m.Name)
				}
			}
		}
		return nil
	})
	waitFor(t, "a quorum to agree", func() error {
		if !one.Agrees(within(t, patience)) {
			return errors.New("none agrees")
		}
		return nil
	})
	servers[1].kill()
	servers[2].kill()
	waitFor(t, "the quorum to be lost", func() error {
		if one.Agrees(within(t, patience)) {
			return errors.New("a quorum agrees still")
		}
		return nil
	})
	looks := all.Looks(within(t, patience))
	if looks[0].Error != "" || len(looks[0].Members) != 3 || looks[1].Error == "" || looks[2].Error == "" {
		t.Errorf("without a quorum: %+v", looks)
	}
}
