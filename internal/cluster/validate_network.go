package cluster

import (
	"fmt"
	"math"
	"net/netip"

	"k8s.io/apimachinery/pkg/api/validate/content"
)

const (
	podPrefixPath = "spec.network.podPrefix"
	// maxPodPrefix leaves 13 addresses for pods.
	maxPodPrefix = 28
	// maxPodBits is how many bits kube-controller-manager can cut out of the
	// pods' range: it keeps a bit map of all nodes' ranges in memory.
	maxPodBits = 16
	// notForPods are the first and last address of a node's range and the
	// plugin's own.
	notForPods = 3
	// maxUpstream is what CoreDNS' forward plugin takes.
	maxUpstream = 15
)

// ipRange is one of the ranges of a cluster.
type ipRange struct {
	path, text   string
	widest, most int // bounds of the prefix length
	prefix       netip.Prefix
}

// special is a range that no part of a cluster may overlap.
type special struct {
	prefix netip.Prefix
	why    string
}

func specials() []special {
	return []special{
		{netip.PrefixFrom(netip.AddrFrom4([4]byte{}), 8), "which no machine can have"},
		{netip.PrefixFrom(netip.AddrFrom4([4]byte{127}), 8), "which never leaves a machine"},
		{linkLocal(), "the link-local range, where the DNS of each node is"},
		{netip.PrefixFrom(netip.AddrFrom4([4]byte{224}), 3), "which is multicast or reserved"},
	}
}

func linkLocal() netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{169, 254}), 16)
}

func (v *validator) network() {
	n := v.spec.Spec.Network
	ranges := []*ipRange{
		{path: "spec.network.nodes", text: n.Nodes, widest: 8, most: 29},
		{path: "spec.network.pods", text: n.Pods, widest: 8, most: maxPodPrefix - 1},
		// kube-apiserver refuses a services' range wider than /12.
		{path: "spec.network.services", text: n.Services, widest: 12, most: 24},
	}
	for i, r := range ranges {
		if !v.ipRange(r) {
			continue
		}
		for _, other := range ranges[:i] {
			if other.prefix.IsValid() && r.prefix.Overlaps(other.prefix) {
				v.clash([]string{r.path, other.path}, "%s overlaps %s, which is %s", r.prefix, other.prefix, other.path)
			}
		}
	}
	if pods := ranges[1].prefix; pods.IsValid() {
		v.podPrefix(pods)
	}
	v.oneOf("spec.network.backend", n.Backend, backendVXLAN, backendHostGW)
	v.between("spec.network.mtu", n.MTU, 1280, 9000)
}

// ipRange checks r on its own, and sets its prefix when that is usable.
func (v *validator) ipRange(r *ipRange) bool {
	p, wrong := ipv4Range(r.text)
	if wrong != "" {
		v.refuse(r.path, "%s", wrong)
		return false
	}
	if p.Bits() < r.widest || p.Bits() > r.most {
		v.refuse(r.path, "%s is not possible: use a range between /%d and /%d", p, r.widest, r.most)
		return false
	}
	for _, s := range specials() {
		if p.Overlaps(s.prefix) {
			v.refuse(r.path, "%s overlaps %s, %s", p, s.prefix, s.why)
			return false
		}
	}
	r.prefix = p
	return true
}

// podPrefix checks that the pods' range has a large enough part for each node.
func (v *validator) podPrefix(pods netip.Prefix) {
	s := v.spec.Spec
	prefix := s.Network.PodPrefix
	paths := []string{podPrefixPath, "spec.network.pods"}
	least, most := pods.Bits()+1, min(pods.Bits()+maxPodBits, maxPodPrefix)
	if prefix < least || prefix > most {
		v.clash(paths, "%d is not between %d and %d, which is what %s can be cut into", prefix, least, most, pods)
		return
	}
	if parts := 1 << (prefix - pods.Bits()); parts < len(v.spec.KubernetesNodes()) {
		v.clash(paths, "%s has %d ranges of /%d, too few for %d nodes", pods, parts, prefix, len(v.spec.KubernetesNodes()))
	}
	room := 1<<(32-prefix) - notForPods
	if s.Kubernetes.MaxPods > room {
		v.clash([]string{podPrefixPath, "spec.kubernetes.maxPods", "spec.network.pods"},
			"a range of /%d has addresses for %d pods, but maxPods is %d", prefix, room, s.Kubernetes.MaxPods)
	}
}

func (v *validator) dns() {
	d := v.spec.Spec.DNS
	if len(content.IsDNS1123Subdomain(d.Domain)) > 0 {
		v.refuse("spec.dns.domain", "%s is not a domain such as cluster.local", quote(d.Domain))
	}
	const addressPath = "spec.dns.address"
	address, wrong := ipv4Addr(d.Address)
	if wrong == "" {
		wrong = notForDNS(address)
	}
	if wrong != "" {
		v.refuse(addressPath, "%s", wrong)
	}
	if len(d.Upstream) > maxUpstream {
		v.refuse("spec.dns.upstream", "%d servers are too many: use at most %d", len(d.Upstream), maxUpstream)
		return
	}
	for i, upstream := range d.Upstream {
		path := item("spec.dns.upstream", i)
		a, err := netip.ParseAddr(upstream)
		switch {
		case err != nil || a.Zone() != "":
			v.refuse(path, "%s is not an IP address", quote(upstream))
		case a.IsUnspecified() || a.IsMulticast():
			v.refuse(path, "%s is not the address of a server", a)
		case a == address:
			v.clash([]string{path, addressPath}, "%s is the cluster's own DNS: it would ask itself", a)
		}
	}
}

// notForDNS says why an address cannot be that of the nodes' DNS.
func notForDNS(a netip.Addr) string {
	third := a.As4()[2]
	switch {
	case !linkLocal().Contains(a):
		return fmt.Sprintf("%s is not in %s: the address must mean the machine itself on every machine", a, linkLocal())
	case third == 0 || third == math.MaxUint8:
		return fmt.Sprintf("%s is reserved: use 169.254.1.0 to 169.254.254.255 (RFC 3927)", a)
	case a == netip.AddrFrom4([4]byte{169, 254, 169, 254}):
		return fmt.Sprintf("%s is where clouds answer their machines' questions: use another", a)
	}
	return ""
}

// ipv4Range reads a range; otherwise it says what is wrong with the text.
func ipv4Range(text string) (netip.Prefix, string) {
	p, err := netip.ParsePrefix(text)
	one, _ := netip.ParseAddr(text) // The zero Addr is neither IPv4 nor IPv6.
	switch {
	case one.Is6() || p.Addr().Is6():
		return netip.Prefix{}, quote(text) + " is IPv6, which is not supported yet: use an IPv4 range"
	case one.Is4():
		return netip.Prefix{}, fmt.Sprintf("%s is one address: a range such as %s/24 is needed", quote(text), one)
	case err != nil:
		return netip.Prefix{}, quote(text) + " is not a range such as 10.244.0.0/16"
	case p != p.Masked():
		return netip.Prefix{}, fmt.Sprintf("%s is an address inside a range, did you mean %q?", quote(text), p.Masked())
	}
	return p, ""
}

// ipv4Addr reads an address; otherwise it says what is wrong with the text.
func ipv4Addr(text string) (netip.Addr, string) {
	a, err := netip.ParseAddr(text)
	if err != nil {
		return netip.Addr{}, quote(text) + " is not an IPv4 address such as 192.0.2.1"
	}
	if !a.Is4() {
		return netip.Addr{}, quote(text) + " is IPv6, which is not supported yet: use an IPv4 address"
	}
	return a, ""
}
