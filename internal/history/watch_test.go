package history

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// state is what a look finds from a moment on.
type state struct {
	from   time.Duration // since the start
	sights func(now time.Time) []Sight
}

// watched has a Watch look at states for a while, and returns what is written down,
// with times since the start.
func watched(t *testing.T, long time.Duration, states []state) (lines []string) {
	t.Helper()
	b := bookIn(t.TempDir())
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		looks := 0
		w := Watch{Book: b, Log: slog.New(slog.DiscardHandler), Look: func(context.Context) []Sight {
			looks++
			now := states[0]
			for _, s := range states {
				if time.Since(begin) >= s.from {
					now = s
				}
			}
			if now.sights == nil {
				return nil
			}
			return now.sights(time.Now())
		}}
		ctx, cancel := context.WithTimeout(t.Context(), long)
		defer cancel()
		w.Run(ctx)
		if want := int(long / Every); looks < want || looks > want+1 {
			t.Errorf("it looked %d times in %v", looks, long)
		}
		for _, c := range told(t, b) {
			lines = append(lines, c.At.Sub(begin).String()+" "+c.What+" "+c.From+">"+c.To+" "+c.Why)
		}
	})
	return lines
}

// TestReasons: only what is truly known is said.
func TestReasons(t *testing.T) {
	const second = time.Second
	renews := func(holder string, term uint64, every time.Duration) func(time.Time) []Sight {
		return func(now time.Time) []Sight {
			return []Sight{{What: Scheduler, Holder: holder, Term: term, Since: now.Truncate(time.Hour), Renewed: now.Truncate(every), Lasts: 15 * second}}
		}
	}
	frozen := func(holder string, term uint64) func(time.Time) []Sight { return renews(holder, term, time.Hour) }
	// at a fixed moment, as a lease has it
	taken := func(holder string, term uint64, renewed time.Duration) func(time.Time) []Sight {
		return func(now time.Time) []Sight {
			s := renews(holder, term, second)(now)
			s[0].Since = now.Truncate(time.Hour).Add(renewed)
			return s
		}
	}
	raft := func(holder string, term uint64) func(time.Time) []Sight {
		return func(time.Time) []Sight { return []Sight{{What: Etcd, Holder: holder, Term: term}} }
	}
	for name, tc := range map[string]struct {
		states []state
		want   []string
	}{
		"nothing changes": {[]state{{0, renews("cp1", 3, second)}}, []string{"0s scheduler >cp1 "}},
		"given up": {
			[]state{{0, renews("cp1", 3, second)}, {9 * second, taken("", 3, 9*second)}, {11 * second, taken("cp2", 4, 11*second)}},
			[]string{"0s scheduler >cp1 ", "9s scheduler cp1> cp1 gave it up", "11s scheduler cp1>cp2 "},
		},
		"not renewed": {
			[]state{{0, renews("cp1", 3, second)}, {10 * second, frozen("cp1", 3)}, {27 * second, taken("cp2", 4, 27*second)}},
			[]string{"0s scheduler >cp1 ", "27s scheduler cp1>cp2 cp1 had not renewed it for 16s"},
		},
		"given up between two looks": {
			[]state{{0, renews("cp1", 3, second)}, {9 * second, taken("cp2", 4, 9*second)}},
			[]string{"0s scheduler >cp1 ", "9s scheduler cp1>cp2 "},
		},
		"nobody could be asked for long": {
			[]state{{0, renews("cp1", 3, second)}, {5 * second, nil}, {50 * second, taken("cp2", 6, 20*second)}},
			[]string{"0s scheduler >cp1 ", "20s scheduler cp1>cp2 "},
		},
		"etcd": {
			[]state{{0, raft("cp1", 2)}, {5 * second, nil}, {9 * second, raft("cp2", 4)}, {21 * second, raft("cp2", 5)}},
			[]string{"0s etcd >cp1 elected in term 2", "10s etcd cp1>cp2 elected in term 4", "22s etcd cp2>cp2 elected in term 5"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, watched(t, 61*second, tc.states)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestDiskIsFullForLong: it is told once, and nothing is lost.
func TestDiskIsFullForLong(t *testing.T) {
	dir := t.TempDir()
	b, path := bookIn(dir), filepath.Join(dir, "leaders.jsonl")
	must(t, os.Mkdir(path, 0o700))
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		w := Watch{Book: b, Log: slog.New(slog.NewTextHandler(&log, nil)), Look: func(context.Context) []Sight {
			return []Sight{{What: Etcd, Holder: "cp1", Term: 1}}
		}}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			w.Run(ctx)
		}()
		<-time.After(9 * time.Second)
		synctest.Wait()
		must(t, os.Remove(path))
		<-time.After(3 * time.Second)
		cancel()
		<-done
		if n := strings.Count(log.String(), "is not written down"); n != 1 {
			t.Errorf("it is told %d times:\n%s", n, &log)
		}
	})
	if got := told(t, b); len(got) != 1 || got[0].To != "cp1" {
		t.Errorf("got %+v", got)
	}
}
