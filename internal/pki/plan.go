package pki

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"kuorum/internal/cluster"
)

const (
	// balancerURL is the API balancer that every node runs for itself.
	balancerURL = "https://127.0.0.1:6443"
	// apiServerPort is where an API server itself listens, behind the balancers.
	apiServerPort = "6444"
	kubeletClient = "pki/apiserver-kubelet-client"
)

// KubeletClientPath is the certificate, among a server's files, that its API server
// shows to kubelets.
const KubeletClientPath = kubeletClient + ".crt"

// plan is one node, with all that its certificates must say checked and
// worked out. Everything that makes, asks for or checks a node's certificates
// goes by its items.
type plan struct {
	context  string // of the kubeconfigs
	name     string
	role     cluster.Role
	member   bool // it runs a member of etcd
	external bool // somebody else runs etcd, and signs for its clients
	address  netip.Addr
	earlier  []netip.Addr // where others may still look for it
	apiNames []string
	apiIPs   []netip.Addr
}

// item is a certificate of a node, and how it and its key lie on the disk: as
// path.crt and path.key, or, if there is a server, in one file to which the
// kubeconfig path refers. People copy admin.conf: it holds them itself.
type item struct {
	path string
	// by is the file name of the authority that signs it.
	by     string
	server string
	req    Request
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
		role:    node.Role,
		member:  spec.HasMember(node),
		address: addresses[node.Name],

		external: spec.EtcdExternal(),
	}
	if p.earlier, err = earlierAddresses(spec, node.Name); err != nil {
		return nil, err
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
	if !slices.Contains(cluster.Roles(), node.Role) {
		return fmt.Errorf("its role is %q: it must be one of %v", node.Role, cluster.Roles())
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

// earlierAddresses are in the certificates of a node with an etcd member while
// it moves: who looks for it there must find that it is the one.
func earlierAddresses(spec *cluster.Spec, name string) ([]netip.Addr, error) {
	node, _ := spec.Node(name)
	if !spec.HasMember(node) {
		return nil, nil // nobody does
	}
	var earlier []netip.Addr
	for _, text := range node.Moved.From {
		address, err := netip.ParseAddr(text)
		if err != nil {
			return nil, fmt.Errorf("an earlier address of node %q: %w", name, err)
		}
		earlier = append(earlier, address)
	}
	return earlier, nil
}

// nameAPIServer lists what clients call an API server. Every node of Kubernetes
// is in it, not only this one: each node's balancer passes TLS through to any API
// server, which must then answer to the name that the client dialled.
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
	for _, n := range spec.KubernetesNodes() {
		p.apiNames = append(p.apiNames, n.Name)
		p.apiIPs = append(p.apiIPs, addresses[n.Name])
	}
	if host := spec.EndpointHost(); host != "" {
		if a, err := netip.ParseAddr(host); err == nil {
			p.apiIPs = append(p.apiIPs, a)
		} else {
			p.apiNames = append(p.apiNames, host)
		}
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

// items are all certificates of the node. Their paths depend on the role, and
// those of a server on whether it has a member.
func (p *plan) items() []item {
	items := []item{pairItem("pki/agent", fileAgentCert, p.agent())}
	if p.role.RunsPods() {
		items = append(items, p.kubernetesItems()...)
	}
	if p.role == cluster.RoleServer {
		items = append(append(items, p.serverPairs()...), p.serverConfigs()...)
	}
	return append(items, p.etcdPairs()...)
}

// agent is for both ends of the agents' API. Only servers speak for the cluster.
func (p *plan) agent() Request {
	r := Request{CommonName: userAgentPrefix + p.name, Organizations: []string{GroupAgents}, Server: true, Client: true}
	if p.role == cluster.RoleServer {
		r.Organizations = append(r.Organizations, GroupServers)
	}
	return p.local(r)
}

// kubernetesItems are those of every node of Kubernetes.
func (p *plan) kubernetesItems() []item {
	kubelet := p.nodeRequest()
	kubelet.Server = true
	kubelet.Names, kubelet.IPs = []string{p.name}, []netip.Addr{p.address}
	kubeletClient := p.nodeRequest()
	kubeletClient.Client = true
	return []item{
		pairItem("pki/kubelet", fileCACert, kubelet),
		pairItem("pki/endpoint", fileCACert, client(UserEndpoint)),
		configItem("kubelet.conf", balancerURL, kubeletClient),
		configItem("kube-proxy.conf", balancerURL, client("system:kube-proxy")),
		configItem("coredns.conf", balancerURL, client(UserCoreDNS)),
		configItem("flannel.conf", balancerURL, client(UserFlannel)),
	}
}

// etcdPairs are those of a node's member, if it has one, and of its agent, which
// on a server asks etcd on whatever machines of the cluster that is.
func (p *plan) etcdPairs() []item {
	var items []item
	if p.member {
		// Etcd's gateway dials its own server with the server's certificate, and
		// peers dial each other: both need to be clients as well.
		etcd := p.local(Request{CommonName: p.name, Server: true, Client: true})
		items = append(items, pairItem("pki/etcd/server", fileEtcdCert, etcd), pairItem("pki/etcd/peer", fileEtcdCert, etcd))
	}
	if p.member || p.role == cluster.RoleServer && !p.external {
		items = append(items, pairItem("pki/etcd/agent-client", fileEtcdCert, client("kuorum-agent")))
	}
	return items
}

// whole tells whether a kubeconfig holds its certificate itself.
func (i item) whole() bool { return i.path == "admin.conf" }

// pem is the file that holds the certificate and key of a kubeconfig that
// refers to it.
func (i item) pem() string { return "pki/clients/" + strings.TrimSuffix(i.path, ".conf") + ".pem" }

func pairItem(path, by string, req Request) item { return item{path: path, by: by, req: req} }

// configItem is always signed by the cluster's authority: it is for clients of
// the API.
func configItem(path, server string, req Request) item {
	return item{path: path, by: fileCACert, server: server, req: req}
}

// check says why cert is not the item's: it belongs to another key, is of
// another authority, or says something else than the plan.
func (i item) check(cert *x509.Certificate, key crypto.PublicKey, ca *x509.Certificate) error {
	if !samePublicKey(key, cert.PublicKey) {
		return errors.New("it belongs to another key")
	}
	if !bytes.Equal(cert.RawIssuer, ca.RawSubject) {
		return fmt.Errorf("it is of the authority %q instead of %q", cert.Issuer.CommonName, ca.Subject.CommonName)
	}
	if err := cert.CheckSignatureFrom(ca); err != nil {
		return fmt.Errorf("it is not of the authority %q: %w", ca.Subject.CommonName, err)
	}
	return i.req.compare(cert)
}

// compare says where a certificate says something else than the request. Life
// and order do not count.
func (r Request) compare(cert *x509.Certificate) error {
	var wantIPs, gotIPs []string
	for _, ip := range r.IPs {
		wantIPs = append(wantIPs, ip.Unmap().String())
	}
	for _, ip := range cert.IPAddresses {
		gotIPs = append(gotIPs, ip.String())
	}
	subject := cert.Subject
	for _, field := range []struct {
		name      string
		want, got []string
	}{
		{"common name", []string{r.CommonName}, []string{subject.CommonName}},
		{"organizations", r.Organizations, subject.Organization},
		{"names", r.Names, append(slices.Clone(cert.DNSNames), cert.EmailAddresses...)},
		{"addresses", wantIPs, gotIPs},
		{"usages", r.usages(), usagesOf(cert)},
	} {
		want, got := slices.Sorted(slices.Values(field.want)), slices.Sorted(slices.Values(field.got))
		if !slices.Equal(want, got) {
			return fmt.Errorf("it has the %s %q instead of %q", field.name, got, want)
		}
	}
	if len(subject.Names) != 1+len(r.Organizations) || len(cert.URIs) != 0 {
		return fmt.Errorf("it says more than it should of %q", subject.CommonName)
	}
	return nil
}

func (r Request) usages() []string {
	var usages []string
	if r.Server {
		usages = append(usages, "server")
	}
	if r.Client {
		usages = append(usages, "client")
	}
	return usages
}

func usagesOf(cert *x509.Certificate) []string {
	var usages []string
	for _, usage := range cert.ExtKeyUsage {
		switch usage {
		case x509.ExtKeyUsageServerAuth:
			usages = append(usages, "server")
		case x509.ExtKeyUsageClientAuth:
			usages = append(usages, "client")
		default:
			usages = append(usages, fmt.Sprintf("usage %d", usage))
		}
	}
	for _, usage := range cert.UnknownExtKeyUsage {
		usages = append(usages, usage.String())
	}
	if cert.IsCA || cert.KeyUsage != x509.KeyUsageDigitalSignature {
		usages = append(usages, "not that of a leaf")
	}
	return usages
}

// local completes a request with what a node's own programs are called by their
// peers and by each other.
func (p *plan) local(req Request) Request {
	req.Names = []string{p.name, "localhost"}
	req.IPs = append([]netip.Addr{p.address, netip.MustParseAddr("127.0.0.1")}, p.earlier...)
	return req
}

func (p *plan) nodeRequest() Request {
	return Request{CommonName: "system:node:" + p.name, Organizations: []string{groupNodes}}
}

func (p *plan) serverPairs() []item {
	apiServer := Request{CommonName: "kube-apiserver", Names: p.apiNames, IPs: p.apiIPs, Server: true}
	// Controller-manager and scheduler answer on the loopback only, and make
	// themselves a certificate that nobody can verify unless they are given one.
	local := Request{
		CommonName: "kuorum:local:" + p.name, Server: true,
		Names: []string{"localhost"}, IPs: []netip.Addr{netip.MustParseAddr("127.0.0.1")},
	}
	items := []item{
		pairItem("pki/apiserver", fileCACert, apiServer),
		pairItem("pki/local", fileCACert, local),
		pairItem(kubeletClient, fileCACert, client("kube-apiserver-kubelet-client", GroupAPIServerKubelet)),
		pairItem("pki/front-proxy-client", fileFrontProxyCert, client("front-proxy-client")),
	}
	if p.external {
		return items
	}
	return append(items, pairItem("pki/apiserver-etcd-client", fileEtcdCert, client("kube-apiserver-etcd-client")))
}

func (p *plan) serverConfigs() []item {
	// A server's agent creates the role bindings and other system objects of a
	// new cluster, and must be able to restore them when someone has deleted
	// them: only system:masters needs no binding. It holds the authorities' keys
	// anyway. It asks its own API server, so that it works while the balancer
	// is down and tells the two apart.
	own := "https://" + net.JoinHostPort(p.address.String(), apiServerPort)
	return []item{
		configItem("controller-manager.conf", balancerURL, client("system:kube-controller-manager")),
		configItem("scheduler.conf", balancerURL, client("system:kube-scheduler")),
		configItem("admin.conf", balancerURL, adminRequest()),
		configItem("agent.conf", own, client(userAgentPrefix+p.name, groupMasters)),
	}
}

func client(user string, groups ...string) Request {
	return Request{CommonName: user, Organizations: groups, Client: true}
}
