package etcd

import (
	"errors"
	"fmt"
	"strings"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"kuorum/internal/cluster"
)

// Errors that a caller may want to treat: the first two go away by waiting,
// the others say that a step was done before. Each is wrapped by a
// cluster.Problem.
var (
	ErrNotCaughtUp = errors.New("the learner has not caught up with the leader")
	// ErrUnsettled is etcd's guard of the quorum: it wants the voters to have
	// been connected for five seconds before it changes their list, and
	// enough of them for the change to leave a quorum.
	ErrUnsettled = errors.New("too few voters have been connected with each other for 5 seconds")
	ErrNoMember  = errors.New("the member list does not have it, or not any more")
	ErrURLTaken  = errors.New("another member has this peer URL")
	ErrNoLease   = errors.New("the lease has ended, or was never made")
	// ErrTooManyLearners goes away when the other learner votes or is removed.
	ErrTooManyLearners = errors.New("another learner is joining, and only one may at a time")
)

// problem is a transaction that etcd refused or could not finish, in words
// that a person can act on. Exit codes: 4 without a quorum, 5 where a guard of
// etcd's said no.
func problem(verb string, err error) error {
	p := &cluster.Problem{What: "cannot " + verb}
	switch {
	case is(err, rpctypes.ErrGRPCLearnerNotReady):
		p.Err, p.Exit = ErrNotCaughtUp, cluster.ExitRefused
		p.Do = "wait, the leader is sending it the rest, then try again; kuorum status tells how far it is"
	case is(err, rpctypes.ErrGRPCUnhealthy):
		p.Err, p.Exit = ErrUnsettled, cluster.ExitRefused
		p.Do = "try again in a few seconds; kuorum status tells who is missing"
	case is(err, rpctypes.ErrGRPCMemberNotFound):
		p.Err, p.Do = ErrNoMember, "kuorum status"
	// An ID is made of the URL and the second: twice in one is the same ID.
	case is(err, rpctypes.ErrGRPCPeerURLExist) || is(err, rpctypes.ErrGRPCMemberExist):
		p.Err, p.Do = ErrURLTaken, "remove that member first, or go on with it; kuorum status lists them"
	case is(err, rpctypes.ErrGRPCMemberNotEnoughStarted):
		p.Why, p.Exit = "voters that were added have never started: the change could cost the quorum", cluster.ExitRefused
		p.Do = "start them or remove them first; kuorum status lists them"
	case is(err, rpctypes.ErrGRPCTooManyLearners):
		p.Err, p.Exit = ErrTooManyLearners, cluster.ExitRefused
		p.Do = "wait until it votes, or remove it; kuorum status lists it"
	case is(err, rpctypes.ErrGRPCLeaseNotFound):
		p.Err = ErrNoLease
	case is(err, rpctypes.ErrGRPCBadLeaderTransferee):
		p.Why, p.Do = "only a voter can lead", "kuorum status"
	case strings.Contains(err.Error(), "leader transfer took too long"):
		p.Why, p.Exit = "the new leader did not take over in time", cluster.ExitTimeout
		p.Do = "look with kuorum status who leads, then try again"
	case is(err, rpctypes.ErrGRPCNoSpace):
		p.Why, p.Do = "etcd's database is full", "compact it, defragment the members one by one, then disarm the alarm"
	case is(err, rpctypes.ErrGRPCFutureRev):
		p.Why = "etcd has no such revision yet"
	case is(err, rpctypes.ErrGRPCMemberBadURLs):
		p.Why, p.Exit = "the peer URL is not one", cluster.ExitUsage
	case lostQuorum(err):
		p.Why, p.Exit = "etcd has no quorum, or lost it on the way: "+words(rpctypes.ErrorDesc(err)), cluster.ExitNoQuorum
		p.Do = "kuorum status"
	default:
		return fmt.Errorf("cannot %s: %w", verb, err)
	}
	return p
}

// lostQuorum tells whether etcd says that no quorum agreed.
func lostQuorum(err error) bool {
	for _, known := range []error{
		rpctypes.ErrGRPCNoLeader,
		rpctypes.ErrGRPCNotLeader,
		rpctypes.ErrGRPCLeaderChanged,
		rpctypes.ErrGRPCStopped,
		rpctypes.ErrGRPCTimeout,
		rpctypes.ErrGRPCTimeoutDueToLeaderFail,
		rpctypes.ErrGRPCTimeoutDueToConnectionLost,
		rpctypes.ErrGRPCTimeoutWaitAppliedIndex,
	} {
		if is(err, known) {
			return true
		}
	}
	return rpctypes.ErrorDesc(err) == "raft proposal dropped" // raft's own error, which etcd passes on
}

// noQuorum is the end of a search for somebody who can do a transaction.
func noQuorum(verb string, answers []answer) error {
	what := "no etcd member answers"
	if anybody(answers) {
		what = "etcd has no quorum"
	}
	return &cluster.Problem{
		What: "cannot " + verb + ": " + what,
		Why:  lines(answers),
		Do:   "kuorum status",
		Exit: cluster.ExitNoQuorum,
	}
}
