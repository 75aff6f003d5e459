package endpoint

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"kuorum/internal/cluster"
)

// eventually polls cond. Its limit is only there to end a broken test.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(30 * time.Second)
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("did not happen in 30 s: %s", what)
		}
	}
}

// authority signs certificates of one test and keeps the check's files.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
	dir  string
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{key: key, pool: x509.NewCertPool(), dir: t.TempDir()}
	a.cert = &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, a.cert, a.cert, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.pool.AddCert(a.cert)
	a.write(t, "ca.crt", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	certPEM, keyPEM := a.issue(t, "checker")
	a.write(t, "client.crt", certPEM)
	a.write(t, "client.key", keyPEM)
	return a
}

func (a *authority) path(name string) string { return filepath.Join(a.dir, name) }

func (a *authority) write(t *testing.T, name string, data []byte) {
	t.Helper()
	if err := os.WriteFile(a.path(name), data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func (a *authority) issue(t *testing.T, name string) (certPEM, keyPEM []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER})
}

func (a *authority) pair(t *testing.T, name string) tls.Certificate {
	t.Helper()
	pair, err := tls.X509KeyPair(a.issue(t, name))
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

// syncBuffer is a log that can be read while it is written.
type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *syncBuffer) Write(data []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(data)
}

// count lines that contain all words.
func (b *syncBuffer) count(words ...string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := 0
	for line := range strings.Lines(b.buf.String()) {
		found := true
		for _, word := range words {
			found = found && strings.Contains(line, word)
		}
		if found {
			n++
		}
	}
	return n
}

// balancer is a running one.
type balancer struct {
	t      *testing.T
	core   *Balancer
	front  string
	status string
	log    *syncBuffer
	roots  *x509.CertPool
	stop   func()
}

func testConfig(a *authority, servers ...*apiServer) Config {
	cfg := Config{
		CA: a.path("ca.crt"), Cert: a.path("client.crt"), Key: a.path("client.key"),
		Interval: cluster.Duration(20 * time.Millisecond), Timeout: cluster.Duration(2 * time.Second),
		ReadyInterval: 1, // every check asks for readiness
	}
	for _, s := range servers {
		cfg.Backends = append(cfg.Backends, Backend{s.name, s.address})
	}
	return cfg
}

func localListener(t *testing.T) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	return ln
}

// startBalancer stops it at the end of the test and checks that nothing is
// left.
func startBalancer(t *testing.T, a *authority, cfg Config) *balancer {
	t.Helper()
	b := &balancer{t: t, log: &syncBuffer{}, roots: a.pool}
	front, status := localListener(t), localListener(t)
	b.front, b.status = front.Addr().String(), status.Addr().String()
	cfg.Listen = []string{b.front}
	var err error
	if b.core, err = New(cfg, slog.New(slog.NewTextHandler(io.MultiWriter(b.log, t.Output()), nil))); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- b.core.serve(ctx, []net.Listener{front}, status) }()
	b.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
		noGoroutineLeft(t)
	})
	t.Cleanup(b.stop)
	return b
}

// noGoroutineLeft looks for frames of this package's own files.
func noGoroutineLeft(t *testing.T) {
	t.Helper()
	buf := make([]byte, 8<<20)
	eventually(t, "all goroutines end", func() bool {
		stacks := string(buf[:runtime.Stack(buf, true)])
		for _, file := range []string{"forward", "pool", "check", "status", "endpoint", "members", "follow"} {
			if strings.Contains(stacks, "/endpoint/"+file+".go:") {
				return false
			}
		}
		return true
	})
}

func (b *balancer) backends() map[string]BackendStatus {
	b.t.Helper()
	var list []BackendStatus
	body, code := b.get("/status")
	if code != http.StatusOK {
		b.t.Fatalf("/status says %d", code)
	}
	if err := json.Unmarshal(body, &list); err != nil {
		b.t.Fatal(err)
	}
	byName := map[string]BackendStatus{}
	for _, s := range list {
		byName[s.Name] = s
	}
	return byName
}

func (b *balancer) get(path string) ([]byte, int) {
	b.t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 30 * time.Second}
	resp, err := client.Get("http://" + b.status + path)
	if err != nil {
		b.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	return body, resp.StatusCode
}

func (b *balancer) await(state State, servers ...*apiServer) {
	b.t.Helper()
	for _, s := range servers {
		eventually(b.t, fmt.Sprintf("%s is %s", s.name, state), func() bool { return b.backends()[s.name].State == state })
	}
}

// loggedOnce waits for the line; what it tells may be seen before it.
func (b *balancer) loggedOnce(words ...string) {
	b.t.Helper()
	eventually(b.t, fmt.Sprintf("a line with %q is logged", words), func() bool { return b.log.count(words...) > 0 })
	if n := b.log.count(words...); n != 1 {
		b.t.Errorf("a line with %q was logged %d times, want once", words, n)
	}
}

// apiClient is one TLS connection through a balancer.
type apiClient struct {
	t    *testing.T
	conn *tls.Conn
	r    *bufio.Reader
}

func (b *balancer) connect() *apiClient {
	b.t.Helper()
	c, err := b.tryConnect()
	if err != nil {
		b.t.Fatal(err)
	}
	return c
}

func (b *balancer) tryConnect() (*apiClient, error) {
	dialer := &net.Dialer{Timeout: 30 * time.Second}
	conn, err := tls.DialWithDialer(dialer, "tcp", b.front, &tls.Config{RootCAs: b.roots, ServerName: "kubernetes"})
	if err != nil {
		return nil, err
	}
	b.t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	return &apiClient{b.t, conn, bufio.NewReader(conn)}, nil
}

func (c *apiClient) send(path string) {
	c.t.Helper()
	if _, err := fmt.Fprintf(c.conn, "GET %s HTTP/1.1\r\nHost: kubernetes\r\n\r\n", path); err != nil {
		c.t.Fatal(err)
	}
}

func (c *apiClient) receive() string {
	c.t.Helper()
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	return string(body)
}

// name of the server at the other end.
func (c *apiClient) name() string {
	c.t.Helper()
	c.send("/name")
	return c.receive()
}

// awaitClose blocks until the connection ends, however, and closes its side.
func (c *apiClient) awaitClose() {
	c.t.Helper()
	defer closeAll(c.conn)
	if n, err := c.r.ReadByte(); err == nil {
		c.t.Fatalf("read %d, want the connection to end", n)
	} else if os.IsTimeout(err) {
		c.t.Fatal("the connection was not closed")
	}
}
