package cluster

import (
	"errors"
	"slices"
	"testing"
)

func TestQuorum(t *testing.T) {
	for _, c := range []struct{ voters, quorum, mayLose int }{
		{-1, 1, 0},
		{0, 1, 0},
		{1, 1, 0},
		{2, 2, 0},
		{3, 2, 1},
		{4, 3, 1},
		{5, 3, 2},
		{6, 4, 2},
		{7, 4, 3},
		{8, 5, 3},
		{9, 5, 4},
	} {
		if got := Quorum(c.voters); got != c.quorum {
			t.Errorf("Quorum(%d) = %d, want %d", c.voters, got, c.quorum)
		}
		if got := MayLose(c.voters); got != c.mayLose {
			t.Errorf("MayLose(%d) = %d, want %d", c.voters, got, c.mayLose)
		}
	}
}

func voters(health ...bool) []Voter {
	var list []Voter
	for i, h := range health {
		list = append(list, Voter{Name: string(rune('a' + i)), Healthy: h})
	}
	return list
}

func TestSumOf(t *testing.T) {
	for _, c := range []struct {
		voters []Voter
		want   string
		holds  bool
	}{
		{nil, "0 voters, quorum 1, no quorum", false},
		{voters(true), "1 voter, quorum 1, may lose 0", true},
		{voters(true, true, true), "3 voters, quorum 2, may lose 1", true},
		{voters(true, false, true), "3 voters, 2 healthy, quorum 2, may lose 0", true},
		{voters(true, false, false), "3 voters, 1 healthy, quorum 2, no quorum", false},
		{voters(true, true, false, false), "4 voters, 2 healthy, quorum 3, no quorum", false},
		{voters(true, true, true, true, false), "5 voters, 4 healthy, quorum 3, may lose 1", true},
	} {
		s := SumOf(c.voters)
		if s.String() != c.want || s.Holds() != c.holds {
			t.Errorf("%v: got %q, %v", c.voters, s, s.Holds())
		}
	}
}

func TestGuardQuorum(t *testing.T) {
	for _, c := range []struct {
		name    string
		voters  []Voter
		take    string
		refused bool
	}{
		{"first of three", voters(true, true, true), "a", false},
		{"second of three", voters(true, true, false), "a", true},
		{"the one that is off already", voters(true, true, false), "c", false},
		{"no quorum to lose", voters(true, false, false), "a", false},
		{"the only one", voters(true), "a", true},
		{"no voter at all", voters(true, true, false), "worker", false},
		{"one of two", voters(true, true), "b", true},
	} {
		err := GuardQuorum("stop it", SumOf(c.voters), Without(c.voters, c.take))
		problem, ok := errors.AsType[*Problem](err)
		if (err != nil) != c.refused || ok && problem.ExitCode() != ExitRefused {
			t.Errorf("%s: got %v", c.name, err)
		}
	}
}

// Whatever the guard lets pass leaves a quorum that was there.
func TestGuardNeverLosesQuorum(t *testing.T) {
	for n := 1; n <= 9; n++ {
		for bits := range 1 << n {
			health := make([]bool, n)
			for i := range health {
				health[i] = bits>>i&1 == 1
			}
			all := voters(health...)
			for _, v := range all {
				left := 0
				for _, other := range all {
					if other.Healthy && other.Name != v.Name {
						left++
					}
				}
				passed := GuardQuorum("x", SumOf(all), Without(all, v.Name)) == nil
				if want := 2*left > n || !SumOf(all).Holds(); passed != want {
					t.Fatalf("%v without %s: passed is %v", all, v.Name, passed)
				}
			}
		}
	}
}

func TestRemoved(t *testing.T) {
	for _, c := range []struct {
		name    string
		voters  []Voter
		take    string
		want    string
		refused bool
	}{
		{"one of three", voters(true, true, true), "a", "2 voters, quorum 2, may lose 0", false},
		{"the one that is off", voters(true, true, false), "c", "2 voters, quorum 2, may lose 0", false},
		{"a healthy one while one is off", voters(true, true, false), "a", "2 voters, 1 healthy, quorum 2, no quorum", true},
		{"one of two", voters(true, true), "b", "1 voter, quorum 1, may lose 0", false},
		{"the healthy one of two", voters(true, false), "a", "1 voter, 0 healthy, quorum 1, no quorum", false}, // there is none to lose
		{"one of four while one is off", voters(true, true, true, false), "a", "3 voters, 2 healthy, quorum 2, may lose 0", false},
		{"the last", voters(true), "a", "0 voters, quorum 1, no quorum", true},
		{"no voter", voters(true, true, false), "learner", "3 voters, 2 healthy, quorum 2, may lose 0", false},
	} {
		before := slices.Clone(c.voters)
		after := Removed(c.voters, c.take)
		if got := after.String(); got != c.want {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
		if err := GuardQuorum("remove it", SumOf(c.voters), after); (err != nil) != c.refused {
			t.Errorf("%s: the guard says %v", c.name, err)
		}
		if !slices.Equal(before, c.voters) {
			t.Errorf("%s: the voters were changed: %v", c.name, c.voters)
		}
	}
}
