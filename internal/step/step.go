// Package step is a long procedure as a list of named steps: the same list is
// printed as it runs and by --dry-run.
package step

import (
	"context"
	"fmt"
	"time"
)

// Step is one named part of a procedure. Do must be safe to run again: a
// procedure that was interrupted is simply run once more.
type Step struct {
	Name string
	Do   func(context.Context) error
}

// Reporter is told how a procedure gets on. Calls come from one goroutine.
type Reporter interface {
	Started(name string)
	Done(name string, took time.Duration)
	Failed(name string, took time.Duration)
}

// Run runs steps in order and stops at the first that fails, or between two
// when ctx ends. The error is the step's own: it says itself what happened.
func Run(ctx context.Context, steps []Step, report Reporter) error {
	for _, s := range steps {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("stopped before %q: %w", s.Name, context.Cause(ctx))
		}
		report.Started(s.Name)
		begin := time.Now()
		if err := s.Do(ctx); err != nil {
			report.Failed(s.Name, time.Since(begin))
			return err
		}
		report.Done(s.Name, time.Since(begin))
	}
	return nil
}
