package fault

import (
	"fmt"
	"slices"
	"strings"

	"kuorum/internal/cluster"
)

// Leader stands for the node whose member leads etcd at the moment of the
// order, VIP for the one that holds the virtual IP. A machine of that name is meant first.
const (
	Leader = "leader"
	VIP    = "vip"
)

// Words stand for a machine wherever its name may stand. Who resolves names
// (Machines.Resolve) must know all of them.
func Words() []string { return []string{Leader, VIP} }

// Target is who a fault is about.
type Target struct {
	// Left is the machine of a kill, stop or pause, or one side of a cut.
	Left []string `json:"left"`
	// Right is the other side; none: everybody, the host too.
	Right     []string `json:"right,omitempty"`
	Component string   `json:"component,omitempty"` // none: the machine
}

// Parse reads NODE, NODE/COMPONENT, or for a cut NODE,NODE|NODE,NODE. What it
// returns has no empty names; whether they exist is another question. Errors
// are of usage.
func Parse(kind Kind, text string) (Target, error) {
	if kind == Cut {
		return parseSides(text)
	}
	node, component, named := strings.Cut(text, "/")
	t := Target{Left: []string{node}, Component: component}
	switch {
	case kind != Kill && kind != Stop && kind != Pause:
		return t, misuse("there is no fault %q", kind)
	case !plain(node) || named && !plain(component):
		return t, misuse("cannot read %q: it is NODE or NODE/COMPONENT", text)
	case kind == Stop && !named:
		return t, &cluster.Problem{
			What: fmt.Sprintf("%q names no component", text), Why: "stop ends one component in peace; a machine is shut down by kuorum lab stop",
			Do: "kuorum fault stop " + text + "/etcd", Exit: cluster.ExitUsage,
		}
	}
	return t, nil
}

func parseSides(text string) (t Target, err error) {
	left, right, two := strings.Cut(text, "|")
	if t.Left, err = parseSide(text, left); err == nil && two {
		t.Right, err = parseSide(text, right)
	}
	return t, err
}

func parseSide(whole, text string) ([]string, error) {
	names := strings.Split(text, ",")
	for _, name := range names {
		if !plain(name) {
			return nil, misuse("cannot read %q: it is NODE,... or 'NODE,...|NODE,...'", whole)
		}
	}
	return names, nil
}

// plain tells that text may be a name: it goes into paths and into rules.
func plain(text string) bool {
	return text != "" && !strings.ContainsFunc(text, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-'
	})
}

// String is the target as it is typed.
func (t Target) String() string {
	text := strings.Join(t.Left, ",")
	if len(t.Right) > 0 {
		text += "|" + strings.Join(t.Right, ",")
	}
	if t.Component != "" {
		text += "/" + t.Component
	}
	return text
}

// Check says which name is neither one of nodes nor one of Words. The error is
// of usage.
func (t Target) Check(nodes []string) error {
	for _, name := range slices.Concat(t.Left, t.Right) {
		if err := CheckName("machine", name, append(Words(), nodes...)); err != nil {
			return err
		}
	}
	return nil
}

// CheckName says that name is none of known, and which was perhaps meant. The
// error is of usage.
func CheckName(what, name string, known []string) error {
	if slices.Contains(known, name) {
		return nil
	}
	why := "there are " + strings.Join(known, ", ")
	if close := cluster.Closest(name, known); close != "" {
		why = fmt.Sprintf("did you mean %s? %s", close, why)
	}
	return &cluster.Problem{What: fmt.Sprintf("there is no %s %q", what, name), Why: why, Exit: cluster.ExitUsage}
}

// Resolve puts the machine that each name stands for in its place. A machine
// on both sides is an error of usage; one that is meant twice on a side is
// there once.
func (t Target) Resolve(machine func(name string) (string, error)) (Target, error) {
	for _, side := range []*[]string{&t.Left, &t.Right} {
		var names []string
		for _, name := range *side {
			found, err := machine(name)
			if err != nil {
				return t, err
			}
			if !slices.Contains(names, found) {
				names = append(names, found)
			}
		}
		*side = names
	}
	for _, name := range t.Left {
		if slices.Contains(t.Right, name) {
			return t, misuse("%s is on both sides of %s", name, t)
		}
	}
	return t, nil
}

// vacant tells that one side of the target has no machine any more.
func (t Target) vacant(exists func(string) bool) bool {
	return !slices.ContainsFunc(t.Left, exists) || len(t.Right) > 0 && !slices.ContainsFunc(t.Right, exists)
}
