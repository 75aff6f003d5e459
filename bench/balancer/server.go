package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	serverCount = 3
	serverName  = "kubernetes" // what the balancer expects of an API server
	rawProtocol = "questions"  // what a client of TLS asks for that has questions
	caFile      = "ca.crt"
	keyFile     = "server.key"
)

// makeCertificate is its own authority.
func makeCertificate(dir string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	now := time.Now()
	cert := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: serverName}, DNSNames: []string{serverName},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	signed, err := x509.CreateCertificate(rand.Reader, cert, cert, key.Public(), key)
	if err != nil {
		return err
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(filepath.Join(dir, caFile), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: signed}), 0o600),
		os.WriteFile(filepath.Join(dir, keyFile), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}), 0o600),
	)
}

// serveAll is API servers that are made up, with the certificate in dir: over TLS
// they say that they are ready, and with TLS or without they answer questions. It
// prints their addresses.
func serveAll(dir string) error {
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, caFile), filepath.Join(dir, keyFile))
	if err != nil {
		return err
	}
	config := &tls.Config{Certificates: []tls.Certificate{pair}, NextProtos: []string{"h2", "http/1.1", rawProtocol}, MinVersion: tls.VersionTLS12}
	var group errgroup.Group
	for range serverCount {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		s := &server{ln: ln, config: config, web: make(chan net.Conn), bytes: make([]byte, chunk)}
		group.Go(s.serve)
		group.Go(func() error {
			return (&http.Server{Handler: http.HandlerFunc(readyz), TLSConfig: config.Clone(), ReadHeaderTimeout: time.Minute}).Serve(s)
		})
		fmt.Println(ln.Addr())
	}
	return group.Wait()
}

func readyz(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/readyz" {
		http.NotFound(w, r)
		return
	}
	_, _ = io.WriteString(w, "ok") // the client may be gone
}

// server is also the listener of what speaks HTTP.
type server struct {
	ln     net.Listener
	config *tls.Config
	web    chan net.Conn
	bytes  []byte // of all answers
}

// Accept implements net.Listener.
func (s *server) Accept() (net.Conn, error) { return <-s.web, nil }

// Close implements net.Listener.
func (s *server) Close() error { return s.ln.Close() }

// Addr implements net.Listener.
func (s *server) Addr() net.Addr { return s.ln.Addr() }

func (s *server) serve() error {
	for {
		conn, err := s.ln.Accept()
		if err != nil {
			return err
		}
		go s.welcome(conn)
	}
}

// welcome sees from the first byte who it is.
func (s *server) welcome(conn net.Conn) {
	first := make([]byte, 1)
	if _, err := io.ReadFull(conn, first); err != nil {
		_ = conn.Close()
		return
	}
	whole := &begun{conn, io.MultiReader(bytes.NewReader(first), conn)}
	if first[0] == raw {
		s.answer(whole)
		return
	}
	secured := tls.Server(whole, s.config)
	if err := secured.Handshake(); err != nil {
		_ = conn.Close()
		return
	}
	if secured.ConnectionState().NegotiatedProtocol == rawProtocol {
		s.answer(secured)
		return
	}
	s.web <- secured
}

// begun is a connection of which some has been read.
type begun struct {
	net.Conn
	reader io.Reader
}

// Read implements net.Conn.
func (b *begun) Read(p []byte) (int, error) { return b.reader.Read(p) }

// answer answers questions until there are no more.
func (s *server) answer(conn net.Conn) {
	defer func() { _ = conn.Close() }()
	asked := make([]byte, questionSize)
	for {
		if _, err := io.ReadFull(conn, asked); err != nil {
			return
		}
		for left := binary.BigEndian.Uint64(asked[1:]); left > 0; {
			n, err := conn.Write(s.bytes[:min(left, chunk)])
			if err != nil {
				return
			}
			left -= uint64(n) //nolint:gosec // never negative
		}
	}
}
