// Package fault is what goes wrong in a lab on purpose: processes and machines
// that end or stand still, and packets that do not arrive. It reads what
// people ask for, keeps account of what is broken, and mends it in time; how a
// machine is broken is told to it by the lab.
package fault

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"kuorum/internal/cluster"
)

// Kind is what a fault does.
type Kind string

// The kinds. Kill and stop are over as soon as they are done; the others last.
const (
	Kill  Kind = "kill"  // SIGKILL of a component, or a machine without power
	Stop  Kind = "stop"  // SIGTERM of a component
	Pause Kind = "pause" // a component, or a whole machine, stands still
	Cut   Kind = "cut"   // packets between machines are lost
)

// Why a fault is over.
const (
	EndOnce    = "once"            // it was done, and lasts no longer
	EndTimer   = "timer"           // its time was over
	EndHeal    = "heal"            // somebody healed it
	EndMachine = "machine off"     // the machine lost its power, was shut down or restarted
	EndKill    = "killed"          // the component that stood still was killed
	EndGone    = "machine removed" // it is not in the lab any more
	EndLab     = "lab stopped"
)

// Order is what somebody asks for.
type Order struct {
	Kind   Kind   `json:"kind"`
	Target string `json:"target"` // as it was typed, see Parse
	// OneWay limits a cut to what goes from the left to the right; ARP passes.
	OneWay bool `json:"oneWay,omitempty"`
	// Ports limits a cut to TCP connections to these; none: all packets, ARP too.
	Ports []int `json:"ports,omitempty"`
	// For is how long it lasts; 0: until somebody heals it.
	For cluster.Duration `json:"for,omitempty"`
}

// Check says what is wrong with an order, before anything is done.
func (o Order) Check() error {
	if _, err := Parse(o.Kind, o.Target); err != nil {
		return err
	}
	once := o.Kind == Kill || o.Kind == Stop
	switch {
	case o.Kind != Cut && (o.OneWay || len(o.Ports) > 0):
		return misuse("only a cut has a direction and ports")
	case once && o.For != 0:
		return misuse("a %s is over at once: it has no duration", o.Kind)
	case o.For < 0:
		return misuse("a fault cannot last for %v", o.For)
	}
	for _, port := range o.Ports {
		if port < 1 || port > 65535 {
			return misuse("%d is no TCP port: 1 to 65535", port)
		}
	}
	return nil
}

// Fault is an order that was carried out.
type Fault struct {
	ID string `json:"id"` // f1, f2, ...
	Order
	// Resolved is the target with the machines that were meant at the start.
	Resolved Target    `json:"resolved"`
	Start    time.Time `json:"start"`
	// Until is when it heals by itself; zero: never.
	Until time.Time `json:"until,omitzero"`
	End   time.Time `json:"end,omitzero"` // zero: it is active
	Why   string    `json:"why,omitempty"`
}

// Active tells whether it lasts.
func (f Fault) Active() bool { return f.End.IsZero() }

// Text is what it does, in words for people.
func (f Fault) Text() string {
	text := f.Resolved.String()
	if f.OneWay {
		text += ", one way"
	}
	if len(f.Ports) > 0 {
		text += ", port " + strings.Trim(fmt.Sprint(f.Ports), "[]")
	}
	return text
}

// sameVictim tells that two pauses hold the same: it goes on only when both
// are over.
func (f Fault) sameVictim(other Fault) bool {
	return f.Kind == Pause && other.Kind == Pause && f.Resolved.Component == other.Resolved.Component && slices.Equal(f.Resolved.Left, other.Resolved.Left)
}

// holds tells that the fault is a pause of that machine, or of anything on it.
func (f Fault) holds(machine string) bool {
	return f.Kind == Pause && slices.Contains(f.Resolved.Left, machine)
}

func misuse(format string, args ...any) error {
	return &cluster.Problem{What: fmt.Sprintf(format, args...), Do: "kuorum fault --help", Exit: cluster.ExitUsage}
}
