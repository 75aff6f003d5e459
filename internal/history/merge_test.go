package history

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// text is a line as the tables have it.
func text(l Line) string {
	nobody := ""
	if l.Nobody != 0 {
		nobody = " (" + time.Duration(l.Nobody).String() + ")"
	}
	return fmt.Sprintf("%v %s %s>%s%s %s [%s]", l.At.Sub(start), l.What, l.From, l.To, nobody, l.Why, strings.Join(l.SeenBy, " "))
}

func texts(lines []Line) (all []string) {
	for _, l := range lines {
		all = append(all, text(l))
	}
	return all
}

func TestMerge(t *testing.T) {
	lead := func(second float64, what, from, to string, term uint64) Change {
		return Change{At: at(second), What: what, From: from, To: to, Term: term}
	}
	by := func(node, why string, c Change) Change {
		c.By, c.Why = node, why
		return c
	}
	const gone, died, order = "cp1 gave it up", "its process died", "handed over by order"
	for name, tc := range map[string]struct {
		changes []Change
		want    []string
	}{
		"nothing": {nil, nil},
		"a process died, and its agent says so": {[]Change{
			by("cp1", "", lead(0, Scheduler, "", "cp1", 1)),
			by("cp1", gone, lead(9, Scheduler, "cp1", "", 1)),
			by("cp1", died, lead(9, Scheduler, "cp1", "", 1)),
			by("cp1", "", lead(9.5, Scheduler, "cp1", "cp2", 2)),
			by("cp3", gone, lead(9, Scheduler, "cp1", "", 1)),
			by("cp3", "", lead(9.5, Scheduler, "cp1", "cp2", 2)),
		}, []string{"0s scheduler >cp1  [cp1]", "9.5s scheduler cp1>cp2 (500ms) its process died [cp1 cp3]"}},
		"the agent of the former leader knows more than who only looks": {[]Change{
			by("cp1", order, lead(9, Scheduler, "cp1", "cp2", 2)),
			by("cp2", "cp1 had not renewed it for 9s", lead(9, Scheduler, "cp1", "cp2", 2)),
			by("cp3", gone, lead(8.8, Scheduler, "cp1", "", 1)),
		}, []string{"9s scheduler cp1>cp2 (200ms) handed over by order [cp1 cp2 cp3]"}},
		"nobody has taken it": {[]Change{
			by("cp1", died, lead(9, Scheduler, "cp1", "", 1)),
		}, []string{"9s scheduler cp1> its process died [cp1]"}},
		"one was off while others led": {[]Change{
			by("cp3", "", lead(0, Etcd, "", "cp1", 2)),
			by("cp3", "elected in term 6", lead(90, Etcd, "cp1", "cp1", 6)),
			by("cp1", "", lead(0.5, Etcd, "", "cp1", 2)),
			by("cp1", "elected in term 4", lead(50, Etcd, "cp1", "cp2", 4)),
			by("cp1", "elected in term 6", lead(70, Etcd, "cp2", "cp1", 6)),
		}, []string{"0s etcd >cp1  [cp1 cp3]", "50s etcd cp1>cp2 elected in term 4 [cp1]", "1m10s etcd cp2>cp1 elected in term 6 [cp1 cp3]"}},
		"somebody led whom nobody has seen": {[]Change{
			by("cp1", "", lead(0, Scheduler, "", "cp1", 1)),
			by("cp1", gone, lead(9, Scheduler, "cp1", "", 1)),
			by("cp2", "", lead(60, Scheduler, "", "cp3", 3)),
			by("cp2", "", lead(80, Scheduler, "", "", 4)),
			by("cp2", "", lead(81, Scheduler, "", "cp2", 5)),
		}, []string{
			"0s scheduler >cp1  [cp1]", "9s scheduler cp1> cp1 gave it up [cp1]", "1m0s scheduler >cp3  [cp2]", "1m21s scheduler cp3>cp2 (1s)  [cp2]",
		}},
		"only the end is told": {[]Change{
			by("cp1", "shut down", lead(5, VIP, "cp1", "", 0)),
			by("cp2", "shut down", lead(6, VIP, "cp2", "", 0)),
			by("cp3", "there is no active router", lead(7, VIP, "", "cp3", 0)),
		}, []string{"5s vip cp1> shut down [cp1]", "7s vip cp2>cp3 (1s) shut down; there is no active router [cp2 cp3]"}},
		"a lease that was deleted begins anew": {[]Change{
			by("cp1", "", lead(0, Scheduler, "", "cp1", 1)),
			by("cp1", "", lead(60, Scheduler, "cp1", "cp1", 1)),
		}, []string{"0s scheduler >cp1  [cp1]", "1m0s scheduler cp1>cp1  [cp1]"}},
		"the virtual IP is moved there and back": {[]Change{
			by("cp1", "handed over", lead(5.001, VIP, "cp1", "cp2", 0)),
			by("cp1", "the active router resigned", lead(6, VIP, "cp2", "cp1", 0)),
			by("cp1", "handed over", lead(6.501, VIP, "cp1", "cp2", 0)),
			by("cp2", "the active router resigned", lead(5, VIP, "cp1", "cp2", 0)),
			by("cp2", "handed over", lead(6.002, VIP, "cp2", "cp1", 0)),
			by("cp2", "the active router resigned", lead(6.5, VIP, "cp1", "cp2", 0)),
		}, []string{
			"5s vip cp1>cp2 handed over; the active router resigned [cp1 cp2]",
			"6s vip cp2>cp1 handed over; the active router resigned [cp1 cp2]",
			"6.5s vip cp1>cp2 handed over; the active router resigned [cp1 cp2]",
		}},
		"the virtual IP's holder stops": {[]Change{
			by("cp1", "shut down", lead(5, VIP, "cp1", "", 0)),
			by("cp2", "the active router resigned", lead(5.03, VIP, "cp1", "cp2", 0)),
		}, []string{"5.03s vip cp1>cp2 (30ms) shut down; the active router resigned [cp1 cp2]"}},
		"and its clock is ahead": {[]Change{
			by("cp1", "shut down", lead(5.5, VIP, "cp1", "", 0)),
			by("cp2", "the active router resigned", lead(5.03, VIP, "cp1", "cp2", 0)),
		}, []string{"5.03s vip cp1>cp2 shut down; the active router resigned [cp1 cp2]"}},
		"the virtual IP's holder dies, and who takes it does not know from whom": {[]Change{
			by("cp1", "there is no active router", lead(0, VIP, "", "cp1", 0)),
			by("cp2", "there is no active router", lead(60, VIP, "", "cp2", 0)),
		}, []string{"0s vip >cp1 there is no active router [cp1]", "1m0s vip cp1>cp2 there is no active router [cp2]"}},
		"the virtual IP was at two places": {[]Change{
			by("cp1", "", lead(0, VIP, "", "cp1", 0)),
			by("cp2", "heard nothing", lead(60, VIP, "cp1", "cp2", 0)),
			by("cp1", "was stopped for 30s", lead(90, VIP, "cp1", "", 0)),
			by("cp3", "heard nothing", lead(95, VIP, "cp2", "cp3", 0)),
			by("cp2", "another router is active", lead(120, VIP, "cp2", "cp3", 0)),
		}, []string{
			"0s vip >cp1  [cp1]", "1m0s vip cp1>cp2 heard nothing [cp2]", "1m30s vip cp1>cp2 was stopped for 30s [cp1]",
			"1m35s vip cp2>cp3 heard nothing [cp3]", "2m0s vip cp2>cp3 another router is active [cp2]",
		}},
		"all of it in the order of time": {[]Change{
			by("cp1", "", lead(3, VIP, "", "cp1", 0)),
			by("cp1", "", lead(1, Scheduler, "", "cp1", 1)),
			by("cp1", "", lead(2, Etcd, "", "cp1", 1)),
		}, []string{"1s scheduler >cp1  [cp1]", "2s etcd >cp1  [cp1]", "3s vip >cp1  [cp1]"}},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, texts(Merge(tc.changes))); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// lease is one that changes hands: what it says, one after the other.
func lease(random *rand.Rand) (states []Sight) {
	now := 0.0
	for term := range uint64(3 + random.IntN(4)) {
		holder := fmt.Sprintf("cp%d", 1+random.IntN(3))
		now += 3 + 30*random.Float64()
		states = append(states, Sight{What: Scheduler, Holder: holder, Term: term + 1, Since: at(now)})
		if random.IntN(2) == 0 {
			now += 3 + 30*random.Float64()
			states = append(states, Sight{What: Scheduler, Term: term + 1, Since: at(now)})
		}
	}
	return states
}

// seenOf is what a node writes down that looks now and then, and is told of the past at
// times.
func seenOf(t *testing.T, random *rand.Rand, node string, states []Sight) []Change {
	t.Helper()
	dir := t.TempDir()
	b := NewBook(dir+"/leaders", dir+"/vip", node)
	for i, s := range states {
		if random.IntN(3) != 0 {
			continue
		}
		must(t, b.See(s, ""))
		must(t, b.See(states[random.IntN(i+1)], ""))
	}
	return told(t, b)
}

// check looks for each state that somebody has seen among the lines.
func check(t *testing.T, what string, states []Sight, lines []Line, known func(Sight) bool) {
	t.Helper()
	holder, held := "", uint64(0) // the last that is known of, and its term
	var free Sight                // nobody's, since
	for _, s := range states {
		s.Since = s.Since.Truncate(time.Millisecond)
		if !known(s) {
			continue
		}
		if s.Holder == "" {
			if free = s; held != s.Term { // nobody has seen who led
				holder = ""
			}
			continue
		}
		i := slices.IndexFunc(lines, func(l Line) bool { return l.To == s.Holder && l.Term == s.Term })
		if i < 0 {
			t.Fatalf("%s: term %d is missing:\n%s", what, s.Term, strings.Join(texts(lines), "\n"))
		}
		l, nobody := lines[i], time.Duration(0)
		switch {
		case free.Term == 0:
		case free.Term+1 == s.Term:
			nobody = s.Since.Sub(free.Since)
		default: // others have led, and nobody has seen them
			holder = ""
		}
		if !l.At.Equal(s.Since) || time.Duration(l.Nobody) != nobody || holder != "" && l.From != holder {
			t.Errorf("%s: %s; want it from %q after %v", what, text(l), holder, nobody)
		}
		holder, held, free = s.Holder, s.Term, Sight{}
	}
}

// TestMergeOfAny: whatever three nodes have seen of a lease, the account has each time
// that it was taken that one of them knows of, once and in order, from whoever had it
// before as far as one of them knows; and whose account is first makes no difference.
func TestMergeOfAny(t *testing.T) {
	for seed := range uint64(25) {
		random := rand.New(rand.NewPCG(seed, 7))
		states := lease(random)
		var accounts [][]Change
		known := map[string]bool{}
		for n := range 3 {
			account := seenOf(t, random, fmt.Sprintf("cp%d", n+1), states)
			for _, c := range account {
				known[fmt.Sprintf("%d>%s", c.Term, c.To)] = true
			}
			accounts = append(accounts, account)
		}
		lines := Merge(slices.Concat(accounts...))
		check(t, fmt.Sprintf("seed %d", seed), states, lines, func(s Sight) bool { return known[fmt.Sprintf("%d>%s", s.Term, s.Holder)] })
		term := uint64(0)
		for _, l := range lines {
			if l.To != "" && l.Term <= term {
				t.Errorf("seed %d: term %d after %d:\n%s", seed, l.Term, term, strings.Join(texts(lines), "\n"))
			}
			if l.To != "" {
				term = l.Term
			}
		}
		for range 3 {
			random.Shuffle(3, func(i, j int) { accounts[i], accounts[j] = accounts[j], accounts[i] })
			if diff := cmp.Diff(lines, Merge(slices.Concat(accounts...))); diff != "" {
				t.Fatalf("seed %d, in another order:\n%s", seed, diff)
			}
		}
		twice := append(slices.Concat(accounts...), accounts[0]...)
		if diff := cmp.Diff(lines, Merge(twice)); diff != "" {
			t.Errorf("seed %d, one of them twice:\n%s", seed, diff)
		}
	}
}
