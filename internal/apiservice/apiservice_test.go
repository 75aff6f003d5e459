package apiservice

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kuorum/internal/cluster"
	"kuorum/internal/endpoint"
	"kuorum/internal/kubeapi"
)

// store is an API server with the two objects, in Kubernetes' own types.
type store struct {
	mu        sync.Mutex
	slice     *discoveryv1.EndpointSlice
	endpoints *corev1.Endpoints //nolint:staticcheck // clients still ask for it
	version   int
	down      error  // what every request fails with
	hangs     bool   // it answers nothing
	onWrite   func() // somebody else's doing, before a write arrives; once
	gets      int
	writes    []string
}

// upstreams is what upstream's API servers write.
func upstreams(addresses ...string) *store {
	name, number, protocol, ready := "https", int32(6444), corev1.ProtocolTCP, true
	s := &store{version: 7}
	s.slice = &discoveryv1.EndpointSlice{
		TypeMeta:    metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"},
		ObjectMeta:  metav1.ObjectMeta{Name: "kubernetes", Namespace: "default", Generation: 3, Labels: map[string]string{"kubernetes.io/service-name": "kubernetes"}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: &name, Port: &number, Protocol: &protocol}},
	}
	s.endpoints = &corev1.Endpoints{ //nolint:staticcheck // as above
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Endpoints"},
		ObjectMeta: metav1.ObjectMeta{Name: "kubernetes", Namespace: "default", Labels: map[string]string{"endpointslice.kubernetes.io/skip-mirror": "true"}},
		Subsets:    []corev1.EndpointSubset{{Ports: []corev1.EndpointPort{{Name: name, Port: number, Protocol: protocol}}}}, //nolint:staticcheck // as above
	}
	for _, a := range addresses {
		s.slice.Endpoints = append(s.slice.Endpoints, discoveryv1.Endpoint{Addresses: []string{a}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}})
		s.endpoints.Subsets[0].Addresses = append(s.endpoints.Subsets[0].Addresses, corev1.EndpointAddress{IP: a})
	}
	s.slice.ResourceVersion, s.endpoints.ResourceVersion = "6", "7"
	return s
}

func (s *store) reach(ctx context.Context) error {
	s.mu.Lock()
	hangs, down := s.hangs, s.down
	s.mu.Unlock()
	if hangs {
		<-ctx.Done()
	}
	return errors.Join(down, ctx.Err())
}

func (s *store) Get(ctx context.Context, path string, into any) error {
	if err := s.reach(ctx); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gets++
	object := any(s.endpoints)
	there := s.endpoints != nil
	if path == slicesPath+"/kubernetes" {
		object, there = s.slice, s.slice != nil
	} else if path != endpointsPath+"/kubernetes" {
		return fmt.Errorf("nobody has %s", path)
	}
	if !there {
		return fmt.Errorf("cannot get: %w", kubeapi.ErrNotFound)
	}
	data, err := json.Marshal(object)
	if err != nil {
		return err
	}
	return json.Unmarshal(data, into)
}

func (s *store) Create(ctx context.Context, path, body string, _ any) error {
	return s.put(ctx, "create "+path, body)
}

func (s *store) Update(ctx context.Context, path, body string) error {
	return s.put(ctx, "update "+path, body)
}

func (s *store) put(ctx context.Context, what, body string) error {
	if err := s.reach(ctx); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.onWrite != nil {
		s.onWrite()
		s.onWrite = nil
	}
	var slice discoveryv1.EndpointSlice
	var endpoints corev1.Endpoints //nolint:staticcheck // as above
	var into any
	var meta, old *metav1.ObjectMeta
	switch what {
	case "create " + slicesPath, "update " + slicesPath + "/kubernetes":
		into, meta = &slice, &slice.ObjectMeta
		if s.slice != nil {
			old = &s.slice.ObjectMeta
		}
	case "create " + endpointsPath, "update " + endpointsPath + "/kubernetes":
		into, meta = &endpoints, &endpoints.ObjectMeta
		if s.endpoints != nil {
			old = &s.endpoints.ObjectMeta
		}
	default:
		return fmt.Errorf("nobody has %s", what)
	}
	strict := json.NewDecoder(strings.NewReader(body))
	strict.DisallowUnknownFields()
	if err := strict.Decode(into); err != nil {
		return err
	}
	switch creates := strings.HasPrefix(what, "create "); {
	case creates != (old == nil), !creates && meta.ResourceVersion != old.ResourceVersion:
		return fmt.Errorf("cannot %s: %w", what, kubeapi.ErrConflict)
	}
	s.version++
	meta.ResourceVersion = fmt.Sprint(s.version)
	s.writes = append(s.writes, what)
	if meta == &slice.ObjectMeta {
		s.slice = &slice
	} else {
		s.endpoints = &endpoints
	}
	return nil
}

func (s *store) set(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
}

// leads is where pods are led to.
func (s *store) leads() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []string
	if s.slice != nil {
		for _, e := range s.slice.Endpoints {
			all = append(all, e.Addresses...)
		}
	}
	return all
}

// done is how much was asked and written so far.
func (s *store) done() (gets, writes int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.gets, len(s.writes)
}

// town is servers whose balancers and agents can be asked.
type town struct {
	t       *testing.T
	api     *store
	log     log
	mu      sync.Mutex
	servers []cluster.Node
	states  map[string]endpoint.States // by the server whose balancer says so
	turned  chan struct{}              // closed at each change
	silent  map[string]bool            // agents
	asks    int
	keepers map[string]*Keeper
}

// newTown has n servers whose balancers say marks, as see has it.
func newTown(t *testing.T, n int, marks string, api *store) *town {
	t.Helper()
	w := &town{
		t: t, api: api, servers: nodes(n), states: map[string]endpoint.States{}, turned: make(chan struct{}),
		silent: map[string]bool{}, keepers: map[string]*Keeper{},
	}
	for _, s := range w.servers {
		w.see(s.Name, marks)
		w.keeper(s.Name)
	}
	return w
}

// see has the balancer of a server say something else.
func (w *town) see(server, marks string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	said := endpoint.States{Version: w.states[server].Version + 1}
	for i, m := range marks {
		state := map[rune]endpoint.State{'+': endpoint.Healthy, '-': endpoint.Down, '?': endpoint.Unknown}[m]
		said.Backends = append(said.Backends, endpoint.BackendStatus{Backend: endpoint.Backend{Name: fmt.Sprint("cp", i+1), Address: at(i+1) + ":6444"}, State: state})
	}
	w.states[server] = said
	close(w.turned)
	w.turned = make(chan struct{})
}

func (w *town) look(server string) (endpoint.States, <-chan struct{}, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.states[server], w.turned, w.silent[server]
}

func (w *town) balancer(ctx context.Context, server string, since uint64) (endpoint.States, error) {
	limit := time.After(endpoint.StatesPatience)
	for {
		said, turned, _ := w.look(server)
		if said.Version != since {
			return said, nil
		}
		select {
		case <-ctx.Done():
			return endpoint.States{}, ctx.Err()
		case <-limit:
			return said, nil
		case <-turned:
		}
	}
}

func (w *town) ask(ctx context.Context, n cluster.Node) (View, error) {
	w.mu.Lock()
	w.asks++
	k, silent := w.keepers[n.Name], w.silent[n.Name]
	w.mu.Unlock()
	if silent {
		<-ctx.Done()
		return View{}, ctx.Err()
	}
	return k.View(ctx)
}

// asked is how often an agent was asked.
func (w *town) asked() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.asks
}

func (w *town) keeper(name string) {
	k := New(Config{
		Self: name, API: w.api, Ask: w.ask, Log: slog.New(slog.NewTextHandler(&w.log, nil)),
		Balancer: func(ctx context.Context, since uint64) (endpoint.States, error) { return w.balancer(ctx, name, since) },
	})
	w.mu.Lock()
	defer w.mu.Unlock()
	w.keepers[name] = k
}

// log is what all Keepers write to.
type log struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// run runs the keepers of those servers until the test ends, or stop is called.
func (w *town) run(names ...string) (stop func()) {
	ctx, cancel := context.WithCancel(w.t.Context())
	var all sync.WaitGroup
	for _, name := range names {
		w.keeper(name)
	}
	for _, name := range names {
		k := w.keepers[name]
		all.Go(func() { k.Run(ctx, w.members) })
	}
	synctest.Wait()
	return func() {
		cancel()
		all.Wait()
	}
}

func (w *town) members() []cluster.Node {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.servers)
}

func (w *town) change(change func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change()
}

// after lets time pass and tells where pods are led to then.
func (w *town) after(d time.Duration, want string) {
	w.t.Helper()
	<-time.After(d)
	synctest.Wait()
	if diff := cmp.Diff(ats(want), w.api.leads()); diff != "" {
		w.t.Errorf("after %v (-want +got):\n%s", d, diff)
	}
}

// TestFirstList: as soon as the API servers of a new cluster are well there are the
// objects that upstream would have made.
func TestFirstList(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTown(t, 3, "---", &store{})
		defer w.run("cp1", "cp2", "cp3")()
		w.after(time.Minute, "")
		if gets, _ := w.api.done(); gets > 0 || w.log.String() != "" {
			t.Errorf("while no API server is well one was asked %d times, and the log has %s", gets, &w.log)
		}
		for _, name := range []string{"cp1", "cp2", "cp3"} {
			w.see(name, "+-?")
		}
		w.after(300*time.Millisecond, "1")
		for _, name := range []string{"cp1", "cp2", "cp3"} {
			w.see(name, "+++")
		}
		w.after(300*time.Millisecond, "1 2 3")
		want := upstreams(ats("1 2 3")...)
		clean := func(s *store) {
			s.slice.ResourceVersion, s.endpoints.ResourceVersion, s.slice.Generation = "", "", 0
		}
		clean(want)
		clean(w.api)
		if diff := cmp.Diff(want.slice, w.api.slice); diff != "" {
			t.Errorf("EndpointSlice (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff(want.endpoints, w.api.endpoints); diff != "" {
			t.Errorf("Endpoints (-want +got):\n%s", diff)
		}
		if n := strings.Count(w.log.String(), "leads to other API servers"); n != 2 {
			t.Errorf("two changes are told %d times: %s", n, &w.log)
		}
	})
}

// TestIdle: upstream's own list is left as it is, nobody asks anybody but the API,
// and that now and then.
func TestIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTown(t, 3, "+++", upstreams(ats("1 2 3")...))
		defer w.run("cp1", "cp2", "cp3")()
		w.after(time.Second, "1 2 3")
		before, _ := w.api.done()
		asked := w.asked()
		w.after(10*regularly, "1 2 3")
		if gets, writes := w.api.done(); writes > 0 || gets-before > 3*2*11 || gets-before < 3*2*9 || w.asked() > asked {
			t.Errorf("%d writes, %d gets, %d questions", writes, gets-before, w.asked()-asked)
		}
	})
}

// TestWrongListIsPutRight: what somebody has changed by hand, or another version wrote.
func TestWrongListIsPutRight(t *testing.T) {
	for name, spoil := range map[string]func(s *store){
		"another address":  func(s *store) { s.slice.Endpoints[0].Addresses[0] = "10.9.9.9" },
		"another port":     func(s *store) { *s.slice.Ports[0].Port = 443 },
		"not ready":        func(s *store) { *s.slice.Endpoints[1].Conditions.Ready = false },
		"no label":         func(s *store) { s.slice.Labels = nil },
		"no slice":         func(s *store) { s.slice = nil },
		"no endpoints":     func(s *store) { s.endpoints = nil },
		"nothing":          func(s *store) { s.slice, s.endpoints = nil, nil },
		"empty endpoints":  func(s *store) { s.endpoints.Subsets = nil },
		"mirrored":         func(s *store) { s.endpoints.Labels = nil },
		"another protocol": func(s *store) { s.endpoints.Subsets[0].Ports[0].Protocol = corev1.ProtocolUDP },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newTown(t, 3, "+++", upstreams(ats("1 2 3")...))
				w.api.slice.Annotations = map[string]string{"somebody": "else"}
				defer w.run("cp1", "cp2", "cp3")()
				w.api.set(func() { spoil(w.api) })
				w.after(regularly+time.Second, "1 2 3")
				good := upstreams(ats("1 2 3")...)
				if diff := cmp.Diff(good.slice.Endpoints, w.api.slice.Endpoints) + cmp.Diff(good.slice.Ports, w.api.slice.Ports) +
					cmp.Diff(good.slice.Labels, w.api.slice.Labels) + cmp.Diff(good.endpoints.Subsets, w.api.endpoints.Subsets) +
					cmp.Diff(good.endpoints.Labels, w.api.endpoints.Labels); diff != "" {
					t.Errorf("(-want +got):\n%s", diff)
				}
				if n := len(w.api.writes); n < 1 || n > 2 {
					t.Errorf("written: %q", w.api.writes)
				}
				if strings.HasPrefix(w.api.writes[0], "update") && w.api.slice.Annotations["somebody"] != "else" {
					t.Error("what somebody else had noted is lost")
				}
			})
		})
	}
}

// TestDeadServerLeaves: one that has lost its power, so that its agent is silent, is off
// the list as soon as the others' balancers have seen it, one after the other; and it
// comes back.
func TestDeadServerLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTown(t, 3, "+++", upstreams(ats("1 2 3")...))
		defer w.run("cp1", "cp2", "cp3")()
		w.after(time.Second, "1 2 3")
		w.change(func() { w.silent["cp3"] = true })
		w.see("cp3", "---")
		w.see("cp1", "++-")
		w.after(400*time.Millisecond, "1 2 3")
		w.see("cp2", "++-")
		w.after(time.Millisecond, "1 2")
		w.after(time.Minute, "1 2")
		w.change(func() { w.silent["cp3"] = false })
		for _, name := range []string{"cp1", "cp2", "cp3"} {
			w.see(name, "+++")
		}
		w.after(time.Second, "1 2 3")
		if n := len(w.api.writes); n != 4 {
			t.Errorf("written: %q", w.api.writes)
		}
		if n := strings.Count(w.log.String(), "\n"); n != 2 {
			t.Errorf("two changes, and the log has\n%s", &w.log)
		}
	})
}

// TestOneWay: one server alone does not reach another. That stays, and who sees it
// otherwise asks ever less often.
func TestOneWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTown(t, 3, "+++", upstreams(ats("1 2 3")...))
		defer w.run("cp1", "cp2", "cp3")()
		w.see("cp1", "++-")
		w.after(10*time.Minute, "1 2 3")
		if _, writes := w.api.done(); writes > 0 || w.asked() > 2*(60+10) || w.asked() < 2*50 || w.log.String() != "" {
			t.Errorf("%d writes, %d questions, log %s", writes, w.asked(), &w.log)
		}
		w.see("cp2", "++-") // the second is not kept waiting
		w.after(time.Millisecond, "1 2")
	})
}

// TestNewsIsNotKeptWaiting by what has been tried in vain before.
func TestNewsIsNotKeptWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTown(t, 3, "+++", upstreams(ats("1 2 3")...))
		defer w.run("cp1")()
		w.see("cp1", "++-")
		w.after(time.Minute, "1 2 3")
		w.see("cp2", "+-+") // its agent does nothing about it
		w.see("cp1", "+--")
		w.after(time.Millisecond, "1 3")
	})
}

// TestOthersAreQuicker: what was changed since it was read is read and judged again.
func TestOthersAreQuicker(t *testing.T) {
	for name, tc := range map[string]struct {
		other  func(s *store)
		writes int
	}{
		"with the same list": {func(s *store) {
			same := upstreams(ats("1 2")...)
			s.slice, s.endpoints = same.slice, same.endpoints
			s.slice.ResourceVersion, s.endpoints.ResourceVersion = "20", "21"
		}, 0},
		"with something else": {func(s *store) { s.slice.ResourceVersion, s.slice.Labels["more"] = "20", "yes" }, 2},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newTown(t, 3, "+++", upstreams(ats("1 2 3")...))
				defer w.run("cp1", "cp2", "cp3")()
				w.api.set(func() { w.api.onWrite = func() { tc.other(w.api) } })
				for _, name := range []string{"cp1", "cp2", "cp3"} {
					w.see(name, "++-")
				}
				w.after(time.Second, "1 2")
				if len(w.api.writes) != tc.writes || strings.Contains(w.log.String(), "cannot") {
					t.Errorf("written %q, log %s", w.api.writes, &w.log)
				}
				if tc.writes > 0 && w.api.slice.Labels["more"] != "yes" {
					t.Error("somebody's label is lost")
				}
			})
		})
	}
}

// TestFailureIsToldOnce, also by one that gets no answer, and what is to be done is done
// when it works again.
func TestFailureIsToldOnce(t *testing.T) {
	for name, tc := range map[string]struct {
		fail  func(s *store, fails bool)
		until time.Duration // it is done when it works again
	}{
		"refused": {func(s *store, fails bool) {
			s.down = nil
			if fails {
				s.down = errors.New("no leader")
			}
		}, failing},
		"no answer": {func(s *store, fails bool) { s.hangs = fails }, maxPatience + failing + time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newTown(t, 1, "+", upstreams(ats("9")...))
				w.api.set(func() { tc.fail(w.api, true) })
				defer w.run("cp1")()
				for n := range 2 {
					w.after(time.Minute, "9")
					if told := strings.Count(w.log.String(), "will try again"); told != n+1 {
						t.Errorf("told %d times:\n%s", told, &w.log)
					}
					w.api.set(func() { tc.fail(w.api, false) })
					w.after(tc.until, "1")
					w.api.set(func() {
						version := w.api.version
						old := upstreams(ats("9")...)
						w.api.slice, w.api.endpoints = old.slice, old.endpoints
						w.api.slice.ResourceVersion, w.api.endpoints.ResourceVersion = fmt.Sprint(version+1), fmt.Sprint(version+2)
						w.api.version += 2
						tc.fail(w.api, true)
					})
				}
			})
		})
	}
}

// TestLeave: a server that stops is off the list first, and stays off it while its API
// server runs longer than its agent.
func TestLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTown(t, 3, "+++", upstreams(ats("1 2 3")...))
		defer w.run("cp1", "cp2")()
		stop := w.run("cp3")
		w.after(time.Second, "1 2 3")
		begin := time.Now()
		if err := w.keepers["cp3"].Leave(t.Context()); err != nil || time.Since(begin) > 100*time.Millisecond {
			t.Errorf("after %v: %v", time.Since(begin), err)
		}
		w.after(0, "1 2")
		w.after(5*time.Second, "1 2")
		w.change(func() { w.silent["cp3"] = true })
		stop()
		w.after(time.Minute, "1 2")
		w.change(func() { w.silent["cp3"] = false })
		w.see("cp1", "++-")
		w.see("cp2", "++-")
		defer w.run("cp3")() // it starts again
		w.after(time.Second, "1 2")
		w.see("cp1", "+++")
		w.see("cp2", "+++")
		w.after(time.Second, "1 2 3")
	})
}

// TestLeaveLooksAgain: others may have put the server on the list since it looked last.
func TestLeaveLooksAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTown(t, 3, "++-", upstreams(ats("1 2")...))
		defer w.run("cp3")()
		w.after(time.Second, "1 2")
		w.see("cp1", "+++")
		w.see("cp2", "+++")
		w.api.set(func() {
			others := upstreams(ats("1 2 3")...)
			w.api.slice, w.api.endpoints = others.slice, others.endpoints
		})
		if err := w.keepers["cp3"].Leave(t.Context()); err != nil {
			t.Error(err)
		}
		w.after(0, "1 2")
	})
}

// TestLeaveWhereItMakesNoDifference takes no time, and one that cannot write is not
// waited for any longer than its caller wants.
func TestLeaveWhereItMakesNoDifference(t *testing.T) {
	leave := func(t *testing.T, w *town, name string) (time.Duration, error) {
		t.Helper()
		limited, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		begin := time.Now()
		err := w.keepers[name].Leave(limited)
		return time.Since(begin), err
	}
	for name, tc := range map[string]struct {
		servers int
		marks   string
		change  func(w *town)
		took    time.Duration
		leads   string
	}{
		"the only server":    {1, "+", nil, 0, "1"},
		"no API server":      {1, "-", nil, 0, "1"},
		"the others are ill": {3, "+--", nil, 0, "1"},
		"the API is away":    {3, "+++", func(w *town) { w.api.down = errors.New("away") }, 3 * time.Second, "1"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newTown(t, tc.servers, tc.marks, upstreams(ats("1")...))
				if tc.change != nil {
					tc.change(w)
				}
				defer w.run("cp1")()
				took, err := leave(t, w, "cp1")
				if took != tc.took || (err == nil) != (tc.took == 0) {
					t.Errorf("after %v: %v", took, err)
				}
				w.after(0, tc.leads)
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		w := newTown(t, 1, "+", upstreams(ats("1")...))
		k := w.keepers["cp1"]
		if took, err := leave(t, w, "cp1"); took != 0 || err != nil {
			t.Errorf("where none runs: %v after %v", err, took)
		}
		if v, err := k.View(t.Context()); err != nil || !v.Leaving {
			t.Errorf("it says %+v, %v", v, err)
		}
	})
}

// TestServersChange: a removed one leaves at once, though its API server is well, and
// one that joins is added.
func TestServersChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTown(t, 3, "+++", upstreams(ats("1 2 3")...))
		defer w.run("cp1", "cp2", "cp3")()
		w.after(time.Second, "1 2 3")
		w.change(func() { w.servers = w.servers[:2] })
		w.after(attentive, "1 2")
		w.change(func() { w.servers = nodes(3) })
		w.after(attentive, "1 2 3")
		w.change(func() { w.servers[2].Address = at(33) }) // it has moved, and nobody has seen it there yet
		w.after(attentive, "1 2")
	})
}

// TestFewServersWaitLonger: where etcd is on other machines one server alone may still
// write. It takes those that are gone off the list when nobody has objected for a while.
func TestFewServersWaitLonger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTown(t, 3, "+++", upstreams(ats("1 2 3")...))
		defer w.run("cp1", "cp2", "cp3")()
		w.after(time.Second, "1 2 3")
		w.change(func() { w.silent["cp2"], w.silent["cp3"] = true, true })
		w.see("cp2", "---")
		w.see("cp3", "---")
		w.see("cp1", "+--")
		w.after(lonely, "1 2 3")
		w.after(2*lonely, "1")
	})
	synctest.Test(t, func(t *testing.T) { // cp3 is cut off, and the others write meanwhile
		w := newTown(t, 3, "--+", upstreams(ats("1 2 3")...))
		w.change(func() { w.silent["cp1"], w.silent["cp2"] = true, true })
		defer w.run("cp3")()
		w.after(lonely-time.Second, "1 2 3")
		w.api.set(func() {
			others := upstreams(ats("1 2")...)
			w.api.slice, w.api.endpoints = others.slice, others.endpoints
		})
		w.after(abandoned+time.Second, "1 2")
		w.after(regularly, "3")
	})
	synctest.Test(t, func(t *testing.T) { // what was over before it counted does not count the next time
		w := newTown(t, 3, "+++", upstreams(ats("1 2 3")...))
		defer w.run("cp1", "cp2", "cp3")()
		away := func(away bool, marks ...string) {
			w.change(func() { w.silent["cp2"], w.silent["cp3"] = away, away })
			for i, server := range []string{"cp1", "cp2", "cp3"} {
				w.see(server, marks[i])
			}
		}
		away(true, "+--", "---", "---")
		w.after(lonely-2*time.Second, "1 2 3")
		away(false, "+++", "+++", "+++")
		w.after(time.Hour, "1 2 3")
		away(true, "+--", "---", "---")
		w.after(lonely-2*time.Second, "1 2 3")
		w.after(2*lonely, "1")
	})
	synctest.Test(t, func(t *testing.T) { // cp1 is started alone, and was off the list
		w := newTown(t, 3, "+--", upstreams(ats("2 3")...))
		w.change(func() { w.silent["cp2"], w.silent["cp3"] = true, true })
		defer w.run("cp1")()
		w.after(abandoned-time.Second, "2 3")
		w.after(regularly+3*time.Second, "1")
	})
}

// TestSilentBalancer: who cannot ask its own balancer says nothing, and follows it again
// when that is back.
func TestSilentBalancer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		states := make(chan endpoint.States)
		k := New(Config{
			Self: "cp1", API: upstreams(), Log: slog.New(slog.DiscardHandler),
			Balancer: func(ctx context.Context, since uint64) (endpoint.States, error) {
				if since == 0 {
					select {
					case s := <-states:
						return s, nil
					case <-ctx.Done():
					}
				}
				return endpoint.States{}, errors.New("away")
			},
		})
		begin := time.Now()
		if v, err := k.View(t.Context()); err == nil || time.Since(begin) != askPatience {
			t.Errorf("%v, %v after %v", v, err, time.Since(begin))
		}
		ctx, cancel := context.WithCancel(t.Context())
		news, ended := make(chan map[string]bool, 1), make(chan struct{})
		go func() {
			defer close(ended)
			k.watch(ctx, news)
		}()
		for version := uint64(1); version < 4; version++ {
			states <- endpoint.States{Version: version}
			synctest.Wait()
		}
		if len(news) != 1 {
			t.Error("no news")
		}
		cancel()
		<-ended
	})
}

// TestGatherLeavesTheDead: an agent that says nothing is waited for, but not if its API
// server does not work either.
func TestGatherLeavesTheDead(t *testing.T) {
	for name, tc := range map[string]struct {
		own  map[string]bool
		want time.Duration
	}{
		"off":      {map[string]bool{"10.0.0.1": true, "10.0.0.2": true, "10.0.0.3": false}, illPatience},
		"works":    {map[string]bool{"10.0.0.1": true, "10.0.0.2": true, "10.0.0.3": true}, askPatience},
		"unjudged": {nil, illPatience},
	} {
		synctest.Test(t, func(t *testing.T) {
			nodes := []cluster.Node{{Name: "a", Address: "10.0.0.1"}, {Name: "b", Address: "10.0.0.2"}, {Name: "c", Address: "10.0.0.3"}}
			k := New(Config{
				Self:     "a",
				Balancer: func(context.Context, uint64) (endpoint.States, error) { return endpoint.States{}, nil },
				Ask: func(ctx context.Context, n cluster.Node) (View, error) {
					if n.Name == "b" {
						return View{}, nil
					}
					<-ctx.Done()
					return View{}, ctx.Err()
				},
			})
			l := look{Keeper: k, own: tc.own}
			begin := time.Now()
			views := l.gather(t.Context(), nodes)
			if took := time.Since(begin); took != tc.want || len(views) != 2 {
				t.Errorf("%s: %d views after %v, not %v", name, len(views), took, tc.want)
			}
			synctest.Wait()
		})
	}
}
