package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/client-go/rest"
)

func filePair(files map[string]File, name string) Pair {
	return Pair{Cert: files[name+".crt"].Data, Key: files[name+".key"].Data}
}

// configPair is the certificate and key of one of a node's kubeconfigs.
func configPair(t *testing.T, files map[string]File, path string) Pair {
	t.Helper()
	config := restConfig(t, writeFiles(t, files), path)
	if err := rest.LoadTLSFiles(config); err != nil {
		t.Fatal(err)
	}
	return Pair{Cert: config.CertData, Key: config.KeyData}
}

func atTestNow(t *testing.T) func(config *tls.Config, err error) *tls.Config {
	return func(config *tls.Config, err error) *tls.Config {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		config.Time = func() time.Time { return testNow }
		return config
	}
}

// handshake connects over 127.0.0.1 and sends a byte each way, because a TLS
// 1.3 client learns only from its first read that it was refused.
func handshake(t *testing.T, server, client *tls.Config) (serverErr, clientErr error) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	done := make(chan error, 1)
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			done <- err
			return
		}
		done <- exchange(tls.Server(conn, server))
	}()
	conn, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	clientErr = exchange(tls.Client(conn, client))
	return <-done, clientErr
}

func exchange(conn *tls.Conn) error {
	err := conn.SetDeadline(time.Now().Add(30 * time.Second))
	if err == nil {
		_, err = conn.Write([]byte("x"))
	}
	if err == nil {
		_, err = io.ReadFull(conn, make([]byte, 1))
	}
	return errors.Join(err, conn.NetConn().Close())
}

func TestServerTLSChoosesItsClients(t *testing.T) {
	s, other := newTestSet(t), newTestSet(t)
	ca := s.Agents.pair.Cert
	cp1, w1 := nodeFiles(t, s, "cp1", testNow), nodeFiles(t, s, "w1", testNow)
	admin, err := s.AgentClientPair("lab", testNow)
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := other.AgentClientPair("lab", testNow)
	if err != nil {
		t.Fatal(err)
	}
	issue := func(by *Authority, req Request) Pair {
		pair, err := by.issueFor(testNow, req)
		if err != nil {
			t.Fatal(err)
		}
		return pair
	}
	admins := Request{CommonName: "x", Organizations: []string{GroupAdmins}, Client: true}
	serverOnly := Request{CommonName: "x", Organizations: []string{GroupAgents}, Names: []string{"cp1"}, Server: true}
	server := atTestNow(t)(ServerTLS(ca, filePair(cp1, "pki/agent")))
	tests := map[string]struct {
		pair Pair
		want string // in the server's error; empty if it takes the client
	}{
		"agent of a worker":        {filePair(w1, "pki/agent"), ""},
		"agent itself":             {filePair(cp1, "pki/agent"), ""},
		"admin":                    {admin, ""},
		"somebody else":            {issue(s.Agents, client("x", "system:masters")), "neither an agent nor an admin"},
		"kubelet":                  {configPair(t, w1, "kubelet.conf"), "unknown authority"},
		"kubernetes admin":         {configPair(t, cp1, "admin.conf"), "unknown authority"},
		"balancer":                 {filePair(w1, "pki/endpoint"), "unknown authority"},
		"admin of another cluster": {stranger, "unknown authority"},
		"admin by kubernetes":      {issue(s.Cluster, admins), "unknown authority"},
		"admin by etcd":            {issue(s.Etcd, admins), "unknown authority"},
		"server's certificate":     {issue(s.Agents, serverOnly), "incompatible key usage"},
	}
	for name, test := range tests {
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			t.Run(name+" "+tls.VersionName(version), func(t *testing.T) {
				client := insist(atTestNow(t)(ClientTLS(ca, test.pair, "cp1")))
				client.MaxVersion = version
				checkHandshake(t, server, client, test.want)
			})
		}
	}
	t.Run("TLS 1.1", func(t *testing.T) {
		client := atTestNow(t)(ClientTLS(ca, admin, "cp1"))
		client.MinVersion, client.MaxVersion = tls.VersionTLS11, tls.VersionTLS11
		checkHandshake(t, server, client, "version")
	})
	t.Run("expired", func(t *testing.T) {
		late := server.Clone()
		late.Time = func() time.Time { return testNow.Add(366 * day) }
		checkHandshake(t, late, atTestNow(t)(ClientTLS(ca, admin, "cp1")), "expired")
	})
}

// insist makes a client send its certificate although the server has said that
// it takes none of its authority; an honest client would send none.
func insist(client *tls.Config) *tls.Config {
	client.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		return &client.Certificates[0], nil
	}
	return client
}

// checkHandshake wants both sides to succeed, or both to fail, the server with
// this error.
func checkHandshake(t *testing.T, server, client *tls.Config, want string) {
	t.Helper()
	serverErr, clientErr := handshake(t, server, client)
	if want == "" {
		if serverErr != nil || clientErr != nil {
			t.Errorf("refused: server %v, client %v", serverErr, clientErr)
		}
		return
	}
	if serverErr == nil || !strings.Contains(serverErr.Error(), want) {
		t.Errorf("the server's error is %v, want one with %q", serverErr, want)
	}
	if clientErr == nil {
		t.Error("the client did not notice that it was refused")
	}
}

func TestClientTLSChoosesItsServer(t *testing.T) {
	s, other := newTestSet(t), newTestSet(t)
	ca := s.Agents.pair.Cert
	cp1 := nodeFiles(t, s, "cp1", testNow)
	admin, err := s.AgentClientPair("lab", testNow)
	if err != nil {
		t.Fatal(err)
	}
	noAgent, err := s.Agents.issueFor(testNow, Request{CommonName: "x", Names: []string{"cp1"}, Server: true})
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		server     Pair
		serverName string
		want       string // in the client's error; empty if it takes the server
	}{
		"by name":         {filePair(cp1, "pki/agent"), "cp1", ""},
		"by address":      {filePair(cp1, "pki/agent"), "198.18.0.11", ""},
		"by loopback":     {filePair(cp1, "pki/agent"), "127.0.0.1", ""},
		"other node":      {filePair(cp1, "pki/agent"), "cp2", "valid for"},
		"no agent":        {noAgent, "cp1", "neither an agent nor an admin"},
		"kubelet":         {filePair(cp1, "pki/kubelet"), "cp1", "unknown authority"},
		"API server":      {filePair(cp1, "pki/apiserver"), "cp1", "unknown authority"},
		"etcd":            {filePair(cp1, "pki/etcd/server"), "cp1", "unknown authority"},
		"another cluster": {filePair(nodeFiles(t, other, "cp1", testNow), "pki/agent"), "cp1", "authority"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			server := atTestNow(t)(ServerTLS(ca, test.server))
			_, err := handshake(t, server, atTestNow(t)(ClientTLS(ca, admin, test.serverName)))
			if test.want == "" && err != nil {
				t.Errorf("the client refused: %v", err)
			}
			if test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("the client's error is %v, want one with %q", err, test.want)
			}
		})
	}
}

// TestEtcdClientTLSChoosesItsServer: etcd's authority is proof, and no other.
func TestEtcdClientTLSChoosesItsServer(t *testing.T) {
	s, other := newTestSet(t), newTestSet(t)
	admin, err := s.EtcdClientPair("lab", testNow)
	if err != nil {
		t.Fatal(err)
	}
	cp1 := nodeFiles(t, s, "cp1", testNow)
	for name, test := range map[string]struct {
		server     Pair
		serverName string
		want       string // in the client's error; empty if it takes the server
	}{
		"by address":      {filePair(cp1, "pki/etcd/server"), "198.18.0.11", ""},
		"other node":      {filePair(cp1, "pki/etcd/server"), "198.18.0.12", "valid for"},
		"agent":           {filePair(cp1, "pki/agent"), "198.18.0.11", "unknown authority"},
		"another cluster": {filePair(nodeFiles(t, other, "cp1", testNow), "pki/etcd/server"), "198.18.0.11", "authority"},
	} {
		certificate, err := tls.X509KeyPair(test.server.Cert, test.server.Key)
		if err != nil {
			t.Fatal(err)
		}
		server := &tls.Config{
			MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{certificate},
			ClientAuth: tls.RequireAnyClientCert,
		}
		client := atTestNow(t)(EtcdClientTLS(s.Etcd.pair.Cert, admin))
		client.ServerName = test.serverName
		_, err = handshake(t, server, client)
		if test.want == "" && err != nil {
			t.Errorf("%s: the client refused: %v", name, err)
		}
		if test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%s: the client's error is %v, want one with %q", name, err, test.want)
		}
	}
}

// Without a server name the address that is dialled counts, never nothing.
func TestClientTLSWithoutServerName(t *testing.T) {
	s := newTestSet(t)
	ca := s.Agents.pair.Cert
	admin, err := s.AgentClientPair("lab", testNow)
	if err != nil {
		t.Fatal(err)
	}
	elsewhere, err := s.Agents.issueFor(testNow, Request{
		CommonName: "kuorum:agent:w1", Organizations: []string{GroupAgents},
		IPs: []netip.Addr{netip.MustParseAddr("198.18.0.21")}, Server: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	client := atTestNow(t)(ClientTLS(ca, admin, ""))
	get := func(pair Pair) error {
		server := httptest.NewUnstartedServer(http.NotFoundHandler())
		server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
		server.TLS = atTestNow(t)(ServerTLS(ca, pair))
		server.StartTLS()
		defer server.Close()
		transport := &http.Transport{TLSClientConfig: client}
		defer transport.CloseIdleConnections()
		resp, err := (&http.Client{Transport: transport}).Get(server.URL)
		if err != nil {
			return err
		}
		return resp.Body.Close()
	}
	if err := get(filePair(nodeFiles(t, s, "cp1", testNow), "pki/agent")); err != nil {
		t.Errorf("an agent at the address that was dialled: %v", err)
	}
	if err := get(elsewhere); err == nil || !strings.Contains(err.Error(), "198.18.0.21, not 127.0.0.1") {
		t.Errorf("an agent of another address: %v", err)
	}
	server := atTestNow(t)(ServerTLS(ca, elsewhere))
	if _, err := handshake(t, server, client); err == nil || !strings.Contains(err.Error(), "ServerName") {
		t.Errorf("a bare client without a server name: %v", err)
	}
}

func TestTLSRefusesBadInput(t *testing.T) {
	s := newTestSet(t)
	pair, err := s.AgentClientPair("lab", testNow)
	if err != nil {
		t.Fatal(err)
	}
	ca := s.Agents.pair.Cert
	mixed := Pair{Cert: pair.Cert, Key: s.Agents.pair.Key}
	if _, err := ClientTLS(ca, mixed, "cp1"); err == nil {
		t.Error("a client with the key of another was made")
	}
	if _, err := ServerTLS(ca, mixed); err == nil {
		t.Error("a server with the key of another was made")
	}
	if _, err := ServerTLS(nil, pair); err == nil {
		t.Error("a server without authority was made")
	}
	if _, err := ServerTLS(pair.Cert, pair); err == nil || !strings.Contains(err.Error(), "may not sign") {
		t.Errorf("a server with a leaf for its authority: %v", err)
	}
	if err := verifyAgentPeer(tls.ConnectionState{}); err == nil {
		t.Error("a peer without certificate was taken")
	}
}

// Who calls is known only of those that the agents' authority vouches for; a
// certificate that an honest client keeps back leaves a stranger.
func TestPeer(t *testing.T) {
	s := newTestSet(t)
	ca := s.Agents.pair.Cert
	cp1, w1 := nodeFiles(t, s, "cp1", testNow), nodeFiles(t, s, "w1", testNow)
	admin, err := s.AgentClientPair("lab", testNow)
	if err != nil {
		t.Fatal(err)
	}
	type peer struct {
		Name, Group string
		OK          bool
	}
	server := atTestNow(t)(ServerTLS(ca, filePair(cp1, "pki/agent")))
	for name, test := range map[string]struct {
		pair Pair
		want peer
	}{
		"agent":   {filePair(w1, "pki/agent"), peer{"kuorum:agent:w1", GroupAgents, true}},
		"admin":   {admin, peer{"kuorum:admin:lab", GroupAdmins, true}},
		"kubelet": {configPair(t, w1, "kubelet.conf"), peer{}},
		"nobody":  {Pair{}, peer{}},
	} {
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			t.Run(name+" "+tls.VersionName(version), func(t *testing.T) {
				client := atTestNow(t)(ClientTLS(ca, admin, "cp1"))
				client.MaxVersion, client.Certificates = version, nil
				if test.pair.Cert != nil {
					client.Certificates = atTestNow(t)(ClientTLS(ca, test.pair, "cp1")).Certificates
				}
				var got peer
				watched := server.Clone()
				watched.VerifyConnection = func(state tls.ConnectionState) error {
					got.Name, got.Group, got.OK = Peer(&state)
					return server.VerifyConnection(state)
				}
				checkHandshake(t, watched, client, "")
				if diff := cmp.Diff(test.want, got); diff != "" {
					t.Errorf("peer (-want +got):\n%s", diff)
				}
			})
		}
	}
	agent := mustParse(t, cp1["pki/agent.crt"].Data)
	for who, state := range map[string]*tls.ConnectionState{
		"no TLS":         nil,
		"no certificate": {},
		"not verified":   {PeerCertificates: []*x509.Certificate{agent}},
		"somebody else":  {VerifiedChains: [][]*x509.Certificate{{mustParse(t, cp1["pki/kubelet.crt"].Data)}}},
	} {
		if name, group, ok := Peer(state); ok || name != "" || group != "" {
			t.Errorf("%s: %q of %q", who, name, group)
		}
	}
}

// TestNamedTLS: whatever the address, it is the agent of that node or nobody.
func TestNamedTLS(t *testing.T) {
	s, other := newTestSet(t), newTestSet(t)
	admin, err := s.AgentClientPair("lab", testNow)
	if err != nil {
		t.Fatal(err)
	}
	issue := func(req Request) Pair {
		pair, err := s.Agents.issueFor(testNow, req)
		if err != nil {
			t.Fatal(err)
		}
		return pair
	}
	agents := func(name string) Request {
		return Request{CommonName: name, Organizations: []string{GroupAgents}, Names: []string{"cp1", "localhost"}, Server: true, Client: true}
	}
	client := NamedTLS(atTestNow(t)(ClientTLS(s.Agents.pair.Cert, admin, "")), "cp1")
	for name, test := range map[string]struct {
		by   *Set
		pair Pair
		want string // in the client's error; empty if it takes the server
	}{
		"the node":                 {s, filePair(nodeFiles(t, s, "cp1", testNow), "pki/agent"), ""},
		"another node":             {s, filePair(nodeFiles(t, s, "w1", testNow), "pki/agent"), "not cp1"},
		"another cluster's":        {other, filePair(nodeFiles(t, other, "cp1", testNow), "pki/agent"), "unknown authority"},
		"the name, not the agent":  {s, issue(agents("kuorum:agent:w1")), `"kuorum:agent:w1"`},
		"the name of an admin":     {s, issue(Request{CommonName: "kuorum:agent:cp1", Organizations: []string{GroupAdmins}, Names: []string{"cp1"}, Server: true}), "not the agent"},
		"nobody's group":           {s, issue(Request{CommonName: "kuorum:agent:cp1", Names: []string{"cp1"}, Server: true}), "neither an agent"},
		"the node's etcd":          {s, filePair(nodeFiles(t, s, "cp1", testNow), "pki/etcd/server"), "unknown authority"},
		"the node, from elsewhere": {s, issue(agents("kuorum:agent:cp1")), ""},
	} {
		t.Run(name, func(t *testing.T) {
			server := atTestNow(t)(ServerTLS(test.by.Agents.pair.Cert, test.pair))
			server.VerifyConnection, server.ClientAuth = nil, tls.NoClientCert
			_, err := handshake(t, server, client)
			if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
	if plain := atTestNow(t)(ClientTLS(s.Agents.pair.Cert, admin, "10.0.0.1")); NamedTLS(plain, "cp1").ServerName != "cp1" || plain.ServerName != "10.0.0.1" {
		t.Error("the settings that it was made of have changed")
	}
}
