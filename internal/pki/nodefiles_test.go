package pki

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"io/fs"
	"maps"
	"net"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"kuorum/internal/cluster"
)

func testSpec() *cluster.Spec {
	return &cluster.Spec{
		Metadata: cluster.Metadata{Name: "demo"},
		Spec: cluster.Body{
			Nodes: []cluster.Node{
				{Name: "cp1", Role: cluster.RoleServer, Address: "198.18.0.11"},
				{Name: "cp2", Role: cluster.RoleServer, Address: "198.18.0.12"},
				{Name: "w1", Role: cluster.RoleWorker, Address: "198.18.0.21"},
			},
			Network: cluster.Network{Services: "10.96.0.7/12"},
			DNS:     cluster.DNS{Domain: "cluster.local"},
		},
	}
}

func nodeFiles(t testing.TB, s *Set, name string, now time.Time) map[string]File {
	t.Helper()
	spec := testSpec()
	node, ok := spec.Node(name)
	if !ok {
		t.Fatalf("no node %q", name)
	}
	files, err := s.NodeFiles(spec, node, now)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.IsSortedFunc(files, func(a, b File) int { return strings.Compare(a.Path, b.Path) }) {
		t.Errorf("the files of %s are not sorted", name)
	}
	byPath := map[string]File{}
	for _, f := range files {
		if _, twice := byPath[f.Path]; twice || !fs.ValidPath(f.Path) {
			t.Errorf("path %q is there twice or not a clean relative path", f.Path)
		}
		byPath[f.Path] = f
	}
	return byPath
}

var workerPaths = []string{
	"coredns.conf", "flannel.conf", "kube-proxy.conf", "kubelet.conf",
	"pki/agent-ca.crt", "pki/agent.crt", "pki/agent.key", "pki/ca.crt",
	"pki/clients/coredns.pem", "pki/clients/flannel.pem", "pki/clients/kube-proxy.pem", "pki/clients/kubelet.pem",
	"pki/endpoint.crt", "pki/endpoint.key", "pki/kubelet.crt", "pki/kubelet.key",
}

var serverPaths = []string{
	"admin.conf", "agent.conf", "controller-manager.conf", "encryption.yaml", "pki/agent-ca.key",
	"pki/apiserver-etcd-client.crt", "pki/apiserver-etcd-client.key",
	"pki/apiserver-kubelet-client.crt", "pki/apiserver-kubelet-client.key",
	"pki/apiserver.crt", "pki/apiserver.key", "pki/ca.key",
	"pki/clients/agent.pem", "pki/clients/controller-manager.pem", "pki/clients/scheduler.pem", "pki/encryption.key",
	"pki/etcd/agent-client.crt", "pki/etcd/agent-client.key", "pki/etcd/ca.crt", "pki/etcd/ca.key",
	"pki/etcd/peer.crt", "pki/etcd/peer.key", "pki/etcd/server.crt", "pki/etcd/server.key",
	"pki/front-proxy-ca.crt", "pki/front-proxy-ca.key",
	"pki/front-proxy-client.crt", "pki/front-proxy-client.key", "pki/local.crt", "pki/local.key",
	"pki/sa.key", "pki/sa.pub", "scheduler.conf",
}

func TestNodeFilesPathsAndModes(t *testing.T) {
	s := newTestSet(t)
	for name, want := range map[string][]string{
		"w1":  workerPaths,
		"cp2": slices.Sorted(slices.Values(slices.Concat(workerPaths, serverPaths))),
	} {
		files := nodeFiles(t, s, name, testNow)
		if diff := cmp.Diff(want, slices.Sorted(maps.Keys(files))); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
		for _, f := range files {
			want := fs.FileMode(0o644)
			if bytes.Contains(f.Data, []byte("PRIVATE KEY")) || path.Ext(f.Path) == ".conf" ||
				strings.Contains(f.Path, "encryption") {
				want = 0o600
			}
			if f.Mode != want {
				t.Errorf("%s: %s has mode %o, want %o", name, f.Path, f.Mode, want)
			}
		}
	}
}

// A worker's files must not contain a secret of the set, in any disguise, nor a
// certificate that makes it more than a node.
func TestWorkerGetsNoPower(t *testing.T) {
	s := newTestSet(t)
	for _, f := range nodeFiles(t, s, "w1", testNow) {
		for name, secret := range s.Files() {
			if path.Ext(name) != ".key" {
				continue
			}
			encoded := []byte(base64.StdEncoding.EncodeToString(secret))
			if bytes.Contains(f.Data, bytes.TrimSpace(secret)) || bytes.Contains(f.Data, encoded) {
				t.Errorf("%s holds %s", f.Path, name)
			}
		}
		for _, cert := range certificates(t, f) {
			if slices.Contains(cert.Subject.Organization, "system:masters") {
				t.Errorf("%s makes the worker a master", f.Path)
			}
			want := "kubernetes"
			if strings.HasPrefix(f.Path, "pki/agent") {
				want = "kuorum-agents"
			}
			if cert.Issuer.CommonName != want {
				t.Errorf("%s is from %q, want %q", f.Path, cert.Issuer.CommonName, want)
			}
		}
	}
}

// TestEndpointIsANameOfTheAPI: clients dial the one address, and whichever API
// server they reach there must answer to it.
func TestEndpointIsANameOfTheAPI(t *testing.T) {
	s := newTestSet(t)
	for address, named := range map[string]func(*x509.Certificate) bool{
		"198.18.0.254": func(c *x509.Certificate) bool {
			return slices.ContainsFunc(c.IPAddresses, net.IPv4(198, 18, 0, 254).Equal)
		},
		"api.example.org:8443": func(c *x509.Certificate) bool { return slices.Contains(c.DNSNames, "api.example.org") },
	} {
		spec := testSpec()
		node, _ := spec.Node("cp2")
		for _, want := range []bool{false, true} {
			files, err := s.NodeFiles(spec, node, testNow)
			if err != nil {
				t.Fatal(err)
			}
			at := slices.IndexFunc(files, func(f File) bool { return f.Path == "pki/apiserver.crt" })
			if got := named(certificates(t, files[at])[0]); got != want {
				t.Errorf("%s in the certificate: %v, want %v", address, got, want)
			}
			spec.Spec.Endpoint.Address = address
		}
	}
}

func TestNodeCertificates(t *testing.T) {
	s := newTestSet(t)
	cp1, w1 := nodeFiles(t, s, "cp1", testNow), nodeFiles(t, s, "w1", testNow)
	local := func(user, name, ip string, groups ...string) description {
		return description{
			User: user, Groups: groups, Server: true, Client: true,
			Names: []string{name, "localhost"}, IPs: []string{ip, "127.0.0.1"},
		}
	}
	kubelet := func(name, ip string) description {
		return description{
			User: "system:node:" + name, Groups: []string{"system:nodes"}, Server: true, Names: []string{name}, IPs: []string{ip},
		}
	}
	only := func(user string, groups ...string) description {
		return description{User: user, Groups: groups, Client: true}
	}
	apiServer := description{
		User: "kube-apiserver", Server: true,
		Names: []string{
			"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local",
			"localhost", "cp1", "cp2", "w1",
		},
		IPs: []string{"127.0.0.1", "::1", "10.96.0.1", "198.18.0.11", "198.18.0.12", "198.18.0.21"},
	}
	loopback := description{
		User: "kuorum:local:cp1", Server: true, Names: []string{"localhost"}, IPs: []string{"127.0.0.1"},
	}
	checked := map[*Authority]map[string]description{
		s.Cluster: {
			"pki/kubelet":                  kubelet("cp1", "198.18.0.11"),
			"pki/endpoint":                 only("kuorum:endpoint"),
			"pki/apiserver":                apiServer,
			"pki/local":                    loopback,
			"pki/apiserver-kubelet-client": only("kube-apiserver-kubelet-client", "kuorum:apiserver-kubelet"),
		},
		s.Agents:     {"pki/agent": local("kuorum:agent:cp1", "cp1", "198.18.0.11", "kuorum:agents", "kuorum:servers")},
		s.FrontProxy: {"pki/front-proxy-client": only("front-proxy-client")},
		s.Etcd: {
			"pki/apiserver-etcd-client": only("kube-apiserver-etcd-client"),
			"pki/etcd/server":           local("cp1", "cp1", "198.18.0.11"),
			"pki/etcd/peer":             local("cp1", "cp1", "198.18.0.11"),
			"pki/etcd/agent-client":     only("kuorum-agent"),
		},
	}
	for by, leaves := range checked {
		for name, want := range leaves {
			checkPair(t, cp1, name, by, want)
		}
	}
	checkPair(t, w1, "pki/kubelet", s.Cluster, kubelet("w1", "198.18.0.21"))
	checkPair(t, w1, "pki/agent", s.Agents, local("kuorum:agent:w1", "w1", "198.18.0.21", "kuorum:agents"))
	checkPair(t, w1, "pki/endpoint", s.Cluster, only("kuorum:endpoint"))
	for name, authority := range map[string]*Authority{
		"pki/ca": s.Cluster, "pki/agent-ca": s.Agents, "pki/etcd/ca": s.Etcd, "pki/front-proxy-ca": s.FrontProxy,
	} {
		got := Pair{Cert: cp1[name+".crt"].Data, Key: cp1[name+".key"].Data}
		if diff := cmp.Diff(authority.Pair(), got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func checkPair(t *testing.T, files map[string]File, name string, by *Authority, want description) {
	t.Helper()
	cert := files[name+".crt"].Data
	if _, err := tls.X509KeyPair(cert, files[name+".key"].Data); err != nil {
		t.Errorf("%s: %v", name, err)
		return
	}
	parsed := mustParse(t, cert)
	verifyLeaf(t, name, parsed, by.cert)
	if diff := cmp.Diff(want, describe(parsed)); diff != "" {
		t.Errorf("%s (-want +got):\n%s", name, diff)
	}
	if end := testNow.Add(365 * day).Truncate(time.Second); !parsed.NotAfter.Equal(end) {
		t.Errorf("%s ends at %s, want %s", name, parsed.NotAfter, end)
	}
}

func TestNodeFilesShareNoKey(t *testing.T) {
	s := newTestSet(t)
	seen := map[string]string{}
	for _, node := range []string{"cp1", "cp2", "w1"} {
		for name, f := range nodeFiles(t, s, node, testNow) {
			for _, cert := range certificates(t, f) {
				if cert.IsCA {
					continue
				}
				where := node + " " + name
				for _, id := range []string{string(cert.SubjectKeyId), cert.SerialNumber.String()} {
					if other, ok := seen[id]; ok {
						t.Errorf("%s has the key or serial number of %s", where, other)
					}
					seen[id] = where
				}
			}
		}
	}
}

func TestNoLeafOutlivesItsAuthority(t *testing.T) {
	s := newTestSet(t)
	authorities := map[string]*Authority{
		"kubernetes": s.Cluster, "kuorum-agents": s.Agents, "etcd-ca": s.Etcd, "front-proxy-ca": s.FrontProxy,
	}
	checked := 0
	for _, f := range nodeFiles(t, s, "cp1", s.Cluster.NotAfter().Add(-30*day)) {
		for _, cert := range certificates(t, f) {
			by := authorities[cert.Issuer.CommonName]
			if by == nil || !cert.NotAfter.Equal(by.NotAfter()) {
				t.Errorf("%s ends at %s; issued by %q", f.Path, cert.NotAfter, cert.Issuer.CommonName)
			}
			checked++
		}
	}
	if checked < 20 {
		t.Errorf("only %d certificates were checked", checked)
	}
}

func TestEncryptionConfig(t *testing.T) {
	s := newTestSet(t)
	files := nodeFiles(t, s, "cp1", testNow)
	var got any
	if err := yaml.UnmarshalStrict(files["encryption.yaml"].Data, &got); err != nil {
		t.Fatal(err)
	}
	type object = map[string]any
	key := object{"name": "key1", "secret": base64.StdEncoding.EncodeToString(s.EncryptionKey[:])}
	want := any(object{
		"apiVersion": "apiserver.config.k8s.io/v1",
		"kind":       "EncryptionConfiguration",
		"resources": []any{object{
			"resources": []any{"secrets"},
			"providers": []any{object{"secretbox": object{"keys": []any{key}}}, object{"identity": object{}}},
		}},
	})
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("encryption.yaml (-want +got):\n%s", diff)
	}
}

func TestNodeFilesRefuses(t *testing.T) {
	s := newTestSet(t)
	tests := map[string]struct {
		change func(*cluster.Spec, *cluster.Node)
		want   string
	}{
		"unknown node":    {func(_ *cluster.Spec, n *cluster.Node) { n.Name = "cp9" }, "no such node"},
		"no name":         {func(_ *cluster.Spec, n *cluster.Node) { n.Name = "" }, "no name"},
		"other role":      {func(_ *cluster.Spec, n *cluster.Node) { n.Role = cluster.RoleWorker }, "was asked for"},
		"other address":   {func(_ *cluster.Spec, n *cluster.Node) { n.Address = "198.18.0.99" }, "was asked for"},
		"no cluster name": {func(s *cluster.Spec, _ *cluster.Node) { s.Metadata.Name = "" }, "cluster has no name"},
		"no domain":       {func(s *cluster.Spec, _ *cluster.Node) { s.Spec.DNS.Domain = "" }, "dns.domain"},
		"no services":     {func(s *cluster.Spec, _ *cluster.Node) { s.Spec.Network.Services = "" }, "network.services"},
		"no room": {
			func(s *cluster.Spec, _ *cluster.Node) { s.Spec.Network.Services = "10.96.0.0/32" }, "no room",
		},
		"peer's address": {func(s *cluster.Spec, _ *cluster.Node) { s.Spec.Nodes[1].Address = "" }, `node "cp2"`},
		"peer's name":    {func(s *cluster.Spec, _ *cluster.Node) { s.Spec.Nodes[2].Name = "" }, "has no name"},
		"unknown role": {func(s *cluster.Spec, n *cluster.Node) {
			s.Spec.Nodes[0].Role, n.Role = "king", "king"
		}, `role is "king"`},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			spec := testSpec()
			node := spec.Spec.Nodes[0]
			test.change(spec, &node)
			files, err := s.NodeFiles(spec, node, testNow)
			if err == nil || !strings.Contains(err.Error(), test.want) || files != nil {
				t.Errorf("%d files and error %v, want none and one with %q", len(files), err, test.want)
			}
		})
	}
	for _, node := range testSpec().Spec.Nodes {
		if _, err := s.NodeFiles(testSpec(), node, s.Cluster.NotAfter()); !errors.Is(err, ErrExpired) {
			t.Errorf("%s after the authority's end: %v, want ErrExpired", node.Name, err)
		}
	}
}

func TestIPv6Cluster(t *testing.T) {
	s, spec := newTestSet(t), testSpec()
	spec.Spec.Network.Services = "fd00:96::/112"
	spec.Spec.Nodes = []cluster.Node{{Name: "cp1", Role: cluster.RoleServer, Address: "fd00:1::11"}}
	files, err := s.NodeFiles(spec, spec.Spec.Nodes[0], testNow)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		switch f.Path {
		case "pki/apiserver.crt":
			want := []string{"127.0.0.1", "::1", "fd00:96::1", "fd00:1::11"}
			if diff := cmp.Diff(want, describe(mustParse(t, f.Data)).IPs); diff != "" {
				t.Errorf("addresses (-want +got):\n%s", diff)
			}
		case "agent.conf":
			if !bytes.Contains(f.Data, []byte("https://[fd00:1::11]:6444")) {
				t.Error("agent.conf does not point to the node's own API server")
			}
		}
	}
}
