// Package cluster holds the words of the domain: the Spec a user writes in
// cluster.yaml, its nodes and roles, and the problems kuorum reports. It
// reads no disk and no clock; every other package may import it.
package cluster

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// APIVersion and Kind head every cluster.yaml.
const (
	APIVersion = "kuorum.dev/v1alpha1"
	Kind       = "Cluster"
)

// Spec is a cluster.yaml: everything a user may decide about a cluster. The
// zero value of each field means "the default"; Default fills them in.
type Spec struct {
	APIVersion string   `json:"apiVersion"`
	Kind       string   `json:"kind"`
	Metadata   Metadata `json:"metadata"`
	Spec       Body     `json:"spec"`
}

// Metadata names the cluster.
type Metadata struct {
	// Name is a DNS label of at most 40 characters: it becomes part of
	// contexts (kuorum-NAME), cgroups and host names.
	Name string `json:"name"`
}

// Body is the part of a cluster.yaml under "spec".
type Body struct {
	// Servers, EtcdNodes and Workers count machines to be named and addressed
	// by kuorum: cp1..cpN, e1..eN and w1..wN. Nodes lists them one by one
	// instead; a file has one or the other. Default turns counts into Nodes
	// and sets the counts back to 0, so that a complete Spec has Nodes only.
	Servers   int    `json:"servers,omitempty"`
	EtcdNodes int    `json:"etcdNodes,omitempty"`
	Workers   int    `json:"workers,omitempty"`
	Nodes     []Node `json:"nodes,omitempty"`

	Network    Network    `json:"network"`
	Endpoint   Endpoint   `json:"endpoint"`
	DNS        DNS        `json:"dns"`
	Etcd       Etcd       `json:"etcd"`
	Kubernetes Kubernetes `json:"kubernetes"`

	Certificates Certificates `json:"certificates"`

	Lab Lab `json:"lab"`
}

// Node is one machine.
type Node struct {
	// Name is a DNS label of at most 40 characters and also the host name.
	// It and Role have no default: a listed node says both.
	Name string `json:"name"`
	Role Role   `json:"role"`
	// Address is an IP address in Network.Nodes. It changes by `kuorum node
	// address` only.
	Address string `json:"address,omitempty"`
	// Labels go on the Kubernetes node object, which an etcd node has none of.
	Labels map[string]string `json:"labels,omitempty"`
	// Moved is kuorum's own note of changes of Address.
	Moved Move `json:"moved,omitzero"`
}

// Move is what is known of a node's earlier addresses.
type Move struct {
	// Times counts the changes of its address: of two notes, the one that
	// counts more is the younger.
	Times int `json:"times,omitempty"`
	// From are the addresses at which others may still look for the node,
	// the oldest first. It is empty once its move has come to its end.
	From []string `json:"from,omitempty"`
}

// Network holds the three address ranges of a cluster and how pods of
// different machines reach each other.
type Network struct {
	// Nodes is the machines' own network. In the lab it exists only between
	// the lab's namespaces, never on the host.
	Nodes string `json:"nodes,omitempty"`
	// Pods is cut into one range of PodPrefix bits for each node.
	Pods      string `json:"pods,omitempty"`
	PodPrefix int    `json:"podPrefix,omitempty"`
	Services  string `json:"services,omitempty"`
	// Backend is "vxlan" (default) or "host-gw" (one L2 network only).
	Backend string `json:"backend,omitempty"`
	// MTU of the machines' links, in bytes; pods get what the backend leaves.
	MTU int `json:"mtu,omitempty"`
}

// DNS of the cluster: one server on every node, at the same node-local address.
type DNS struct {
	Domain string `json:"domain,omitempty"`
	// Address is a link-local address that every node puts on its lo.
	Address string `json:"address,omitempty"`
	// Upstream servers for other names; empty means the machine's resolv.conf.
	Upstream []string `json:"upstream,omitempty"`
}

// Etcd settings. The timers must satisfy 5 x heartbeat <= election timeout.
type Etcd struct {
	Heartbeat       Duration `json:"heartbeat,omitempty"`
	ElectionTimeout Duration `json:"electionTimeout,omitempty"`
	// QuotaMiB is the size of the database at which etcd raises its alarm.
	QuotaMiB int `json:"quotaMiB,omitempty"`
	// External is an etcd that somebody else runs, who alone sets all of the
	// above: they stay 0 then.
	External ExternalEtcd `json:"external,omitzero"`
}

// ExternalEtcd is an etcd that somebody else runs. Without Endpoints there is
// none: the cluster runs its own.
type ExternalEtcd struct {
	// Endpoints are the https URLs of its members for clients, all of them.
	Endpoints []string `json:"endpoints,omitempty"`
	// CA, Certificate and Key are files, PEM, by which servers trust etcd and it
	// them; a path that is not absolute is relative to the cluster.yaml. They mean
	// something where a cluster is made, and only there: what they hold becomes
	// part of its secrets, and every other cluster.yaml is without them.
	CA          string `json:"ca,omitempty"`
	Certificate string `json:"certificate,omitempty"`
	Key         string `json:"key,omitempty"`
}

func (e ExternalEtcd) given() bool {
	return len(e.Endpoints) > 0 || e.CA != "" || e.Certificate != "" || e.Key != ""
}

// NamesFiles tells whether the files are named that a new cluster needs.
func (e ExternalEtcd) NamesFiles() bool { return e.CA != "" && e.Certificate != "" && e.Key != "" }

// Certificates settings.
type Certificates struct {
	// Life of a node's certificates, a year by default. They are renewed when
	// two thirds of it are over.
	Life Duration `json:"life,omitempty"`
}

// Kubernetes settings that kuorum does not leave to upstream's defaults.
type Kubernetes struct {
	// PodSecurity is the level that namespaces without a label enforce:
	// "privileged", "baseline" (default) or "restricted".
	PodSecurity string `json:"podSecurity,omitempty"`
	// MaxPods a node.
	MaxPods int `json:"maxPods,omitempty"`
	// FeatureGates of all Kubernetes programs, by name.
	FeatureGates map[string]bool `json:"featureGates,omitempty"`
	// ControllerManager and Scheduler run on each server, and one of each is at work.
	ControllerManager Elected `json:"controllerManager"`
	Scheduler         Elected `json:"scheduler"`
}

// Elected is a program of which the servers elect one to do the work.
type Elected struct {
	LeaderElection LeaderElection `json:"leaderElection"`
}

// LeaderElection is how upstream's programs elect a leader: whoever holds a Lease.
// RetryPeriod * 1.2 < RenewDeadline < LeaseDuration.
type LeaderElection struct {
	// LeaseDuration is how long the others wait after the last renewal that they
	// saw before one of them takes the lease, in whole seconds.
	LeaseDuration Duration `json:"leaseDuration,omitempty"`
	// RenewDeadline is how long the leader tries to renew before it ends.
	RenewDeadline Duration `json:"renewDeadline,omitempty"`
	// RetryPeriod is between two renewals; the others look after one to 2.2 of it.
	RetryPeriod Duration `json:"retryPeriod,omitempty"`
	// ResourceName and ResourceNamespace are the Lease's, whose namespace must exist.
	ResourceName      string `json:"resourceName,omitempty"`
	ResourceNamespace string `json:"resourceNamespace,omitempty"`
	ResourceLock      string `json:"resourceLock,omitempty"` // "leases": upstream has no other any more
}

// Lab settings matter only when the cluster runs on one host.
type Lab struct {
	// Port on the host's 127.0.0.1 that leads to the API; 0 picks a free one
	// and keeps it for the lab's life.
	Port int `json:"port,omitempty"`
}

// Servers lists the nodes with the role server, in file order.
func (s *Spec) Servers() []Node { return s.withRole(RoleServer) }

// ServerNames lists the servers in a sentence, in file order.
func (s *Spec) ServerNames() string {
	var names []string
	for _, n := range s.Servers() {
		names = append(names, n.Name)
	}
	return strings.Join(names, ", ")
}

// Balancers lists the nodes with the role balancer, in file order. There are some with
// EndpointHAProxy only.
func (s *Spec) Balancers() []Node { return s.withRole(RoleBalancer) }

// Workers lists the nodes with the role worker, in file order.
func (s *Spec) Workers() []Node { return s.withRole(RoleWorker) }

// EtcdApart tells whether etcd has machines of its own. A cluster is made in
// one way or the other and stays so, see With.
func (s *Spec) EtcdApart() bool { return len(s.withRole(RoleEtcd)) > 0 }

// EtcdExternal tells whether somebody else runs etcd: no node has a member, and
// nothing of it is changed but the cluster's own keys.
func (s *Spec) EtcdExternal() bool { return s.Spec.Etcd.External.given() }

// EtcdNodes lists the nodes that run etcd's members, in file order: those with
// the role etcd, or the servers where there is none of that role. There are none
// where somebody else runs etcd.
func (s *Spec) EtcdNodes() []Node {
	switch {
	case s.EtcdExternal():
		return nil
	case s.EtcdApart():
		return s.withRole(RoleEtcd)
	}
	return s.Servers()
}

// WithoutEtcdFiles is the spec as all but its author keep it: the files of an
// etcd that somebody else runs are not named. s itself is not changed.
func (s *Spec) WithoutEtcdFiles() *Spec {
	kept := *s
	kept.Spec.Etcd.External = ExternalEtcd{Endpoints: s.Spec.Etcd.External.Endpoints}
	return &kept
}

// HasMember tells whether a node, which need not be in the spec yet, runs an
// etcd member in this cluster.
func (s *Spec) HasMember(n Node) bool {
	return !s.EtcdExternal() && (n.Role == RoleEtcd || n.Role == RoleServer && !s.EtcdApart())
}

// KubernetesNodes lists those that register with Kubernetes, in file order.
func (s *Spec) KubernetesNodes() []Node {
	return slices.DeleteFunc(slices.Clone(s.Spec.Nodes), func(n Node) bool { return !n.Role.RunsPods() })
}

// Node returns the node of that name, and whether there is one.
func (s *Spec) Node(name string) (Node, bool) {
	for _, n := range s.Spec.Nodes {
		if n.Name == name {
			return n, true
		}
	}
	return Node{}, false
}

func (s *Spec) withRole(role Role) []Node {
	var nodes []Node
	for _, n := range s.Spec.Nodes {
		if n.Role == role {
			nodes = append(nodes, n)
		}
	}
	return nodes
}

// With is the spec with node n, in place of one of the same name if there is
// one. s itself is not changed. The result is validated. A cluster whose etcd
// runs on its servers takes no etcd node, since all servers would cease to be
// members at once: that is refused (ExitRefused).
func (s *Spec) With(n Node) (*Spec, error) {
	grown := *s
	grown.Spec.Nodes = slices.Clone(s.Spec.Nodes)
	at := slices.IndexFunc(grown.Spec.Nodes, func(have Node) bool { return have.Name == n.Name })
	if at < 0 {
		grown.Spec.Nodes = append(grown.Spec.Nodes, n)
	} else {
		grown.Spec.Nodes[at] = n
	}
	if grown.EtcdApart() != s.EtcdApart() {
		return nil, movesEtcd("make " + n.Name + " a node with the role " + string(n.Role))
	}
	grown.Default()
	return &grown, grown.Validate()
}

// Without is the spec without the node of that name. s itself is not changed.
// The result is validated: a cluster needs a server. The last etcd node stays,
// since all data would go with it, and so does the last balancer, with which the
// API's address would (ExitRefused).
func (s *Spec) Without(name string) (*Spec, error) {
	shrunk := *s
	shrunk.Spec.Nodes = slices.DeleteFunc(slices.Clone(s.Spec.Nodes), func(have Node) bool { return have.Name == name })
	if len(shrunk.Spec.Nodes) == 0 {
		return nil, &Problem{What: name + " is the only node", Why: "a cluster needs a server", Exit: ExitRefused}
	}
	if shrunk.EtcdApart() != s.EtcdApart() {
		return nil, movesEtcd("remove the last etcd node, " + name)
	}
	if len(s.Balancers()) > 0 && len(shrunk.Balancers()) == 0 {
		return nil, &Problem{
			What: "refused to remove the last balancer, " + name, Why: "nobody would have the address of the API, " + s.Spec.Endpoint.Address,
			Do: "let another one join first: kuorum token create --role balancer", Exit: ExitRefused,
		}
	}
	return &shrunk, shrunk.Validate()
}

// WithTimers is the spec with these timers of etcd. s itself is not changed.
// The result is validated.
func (s *Spec) WithTimers(heartbeat, election time.Duration) (*Spec, error) {
	timed := *s
	timed.Spec.Etcd.Heartbeat, timed.Spec.Etcd.ElectionTimeout = Duration(heartbeat), Duration(election)
	return &timed, timed.Validate()
}

func movesEtcd(verb string) error {
	return &Problem{
		What: "refused to " + verb,
		Why:  "etcd is on the servers, on machines of its own, or somebody else's, for the life of a cluster",
		Do:   "make a new cluster with kuorum up --etcd N, or spec.etcdNodes", Exit: ExitRefused,
	}
}

// Elections are how the servers elect one of each program that only one of them
// does the work of, by the program's name.
func (s *Spec) Elections() map[string]LeaderElection {
	return map[string]LeaderElection{
		ControllerManagerName: s.Spec.Kubernetes.ControllerManager.LeaderElection,
		SchedulerName:         s.Spec.Kubernetes.Scheduler.LeaderElection,
	}
}

// Digest tells one cluster.yaml from another. Specs that cannot be written have
// none.
func (s *Spec) Digest() string {
	text, err := s.YAML()
	if err != nil {
		return ""
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:8])
}

// ServiceIP is the first address of the services' range, which Kubernetes
// gives to the Service of its own API (10.96.0.1 by default). It is the zero
// Addr when the range is missing or malformed, which Validate rules out.
func (s *Spec) ServiceIP() netip.Addr {
	services, err := netip.ParsePrefix(s.Spec.Network.Services)
	if err != nil {
		return netip.Addr{}
	}
	return services.Masked().Addr().Next()
}

// Duration is a time.Duration written as Go writes it ("100ms"), in JSON and
// in YAML alike.
type Duration time.Duration

// String writes d as Go does.
func (d Duration) String() string { return time.Duration(d).String() }

// MarshalText writes d as Go does; it never fails.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads what MarshalText writes.
func (d *Duration) UnmarshalText(text []byte) error {
	parsed, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("cannot read duration %s: write a number and a unit, such as 100ms or 1.5s", quote(string(text)))
	}
	*d = Duration(parsed)
	return nil
}
