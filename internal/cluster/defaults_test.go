package cluster

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestDefaultIsIdempotent draws specs, most of them invalid, and expects a
// second Default to change nothing.
func TestDefaultIsIdempotent(t *testing.T) {
	for seed := range uint64(2000) {
		s := randomSpec(rand.New(rand.NewPCG(seed, 0)))
		s.Default()
		once := clone(s)
		s.Default()
		if diff := cmp.Diff(once, s); diff != "" {
			t.Fatalf("seed %d: a second Default changed (-once +twice):\n%s", seed, diff)
		}
	}
}

// TestDefaultKeepsWhatIsGiven draws specs and expects every value that was
// there before Default to be there after it.
func TestDefaultKeepsWhatIsGiven(t *testing.T) {
	for seed := range uint64(2000) {
		s := randomSpec(rand.New(rand.NewPCG(seed, 1)))
		before := clone(s)
		s.Default()
		for i, n := range before.Spec.Nodes {
			if n.Address != "" && s.Spec.Nodes[i].Address != n.Address {
				t.Fatalf("seed %d: node %d moved from %s to %s", seed, i, n.Address, s.Spec.Nodes[i].Address)
			}
			s.Spec.Nodes[i].Address = n.Address
		}
		if before.Spec.Network.Nodes != "" && s.Spec.Network.Nodes != before.Spec.Network.Nodes {
			t.Fatalf("seed %d: network changed to %s", seed, s.Spec.Network.Nodes)
		}
		if len(before.Spec.Nodes) > 0 {
			if diff := cmp.Diff(before.Spec.Nodes, s.Spec.Nodes); diff != "" {
				t.Fatalf("seed %d: nodes changed:\n%s", seed, diff)
			}
		}
		if before.Spec.Etcd.Heartbeat != 0 && s.Spec.Etcd.Heartbeat != before.Spec.Etcd.Heartbeat {
			t.Fatalf("seed %d: heartbeat changed to %v", seed, s.Spec.Etcd.Heartbeat)
		}
	}
}

// TestValidateAnySpec draws specs that nobody defaulted; the point is that
// nothing panics, and that Validate and Parse agree about the valid ones.
func TestValidateAnySpec(t *testing.T) {
	valid := 0
	for seed := range uint64(500) {
		s := randomSpec(rand.New(rand.NewPCG(seed, 2)))
		if s.Validate() == nil {
			t.Fatalf("seed %d: a spec without MTU is valid", seed)
		}
		s.Default()
		shown := show(t, s)
		_, parsed := Parse("cluster.yaml", shown)
		if got := s.Validate(); (got == nil) != (parsed == nil) {
			t.Fatalf("seed %d: Validate says %v, Parse says %v", seed, got, parsed)
		} else if got == nil {
			valid++
		}
	}
	if valid < 20 {
		t.Errorf("only %d of the specs were valid", valid)
	}
}

func randomSpec(r *rand.Rand) *Spec {
	pick := func(values ...string) string { return values[r.IntN(len(values))] }
	s := &Spec{
		Metadata: Metadata{Name: pick("", "a", "prod", "lab-2", "Bad")},
		Spec: Body{
			Network: Network{
				Nodes:     pick("", "", "10.9.0.0/24", "10.9.0.0/29", "10.9.0.7/28", "0.0.0.0/0", "10.0.0.0/32", "fd00::/64", "nonsense"),
				PodPrefix: r.IntN(2) * (24 + r.IntN(2)),
			},
			Etcd: Etcd{Heartbeat: Duration(r.IntN(3) * 100_000_000)},
		},
	}
	if r.IntN(4) == 0 {
		s.Spec.Etcd.External = ExternalEtcd{Endpoints: []string{pick("https://10.0.0.1:2379", "https://etcd.example:2379", "nonsense")}, CA: pick("", "ca.crt")}
	}
	if r.IntN(2) == 0 {
		s.Spec.Servers = []int{0, 0, 1, 3, 9, 10, -1, math.MaxInt, math.MinInt}[r.IntN(9)]
		s.Spec.EtcdNodes = []int{0, 0, 0, 0, 3, 9, 10, -1}[r.IntN(8)]
		s.Spec.Workers = []int{0, 0, 1, 91, 97, 98, -1, math.MaxInt, math.MinInt}[r.IntN(9)]
	}
	if r.IntN(2) == 0 {
		for i := range r.IntN(12) {
			s.Spec.Nodes = append(s.Spec.Nodes, Node{
				Name:    fmt.Sprintf("n%d", i),
				Role:    Role(pick("server", "worker", "worker", "worker", "worker", "etcd")),
				Address: pick("", "", "", "", "198.18.0.11", "198.18.0.1", "10.9.0.2", "nonsense", "::1"),
			})
		}
	}
	return s
}

func clone(s *Spec) *Spec {
	c := *s
	c.Spec.Nodes = append([]Node(nil), s.Spec.Nodes...)
	return &c
}

func TestNew(t *testing.T) {
	for servers := 1; servers <= maxServers; servers++ {
		for _, workers := range []int{0, 1, 50, maxNodes - servers} {
			s, err := New("a", servers, workers)
			if err != nil {
				t.Fatalf("%d servers, %d workers: %v", servers, workers, err)
			}
			if len(s.Servers()) != servers || len(s.Workers()) != workers {
				t.Errorf("%d servers, %d workers became %d and %d", servers, workers, len(s.Servers()), len(s.Workers()))
			}
			if err := s.Validate(); err != nil {
				t.Errorf("%d servers, %d workers: %v", servers, workers, err)
			}
		}
	}
}

func TestNewMeansDefaults(t *testing.T) {
	s, err := New("", 0, 1)
	if err != nil {
		t.Fatal(err)
	}
	want := []Node{
		{Name: "cp1", Role: RoleServer, Address: "198.18.0.11"},
		{Name: "cp2", Role: RoleServer, Address: "198.18.0.12"},
		{Name: "cp3", Role: RoleServer, Address: "198.18.0.13"},
		{Name: "w1", Role: RoleWorker, Address: "198.18.0.101"},
	}
	if diff := cmp.Diff(want, s.Spec.Nodes); diff != "" {
		t.Errorf("nodes (-want +got):\n%s", diff)
	}
	if s.Metadata.Name != "kuorum" {
		t.Errorf("name %q", s.Metadata.Name)
	}
}

func TestNewRefuses(t *testing.T) {
	for _, c := range []struct {
		name             string
		servers, workers int
		want             string
	}{
		{"No", 3, 0, `metadata.name: "No" is not a name`},
		{"a", 10, 0, "spec.servers: 10 is not between 1 and 9"},
		{"a", -1, 0, "spec.servers: -1 is not between 1 and 9"},
		{"a", 3, 98, "spec.workers: 98 is not possible"},
		{"a", 3, -1, "spec.workers: -1 is not possible"},
	} {
		s, err := New(c.name, c.servers, c.workers)
		problem, ok := errors.AsType[*Problem](err)
		if !ok || s != nil {
			t.Errorf("New(%q, %d, %d) = %v, %v", c.name, c.servers, c.workers, s, err)
			continue
		}
		if problem.ExitCode() != ExitUsage || !strings.HasPrefix(problem.Why, c.want) {
			t.Errorf("New(%q, %d, %d): code %d, %s", c.name, c.servers, c.workers, problem.ExitCode(), problem.Why)
		}
	}
}

func TestWarnings(t *testing.T) {
	for servers := 1; servers <= maxServers; servers++ {
		s, err := New("a", servers, 2)
		if err != nil {
			t.Fatal(err)
		}
		if got := len(s.Warnings()); got != 1-servers%2 {
			t.Errorf("%d servers: warnings %q", servers, s.Warnings())
		}
	}
	s, err := New("a", 4, 0)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"4 servers need 3 for a quorum and survive the loss of 1: no more than 3 would; use 3 or 5"}
	if diff := cmp.Diff(want, s.Warnings()); diff != "" {
		t.Errorf("warnings (-want +got):\n%s", diff)
	}
	if s, err = NewApart("a", 2, 4, 0); err != nil {
		t.Fatal(err)
	}
	want = []string{"2 etcd nodes need 2 for a quorum and survive the loss of 0: no more than 1 would; use 1 or 3"}
	if diff := cmp.Diff(want, s.Warnings()); diff != "" {
		t.Errorf("warnings (-want +got):\n%s", diff)
	}
	if got := (&Spec{}).Warnings(); got != nil {
		t.Errorf("an empty spec: %q", got)
	}
}

// TestYAMLLeavesTheSpecAlone shows a spec without defaults.
func TestYAMLLeavesTheSpecAlone(t *testing.T) {
	s := &Spec{Spec: Body{Nodes: []Node{{Name: "a", Role: RoleServer}}}}
	before := clone(s)
	parsed(t, show(t, s))
	if diff := cmp.Diff(before, s); diff != "" {
		t.Errorf("changed by YAML (-before +after):\n%s", diff)
	}
}

// TestElectionIsFilledIn: what is missing of a leader election, and nothing else.
func TestElectionIsFilledIn(t *testing.T) {
	s := &Spec{}
	s.Spec.Kubernetes.Scheduler.LeaderElection = LeaderElection{LeaseDuration: Duration(20 * time.Second), ResourceName: "own"}
	s.Default()
	usual := LeaderElection{
		LeaseDuration: Duration(15 * time.Second), RenewDeadline: Duration(10 * time.Second), RetryPeriod: Duration(2 * time.Second),
		ResourceName: "kube-controller-manager", ResourceNamespace: "kube-system", ResourceLock: "leases",
	}
	own := usual
	own.LeaseDuration, own.ResourceName = Duration(20*time.Second), "own"
	if diff := cmp.Diff(map[string]LeaderElection{ControllerManagerName: usual, SchedulerName: own}, s.Elections()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if err := s.Validate(); err != nil {
		t.Error(err)
	}
}

// TestElectionsAreUpstreams: whatever times we take, client-go's own rules take.
func TestElectionsAreUpstreams(t *testing.T) {
	const jitterFactor = 1.2 // of k8s.io/client-go/tools/leaderelection
	taken, refused := 0, 0
	s, err := New("demo", 1, 0)
	if err != nil {
		t.Fatal(err)
	}
	for range 20_000 {
		lease, renew, retry := time.Duration(rand.N(6))*time.Second, time.Duration(rand.N(60))*100*time.Millisecond, time.Duration(rand.N(50))*100*time.Millisecond
		l := &s.Spec.Kubernetes.Scheduler.LeaderElection
		l.LeaseDuration, l.RenewDeadline, l.RetryPeriod = Duration(lease), Duration(renew), Duration(retry)
		if s.Validate() != nil {
			refused++
			continue
		}
		taken++
		if lease <= renew || renew <= time.Duration(jitterFactor*float64(retry)) || lease < 1 || renew < 1 || retry < 1 {
			t.Fatalf("we take %+v", l)
		}
	}
	if taken < 1000 || refused < 1000 {
		t.Errorf("%d elections were taken, %d refused", taken, refused)
	}
}
