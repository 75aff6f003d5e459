package etcd

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"kuorum/internal/cluster"
)

func TestProblemsAreForPeople(t *testing.T) {
	dropped := status.Error(codes.Unknown, "raft proposal dropped")
	late := status.Error(codes.Unknown, "etcdserver: request timed out, leader transfer took too long")
	for _, test := range []struct {
		err  error
		exit int
		is   error // may be nil
	}{
		{rpctypes.ErrGRPCNoLeader, cluster.ExitNoQuorum, nil},
		{rpctypes.ErrGRPCLeaderChanged, cluster.ExitNoQuorum, nil},
		{rpctypes.ErrGRPCNotLeader, cluster.ExitNoQuorum, nil},
		{rpctypes.ErrGRPCStopped, cluster.ExitNoQuorum, nil},
		{rpctypes.ErrGRPCTimeout, cluster.ExitNoQuorum, nil},
		{rpctypes.ErrGRPCTimeoutDueToLeaderFail, cluster.ExitNoQuorum, nil},
		{rpctypes.ErrGRPCTimeoutDueToConnectionLost, cluster.ExitNoQuorum, nil},
		{rpctypes.ErrGRPCTimeoutWaitAppliedIndex, cluster.ExitNoQuorum, nil},
		{dropped, cluster.ExitNoQuorum, nil},
		{rpctypes.ErrGRPCLearnerNotReady, cluster.ExitRefused, ErrNotCaughtUp},
		{rpctypes.ErrGRPCUnhealthy, cluster.ExitRefused, ErrUnsettled},
		{rpctypes.ErrGRPCMemberNotEnoughStarted, cluster.ExitRefused, nil},
		{rpctypes.ErrGRPCTooManyLearners, cluster.ExitRefused, nil},
		{rpctypes.ErrGRPCMemberNotFound, cluster.ExitError, ErrNoMember},
		{rpctypes.ErrGRPCPeerURLExist, cluster.ExitError, ErrURLTaken},
		{rpctypes.ErrGRPCMemberExist, cluster.ExitError, ErrURLTaken},
		{rpctypes.ErrGRPCBadLeaderTransferee, cluster.ExitError, nil},
		{rpctypes.ErrGRPCNoSpace, cluster.ExitError, nil},
		{rpctypes.ErrGRPCFutureRev, cluster.ExitError, nil},
		{rpctypes.ErrGRPCMemberBadURLs, cluster.ExitUsage, nil},
		{late, cluster.ExitTimeout, nil},
	} {
		// As it comes off the wire, and as clientv3 hands it on.
		for _, err := range []error{test.err, rpctypes.Error(test.err)} {
			got := problem("do it", err)
			p, ok := errors.AsType[*cluster.Problem](got)
			if !ok || p.What != "cannot do it" || (p.Why == "") == (p.Err == nil) {
				t.Errorf("%v: %#v", err, got)
				continue
			}
			if p.ExitCode() != test.exit || (test.is != nil && !errors.Is(got, test.is)) {
				t.Errorf("%v: exit %d, %v; want %d, %v", err, p.ExitCode(), got, test.exit, test.is)
			}
			if strings.Contains(got.Error(), "etcdserver") || strings.Contains(got.Error(), "rpc error") {
				t.Errorf("not for people: %v", got)
			}
		}
	}
	other := errors.New("something new")
	if got := problem("do it", other); !errors.Is(got, other) || !strings.HasPrefix(got.Error(), "cannot do it: ") {
		t.Errorf("an unknown error: %v", got)
	}
}

func TestReasonsAreWords(t *testing.T) {
	unavailable := func(text string) error {
		return status.Error(codes.Unavailable, `connection error: desc = "transport: `+text+`"`)
	}
	for _, test := range []struct {
		err  error
		wait time.Duration
		want string
	}{
		{context.DeadlineExceeded, time.Second, "does not answer within 1s"},
		{status.Error(codes.DeadlineExceeded, "x"), 1499 * time.Millisecond, "does not answer within 1.5s"},
		{status.Error(codes.DeadlineExceeded, "x"), 49600 * time.Microsecond, "does not answer within 50ms"},
		{context.DeadlineExceeded, 0, "does not answer"},
		{status.Error(codes.Canceled, "x"), time.Second, "was not asked to the end"},
		{unavailable("Error while dialing: dial tcp 10.0.0.1:2379: connect: connection refused"), 0, "connection refused: etcd does not run there"},
		{unavailable("Error while dialing: dial tcp 10.0.0.1:2379: connect: no route to host"), 0, "cannot be reached: no route to host"},
		{unavailable("Error while dialing: dial tcp 10.0.0.1:2379: connect: network is unreachable"), 0, "cannot be reached: network is unreachable"},
		{unavailable("Error while dialing: dial tcp 10.0.0.1:2379: i/o timeout"), 0, "cannot be reached: no answer to the connection"},
		{unavailable("authentication handshake failed: remote error: tls: unknown certificate authority"), 0, "refuses our certificate: it is of another authority"},
		{unavailable("authentication handshake failed: tls: failed to verify certificate: x509: certificate is valid for 10.0.0.1, not 10.0.0.2"), 0, "its certificate is made out to somebody else"},
		{unavailable("authentication handshake failed: tls: first record does not look like a TLS handshake"), 0, "it does not speak TLS"},
		{unavailable("authentication handshake failed: tls: failed to verify certificate: x509: certificate has expired or is not yet valid: current time 2026-01-02T00:00:00Z is before 2026-01-03T00:00:00Z"), 0, "its certificate is not valid yet: 2026-01-02T00:00:00Z is before 2026-01-03T00:00:00Z"},
		{status.Error(codes.Unavailable, "error reading from server: EOF"), 0, "closed the connection"},
		{rpctypes.ErrGRPCNotSupportedForLearner, 0, "it is a learner, which does not do this"},
		{rpctypes.ErrGRPCCorrupt, 0, "corrupt cluster"},
		{status.Error(codes.Unknown, ""), 0, "failed without a reason"},
	} {
		if got := (member{}).reason(test.err, test.wait); got != test.want {
			t.Errorf("%v: %q, want %q", test.err, got, test.want)
		}
	}
}

// TestChooseTakesWhoKnowsBest covers who is asked to do a transaction.
func TestChooseTakesWhoKnowsBest(t *testing.T) {
	voter := func(name string, id, leader, term uint64) answer {
		return answer{member: member{endpoint: name}, status: &pb.StatusResponse{
			Header: &pb.ResponseHeader{MemberId: id}, Leader: leader, RaftTerm: term,
		}}
	}
	down := answer{member: member{endpoint: "down"}, reason: "connection refused"}
	learner := voter("learner", 9, 1, 7)
	learner.status.IsLearner = true
	for name, test := range map[string]struct {
		answers []answer
		want    string
	}{
		"nobody":                          {nil, ""},
		"nobody able":                     {[]answer{down, learner, voter("lost", 2, 0, 9)}, ""},
		"the leader":                      {[]answer{voter("a", 2, 1, 7), voter("b", 1, 1, 7), voter("c", 3, 1, 7)}, "b"},
		"a follower of who was not asked": {[]answer{down, voter("a", 2, 1, 7)}, "a"},
		"not the leader of an old term":   {[]answer{voter("old", 1, 1, 6), voter("new", 2, 3, 7)}, "new"},
		"not who is cut off":              {[]answer{voter("lost", 2, 0, 9), voter("a", 1, 1, 7)}, "a"},
	} {
		before := fmt.Sprint(test.answers)
		got, ok := choose(test.answers)
		if ok != (test.want != "") || got.member.endpoint != test.want {
			t.Errorf("%s: chose %q, want %q", name, got.member.endpoint, test.want)
		}
		if diff := cmp.Diff(before, fmt.Sprint(test.answers)); diff != "" {
			t.Errorf("%s: answers were changed:\n%s", name, diff)
		}
	}
}
