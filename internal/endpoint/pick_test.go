package endpoint

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestOrder(t *testing.T) {
	healthy := func(name string, connections int) Candidate {
		return Candidate{Name: name, State: Healthy, Connections: connections}
	}
	in := func(name string, state State) Candidate { return Candidate{Name: name, State: state} }
	suspect := Candidate{Name: "s", State: Healthy, Suspect: true}

	tests := map[string]struct {
		candidates []Candidate
		local      string
		turn       uint
		want       []string
	}{
		"none":               {want: []string{}},
		"one":                {candidates: []Candidate{healthy("a", 9)}, turn: 7, want: []string{"a"}},
		"fewest connections": {candidates: []Candidate{healthy("a", 2), healthy("b", 1), healthy("c", 0)}, want: []string{"c", "b", "a"}},
		"local wins a tie":   {candidates: []Candidate{healthy("a", 1), healthy("b", 1)}, local: "b", want: []string{"b", "a"}},
		"local loses otherwise": {
			candidates: []Candidate{healthy("a", 0), healthy("b", 1)}, local: "b", want: []string{"a", "b"},
		},
		"turns":          {candidates: []Candidate{healthy("a", 0), healthy("b", 0), healthy("c", 0)}, turn: 1, want: []string{"b", "c", "a"}},
		"turns go round": {candidates: []Candidate{healthy("a", 0), healthy("b", 0), healthy("c", 0)}, turn: 5, want: []string{"c", "a", "b"}},
		"state comes first": {
			candidates: []Candidate{
				in("down", Down), in("refused", Refused), in("draining", Draining),
				in("unknown", Unknown), suspect, healthy("busy", 1000),
			},
			local: "down",
			want:  []string{"busy", "s", "unknown", "draining", "refused", "down"},
		},
		"nobody healthy is still an order": {
			candidates: []Candidate{in("a", Down), in("b", Down)}, turn: 1, want: []string{"b", "a"},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got := []string{}
			for _, i := range Order(tt.candidates, tt.local, tt.turn) {
				got = append(got, tt.candidates[i].Name)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("order (-want +got):\n%s", diff)
			}
		})
	}
}

// Whatever the input: every candidate appears once, and no better class comes
// after a worse one.
func FuzzOrder(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 4, 5}, uint(3), uint8(2))
	f.Add([]byte{}, uint(0), uint8(0))
	states := []State{Unknown, Healthy, Draining, Refused, Down}
	f.Fuzz(func(t *testing.T, seed []byte, turn uint, local uint8) {
		candidates := make([]Candidate, len(seed))
		for i, b := range seed {
			candidates[i] = Candidate{
				Name: string(rune('a' + i)), State: states[int(b)%len(states)],
				Suspect: b&64 != 0, Connections: int(b >> 4),
			}
		}
		order := Order(candidates, string(rune('a'+local)), turn)
		sorted := slices.Sorted(slices.Values(order))
		for i, index := range sorted {
			if i != index {
				t.Fatalf("order %v is no permutation", order)
			}
		}
		if len(order) != len(candidates) {
			t.Fatalf("order %v has not %d elements", order, len(candidates))
		}
		for i := 1; i < len(order); i++ {
			a, b := candidates[order[i-1]], candidates[order[i]]
			if a.rank() > b.rank() || a.rank() == b.rank() && a.Connections > b.Connections {
				t.Fatalf("%+v comes before %+v", a, b)
			}
		}
	})
}
