package agent

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"kuorum/internal/cluster"
)

// A guard that believes one look would let the second of three voters go while
// the others elect a leader.
func TestSettled(t *testing.T) {
	broken := errors.New("broken")
	tests := map[string]struct {
		back  time.Duration // there is a quorum again
		takes time.Duration // a look
		limit time.Duration // of the caller
		fails error
		want  time.Duration
		holds bool
		err   error
	}{
		"holds":                 {limit: time.Minute, holds: true},
		"an election":           {back: 2 * time.Second, limit: time.Minute, want: 2 * time.Second, holds: true},
		"slow answers":          {back: 2 * time.Second, takes: time.Second, limit: time.Minute, want: 2250 * time.Millisecond, holds: true},
		"lost":                  {back: time.Hour, limit: time.Minute, want: 5 * time.Second},
		"lost, and slow":        {back: time.Hour, takes: 1500 * time.Millisecond, limit: time.Minute, want: 5 * time.Second},
		"the caller's time":     {back: time.Hour, limit: time.Second, want: time.Second, err: context.DeadlineExceeded},
		"nobody can be asked":   {back: time.Hour, limit: time.Minute, fails: broken, err: broken},
		"just before the limit": {back: 4700 * time.Millisecond, limit: time.Minute, want: 4750 * time.Millisecond, holds: true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				ctx, cancel := context.WithTimeout(t.Context(), tt.limit)
				defer cancel()
				voters, err := Settled(ctx, func(context.Context) ([]cluster.Voter, error) {
					well := time.Since(start) >= tt.back
					<-time.After(tt.takes)
					return []cluster.Voter{{Name: "a", Healthy: true}, {Name: "b", Healthy: well}, {Name: "c"}}, tt.fails
				})
				if !errors.Is(err, tt.err) || tt.err == nil && err != nil {
					t.Errorf("error is %v, want %v", err, tt.err)
				}
				if got := cluster.SumOf(voters).Holds(); got != tt.holds {
					t.Errorf("holds: %v, want %v", got, tt.holds)
				}
				if took := time.Since(start); took < tt.want-2*time.Second || took > tt.want+2*time.Second || tt.takes == 0 && took != tt.want {
					t.Errorf("took %v, want %v", took, tt.want)
				}
			})
		})
	}
}
