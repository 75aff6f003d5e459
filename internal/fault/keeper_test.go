package fault

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"kuorum/internal/cluster"
	"kuorum/internal/host"
)

// fakeLab notes what is done to it.
type fakeLab struct {
	mu    sync.Mutex
	did   []string
	ports map[string]string
	fail  error
	gone  bool // no component runs
}

func (l *fakeLab) note(format string, args ...any) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fail != nil {
		return l.fail
	}
	l.did = append(l.did, fmt.Sprintf(format, args...))
	return nil
}

// took is what was done since it was asked last.
func (l *fakeLab) took() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	text := strings.Join(l.did, "; ")
	l.did = nil
	return text
}

func (l *fakeLab) setFail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fail = err
}

func (l *fakeLab) Resolve(_ context.Context, name string) (string, error) {
	if name == Leader {
		return "cp2", nil
	}
	return name, CheckName("machine", name, []string{"cp1", "cp2", "cp3"})
}
func (l *fakeLab) Ports() map[string]string                      { return l.ports }
func (l *fakeLab) PowerOff(_ context.Context, name string) error { return l.note("off %s", name) }
func (l *fakeLab) Freeze(_ context.Context, name string) error   { return l.note("freeze %s", name) }
func (l *fakeLab) Thaw(name string) error                        { return l.note("thaw %s", name) }
func (l *fakeLab) Signal(name, component string, sig syscall.Signal) error {
	if l.gone {
		return host.ErrGone
	}
	return l.note("%s/%s %d", name, component, sig)
}

func (l *fakeLab) load(_ context.Context, rules string) error {
	return l.note("drop %d", strings.Count(rules, " drop\n"))
}

func newKeeper(t *testing.T, file string) (*Keeper, *fakeLab) {
	t.Helper()
	l := &fakeLab{ports: map[string]string{"cp1": "m1", "cp2": "m2", "cp3": "m3"}}
	k, err := Open(file, l, l.load, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return k, l
}

func mustMake(t *testing.T, k *Keeper, o Order) Fault {
	t.Helper()
	f, err := k.Make(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// ends lists how each fault is: "f1" or "f1 timer".
func ends(k *Keeper) string {
	var words []string
	for _, f := range k.List() {
		words = append(words, strings.TrimSpace(f.ID+" "+f.Why))
	}
	return strings.Join(words, ", ")
}

func TestEachKindIsDoneAndHealed(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		order      Order
		does, ends string // "": it is over at once
	}{
		{Order{Kind: Kill, Target: "cp1"}, "off cp1", ""},
		{Order{Kind: Kill, Target: "leader/etcd"}, "cp2/etcd 9", ""},
		{Order{Kind: Stop, Target: "cp1/kubelet"}, "cp1/kubelet 15", ""},
		{Order{Kind: Pause, Target: "leader"}, "freeze cp2", "thaw cp2"},
		{Order{Kind: Pause, Target: "cp1/agent"}, "cp1/agent 19", "cp1/agent 18"},
		{Order{Kind: Cut, Target: "cp1"}, "drop 2", "drop 0"},
		{Order{Kind: Cut, Target: "leader|cp1,cp3", OneWay: true, Ports: []int{2380}}, "drop 2", "drop 0"},
	} {
		k, l := newKeeper(t, filepath.Join(t.TempDir(), "faults"))
		f := mustMake(t, k, test.order)
		if got := l.took(); got != test.does || f.ID != "f1" || f.Target != test.order.Target {
			t.Errorf("%+v did %q and is %+v", test.order, got, f)
		}
		healed, err := k.Heal(t.Context())
		if err != nil || l.took() != test.ends || (len(healed) == 1) != (test.ends != "") || f.Active() != (test.ends != "") {
			t.Errorf("%+v is healed as %+v, %v", test.order, healed, err)
		}
	}
}

// TestTimersHeal also sees that a fault which cannot be healed in time is tried
// again, and that one of two on the same machine does not free it.
func TestTimersHeal(t *testing.T) {
	file := filepath.Join(t.TempDir(), "faults")
	synctest.Test(t, func(t *testing.T) {
		k, l := newKeeper(t, file)
		ctx, cancel := context.WithCancel(t.Context())
		var done sync.WaitGroup
		done.Go(func() { k.Run(ctx) })
		sleep := func(d time.Duration) {
			<-time.After(d)
			synctest.Wait()
		}
		mustMake(t, k, Order{Kind: Pause, Target: "cp1", For: cluster.Duration(3 * time.Second)})
		mustMake(t, k, Order{Kind: Pause, Target: "cp1", For: cluster.Duration(5 * time.Second)})
		mustMake(t, k, Order{Kind: Cut, Target: "cp2", For: cluster.Duration(10 * time.Second)})
		mustMake(t, k, Order{Kind: Cut, Target: "cp3"})
		l.took()
		sleep(2900 * time.Millisecond)
		if got := ends(k); got != "f1, f2, f3, f4" {
			t.Errorf("too early: %s", got)
		}
		sleep(200 * time.Millisecond)
		if got, did := ends(k), l.took(); got != "f1 timer, f2, f3, f4" || did != "" {
			t.Errorf("after 3 s: %s, it did %s", got, did)
		}
		l.setFail(errors.New("not now"))
		sleep(2 * time.Second)
		if got := ends(k); got != "f1 timer, f2, f3, f4" {
			t.Errorf("what failed is over: %s", got)
		}
		l.setFail(nil)
		sleep(1100 * time.Millisecond)
		if got, did := ends(k), l.took(); got != "f1 timer, f2 timer, f3, f4" || did != "thaw cp1" {
			t.Errorf("tried again: %s, it did %s", got, did)
		}
		sleep(time.Hour)
		if got, did := ends(k), l.took(); got != "f1 timer, f2 timer, f3 timer, f4" || did != "drop 2" {
			t.Errorf("after all: %s, it did %s", got, did)
		}
		cancel()
		done.Wait()
	})
}

func TestWhatFailsIsNoFault(t *testing.T) {
	t.Parallel()
	k, l := newKeeper(t, filepath.Join(t.TempDir(), "faults"))
	l.setFail(errors.New("no such luck"))
	for _, o := range []Order{{Kind: Kill, Target: "cp1"}, {Kind: Pause, Target: "cp1"}, {Kind: Cut, Target: "cp1"}} {
		if f, err := k.Make(t.Context(), o); err == nil {
			t.Errorf("made %+v", f)
		}
	}
	_, err := k.Make(t.Context(), Order{Kind: Cut, Target: "cp11|cp2"})
	says(t, err, "did you mean cp1?")
	if got := ends(k); got != "" {
		t.Errorf("there is %s", got)
	}
	l.setFail(nil)
	mustMake(t, k, Order{Kind: Pause, Target: "cp1"})
	mustMake(t, k, Order{Kind: Cut, Target: "cp1"})
	l.setFail(errors.New("no such luck"))
	healed, err := k.Heal(t.Context())
	if err == nil || len(healed) != 0 || ends(k) != "f1, f2" {
		t.Errorf("healed %+v, %v; left %s", healed, err, ends(k))
	}
}

func TestHealByID(t *testing.T) {
	t.Parallel()
	k, l := newKeeper(t, filepath.Join(t.TempDir(), "faults"))
	for _, target := range []string{"cp1|cp2", "cp2|cp3", "cp3"} {
		mustMake(t, k, Order{Kind: Cut, Target: target})
	}
	l.took()
	_, err := k.Heal(t.Context(), "f1", "f9")
	says(t, err, `no fault "f9"`)
	if l.took() != "" || ends(k) != "f1, f2, f3" {
		t.Errorf("a wrong ID healed something: %s", ends(k))
	}
	for range 2 { // also one that is over already
		if _, err := k.Heal(t.Context(), "f2"); err != nil {
			t.Fatal(err)
		}
	}
	if did := l.took(); did != "drop 4" || ends(k) != "f1, f2 heal, f3" {
		t.Errorf("it did %q: %s", did, ends(k))
	}
}

// TestLabChanges: a pause ends with the machine, a cut does not, but with the
// last machine of a side; a new cable is known to the rules.
func TestLabChanges(t *testing.T) {
	t.Parallel()
	k, l := newKeeper(t, filepath.Join(t.TempDir(), "faults"))
	mustMake(t, k, Order{Kind: Pause, Target: "cp1"})
	mustMake(t, k, Order{Kind: Pause, Target: "cp1/etcd"})
	mustMake(t, k, Order{Kind: Pause, Target: "cp2"})
	mustMake(t, k, Order{Kind: Cut, Target: "cp1|cp2,cp3"})
	k.MachineOff("cp1", time.Now().Add(-time.Hour))
	if got := ends(k); got != "f1, f2, f3, f4" {
		t.Errorf("an earlier end counts: %s", got)
	}
	k.MachineOff("cp1", time.Now())
	if got := ends(k); got != "f1 machine off, f2 machine off, f3, f4" {
		t.Errorf("after cp1 went off: %s", got)
	}
	l.took()
	delete(l.ports, "cp2")
	if err := k.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, did := ends(k), l.took(); got != "f1 machine off, f2 machine off, f3 machine removed, f4" || did != "drop 2" {
		t.Errorf("without cp2: %s, it did %s", got, did)
	}
	delete(l.ports, "cp3")
	for range 2 {
		if err := k.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if got, did := ends(k), l.took(); !strings.HasSuffix(got, "f4 machine removed") || did != "drop 0" {
		t.Errorf("without cp3: %s, it did %s", got, did)
	}
}

// TestKilledWhilePaused: who is started anew does not stand still; and healing
// a pause whose process is gone is no error.
func TestKilledWhilePaused(t *testing.T) {
	t.Parallel()
	k, l := newKeeper(t, filepath.Join(t.TempDir(), "faults"))
	mustMake(t, k, Order{Kind: Pause, Target: "cp1/etcd"})
	mustMake(t, k, Order{Kind: Pause, Target: "cp1/kubelet"})
	mustMake(t, k, Order{Kind: Kill, Target: "cp1/etcd"})
	if got := ends(k); got != "f1 killed, f2, f3 once" {
		t.Errorf("got %s", got)
	}
	l.gone = true
	if healed, err := k.Heal(t.Context()); err != nil || len(healed) != 1 {
		t.Errorf("healed %+v, %v", healed, err)
	}
}

// TestAccountOutlivesTheLab: the next process knows all, and that what was open
// has ended; IDs go on.
func TestAccountOutlivesTheLab(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "faults")
	k, _ := newKeeper(t, file)
	mustMake(t, k, Order{Kind: Kill, Target: "cp1/etcd"})
	mustMake(t, k, Order{Kind: Pause, Target: "cp1"})
	mustMake(t, k, Order{Kind: Cut, Target: "cp2"})
	if _, err := k.Heal(t.Context(), "f2"); err != nil {
		t.Fatal(err)
	}
	crashed, l := newKeeper(t, file)
	if got, did := ends(crashed), l.took(); got != "f1 once, f2 heal, f3 lab stopped" || did != "" {
		t.Errorf("after a crash: %s, it did %q", got, did)
	}
	mustMake(t, crashed, Order{Kind: Pause, Target: "cp3"})
	if err := crashed.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if did := l.took(); did != "freeze cp3; thaw cp3" {
		t.Errorf("it did %q", did)
	}
	stopped, _ := newKeeper(t, file)
	if diff := cmp.Diff(crashed.List(), stopped.List()); diff != "" || !strings.HasSuffix(ends(stopped), "f4 lab stopped") {
		t.Errorf("%s\n%s", ends(stopped), diff)
	}
	if _, err := Open(t.TempDir(), l, l.load, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("a directory was read as an account")
	}
}

// TestFullDisk: a fault that cannot be written down is still healed.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "faults")
	k, l := newKeeper(t, file)
	if err := os.Mkdir(file, 0o755); err != nil {
		t.Fatal(err)
	}
	mustMake(t, k, Order{Kind: Pause, Target: "cp1"})
	if _, err := k.Heal(t.Context()); err != nil || l.took() != "freeze cp1; thaw cp1" {
		t.Errorf("got %v: %s", err, ends(k))
	}
}

func TestServed(t *testing.T) {
	t.Parallel()
	k, _ := newKeeper(t, filepath.Join(t.TempDir(), "faults"))
	mux := http.NewServeMux()
	k.Handle(mux, func(w http.ResponseWriter, value any, err error) {
		if err != nil {
			w.WriteHeader(http.StatusBadRequest)
			value = err.Error()
		}
		_ = json.NewEncoder(w).Encode(value)
	})
	ask := func(method, query string, into any) string {
		t.Helper()
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), method, Path+query, nil))
		if w.Code == http.StatusOK {
			if err := json.Unmarshal(w.Body.Bytes(), into); err != nil {
				t.Fatal(err)
			}
		}
		return w.Body.String()
	}
	order := url.Values{"order": {`{"kind": "cut", "target": "leader|cp1", "ports": [2380], "for": "1m0s"}`}}
	var made Fault
	var list, healed []Fault
	said := ask("POST", "?"+order.Encode(), &made)
	if made.Resolved.String() != "cp2|cp1" || made.Until.Sub(made.Start) != time.Minute || !made.Active() {
		t.Errorf("made %s", said)
	}
	ask("GET", "", &list)
	if diff := cmp.Diff([]Fault{made}, list); diff != "" {
		t.Error(diff)
	}
	if said := ask("POST", "?order=x", nil); !strings.Contains(said, "cannot read the order") {
		t.Errorf("it says %s", said)
	}
	if said := ask("DELETE", "?id=f1&id=f2", nil); !strings.Contains(said, "f2") {
		t.Errorf("it says %s", said)
	}
	if ask("DELETE", "?id=f1", &healed); len(healed) != 1 || healed[0].Why != EndHeal {
		t.Errorf("healed %+v", healed)
	}
}
