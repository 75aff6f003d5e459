package lease

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kuorum/internal/cluster"
	"kuorum/internal/kubeapi"
)

var scheduler = cluster.DefaultElection(cluster.SchedulerName)

const schedulerPath = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/kube-scheduler"

// store is an API server with one Lease.
type store struct {
	mu       sync.Mutex
	lease    coordinationv1.Lease
	version  int
	down     error  // what every request fails with
	onUpdate func() // somebody else's doing, before an update arrives
	gets     []string
	updates  []string
}

func held(by string, acquired, renewed time.Time) *store {
	lasts, transitions := int32(15), int32(7)
	s := &store{version: 5}
	s.lease.Name, s.lease.Namespace, s.lease.UID = "kube-scheduler", "kube-system", "u-1"
	s.lease.Labels = map[string]string{"kept": "yes"}
	s.lease.Spec = coordinationv1.LeaseSpec{
		HolderIdentity: &by, AcquireTime: &metav1.MicroTime{Time: acquired}, RenewTime: &metav1.MicroTime{Time: renewed},
		LeaseDurationSeconds: &lasts, LeaseTransitions: &transitions,
	}
	return s
}

func (s *store) Get(ctx context.Context, path string, into any) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gets = append(s.gets, path)
	if err := errors.Join(s.down, ctx.Err()); err != nil {
		return err
	}
	s.lease.ResourceVersion = fmt.Sprint(s.version)
	data, err := json.Marshal(s.lease)
	if err != nil {
		return err
	}
	return json.Unmarshal(data, into)
}

func (s *store) Update(_ context.Context, path, body string) error {
	s.updates = append(s.updates, path)
	if s.onUpdate != nil {
		s.onUpdate()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var lease coordinationv1.Lease
	if err := json.Unmarshal([]byte(body), &lease); err != nil {
		return err
	}
	if lease.ResourceVersion != fmt.Sprint(s.version) {
		return fmt.Errorf("cannot put: %w", kubeapi.ErrConflict)
	}
	s.lease, s.version = lease, s.version+1
	return nil
}

// take is what another process does to the lease.
func (s *store) take(by string, at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.version++
	s.lease.Spec.HolderIdentity, s.lease.Spec.AcquireTime, s.lease.Spec.RenewTime = &by, &metav1.MicroTime{Time: at}, &metav1.MicroTime{Time: at}
}

// TestStatus: a lease is read as Kubernetes' own type writes it, by its own name.
func TestStatus(t *testing.T) {
	since, renewed := time.Date(2026, 1, 2, 3, 4, 5, 678_000, time.UTC), time.Date(2026, 1, 2, 3, 4, 9, 0, time.UTC)
	for name, tc := range map[string]struct {
		store *store
		want  cluster.LeaseStatus
	}{
		"held":  {held("cp2_0f9a", since, renewed), cluster.LeaseStatus{Name: "x", Holder: "cp2", Since: since, Renewed: renewed, Lasts: cluster.Duration(15 * time.Second), Transitions: 7}},
		"empty": {&store{}, cluster.LeaseStatus{Name: "x"}},
	} {
		t.Run(name, func(t *testing.T) {
			own := cluster.LeaderElection{ResourceName: "one", ResourceNamespace: "two"}
			got, err := Status(t.Context(), tc.store, "x", own)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if want := "/apis/coordination.k8s.io/v1/namespaces/two/leases/one?resourceVersion=0"; tc.store.gets[0] != want {
				t.Errorf("asked for %s", tc.store.gets[0])
			}
		})
	}
}

func TestJudge(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	before, after := at.Add(-time.Second), at.Add(time.Millisecond)
	for name, tc := range map[string]struct {
		identity          string
		acquired, renewed time.Time
		turned            time.Duration
		why               string // empty: it is released
	}{
		"its own":                          {"cp1_a", before, before, 0, ""},
		"its own, a microsecond ago":       {"cp1_a", before, at.Add(-time.Microsecond), 0, ""},
		"its own, ages ago":                {"cp1_a", before.Add(-time.Hour), before.Add(-time.Hour), 0, ""},
		"never renewed":                    {"cp1_a", time.Time{}, time.Time{}, 0, ""},
		"a clock that was set a little":    {"cp1_a", before, before, -time.Millisecond, ""},
		"nobody's":                         {"", before, before, 0, "nobody holds it"},
		"another machine's":                {"cp2_a", before, before, 0, "cp2 holds it"},
		"a machine's whose name is longer": {"cp10_a", before, before, 0, "cp10 holds it"},
		"one without an end to its name":   {"cp1", before, before, 0, "cp1 holds it"},
		"the successor's":                  {"cp1_b", after, after, 0, "taken since"},
		"the successor's, at that moment":  {"cp1_b", at, at, 0, "taken since"},
		"renewed since":                    {"cp1_a", before, after, 0, "renewed since"},
		"renewed at that moment":           {"cp1_a", before, at, 0, "renewed since"},
		"a clock that was turned back":     {"cp1_a", before, before, -time.Minute, "the clock was set by -1m0s"},
		"a clock that was turned on":       {"cp1_a", before, before, time.Second, "the clock was set by 1s"},
		"another's, and a clock turned":    {"cp2_a", before, before, time.Second, "cp2 holds it"},
	} {
		t.Run(name, func(t *testing.T) {
			r := Record{Identity: tc.identity, Acquired: tc.acquired, Renewed: tc.renewed}
			release, why := Judge(r, Death{Host: "cp1", At: at}, tc.turned)
			if release != (tc.why == "") || !strings.Contains(why, tc.why) || release != (why == "") {
				t.Errorf("got %v, %q, want %q", release, why, tc.why)
			}
		})
	}
}

func TestTurned(t *testing.T) {
	from := time.Now()
	if d := turned(from, from.Add(time.Hour)); d != 0 {
		t.Errorf("an hour passed, and the clock was set by %v", d)
	}
	if d := turned(from.Round(0), time.Now()); d.Abs() > time.Second {
		t.Errorf("a time from elsewhere: %v", d)
	}
}

// TestRelease: what is left is what client-go leaves, and nothing else has changed.
func TestRelease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		died := time.Now()
		s := held("cp1_a", died.Add(-time.Hour), died.Add(-time.Second))
		want := s.lease
		<-time.After(3 * time.Second)
		why, err := Release(t.Context(), s, scheduler, Death{Host: "cp1", At: died})
		if err != nil || why != "" {
			t.Fatalf("got %q, %v", why, err)
		}
		nobody, lasts, transitions := "", int32(1), int32(7)
		want.APIVersion, want.Kind, want.ResourceVersion = "coordination.k8s.io/v1", "Lease", "5"
		want.Spec = coordinationv1.LeaseSpec{
			HolderIdentity: &nobody, LeaseDurationSeconds: &lasts, LeaseTransitions: &transitions,
			AcquireTime: &metav1.MicroTime{Time: time.Now()}, RenewTime: &metav1.MicroTime{Time: time.Now()},
		}
		if diff := cmp.Diff(want, s.lease); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		if diff := cmp.Diff([]string{schedulerPath}, append(s.gets[:0:0], s.updates...)); diff != "" || s.gets[0] != schedulerPath {
			t.Errorf("asked %v, %v", s.gets, s.updates)
		}
	})
}

func TestReleaseMeetsOthers(t *testing.T) {
	gone := errors.New("connection refused")
	for name, tc := range map[string]struct {
		arrange func(*store, time.Time)
		why     string
		err     error
		updates int
		took    time.Duration
		holder  string
	}{
		"the successor takes it between": {func(s *store, died time.Time) {
			s.onUpdate = func() { s.take("cp1_b", died.Add(time.Second)) }
		}, "taken since", nil, 1, 0, "cp1_b"},
		"another takes it between": {func(s *store, died time.Time) {
			s.onUpdate = func() { s.take("cp2_a", died.Add(time.Second)) }
		}, "cp2 holds it", nil, 1, 0, "cp2_a"},
		"somebody touches it again and again": {func(s *store, _ time.Time) {
			s.onUpdate = func() { s.version++ }
		}, "", kubeapi.ErrConflict, 3, 0, "cp1_a"},
		"somebody touches it once": {func(s *store, _ time.Time) {
			s.onUpdate = func() { s.version++; s.onUpdate = nil }
		}, "", nil, 2, 0, ""},
		"nobody answers for a while": {func(s *store, _ time.Time) {
			s.down = gone
			time.AfterFunc(time.Second+time.Millisecond, func() { s.mu.Lock(); defer s.mu.Unlock(); s.down = nil })
		}, "", nil, 1, 1750 * time.Millisecond, ""},
		"nobody answers": {func(s *store, _ time.Time) { s.down = gone }, "", gone, 0, 10 * time.Second, "cp1_a"},
		"there is none":  {func(s *store, _ time.Time) { s.down = kubeapi.ErrNotFound }, "there is none", nil, 0, 0, "cp1_a"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				died := time.Now()
				s := held("cp1_a", died.Add(-time.Hour), died.Add(-time.Second))
				tc.arrange(s, died)
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				why, err := Release(ctx, s, scheduler, Death{Host: "cp1", At: died})
				if !errors.Is(err, tc.err) || (err != nil) != (tc.err != nil) || !strings.Contains(why, tc.why) || (why == "") != (tc.why == "") {
					t.Errorf("got %q, %v", why, err)
				}
				if len(s.updates) != tc.updates || time.Since(died) != tc.took || *s.lease.Spec.HolderIdentity != tc.holder {
					t.Errorf("%d updates in %v, and %q holds it", len(s.updates), time.Since(died), *s.lease.Spec.HolderIdentity)
				}
			})
		})
	}
}
