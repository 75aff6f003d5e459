package fault

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"kuorum/internal/cluster"
)

// says checks that err is of usage and has the words.
func says(t *testing.T, err error, words string) {
	t.Helper()
	p, ok := errors.AsType[*cluster.Problem](err)
	if !ok || p.Exit != cluster.ExitUsage || !strings.Contains(p.Error(), words) {
		t.Errorf("got %v, want an error of usage with %q", err, words)
	}
}

func TestParse(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		kind Kind
		text string
		want Target
		says string // an error
	}{
		{Kill, "cp1", Target{Left: []string{"cp1"}}, ""},
		{Kill, "cp1/etcd", Target{Left: []string{"cp1"}, Component: "etcd"}, ""},
		{Pause, "leader/kube-apiserver", Target{Left: []string{"leader"}, Component: "kube-apiserver"}, ""},
		{Stop, "w1/kubelet", Target{Left: []string{"w1"}, Component: "kubelet"}, ""},
		{Stop, "w1", Target{}, "names no component"},
		{Stop, "w1/", Target{}, `cannot read "w1/"`},
		{Kill, "", Target{}, "NODE/COMPONENT"},
		{Kill, "/etcd", Target{}, "NODE/COMPONENT"},
		{Kill, "cp1,cp2", Target{}, "NODE/COMPONENT"},
		{Kill, "cp1/etcd/x", Target{}, "NODE/COMPONENT"},
		{Kill, "cp1/../../etcd", Target{}, "NODE/COMPONENT"},
		{Pause, "cp1|cp2", Target{}, "NODE/COMPONENT"},
		{Cut, "cp1", Target{Left: []string{"cp1"}}, ""},
		{Cut, "cp1,w1", Target{Left: []string{"cp1", "w1"}}, ""},
		{Cut, "leader|cp2,cp3", Target{Left: []string{"leader"}, Right: []string{"cp2", "cp3"}}, ""},
		{Cut, "cp1,cp2|cp3", Target{Left: []string{"cp1", "cp2"}, Right: []string{"cp3"}}, ""},
		{Cut, "cp1|", Target{}, `cannot read "cp1|"`},
		{Cut, "|cp1", Target{}, "cannot read"},
		{Cut, "cp1,,cp2", Target{}, "cannot read"},
		{Cut, "cp1|cp2|cp3", Target{}, "cannot read"},
		{Cut, `cp1" drop`, Target{}, "cannot read"},
		{Cut, "cp1/etcd|cp2", Target{}, "cannot read"},
		{"burn", "cp1", Target{}, `there is no fault "burn"`},
	} {
		got, err := Parse(test.kind, test.text)
		if test.says != "" {
			says(t, err, test.says)
			continue
		}
		if diff := cmp.Diff(test.want, got); diff != "" || err != nil || got.String() != test.text {
			t.Errorf("%s %q: %v, written %s\n%s", test.kind, test.text, err, got, diff)
		}
	}
}

// FuzzParse: whatever is read is what was typed, and may stand in a path and in
// a rule.
func FuzzParse(f *testing.F) {
	for _, text := range []string{"cp1", "cp1/etcd", "leader|cp2,cp3", "a,b", "..", `"`, "{|}", "cp1/.."} {
		f.Add(string(Kill), text)
		f.Add(string(Cut), text)
	}
	f.Fuzz(func(t *testing.T, kind, text string) {
		target, err := Parse(Kind(kind), text)
		if err != nil {
			says(t, err, "")
			return
		}
		if target.String() != text || len(target.Left) == 0 {
			t.Errorf("%q was read as %+v", text, target)
		}
		for _, word := range append(append([]string{target.Component}, target.Left...), target.Right...) {
			if strings.Trim(word, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
				t.Errorf("%q has the name %q", text, word)
			}
		}
	})
}

func TestOrderCheck(t *testing.T) {
	t.Parallel()
	second := cluster.Duration(time.Second)
	for _, test := range []struct {
		order Order
		says  string
	}{
		{Order{Kind: Pause, Target: "cp1", For: second}, ""},
		{Order{Kind: Cut, Target: "cp1|cp2", OneWay: true, Ports: []int{1, 65535}, For: second}, ""},
		{Order{Kind: Kill, Target: "cp1"}, ""},
		{Order{Kind: Kill, Target: "cp1", For: second}, "over at once"},
		{Order{Kind: Stop, Target: "cp1/etcd", For: second}, "over at once"},
		{Order{Kind: Pause, Target: "cp1", For: -second}, "cannot last"},
		{Order{Kind: Pause, Target: "cp1", OneWay: true}, "only a cut"},
		{Order{Kind: Pause, Target: "cp1", Ports: []int{1}}, "only a cut"},
		{Order{Kind: Cut, Target: "cp1", Ports: []int{0}}, "0 is no TCP port"},
		{Order{Kind: Cut, Target: "cp1", Ports: []int{2380, 65536}}, "65536 is no TCP port"},
		{Order{Kind: Cut, Target: ""}, "cannot read"},
	} {
		err := test.order.Check()
		if test.says == "" && err != nil {
			t.Errorf("%+v: %v", test.order, err)
		}
		if test.says != "" {
			says(t, err, test.says)
		}
	}
}

func TestNames(t *testing.T) {
	t.Parallel()
	nodes := []string{"cp1", "cp2", "worker1"}
	ok := Target{Left: []string{"leader"}, Right: []string{"cp1", "worker1"}}
	if err := ok.Check(nodes); err != nil {
		t.Error(err)
	}
	says(t, Target{Left: []string{"worke1"}}.Check(nodes), `no machine "worke1": did you mean worker1? there are leader, vip, cp1, cp2, worker1`)
	says(t, Target{Left: []string{"cp1"}, Right: []string{"laeder"}}.Check(nodes), "did you mean leader?")
	says(t, Target{Left: []string{"elsewhere"}}.Check(nodes), `no machine "elsewhere": there are`)
}

func TestResolve(t *testing.T) {
	t.Parallel()
	lead := func(name string) (string, error) {
		switch name {
		case Leader:
			return "cp1", nil
		case "cp1", "cp2", "cp3":
			return name, nil
		}
		return "", fmt.Errorf("no %s", name)
	}
	for _, test := range []struct{ text, want, says string }{
		{"leader|cp2,cp3", "cp1|cp2,cp3", ""},
		{"leader,cp1|cp2", "cp1|cp2", ""},
		{"cp2,leader", "cp2,cp1", ""},
		{"leader|cp2,cp1", "", "cp1 is on both sides"},
		{"cp2|cp2", "", "cp2 is on both sides"},
		{"cp2|cp9", "", "no cp9"},
	} {
		target, err := Parse(Cut, test.text)
		if err != nil {
			t.Fatal(err)
		}
		got, err := target.Resolve(lead)
		if test.says != "" {
			if err == nil || !strings.Contains(err.Error(), test.says) {
				t.Errorf("%s: got %v", test.text, err)
			}
			continue
		}
		if err != nil || got.String() != test.want || target.String() != test.text {
			t.Errorf("%s became %s (%v)", target, got, err)
		}
	}
}

var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func at(seconds int) time.Time { return start.Add(time.Duration(seconds) * time.Second) }

func mustParse(t *testing.T, o Order) Target {
	t.Helper()
	target, err := Parse(o.Kind, o.Target)
	if err != nil {
		t.Fatal(err)
	}
	return target
}

func TestLedger(t *testing.T) {
	t.Parallel()
	l := NewLedger(nil)
	var lines []Fault
	begin := func(now int, o Order) {
		f := l.Next(o, mustParse(t, o), at(now))
		l.Begin(f)
		lines = append(lines, f)
	}
	if _, ok := l.Deadline(); ok {
		t.Error("nothing is due, ever")
	}
	begin(0, Order{Kind: Cut, Target: "cp1|cp2"})
	begin(1, Order{Kind: Pause, Target: "cp1", For: cluster.Duration(30 * time.Second)})
	begin(2, Order{Kind: Kill, Target: "cp3/etcd"})
	begin(3, Order{Kind: Pause, Target: "cp2", For: cluster.Duration(5 * time.Second)})
	ids := func(list []Fault) (text string) {
		for _, f := range list {
			text += f.ID + " "
		}
		return text
	}
	if ids(l.All()) != "f1 f2 f3 f4 " || ids(l.Active()) != "f1 f2 f4 " {
		t.Errorf("all %s, active %s", ids(l.All()), ids(l.Active()))
	}
	if f, _ := l.Get("f3"); f.Active() || f.Why != EndOnce || f.End != at(2) {
		t.Errorf("a kill is %+v", f)
	}
	if next, ok := l.Deadline(); !ok || next != at(8) {
		t.Errorf("the next is due at %v", next)
	}
	if ids(l.Due(at(7))) != "" || ids(l.Due(at(8))) != "f4 " || ids(l.Due(at(60))) != "f2 f4 " {
		t.Errorf("due: %s, %s, %s", ids(l.Due(at(7))), ids(l.Due(at(8))), ids(l.Due(at(60))))
	}
	f, ok := l.End("f4", EndTimer, at(8))
	if !ok || f.End != at(8) || f.Why != EndTimer {
		t.Errorf("ended as %+v, %v", f, ok)
	}
	for _, id := range []string{"f4", "f3", "f9", ""} {
		if f, ok := l.End(id, EndHeal, at(9)); ok {
			t.Errorf("ended once more: %+v", f)
		}
	}
	lines = append(lines, f, Fault{ID: "fx", Order: Order{Kind: Cut}}, Fault{ID: "f007"}, Fault{})
	again := NewLedger(lines)
	if diff := cmp.Diff(l.All(), again.All()); diff != "" {
		t.Errorf("read again (-want +got):\n%s", diff)
	}
	if f := again.Next(Order{Kind: Cut, Target: "cp1"}, Target{}, at(10)); f.ID != "f5" {
		t.Errorf("the next is %s", f.ID)
	}
}

func TestText(t *testing.T) {
	t.Parallel()
	f := Fault{Order: Order{Kind: Cut, OneWay: true, Ports: []int{2380, 6444}}, Resolved: Target{Left: []string{"cp1"}, Right: []string{"cp2"}}}
	if got := f.Text(); got != "cp1|cp2, one way, port 2380 6444" {
		t.Errorf("got %q", got)
	}
}
