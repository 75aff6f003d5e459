package lease

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"kuorum/internal/cluster"
)

// Paths of the agents' API that this package is behind.
const (
	MovePath    = "/v1/leader/move"    // POST Order, answers Moved; to the leader's agent; as a server or an administrator
	StandbyPath = "/v1/leader/standby" // POST Order; this server's standby starts again, and looks at the lease as it does, or prepares for the virtual IP; the same
)

// VIP in an Order is the virtual IP, which no lease is about.
const VIP = "vip"

// Order asks that the program's lead, or the virtual IP, go to a server.
type Order struct {
	Program string `json:"program"`
	To      string `json:"to"` // a node's name
	// From is the node that has the virtual IP, for whoever is to take it over; only there.
	From string `json:"from,omitempty"`
}

// Moved is who leads after an Order. A third server may have been quicker: each
// looks at a free lease when its time comes.
type Moved struct {
	Leader string `json:"leader"`
}

const (
	takeover  = 5 * time.Second // how long the former leader stays away for the next
	lookEvery = 50 * time.Millisecond
	ready     = "ready"
)

// Heir is the server to which a program's lead is to go from leader: the one that
// is wished for, or without a wish the first that is ready, in the order of
// cluster.yaml. The error is a *cluster.Problem: ExitUsage for what is no server,
// ExitRefused for one that is not ready.
func Heir(spec *cluster.Spec, reports []cluster.NodeReport, o Order, leader string) (cluster.Node, error) {
	if o.To != "" {
		return wished(spec, reports, o)
	}
	var others []string
	for _, n := range spec.Servers() {
		if n.Name == leader {
			continue
		}
		why := unfit(reports, n.Name, o.Program)
		if why == "" {
			return n, nil
		}
		others = append(others, why)
	}
	return cluster.Node{}, &cluster.Problem{
		What: "no other server can take the lead of " + o.Program, Why: strings.Join(others, "\n"), Do: "kuorum status", Exit: cluster.ExitRefused,
	}
}

func wished(spec *cluster.Spec, reports []cluster.NodeReport, o Order) (cluster.Node, error) {
	n, ok := spec.Node(o.To)
	if !ok || n.Role != cluster.RoleServer {
		return n, &cluster.Problem{
			What: fmt.Sprintf("%q is no server of cluster %s", o.To, spec.Metadata.Name),
			Why:  "its servers are " + spec.ServerNames(), Exit: cluster.ExitUsage,
		}
	}
	if why := unfit(reports, n.Name, o.Program); why != "" {
		return n, &cluster.Problem{
			What: n.Name + " cannot take the lead of " + o.Program, Why: why, Do: "kuorum status", Exit: cluster.ExitRefused,
		}
	}
	return n, nil
}

// unfit is why a server cannot take a program's lead; empty: it can.
func unfit(reports []cluster.NodeReport, node, program string) string {
	i := slices.IndexFunc(reports, func(r cluster.NodeReport) bool { return r.Name == node })
	if i < 0 || reports[i].Status == nil {
		why := "it was not asked"
		if i >= 0 {
			why = reports[i].Error
		}
		return node + " does not answer: " + why
	}
	for _, c := range reports[i].Status.Components {
		if c.Name != program {
			continue
		}
		if c.Phase == ready {
			return ""
		}
		return fmt.Sprintf("%s of %s is %s", program, node, c.Phase)
	}
	return node + " has no " + program
}

// Hand is the server that leads, about to hand a program's lead over.
type Hand struct {
	Self     string
	Program  string
	Election cluster.LeaderElection
	API      API
	// Restart ends the own process in peace, whereby it gives the lease up, and
	// starts it again when between has returned: supervise.Supervisor's.
	Restart func(ctx context.Context, program string, between func(context.Context) error) error
	// Standby has the next leader's standby start again, and so look at the lease at
	// once. One that runs looks every 2 to 4.4 s with upstream's times.
	Standby func(context.Context) error
}

// Over hands the lead to the server of that name, and tells who has it now: that
// one, or a third that was quicker. It blocks until then. If nobody has taken it
// after 5 s, or the other cannot be asked, the own process starts again and the error
// says so.
func (h Hand) Over(ctx context.Context, to string) (leader string, err error) {
	r, err := Read(ctx, h.API, h.Election)
	if err != nil {
		return "", err
	}
	if r.Holder() != h.Self || to == h.Self {
		return r.Holder(), nil // nothing to hand over
	}
	err = h.Restart(ctx, h.Program, func(ctx context.Context) error {
		limited, cancel := context.WithTimeout(ctx, takeover)
		defer cancel()
		if err := h.Standby(limited); err != nil {
			return &cluster.Problem{What: fmt.Sprintf("cannot hand the lead of %s to %s", h.Program, to), Err: err, Do: "kuorum status", Exit: cluster.ExitRefused}
		}
		leader, err = h.await(limited, to)
		return err
	})
	return leader, err
}

// read does not wait for an API server that stops at this moment.
func (h Hand) read(ctx context.Context) (Record, error) {
	limited, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	return Read(limited, h.API, h.Election)
}

// await is who takes the lease that was given up.
func (h Hand) await(ctx context.Context, to string) (string, error) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		r, err := h.read(ctx)
		if name := r.Holder(); err == nil && name != "" && name != h.Self {
			return name, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return "", &cluster.Problem{
				What: fmt.Sprintf("%s has not taken the lead of %s within %v", to, h.Program, takeover), Err: err,
				Why: h.Self + " tries to lead again", Do: fmt.Sprintf("kuorum logs %s %s", to, h.Program), Exit: cluster.ExitTimeout,
			}
		}
	}
}
