package lease

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"kuorum/internal/cluster"
	"kuorum/internal/kubeapi"
)

const (
	askPatience  = 2 * time.Second        // with one answer
	askAgain     = 250 * time.Millisecond // at first, while nobody answers
	maxAskAgain  = 2 * time.Second
	maxConflicts = 3
	// maxTurned is by how much a clock may have been set since a death for times
	// before and after it to be told apart: what comes next takes longer to start.
	maxTurned = 5 * time.Millisecond
)

// Death is when a process on a machine was seen to be dead, by that machine's clock.
type Death struct {
	Host string
	At   time.Time
}

// Judge tells whether the lease is that of the process which is dead; why says
// in words why it is left alone. Whoever holds it on another machine, or took or
// renewed it after the death, may live. The holder wrote its times by the clock
// that At was read from; turned is by how much that has been set since.
func Judge(r Record, d Death, turned time.Duration) (release bool, why string) {
	switch {
	case r.Identity == "":
		return false, "nobody holds it"
	case !strings.HasPrefix(r.Identity, d.Host+"_"):
		return false, r.Holder() + " holds it"
	case turned.Abs() > maxTurned:
		return false, fmt.Sprintf("the clock was set by %v since the death", turned)
	case !r.Acquired.Before(d.At):
		return false, "it was taken since, by what started next"
	case !r.Renewed.Before(d.At):
		return false, "it was renewed since the death, or the clock was ahead"
	}
	return true, ""
}

// turned is by how much the machine's clock was set between two readings of it in
// one process.
func turned(from, to time.Time) time.Duration {
	return to.Round(0).Sub(from.Round(0)) - to.Sub(from)
}

// Release gives up the lease of a dead process, as client-go does for one that ends
// in peace: the others find it free when they look next. It asks again while
// nobody answers, until ctx ends. Why says why the lease was left alone; it is
// empty when it was released.
func Release(ctx context.Context, api API, e cluster.LeaderElection, d Death) (why string, err error) {
	conflicts := 0
	for wait := askAgain; ; {
		why, err = attempt(ctx, api, e, d)
		switch {
		case err == nil:
			return why, nil
		case errors.Is(err, kubeapi.ErrNotFound):
			return "there is none", nil
		case errors.Is(err, kubeapi.ErrConflict):
			if conflicts++; conflicts >= maxConflicts {
				return "", err
			}
			continue // read again, and judge again
		}
		select {
		case <-ctx.Done():
			return "", err
		case <-time.After(wait):
			wait = min(2*wait, maxAskAgain)
		}
	}
}

func attempt(ctx context.Context, api API, e cluster.LeaderElection, d Death) (why string, err error) {
	limited, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	o, err := get(limited, api, e)
	if err != nil {
		return "", err
	}
	now := time.Now()
	if release, why := Judge(o.record(), d, turned(d.At, now)); !release {
		return why, nil
	}
	// The resource version that was read is in the metadata: whoever has changed the
	// lease since keeps it.
	o.APIVersion, o.Kind = "coordination.k8s.io/v1", "Lease"
	o.Spec = spec{LeaseDurationSeconds: 1, AcquireTime: microTime{now}, RenewTime: microTime{now}, LeaseTransitions: o.Spec.LeaseTransitions}
	body, err := json.Marshal(o)
	if err != nil {
		return "", err
	}
	return "", api.Update(limited, path(e), string(body))
}
