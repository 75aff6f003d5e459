package cluster

import "strings"

// Exit codes of kuorum. They are API: scripts rely on them, so none is ever
// given a second meaning.
const (
	ExitOK          = 0
	ExitError       = 1
	ExitUsage       = 2
	ExitDegraded    = 3
	ExitNoQuorum    = 4 // no quorum, or unreachable
	ExitRefused     = 5 // by a safety guard
	ExitTimeout     = 6
	ExitInterrupted = 130
)

// Problem is an error that a person can act on: what happened, why, and what
// to do about it. It is printed once, by cli.
type Problem struct {
	What string // one line, no trailing period
	Why  string // cause, may be empty; several causes stand one a line
	Do   string // a command to paste or a sentence, may be empty
	Log  string // path of the log that says more, may be empty
	Exit int    // exit code; 0 means ExitError
	Err  error  // wrapped cause, may be nil
}

// Error puts What, Why and the wrapped error on one line, for logs. A person
// is shown the parts.
func (p *Problem) Error() string {
	parts := []string{p.What}
	if p.Why != "" {
		parts = append(parts, strings.ReplaceAll(p.Why, "\n", "; "))
	}
	if p.Err != nil {
		parts = append(parts, p.Err.Error())
	}
	return strings.Join(parts, ": ")
}

// Unwrap returns the wrapped cause.
func (p *Problem) Unwrap() error { return p.Err }

// ExitCode is the code the process ends with; never 0.
func (p *Problem) ExitCode() int {
	if p.Exit == 0 {
		return ExitError
	}
	return p.Exit
}
