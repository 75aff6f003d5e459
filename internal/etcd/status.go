package etcd

import (
	"cmp"
	"context"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"kuorum/internal/cluster"
)

// Status is what the member at the first endpoint says of itself. Nothing in
// it needs a quorum. RaftIndex is the last entry that it knows to be
// committed. Members stay empty for a learner, which refuses to list them;
// FsyncP99 is the caller's to fill in (see FsyncHistogram). A member that does
// not answer, or not in full, gets Error and nothing else.
func (c *Client) Status(ctx context.Context) cluster.EtcdStatus {
	return c.members[0].look(ctx)
}

// Looks is Status of the members at all endpoints, in their order and within a
// second. Clients' URLs are in the member lists too, so that an endpoint that does
// not answer can be told to be some member's.
func (c *Client) Looks(ctx context.Context) []cluster.EtcdStatus {
	ctx, cancel := context.WithTimeout(ctx, askWait)
	defer cancel()
	statuses := make([]cluster.EtcdStatus, len(c.members))
	var all sync.WaitGroup
	for i, m := range c.members {
		all.Go(func() { statuses[i] = m.look(ctx) })
	}
	all.Wait()
	return statuses
}

// Agrees tells whether a quorum has answered a member that was asked for it just
// now. It is how a quorum is seen of members that nobody can ask.
func (c *Client) Agrees(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, askWait/2)
	defer cancel()
	answers := make([]bool, len(c.members))
	var all sync.WaitGroup
	for i, m := range c.members {
		all.Go(func() {
			_, err := pb.NewClusterClient(m.client.ActiveConnection()).MemberList(ctx, &pb.MemberListRequest{Linearizable: true})
			answers[i] = err == nil
		})
	}
	all.Wait()
	return slices.Contains(answers, true)
}

// look is what a member says of itself.
func (m member) look(ctx context.Context) cluster.EtcdStatus {
	wait := timeLeft(ctx)
	answer, err := m.maintenance().Status(ctx, &pb.StatusRequest{})
	if err != nil {
		return cluster.EtcdStatus{Error: m.reason(err, wait)}
	}
	status := statusOf(answer)
	if status.Learner {
		return status
	}
	// Not linearizable: it must answer without a quorum.
	list, err := pb.NewClusterClient(m.client.ActiveConnection()).MemberList(ctx, &pb.MemberListRequest{})
	if err != nil {
		return cluster.EtcdStatus{Error: m.reason(err, wait)}
	}
	status.Members = membersOf(list.Members)
	return status
}

// Statuses is what the members at all endpoints say of themselves, in their
// order and within a second, without the member list. One that does not answer
// has Error and nothing else. Nothing in it needs a quorum.
func (c *Client) Statuses(ctx context.Context) []cluster.EtcdStatus {
	var all []cluster.EtcdStatus
	for _, a := range c.answers(ctx) {
		if a.status == nil {
			all = append(all, cluster.EtcdStatus{Error: a.reason})
			continue
		}
		all = append(all, statusOf(a.status))
	}
	return all
}

// timeLeft is how long the context lasts, 0 when it has no end.
func timeLeft(ctx context.Context) time.Duration {
	deadline, ok := ctx.Deadline()
	if !ok {
		return 0
	}
	return max(time.Until(deadline), time.Millisecond)
}

func statusOf(answer *pb.StatusResponse) cluster.EtcdStatus {
	status := cluster.EtcdStatus{
		ID:           hex(answer.Header.GetMemberId()),
		Cluster:      hex(answer.Header.GetClusterId()),
		Learner:      answer.IsLearner,
		Version:      answer.Version,
		Term:         answer.RaftTerm,
		RaftIndex:    answer.RaftIndex,
		AppliedIndex: answer.RaftAppliedIndex,
		Revision:     answer.Header.GetRevision(),
		DBBytes:      answer.DbSize,
		DBUsedBytes:  answer.DbSizeInUse,
		QuotaBytes:   answer.DbSizeQuota,
	}
	if answer.Leader != 0 {
		status.Leader = hex(answer.Leader)
	}
	for _, text := range answer.Errors {
		if alarm, ok := parseAlarm(text); ok {
			status.Alarms = append(status.Alarms, alarm)
		}
	}
	sortAlarms(status.Alarms)
	return status
}

// parseAlarm reads an alarm as Status has it among its errors:
// "memberID:1234 alarm:NOSPACE"; without an ID it is of member 0, nobody. A
// real list of alarms would need a quorum.
// How many spaces there are differs from build to build of protobuf.
func parseAlarm(text string) (cluster.EtcdAlarm, bool) {
	alarm := cluster.EtcdAlarm{Member: "0"}
	for field := range strings.FieldsSeq(text) {
		key, value, _ := strings.Cut(field, ":")
		switch key {
		case "memberID":
			id, err := strconv.ParseUint(value, 10, 64)
			if err != nil {
				return cluster.EtcdAlarm{}, false
			}
			alarm.Member = hex(id)
		case "alarm":
			alarm.Kind = value
		}
	}
	return alarm, alarm.Kind != ""
}

func sortAlarms(alarms []cluster.EtcdAlarm) {
	slices.SortFunc(alarms, func(a, b cluster.EtcdAlarm) int {
		return cmp.Or(cmp.Compare(a.Member, b.Member), cmp.Compare(a.Kind, b.Kind))
	})
}

// membersOf is a member list in the order of names, and of IDs where there is
// no name yet, whatever member it came from.
func membersOf(list []*pb.Member) []cluster.EtcdMember {
	var members []cluster.EtcdMember
	for _, m := range list {
		members = append(members, cluster.EtcdMember{ID: hex(m.ID), Name: m.Name, Learner: m.IsLearner, PeerURLs: m.PeerURLs, ClientURLs: m.ClientURLs})
	}
	slices.SortFunc(members, func(a, b cluster.EtcdMember) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID))
	})
	return members
}
