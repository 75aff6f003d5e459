package tickle

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// Learner asks the other machines for their clients, time and again, and tells what
// it learns: it is what stands between their Clients and this machine's Others.
type Learner struct {
	// Ask is Clients.Wait of a machine.
	Ask func(ctx context.Context, machine netip.Addr, since uint64) (List, error)
	// Tell is Others.Remember.
	Tell func(ctx context.Context, machine netip.Addr, clients []netip.AddrPort) error
	Log  *slog.Logger
}

// again is the pause after an error, and how soon a change of the machines counts.
const again = time.Second

// Run asks all machines until ctx ends. Which these are may change: machines is
// called once a second.
func (l Learner) Run(ctx context.Context, machines func() []netip.Addr) {
	var all sync.WaitGroup
	defer all.Wait()
	asked := map[netip.Addr]context.CancelFunc{}
	for ctx.Err() == nil {
		now := machines()
		for machine, stop := range asked {
			if !slices.Contains(now, machine) {
				stop()
				delete(asked, machine)
			}
		}
		for _, machine := range now {
			if asked[machine] == nil {
				following, stop := context.WithCancel(ctx) //nolint:gosec // called above, or ctx ends
				asked[machine] = stop
				all.Go(func() { l.follow(following, machine) })
			}
		}
		pause(ctx, again)
	}
}

func (l Learner) follow(ctx context.Context, machine netip.Addr) {
	since, failed := uint64(0), false
	for ctx.Err() == nil {
		list, err := l.learn(ctx, machine, since)
		if err == nil {
			since, failed = list.Version, false
			continue
		}
		if !failed && ctx.Err() == nil {
			l.Log.InfoContext(ctx, "it is not known who is connected with another machine, will try again", "machine", machine, "reason", err)
		}
		since, failed = 0, true
		pause(ctx, again)
	}
}

// learn tells also what is not new: who is told may have been started again, and
// know nothing.
func (l Learner) learn(ctx context.Context, machine netip.Addr, since uint64) (List, error) {
	limited, cancel := context.WithTimeout(ctx, Patience+5*time.Second)
	defer cancel()
	list, err := l.Ask(limited, machine, since)
	if err != nil {
		return list, err
	}
	return list, l.Tell(limited, machine, list.Clients)
}
