package apiservice

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"kuorum/internal/cluster"
	"kuorum/internal/endpoint"
)

// nodes are servers cp1, cp2 and so on at 10.0.0.1 and up.
func nodes(n int) []cluster.Node {
	var all []cluster.Node
	for i := range n {
		all = append(all, cluster.Node{Name: fmt.Sprint("cp", i+1), Role: cluster.RoleServer, Address: at(i + 1)})
	}
	return all
}

func at(i int) string { return fmt.Sprint("10.0.0.", i) }

// ats turns "1 3" into addresses.
func ats(numbers string) []string {
	var all []string
	for n := range strings.FieldsSeq(numbers) {
		all = append(all, "10.0.0."+n)
	}
	return all
}

// see turns "+-?" into a View: of each server in turn it is well, ill or not judged;
// a "!" at the end says that the viewer leaves.
func see(marks string) View {
	v := View{Healthy: map[string]bool{}}
	for i, m := range marks {
		switch m {
		case '!':
			v.Leaving = true
		case '+', '-':
			v.Healthy[at(i+1)] = m == '+'
		}
	}
	return v
}

func TestDecide(t *testing.T) {
	for name, tc := range map[string]struct {
		servers int
		views   []string // of cp1, cp2 and so on; empty: it cannot be asked
		listed  string
		want    string
		after   time.Duration
	}{
		"all well":                             {3, []string{"+++", "+++", "+++"}, "1 2 3", "1 2 3", 0},
		"the first list":                       {3, []string{"+++", "+++", "+++"}, "", "1 2 3", 0},
		"the first that is well":               {3, []string{"+--", "+--", "+??"}, "", "1", 0},
		"the first that asks, all others off":  {3, []string{"+--", "", ""}, "", "1", 0},
		"nobody is well at first":              {3, []string{"---", "---", "???"}, "", "", 0},
		"nobody is well any more":              {3, []string{"---", "---", "---"}, "1 2", "1 2", 0},
		"a server is off":                      {3, []string{"++-", "++-", ""}, "1 2 3", "1 2", 0},
		"an API server is dead":                {3, []string{"++-", "++-", "++-"}, "1 2 3", "1 2", 0},
		"it is back":                           {3, []string{"+++", "+++", "+++"}, "1 2", "1 2 3", 0},
		"only one sees it ill":                 {3, []string{"++-", "+++", "+++"}, "1 2 3", "1 2 3", 0},
		"only one sees it well":                {3, []string{"++-", "++-", "+++"}, "1 2", "1 2", 0},
		"a tie while it is in":                 {3, []string{"++-", "+++", ""}, "1 2 3", "1 2 3", 0},
		"a tie while it is out":                {3, []string{"++-", "+++", ""}, "1 2", "1 2", 0},
		"balancers that have just started":     {3, []string{"???", "???", "++-"}, "1 2 3", "1 2 3", 0},
		"its agent alone is dead":              {3, []string{"+++", "+++", ""}, "1 2 3", "1 2 3", 0},
		"it lives and nobody speaks for it":    {3, []string{"+++", "+++", ""}, "1 2", "1 2", 0},
		"it leaves":                            {3, []string{"+++", "+++", "+++!"}, "1 2 3", "1 2", 0},
		"it has left, and runs still":          {3, []string{"+++", "+++", ""}, "1 2", "1 2", 0},
		"all leave":                            {3, []string{"+++!", "+++!", "+++!"}, "1 2 3", "1 2 3", 0},
		"the last one leaves":                  {3, []string{"+--!", "", ""}, "1", "1", 0},
		"the only server":                      {1, []string{"+"}, "", "1", 0},
		"the only server is ill":               {1, []string{"-"}, "1", "1", 0},
		"the only server leaves":               {1, []string{"+!"}, "1", "1", 0},
		"two, one is dead":                     {2, []string{"+-", "+-"}, "1 2", "1", 0},
		"two, one is off":                      {2, []string{"+-", ""}, "1 2", "1", 0},
		"two that do not agree":                {2, []string{"+-", "++"}, "1 2", "1 2", 0},
		"two, one leaves":                      {2, []string{"++", "++!"}, "1 2", "1", 0},
		"two, the listed one is off":           {2, []string{"+-", ""}, "2", "1", abandoned},
		"two, the one that came back alone":    {2, []string{"", "+?"}, "1", "1", 0},
		"cut off, while the others list":       {3, []string{"", "", "--+"}, "1 2 3", "3", lonely},
		"cut off, when the others have listed": {3, []string{"", "", "--+"}, "1 2", "3", abandoned},
		"cut off, with nothing to take away":   {3, []string{"", "", "--+"}, "3", "3", 0},
		"half of four":                         {4, []string{"++--", "++--", "", ""}, "1 2 3 4", "1 2", 0},
		"the other half of four, later":        {4, []string{"", "", "--++", "--++"}, "1 2", "3 4", abandoned},
		"a removed server":                     {2, []string{"++", "++"}, "1 2 3", "1 2", 0},
		"a removed server, all others ill":     {2, []string{"--", "--"}, "1 3", "1", 0},
		"all listed were removed":              {2, []string{"++", "++"}, "8 9", "1 2", 0},
		"all listed were removed, one asks":    {3, []string{"+--", "", ""}, "8 9", "1", 0},
		"all listed were removed, none well":   {2, []string{"--", "--"}, "8 9", "", 0},
		"nobody can be asked":                  {3, []string{"", "", ""}, "1 2", "1 2", 0},
	} {
		t.Run(name, func(t *testing.T) {
			views := map[string]View{}
			for i, marks := range tc.views {
				if marks != "" {
					views[fmt.Sprint("cp", i+1)] = see(marks)
				}
			}
			want, after := Decide(nodes(tc.servers), views, ats(tc.listed))
			if diff := cmp.Diff(ats(tc.want), want); diff != "" || after != tc.after {
				t.Errorf("after %v, want %v (-want +got):\n%s", after, tc.after, diff)
			}
		})
	}
}

// anything is any cluster of up to seven servers, with what they say.
func anything(r *rand.Rand) (servers []cluster.Node, views map[string]View, listed []string) {
	servers, views = nodes(1+r.IntN(7)), map[string]View{}
	alike := see(marks(r, len(servers)))
	for _, n := range servers {
		switch r.IntN(5) {
		case 0:
		case 1:
			views[n.Name] = see(marks(r, len(servers)))
		default:
			views[n.Name] = View{Healthy: alike.Healthy, Leaving: r.IntN(8) == 0}
		}
	}
	for i := range len(servers) + 1 { // one more: it is no server any more
		if r.IntN(3) > 0 {
			listed = append(listed, at(i+1))
		}
	}
	return servers, views, listed
}

func marks(r *rand.Rand, n int) string {
	var b strings.Builder
	for range n {
		b.WriteByte("+++--?"[r.IntN(6)])
	}
	return b.String()
}

// TestDecideWhateverTheySay: the list is never emptied, has servers only, once and in
// order, and differs from what it was by a majority, or a word of the server's own.
func TestDecideWhateverTheySay(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	changed := 0
	for range 50_000 {
		servers, views, listed := anything(r)
		want, after := Decide(servers, views, listed)
		say := func(format string, args ...any) {
			t.Helper()
			t.Fatalf("%s\nservers %v\nviews %v\nlisted %v\nwant %v after %v", fmt.Sprintf(format, args...), servers, views, listed, want, after)
		}
		if !slices.IsSorted(want) || len(slices.Compact(slices.Clone(want))) != len(want) {
			say("not in order")
		}
		for _, address := range want {
			if !slices.ContainsFunc(servers, func(n cluster.Node) bool { return n.Address == address }) {
				say("%s is no server", address)
			}
		}
		for _, n := range servers {
			in, was := slices.Contains(want, n.Address), slices.Contains(listed, n.Address)
			well, ill := votes(views, n.Address)
			own, asked := views[n.Name]
			switch {
			case was && len(want) == 0:
				say("it is empty")
			case in && !was && (2*well <= len(views) || !asked || own.Leaving):
				say("%s is added by %d of %d", n.Name, well, len(views))
			case was && !in && 2*ill <= len(views) && !own.Leaving:
				say("%s is removed by %d of %d", n.Name, ill, len(views))
			case in != was:
				changed++
			}
		}
		turned := slices.Clone(servers)
		r.Shuffle(len(turned), func(i, j int) { turned[i], turned[j] = turned[j], turned[i] })
		if other, later := Decide(turned, views, listed); !slices.Equal(other, want) || later != after {
			say("in another order it is %v after %v", other, later)
		}
		if again, _ := Decide(servers, views, want); !slices.Equal(again, want) && len(want) > 0 {
			say("then it should be %v", again)
		}
	}
	if changed < 1000 {
		t.Errorf("%d changes only: is this put right?", changed)
	}
}

// TestSettled: who does not wait for all answers decides as if it had.
func TestSettled(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	early := 0
	for range 50_000 {
		servers, all, listed := anything(r)
		some := map[string]View{}
		for name, v := range all {
			if r.IntN(3) > 0 {
				some[name] = v
			}
		}
		if !settled(servers, some) {
			continue
		}
		if len(some) < len(all) {
			early++
		}
		want, after := Decide(servers, all, listed)
		got, when := Decide(servers, some, listed)
		if !slices.Equal(got, want) || when != after {
			t.Fatalf("of %v: %v after %v, of all %v: %v after %v; listed %v", some, got, when, all, want, after, listed)
		}
	}
	if early < 300 {
		t.Errorf("%d cases only: is this put right?", early)
	}
}

// TestPartsDoNotFight: two parts of a network that both write what they see come to
// rest, whoever begins.
func TestPartsDoNotFight(t *testing.T) {
	for _, n := range []int{2, 3, 4, 5} {
		servers := nodes(n)
		for size := 1; size < n; size++ {
			part := func(first, last int) map[string]View {
				views := map[string]View{}
				for i := first; i <= last; i++ {
					views[servers[i-1].Name] = see(strings.Repeat("-", first-1) + strings.Repeat("+", last-first+1) + strings.Repeat("-", n-last))
				}
				return views
			}
			var listed []string
			for _, s := range servers {
				listed = append(listed, s.Address)
			}
			writes := 0
			for round := range 10 {
				views := part(1, size)
				if round%2 == 1 {
					views = part(size+1, n)
				}
				if want, after := Decide(servers, views, listed); after < lonely && !slices.Equal(want, listed) {
					listed, writes = want, writes+1
				}
			}
			if writes != 1 {
				t.Errorf("%d and %d servers: %d writes, in the end %v", size, n-size, writes, listed)
			}
			if 2*size > n && !slices.Contains(listed, at(1)) || 2*size < n && slices.Contains(listed, at(1)) {
				t.Errorf("%d and %d servers: the fewer have won with %v", size, n-size, listed)
			}
		}
	}
}

// TestHealthy reads a balancer's words.
func TestHealthy(t *testing.T) {
	var s endpoint.States
	for i, state := range []endpoint.State{endpoint.Healthy, endpoint.Draining, endpoint.Refused, endpoint.Down, endpoint.Unknown} {
		s.Backends = append(s.Backends, endpoint.BackendStatus{Backend: endpoint.Backend{Name: "x", Address: at(i+1) + ":6444"}, State: state})
	}
	want := map[string]bool{at(1): true, at(2): false, at(3): false, at(4): false}
	if diff := cmp.Diff(want, healthy(s)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
