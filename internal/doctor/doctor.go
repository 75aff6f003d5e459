// Package doctor measures what a cluster needs of a machine, and judges it:
// before anything is installed, and while a node runs there. What is measured
// comes from host, from the machine's network or from other packages;
// every judgement is a pure function of it. It also packs what helps somebody
// else to see what is wrong, without a secret in it.
package doctor

import (
	"kuorum/internal/cluster"
)

// State of a check.
type State string

// States. A skipped check was not measured, and says why.
const (
	StateOK      State = "ok"
	StateWarning State = "warning"
	StateFailed  State = "failed"
	StateSkipped State = "skipped"
)

// Check is one thing that was measured and judged.
type Check struct {
	Name     string `json:"name"` // API, never given a second meaning
	State    State  `json:"state"`
	Measured string `json:"measured"` // figures with their units
	// What is wrong; of a check that is ok, a remark, if there is one.
	What string `json:"what,omitempty"`
	Why  string `json:"why"`          // why it matters
	Do   string `json:"do,omitempty"` // empty when nothing is to be done
}

// Problem is a failed check as an error, and nil for every other one.
func (c Check) Problem() error {
	if c.State != StateFailed {
		return nil
	}
	return &cluster.Problem{What: c.What, Why: c.Why, Do: c.Do}
}

// FirstProblem is that of the first check that has failed, or nil.
func FirstProblem(checks []Check) error {
	for _, c := range checks {
		if err := c.Problem(); err != nil {
			return err
		}
	}
	return nil
}

// Count is how many checks are in a state.
func Count(checks []Check, state State) int {
	n := 0
	for _, c := range checks {
		if c.State == state {
			n++
		}
	}
	return n
}

// ExitCode is that of a command which has run the checks: ExitError when one
// has failed, ExitDegraded when there is a warning, else ExitOK.
func ExitCode(checks []Check) int {
	switch {
	case Count(checks, StateFailed) > 0:
		return cluster.ExitError
	case Count(checks, StateWarning) > 0:
		return cluster.ExitDegraded
	}
	return cluster.ExitOK
}

// found makes a check warn of, or fail by, what is wrong.
func (c Check) found(state State, what, do string) Check {
	c.State, c.What, c.Do = state, what, do
	return c
}

// skipped is a check that could not be measured.
func (c Check) skipped(why string) Check {
	c.State, c.Measured = StateSkipped, why
	return c
}
