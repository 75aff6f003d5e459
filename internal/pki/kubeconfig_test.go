package pki

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/client-go/tools/clientcmd"
)

// certificates returns every certificate in a file of a node, also those
// inside a kubeconfig.
func certificates(t testing.TB, f File) []*x509.Certificate {
	t.Helper()
	switch {
	case strings.HasSuffix(f.Path, ".crt"):
		return []*x509.Certificate{mustParse(t, f.Data)}
	case strings.HasSuffix(f.Path, ".conf"):
		rest, err := clientcmd.RESTConfigFromKubeConfig(f.Data)
		if err != nil {
			t.Fatalf("%s: %v", f.Path, err)
		}
		return []*x509.Certificate{mustParse(t, rest.CertData), mustParse(t, rest.CAData)}
	}
	return nil
}

func TestNodeKubeconfigs(t *testing.T) {
	s := newTestSet(t)
	cp1, w1 := nodeFiles(t, s, "cp1", testNow), nodeFiles(t, s, "w1", testNow)
	const balancer = "https://127.0.0.1:6443"
	tests := []struct {
		files        map[string]File
		path, server string
		user         string
		groups       []string
	}{
		{cp1, "kubelet.conf", balancer, "system:node:cp1", []string{"system:nodes"}},
		{cp1, "kube-proxy.conf", balancer, "system:kube-proxy", nil},
		{cp1, "coredns.conf", balancer, "system:coredns", nil},
		{cp1, "flannel.conf", balancer, "system:flannel", nil},
		{cp1, "controller-manager.conf", balancer, "system:kube-controller-manager", nil},
		{cp1, "scheduler.conf", balancer, "system:kube-scheduler", nil},
		{cp1, "admin.conf", balancer, "kubernetes-admin", []string{"system:masters"}},
		{cp1, "agent.conf", "https://198.18.0.11:6444", "kuorum:agent:cp1", []string{"system:masters"}},
		{w1, "kubelet.conf", balancer, "system:node:w1", []string{"system:nodes"}},
		{w1, "kube-proxy.conf", balancer, "system:kube-proxy", nil},
		{w1, "coredns.conf", balancer, "system:coredns", nil},
		{w1, "flannel.conf", balancer, "system:flannel", nil},
	}
	for _, test := range tests {
		t.Run(test.path+" "+test.user, func(t *testing.T) {
			config, err := clientcmd.Load(test.files[test.path].Data)
			if err != nil {
				t.Fatal(err)
			}
			if err := clientcmd.ConfirmUsable(*config, ""); err != nil {
				t.Error(err)
			}
			if config.CurrentContext != "kuorum-demo" {
				t.Errorf("current context %q", config.CurrentContext)
			}
			rest, err := clientcmd.RESTConfigFromKubeConfig(test.files[test.path].Data)
			if err != nil {
				t.Fatal(err)
			}
			if rest.Host != test.server || !bytes.Equal(rest.CAData, s.Cluster.pair.Cert) {
				t.Errorf("server %q with another authority or not %q", rest.Host, test.server)
			}
			if _, err := tls.X509KeyPair(rest.CertData, rest.KeyData); err != nil {
				t.Error(err)
			}
			cert := mustParse(t, rest.CertData)
			verifyLeaf(t, test.path, cert, s.Cluster.cert)
			want := description{User: test.user, Groups: test.groups, Client: true}
			if diff := cmp.Diff(want, describe(cert)); diff != "" {
				t.Errorf("certificate (-want +got):\n%s", diff)
			}
		})
	}
}

func TestKubeconfigRefuses(t *testing.T) {
	s := newTestSet(t)
	pair, err := s.AdminPair(testNow)
	if err != nil {
		t.Fatal(err)
	}
	ca, good := s.Cluster.pair.Cert, "https://127.0.0.1:6443"
	if _, err := Kubeconfig(good, "kuorum-demo", pair, ca); err != nil {
		t.Fatalf("a good one: %v", err)
	}
	tests := map[string]struct {
		server, name string
		pair         Pair
		ca           []byte
		want         string
	}{
		"no name":        {good, "", pair, ca, "name of the cluster is empty"},
		"no server":      {"", "x", pair, ca, "not an https URL"},
		"plain http":     {"http://127.0.0.1:6443", "x", pair, ca, "not an https URL"},
		"no host":        {"https://:6443", "x", pair, ca, "not an https URL"},
		"bad URL":        {"https://[::1", "x", pair, ca, "server's address"},
		"key of another": {good, "x", Pair{Cert: pair.Cert, Key: s.Etcd.pair.Key}, ca, "certificate and key"},
		"no authority":   {good, "x", pair, nil, "the authority"},
		"key for CA":     {good, "x", pair, s.Cluster.pair.Key, "the authority"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := Kubeconfig(test.server, test.name, test.pair, test.ca)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want one with %q", err, test.want)
			}
		})
	}
}
