package cluster

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"
)

// The defaults of a cluster.yaml. The numbers of nodes and the name are for a
// lab; the rest suits real machines as well.
const (
	defaultName    = "kuorum"
	defaultServers = 3
	// 198.18.0.0/15 is for benchmarks (RFC 2544): nobody's LAN is there.
	defaultNodes     = "198.18.0.0/24"
	defaultPods      = "10.244.0.0/16" // as flannel's own manifest has it
	defaultPodPrefix = 24
	defaultServices  = "10.96.0.0/16"
	defaultBackend   = backendVXLAN
	defaultMTU       = 1500
	defaultDomain    = "cluster.local"
	// Kubernetes' documentation suggests link-local for a DNS on each node.
	defaultDNSAddress      = "169.254.20.10"
	defaultHeartbeat       = 100 * time.Millisecond // etcd's own default
	defaultElection        = time.Second            // etcd's own default
	defaultQuotaMiB        = 2048                   // etcd's own default
	defaultCertificateLife = 365 * 24 * time.Hour
	defaultPodSecurity     = "baseline"
	defaultMaxPods         = 110 // the kubelet's own default
)

// The defaults of a leader election are upstream's.
const (
	defaultLeaseDuration = 15 * time.Second
	defaultRenewDeadline = 10 * time.Second
	defaultRetryPeriod   = 2 * time.Second
	defaultLeaseSpace    = "kube-system"
	leaseLock            = "leases"
)

// DefaultElection is how the program of that name elects its leader unless its
// cluster.yaml says otherwise: what upstream's own flags default to.
func DefaultElection(program string) LeaderElection {
	var l LeaderElection
	l.fill(program)
	return l
}

func (l *LeaderElection) fill(program string) {
	l.LeaseDuration = cmp.Or(l.LeaseDuration, Duration(defaultLeaseDuration))
	l.RenewDeadline = cmp.Or(l.RenewDeadline, Duration(defaultRenewDeadline))
	l.RetryPeriod = cmp.Or(l.RetryPeriod, Duration(defaultRetryPeriod))
	l.ResourceName = cmp.Or(l.ResourceName, program)
	l.ResourceNamespace = cmp.Or(l.ResourceNamespace, defaultLeaseSpace)
	l.ResourceLock = cmp.Or(l.ResourceLock, leaseLock)
}

// Where the addresses of each role begin in the nodes' network; address 1 is
// the lab's switch.
const (
	switchHost       = 1
	firstServer      = 11
	defaultBalancers = 2 // with the type haproxy
	firstBalancer    = 41
	firstEtcd        = 51
	firstWorker      = 101
	lowestHost       = switchHost + 1
	maxServers       = 9
	maxNodes         = 100
	maxNameBytes     = 40
)

// New is a complete and valid Spec for a cluster without a file. An empty name
// and 0 servers mean the defaults. The error is a *Problem with ExitUsage.
func New(name string, servers, workers int) (*Spec, error) {
	return NewApart(name, 0, servers, workers)
}

// NewApart is New with that many etcd nodes; 0 leaves etcd on the servers.
func NewApart(name string, etcdNodes, servers, workers int) (*Spec, error) {
	s := &Spec{
		Metadata: Metadata{Name: name},
		Spec:     Body{Servers: servers, EtcdNodes: etcdNodes, Workers: workers},
	}
	s.Default()
	if issues := s.issues(); len(issues) > 0 {
		return nil, report("cannot plan this cluster", "", issues)
	}
	return s, nil
}

// Default fills in every field that has its zero value. With neither Nodes
// nor Servers there are 3 servers, also when other counts are given. Counts turn
// into Nodes; those that Validate would refuse stay as they are, and so does
// the address of a node for which its network has no room. Calling it again
// changes nothing.
func (s *Spec) Default() {
	s.APIVersion = cmp.Or(s.APIVersion, APIVersion)
	s.Kind = cmp.Or(s.Kind, Kind)
	s.Metadata.Name = cmp.Or(s.Metadata.Name, defaultName)

	n := &s.Spec.Network
	n.Nodes = cmp.Or(n.Nodes, defaultNodes)
	n.Pods = cmp.Or(n.Pods, defaultPods)
	n.PodPrefix = cmp.Or(n.PodPrefix, defaultPodPrefix)
	n.Services = cmp.Or(n.Services, defaultServices)
	n.Backend = cmp.Or(n.Backend, defaultBackend)
	n.MTU = cmp.Or(n.MTU, defaultMTU)

	d := &s.Spec.DNS
	d.Domain = cmp.Or(d.Domain, defaultDomain)
	d.Address = cmp.Or(d.Address, defaultDNSAddress)

	if e := &s.Spec.Etcd; !s.EtcdExternal() {
		e.Heartbeat = cmp.Or(e.Heartbeat, Duration(defaultHeartbeat))
		e.ElectionTimeout = cmp.Or(e.ElectionTimeout, Duration(defaultElection))
		e.QuotaMiB = cmp.Or(e.QuotaMiB, defaultQuotaMiB)
	}

	k := &s.Spec.Kubernetes
	k.PodSecurity = cmp.Or(k.PodSecurity, defaultPodSecurity)
	k.MaxPods = cmp.Or(k.MaxPods, defaultMaxPods)
	k.ControllerManager.LeaderElection.fill(ControllerManagerName)
	k.Scheduler.LeaderElection.fill(SchedulerName)

	c := &s.Spec.Certificates
	c.Life = cmp.Or(c.Life, Duration(defaultCertificateLife))

	s.Spec.expand()
	s.Spec.address()
	s.Spec.endpoint()
}

// expand turns counts into nodes.
func (b *Body) expand() {
	if len(b.Nodes) > 0 {
		return
	}
	b.Servers = cmp.Or(b.Servers, defaultServers)
	if !b.countsFit() {
		return
	}
	for i := range b.Servers {
		b.Nodes = append(b.Nodes, Node{Name: fmt.Sprintf("cp%d", i+1), Role: RoleServer})
	}
	for i := range b.EtcdNodes {
		b.Nodes = append(b.Nodes, Node{Name: fmt.Sprintf("e%d", i+1), Role: RoleEtcd})
	}
	for i := range b.Workers {
		b.Nodes = append(b.Nodes, Node{Name: fmt.Sprintf("w%d", i+1), Role: RoleWorker})
	}
	balancers := 0
	if b.Endpoint.Type == EndpointHAProxy {
		balancers = defaultBalancers
	}
	for i := range balancers {
		b.Nodes = append(b.Nodes, Node{Name: fmt.Sprintf("lb%d", i+1), Role: RoleBalancer})
	}
	b.Servers, b.EtcdNodes, b.Workers = 0, 0, 0
}

// countsFit is whether the counts make a cluster of a size kuorum accepts.
func (b *Body) countsFit() bool {
	return 1 <= b.Servers && b.Servers <= maxServers &&
		0 <= b.EtcdNodes && b.EtcdNodes <= maxServers &&
		0 <= b.Workers && b.Workers <= maxNodes-b.Servers-b.EtcdNodes
}

// address gives the nodes without address the next free one of their role.
func (b *Body) address() {
	network, err := netip.ParsePrefix(b.Network.Nodes)
	if err != nil || !network.Addr().Is4() || len(b.Nodes) > maxNodes {
		return
	}
	used := b.addresses()
	for i := range b.Nodes {
		n := &b.Nodes[i]
		if n.Address != "" {
			continue
		}
		if a, ok := nextFree(network, firstOf(n.Role), used); ok {
			used[a] = true
			n.Address = a.String()
		}
	}
}

// firstOf is where the addresses of a role begin.
func firstOf(role Role) uint32 {
	switch role {
	case RoleWorker:
		return firstWorker
	case RoleEtcd:
		return firstEtcd
	case RoleBalancer:
		return firstBalancer
	default:
		return firstServer
	}
}

// nextFree is the first address of the network from number first on that is
// not used. In a network too small for that, it is the lowest free one.
func nextFree(network netip.Prefix, first uint32, used map[netip.Addr]bool) (netip.Addr, bool) {
	end := uint32(size(network) - 1) // the broadcast address
	for _, from := range []uint32{first, lowestHost} {
		for host := from; host < end; host++ {
			if a := hostAddr(network, host); !used[a] {
				return a, true
			}
		}
	}
	return netip.Addr{}, false
}

// size is the number of addresses of an IPv4 range.
func size(p netip.Prefix) uint64 { return 1 << (32 - p.Bits()) }

// hostAddr is the address with that number in an IPv4 range.
func hostAddr(p netip.Prefix, host uint32) netip.Addr {
	base := p.Masked().Addr().As4()
	var out [4]byte
	binary.BigEndian.PutUint32(out[:], binary.BigEndian.Uint32(base[:])+host)
	return netip.AddrFrom4(out)
}
