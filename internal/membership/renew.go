package membership

import (
	"context"
	"path"
	"slices"
	"strings"
	"time"

	"kuorum/internal/agent"
	"kuorum/internal/cluster"
	"kuorum/internal/keyring"
	"kuorum/internal/pki"
)

// Renewal is the request of a node that is no server for new certificates.
type Renewal struct {
	Name     string            `json:"name"`
	Requests map[string][]byte `json:"requests"`
}

// Renew signs a node's requests, as the register has that node. That the caller
// is that node is for the caller of Renew to know.
func (s *Service) Renew(ctx context.Context, r Renewal) (Admission, error) {
	spec, err := s.Register.Spec(ctx)
	if err != nil {
		return Admission{}, err
	}
	return s.Sign(spec, r)
}

// Sign is Renew for a caller that knows better than the register where nodes
// are now. It asks nobody.
func (s *Service) Sign(spec *cluster.Spec, r Renewal) (Admission, error) {
	node, ok := spec.Node(r.Name)
	if !ok {
		return Admission{}, unknownNode(spec, r.Name)
	}
	set, err := keyring.Keys(s.Dir)
	if err != nil {
		return Admission{}, err
	}
	set.LeafLife = time.Duration(spec.Spec.Certificates.Life)
	certificates, err := set.SignRequests(spec, node, r.Requests, time.Now())
	return Admission{Spec: spec, Certificates: certificates, Trust: set.Trust()}, err
}

// AskRenewal returns new files for a node that is no server when one of the
// certificates in have is due, or does not name where the node is, and nothing
// otherwise. It makes new keys and asks one server after the other to sign.
func AskRenewal(ctx context.Context, agents *agent.Client, spec *cluster.Spec, node cluster.Node, have map[string][]byte) ([]pki.File, error) {
	if !anyDue(have, time.Now()) && atHome(spec, node, have) {
		return nil, nil
	}
	return AskRenewalNow(ctx, agents, spec, node)
}

// AskRenewalNow is AskRenewal whatever the node has. The files of the
// authorities are among those it returns: all that the server trusts.
func AskRenewalNow(ctx context.Context, agents *agent.Client, spec *cluster.Spec, node cluster.Node) ([]pki.File, error) {
	keys, err := pki.NewNodeKeys(node.Role)
	if err != nil {
		return nil, err
	}
	requests, err := keys.Requests()
	if err != nil {
		return nil, err
	}
	var signed Admission
	servers := agent.Servers{Client: agents, Nodes: spec.Servers(), Patience: checkPatience}
	if err := servers.Call(ctx, RenewPath, Renewal{Name: node.Name, Requests: requests}, &signed); err != nil {
		return nil, &cluster.Problem{
			What: "the certificates of " + node.Name + " are not renewed", Err: err,
			Do: "kuorum status; a node whose certificates have ended: kuorum leave --force, then kuorum join",
		}
	}
	return keys.Files(signed.Spec, node, signed.Certificates, signed.Trust)
}

// atHome tells whether a node's certificates name the address of node, and none
// but that and, while it moves, earlier ones.
func atHome(spec *cluster.Spec, node cluster.Node, have map[string][]byte) bool {
	paths := []string{"pki/agent.crt"}
	switch node.Role {
	case cluster.RoleServer, cluster.RoleWorker:
		paths = append(paths, "pki/kubelet.crt")
	case cluster.RoleEtcd:
		paths = append(paths, "pki/etcd/server.crt", "pki/etcd/peer.crt")
	case cluster.RoleBalancer:
	}
	now, _ := spec.Node(node.Name)
	return !slices.ContainsFunc(paths, func(path string) bool { return !pki.MadeOutTo(have[path], node.Address, now.Moved.From...) })
}

// anyDue looks at a node's own certificates, not at the authorities'.
func anyDue(have map[string][]byte, now time.Time) bool {
	for name, data := range have {
		ext := path.Ext(name)
		if ext != ".crt" && ext != ".pem" || strings.HasSuffix(name, "ca.crt") {
			continue
		}
		if from, until, err := pki.Validity(data); err != nil || pki.Due(from, until, now) {
			return true
		}
	}
	return false
}
