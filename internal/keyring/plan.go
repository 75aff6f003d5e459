package keyring

import (
	"maps"
	"slices"
	"strings"

	"kuorum/internal/cluster"
	"kuorum/internal/pki"
)

// Rotation is how far the authorities of a cluster are replaced, by what its
// nodes have on their disks. Nothing else remembers it.
type Rotation struct {
	// New names the keys of the authorities to come, as pki.Set.Signers does;
	// nil when no rotation is under way.
	New map[string]string
	// From is the name of a server that has their keys.
	From string

	left map[string]Phase // what each node needs next; none when it is done
}

// Next is the phase that comes next, and the nodes that are not in it, in the
// order of the Spec; none when all is done.
func (r Rotation) Next(nodes []cluster.Node) (Phase, []cluster.Node) {
	for _, phase := range Phases() {
		var list []cluster.Node
		for _, n := range nodes {
			if r.left[n.Name] == phase {
				list = append(list, n)
			}
		}
		if len(list) > 0 {
			return phase, list
		}
	}
	return "", nil
}

// Survey finds out how far a rotation is. Every node must have answered. It is a
// *cluster.Problem when a node does not tell its certificates.
func Survey(nodes []cluster.Node, reports []cluster.NodeReport) (Rotation, error) {
	told := map[string][]cluster.CertificateStatus{}
	for _, r := range reports {
		if r.Status != nil {
			told[r.Name] = r.Status.Certificates
		}
	}
	var list []ring
	for _, n := range nodes {
		g := ringOf(n, told[n.Name])
		if !g.complete() {
			return Rotation{}, &cluster.Problem{
				What: n.Name + " does not tell which authorities it trusts",
				Why:  "its agent does not answer, is of an older kuorum, or one of its authorities' files is damaged", Do: "kuorum certs list " + n.Name, Exit: cluster.ExitRefused,
			}
		}
		list = append(list, g)
	}
	r := Rotation{New: successorsOf(list), left: map[string]Phase{}}
	if r.New == nil {
		return r, nil
	}
	for _, g := range list {
		r.left[g.node.Name] = g.needs(r.New)
		if r.From == "" && g.node.Role == cluster.RoleServer && (maps.Equal(g.next, r.New) || maps.Equal(g.signers(), r.New)) {
			r.From = g.node.Name
		}
	}
	return r, nil
}

// ring is what a node has, by the paths of pki.AuthorityPaths.
type ring struct {
	node    cluster.Node
	paths   []string            // that such a node has
	trusted map[string][]string // keys; the first signs
	next    map[string]string   // keys that were put aside
	leaves  []string            // the keys that its own certificates were signed by
}

func ringOf(n cluster.Node, list []cluster.CertificateStatus) ring {
	g := ring{node: n, paths: pki.AuthorityPaths(n.Role), trusted: map[string][]string{}, next: map[string]string{}}
	leaves := pki.LeafPaths(n.Role) // others are somebody else's, who put them there
	for _, c := range list {
		path, own := strings.CutPrefix(c.File, "pki/")
		aside, next := strings.CutPrefix(c.File, nextDir+"/")
		switch {
		case own && slices.Contains(g.paths, path):
			g.trusted[path] = append(g.trusted[path], c.Key)
		case next && slices.Contains(g.paths, aside):
			g.next[aside] = c.Key
		case slices.Contains(leaves, c.File):
			g.leaves = append(g.leaves, c.Key)
		}
	}
	return g
}

func (g ring) complete() bool {
	return !slices.ContainsFunc(g.paths, func(path string) bool { return len(g.trusted[path]) == 0 || g.trusted[path][0] == "" })
}

func (g ring) signers() map[string]string {
	signers := map[string]string{}
	for _, path := range g.paths {
		signers[path] = g.trusted[path][0]
	}
	return signers
}

// alone tells whether the node trusts one authority of each kind, and has none
// aside.
func (g ring) alone() bool {
	return len(g.next) == 0 && !slices.ContainsFunc(g.paths, func(path string) bool { return len(g.trusted[path]) > 1 })
}

// successorsOf names the authorities to come: those that a server has aside and
// not all servers sign with; of several those that somebody trusts already.
// Later, when no server has to be told, those that the servers sign with. It is
// nil when no rotation is under way.
func successorsOf(list []ring) map[string]string {
	servers := slices.DeleteFunc(slices.Clone(list), func(g ring) bool { return g.node.Role != cluster.RoleServer })
	var found map[string]string
	for _, g := range servers {
		if len(g.next) < len(g.paths) || !slices.ContainsFunc(servers, func(other ring) bool { return !maps.Equal(other.signers(), g.next) }) {
			continue
		}
		if trusted := slices.ContainsFunc(list, func(other ring) bool { return other.trustsAll(g.next) }); trusted {
			return g.next
		}
		if found == nil {
			found = g.next
		}
	}
	if found != nil || len(servers) == 0 || !slices.ContainsFunc(list, func(g ring) bool { return !g.alone() }) {
		return found
	}
	return servers[0].signers()
}

func (g ring) trustsAll(keys map[string]string) bool {
	return !slices.ContainsFunc(g.paths, func(path string) bool { return !slices.Contains(g.trusted[path], keys[path]) })
}

// needs is the phase that the node is not in yet; nothing when it is done.
func (g ring) needs(fresh map[string]string) Phase {
	signs := !slices.ContainsFunc(g.paths, func(path string) bool { return g.trusted[path][0] != fresh[path] })
	server := g.node.Role == cluster.RoleServer
	if !g.trustsAll(fresh) || server && !signs && !g.hasAside(fresh) {
		return PhaseTrust
	}
	known := slices.Collect(maps.Values(fresh))
	if !signs || slices.ContainsFunc(g.leaves, func(key string) bool { return !slices.Contains(known, key) }) {
		return PhaseSign
	}
	if !g.alone() {
		return PhaseForget
	}
	return ""
}

func (g ring) hasAside(fresh map[string]string) bool {
	return !slices.ContainsFunc(g.paths, func(path string) bool { return g.next[path] != fresh[path] })
}
