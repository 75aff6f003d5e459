package datadir

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"kuorum/internal/cluster"
)

func noon() time.Time { return time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC) }

func TestMarkIsKept(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "sub", "mark.json")
	if got, err := ReadMark(path); err != nil || got != (Mark{}) {
		t.Errorf("before the first: %+v, %v", got, err)
	}
	for _, want := range []Mark{{"c1", "a1", 7, noon()}, {"c1", "a1", 5, noon()}} { // it may go back, see Guard.Accept
		if err := WriteMark(path, want); err != nil {
			t.Fatal(err)
		}
		got, err := ReadMark(path)
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("%v (-want +got):\n%s", err, diff)
		}
	}
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := ReadMark(path); err == nil {
		t.Errorf("of a damaged file: %+v", got)
	}
}

func TestCheck(t *testing.T) {
	t.Parallel()
	last := Position{Cluster: 0xc1, Member: 0xa1, Index: 100, Term: 3}
	mark := func(index uint64) Mark { return Mark{Cluster: "c1", Member: "a1", Index: index, At: noon()} }
	other := func(change func(*Mark)) Mark {
		m := mark(900)
		change(&m)
		return m
	}
	old := func(had uint64) *cluster.OldData { return &cluster.OldData{Has: 100, Had: had, At: noon()} }
	for name, test := range map[string]struct {
		marks  []Mark
		voters int
		want   *cluster.OldData
	}{
		"no mark":               {nil, 3, nil},
		"a mark of nobody":      {[]Mark{{}}, 3, nil},
		"as far":                {[]Mark{mark(100)}, 3, nil},
		"further than its mark": {[]Mark{mark(1)}, 3, nil},
		"one entry lost":        {[]Mark{mark(101)}, 3, old(101)},
		"the furthest counts":   {[]Mark{mark(99), mark(150), mark(120)}, 5, old(150)},
		"another member":        {[]Mark{other(func(m *Mark) { m.Member = "a2" })}, 3, nil},
		"another cluster":       {[]Mark{other(func(m *Mark) { m.Cluster = "c2" })}, 3, nil},
		"one voter":             {[]Mark{mark(900)}, 1, nil},
		"two voters":            {[]Mark{mark(900)}, 2, nil},
		"voters not known":      {[]Mark{mark(900)}, 0, nil},
	} {
		if diff := cmp.Diff(test.want, Check(last, test.marks, test.voters)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestSaved(t *testing.T) {
	t.Parallel()
	type look struct {
		process   int
		committed uint64
		want      uint64 // 0: nothing new
	}
	for name, looks := range map[string][]look{
		"the one before":         {{7, 10, 0}, {7, 12, 10}, {7, 13, 12}},
		"nothing happens":        {{7, 10, 0}, {7, 10, 0}, {7, 10, 0}, {7, 11, 10}, {7, 11, 0}},
		"not asked for yet":      {{7, 0, 0}, {7, 9, 0}, {7, 10, 9}},
		"another process":        {{7, 10, 0}, {8, 12, 0}, {8, 13, 12}},
		"it starts further back": {{7, 10, 0}, {8, 0, 0}, {8, 9, 0}, {8, 11, 9}},
		"it goes back":           {{7, 10, 0}, {7, 9, 0}, {7, 11, 9}},
	} {
		var s Saved
		for i, l := range looks {
			if got, ok := s.See(l.process, l.committed); got != l.want || ok != (l.want > 0) {
				t.Errorf("%s, look %d: %d, %v; want %d", name, i+1, got, ok, l.want)
			}
		}
	}
}

// desk is a guard of data that ends at entry 100, with a mark of 100, and what was
// asked and logged.
type desk struct {
	*Guard
	others []Mark
	asked  int
	log    strings.Builder
}

func newDesk(t *testing.T) *desk {
	t.Helper()
	d := &desk{}
	dir := writeLog(t, map[string][]byte{first: newFile(0).entry(100, 1).data})
	d.Guard = &Guard{
		Node: "cp3", Dir: dir, Mark: filepath.Join(dir, "mark.json"), Accept: filepath.Join(dir, "accept"), Voters: func() int { return 3 },
		Others: func(context.Context) []Mark { d.asked++; return d.others }, Log: slog.New(slog.NewTextHandler(&d.log, nil)),
	}
	d.note(t, 100)
	return d
}

func (d *desk) note(t *testing.T, index uint64) {
	t.Helper()
	if err := WriteMark(d.Mark, Mark{"c1", "a1", index, noon()}); err != nil {
		t.Fatal(err)
	}
}

func (d *desk) replaceLog(t *testing.T, data []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(d.Dir, "member", "wal", first), data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestGuardLets(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*testing.T, *desk){
		"as it was":  func(*testing.T, *desk) {},
		"no mark":    func(t *testing.T, d *desk) { t.Helper(); _ = os.Remove(d.Mark) },
		"a bad mark": func(t *testing.T, d *desk) { t.Helper(); _ = os.WriteFile(d.Mark, []byte("x"), 0o600) },
		"two voters": func(t *testing.T, d *desk) { t.Helper(); d.note(t, 200); d.Voters = func() int { return 2 } },
		"damaged": func(t *testing.T, d *desk) {
			t.Helper()
			d.note(t, 200)
			d.replaceLog(t, newFile(0).add(9, nil).data)
		},
		"accepted": func(t *testing.T, d *desk) {
			t.Helper()
			d.note(t, 200)
			if err := os.WriteFile(d.Accept, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		},
	} {
		d := newDesk(t)
		change(t, d)
		if err := d.May(t.Context()); err != nil || d.Old() != nil {
			t.Errorf("%s: %v, %+v", name, err, d.Old())
		}
	}
}

// TestAcceptedDataStaysAccepted once the marks are of it, and the file that said so
// is gone: etcd may end at any time and must start again.
func TestAcceptedDataStaysAccepted(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	d.note(t, 200)
	if d.May(t.Context()) == nil {
		t.Fatal("older data is not refused")
	}
	synctest.Test(t, func(t *testing.T) {
		<-time.After(2 * againAfter)
		if err := os.WriteFile(d.Accept, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		d.decided = time.Time{}
		if err := d.May(t.Context()); err != nil {
			t.Fatalf("accepted data is refused: %v", err)
		}
	})
	d.note(t, 9)
	if err := os.Remove(d.Accept); err != nil {
		t.Fatal(err)
	}
	if err := d.May(t.Context()); err != nil {
		t.Errorf("it is refused at the next start: %v", err)
	}
}

// TestRefusedStaysRefusedWhileDataIsReplaced: between the removal of the old files and
// the end of the copy of new ones etcd must not begin anew.
func TestRefusedStaysRefusedWhileDataIsReplaced(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	d.note(t, 200)
	if d.May(t.Context()) == nil {
		t.Fatal("older data is not refused")
	}
	if err := os.RemoveAll(filepath.Join(d.Dir, "member")); err != nil {
		t.Fatal(err)
	}
	d.decided = time.Time{}
	if d.May(t.Context()) == nil {
		t.Error("etcd may start on nothing")
	}
	if _, err := os.Stat(d.Mark); err != nil {
		t.Errorf("the mark is gone: %v", err)
	}
}

// TestGuardRefuses by its own mark or by another node's, asks for it once, says so
// once, and takes it back when newer data is there.
func TestGuardRefuses(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*testing.T, *desk){
		"its own": func(t *testing.T, d *desk) { t.Helper(); d.note(t, 200) },
		"another's": func(t *testing.T, d *desk) {
			t.Helper()
			d.others = []Mark{{"c1", "a2", 900, noon()}, {"c1", "a1", 200, noon()}}
		},
	} {
		d := newDesk(t)
		change(t, d)
		synctest.Test(t, func(t *testing.T) {
			for range 100 { // as supervise asks
				err := d.May(t.Context())
				problem, ok := errors.AsType[*cluster.Problem](err)
				if !ok || problem.Do != "kuorum etcd rebuild cp3" || problem.ExitCode() != cluster.ExitRefused {
					t.Fatalf("%s: %v", name, err)
				}
				d.others, d.Mark = nil, "/none" // the others are off now: it stays old
				<-time.After(250 * time.Millisecond)
			}
			if diff := cmp.Diff(&cluster.OldData{Has: 100, Had: 200, At: noon()}, d.Old()); diff != "" {
				t.Errorf("%s (-want +got):\n%s", name, diff)
			}
			if n := strings.Count(d.log.String(), "older than what it had"); n != 1 || d.asked != 1 {
				t.Errorf("%s: the others were asked %d times, and it was logged %d times:\n%s", name, d.asked, n, d.log.String())
			}
			d.replaceLog(t, newFile(0).entry(200, 1).data)
			<-time.After(againAfter)
			if err := d.May(t.Context()); err != nil || d.Old() != nil {
				t.Errorf("%s: with newer data it is %v", name, err)
			}
		})
	}
}

// TestFirstStart: nobody is asked, and notes about an earlier member, whose IDs the
// next one may get, are gone.
func TestFirstStart(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	d.note(t, 200)
	if err := errors.Join(os.RemoveAll(filepath.Join(d.Dir, "member")), os.WriteFile(d.Accept, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := d.May(t.Context()); err != nil || d.asked > 0 {
		t.Errorf("%v, %d asked", err, d.asked)
	}
	if left, err := filepath.Glob(filepath.Join(d.Dir, "*")); err != nil || len(left) > 0 {
		t.Errorf("left are %q, %v", left, err)
	}
}
