//go:build lab

// Package lab_test proves docs/guarantees.md on running labs: the real
// program, real machines in namespaces, the real kubectl. It needs root and
// what `make build` leaves in bin.
package lab_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	typed "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/clientcmd"

	"kuorum/internal/host"
)

// suite is what all tests share: a directory of their own for labs and
// kubeconfigs, and one three-server lab that is started when first asked for.
type suite struct {
	dir    string // KUORUM_STATE and kubeconfig live here
	binary string

	once   sync.Once
	shared *lab
	err    error
}

var tests suite

func TestMain(m *testing.M) {
	order := os.Getenv(crowdVariable)
	if order == "" {
		os.Exit(run(m))
	}
	if err := beCrowd(order); err != nil {
		fmt.Fprintln(os.Stderr, "the crowd:", err)
		os.Exit(1)
	}
}

func run(m *testing.M) int {
	before, err := takeSnapshot()
	if err != nil {
		fmt.Fprintln(os.Stderr, "cannot look at this host:", err)
		return 1
	}
	_, limit, err := host.Inotify()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = host.LimitInotify(limit) }() // `up` raises it, for as long as the host runs
	if tests.binary, err = filepath.Abs("../../bin/kuorum"); err == nil {
		_, err = os.Stat(tests.binary)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "cannot find kuorum: make build:", err)
		return 1
	}
	// Not the temporary directory, which may be a tmpfs: machines' disks
	// must be on a file system that can carry an overlay.
	if tests.dir, err = os.MkdirTemp("/var/tmp", "kuorum-test-"); err != nil {
		fmt.Fprintln(os.Stderr, "cannot make a directory:", err)
		return 1
	}
	code := m.Run()
	if os.Getenv("KUORUM_KEEP") != "" {
		fmt.Fprintln(os.Stderr, "labs are kept: KUORUM_STATE="+tests.dir)
		return code
	}
	return max(code, cleanUp(before))
}

// cleanUp removes every lab and compares the host with what it was.
func cleanUp(before snapshot) int {
	names, _ := filepath.Glob(filepath.Join(tests.dir, "labs", "*"))
	code := 0
	for _, name := range names {
		if info, err := os.Stat(name); err != nil || !info.IsDir() {
			continue
		}
		if out, err := tests.command("down", filepath.Base(name)).CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "cannot remove lab %s: %v\n%s", name, err, out)
			code = 1
		}
	}
	if err := os.RemoveAll(tests.dir); err != nil {
		fmt.Fprintln(os.Stderr, "cannot remove the tests' directory:", err)
		code = 1
	}
	after, err := takeSnapshot()
	if err != nil {
		fmt.Fprintln(os.Stderr, "cannot look at this host:", err)
		return 1
	}
	if diff := before.diff(after); diff != "" {
		fmt.Fprintln(os.Stderr, "the tests left something behind (-before +after):\n"+diff)
		code = 1
	}
	return code
}

// lab is one lab of the tests.
type lab struct{ name string }

// threeServers is the shared lab, whole: a test that breaks it mends it.
func threeServers(t *testing.T) *lab {
	t.Helper()
	tests.once.Do(func() {
		out, err := tests.command("up", "three", "--servers", "3").CombinedOutput()
		if err != nil {
			tests.err = fmt.Errorf("cannot bring the shared lab up: %w\n%s", err, out)
			return
		}
		tests.shared = &lab{name: "three"}
	})
	if tests.err != nil {
		t.Fatal(tests.err)
	}
	tests.shared.awaitReady(t)
	return tests.shared
}

// restShared stops the shared lab for the time of one test that needs more of
// the host than is left beside it.
func restShared(t *testing.T) {
	t.Helper()
	if tests.shared == nil {
		return
	}
	kuorum(t, "down", "--keep", tests.shared.name)
	t.Cleanup(func() { kuorum(t, "up", tests.shared.name) })
}

// ownLab brings a lab of its own up for one test.
func ownLab(t *testing.T, name string, args ...string) *lab {
	t.Helper()
	t.Cleanup(func() { kuorum(t, "down", name) })
	kuorum(t, append([]string{"up", name}, args...)...)
	return &lab{name: name}
}

func (s *suite) environ() []string {
	return []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + s.dir, "KUORUM_STATE=" + s.dir,
		"KUBECONFIG=" + filepath.Join(s.dir, "kubeconfig"), "LANG=C.UTF-8",
	}
}

func (s *suite) command(args ...string) *exec.Cmd {
	cmd := exec.Command(s.binary, args...)
	cmd.Env = s.environ()
	cmd.Dir = s.dir
	return cmd
}

// result of a command that may fail.
type result struct {
	out, talk string
	code      int
}

func try(t *testing.T, args ...string) result {
	t.Helper()
	return finish(t, tests.command(args...))
}

func finish(t *testing.T, cmd *exec.Cmd) result {
	t.Helper()
	var out, talk bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &talk
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("cannot run %v: %v", cmd.Args, err)
	}
	return result{out: out.String(), talk: talk.String(), code: cmd.ProcessState.ExitCode()}
}

// kuorum runs a command that must succeed and returns its data.
func kuorum(t *testing.T, args ...string) string {
	t.Helper()
	r := try(t, args...)
	if r.code != 0 {
		t.Fatalf("kuorum %s: exit code %d\n%s%s", strings.Join(args, " "), r.code, r.out, r.talk)
	}
	return r.out
}

func (l *lab) run(t *testing.T, args ...string) string {
	t.Helper()
	return kuorum(t, append([]string{"-c", l.name}, args...)...)
}

func (l *lab) kubectl(t *testing.T, args ...string) string {
	t.Helper()
	return l.run(t, append([]string{"kubectl"}, args...)...)
}

// on runs a command on a machine.
func (l *lab) on(t *testing.T, machine string, argv ...string) string {
	t.Helper()
	return l.run(t, append([]string{"lab", "console", machine, "--"}, argv...)...)
}

func (l *lab) client(t *testing.T) *typed.CoreV1Client {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", filepath.Join(tests.dir, "labs", l.name, "admin.conf"))
	if err != nil {
		t.Fatal(err)
	}
	config.QPS, config.Timeout = -1, 2*time.Second
	client, err := typed.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// machine and component are what `kuorum list -o json` says of them.
type machine struct {
	Name, Power string
	PID         int
	Agent       *struct {
		Ready      bool
		Started    time.Time
		Components []component
	}
	Error string
}

type component struct {
	Name, Phase string
	PID         int
	Restarts    int
	Message     string
}

func (l *lab) machines(t *testing.T) []machine {
	t.Helper()
	var list struct {
		Items []struct{ Machines []machine }
	}
	if err := json.Unmarshal([]byte(kuorum(t, "list", l.name, "-o", "json")), &list); err != nil {
		t.Fatal(err)
	}
	return list.Items[0].Machines
}

func (l *lab) machine(t *testing.T, name string) machine {
	t.Helper()
	list := l.machines(t)
	i := slices.IndexFunc(list, func(m machine) bool { return m.Name == name })
	if i < 0 {
		t.Fatalf("lab %s has no machine %s", l.name, name)
	}
	return list[i]
}

func (m machine) pids() map[string]int {
	pids := map[string]int{}
	for _, c := range m.Agent.Components {
		pids[c.Name] = c.PID
	}
	return pids
}

// awaitReady waits until every component of every machine is ready and every
// node too.
func (l *lab) awaitReady(t *testing.T) {
	t.Helper()
	eventually(t, 90*time.Second, func() error {
		for _, m := range l.machines(t) {
			if m.Agent == nil {
				return fmt.Errorf("machine %s is not ready: %+v", m.Name, m)
			}
			if !m.Agent.Ready {
				return fmt.Errorf("machine %s is not ready: %+v", m.Name, m.Agent.Components)
			}
		}
		out := try(t, "-c", l.name, "kubectl", "wait", "node", "--all", "--for=condition=Ready", "--timeout=1s")
		if out.code != 0 {
			return errors.New(out.talk)
		}
		return nil
	})
}

// eventually tries until it succeeds or time is up.
func eventually(t *testing.T, limit time.Duration, attempt func() error) {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	deadline := time.Now().Add(limit)
	for {
		err := attempt()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("still not so after %v: %v", limit, err)
		}
		<-tick.C
	}
}
