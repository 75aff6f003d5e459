//go:build lab

package lab_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	typed "k8s.io/client-go/kubernetes/typed/core/v1"
)

// recordedPID reads a component's pid from its agent's record, through the
// machine's root: quicker than to ask the agent, which probes everything.
func (l *lab) recordedPID(t *testing.T, machine int, name string) int {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(machine), "root/run/kuorum/components", name+".json"))
	if err != nil {
		return 0 // being replaced
	}
	var record struct{ PID int }
	if err := json.Unmarshal(data, &record); err != nil {
		return 0
	}
	return record.PID
}

// containers lists the containers of a machine with their process ids, sorted.
func (l *lab) containers(t *testing.T, machine string) []string {
	t.Helper()
	return slices.Sorted(strings.Lines(l.run(t, "ctr", "--node", machine, "tasks", "list")))
}

// TestComponentsComeBackAlone kills each component of a server: it is started
// again within 2 s, no other component's pid changes, no container restarts.
func TestComponentsComeBackAlone(t *testing.T) {
	l := threeServers(t)
	deployHello(t, l)
	victim := l.machine(t, "cp2")
	for _, c := range victim.Agent.Components {
		t.Run(c.Name, func(t *testing.T) {
			l.awaitReady(t)
			before, containers := l.machine(t, "cp2").pids(), l.containers(t, "cp2")
			killed := time.Now()
			l.on(t, "cp2", "kill", "-KILL", strconv.Itoa(before[c.Name]))
			eventually(t, 2*time.Second, func() error {
				if pid := l.recordedPID(t, victim.PID, c.Name); pid == 0 || pid == before[c.Name] {
					return errors.New("it has not been started again")
				}
				return nil
			})
			t.Logf("%s was started again after %v", c.Name, time.Since(killed).Round(time.Millisecond))
			l.awaitReady(t)
			after := l.machine(t, "cp2").pids()
			delete(before, c.Name)
			delete(after, c.Name)
			if diff := cmp.Diff(before, after); diff != "" {
				t.Errorf("other components changed (-before +after):\n%s", diff)
			}
			if diff := cmp.Diff(containers, l.containers(t, "cp2")); diff != "" {
				t.Errorf("containers changed (-before +after):\n%s", diff)
			}
		})
	}
	restarts := l.kubectl(t, "get", "pods", "-l", "app=hello", "-o", "jsonpath={.items[*].status.containerStatuses[*].restartCount}")
	if restarts != "0 0 0" {
		t.Errorf("pods restarted: %s", restarts)
	}
}

// TestAgentDiesAlone kills the agent: nothing else ends, and the next agent
// adopts what runs and keeps it running.
func TestAgentDiesAlone(t *testing.T) {
	l := threeServers(t)
	before := l.machine(t, "cp3")
	l.on(t, "cp3", "pkill", "-KILL", "-f", "kuorum agent")
	var after machine
	eventually(t, 15*time.Second, func() error {
		after = l.machine(t, "cp3")
		if after.Agent == nil || !after.Agent.Started.After(before.Agent.Started) || !after.Agent.Ready {
			return fmt.Errorf("no new agent yet: %s", after.Error)
		}
		return nil
	})
	if diff := cmp.Diff(before.pids(), after.pids()); diff != "" {
		t.Errorf("components changed with the agent (-before +after):\n%s", diff)
	}
	l.on(t, "cp3", "kill", "-KILL", strconv.Itoa(after.pids()["kube-scheduler"]))
	eventually(t, 2*time.Second, func() error {
		if pid := l.recordedPID(t, after.PID, "kube-scheduler"); pid == 0 || pid == after.pids()["kube-scheduler"] {
			return errors.New("the new agent has not started it again")
		}
		return nil
	})
	l.awaitReady(t)
}

// writer makes ConfigMaps one after another through the host's address and
// keeps the names of those that the API acknowledged.
type writer struct {
	maps   typed.ConfigMapInterface
	prefix string
	every  time.Duration
	// patience is how long a fault may keep the writer waiting, if that is more
	// than a planned change may.
	patience time.Duration

	mu    sync.Mutex
	acked []string
	last  time.Time // of the last acknowledged write
	gap   time.Duration
	// outage is the sum of all gaps in which somebody who waits would have noticed.
	outage time.Duration
}

// outageFrom is how long a gap between two writes is that counts as an outage.
const outageFrom = time.Second

func (w *writer) run(ctx context.Context) {
	w.last = time.Now()
	for i := 0; ctx.Err() == nil; i++ {
		name := fmt.Sprintf("%s-%d", w.prefix, i)
		_, err := w.maps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
		if err == nil {
			w.mu.Lock()
			gap := time.Since(w.last)
			w.gap = max(w.gap, gap)
			if gap >= outageFrom {
				w.outage += gap
			}
			w.acked, w.last = append(w.acked, name), time.Now()
			w.mu.Unlock()
		}
		select {
		case <-ctx.Done():
		case <-time.After(w.every):
		}
	}
}

func (w *writer) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.acked)
}

// checkKept looks for every acknowledged write and removes it.
func (w *writer) checkKept(t *testing.T) {
	t.Helper()
	list, err := w.maps.List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	have := map[string]bool{}
	for _, m := range list.Items {
		have[m.Name] = true
	}
	for _, name := range w.acked {
		if !have[name] {
			t.Errorf("the API acknowledged %s and lost it", name)
		}
	}
	for name := range have {
		if strings.HasPrefix(name, w.prefix+"-") {
			if err := w.maps.Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
				t.Fatal(err)
			}
		}
	}
}

// TestAnyServerMayLosePower cuts the power of each server in turn under
// writes: they go on at the same address, and none that was acknowledged is
// lost. The limit is what etcd's default timers and a busy machine allow.
func TestAnyServerMayLosePower(t *testing.T) {
	l := threeServers(t)
	for _, name := range []string{"cp1", "cp2", "cp3"} {
		t.Run(name, func(t *testing.T) {
			l.awaitReady(t)
			w := &writer{maps: l.client(t).ConfigMaps("default"), prefix: "power-" + name, every: 20 * time.Millisecond}
			ctx, cancel := context.WithCancel(t.Context())
			var done sync.WaitGroup
			done.Go(func() { w.run(ctx) })
			eventually(t, 10*time.Second, func() error { return atLeast(w, 20) })
			l.run(t, "lab", "stop", "--power", name)
			dark := w.count()
			eventually(t, 15*time.Second, func() error { return atLeast(w, dark+20) })
			cancel()
			done.Wait()
			t.Logf("longest gap between two acknowledged writes: %v", w.gap.Round(time.Millisecond))
			if m := l.machine(t, name); m.Power != "off" {
				t.Errorf("%s is %s", name, m.Power)
			}
			if got := l.run(t, "logs", name, "etcd", "--tail", "1"); got == "" {
				t.Error("its logs cannot be read while it is off")
			}
			l.run(t, "lab", "start", name)
			w.checkKept(t)
		})
	}
}

func atLeast(w *writer, n int) error {
	if have := w.count(); have < n {
		return fmt.Errorf("%d writes acknowledged, want %d", have, n)
	}
	return nil
}

// TestColdStartInAnyOrder cuts the power of all servers and starts them in a
// random order.
func TestColdStartInAnyOrder(t *testing.T) {
	l := threeServers(t)
	l.kubectl(t, "create", "configmap", "survivor", "--from-literal=k=v")
	t.Cleanup(func() { l.kubectl(t, "delete", "configmap", "survivor") })
	for range 2 {
		names := []string{"cp1", "cp2", "cp3"}
		for _, name := range names {
			l.run(t, "lab", "stop", "--power", "--force-quorum-loss", name)
		}
		r := try(t, "list", "-o", "json")
		if !strings.Contains(r.out, `"health": "no-quorum"`) {
			t.Errorf("with everything off, list says %s", r.out)
		}
		rand.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
		t.Logf("starting in the order %v", names)
		for _, name := range names {
			l.run(t, "lab", "start", "--wait=false", name)
		}
		begin := time.Now()
		l.awaitReady(t)
		t.Logf("whole again after %v", time.Since(begin).Round(time.Millisecond))
		if got := l.kubectl(t, "get", "configmap", "survivor", "-o", "jsonpath={.data.k}"); got != "v" {
			t.Errorf("the data is %q", got)
		}
	}
}

// TestQuorumGuard takes one of three servers away; then no verb may take
// another unless it is forced, and a dry run says why.
func TestQuorumGuard(t *testing.T) {
	l := threeServers(t)
	l.run(t, "lab", "stop", "--power", "cp1")
	t.Cleanup(func() { l.run(t, "lab", "start", "cp1") })
	const sum = "3 voters, 1 healthy, quorum 2, no quorum"
	eventually(t, 15*time.Second, func() error {
		if r := try(t, "-c", l.name, "lab", "stop", "--dry-run", "cp2"); r.code != 5 || !strings.Contains(r.talk, "after this: "+sum) {
			return fmt.Errorf("a dry run ends with %d: %s%s", r.code, r.out, r.talk)
		}
		return nil
	})
	for _, args := range [][]string{{"stop", "cp2"}, {"stop", "--power", "cp2"}, {"reboot", "cp2"}} {
		r := try(t, append([]string{"-c", l.name, "lab"}, args...)...)
		if r.code != 5 || !strings.Contains(r.talk, sum) || !strings.Contains(r.talk, "--force-quorum-loss") {
			t.Errorf("%v ends with %d: %s", args, r.code, r.talk)
		}
	}
	if m := l.machine(t, "cp2"); m.Power != "on" {
		t.Fatalf("cp2 is %s after it was refused to stop it", m.Power)
	}
	// A voter that is off already takes nothing away.
	l.run(t, "lab", "stop", "cp1")
}

// TestRebootAndStop takes a server away cleanly and brings it back.
func TestRebootAndStop(t *testing.T) {
	l := threeServers(t)
	l.run(t, "lab", "reboot", "cp1")
	l.run(t, "lab", "stop", "cp2")
	if m := l.machine(t, "cp2"); m.Power != "off" {
		t.Errorf("cp2 is %s after a clean stop", m.Power)
	}
	l.kubectl(t, "get", "nodes")
	l.run(t, "lab", "start", "cp2")
}

// TestStoppedLabComesBack stops a lab whole and starts it again with its data.
func TestStoppedLabComesBack(t *testing.T) {
	l := ownLab(t, "rest", "--servers", "1")
	l.kubectl(t, "create", "configmap", "kept", "--from-literal=k=v")
	kuorum(t, "down", "--keep", "rest")
	if r := try(t, "list", "rest", "-o", "json"); !strings.Contains(r.out, `"health": "stopped"`) {
		t.Errorf("a stopped lab is shown as %s", r.out)
	}
	if left := processesOf("rest"); left != "" {
		t.Errorf("still running: %s", left)
	}
	kuorum(t, "up", "rest")
	if got := l.kubectl(t, "get", "configmap", "kept", "-o", "jsonpath={.data.k}"); got != "v" {
		t.Errorf("the data is %q", got)
	}
}

func processesOf(name string) string {
	for _, line := range kuorumProcesses() {
		if strings.Contains(line, "lab process") && strings.HasSuffix(strings.TrimSpace(line), " "+name) {
			return line
		}
	}
	return ""
}
