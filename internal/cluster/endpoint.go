package cluster

import (
	"cmp"
	"net"
	"net/netip"
	"strconv"
	"time"

	"k8s.io/apimachinery/pkg/api/validate/content"
)

// EndpointType says how those who are no node of the cluster find its API.
type EndpointType string

// The types. The nodes themselves use a balancer of their own in every case.
const (
	// EndpointVIP is an address that one of the servers holds, another one if
	// that fails: VRRP, for machines on one L2 network.
	EndpointVIP EndpointType = "vip"
	// EndpointLocal is none: every server answers at its own address.
	EndpointLocal EndpointType = "local"
	// EndpointHAProxy is an address that one of the nodes with the role balancer holds,
	// on which HAProxy leads to the servers: keepalived, on one L2 network (ADR 0032).
	EndpointHAProxy EndpointType = "haproxy"
	// EndpointAddress is a balancer or a name that somebody else runs.
	EndpointAddress EndpointType = "address"
)

// Endpoint is the one address of the API that stays.
type Endpoint struct {
	Type EndpointType `json:"type,omitempty"`
	// Address is the virtual IP, in Network.Nodes and no node's; or the other's
	// balancer, an IP address or a name. Without a port it is the API's, 6443.
	Address string    `json:"address,omitempty"`
	VIP     VirtualIP `json:"vip,omitzero"`
}

// VirtualIP are the settings of VRRP (RFC 9568), the same on all who may hold it.
type VirtualIP struct {
	// ID tells virtual routers on one network apart, 1 to 255.
	ID int `json:"id,omitempty"`
	// Interval between the holder's advertisements, in steps of 10 ms. After
	// three that did not come, and up to one more, another server takes over.
	Interval Duration `json:"interval,omitempty"`
}

const (
	defaultVRRPID       = 51 // as the guides' examples have it
	defaultVRRPInterval = 100 * time.Millisecond
	minVRRPInterval     = 10 * time.Millisecond
	maxVRRPInterval     = 40 * time.Second
	vrrpTick            = 10 * time.Millisecond
	endpointPath        = "spec.endpoint"
)

// maxBalancers each have a priority of their own.
const maxBalancers = 16

// HasVIP tells whether some nodes hold a virtual IP in turns.
func (e Endpoint) HasVIP() bool { return e.Type == EndpointVIP || e.Type == EndpointHAProxy }

// ServersHoldVIP tells whether servers hold a virtual IP.
func (s *Spec) ServersHoldVIP() bool { return s.Spec.Endpoint.Type == EndpointVIP }

// VIPHolders are the nodes that hold the virtual IP in turns, in order.
func (s *Spec) VIPHolders() []Node {
	switch s.Spec.Endpoint.Type {
	case EndpointVIP:
		return s.Servers()
	case EndpointHAProxy:
		return s.Balancers()
	case EndpointLocal, EndpointAddress:
	}
	return nil
}

// VIPKeeper is the component by which nodes hold it.
func (s *Spec) VIPKeeper() string {
	if s.Spec.Endpoint.Type == EndpointHAProxy {
		return "keepalived"
	}
	return "endpoint"
}

// EndpointHost is the name or address at which others find the API, without a
// port; empty where there is none but the servers'.
func (s *Spec) EndpointHost() string {
	host, _, err := net.SplitHostPort(s.Spec.Endpoint.Address)
	if err != nil {
		return s.Spec.Endpoint.Address
	}
	return host
}

// endpoint fills in what has a default, after the nodes have their addresses:
// the virtual IP is the last of their network that is left, and where none is,
// there is no virtual IP unless it was asked for.
func (b *Body) endpoint() {
	e := &b.Endpoint
	if e.Type == "" && e.Address == "" {
		if e.Address = b.lastFree(); e.Address == "" {
			e.Type = EndpointLocal
		}
	}
	e.Type = cmp.Or(e.Type, EndpointVIP)
	if !e.HasVIP() {
		return
	}
	e.Address = cmp.Or(e.Address, b.lastFree())
	e.VIP.ID = cmp.Or(e.VIP.ID, defaultVRRPID)
	e.VIP.Interval = cmp.Or(e.VIP.Interval, Duration(defaultVRRPInterval))
}

// lastFree is the highest address of the nodes' network that is nobody's; empty
// if there is none.
func (b *Body) lastFree() string {
	network, err := netip.ParsePrefix(b.Network.Nodes)
	if err != nil || !network.Addr().Is4() || size(network) < 4 {
		return ""
	}
	used := b.addresses()
	for host := uint32(size(network) - 2); host >= lowestHost; host-- {
		if a := hostAddr(network, host); !used[a] {
			return a.String()
		}
	}
	return ""
}

// addresses are those that are taken: nodes', and the virtual one.
func (b *Body) addresses() map[netip.Addr]bool {
	used := map[netip.Addr]bool{}
	for _, n := range b.Nodes {
		if a, err := netip.ParseAddr(n.Address); err == nil {
			used[a] = true
		}
	}
	if a, err := netip.ParseAddr(b.Endpoint.Address); err == nil && b.Endpoint.Type != EndpointAddress {
		used[a] = true
	}
	return used
}

func (v *validator) endpoint() {
	e := v.spec.Spec.Endpoint
	known := []string{string(EndpointVIP), string(EndpointHAProxy), string(EndpointLocal), string(EndpointAddress)}
	v.oneOf(endpointPath+".type", string(e.Type), known...)
	v.balancers(e)
	if !e.HasVIP() && e.VIP != (VirtualIP{}) {
		v.clash([]string{endpointPath + ".vip", endpointPath + ".type"}, "there is no virtual IP with the type %s", quote(string(e.Type)))
	}
	switch e.Type {
	case EndpointVIP, EndpointHAProxy:
		v.virtualIP(e)
	case EndpointLocal:
		if e.Address != "" {
			v.clash([]string{endpointPath + ".address", endpointPath + ".type"}, "there is no address with the type \"local\": leave it out")
		}
	case EndpointAddress:
		v.foreignEndpoint(e.Address)
	}
}

// balancers are there with the type haproxy, and with no other.
func (v *validator) balancers(e Endpoint) {
	n := len(v.spec.Balancers())
	switch {
	case e.Type == EndpointHAProxy && n == 0:
		v.clash([]string{nodesPath, endpointPath + ".type"}, "no balancer among them: the type \"haproxy\" needs nodes with \"role: balancer\", best two")
	case e.Type != EndpointHAProxy && n > 0:
		v.clash([]string{nodesPath, endpointPath + ".type"}, "%s is a balancer, which is for the type \"haproxy\" only", v.spec.Balancers()[0].Name)
	case n > maxBalancers:
		v.refuse(nodesPath, "%d balancers are too many: use at most %d", n, maxBalancers)
	}
}

func (v *validator) virtualIP(e Endpoint) {
	const path = endpointPath + ".address"
	v.between(endpointPath+".vip.id", e.VIP.ID, 1, 255)
	interval := time.Duration(e.VIP.Interval)
	if interval < minVRRPInterval || interval > maxVRRPInterval || interval%vrrpTick != 0 {
		v.refuse(endpointPath+".vip.interval", "%v is not a multiple of %v between %v and %v", interval, vrrpTick, minVRRPInterval, maxVRRPInterval)
	}
	network, wrong := ipv4Range(v.spec.Spec.Network.Nodes)
	if wrong != "" {
		return // said of the network
	}
	if e.Address == "" {
		v.clash([]string{path, "spec.network.nodes", nodesPath}, "no address of %s is left for the virtual IP: use a larger network, or the type \"local\"", network)
		return
	}
	address, wrong := ipv4Addr(e.Address)
	if wrong != "" {
		v.refuse(path, "%s", wrong)
		return
	}
	if wrong := notForNode(address, network); wrong != "" {
		v.clash([]string{path, "spec.network.nodes"}, "%s %s", address, wrong)
		return
	}
	for i, n := range v.spec.Spec.Nodes {
		if n.Address == address.String() {
			v.clash([]string{path, item(nodesPath, i) + ".address"}, "%s is the address of %s: the virtual IP is nobody's own", address, n.Name)
		}
	}
}

// foreignEndpoint takes an IP address or a name, with or without a port.
func (v *validator) foreignEndpoint(text string) {
	const path = endpointPath + ".address"
	if text == "" {
		v.refuse(path, "missing: the type \"address\" needs that of the balancer")
		return
	}
	host, port, err := net.SplitHostPort(text)
	if err != nil {
		host, port = text, "6443"
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		v.refuse(path, "%s has no port between 1 and 65535", quote(text))
		return
	}
	if a, err := netip.ParseAddr(host); err == nil {
		if a.IsLoopback() || a.IsUnspecified() || a.IsMulticast() || a.Zone() != "" {
			v.refuse(path, "%s is not the address of another machine", quote(host))
		}
		return
	}
	if len(content.IsDNS1123Subdomain(host)) > 0 {
		v.refuse(path, "%s is neither an IP address nor a name such as api.example.org", quote(host))
	}
}
