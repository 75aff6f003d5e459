package etcd

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"kuorum/internal/cluster"
)

func TestLearnerJoins(t *testing.T) {
	t.Parallel()
	first := startCluster(t, 1, "--unsafe-no-fsync")[0]
	c := dialTo(t, nil, first)
	ctx := within(t, patience)
	joining := newServer(t, "m2", "--unsafe-no-fsync")

	learner, err := c.AddLearner(ctx, joining.peer)
	mustDo(t, err)
	want := cluster.EtcdMember{ID: learner.ID, Learner: true, PeerURLs: []string{joining.peer}}
	if diff := cmp.Diff(want, learner); diff != "" || learner.ID == "" {
		t.Fatalf("the new learner differs (-want +got):\n%s", diff)
	}
	// It has not started, and may never: nothing depends on it.
	for i := range 20 {
		put(t, c, fmt.Sprint("k", i), "v")
	}
	status := c.Status(ctx)
	if diff := cmp.Diff(want, status.Members[0]); diff != "" || len(status.Members) != 2 {
		t.Errorf("members are %+v (-want +got):\n%s", status.Members, diff)
	}
	err = c.Promote(ctx, learner.ID)
	if !errors.Is(err, ErrNotCaughtUp) || exitCode(err) != cluster.ExitRefused {
		t.Errorf("promoted too early: %v", err)
	}
	if _, err = c.AddLearner(ctx, joining.peer); !errors.Is(err, ErrURLTaken) {
		t.Errorf("added twice: %v", err)
	}
	_, err = c.AddLearner(ctx, newServer(t, "m3").peer)
	if exitCode(err) != cluster.ExitRefused || !strings.Contains(err.Error(), "another learner is joining") {
		t.Errorf("a second learner: %v", err)
	}

	joining.start(t, "existing", first, joining)
	got := waitHealthy(t, joining)
	if got.ID != learner.ID || !got.Learner || got.Leader != status.ID || got.Members != nil {
		t.Errorf("status of the learner: %+v", got)
	}
	waitFor(t, "the learner to catch up", func() error {
		if percent := CatchUp(c.Status(ctx), dialTo(t, nil, joining).Status(ctx)); percent != 100 {
			return fmt.Errorf("it has %d%%", percent)
		}
		return nil
	})
	_, err = dialTo(t, nil, joining).Members(ctx)
	if exitCode(err) != cluster.ExitNoQuorum || !strings.Contains(err.Error(), "is a learner") {
		t.Errorf("asked a learner alone: %v", err)
	}
	waitFor(t, "the promotion", func() error {
		err := c.Promote(within(t, time.Second), learner.ID)
		if err != nil && !errors.Is(err, ErrNotCaughtUp) {
			t.Fatal(err)
		}
		return err
	})
	mustDo(t, c.Promote(ctx, learner.ID)) // once more does no harm
	members, err := c.Members(ctx)
	mustDo(t, err)
	wantMembers := []cluster.EtcdMember{
		{ID: status.ID, Name: "m1", PeerURLs: []string{first.peer}, ClientURLs: []string{first.client}},
		{ID: learner.ID, Name: "m2", PeerURLs: []string{joining.peer}, ClientURLs: []string{joining.client}},
	}
	if diff := cmp.Diff(wantMembers, members); diff != "" {
		t.Errorf("members differ (-want +got):\n%s", diff)
	}
}

func TestMembershipOfStrangers(t *testing.T) {
	t.Parallel()
	s := startCluster(t, 1, "--unsafe-no-fsync")[0]
	c := dialTo(t, nil, s)
	ctx := within(t, patience)
	for name, try := range map[string]func(id string) error{
		"promote": func(id string) error { return c.Promote(ctx, id) },
		"remove":  func(id string) error { return c.Remove(ctx, id) },
		"update":  func(id string) error { return c.UpdatePeer(ctx, id, "http://127.0.0.1:1") },
	} {
		if err := try("abc"); !errors.Is(err, ErrNoMember) || !strings.Contains(err.Error(), "abc") {
			t.Errorf("%s of a stranger: %v", name, err)
		}
		for _, id := range []string{"", "m1", "0", "-1"} {
			if err := try(id); exitCode(err) != cluster.ExitUsage {
				t.Errorf("%s %q: %v", name, id, err)
			}
		}
	}
	if err := c.MoveLeader(ctx, "abc"); err == nil || !strings.Contains(err.Error(), "only a voter can lead") {
		t.Errorf("a stranger leads: %v", err)
	}
	learner, err := c.AddLearner(ctx, "http://127.0.0.1:1")
	mustDo(t, err)
	if err := c.UpdatePeer(ctx, learner.ID, s.peer); !errors.Is(err, ErrURLTaken) {
		t.Errorf("two members at one URL: %v", err)
	}
	mustDo(t, c.UpdatePeer(ctx, learner.ID, "http://127.0.0.1:2"))
	members, err := c.Members(ctx)
	mustDo(t, err)
	want := cluster.EtcdMember{ID: learner.ID, Learner: true, PeerURLs: []string{"http://127.0.0.1:2"}}
	if diff := cmp.Diff(want, members[0]); diff != "" {
		t.Errorf("moved member differs (-want +got):\n%s", diff)
	}
	mustDo(t, c.Remove(ctx, learner.ID))
	if err := c.Remove(ctx, learner.ID); !errors.Is(err, ErrNoMember) {
		t.Errorf("removed twice: %v", err)
	}
	if members, err = c.Members(ctx); err != nil || len(members) != 1 {
		t.Errorf("members are %v, %v", members, err)
	}
}

func TestThreeMembersLoseAVoterAndThenTheQuorum(t *testing.T) {
	t.Parallel()
	servers := startCluster(t, 3, "--unsafe-no-fsync")
	all := dialTo(t, nil, servers...)
	ctx := within(t, 2*patience)

	// Every member in turn leads, also when it does already.
	ids := map[string]*server{}
	for _, s := range servers {
		id := waitHealthy(t, s).ID
		ids[id] = s
		for range 2 {
			waitFor(t, s.name+" to lead", func() error { return all.MoveLeader(ctx, id) })
		}
		waitFor(t, "all to know it", func() error {
			for _, other := range servers {
				if got := waitHealthy(t, other); got.Leader != id {
					return fmt.Errorf("%s leads, not %s", got.Leader, id)
				}
			}
			return nil
		})
	}
	leader, follower, lost := servers[2], servers[0], servers[1]
	err := dialTo(t, nil, follower).MoveLeader(ctx, waitHealthy(t, lost).ID)
	if err == nil || !strings.Contains(err.Error(), "only the present leader can") {
		t.Errorf("a follower gave the lead away: %v", err)
	}

	// One that is frozen holds nobody up.
	lost.freeze(t)
	for range 3 {
		if _, err := all.Members(within(t, 4*time.Second)); err != nil {
			t.Errorf("one of three is frozen: %v", err)
		}
	}
	lost.kill()
	var lostID string
	for id, s := range ids {
		if s == lost {
			lostID = id
		}
	}
	waitFor(t, "the dead one's removal", func() error {
		err := all.Remove(within(t, time.Second), lostID)
		if err != nil && exitCode(err) == cluster.ExitError {
			t.Fatal(err)
		}
		return err
	})
	put(t, dialTo(t, nil, leader), "k", "v")

	leader.kill() // two voters are left, and one of them is gone
	alone := dialTo(t, nil, follower, leader, lost)
	waitFor(t, "the last one to miss its leader", func() error {
		got := alone.Status(within(t, 2*time.Second))
		if got.Error != "" || len(got.Members) != 2 {
			t.Fatalf("status without a quorum: %+v", got)
		}
		if got.Leader != "" {
			return errors.New("it still believes in the leader")
		}
		return nil
	})
	begun := time.Now()
	_, err = alone.Members(ctx)
	if exitCode(err) != cluster.ExitNoQuorum {
		t.Errorf("members without a quorum: %v", err)
	}
	for _, line := range []string{follower.client + ": runs, but knows of no leader", leader.client + ": connection refused"} {
		if err == nil || !strings.Contains(err.Error(), line) {
			t.Errorf("not said: %s\n%v", line, err)
		}
	}
	if took := time.Since(begun); took > 2*leaderWait {
		t.Errorf("it took %v to see that there is no quorum", took)
	}
	if err := alone.Promote(within(t, time.Second), lostID); exitCode(err) != cluster.ExitNoQuorum {
		t.Errorf("promoted without a quorum: %v", err)
	}
}
