package agent

import (
	"context"
	"errors"
	"strings"
	"time"

	"kuorum/internal/cluster"
)

// Servers are agents of which any may answer: one is asked after the other.
type Servers struct {
	Client *Client
	Nodes  []cluster.Node
	// But is a node that is passed over: the one that asks, or that it is
	// about.
	But string
	// Patience with each; 0 leaves it to the context.
	Patience time.Duration
}

// Call asks until one answers. What one refuses the others would refuse as
// well, and it is returned as it is; one that is silent or has no quorum is
// passed over. When none is left it is a *cluster.Problem with exit code 4
// that says of each why; when ctx ends, its cause.
func (s Servers) Call(ctx context.Context, path string, in, out any) error {
	var silent []string
	for _, n := range s.Nodes {
		if n.Name == s.But {
			continue
		}
		err := s.one(ctx, n, path, in, out)
		problem, refused := errors.AsType[*cluster.Problem](err)
		if err == nil || refused && problem.ExitCode() != cluster.ExitNoQuorum {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		silent = append(silent, n.Name+": "+Explain(err))
	}
	return &cluster.Problem{
		What: "no server of the cluster can do that now", Why: strings.Join(silent, "\n"),
		Do: "kuorum status", Exit: cluster.ExitNoQuorum,
	}
}

func (s Servers) one(ctx context.Context, n cluster.Node, path string, in, out any) error {
	if s.Patience > 0 {
		limited, cancel := context.WithTimeout(ctx, s.Patience)
		defer cancel()
		ctx = limited
	}
	return s.Client.Call(ctx, n.Address, path, in, out)
}
