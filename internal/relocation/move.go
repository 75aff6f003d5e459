// Package relocation is how nodes get other addresses: which changes of a
// cluster's cluster.yaml are possible, which of two copies is the younger, and
// by which way etcd's members find each other until their own data says where
// the others are now. A node whose address has changed keeps its name, its
// member and its data.
package relocation

import (
	"fmt"
	"maps"
	"net"
	"net/url"
	"slices"
	"strconv"

	"kuorum/internal/cluster"
	"kuorum/internal/component"
)

// Paths of the agents' API that this package is behind.
const (
	MovePath    = "/v1/address"         // POST Order, answers Ready; as a server or an administrator
	ArrivedPath = "/v1/address/arrived" // POST Arrival; as that node
)

// Order tells an agent where nodes are now.
type Order struct {
	Addresses map[string]string `json:"addresses"` // by the names of nodes
	// Dry only checks.
	Dry bool `json:"dry"`
}

// Ready is an agent's answer: it can follow the order, or does already.
type Ready struct {
	// Known tells that its cluster.yaml has these addresses already.
	Known bool `json:"known"`
}

// Arrival is said by a node that is at its new address.
type Arrival struct {
	Name    string `json:"name"`
	Address string `json:"address"`
}

// Apply is spec with the nodes at the addresses of the order, each with a note
// of where it was. A node that is there already stays as it is, so that an
// order may be repeated. It is refused as a whole, with a *cluster.Problem,
// when it names an unknown node, or an address that cannot be a node's or at
// which another is, or is still looked for.
func Apply(spec *cluster.Spec, order map[string]string) (*cluster.Spec, error) {
	if len(order) == 0 {
		return nil, &cluster.Problem{What: "no node is named", Do: "kuorum node address NAME=ADDRESS", Exit: cluster.ExitUsage}
	}
	next := *spec
	next.Spec.Nodes = slices.Clone(spec.Spec.Nodes)
	for _, name := range slices.Sorted(maps.Keys(order)) {
		at := slices.IndexFunc(next.Spec.Nodes, func(n cluster.Node) bool { return n.Name == name })
		if at < 0 {
			return nil, &cluster.Problem{
				What: fmt.Sprintf("%q is no node of cluster %s", name, spec.Metadata.Name), Do: "kuorum status", Exit: cluster.ExitUsage,
			}
		}
		if order[name] == "" { // Validate would take it for one that is to be chosen
			return nil, &cluster.Problem{What: name + " gets no address", Do: "kuorum node address " + name + "=ADDRESS", Exit: cluster.ExitUsage}
		}
		next.Spec.Nodes[at] = to(next.Spec.Nodes[at], order[name])
	}
	if err := next.Validate(); err != nil {
		return nil, &cluster.Problem{What: "the nodes cannot be at these addresses", Err: err, Exit: cluster.ExitRefused}
	}
	return &next, nil
}

// to is n at another address. That it may be one it had before is why the
// changes are counted.
func to(n cluster.Node, address string) cluster.Node {
	if n.Address == address {
		return n
	}
	from := slices.DeleteFunc(append(slices.Clone(n.Moved.From), n.Address), func(old string) bool { return old == address })
	n.Moved = cluster.Move{Times: n.Moved.Times + 1, From: from}
	n.Address = address
	return n
}

// Moving lists the nodes of spec whose move has not come to its end.
func Moving(spec *cluster.Spec) []cluster.Node {
	var nodes []cluster.Node
	for _, n := range spec.Spec.Nodes {
		if len(n.Moved.From) > 0 {
			nodes = append(nodes, n)
		}
	}
	return nodes
}

// Same tells whether two entries of a name are of the same node, which may have
// moved between them, rather than of another machine that took its name: each
// knows where the node was, and one that joins anew was nowhere.
func Same(a, b cluster.Node) bool {
	was := append([]string{b.Address}, b.Moved.From...)
	return slices.Contains(was, a.Address) || slices.ContainsFunc(a.Moved.From, func(old string) bool { return slices.Contains(was, old) })
}

// Merge is what a node makes of a cluster.yaml that it hears of: heard, but with
// the younger of the two addresses of each node, so that an order which the
// others have not heard of yet is not undone. names tells whether the node's own
// etcd member still looks for another at an address: until it does not, the
// note of that address stays.
func Merge(mine, heard *cluster.Spec, names func(address string) bool) *cluster.Spec {
	merged := *heard
	merged.Spec.Nodes = slices.Clone(heard.Spec.Nodes)
	for i, n := range merged.Spec.Nodes {
		own, ok := mine.Node(n.Name)
		if !ok || !Same(own, n) {
			continue
		}
		if own.Moved.Times > n.Moved.Times && len(own.Moved.From) > 0 {
			merged.Spec.Nodes[i].Address, merged.Spec.Nodes[i].Moved = own.Address, own.Moved
			continue
		}
		merged.Spec.Nodes[i].Moved.From = keep(own, n, names)
	}
	return &merged
}

// keep is the earlier addresses that count: those that the others note, and
// those at which our own member still looks.
func keep(own, heard cluster.Node, names func(string) bool) []string {
	from := slices.Clone(heard.Moved.From)
	for _, old := range own.Moved.From {
		if old != heard.Address && !slices.Contains(from, old) && names(old) {
			from = append(from, old)
		}
	}
	return from
}

// Names tells which addresses are in the peer URLs of members. Without members
// nothing is known, and every address may be.
func Names(members []cluster.EtcdMember) func(address string) bool {
	return func(address string) bool {
		return len(members) == 0 || slices.ContainsFunc(members, func(m cluster.EtcdMember) bool { return isAt(m, address) })
	}
}

func isAt(m cluster.EtcdMember, address string) bool {
	return slices.ContainsFunc(m.PeerURLs, func(text string) bool {
		u, err := url.Parse(text)
		return err == nil && u.Host == net.JoinHostPort(address, strconv.Itoa(component.PortEtcdPeer))
	})
}

// Correction is a member that etcd does not have at its node's address.
type Correction struct {
	Node, ID, PeerURL string
}

// Corrections lists the members of nodes that move which are still noted at an
// address that their node had before. Members are changed by their ID:
// none is replaced. One without a name has never started: it is of a machine
// that joins at such an address.
func Corrections(spec *cluster.Spec, members []cluster.EtcdMember) []Correction {
	var all []Correction
	for _, n := range spec.EtcdNodes() {
		for _, m := range members {
			if m.Name == n.Name && slices.ContainsFunc(n.Moved.From, func(old string) bool { return isAt(m, old) }) {
				all = append(all, Correction{Node: n.Name, ID: m.ID, PeerURL: component.PeerURL(n)})
			}
		}
	}
	return all
}

// Record is the register's cluster.yaml with the moves of mine that it does not
// have. It fails when two moves do not go together.
func Record(mine, register *cluster.Spec) (*cluster.Spec, error) {
	next := Merge(mine, register, func(string) bool { return false })
	if err := next.Validate(); err != nil {
		return nil, &cluster.Problem{What: "the moves of two nodes do not go together", Err: err, Do: "kuorum node address", Exit: cluster.ExitRefused}
	}
	return next, nil
}

// Arrived is the cluster.yaml in which the node's move has come to its end: it
// is at its new address, and knows that. A node that is elsewhere is left as it
// is.
func Arrived(spec *cluster.Spec, a Arrival) *cluster.Spec {
	next := *spec
	next.Spec.Nodes = slices.Clone(spec.Spec.Nodes)
	for i, n := range next.Spec.Nodes {
		if n.Name == a.Name && n.Address == a.Address {
			next.Spec.Nodes[i].Moved.From = nil
		}
	}
	return &next
}
