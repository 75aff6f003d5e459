package history

import (
	"context"
	"fmt"
	"log/slog"
	"time"
)

// Every is how often a Watch looks.
const Every = 2 * time.Second

// Watch writes down who leads.
type Watch struct {
	// Look tells what can be seen at this moment; what cannot is left out. It must end
	// with its context.
	Look func(context.Context) []Sight
	Book *Book
	Log  *slog.Logger

	seen    map[string]glance // by what
	problem string            // that was logged last
}

// glance is what was seen last.
type glance struct {
	Sight
	fresh  time.Time // when it was seen for the first time
	looked time.Time // and for the last time
}

// Run looks every 2 s until ctx ends.
func (w *Watch) Run(ctx context.Context) {
	w.seen = map[string]glance{}
	tick := time.NewTicker(Every)
	defer tick.Stop()
	for {
		w.turn(ctx)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (w *Watch) turn(ctx context.Context) {
	var problem string
	for _, s := range w.Look(ctx) {
		now, before := time.Now(), w.seen[s.What]
		if err := w.Book.See(s, reason(before, s)); err != nil {
			problem = err.Error()
		}
		next := glance{s, before.fresh, now}
		if before.looked.IsZero() || before.Sight != s {
			next.fresh = now
		}
		w.seen[s.What] = next
	}
	if problem != "" && problem != w.problem {
		w.Log.Error("who leads is not written down, will try again", "error", problem)
	}
	w.problem = problem
}

// reason is what can be said of a change by one who has only seen what was before and
// what is now; empty: nothing. Nobody but its holder gives a lease up, or that
// one's agent, which says so itself.
func reason(before glance, s Sight) string {
	if s.What == Etcd {
		return fmt.Sprintf("elected in term %d", s.Term)
	}
	if before.Holder == "" || before.Term == s.Term && before.Holder == s.Holder {
		return ""
	}
	silent := before.looked.Sub(before.fresh)
	switch {
	case s.Holder == "":
		return before.Holder + " gave it up"
	case before.Lasts > 0 && silent >= before.Lasts/2:
		return fmt.Sprintf("%s had not renewed it for %v", before.Holder, silent.Round(time.Second))
	}
	return ""
}
