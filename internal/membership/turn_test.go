package membership

import "testing"

// TestTurns: one node at a time has its turn, may ask again for what it has, and
// nobody ends another's.
func TestTurns(t *testing.T) {
	w := newWorld(t, 3)
	r := w.service.Register
	take := func(name string, want bool) {
		t.Helper()
		if got, err := r.TakeTurn(within(t), name); err != nil || got != want {
			t.Errorf("%s takes a turn: %v, %v", name, got, err)
		}
	}
	take("cp1", true)
	take("cp2", false)
	take("cp1", true)
	must(t, r.EndTurn(within(t), "cp2"))
	take("cp2", false)
	must(t, r.EndTurn(within(t), "cp1"))
	must(t, r.EndTurn(within(t), "cp1"))
	take("cp2", true)
}
