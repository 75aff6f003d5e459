package history

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"

	"kuorum/internal/cluster"
)

// near is by how much two nodes may differ about when the same happened, where no
// term tells it from others.
const near = 2 * time.Second

// Line is a change as all have seen it who tell of it.
type Line struct {
	At   time.Time `json:"at"`
	What string    `json:"what"`
	From string    `json:"from,omitempty"` // empty: nobody, or not known
	To   string    `json:"to,omitempty"`   // empty: nobody
	Term uint64    `json:"term,omitempty"` // none of the virtual IP
	// Nobody is how long nobody led before; 0: it is not known.
	Nobody cluster.Duration `json:"nobody,omitzero"`
	Why    string           `json:"why,omitempty"` // empty: not known
	SeenBy []string         `json:"seenBy"`
}

// event is one change, and what each node says of it.
type event struct {
	Change                   // as who was first has it
	said   map[string]string // why, by node
}

// Merge makes one account of what several nodes have seen, the oldest line first. What
// one of them tells must be in the order in which it tells it; whose is first makes no
// difference. That a lead was given up and that it was taken are one line, if nothing
// came between.
func Merge(changes []Change) []Line {
	what := map[string][]Change{}
	for _, c := range changes {
		what[c.What] = append(what[c.What], c)
	}
	var lines []Line
	for _, name := range slices.Sorted(maps.Keys(what)) {
		var f folder
		for _, e := range events(what[name]) {
			f.add(e)
		}
		lines = append(lines, f.end()...)
	}
	slices.SortStableFunc(lines, func(a, b Line) int { return a.At.Compare(b.At) })
	return lines
}

// events are the changes of one thing, each once.
func events(changes []Change) []*event {
	changes = slices.Clone(changes)
	slices.SortStableFunc(changes, func(a, b Change) int {
		return cmp.Or(a.At.Compare(b.At), cmp.Compare(a.Term, b.Term), strings.Compare(a.By, b.By))
	})
	var list []*event
	for _, c := range changes {
		known := slices.IndexFunc(list, func(e *event) bool { return e.is(c) })
		if known < 0 {
			list, known = append(list, &event{Change: c, said: map[string]string{}}), len(list)
		}
		e := list[known]
		e.From = cmp.Or(e.From, c.From)
		e.said[c.By] = cmp.Or(c.Why, e.said[c.By])
	}
	return list
}

// is tells whether c is the same event. In a term there is one leader of etcd, whenever
// a node has seen it first; a lease says when it was taken. The virtual IP has no
// terms, and a server tells each of its own turns once.
func (e *event) is(c Change) bool {
	if e.What != c.What || e.To != c.To || e.Term != c.Term {
		return false
	}
	if c.What == Etcd {
		return true
	}
	if c.At.Sub(e.At).Abs() > near {
		return false
	}
	_, told := e.said[c.By]
	return c.Term != 0 || !told && (e.From == "" || c.From == "" || e.From == c.From)
}

// why is the best reason. Who had the lead knows best why it went, then who took it;
// of the virtual IP both are asked, since each knows a half.
func (e *event) why() string {
	first, second := e.said[e.From], e.said[e.To]
	if e.What == VIP {
		return both(first, second)
	}
	for _, by := range slices.Sorted(maps.Keys(e.said)) {
		second = cmp.Or(second, e.said[by])
	}
	return cmp.Or(first, second)
}

func both(first, second string) string {
	if first == "" || second == "" || first == second {
		return cmp.Or(first, second)
	}
	return first + "; " + second
}

func (e *event) line() Line {
	return Line{
		At: e.At, What: e.What, From: e.From, To: e.To, Term: e.Term, Why: e.why(), SeenBy: slices.Sorted(maps.Keys(e.said)),
	}
}

// folder makes lines of the events of one thing, in their order.
type folder struct {
	lines  []Line
	holder string // as of the last line; empty: nobody, or not known
	free   *event // nobody leads since
}

func (f *folder) add(e *event) {
	if e.To == "" {
		f.release(e)
		return
	}
	if f.free != nil && !f.follows(e) {
		f.flush()
	}
	// What all have seen together is more than what one has seen of terms, since it
	// may have been off. Of the virtual IP each knows from whom it came.
	if f.holder != "" && (e.Term != 0 || e.From == "") {
		e.From = f.holder
	}
	line := e.line()
	if f.free != nil {
		line.Nobody = cluster.Duration(e.At.Sub(f.free.At))
		line.Why = cmp.Or(line.Why, f.free.why())
		if e.What == VIP {
			line.Why = both(f.free.why(), e.why())
		}
		line.SeenBy = union(line.SeenBy, f.free)
		f.free = nil
	}
	f.lines, f.holder = append(f.lines, line), e.To
}

// follows tells whether e is the next who leads after nobody did.
func (f *folder) follows(e *event) bool {
	if e.Term != 0 {
		return e.Term == f.free.Term+1
	}
	return e.From == "" || e.From == f.free.From
}

// release is that nobody leads, unless somebody has the lead already: clocks differ,
// and a server that was cut off lets go of the virtual IP when it hears of the other.
func (f *folder) release(e *event) {
	if e.From == "" || f.holder == "" || f.holder == e.From || len(f.lines) == 0 || e.Term > f.lines[len(f.lines)-1].Term {
		f.flush()
		f.free, f.holder = e, cmp.Or(e.From, f.holder)
		return
	}
	last := &f.lines[len(f.lines)-1]
	if last.From == e.From && e.At.Sub(last.At) <= near {
		last.SeenBy = union(last.SeenBy, e)
		if e.What == VIP {
			last.Why = both(e.why(), last.Why)
			return
		}
		last.Why = cmp.Or(last.Why, e.why())
		return
	}
	line := e.line()
	if f.free == nil {
		line.To = f.holder
	}
	f.lines = append(f.lines, line)
}

// flush makes a line of a lead that nobody has taken.
func (f *folder) flush() {
	if f.free == nil {
		return
	}
	f.lines, f.holder, f.free = append(f.lines, f.free.line()), "", nil
}

func (f *folder) end() []Line {
	f.flush()
	return f.lines
}

func union(seen []string, e *event) []string {
	all := slices.AppendSeq(slices.Clone(seen), maps.Keys(e.said))
	slices.Sort(all)
	return slices.Compact(all)
}
