package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"kuorum/internal/cluster"
	"kuorum/internal/lab"
)

// testApp writes to files whose content the returned functions read.
func testApp(t *testing.T, env map[string]string) (a *app, out, talk func() string) {
	t.Helper()
	file := func() (*os.File, func() string) {
		f, err := os.Create(filepath.Join(t.TempDir(), "out"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() }) // its content was read before
		return f, func() string {
			data, err := os.ReadFile(f.Name())
			if err != nil {
				t.Fatal(err)
			}
			return string(data)
		}
	}
	stdout, out := file()
	stderr, talk := file()
	return &app{context: t.Context(), process: Process{
		Env: func(key string) string { return env[key] }, Out: stdout, Err: stderr,
	}}, out, talk
}

func TestLastLines(t *testing.T) {
	for _, tc := range []struct {
		data  string
		lines int
		want  string
	}{
		{"a\nb\nc\n", -1, "a\nb\nc\n"},
		{"a\nb\nc\n", 0, ""},
		{"a\nb\nc\n", 1, "c\n"},
		{"a\nb\nc\n", 2, "b\nc\n"},
		{"a\nb\nc\n", 3, "a\nb\nc\n"},
		{"a\nb\nc\n", 9, "a\nb\nc\n"},
		{"a\nb\nunfinished", 1, "unfinished"},
		{"a\nb\nunfinished", 2, "b\nunfinished"},
		{"unfinished", 0, ""},
		{"\n\n\n", 2, "\n\n"},
		{"", 3, ""},
	} {
		if got := string(lastLines([]byte(tc.data), tc.lines)); got != tc.want {
			t.Errorf("last %d of %q: got %q, want %q", tc.lines, tc.data, got, tc.want)
		}
	}
}

// TestTailer follows a log that grows, is rotated and emptied, and one that
// does not exist at first.
func TestTailer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "etcd.log")
	write := func(data string) {
		if err := os.WriteFile(path, []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var out bytes.Buffer
	tail := tailer{out: &out, offsets: map[string]int64{}}
	step := func(do func(name, path string) error, want string) {
		t.Helper()
		out.Reset()
		if err := do("etcd", path); err != nil {
			t.Fatal(err)
		}
		if got := out.String(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	start := func(name, path string) error { return tail.start(name, path, 1) }
	step(start, "")
	step(tail.grow, "")
	write("one\ntwo\n")
	step(tail.grow, "one\ntwo\n")
	step(tail.grow, "")
	write("one\ntwo\nthree\n")
	step(tail.grow, "three\n")
	write("new\n") // rotated: shorter than what was read
	step(tail.grow, "new\n")
	write("")
	step(tail.grow, "")
	write("a\nb\n")
	step(start, "b\n")
	step(tail.grow, "")
	tail.prefix = true
	write("a\nb\nlast\nlines")
	step(tail.grow, fmt.Sprintf("%-24s last\n%-24s lines\n", "etcd", "etcd"))
}

func TestTailerEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		tail := tailer{out: &bytes.Buffer{}, offsets: map[string]int64{}}
		if err := tail.follow(ctx, map[string]string{"etcd": "/nowhere/etcd.log"}); err != nil {
			t.Errorf("the end of following is no error: %v", err)
		}
	})
}

func TestTakeNode(t *testing.T) {
	for _, tc := range []struct {
		args []string
		name string
		rest []string
		bad  bool
	}{
		{nil, "", nil, false},
		{[]string{"images", "ls"}, "", []string{"images", "ls"}, false},
		{[]string{"--node", "cp1", "images"}, "cp1", []string{"images"}, false},
		{[]string{"--node=cp1", "images"}, "cp1", []string{"images"}, false},
		{[]string{"images", "--node", "cp1"}, "", []string{"images", "--node", "cp1"}, false},
		{[]string{"--node"}, "", nil, true},
		{[]string{"--nodes", "x"}, "", []string{"--nodes", "x"}, false},
	} {
		name, rest, err := takeNode(tc.args)
		if name != tc.name || !slices.Equal(rest, tc.rest) || (err != nil) != tc.bad {
			t.Errorf("%q: got %q, %q, %v", tc.args, name, rest, err)
		}
	}
}

func TestArguments(t *testing.T) {
	for _, tc := range []struct{ args, want []string }{
		{[]string{"kuorum", "up"}, []string{"up"}},
		{[]string{"/usr/local/bin/kuorum"}, []string{}},
		{[]string{"/usr/local/bin/kubectl", "get", "-o", "wide"}, []string{"kubectl", "get", "-o", "wide"}},
		{[]string{"etcdctl"}, []string{"etcdctl"}},
		{[]string{"my-kubectl", "get"}, []string{"get"}},
	} {
		if got := arguments(tc.args); !slices.Equal(got, tc.want) {
			t.Errorf("%q: got %q, want %q", tc.args, got, tc.want)
		}
	}
}

// TestEnviron: programs see the first of two variables of one name, so ours
// must not stand behind the caller's.
func TestEnviron(t *testing.T) {
	a, _, _ := testApp(t, map[string]string{"KUBECONFIG": "/theirs", "ETCDCTL_CERT": "/theirs", "PATH": "/bin"})
	a.process.Environ = []string{"PATH=/bin", "KUBECONFIG=/theirs", "ETCDCTL_CERT=/theirs", "ETCDCTL_KEY="}
	before := slices.Clone(a.process.Environ)
	got := a.environ(map[string]string{"KUBECONFIG": "/ours", "ETCDCTL_CERT": "/ours", "ETCDCTL_KEY": "/ours"})
	slices.Sort(got)
	want := []string{"ETCDCTL_CERT=/theirs", "ETCDCTL_KEY=/ours", "KUBECONFIG=/ours", "PATH=/bin"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(before, a.process.Environ); diff != "" {
		t.Errorf("our own environment changed:\n%s", diff)
	}
}

func TestPlainProgress(t *testing.T) {
	for _, tc := range []struct {
		env  map[string]string
		want string
	}{
		{map[string]string{"LANG": "C"}, "[ok] first (1.5s)\n[failed] second (0.0s)\n"},
		{nil, "[ok] first (1.5s)\n[failed] second (0.0s)\n"},
		{map[string]string{"LANG": "de_DE.UTF-8"}, "✓ first (1.5s)\n✗ second (0.0s)\n"},
		{map[string]string{"LANG": "de_DE.UTF-8", "LC_ALL": "C"}, "[ok] first (1.5s)\n[failed] second (0.0s)\n"},
		{map[string]string{"LC_CTYPE": "C.utf8"}, "✓ first (1.5s)\n✗ second (0.0s)\n"},
	} {
		a, out, talk := testApp(t, tc.env)
		for _, quiet := range []bool{false, true} {
			a.quiet = quiet
			p := a.newProgress()
			p.Started("first")
			p.Done("first", 1500*time.Millisecond)
			p.Started("second")
			p.Failed("second", 0)
		}
		if talk() != tc.want || out() != "" {
			t.Errorf("%v: got %q and %q", tc.env, talk(), out())
		}
	}
}

func TestFinish(t *testing.T) {
	failed := exec.Command("sh", "-c", "exit 7").Run()
	interrupted, cancel := context.WithCancelCause(t.Context())
	cancel(errInterrupted)
	for _, tc := range []struct {
		name string
		ctx  context.Context
		err  error
		code int
		talk string
	}{
		{"no error", t.Context(), nil, 0, ""},
		{"any error", t.Context(), errors.New("broken"), 1, "error: broken\n"},
		{"a program's own", t.Context(), fmt.Errorf("wrapped: %w", failed), 7, ""},
		{
			"a problem because of a program", t.Context(),
			&cluster.Problem{What: "cannot import", Err: fmt.Errorf("on cp1: %w: no space", failed), Do: "try again"},
			1, "error: cannot import\n  why: on cp1: exit status 7: no space\n  do:  try again\n",
		},
		{"interrupted", interrupted, errors.New("context canceled"), 130, "interrupted: run the same command again to complete it\n"},
		{
			"all parts", t.Context(),
			fmt.Errorf("outer: %w", &cluster.Problem{What: "what", Why: "one\ntwo", Do: "first\n   second", Log: "/log", Exit: 5}),
			5, "error: what\n  why: one\n       two\n  do:  first\n       second\n  log: /log\n",
		},
		{"both reasons", t.Context(), &cluster.Problem{What: "what", Why: "why", Err: errors.New("cause")}, 1, "error: what\n  why: why: cause\n"},
		{"joined", t.Context(), errors.Join(&cluster.Problem{What: "late", Exit: cluster.ExitTimeout}, errors.New("other")), 6, "error: late\n"},
	} {
		a, out, talk := testApp(t, nil)
		if code := a.finish(tc.ctx, tc.err); code != tc.code || talk() != tc.talk || out() != "" {
			t.Errorf("%s: got %d, %q, want %d, %q", tc.name, code, talk(), tc.code, tc.talk)
		}
	}
}

func TestPrintData(t *testing.T) {
	a, out, _ := testApp(t, nil)
	if err := a.printData(map[string]int{"b": 1, "a": 2}, "json"); err != nil {
		t.Fatal(err)
	}
	if err := a.printData(map[string]int{"b": 1, "a": 2}, "yaml"); err != nil {
		t.Fatal(err)
	}
	if got := out(); got != "{\n  \"a\": 2,\n  \"b\": 1\n}\na: 2\nb: 1\n" {
		t.Errorf("got %q", got)
	}
	err := a.printData(nil, "xml")
	if problem, ok := errors.AsType[*cluster.Problem](err); !ok || problem.ExitCode() != cluster.ExitUsage {
		t.Errorf("got %v", err)
	}
}

func TestPrintMachines(t *testing.T) {
	a, out, talk := testApp(t, nil)
	machines := []lab.MachineStatus{
		{Name: "cp1", Role: cluster.RoleServer, Address: "198.18.0.11", Power: lab.PowerOn, Agent: &cluster.NodeStatus{
			Components: []cluster.ComponentStatus{{Name: "etcd", Phase: "backoff", Restarts: 2}, {Name: "kubelet", Phase: "ready", Restarts: 1}},
		}},
		{Name: "w1", Role: cluster.RoleWorker, Address: "198.18.0.101", Power: lab.PowerOff},
	}
	if err := a.printMachines(labSummary{Name: "one", Machines: machines}); err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(strings.Split(out(), "\n")[1])
	if diff := cmp.Diff([]string{"cp1", "server", "198.18.0.11", "on", "no", "3", "etcd"}, fields); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if err := a.printMachines(labSummary{Name: "one"}); err != nil || talk() != "lab one is stopped: kuorum up one\n" {
		t.Errorf("got %v, %q", err, talk())
	}
	if err := a.printMachines(labSummary{Error: "broken"}); err == nil || err.Error() != "broken" {
		t.Errorf("got %v", err)
	}
}

func TestOnlyMachinesThatAreOnAreChosen(t *testing.T) {
	s := lab.Status{Name: "one", Machines: []lab.MachineStatus{
		{Name: "e1", Role: cluster.RoleEtcd, Power: lab.PowerOn}, // runs no containerd
		{Name: "cp1", Role: cluster.RoleServer, Power: lab.PowerOff}, {Name: "cp2", Role: cluster.RoleServer, Power: lab.PowerOn},
	}}
	if m, err := someMachine(s); err != nil || m.Name != "cp2" {
		t.Errorf("got %q, %v", m.Name, err)
	}
	_, err := someMachine(lab.Status{Name: "one"})
	if problem, ok := errors.AsType[*cluster.Problem](err); !ok || problem.ExitCode() != cluster.ExitNoQuorum {
		t.Errorf("got %v", err)
	}
}
