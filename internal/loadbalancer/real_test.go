//go:build lab

package loadbalancer

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
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// within is how long a wait for a program may take that is about to do it.
const within = 20 * time.Second

// authorityKeys signs for fake API servers.
type authorityKeys struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	file string
}

func newAuthority(t *testing.T) authorityKeys {
	t.Helper()
	a := authorityKeys{file: filepath.Join(t.TempDir(), "ca.crt")}
	a.cert, a.key = a.sign(t, &x509.Certificate{Subject: pkix.Name{CommonName: "test"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	if err := os.WriteFile(a.file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	return a
}

// sign makes a certificate; the first signs itself.
func (a authorityKeys) sign(t *testing.T, what *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	what.SerialNumber, what.NotBefore, what.NotAfter = big.NewInt(time.Now().UnixNano()), time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = what, key
	}
	der, err := x509.CreateCertificate(rand.Reader, what, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

// apiServer is a fake one: it says its name, and whether it is ready.
type apiServer struct {
	Server
	unready atomic.Bool
	checked atomic.Int64
}

func newAPIServer(t *testing.T, name string, a authorityKeys, dnsName string) *apiServer {
	t.Helper()
	cert, key := a.sign(t, &x509.Certificate{Subject: pkix.Name{CommonName: "kube-apiserver"}, DNSNames: []string{dnsName}})
	s := &apiServer{}
	mux := http.NewServeMux()
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) {
		s.checked.Add(1)
		if s.unready.Load() {
			w.WriteHeader(http.StatusInternalServerError)
		}
	})
	mux.HandleFunc("/name", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, name) })
	server := httptest.NewUnstartedServer(mux)
	server.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{cert.Raw}, PrivateKey: key}}, MinVersion: tls.VersionTLS12}
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError) // strangers are checked too
	server.StartTLS()
	t.Cleanup(server.Close)
	s.Server = Server{name, netip.MustParseAddrPort(server.Listener.Addr().String())}
	return s
}

// client is a connection to an API server through the balancer, which it keeps.
type client struct {
	conn   *tls.Conn
	in     *bufio.Reader
	server string
}

func dial(ctx context.Context, at netip.AddrPort) (*client, error) {
	dialer := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true}} //nolint:gosec // who it is, is not the question
	conn, err := dialer.DialContext(ctx, "tcp", at.String())
	if err != nil {
		return nil, err
	}
	c := &client{conn: conn.(*tls.Conn)}
	c.in = bufio.NewReader(conn)
	c.server, err = c.ask()
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return c, nil
}

// ask tells which server is at the other end.
func (c *client) ask() (string, error) {
	if _, err := io.WriteString(c.conn, "GET /name HTTP/1.1\r\nHost: kubernetes\r\n\r\n"); err != nil {
		return "", err
	}
	answer, err := http.ReadResponse(c.in, nil)
	if err != nil {
		return "", err
	}
	name, err := io.ReadAll(answer.Body)
	return string(name), errors.Join(err, answer.Body.Close())
}

// ended waits for the end of a connection on which nobody speaks.
func (c *client) ended(deadline time.Time) error {
	if err := c.conn.SetReadDeadline(deadline); err != nil {
		return err
	}
	_, err := c.in.ReadByte()
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return errors.New("it is still open")
	}
	if err == nil {
		return errors.New("it was spoken to")
	}
	return nil
}

func freePort(t *testing.T) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return netip.MustParseAddrPort(l.Addr().String())
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("must run as root")
	}
}

// startHAProxy runs it with the plan's file, and returns where it tells how it is.
func startHAProxy(t *testing.T, p Plan) string {
	t.Helper()
	needRoot(t)
	health := freePort(t).String()
	// Somebody else may have the port of this machine.
	text := strings.ReplaceAll(render(t, p, HAProxy), fmt.Sprintf("127.0.0.1:%d", HealthPort), health)
	file := filepath.Join(t.TempDir(), "haproxy.cfg")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "haproxy", "-db", "-f", file)
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()         // it was killed
		if t.Failed() {
			t.Logf("HAProxy:\n%s", log.String())
		}
	})
	return "http://" + health + "/healthz"
}

// until waits for a condition.
func until(t *testing.T, what string, done func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(within); !done(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v", what, within)
		}
	}
}

// health is what HAProxy tells keepalived, 0 if nothing.
func health(t *testing.T, url string) int {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0
	}
	_ = answer.Body.Close()
	return answer.StatusCode
}

// TestRealHAProxyLosesServers: one that is not ready any more loses the
// connections that it has, within a second, and gets no others; the other server's
// stay. Those whom the authority did not sign for, or not as an API server, get none ever.
func TestRealHAProxyLosesServers(t *testing.T) {
	ours, theirs := newAuthority(t), newAuthority(t)
	one, two := newAPIServer(t, "one", ours, APIName), newAPIServer(t, "two", ours, APIName)
	stranger, kubelet := newAPIServer(t, "stranger", theirs, APIName), newAPIServer(t, "kubelet", ours, "w1")
	p := Plan{
		Cluster: "test", Servers: []Server{one.Server, two.Server, stranger.Server, kubelet.Server},
		Listen: freePort(t), CA: ours.file,
	}
	url := startHAProxy(t, p)

	clients := map[string][]*client{}
	defer func() {
		for _, list := range clients {
			for _, c := range list {
				_ = c.conn.Close()
			}
		}
	}()
	// A balancer believes in all servers at first: wait until it knows better.
	until(t, "only servers of the cluster get clients", func() bool {
		if one.checked.Load() < 3 || two.checked.Load() < 3 {
			return false
		}
		for range 8 {
			c, err := dial(t.Context(), p.Listen)
			if err != nil {
				return false
			}
			clients[c.server] = append(clients[c.server], c)
		}
		return true
	})
	if len(clients) != 2 || len(clients["one"]) < 3 || len(clients["two"]) < 3 {
		t.Fatalf("connections are not spread over one and two: %v", counts(clients))
	}
	if stranger.checked.Load() != 0 || kubelet.checked.Load() != 0 {
		t.Errorf("a check spoke to whom it cannot know: %d, %d", stranger.checked.Load(), kubelet.checked.Load())
	}
	if got := health(t, url); got != http.StatusOK {
		t.Errorf("HAProxy is well and says %d", got)
	}

	lost := time.Now()
	one.unready.Store(true)
	for _, c := range clients["one"] {
		if err := c.ended(lost.Add(time.Second)); err != nil {
			t.Errorf("a connection of the server that is not ready, after %v: %v", time.Since(lost), err)
		}
	}
	t.Logf("connections ended after %v", time.Since(lost))
	for _, c := range clients["two"] {
		if name, err := c.ask(); name != "two" || err != nil {
			t.Errorf("a connection of the other server: %q, %v", name, err)
		}
	}
	for range 4 {
		c, err := dial(t.Context(), p.Listen)
		if err != nil {
			t.Fatal(err)
		}
		clients[c.server] = append(clients[c.server], c)
		if c.server != "two" {
			t.Errorf("a new client got %s", c.server)
		}
	}

	two.unready.Store(true)
	until(t, "HAProxy tells that it reaches nobody", func() bool { return health(t, url) == http.StatusServiceUnavailable })
	one.unready.Store(false)
	until(t, "HAProxy is well again", func() bool { return health(t, url) == http.StatusOK })
}

func counts(clients map[string][]*client) map[string]int {
	n := map[string]int{}
	for server, list := range clients {
		n[server] = len(list)
	}
	return n
}

// TestRealPrograms has each program judge its file; a damaged one it must refuse.
func TestRealPrograms(t *testing.T) {
	needRoot(t)
	ca := newAuthority(t)
	for _, program := range []struct {
		kind          Kind
		command       []string // and the file
		right, damage string
	}{
		{HAProxy, []string{"haproxy", "-c", "-f"}, "balance leastconn", "balance lestconn"},
		// It wants the interface to exist, and no loopback.
		{Keepalived, []string{"unshare", "--net", "sh", "-c", `ip link add eth0 type veth peer name eth1 && exec keepalived -t -f "$0"`}, "advert_int", "advert_interval"},
		{NGINX, []string{"nginx", "-t", "-c"}, "least_conn;", "lest_conn;"},
	} {
		for name, p := range map[string]Plan{"four": plan(), "six": six()} {
			if p.CA != "" {
				p.CA = ca.file
			}
			p.Router.Interface = "eth0"
			text := render(t, p, program.kind)
			if err := judge(t, program.command, text); err != nil {
				t.Errorf("%s, %s: %v", program.kind, name, err)
			}
			if err := judge(t, program.command, strings.Replace(text, program.right, program.damage, 1)); err == nil {
				t.Errorf("%s, %s: a damaged file is taken", program.kind, name)
			}
		}
	}
}

func judge(t *testing.T, command []string, text string) error {
	t.Helper()
	file := filepath.Join(t.TempDir(), "conf")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), command[0], append(command[1:], file)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	return nil
}
