package step

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// diary is a Reporter that writes down what it is told.
type diary []string

func (d *diary) Started(name string)               { *d = append(*d, "started "+name) }
func (d *diary) Done(name string, t time.Duration) { *d = append(*d, "done "+name+" "+t.String()) }

func (d *diary) Failed(name string, t time.Duration) { *d = append(*d, "failed "+name+" "+t.String()) }

var errBroken = errors.New("broken")

func waits(name string, d time.Duration, err error) Step {
	return Step{Name: name, Do: func(context.Context) error {
		<-time.After(d)
		return err
	}}
}

func TestRunInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var d diary
		if err := Run(t.Context(), []Step{waits("one", time.Second, nil), waits("two", time.Minute, nil)}, &d); err != nil {
			t.Fatal(err)
		}
		want := diary{"started one", "done one 1s", "started two", "done two 1m0s"}
		if diff := cmp.Diff(want, d); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}

func TestRunStopsAtTheFirstFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var d diary
		err := Run(t.Context(), []Step{waits("one", 0, nil), waits("two", time.Second, errBroken), waits("three", 0, nil)}, &d)
		if !errors.Is(err, errBroken) {
			t.Errorf("got %v, want the step's own error", err)
		}
		want := diary{"started one", "done one 0s", "started two", "failed two 1s"}
		if diff := cmp.Diff(want, d); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}

func TestRunStopsBetweenTwoSteps(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("somebody said so")
	var d diary
	steps := []Step{
		{Name: "one", Do: func(context.Context) error { cancel(cause); return nil }},
		{Name: "two", Do: func(context.Context) error { t.Error("two was run"); return nil }},
	}
	err := Run(ctx, steps, &d)
	if !errors.Is(err, cause) || err.Error() != `stopped before "two": somebody said so` {
		t.Errorf("got %v, want the cause and the step", err)
	}
	if len(d) != 2 {
		t.Errorf("reported %q, want the first step only", d)
	}
}
