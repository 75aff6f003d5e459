package pki

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/yaml"
)

// certificates returns every certificate in a file of a node, also those
// inside a kubeconfig, but not those that one refers to.
func certificates(t testing.TB, f File) []*x509.Certificate {
	t.Helper()
	switch {
	case strings.HasSuffix(f.Path, ".crt"):
		return []*x509.Certificate{mustParse(t, f.Data)}
	case strings.HasSuffix(f.Path, ".pem"):
		pair, err := tls.X509KeyPair(f.Data, f.Data)
		if err != nil {
			t.Fatalf("%s: %v", f.Path, err)
		}
		return []*x509.Certificate{pair.Leaf}
	case f.Path == "admin.conf":
		config, err := clientcmd.RESTConfigFromKubeConfig(f.Data)
		if err != nil {
			t.Fatalf("%s: %v", f.Path, err)
		}
		return []*x509.Certificate{mustParse(t, config.CertData), mustParse(t, config.CAData)}
	}
	return nil
}

// writeFiles writes a node's files into a directory of their own.
func writeFiles(t testing.TB, files map[string]File) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for _, f := range files {
		path := filepath.Join(dir, f.Path)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, f.Data, f.Mode); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// restConfig loads a kubeconfig as Kubernetes' own programs do: what it refers
// to lies beside it, wherever that is.
func restConfig(t testing.TB, dir, path string) *rest.Config {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", filepath.Join(dir, path))
	if err != nil {
		t.Fatal(err)
	}
	return config
}

func TestNodeKubeconfigs(t *testing.T) {
	s := newTestSet(t)
	cp1, w1 := nodeFiles(t, s, "cp1", testNow), nodeFiles(t, s, "w1", testNow)
	dirs := map[string]string{"cp1": writeFiles(t, cp1), "w1": writeFiles(t, w1)}
	const balancer = "https://127.0.0.1:6443"
	tests := []struct {
		node         string
		path, server string
		user         string
		groups       []string
	}{
		{"cp1", "kubelet.conf", balancer, "system:node:cp1", []string{"system:nodes"}},
		{"cp1", "kube-proxy.conf", balancer, "system:kube-proxy", nil},
		{"cp1", "coredns.conf", balancer, "system:coredns", nil},
		{"cp1", "flannel.conf", balancer, "system:flannel", nil},
		{"cp1", "controller-manager.conf", balancer, "system:kube-controller-manager", nil},
		{"cp1", "scheduler.conf", balancer, "system:kube-scheduler", nil},
		{"cp1", "admin.conf", balancer, "kubernetes-admin", []string{"system:masters"}},
		{"cp1", "agent.conf", "https://198.18.0.11:6444", "kuorum:agent:cp1", []string{"system:masters"}},
		{"w1", "kubelet.conf", balancer, "system:node:w1", []string{"system:nodes"}},
		{"w1", "kube-proxy.conf", balancer, "system:kube-proxy", nil},
		{"w1", "coredns.conf", balancer, "system:coredns", nil},
		{"w1", "flannel.conf", balancer, "system:flannel", nil},
	}
	for _, test := range tests {
		t.Run(test.path+" "+test.user, func(t *testing.T) {
			dir := dirs[test.node]
			raw, err := clientcmd.LoadFromFile(filepath.Join(dir, test.path))
			if err != nil {
				t.Fatal(err)
			}
			if raw.CurrentContext != "kuorum-demo" {
				t.Errorf("current context %q", raw.CurrentContext)
			}
			config := restConfig(t, dir, test.path)
			if diff := cmp.Diff(wantReferences(dir, test.path), referencesOf(config)); diff != "" {
				t.Errorf("where it leads (-want +got):\n%s", diff)
			}
			if err := rest.LoadTLSFiles(config); err != nil {
				t.Fatal(err)
			}
			if config.Host != test.server || !bytes.Equal(config.CAData, s.Cluster.pair.Cert) {
				t.Errorf("server %q with another authority or not %q", config.Host, test.server)
			}
			pair, err := tls.X509KeyPair(config.CertData, config.KeyData)
			if err != nil {
				t.Fatal(err)
			}
			verifyLeaf(t, test.path, pair.Leaf, s.Cluster.cert)
			want := description{User: test.user, Groups: test.groups, Client: true}
			if diff := cmp.Diff(want, describe(pair.Leaf)); diff != "" {
				t.Errorf("certificate (-want +got):\n%s", diff)
			}
		})
	}
}

func TestKubeconfigTLSRefuses(t *testing.T) {
	s := newTestSet(t)
	dir := writeFiles(t, nodeFiles(t, s, "cp1", testNow))
	beside := func(name string) ([]byte, error) { return os.ReadFile(filepath.Join(dir, name)) }
	whole, err := os.ReadFile(filepath.Join(dir, "admin.conf"))
	if err != nil {
		t.Fatal(err)
	}
	referring, err := os.ReadFile(filepath.Join(dir, "agent.conf"))
	if err != nil {
		t.Fatal(err)
	}
	for _, good := range [][]byte{whole, referring} {
		if _, config, err := KubeconfigTLS(good, beside); err != nil || config.RootCAs == nil || len(config.Certificates) != 1 || config.InsecureSkipVerify {
			t.Errorf("a good one: %v", err)
		}
	}
	missing := func(string) ([]byte, error) { return nil, os.ErrNotExist }
	for name, test := range map[string]struct {
		data []byte
		read func(string) ([]byte, error)
	}{
		"its files are missing":   {referring, missing},
		"its files are something": {referring, func(string) ([]byte, error) { return []byte("something"), nil }},
		"not YAML":                {[]byte("{"), beside},
		"empty":                   {nil, beside},
		"plain http":              {bytes.Replace(whole, []byte("https:"), []byte("http:"), 1), beside},
		"two users":               {bytes.Replace(whole, []byte("users:\n"), []byte("users:\n- name: two\n  user: {}\n"), 1), beside},
	} {
		if _, _, err := KubeconfigTLS(test.data, test.read); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// references is where a kubeconfig has its certificates and key: in files, or,
// if it is whole, in itself.
type references struct {
	CA, Cert, Key string
	Whole         bool
}

func referencesOf(config *rest.Config) references {
	return references{
		CA: config.CAFile, Cert: config.CertFile, Key: config.KeyFile,
		Whole: len(config.CAData) != 0 && len(config.CertData) != 0 && len(config.KeyData) != 0,
	}
}

func wantReferences(dir, path string) references {
	if path == "admin.conf" {
		return references{Whole: true}
	}
	pem := filepath.Join(dir, "pki/clients", strings.TrimSuffix(path, ".conf")+".pem")
	return references{CA: filepath.Join(dir, "pki/ca.crt"), Cert: pem, Key: pem}
}

// A kubeconfig that refers to files says this and nothing else: no secret, no
// path that holds on one machine only, and always the same bytes.
func TestReferringKubeconfig(t *testing.T) {
	type object = map[string]any
	want := any(object{
		"apiVersion": "v1", "kind": "Config", "current-context": "kuorum-demo",
		"clusters": []any{object{"name": "kuorum-demo", "cluster": object{
			"server": "https://127.0.0.1:6443", "certificate-authority": "pki/ca.crt",
		}}},
		"users": []any{object{"name": "kuorum-demo", "user": object{
			"client-certificate": "pki/clients/kubelet.pem", "client-key": "pki/clients/kubelet.pem",
		}}},
		"contexts": []any{object{"name": "kuorum-demo", "context": object{
			"cluster": "kuorum-demo", "user": "kuorum-demo",
		}}},
	})
	var got any
	data := nodeFiles(t, newTestSet(t), "w1", testNow)["kubelet.conf"].Data
	if err := yaml.UnmarshalStrict(data, &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("kubelet.conf (-want +got):\n%s", diff)
	}
	if again := nodeFiles(t, newTestSet(t), "cp1", testNow.Add(day))["kubelet.conf"].Data; !bytes.Equal(data, again) {
		t.Errorf("another node's is\n%s\ninstead of\n%s", again, data)
	}
}

// Programs that run take a renewed certificate when they connect, within about
// a second: client-go keeps what it has read that long. When it notices the
// change it closes all connections, even the one that it is just making, so
// that one request fails and no more.
func TestClientsReadRenewedCertificates(t *testing.T) {
	now := time.Now()
	s, err := NewSet(now.Add(-30 * day))
	if err != nil {
		t.Fatal(err)
	}
	s.LeafLife = 30 * day
	old := nodeFiles(t, s, "cp1", now.Add(-25*day))
	dir := writeFiles(t, old)
	dial := serialDialer(t, s, old, dir, "scheduler.conf")
	serial := func(f File) string { return certificates(t, f)[0].SerialNumber.String() }
	const pem = "pki/clients/scheduler.pem"
	if got, err := dial(); err != nil || got != serial(old[pem]) {
		t.Fatalf("before the renewal: certificate %s, %v, want %s", got, err, serial(old[pem]))
	}
	var renewed string
	for _, f := range renew(t, s, testSpec(), contents(old), now) {
		if f.Path == pem {
			renewed = serial(f)
		}
		replaceFile(t, filepath.Join(dir, f.Path), f.Data)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for failed := 0; ; {
		got, err := dial()
		if got == renewed {
			return
		}
		if err != nil {
			failed++
		}
		if failed > 1 || err == nil && got != serial(old[pem]) {
			t.Fatalf("after the renewal: certificate %s, %v, want %s", got, err, renewed)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("the renewed certificate %s is not used", renewed)
		}
	}
}

// serialDialer connects anew with each call, with the kubeconfig that it has
// read once, and returns the serial number of the certificate that the server
// saw.
func serialDialer(t *testing.T, s *Set, files map[string]File, dir, path string) func() (string, error) {
	t.Helper()
	pair := filePair(files, "pki/apiserver")
	certificate, err := tls.X509KeyPair(pair.Cert, pair.Key)
	if err != nil {
		t.Fatal(err)
	}
	clients := x509.NewCertPool()
	clients.AddCert(s.Cluster.cert)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.TLS.PeerCertificates[0].SerialNumber.String())
	}))
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	server.TLS = &tls.Config{
		MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{certificate},
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: clients,
	}
	server.StartTLS()
	t.Cleanup(server.Close)
	client, err := rest.HTTPClientFor(restConfig(t, dir, path))
	if err != nil {
		t.Fatal(err)
	}
	return func() (string, error) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL, nil)
		if err != nil {
			return "", err
		}
		req.Close = true
		resp, err := client.Do(req)
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		return string(body), err
	}
}

// replaceFile does it at once, as the agent does.
func replaceFile(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path+".tmp", data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		t.Fatal(err)
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
