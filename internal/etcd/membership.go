package etcd

import (
	"context"
	"fmt"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"kuorum/internal/cluster"
)

// Members is the member list that a quorum agrees on, in the order of names.
func (c *Client) Members(ctx context.Context) ([]cluster.EtcdMember, error) {
	var members []cluster.EtcdMember
	err := c.transact(ctx, "list the members of etcd", func(a answer) error {
		list, err := a.member.client.MemberList(ctx)
		if err != nil {
			return err
		}
		members = membersOf(list.Members)
		return nil
	})
	return members, err
}

// AddLearner puts a member on the list that gets all data but has no vote, so
// that the quorum stays as it is whether it ever starts or not. It may fail
// with ErrURLTaken, also when an earlier call was cut off after it was done,
// and with ErrUnsettled.
func (c *Client) AddLearner(ctx context.Context, peerURL string) (cluster.EtcdMember, error) {
	var added cluster.EtcdMember
	err := c.transact(ctx, "add learner "+peerURL+" to etcd", func(a answer) error {
		result, err := a.member.client.MemberAddAsLearner(ctx, []string{peerURL})
		if err != nil {
			return err
		}
		m := result.Member
		added = cluster.EtcdMember{ID: hex(m.ID), Name: m.Name, Learner: m.IsLearner, PeerURLs: m.PeerURLs}
		return nil
	})
	return added, err
}

// Promote gives a learner its vote; one that is a voter already stays one. It
// fails with ErrNotCaughtUp until the learner has nine tenths of the leader's
// log, and with ErrNoMember.
func (c *Client) Promote(ctx context.Context, id string) error {
	return c.change(ctx, "promote etcd member", id, func(a answer, id uint64) error {
		_, err := a.member.client.MemberPromote(ctx, id)
		if err != nil && is(err, rpctypes.ErrGRPCMemberNotLearner) {
			return nil
		}
		return err
	})
}

// Remove takes a member off the list for good: its data directory is of no use
// to it any more. Whether the quorum bears it is the caller's to check
// (cluster.GuardQuorum); etcd has a check of its own, ErrUnsettled. A member
// that is gone already gives ErrNoMember.
func (c *Client) Remove(ctx context.Context, id string) error {
	return c.change(ctx, "remove etcd member", id, func(a answer, id uint64) error {
		_, err := a.member.client.MemberRemove(ctx, id)
		return err
	})
}

// UpdatePeer tells the others that a member is now found at peerURL. It may
// fail with ErrNoMember and, when somebody else is there, ErrURLTaken.
func (c *Client) UpdatePeer(ctx context.Context, id, peerURL string) error {
	return c.change(ctx, "change the peer URL of etcd member", id, func(a answer, id uint64) error {
		_, err := a.member.client.MemberUpdate(ctx, id, []string{peerURL})
		return err
	})
}

// MoveLeader makes the voter id the leader, and returns once it is. Only the
// leader can do that: its endpoint must be among the client's.
func (c *Client) MoveLeader(ctx context.Context, id string) error {
	return c.change(ctx, "make a leader of etcd member", id, func(a answer, id uint64) error {
		if a.status.Leader == id {
			return nil
		}
		if !a.leads() {
			return &cluster.Problem{
				What: "cannot make a leader of etcd member " + hex(id),
				Why:  fmt.Sprintf("only the present leader can, member %s, which was not reached", hex(a.status.Leader)),
				Do:   "kuorum status",
			}
		}
		_, err := a.member.client.MoveLeader(ctx, id)
		return err
	})
}

// change is a transaction about one member.
func (c *Client) change(ctx context.Context, verb, id string, do func(answer, uint64) error) error {
	n, err := parseID(id)
	if err != nil {
		return err
	}
	return c.transact(ctx, verb+" "+id, func(a answer) error { return do(a, n) })
}

// Revision is the newest revision of the whole cluster, while
// cluster.EtcdStatus has that of one member.
func (c *Client) Revision(ctx context.Context) (int64, error) {
	var revision int64
	err := c.transact(ctx, "read the revision of etcd", func(a answer) error {
		// Any key does: what counts is the header of the answer.
		got, err := a.member.client.Get(ctx, "kuorum", clientv3.WithCountOnly())
		if err != nil {
			return err
		}
		revision = got.Header.Revision
		return nil
	})
	return revision, err
}
