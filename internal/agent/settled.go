package agent

import (
	"context"
	"time"

	"kuorum/internal/cluster"
)

// Agents tell how it is at one moment. Between a leader's end and the next one's
// beginning no voter follows anybody, and on a busy machine one may not answer in
// time: neither means that the quorum is lost.
const (
	settleFor   = 5 * time.Second // longer than an election
	settleEvery = 250 * time.Millisecond
)

// Settled looks until it sees a quorum, and returns what it saw last: after five
// seconds without one there is none. Who takes a voter away because none is left
// to lose must have looked like that. An error of look, or the end of ctx, ends
// it at once.
func Settled(ctx context.Context, look func(context.Context) ([]cluster.Voter, error)) ([]cluster.Voter, error) {
	over := time.NewTimer(settleFor)
	defer over.Stop()
	for {
		voters, err := look(ctx)
		if err != nil || cluster.SumOf(voters).Holds() {
			return voters, err
		}
		select {
		case <-ctx.Done():
			return voters, context.Cause(ctx)
		case <-over.C:
			return voters, nil
		case <-time.After(settleEvery):
		}
	}
}
