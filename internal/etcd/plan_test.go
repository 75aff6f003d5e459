package etcd

import (
	"errors"
	"maps"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"kuorum/internal/cluster"
)

// threeFragmented is a cluster that m2 leads, and where it pays everywhere.
func threeFragmented() map[string]cluster.EtcdStatus {
	members := []cluster.EtcdMember{{ID: "1", Name: "m1"}, {ID: "2", Name: "m2"}, {ID: "3", Name: "m3"}}
	statuses := map[string]cluster.EtcdStatus{}
	for _, m := range members {
		statuses[m.Name] = cluster.EtcdStatus{ID: m.ID, Leader: "2", DBBytes: 64 << 20, DBUsedBytes: 8 << 20, Members: members}
	}
	return statuses
}

func TestDefragOrder(t *testing.T) {
	for name, test := range map[string]struct {
		of     string // whose status is changed
		change func(*cluster.EtcdStatus)
		want   []string
		why    string // of the refusal
	}{
		"all":               {want: []string{"m1", "m3", "m2"}},
		"small":             {of: "m1", change: func(s *cluster.EtcdStatus) { s.DBBytes, s.DBUsedBytes = 16<<20-1, 1 }, want: []string{"m3", "m2"}},
		"just large enough": {of: "m1", change: func(s *cluster.EtcdStatus) { s.DBBytes, s.DBUsedBytes = 16<<20, 12<<20-1 }, want: []string{"m1", "m3", "m2"}},
		"three quarters":    {of: "m3", change: func(s *cluster.EtcdStatus) { s.DBUsedBytes = 48 << 20 }, want: []string{"m1", "m2"}},
		"leader does not":   {of: "m2", change: func(s *cluster.EtcdStatus) { s.DBUsedBytes = 64 << 20 }, want: []string{"m1", "m3"}},
		"full":              {of: "m3", change: func(s *cluster.EtcdStatus) { s.DBUsedBytes, s.Alarms = 64<<20, alarm("NOSPACE") }, want: []string{"m1", "m3", "m2"}},
		"learner":           {of: "m1", change: func(s *cluster.EtcdStatus) { s.Learner = true }, want: []string{"m3", "m2"}},
		"does not answer":   {of: "m1", change: func(s *cluster.EtcdStatus) { *s = cluster.EtcdStatus{Error: "connection refused"} }, why: "m1: connection refused"},
		"no leader":         {of: "m3", change: func(s *cluster.EtcdStatus) { s.Leader = "" }, why: "m3: knows of no leader"},
		"another leader":    {of: "m3", change: func(s *cluster.EtcdStatus) { s.Leader = "3" }, why: "the members know different leaders"},
		"corrupt":           {of: "m1", change: func(s *cluster.EtcdStatus) { s.Alarms = alarm("CORRUPT") }, why: "member 1: its data is not that of the others"},
		"voter nobody asked": {of: "m1", change: func(s *cluster.EtcdStatus) {
			s.Members = append(s.Members[:3:3], cluster.EtcdMember{ID: "4", Name: "m4"})
		}, why: "voter 4 m4: was not asked"},
		"learner to come": {of: "m1", change: func(s *cluster.EtcdStatus) {
			s.Members = append(s.Members[:3:3], cluster.EtcdMember{ID: "4", Learner: true})
		}, want: []string{"m1", "m3", "m2"}},
	} {
		t.Run(name, func(t *testing.T) {
			statuses := threeFragmented()
			if test.change != nil {
				s := statuses[test.of]
				test.change(&s)
				statuses[test.of] = s
			}
			before := maps.Clone(statuses)
			got, err := DefragOrder(statuses)
			if diff := cmp.Diff(test.want, got, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("order differs (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(before, statuses); diff != "" {
				t.Errorf("statuses were changed:\n%s", diff)
			}
			if test.why == "" {
				mustDo(t, err)
				return
			}
			p, _ := errors.AsType[*cluster.Problem](err)
			if p == nil || p.ExitCode() != cluster.ExitRefused || p.Why != test.why {
				t.Errorf("refused with %#v, want %q", p, test.why)
			}
		})
	}
	if _, err := DefragOrder(nil); exitCode(err) != cluster.ExitRefused {
		t.Errorf("order of nobody: %v", err)
	}
}

func TestDefragAll(t *testing.T) {
	statuses := threeFragmented()
	for name, s := range statuses {
		s.DBUsedBytes, s.Learner = s.DBBytes, name == "m3"
		statuses[name] = s
	}
	got, err := DefragAll(statuses)
	if diff := cmp.Diff([]string{"m1", "m2"}, got); diff != "" || err != nil {
		t.Errorf("(-want +got):\n%s%v", diff, err)
	}
	statuses["m1"] = cluster.EtcdStatus{Error: "connection refused"}
	if _, err := DefragAll(statuses); exitCode(err) != cluster.ExitRefused {
		t.Errorf("all, while one does not answer: %v", err)
	}
}

func alarm(kind string) []cluster.EtcdAlarm { return []cluster.EtcdAlarm{{Member: "1", Kind: kind}} }

// TestDefragRefusalNamesAll holds that a person can mend all in one go.
func TestDefragRefusalNamesAll(t *testing.T) {
	statuses := threeFragmented()
	statuses["m1"] = cluster.EtcdStatus{Error: "connection refused"}
	m3 := statuses["m3"]
	m3.Leader = ""
	statuses["m3"] = m3
	_, err := DefragOrder(statuses)
	p, _ := errors.AsType[*cluster.Problem](err)
	if want := "m1: connection refused\nm3: knows of no leader"; p == nil || p.Why != want {
		t.Errorf("refused with %#v, want %q", p, want)
	}
	if p != nil && !strings.Contains(p.What, "refused to defragment") {
		t.Errorf("what: %s", p.What)
	}
}

func TestCatchUp(t *testing.T) {
	for _, test := range []struct {
		leader, learner uint64
		want            int
	}{
		{0, 0, 0},
		{0, 5, 0}, // the leader does not answer
		{5, 0, 0},
		{1000, 1, 0},
		{1000, 899, 89},
		{1000, 900, 90},
		{1000, 999, 99},
		{1000, 1000, 100},
		{1000, 1001, 100}, // asked a moment later
		{math.MaxUint64, math.MaxUint64 - 1, 99},
		{math.MaxUint64, math.MaxUint64, 100},
		{1, math.MaxUint64, 100},
	} {
		got := CatchUp(cluster.EtcdStatus{RaftIndex: test.leader}, cluster.EtcdStatus{AppliedIndex: test.learner})
		if got != test.want {
			t.Errorf("%d of %d are %d%%, want %d%%", test.learner, test.leader, got, test.want)
		}
	}
}

// TestNewest: the word of a voter with a leader counts most, in the newest term,
// and of these the leader's.
func TestNewest(t *testing.T) {
	of := func(id, leader string, term uint64) cluster.EtcdStatus {
		return cluster.EtcdStatus{ID: id, Leader: leader, Term: term}
	}
	silent, learner := cluster.EtcdStatus{Error: "x"}, of("l", "a", 9)
	learner.Learner = true
	for _, test := range []struct {
		name     string
		statuses []cluster.EtcdStatus
		want     cluster.EtcdStatus
	}{
		{"the leader", []cluster.EtcdStatus{of("b", "a", 3), of("a", "a", 3), of("c", "a", 3)}, of("a", "a", 3)},
		{"a follower", []cluster.EtcdStatus{silent, of("b", "a", 3)}, of("b", "a", 3)},
		{"an old leader", []cluster.EtcdStatus{of("z", "z", 2), of("b", "a", 3)}, of("b", "a", 3)},
		{"cut off, in a later term", []cluster.EtcdStatus{of("z", "", 9), of("b", "a", 3)}, of("b", "a", 3)},
		{"a learner", []cluster.EtcdStatus{learner, of("b", "a", 3)}, of("b", "a", 3)},
		{"a learner alone", []cluster.EtcdStatus{silent, learner}, learner},
		{"nobody answers", []cluster.EtcdStatus{silent, silent}, silent},
	} {
		if diff := cmp.Diff(test.want, Newest(test.statuses)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.name, diff)
		}
	}
	if Newest(nil).Error == "" {
		t.Error("nobody was asked, and that is no error")
	}
}
