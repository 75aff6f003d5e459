package etcd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"kuorum/internal/cluster"
)

const (
	// askWait is how long a member may take to say how it is, which costs it
	// no disk and no network: one that takes longer would not do the rest.
	askWait = time.Second
	// leaderWait is how long a cluster may be without a leader before it is
	// said to have no quorum: three elections at etcd's default timeout.
	leaderWait = 3 * time.Second
	askAgain   = 50 * time.Millisecond
	// maxTries is how often a transaction is begun again because the leader
	// changed under it.
	maxTries = 3
)

// answer is what one member said when asked whether it can do a transaction.
type answer struct {
	member member
	status *pb.StatusResponse // nil: it did not answer
	reason string             // why not
}

func (a answer) able() bool { return a.status != nil && !a.status.IsLearner && a.status.Leader != 0 }

func (a answer) leads() bool { return a.able() && a.status.Header.GetMemberId() == a.status.Leader }

// lacks is why a member is not able.
func (a answer) lacks() string {
	switch {
	case a.status == nil:
		return a.reason
	case a.status.IsLearner:
		return "is a learner"
	case a.status.Leader == 0:
		return "runs, but knows of no leader"
	}
	return "runs, leader " + hex(a.status.Leader)
}

// transact has one transaction done by a member that can reach the leader,
// the leader itself if it is among the endpoints. Verb is what an error says
// could not be done: "add a learner". It begins again when the leader changed
// before anything was done.
func (c *Client) transact(ctx context.Context, verb string, do func(answer) error) error {
	for try := 1; ; try++ {
		chosen, err := c.pick(ctx, verb)
		if err != nil {
			return err
		}
		err = do(chosen)
		if err == nil {
			return nil
		}
		// Only reads are told of a changed leader, only MoveLeader that it
		// asked somebody else.
		moved := is(err, rpctypes.ErrGRPCLeaderChanged) || is(err, rpctypes.ErrGRPCNotLeader)
		if moved && try < maxTries && ctx.Err() == nil {
			continue
		}
		return c.explain(ctx, verb, err)
	}
}

// pick finds a member for a transaction. It gives an election that runs the
// time to end; a cluster of which nobody answers fails at once.
func (c *Client) pick(ctx context.Context, verb string) (answer, error) {
	wait, cancel := context.WithTimeout(ctx, leaderWait)
	defer cancel()
	var answers []answer
	for {
		now := c.answers(wait)
		if chosen, ok := choose(now); ok {
			return chosen, nil
		}
		if canceled(ctx) {
			return answer{}, fmt.Errorf("cannot %s: %w", verb, context.Cause(ctx))
		}
		// The round that the end of time cut short tells less than the one
		// before it.
		if wait.Err() == nil || answers == nil {
			answers = now
		}
		if wait.Err() != nil || !anybody(answers) {
			return answer{}, noQuorum(verb, answers)
		}
		select {
		case <-wait.Done():
		case <-time.After(askAgain):
		}
	}
}

// answers asks all members at once, and takes no longer than askWait.
func (c *Client) answers(ctx context.Context) []answer {
	ctx, cancel := context.WithTimeout(ctx, askWait)
	defer cancel()
	wait := timeLeft(ctx)
	answers := make([]answer, len(c.members))
	var all sync.WaitGroup
	for i, m := range c.members {
		all.Go(func() {
			answers[i].member = m
			status, err := m.maintenance().Status(ctx, &pb.StatusRequest{})
			if err != nil {
				answers[i].reason = m.reason(err, wait)
				return
			}
			answers[i].status = status
		})
	}
	all.Wait()
	return answers
}

// choose takes one of the newest term, since one that is cut off still
// believes in an old leader for a while, and of these the leader.
func choose(answers []answer) (answer, bool) {
	able := slices.DeleteFunc(slices.Clone(answers), func(a answer) bool { return !a.able() })
	if len(able) == 0 {
		return answer{}, false
	}
	return slices.MaxFunc(able, func(a, b answer) int {
		return cmp.Or(cmp.Compare(a.status.RaftTerm, b.status.RaftTerm), cmp.Compare(rank(a), rank(b)))
	}), true
}

func rank(a answer) int {
	if a.leads() {
		return 1
	}
	return 0
}

func anybody(answers []answer) bool {
	return slices.ContainsFunc(answers, func(a answer) bool { return a.status != nil })
}

// explain makes the error of a transaction that failed. When time was up it
// asks once more, up to askWait beyond the context, whether there still is a
// leader: no quorum and a slow disk want different things done.
func (c *Client) explain(ctx context.Context, verb string, err error) error {
	if _, ok := errors.AsType[*cluster.Problem](err); ok {
		return err
	}
	if canceled(ctx) {
		return fmt.Errorf("cannot %s: %w", verb, context.Cause(ctx))
	}
	if !late(err) {
		return problem(verb, err)
	}
	answers := c.answers(context.WithoutCancel(ctx))
	if _, ok := choose(answers); !ok {
		return noQuorum(verb, answers)
	}
	return &cluster.Problem{
		What: "cannot " + verb + " in time",
		Why:  "there is a leader, but a quorum did not agree in time; it may still do so",
		Do:   "look with kuorum status whether it was done; if not, try again",
		Exit: cluster.ExitTimeout,
		Err:  context.DeadlineExceeded,
	}
}
