package etcd

import (
	"context"
	"fmt"
	"strconv"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"kuorum/internal/cluster"
)

// Compact forgets what keys were before revision, for all members, and returns
// when the answering one has removed it from its database too. That makes free
// pages, not a smaller file. Compacted up to there or further already is no
// error. A large database takes minutes.
func (c *Client) Compact(ctx context.Context, revision int64) error {
	return c.transact(ctx, "compact etcd to revision "+strconv.FormatInt(revision, 10), func(a answer) error {
		_, err := a.member.client.Compact(ctx, revision, clientv3.WithCompactPhysical())
		if err != nil && is(err, rpctypes.ErrGRPCCompacted) {
			return nil
		}
		return err
	})
}

// Defragment writes the database of the member at the first endpoint anew,
// without its free pages. The member does nothing else meanwhile: it is as
// good as stopped, for about a second a 100 MiB, on a slow disk ten. It goes
// on also when ctx ends first. Learners refuse it.
func (c *Client) Defragment(ctx context.Context) error {
	m, wait := c.members[0], timeLeft(ctx)
	_, err := m.maintenance().Defragment(ctx, &pb.DefragmentRequest{})
	if err == nil {
		return nil
	}
	verb := "defragment etcd at " + m.endpoint
	if canceled(ctx) {
		return fmt.Errorf("cannot %s: %w", verb, context.Cause(ctx))
	}
	p := &cluster.Problem{What: "cannot " + verb, Why: m.reason(err, wait), Do: "kuorum status"}
	switch {
	case late(err):
		p.Exit = cluster.ExitTimeout
		p.Do = "wait: it may still be at it, and answers again when it is done"
	case status.Code(err) == codes.Unavailable:
		p.Exit = cluster.ExitNoQuorum
	}
	return p
}

// Alarms lists the alarms that a quorum agrees on, in the order of members.
func (c *Client) Alarms(ctx context.Context) ([]cluster.EtcdAlarm, error) {
	var alarms []cluster.EtcdAlarm
	err := c.transact(ctx, "list the alarms of etcd", func(a answer) error {
		list, err := a.member.client.AlarmList(ctx)
		if err != nil {
			return err
		}
		alarms = nil
		for _, m := range list.Alarms {
			alarms = append(alarms, cluster.EtcdAlarm{Member: hex(m.MemberID), Kind: m.Alarm.String()})
		}
		sortAlarms(alarms)
		return nil
	})
	return alarms, err
}

// Disarm takes an alarm back; one that is not there is no error. It mends
// nothing: an alarm whose cause is still there comes back. Etcd raises CORRUPT
// for member 0 when it cannot tell who is wrong.
func (c *Client) Disarm(ctx context.Context, alarm cluster.EtcdAlarm) error {
	kind := pb.AlarmType(pb.AlarmType_value[alarm.Kind])
	if kind == pb.AlarmType_NONE {
		return &cluster.Problem{
			What: fmt.Sprintf("etcd has no alarm %q", alarm.Kind),
			Do:   "name one of NOSPACE and CORRUPT",
			Exit: cluster.ExitUsage,
		}
	}
	disarm := func(a answer, id uint64) error {
		_, err := a.member.client.AlarmDisarm(ctx, &clientv3.AlarmMember{MemberID: id, Alarm: kind})
		return err
	}
	verb := "disarm " + alarm.Kind + " of etcd member"
	if alarm.Member == "0" && kind == pb.AlarmType_CORRUPT {
		return c.transact(ctx, verb+" 0", func(a answer) error { return disarm(a, 0) })
	}
	return c.change(ctx, verb, alarm.Member, disarm)
}
