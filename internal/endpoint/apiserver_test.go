package endpoint

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"log"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
)

// apiServer is a TLS server that can do to a balancer what a kube-apiserver
// can. It asks for a client certificate on /readyz.
type apiServer struct {
	t       *testing.T
	name    string
	address string
	pair    tls.Certificate
	clients *x509.CertPool

	code     atomic.Int64 // what /readyz answers
	body     atomic.Pointer[string]
	checks   atomic.Int64
	accepted atomic.Int64
	slow     atomic.Int64  // requests of /slow begun
	release  chan struct{} // closed: /slow answers

	mu     sync.Mutex
	server *http.Server
	ln     net.Listener
	frozen chan struct{} // closed: not frozen
}

func newAPIServer(t *testing.T, a *authority, name string) *apiServer {
	t.Helper()
	s := &apiServer{
		t: t, name: name, address: "127.0.0.1:0", pair: a.pair(t, "kubernetes"), clients: a.pool,
		release: make(chan struct{}), frozen: make(chan struct{}),
	}
	close(s.frozen)
	s.code.Store(http.StatusOK)
	s.start()
	t.Cleanup(func() { s.thaw(); s.kill() })
	return s
}

// start listens where it listened before.
func (s *apiServer) start() {
	s.t.Helper()
	var ln net.Listener
	eventually(s.t, "listen on "+s.address, func() (ok bool) {
		var err error
		ln, err = net.Listen("tcp", s.address)
		return err == nil
	})
	s.address = ln.Addr().String()
	ln = stallingListener{ln, s}
	mux := http.NewServeMux()
	mux.HandleFunc("/readyz", s.readyz)
	mux.HandleFunc("/name", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, s.name) })
	mux.HandleFunc("/slow", func(w http.ResponseWriter, r *http.Request) {
		s.slow.Add(1)
		select {
		case <-s.release:
			_, _ = io.WriteString(w, s.name)
		case <-r.Context().Done():
		}
	})
	server := &http.Server{
		Handler:  http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { s.wait(); mux.ServeHTTP(w, r) }),
		ErrorLog: log.New(io.Discard, "", 0),
		ConnState: func(_ net.Conn, state http.ConnState) {
			if state == http.StateNew {
				s.accepted.Add(1)
			}
		},
		TLSConfig: &tls.Config{
			Certificates: []tls.Certificate{s.pair}, ClientCAs: s.clients, ClientAuth: tls.VerifyClientCertIfGiven,
			GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { s.wait(); return nil, nil },
		},
	}
	s.mu.Lock()
	s.server, s.ln = server, ln
	s.mu.Unlock()
	go func() { _ = server.ServeTLS(ln, "", "") }()
}

func (s *apiServer) readyz(w http.ResponseWriter, r *http.Request) {
	s.checks.Add(1)
	if len(r.TLS.PeerCertificates) == 0 {
		http.Error(w, "who are you?", http.StatusUnauthorized)
		return
	}
	if code := int(s.code.Load()); code != http.StatusOK {
		body := "[+]ping ok\n[-]etcd failed: reason withheld\n[-]shutdown failed: reason withheld\nreadyz check failed"
		if other := s.body.Load(); other != nil {
			body = *other
		}
		http.Error(w, body, code)
		return
	}
	_, _ = io.WriteString(w, "ok")
}

func (s *apiServer) current() *http.Server {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.server
}

// kill is what the kernel does for a process that died.
func (s *apiServer) kill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = s.ln.Close() // The server may not know it yet.
	_ = s.server.Close()
}

// freeze is SIGSTOP: the kernel goes on accepting, nobody answers.
func (s *apiServer) freeze() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.frozen = make(chan struct{})
}

func (s *apiServer) thaw() {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.frozen:
	default:
		close(s.frozen)
	}
}

func (s *apiServer) wait() {
	s.mu.Lock()
	frozen := s.frozen
	s.mu.Unlock()
	<-frozen
}

// stallingListener makes a frozen server hear nothing, HTTP/2's own frames
// included.
type stallingListener struct {
	net.Listener
	s *apiServer
}

func (l stallingListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return stallingConn{conn, l.s}, nil
}

type stallingConn struct {
	net.Conn
	s *apiServer
}

func (c stallingConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.s.wait()
	return n, err
}
