package cluster

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/validate/content"
)

const (
	nodesPath     = "spec.nodes"
	etcdNodesPath = "spec.etcdNodes"
)

// Role says what a machine is for.
type Role string

// The roles. A server runs the control plane and pods, and etcd unless the
// cluster has etcd nodes; a worker runs pods only; an etcd node runs etcd only, a
// balancer HAProxy and keepalived, and both are no nodes of Kubernetes.
const (
	RoleServer   Role = "server"
	RoleWorker   Role = "worker"
	RoleEtcd     Role = "etcd"
	RoleBalancer Role = "balancer"
)

// Roles lists them all.
func Roles() []Role { return []Role{RoleServer, RoleWorker, RoleEtcd, RoleBalancer} }

// Noun is what a node of that role is called in a sentence: "a server".
func (r Role) Noun() string {
	if r == RoleEtcd {
		return "an etcd node"
	}
	return "a " + string(r)
}

// RunsPods tells whether nodes of that role are nodes of Kubernetes: they have a
// container runtime and a kubelet.
func (r Role) RunsPods() bool { return r == RoleServer || r == RoleWorker }

// MayVote tells whether nodes of that role may have an etcd member: they know of etcd,
// and what they say of it is believed.
func (r Role) MayVote() bool { return r == RoleServer || r == RoleEtcd }

func (v *validator) counts() {
	b := &v.spec.Spec
	const serversPath, etcdPath, workersPath = "spec.servers", etcdNodesPath, "spec.workers"
	if len(b.Nodes) > 0 {
		if b.Servers != 0 || b.EtcdNodes != 0 || b.Workers != 0 {
			v.clash([]string{nodesPath, serversPath, etcdPath, workersPath},
				"given together with servers, etcdNodes or workers: list the nodes or count them, not both")
		}
		return
	}
	v.between(serversPath, b.Servers, 1, maxServers)
	v.between(etcdPath, b.EtcdNodes, 0, maxServers)
	others := min(max(b.Servers, 0), maxServers) + min(max(b.EtcdNodes, 0), maxServers)
	if b.Workers < 0 || b.Workers > maxNodes-others {
		v.refuse(workersPath, "%d is not possible: a cluster has at most %d nodes of all roles together", b.Workers, maxNodes)
	}
}

func (v *validator) nodes() {
	nodes := v.spec.Spec.Nodes
	if len(nodes) > maxNodes {
		v.refuse(nodesPath, "%d nodes are too many: a cluster has at most %d", len(nodes), maxNodes)
		return
	}
	names := map[string]string{}
	for i, n := range nodes {
		path := item(nodesPath, i)
		v.name(path+".name", n.Name)
		if first, taken := names[n.Name]; taken && n.Name != "" {
			v.refuse(path+".name", "%s is the name of %s already", quote(n.Name), first)
		} else {
			names[n.Name] = path
		}
		v.role(path+".role", n.Role)
		if (n.Role == RoleEtcd || n.Role == RoleBalancer) && len(n.Labels) > 0 {
			v.refuse(path+".labels", "%s is no node of Kubernetes, which labels are for: leave them out", n.Role.Noun())
			continue
		}
		v.labels(path+".labels", n.Labels)
	}
	v.addresses()
	v.roles()
}

// roles checks how many nodes have which. Nodes with an unknown role are found
// for themselves, and may have been meant as servers.
func (v *validator) roles() {
	s := v.spec
	voters, what := len(s.EtcdNodes()), "servers"
	if s.EtcdApart() {
		what = "etcd nodes"
	}
	known := len(s.Workers()) + len(s.withRole(RoleEtcd)) + len(s.Balancers())
	switch {
	case len(s.Spec.Nodes) > 0 && known == len(s.Spec.Nodes):
		v.refuse(nodesPath, "no server among them: at least one node needs \"role: server\"")
	case voters > maxServers:
		v.refuse(nodesPath, "%d %s are too many: every write waits for more than half of them; use at most %d", voters, what, maxServers)
	}
}

func (v *validator) role(path string, role Role) {
	if role == "" {
		v.refuse(path, "missing: a node is a %s, a %s, a %s, or for %s only", RoleServer, RoleWorker, RoleBalancer, RoleEtcd)
		return
	}
	var known []string
	for _, r := range Roles() {
		known = append(known, string(r))
	}
	v.oneOf(path, string(role), known...)
}

// addresses checks those of the nodes, if their network is one.
func (v *validator) addresses() {
	const networkPath = "spec.network.nodes"
	network, wrong := ipv4Range(v.spec.Spec.Network.Nodes)
	if wrong != "" {
		return
	}
	taken := map[netip.Addr]string{}
	for i, n := range v.spec.Spec.Nodes {
		path := item(nodesPath, i) + ".address"
		if n.Address == "" {
			v.clash([]string{path, networkPath}, "no address of %s is left for this node: use a larger network", network)
			continue
		}
		a, wrong := ipv4Addr(n.Address)
		if wrong != "" {
			v.refuse(path, "%s", wrong)
			continue
		}
		if first, ok := taken[a]; ok {
			v.refuse(path, "%s is the address of %s already", a, first)
			continue
		}
		taken[a] = item(nodesPath, i)
		if wrong := notForNode(a, network); wrong != "" {
			v.clash([]string{path, networkPath}, "%s %s", a, wrong)
		}
	}
	v.moves(taken)
}

// moves checks earlier addresses: while one counts, nobody else may be there,
// or the two would be taken for each other.
func (v *validator) moves(taken map[netip.Addr]string) {
	for i, n := range v.spec.Spec.Nodes {
		path := item(nodesPath, i) + ".moved"
		if n.Moved.Times < 0 || n.Moved.Times == 0 && len(n.Moved.From) > 0 {
			v.refuse(path+".times", "%d is not possible: it counts the changes of the node's address", n.Moved.Times)
		}
		for j, text := range n.Moved.From {
			at := item(path+".from", j)
			a, wrong := ipv4Addr(text)
			if wrong != "" {
				v.refuse(at, "%s", wrong)
				continue
			}
			if other, ok := taken[a]; ok {
				v.refuse(at, "%s is still looked for at %s, the address of %s now: move it after that, or by way of a free address", n.Name, a, other)
				continue
			}
			taken[a] = item(nodesPath, i)
		}
	}
}

// notForNode says why an address of the network cannot be a node's.
func notForNode(a netip.Addr, network netip.Prefix) string {
	switch {
	case !network.Contains(a):
		return "is not in " + network.String() + ", the network of the nodes"
	case a == network.Addr():
		return "is the address of the network itself"
	case a == hostAddr(network, uint32(size(network)-1)):
		return "is the broadcast address of the network"
	case a == hostAddr(network, switchHost):
		return "is reserved for the switch of the lab"
	}
	return ""
}

func (v *validator) labels(path string, labels map[string]string) {
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		at := child(path, key)
		if wrong := content.IsLabelKey(key); len(wrong) > 0 {
			v.refuse(at, "not a label: %s", strings.Join(wrong, "; "))
			continue
		}
		if !mayLabel(key) {
			v.refuse(at, "reserved by Kubernetes, a node may not give it to itself: use a prefix of your own, or kubectl label once the cluster is up")
		}
		if wrong := content.IsLabelValue(labels[key]); len(wrong) > 0 {
			v.refuse(at, "%s is not the value of a label: %s", quote(labels[key]), strings.Join(wrong, "; "))
		}
	}
}

// mayLabel is whether a kubelet may give its own node the label. Under
// kubernetes.io and k8s.io that is only a short list, kept by the kubelet's
// --node-labels and the NodeRestriction admission plugin: a node that is broken
// into must not attract the pods of others (KEP-279). What the kubelet finds
// out for itself (arch, os, hostname) and the deprecated labels are left out.
func mayLabel(key string) bool {
	switch key {
	case "topology.kubernetes.io/region", "topology.kubernetes.io/zone":
		return true
	}
	prefix, _, hasPrefix := strings.Cut(key, "/")
	if !hasPrefix || within(prefix, "kubelet.kubernetes.io") || within(prefix, "node.kubernetes.io") {
		return true
	}
	return !within(prefix, "kubernetes.io") && !within(prefix, "k8s.io")
}

// within is whether a domain is, or lies below, another.
func within(domain, other string) bool {
	return domain == other || strings.HasSuffix(domain, "."+other)
}
