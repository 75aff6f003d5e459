package supervise

import (
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

const defaultStopTimeout = 10 * time.Second

var nameRule = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]*$`)

// order checks the processes and ties each to those it needs.
func order(processes []Process) ([]*unit, error) {
	units := make([]*unit, 0, len(processes))
	byName := map[string]*unit{}
	for _, p := range processes {
		if err := check(p); err != nil {
			return nil, err
		}
		if byName[p.Name] != nil {
			return nil, fmt.Errorf("cannot supervise component %s: it is declared twice", p.Name)
		}
		if p.StopTimeout == 0 {
			p.StopTimeout = defaultStopTimeout
		}
		u := &unit{Process: p, wasReady: make(chan struct{})}
		byName[p.Name] = u
		units = append(units, u)
	}
	for _, u := range units {
		for _, name := range u.After {
			need := byName[name]
			if need == nil {
				return nil, fmt.Errorf("cannot supervise component %s: it comes after %q, which is not declared", u.Name, name)
			}
			u.needs = append(u.needs, need)
			need.neededBy = append(need.neededBy, u)
		}
		for _, name := range u.With {
			if !slices.Contains(u.After, name) {
				return nil, fmt.Errorf("cannot supervise component %s: it goes with %q, which it does not come after", u.Name, name)
			}
			byName[name].carries = append(byName[name].carries, u)
		}
	}
	return units, checkCircle(units)
}

func check(p Process) error {
	var err error
	switch {
	case !nameRule.MatchString(p.Name):
		err = errors.New("its name must be lower-case letters, digits, dots and dashes")
	case !filepath.IsAbs(p.Path):
		err = fmt.Errorf("the path %q of its program is not absolute", p.Path)
	case p.StopTimeout < 0:
		err = errors.New("its stop timeout is negative")
	}
	if err != nil {
		return fmt.Errorf("cannot supervise component %q: %w", p.Name, err)
	}
	return nil
}

// checkCircle takes away, again and again, what needs nothing that is left;
// what remains waits for itself.
func checkCircle(units []*unit) error {
	open := map[*unit]int{}
	var free []*unit
	for _, u := range units {
		open[u] = len(u.needs)
		if len(u.needs) == 0 {
			free = append(free, u)
		}
	}
	for len(free) > 0 {
		u := free[0]
		free = free[1:]
		delete(open, u)
		for _, next := range u.neededBy {
			if open[next]--; open[next] == 0 {
				free = append(free, next)
			}
		}
	}
	var left []string
	for _, u := range units {
		if _, ok := open[u]; ok {
			left = append(left, u.Name)
		}
	}
	if len(left) > 0 {
		return fmt.Errorf("cannot order components: %s wait for each other", strings.Join(left, ", "))
	}
	return nil
}
