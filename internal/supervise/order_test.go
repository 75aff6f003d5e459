package supervise

import (
	"log/slog"
	"strings"
	"testing"
	"time"
)

func TestNewRefusesWhatCannotRun(t *testing.T) {
	ok := func(name string, after ...string) Process {
		return Process{Name: name, Path: "/bin/true", After: after}
	}
	for name, tc := range map[string]struct {
		processes []Process
		says      string // "" means accepted
	}{
		"nothing":        {nil, ""},
		"diamond":        {[]Process{ok("d", "b", "c"), ok("b", "a"), ok("c", "a"), ok("a")}, ""},
		"twice":          {[]Process{ok("a"), ok("a")}, "declared twice"},
		"unknown":        {[]Process{ok("a", "b")}, `"b", which is not declared`},
		"itself":         {[]Process{ok("a", "a")}, "a wait for each other"},
		"circle":         {[]Process{ok("x"), ok("a", "c", "x"), ok("b", "a"), ok("c", "b")}, "a, b, c wait for each other"},
		"behind circle":  {[]Process{ok("a", "b"), ok("b", "a"), ok("z", "b")}, "wait for each other"},
		"no name":        {[]Process{ok("")}, "name"},
		"path as name":   {[]Process{ok("../a")}, "name"},
		"temporary file": {[]Process{ok(".tmp-a")}, "name"},
		"relative path":  {[]Process{{Name: "a", Path: "bin/a"}}, "not absolute"},
		"with another":   {[]Process{ok("a"), {Name: "b", Path: "/bin/b", With: []string{"a"}}}, "does not come after"},
		"negative":       {[]Process{{Name: "a", Path: "/bin/a", StopTimeout: -time.Second}}, "negative"},
	} {
		_, err := New(t.TempDir(), slog.New(slog.DiscardHandler), tc.processes)
		switch {
		case tc.says == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case tc.says != "" && (err == nil || !strings.Contains(err.Error(), tc.says)):
			t.Errorf("%s: error is %v, want one that says %q", name, err, tc.says)
		}
	}
}

func TestBackoff(t *testing.T) {
	want := []time.Duration{0, 0, 250, 500, 1000, 2000, 4000, 8000, 10000, 10000}
	for failures, ms := range want {
		if got := Backoff(failures); got != ms*time.Millisecond {
			t.Errorf("Backoff(%d) is %s, want %s", failures, got, ms*time.Millisecond)
		}
	}
	for _, failures := range []int{-1, 1 << 40} {
		if got := Backoff(failures); got < 0 || got > maxBackoff {
			t.Errorf("Backoff(%d) is %s", failures, got)
		}
	}
}
