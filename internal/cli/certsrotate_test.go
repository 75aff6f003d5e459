package cli

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"kuorum/internal/cluster"
	"kuorum/internal/keyring"
	"kuorum/internal/membership"
	"kuorum/internal/pki"
	"kuorum/internal/step"
)

// rotating is a cluster of three servers and a worker whose agents do what they
// are ordered, on directories.
type rotating struct {
	*caRotation
	fake    *fakeServers
	reports []cluster.NodeReport
	root    string
	orders  []string
	revoked []string
	// fails is called before each order; an error of it is the agent's answer.
	fails func(order string) error
}

func newRotating(t *testing.T) *rotating {
	t.Helper()
	_, reports := wellReports(t, 3)
	r := &rotating{fake: newFakeServers(t, "cp1", "cp2", "cp3", "w1"), reports: reports, root: t.TempDir(), fails: func(string) error { return nil }}
	spec := r.fake.target.spec
	set, err := pki.NewSet(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range spec.Spec.Nodes {
		files, err := set.NodeFiles(spec, n, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if err := keyring.Write(r.dir(n.Name), files); err != nil {
			t.Fatal(err)
		}
	}
	r.fake.does = r.agent
	r.caRotation = rotationOf(t, spec, reports)
	r.look = func(context.Context) (target, []cluster.NodeReport, error) {
		r.fake.mu.Lock()
		defer r.fake.mu.Unlock()
		now := slices.Clone(r.reports)
		for i, n := range spec.Spec.Nodes {
			status := *now[i].Status
			status.Certificates = keyring.Certificates(r.dir(n.Name))
			now[i].Status = &status
		}
		return r.fake.target, now, nil
	}
	return r
}

func (r *rotating) dir(name string) string { return filepath.Join(r.root, name) }

// agent is called under the lock of fake.
func (r *rotating) agent(name string, request *http.Request) (any, error) {
	switch request.URL.Path {
	case keyring.BeginPath:
		r.orders = append(r.orders, "begin "+name)
		return struct{}{}, keyring.Begin(r.dir(name), time.Now())
	case membership.TokensPath:
		soon, past := time.Now().Add(time.Hour), time.Now().Add(-time.Hour)
		return []membership.Token{{ID: "fresh", Expires: soon}, {ID: "used", Expires: soon, UsedBy: "w1"}, {ID: "old", Expires: past}}, nil
	case membership.RevokePath:
		var in membership.TokenID
		err := json.NewDecoder(request.Body).Decode(&in)
		r.revoked = append(r.revoked, in.ID)
		return struct{}{}, err
	}
	var o keyring.Order
	if err := json.NewDecoder(request.Body).Decode(&o); err != nil {
		return nil, err
	}
	order := string(o.Phase) + " " + name
	r.orders = append(r.orders, order)
	if err := r.fails(order); err != nil {
		return nil, err
	}
	if err := r.obey(name, o); err != nil {
		return nil, err
	}
	i := slices.IndexFunc(r.reports, func(report cluster.NodeReport) bool { return report.Name == name })
	r.reports[i].Status.Started = time.Now()
	return struct{}{}, nil
}

func (r *rotating) obey(name string, o keyring.Order) error {
	node, _ := r.fake.target.spec.Node(name)
	if node.Role == cluster.RoleWorker {
		return r.obeyAsWorker(node)
	}
	if o.Phase == keyring.PhaseTrust && !keyring.Has(r.dir(name), o) {
		for _, n := range r.fake.target.spec.Servers() {
			if n.Address != o.From {
				continue
			}
			next, err := keyring.Successors(r.dir(n.Name))
			if err := errors.Join(err, keyring.Store(r.dir(name), next, o)); err != nil {
				return err
			}
		}
	}
	return keyring.Change(r.dir(name), r.fake.target.spec, node, o.Phase)
}

func (r *rotating) obeyAsWorker(node cluster.Node) error {
	set, err := keyring.Keys(r.dir("cp1"))
	if err != nil {
		return err
	}
	files, err := set.NodeFiles(r.fake.target.spec, node, time.Now())
	if err != nil {
		return err
	}
	return keyring.Write(r.dir(node.Name), files)
}

func (r *rotating) rotate(t *testing.T) error {
	t.Helper()
	steps, err := r.steps(t.Context())
	if err != nil {
		return err
	}
	return step.Run(t.Context(), steps, r.report)
}

// TestRotateWithAgents: a run asks each node once in each phase, servers first
// and the leader last of them. One that is refused in the middle is finished by
// the next run, and by nothing more than what was left.
func TestRotateWithAgents(t *testing.T) {
	t.Parallel()
	r := newRotating(t)
	var all []string
	for _, phase := range []string{"trust", "sign", "forget"} {
		for _, name := range []string{"cp2", "cp3", "cp1", "w1"} {
			all = append(all, phase+" "+name)
		}
	}
	full := &cluster.Problem{What: "its disk is full", Exit: cluster.ExitError}
	r.fails = func(order string) error {
		if order == "sign cp1" {
			return full
		}
		return nil
	}
	if err := r.rotate(t); err == nil || !strings.Contains(err.Error(), "its disk is full") {
		t.Fatalf("a refused order: %v", err)
	}
	if diff := cmp.Diff(append([]string{"begin cp1"}, all[:7]...), r.orders); diff != "" {
		t.Fatalf("orders (-want +got):\n%s", diff)
	}
	r.orders, r.fails = nil, func(string) error { return nil }
	r.until = "sign"
	if err := r.rotate(t); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(all[6:8], r.orders); diff != "" {
		t.Errorf("orders of the next run (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"fresh"}, r.revoked); diff != "" {
		t.Errorf("revoked tokens (-want +got):\n%s", diff)
	}
	r.orders = nil
	if err := r.rotate(t); err != nil || r.orders != nil {
		t.Errorf("all is as far as it was to be: %q, %v", r.orders, err)
	}
	r.until = "forget"
	if err := r.rotate(t); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(all[8:], r.orders); diff != "" {
		t.Errorf("orders of the last run (-want +got):\n%s", diff)
	}
	for _, n := range r.fake.target.spec.Spec.Nodes {
		if keys := keyring.Trust(r.dir(n.Name))["ca.crt"]; len(keys) != 1 {
			t.Errorf("%s trusts %q", n.Name, keys)
		}
	}
}

// TestRotationWaits: the next node is not touched before all is well, and who
// does not do what it said it would is named.
func TestRotationWaits(t *testing.T) {
	t.Parallel()
	r := newRotating(t)
	r.fails = func(order string) error { // it restarts, and its etcd does not come back
		if order == "trust cp3" {
			r.reports[2].Status.Ready, r.reports[2].Status.Etcd.Error = false, "down"
		}
		return nil
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	steps, err := r.steps(ctx)
	if err != nil {
		t.Fatal(err)
	}
	err = step.Run(ctx, steps, r.report)
	problem, ok := errors.AsType[*cluster.Problem](err)
	if !ok || problem.ExitCode() != cluster.ExitTimeout || !strings.Contains(problem.What, "cp3") || !strings.Contains(problem.Error(), "the etcd of cp3 takes no part") {
		t.Errorf("%v", err)
	}
	if diff := cmp.Diff([]string{"begin cp1", "trust cp2", "trust cp3"}, r.orders); diff != "" {
		t.Errorf("orders (-want +got):\n%s", diff)
	}
	if err := r.rotate(t); exitOf(err) != cluster.ExitRefused {
		t.Errorf("a cluster that is not well: %v", err)
	}
}

// TestRotationWithoutProgress: an agent that says yes and does nothing.
func TestRotationWithoutProgress(t *testing.T) {
	t.Parallel()
	r := newRotating(t)
	does := r.fake.does
	r.fake.does = func(name string, request *http.Request) (any, error) {
		if name == "w1" {
			r.orders = append(r.orders, "yes w1")
			r.reports[3].Status.Started = time.Now()
			return struct{}{}, nil
		}
		return does(name, request)
	}
	err := r.rotate(t)
	if err == nil || !strings.Contains(err.Error(), "w1 does not get into phase trust") {
		t.Errorf("%v", err)
	}
	if want := []string{"begin cp1", "trust cp2", "trust cp3", "trust cp1", "yes w1", "yes w1"}; !slices.Equal(r.orders, want) {
		t.Errorf("orders are %q, want %q", r.orders, want)
	}
}
