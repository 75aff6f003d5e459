package cluster

import "testing"

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
