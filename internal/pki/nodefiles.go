package pki

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"path"
	"slices"
	"time"

	"sigs.k8s.io/yaml"

	"kuorum/internal/cluster"
)

const (
	// balancerURL is the API balancer that every node runs for itself.
	balancerURL = "https://127.0.0.1:6443"
	// apiServerPort is where an API server itself listens, behind the balancers.
	apiServerPort = "6444"
)

// File is one file of a node; Path is relative to /etc/kuorum.
type File struct {
	Path string
	Data []byte
	Mode fs.FileMode
}

// NodeFiles makes every key, certificate and kubeconfig that a node needs, in
// kubeadm's layout, sorted by path. Certificates are new with each call and
// live a year, or as long as their authority if that is less. A worker gets no
// authority's key, nothing of etcd and no admin's rights. Every file with a
// secret has mode 0600, the others 0644. The spec must have its defaults
// filled in, and node must be one of its nodes.
func (s *Set) NodeFiles(spec *cluster.Spec, node cluster.Node, now time.Time) ([]File, error) {
	files, err := s.nodeFiles(spec, node, now)
	if err != nil {
		return nil, fmt.Errorf("cannot make the files of node %q: %w", node.Name, err)
	}
	return files, nil
}

func (s *Set) nodeFiles(spec *cluster.Spec, node cluster.Node, now time.Time) ([]File, error) {
	p, err := newPlan(spec, node)
	if err != nil {
		return nil, err
	}
	p.add(newFile("pki/"+fileCACert, s.Cluster.pair.Cert), newFile("pki/"+fileAgentCert, s.Agents.pair.Cert))
	leaves, configs := p.commonLeaves(s), p.commonConfigs()
	if node.Role == cluster.RoleServer {
		leaves = append(leaves, p.serverLeaves(s)...)
		configs = append(configs, p.serverConfigs()...)
		if err := p.addSecrets(s); err != nil {
			return nil, err
		}
	}
	for _, l := range leaves {
		pair, err := l.by.issueFor(now, l.req)
		if err != nil {
			return nil, err
		}
		p.add(newFile(l.path+".crt", pair.Cert), newFile(l.path+".key", pair.Key))
	}
	for _, c := range configs {
		pair, err := s.Cluster.issueFor(now, c.req)
		if err != nil {
			return nil, err
		}
		data, err := Kubeconfig(c.server, p.context, pair, s.Cluster.pair.Cert)
		if err != nil {
			return nil, err
		}
		p.add(newFile(c.path, data))
	}
	slices.SortFunc(p.files, func(a, b File) int { return cmp.Compare(a.Path, b.Path) })
	return p.files, nil
}

// newFile takes everything for secret that is not known to be public.
func newFile(name string, data []byte) File {
	mode := fs.FileMode(0o600)
	if ext := path.Ext(name); ext == ".crt" || ext == ".pub" {
		mode = 0o644
	}
	return File{Path: name, Data: data, Mode: mode}
}

// leaf is a certificate to issue; path is without extension.
type leaf struct {
	path string
	by   *Authority
	req  Request
}

// config is a kubeconfig to write; its client certificate is always from the
// cluster's authority.
type config struct {
	path, server string
	req          Request
}

// plan is one node, with all that its certificates must say checked and
// worked out.
type plan struct {
	context  string // of the kubeconfigs
	name     string
	address  netip.Addr
	apiNames []string
	apiIPs   []netip.Addr
	files    []File
}

func newPlan(spec *cluster.Spec, node cluster.Node) (*plan, error) {
	if spec.Metadata.Name == "" {
		return nil, errors.New("the cluster has no name")
	}
	if err := checkNode(spec, node); err != nil {
		return nil, err
	}
	addresses, err := nodeAddresses(spec)
	if err != nil {
		return nil, err
	}
	p := &plan{
		context: "kuorum-" + spec.Metadata.Name,
		name:    node.Name,
		address: addresses[node.Name],
	}
	if node.Role == cluster.RoleServer {
		return p, p.nameAPIServer(spec, addresses)
	}
	return p, nil
}

// checkNode compares with the spec's own entry, so that a stale copy cannot get
// the rights of a role, or the address, that it does not have any more.
func checkNode(spec *cluster.Spec, node cluster.Node) error {
	if node.Name == "" {
		return errors.New("it has no name")
	}
	known, ok := spec.Node(node.Name)
	if !ok {
		return fmt.Errorf("cluster %q has no such node: add it to spec.nodes", spec.Metadata.Name)
	}
	if known.Role != node.Role || known.Address != node.Address {
		return fmt.Errorf("it is a %s at %s in the spec, but a %s at %s was asked for",
			known.Role, known.Address, node.Role, node.Address)
	}
	if node.Role != cluster.RoleServer && node.Role != cluster.RoleWorker {
		return fmt.Errorf("its role is %q: it must be %s or %s", node.Role, cluster.RoleServer, cluster.RoleWorker)
	}
	return nil
}

func nodeAddresses(spec *cluster.Spec) (map[string]netip.Addr, error) {
	addresses := make(map[string]netip.Addr, len(spec.Spec.Nodes))
	for _, n := range spec.Spec.Nodes {
		if n.Name == "" {
			return nil, errors.New("a node of the spec has no name")
		}
		address, err := netip.ParseAddr(n.Address)
		if err != nil {
			return nil, fmt.Errorf("the address of node %q: %w", n.Name, err)
		}
		addresses[n.Name] = address
	}
	return addresses, nil
}

// nameAPIServer lists what clients call an API server. Every node is in it, not
// only this one: each node's balancer passes TLS through to any API server,
// which must then answer to the name that the client dialled.
func (p *plan) nameAPIServer(spec *cluster.Spec, addresses map[string]netip.Addr) error {
	domain := spec.Spec.DNS.Domain
	if domain == "" {
		return errors.New("spec.dns.domain is empty")
	}
	service, err := firstService(spec.Spec.Network.Services)
	if err != nil {
		return err
	}
	p.apiNames = []string{
		"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc." + domain, "localhost",
	}
	p.apiIPs = []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback(), service}
	for _, n := range spec.Spec.Nodes {
		p.apiNames = append(p.apiNames, n.Name)
		p.apiIPs = append(p.apiIPs, addresses[n.Name])
	}
	return nil
}

// firstService is the address that Kubernetes gives to its own Service.
func firstService(services string) (netip.Addr, error) {
	prefix, err := netip.ParsePrefix(services)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("spec.network.services: %w", err)
	}
	first := prefix.Masked().Addr().Next()
	if !prefix.Contains(first) {
		return netip.Addr{}, fmt.Errorf("spec.network.services: %s has no room for a Service", services)
	}
	return first, nil
}

func (p *plan) add(files ...File) { p.files = append(p.files, files...) }

// local completes a request with what a node's own programs are called by their
// peers and by each other.
func (p *plan) local(req Request) Request {
	req.Names = []string{p.name, "localhost"}
	req.IPs = []netip.Addr{p.address, netip.MustParseAddr("127.0.0.1")}
	return req
}

func (p *plan) nodeRequest() Request {
	return Request{CommonName: "system:node:" + p.name, Organizations: []string{groupNodes}}
}

func (p *plan) commonLeaves(s *Set) []leaf {
	kubelet := p.nodeRequest()
	kubelet.Server = true
	kubelet.Names, kubelet.IPs = []string{p.name}, []netip.Addr{p.address}
	agent := Request{
		CommonName: userAgentPrefix + p.name, Organizations: []string{GroupAgents}, Server: true, Client: true,
	}
	return []leaf{
		{"pki/kubelet", s.Cluster, kubelet},
		{"pki/agent", s.Agents, p.local(agent)},
		{"pki/endpoint", s.Cluster, client(UserEndpoint)},
	}
}

func (p *plan) commonConfigs() []config {
	kubelet := p.nodeRequest()
	kubelet.Client = true
	return []config{
		{"kubelet.conf", balancerURL, kubelet},
		{"kube-proxy.conf", balancerURL, client("system:kube-proxy")},
		{"coredns.conf", balancerURL, client(UserCoreDNS)},
		{"flannel.conf", balancerURL, client(UserFlannel)},
	}
}

func (p *plan) serverLeaves(s *Set) []leaf {
	apiServer := Request{CommonName: "kube-apiserver", Names: p.apiNames, IPs: p.apiIPs, Server: true}
	// Etcd's gateway dials its own server with the server's certificate, and
	// peers dial each other: both need to be clients as well.
	etcd := p.local(Request{CommonName: p.name, Server: true, Client: true})
	// Controller-manager and scheduler answer on the loopback only, and make
	// themselves a certificate that nobody can verify unless they are given one.
	local := Request{
		CommonName: "kuorum:local:" + p.name, Server: true,
		Names: []string{"localhost"}, IPs: []netip.Addr{netip.MustParseAddr("127.0.0.1")},
	}
	return []leaf{
		{"pki/apiserver", s.Cluster, apiServer},
		{"pki/local", s.Cluster, local},
		{"pki/apiserver-kubelet-client", s.Cluster, client("kube-apiserver-kubelet-client", GroupAPIServerKubelet)},
		{"pki/front-proxy-client", s.FrontProxy, client("front-proxy-client")},
		{"pki/apiserver-etcd-client", s.Etcd, client("kube-apiserver-etcd-client")},
		{"pki/etcd/server", s.Etcd, etcd},
		{"pki/etcd/peer", s.Etcd, etcd},
		{"pki/etcd/agent-client", s.Etcd, client("kuorum-agent")},
	}
}

func (p *plan) serverConfigs() []config {
	// A server's agent creates the role bindings and other system objects of a
	// new cluster, and must be able to restore them when someone has deleted
	// them: only system:masters needs no binding. It holds the authorities' keys
	// anyway. It asks its own API server, so that it works while the balancer
	// is down and tells the two apart.
	own := "https://" + net.JoinHostPort(p.address.String(), apiServerPort)
	return []config{
		{"controller-manager.conf", balancerURL, client("system:kube-controller-manager")},
		{"scheduler.conf", balancerURL, client("system:kube-scheduler")},
		{"admin.conf", balancerURL, adminRequest()},
		{"agent.conf", own, client(userAgentPrefix+p.name, groupMasters)},
	}
}

func client(user string, groups ...string) Request {
	return Request{CommonName: user, Organizations: groups, Client: true}
}

// addSecrets adds what all servers share: the set itself, with the encryption
// key in the form that the API server reads.
func (p *plan) addSecrets(s *Set) error {
	for name, data := range s.Files() {
		// The two authorities that a worker trusts are on every node already.
		if name != fileEncryption && name != fileCACert && name != fileAgentCert {
			p.add(newFile("pki/"+name, data))
		}
	}
	data, err := encryptionConfig(s.EncryptionKey[:])
	if err != nil {
		return err
	}
	p.add(newFile("encryption.yaml", data))
	return nil
}

// encryptionConfig is an apiserver.config.k8s.io/v1 EncryptionConfiguration. The
// last provider lets the API server read secrets that were written before
// there was a key.
func encryptionConfig(key []byte) ([]byte, error) {
	type object map[string]any
	secretbox := object{"keys": []object{{"name": "key1", "secret": key}}}
	data, err := yaml.Marshal(object{
		"apiVersion": "apiserver.config.k8s.io/v1",
		"kind":       "EncryptionConfiguration",
		"resources": []object{{
			"resources": []string{"secrets"},
			"providers": []object{{"secretbox": secretbox}, {"identity": object{}}},
		}},
	})
	if err != nil {
		return nil, fmt.Errorf("cannot write encryption.yaml: %w", err)
	}
	return data, nil
}
