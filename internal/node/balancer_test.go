package node

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"kuorum/internal/cluster"
	"kuorum/internal/history"
	"kuorum/internal/lease"
	"kuorum/internal/ledger"
	"kuorum/internal/loadbalancer"
	"kuorum/internal/supervise"
)

// network is where balancers of a test have the address in turns, as keepalived
// does it: it stays where it is until that one leaves it, and goes to the first that
// does not.
type network struct {
	mu    sync.Mutex
	order []string          // names of the balancers
	files map[string]string // in which each is told to leave it
	at    string
}

func (n *network) leaves(name string) bool {
	text, err := os.ReadFile(n.files[name])
	return err == nil && strings.TrimSpace(string(text)) != "0"
}

// has tells whether the address is at the balancer of that name.
func (n *network) has(name string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.at != "" && !n.leaves(n.at) {
		return n.at == name
	}
	n.at = ""
	for _, other := range n.order {
		if !n.leaves(other) {
			n.at = other
			break
		}
	}
	return n.at == name
}

// newBalancers is a village with the balancers lb1, lb2 and lb3, of which lb1 has the address.
func newBalancers(t *testing.T) (*village, *network) {
	t.Helper()
	spec, err := cluster.Parse("cluster.yaml", []byte(`apiVersion: kuorum.dev/v1alpha1
kind: Cluster
metadata: {name: demo}
spec:
  endpoint: {type: haproxy}
  nodes:
  - {name: cp1, role: server}
  - {name: w1, role: worker}
  - {name: lb1, role: balancer}
  - {name: lb2, role: balancer}
  - {name: lb3, role: balancer}
`))
	if err != nil {
		t.Fatal(err)
	}
	n := &network{files: map[string]string{}}
	v := newVillageOf(t, spec)
	var running sync.WaitGroup
	t.Cleanup(running.Wait)
	for _, b := range spec.Balancers() {
		a, dir := v.agents[b.Name], t.TempDir()
		n.order, n.files[b.Name] = append(n.order, b.Name), filepath.Join(dir, "yield")
		*a.vip = loadbalancer.Watch{
			Router:  loadbalancer.Router{Self: netip.MustParseAddr(b.Address), Yield: n.files[b.Name]},
			Here:    func(netip.Addr) (bool, error) { return n.has(b.Name), nil },
			Reaches: func(context.Context) error { return nil },
			Book:    ledger.New[cluster.VIPChange](filepath.Join(dir, "vip.jsonl"), rememberedVIP), Log: slog.New(slog.DiscardHandler),
		}
		a.book = history.NewBook(filepath.Join(dir, "leaders.jsonl"), filepath.Join(dir, "vip.jsonl"), b.Name)
		if err := a.vip.Settle(); err != nil {
			t.Fatal(err)
		}
		if a.supervisor, err = supervise.New(dir, slog.New(slog.DiscardHandler), nil); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range n.order {
		w := v.agents[name].vip
		w.Status(t.Context()) // before anything moves
		running.Go(func() { w.Run(t.Context()) })
	}
	t.Cleanup(n.settled)
	return v, n
}

func (n *network) where() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.at
}

// settled waits until nobody leaves the address to others any more.
func (n *network) settled() {
	for slices.ContainsFunc(n.order, n.leaves) {
		<-time.After(10 * time.Millisecond)
	}
}

// TestBalancersHandOver: the address goes to the one that is wished for, past one that
// would be quicker, and all may have it again afterwards.
func TestBalancersHandOver(t *testing.T) {
	t.Parallel()
	v, n := newBalancers(t)
	var moved lease.Moved
	if err := v.post(t, "somebody", "lb1", order{lease.MovePath, lease.Order{Program: lease.VIP, To: "lb3"}, &moved}); err != nil || moved.Leader != "lb3" || !n.has("lb3") {
		t.Fatalf("it is at %s: %+v, %v", n.where(), moved, err)
	}
	for _, name := range n.order {
		v.agents[name].vip.Status(t.Context())
	}
	for name, want := range map[string]history.Change{
		"lb1": {From: "lb1", To: "lb3", Why: "handed over by order"}, "lb3": {From: "lb1", To: "lb3", Why: "handed over by order"},
	} {
		var account history.Account
		if err := v.post(t, "somebody", name, order{history.Path, nil, &account}); err != nil || len(account.Changes) == 0 {
			t.Fatalf("%s remembers %+v, %v", name, account, err)
		}
		if got := account.Changes[len(account.Changes)-1]; got.From != want.From || got.To != want.To || got.Why != want.Why {
			t.Errorf("%s remembers %+v", name, got)
		}
	}
	if err := v.post(t, "cp1", "lb3", order{lease.MovePath, lease.Order{Program: lease.VIP, To: "lb2"}, &moved}); err != nil || !n.has("lb2") {
		t.Errorf("it is at %s: %v", n.where(), err)
	}
}

// TestBalancersRefuse: what is no order for a balancer changes nothing.
func TestBalancersRefuse(t *testing.T) {
	t.Parallel()
	v, n := newBalancers(t)
	for _, test := range []struct {
		caller, at string
		in         lease.Order
		exit       int
	}{
		{"w1", "lb1", lease.Order{Program: lease.VIP, To: "lb2"}, cluster.ExitRefused},
		{"somebody", "lb2", lease.Order{Program: lease.VIP, To: "lb3"}, cluster.ExitRefused}, // it is not there
		{"somebody", "lb1", lease.Order{Program: lease.VIP, To: "cp1"}, cluster.ExitUsage},
		{"somebody", "lb1", lease.Order{Program: cluster.SchedulerName, To: "lb2"}, cluster.ExitUsage},
	} {
		err := v.post(t, test.caller, test.at, order{lease.MovePath, test.in, nil})
		problem, ok := errors.AsType[*cluster.Problem](err)
		if !ok || problem.ExitCode() != test.exit || !n.has("lb1") {
			t.Errorf("%s may ask %s for %+v, and it is at %s: %v", test.caller, test.at, test.in, n.where(), err)
		}
	}
}
