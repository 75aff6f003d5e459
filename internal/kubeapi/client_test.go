package kubeapi

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"kuorum/internal/cluster"
	"kuorum/internal/pki"
)

const patience = 5 * time.Second

// testAPI is an API server in front of handler, with the certificate that a
// node's has, and with the authorities behind it.
func testAPI(t *testing.T, handler http.HandlerFunc) (url string, set *pki.Set) {
	t.Helper()
	set, err := pki.NewSet(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	spec, err := cluster.New("demo", 1, 0)
	if err != nil {
		t.Fatal(err)
	}
	made, err := set.NodeFiles(spec, spec.Spec.Nodes[0], time.Now())
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{}
	for _, f := range made {
		files[f.Path] = f.Data
	}
	pair, err := tls.X509KeyPair(files["pki/apiserver.crt"], files["pki/apiserver.key"])
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(set.Cluster.Pair().Cert)
	server := httptest.NewUnstartedServer(handler)
	server.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert}
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	t.Cleanup(server.Close)
	return server.URL, set
}

func write(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func adminPair(t *testing.T, set *pki.Set) pki.Pair {
	t.Helper()
	pair, err := set.AdminPair(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

// testClient uses a kubeconfig that holds all of it.
func testClient(t *testing.T, handler http.HandlerFunc) *Client {
	t.Helper()
	url, set := testAPI(t, handler)
	config, err := pki.Kubeconfig(url, "kuorum-demo", adminPair(t, set), set.Cluster.Pair().Cert)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "admin.conf")
	write(t, path, config)
	client, err := New(path, patience)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func TestRequests(t *testing.T) {
	var got []string
	client := testClient(t, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		got = append(got, strings.Join([]string{r.Method, r.URL.String(), r.Header.Get("Content-Type"), string(body)}, "|"))
		fmt.Fprint(w, `{"name":"one"}`)
	})
	var read, made struct{ Name string }
	ctx := t.Context()
	err := errors.Join(
		client.Get(ctx, "/readyz", nil),
		client.Get(ctx, "/api/v1/things/one?resourceVersion=0", &read),
		client.Create(ctx, "/api/v1/things", `{}`, &made),
		client.Patch(ctx, "/api/v1/things/one?force=true", Apply, `{"a":1}`),
		client.Patch(ctx, "/api/v1/things/one", MergePatch, `{"b":1}`),
		client.Update(ctx, "/api/v1/things/one", `{"c":1}`),
		client.Delete(ctx, "/api/v1/things/one?gracePeriodSeconds=0"),
	)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"GET|/readyz||",
		"GET|/api/v1/things/one?resourceVersion=0||",
		"POST|/api/v1/things|application/json|{}",
		`PATCH|/api/v1/things/one?force=true|application/apply-patch+yaml|{"a":1}`,
		`PATCH|/api/v1/things/one|application/merge-patch+json|{"b":1}`,
		`PUT|/api/v1/things/one|application/json|{"c":1}`,
		"DELETE|/api/v1/things/one?gracePeriodSeconds=0||",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
	if read.Name != "one" || made.Name != "one" {
		t.Errorf("read %q, made %q", read.Name, made.Name)
	}
}

func TestRefusals(t *testing.T) {
	for name, tc := range map[string]struct {
		code   int
		answer string
		want   string
	}{
		"an object of the kind Status": {http.StatusForbidden, `{"kind":"Status","message":"because"}`, "cannot get /x: 403 Forbidden: because"},
		"a text":                       {http.StatusInternalServerError, "[-]etcd failed\n", "cannot get /x: 500 Internal Server Error: [-]etcd failed"},
		"an object of another kind":    {http.StatusConflict, `{"kind":"Other"}`, `cannot get /x: somebody else has changed it: {"kind":"Other"}`},
		"no JSON":                      {http.StatusOK, "ok", "cannot get /x: invalid character"},
		"nothing there":                {http.StatusNotFound, "no", "cannot get /x: not found"},
	} {
		t.Run(name, func(t *testing.T) {
			client := testClient(t, func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(tc.code)
				fmt.Fprint(w, tc.answer)
			})
			err := client.Get(t.Context(), "/x", new(struct{}))
			if err == nil || !strings.HasPrefix(err.Error(), tc.want) {
				t.Errorf("got %v, want %s", err, tc.want)
			}
			if errors.Is(err, ErrNotFound) != (tc.code == http.StatusNotFound) {
				t.Errorf("taken for a missing object or not: %v", err)
			}
			if errors.Is(err, ErrConflict) != (tc.code == http.StatusConflict) {
				t.Errorf("taken for a conflict or not: %v", err)
			}
		})
	}
}

// TestRenewedFiles: the certificate of a client changes under it, and the next
// connection has the new one.
func TestRenewedFiles(t *testing.T) {
	var callers []string
	url, set := testAPI(t, func(w http.ResponseWriter, r *http.Request) {
		callers = append(callers, r.TLS.PeerCertificates[0].SerialNumber.String())
		w.Header().Set("Connection", "close")
	})
	dir := t.TempDir()
	path, pem := filepath.Join(dir, "agent.conf"), filepath.Join(dir, "pki/agent.pem")
	write(t, filepath.Join(dir, "pki/ca.crt"), set.Cluster.Pair().Cert)
	write(t, path, fmt.Appendf(nil, `apiVersion: v1
kind: Config
clusters: [{name: demo, cluster: {server: %q, certificate-authority: pki/ca.crt}}]
users: [{name: demo, user: {client-certificate: pki/agent.pem, client-key: %s}}]
contexts: [{name: demo, context: {cluster: demo, user: demo}}]
current-context: demo
`, url, pem)) // one relative, one absolute
	var want []string
	renew := func() {
		pair := adminPair(t, set)
		write(t, pem, append(pair.Cert, pair.Key...))
		both, err := tls.X509KeyPair(pair.Cert, pair.Key)
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, both.Leaf.SerialNumber.String())
	}
	renew()
	client, err := New(path, patience)
	if err != nil {
		t.Fatal(err)
	}
	if err := client.Get(t.Context(), "/", nil); err != nil {
		t.Fatal(err)
	}
	renew()
	if err := client.Get(t.Context(), "/", nil); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, callers); diff != "" {
		t.Errorf("certificates of the calls (-want +got):\n%s", diff)
	}
	if err := os.Remove(pem); err != nil {
		t.Fatal(err)
	}
	if err := client.Get(t.Context(), "/", nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without its certificate: %v", err)
	}
	if _, err := New(path, patience); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a client without a certificate: %v", err)
	}
}

// TestStrangeServer: whoever answers must prove the cluster's authority.
func TestStrangeServer(t *testing.T) {
	url, own := testAPI(t, func(http.ResponseWriter, *http.Request) { t.Error("it was asked") })
	other, err := pki.NewSet(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	config, err := pki.Kubeconfig(url, "kuorum-demo", adminPair(t, own), other.Cluster.Pair().Cert)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "admin.conf")
	write(t, path, config)
	client, err := New(path, patience)
	if err != nil {
		t.Fatal(err)
	}
	err = client.Get(t.Context(), "/", nil)
	if _, unknown := errors.AsType[x509.UnknownAuthorityError](err); !unknown {
		t.Errorf("got %v", err)
	}
}

// TestUpgrade: a refusal is an answer, silence is none.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	got := make(chan *http.Request, 1)
	c := testClient(t, func(w http.ResponseWriter, r *http.Request) {
		got <- r
		w.WriteHeader(http.StatusInternalServerError)
	})
	if err := c.Upgrade(t.Context(), "/api/v1/nodes/cp1/proxy/healthz"); err != nil {
		t.Fatal(err)
	}
	if r := <-got; r.URL.Path != "/api/v1/nodes/cp1/proxy/healthz" || r.Header.Get("Connection") != "Upgrade" || r.Header.Get("Upgrade") == "" {
		t.Errorf("it asks %s with %v", r.URL, r.Header)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.Upgrade(ended, "/"); !errors.Is(err, context.Canceled) {
		t.Errorf("without an answer it says %v", err)
	}
}

// TestThrough: the same client at another address, which must be one of the server's.
func TestThrough(t *testing.T) {
	asked := ""
	client := testClient(t, func(_ http.ResponseWriter, r *http.Request) { asked = r.Host })
	balancer := strings.Replace(client.host, "127.0.0.1", "localhost", 1)
	if err := client.Through(balancer).Get(t.Context(), "/", nil); err != nil || "https://"+asked != balancer {
		t.Errorf("asked %s: %v", asked, err)
	}
	if err := client.Get(t.Context(), "/", nil); err != nil || "https://"+asked != client.host {
		t.Errorf("the first one asked %s: %v", asked, err)
	}
}

func TestPatienceAndContext(t *testing.T) {
	release := make(chan struct{})
	client := testClient(t, func(http.ResponseWriter, *http.Request) { <-release })
	t.Cleanup(func() { close(release) }) // before the server waits for its handlers
	client.http.Timeout = 50 * time.Millisecond
	if err := client.Get(t.Context(), "/", nil); !os.IsTimeout(errors.Unwrap(err)) {
		t.Errorf("a server that hangs: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := client.Get(ctx, "/", nil); !errors.Is(err, context.Canceled) {
		t.Errorf("a caller that has gone: %v", err)
	}
}
