package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// ServerTLS is for an agent's own API. It takes clients with a certificate of
// the agents' authority, caPEM, that are agents or admins, and clients without
// any, because a machine that joins has none yet: ask Peer at each request who
// calls. Every other certificate ends the handshake. CaPEM may hold several
// authorities, all of which are trusted; their own certificates are sent along,
// for machines that know only a pin.
func ServerTLS(caPEM []byte, pair Pair) (*tls.Config, error) {
	config, trusted, err := baseTLS(caPEM, pair)
	if err != nil {
		return nil, fmt.Errorf("cannot set up TLS of an agent: %w", err)
	}
	for _, ca := range trusted {
		config.Certificates[0].Certificate = append(config.Certificates[0].Certificate, ca.Raw)
	}
	config.ClientAuth = tls.VerifyClientCertIfGiven
	config.ClientCAs = poolOf(trusted...)
	config.VerifyConnection = func(state tls.ConnectionState) error {
		if len(state.PeerCertificates) == 0 {
			return nil
		}
		return verifyAgentPeer(state)
	}
	return config, nil
}

// ClientTLS is for calls to an agent, which must prove itself by a certificate
// of the agents' authority, caPEM. ServerName is the node's name or address:
// what the agent's certificate must be made out to, wherever it is dialled.
// Empty means the address that is dialled, which http.Transport and tls.Dialer
// fill in; tls.Client alone refuses an empty one.
func ClientTLS(caPEM []byte, pair Pair, serverName string) (*tls.Config, error) {
	config, trusted, err := baseTLS(caPEM, pair)
	if err != nil {
		return nil, fmt.Errorf("cannot set up TLS to an agent: %w", err)
	}
	config.RootCAs = poolOf(trusted...)
	config.VerifyConnection = verifyAgentPeer
	config.ServerName = serverName
	return config, nil
}

// NamedTLS is config, of ClientTLS, for the agent of one node alone, whatever
// its address is: its certificate must be made out to that node. It is for a
// node whose certificate does not name the address yet that it is asked at.
func NamedTLS(config *tls.Config, node string) *tls.Config {
	named := config.Clone()
	named.ServerName = node // the name is in the certificate as well
	named.VerifyConnection = func(state tls.ConnectionState) error {
		if err := verifyAgentPeer(state); err != nil {
			return err
		}
		caller, group, _ := Peer(&state)
		if group != GroupAgents || AgentNode(caller) != node {
			return fmt.Errorf("it is %q, not the agent of node %q", caller, node)
		}
		return nil
	}
	return named
}

// EtcdClientTLS is for calls to etcd, each of whose members must be made out to
// the address that is dialled. Its authority signs nothing but etcd's own, so
// that the chain alone is proof.
func EtcdClientTLS(caPEM []byte, pair Pair) (*tls.Config, error) {
	config, trusted, err := baseTLS(caPEM, pair)
	if err != nil {
		return nil, fmt.Errorf("cannot set up TLS to etcd: %w", err)
	}
	config.RootCAs = poolOf(trusted...)
	config.VerifyConnection = nil
	return config, nil
}

func baseTLS(caPEM []byte, pair Pair) (*tls.Config, []*x509.Certificate, error) {
	trusted, err := parseBundle(caPEM)
	if err != nil {
		return nil, nil, fmt.Errorf("the authority: %w", err)
	}
	cert, err := tls.X509KeyPair(pair.Cert, pair.Key)
	if err != nil {
		return nil, nil, fmt.Errorf("certificate and key: %w", err)
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}}, trusted, nil
}

func poolOf(roots ...*x509.Certificate) *x509.CertPool {
	pool := x509.NewCertPool()
	for _, ca := range roots {
		pool.AddCert(ca)
	}
	return pool
}

// Peer tells who calls, by the state of a connection that ServerTLS or
// ClientTLS made: the common name of the certificate, and GroupAgents or
// GroupAdmins. It is false for callers without a certificate (and without
// TLS): they are strangers, whatever they say.
func Peer(state *tls.ConnectionState) (name, group string, ok bool) {
	if state == nil || len(state.VerifiedChains) == 0 {
		return "", "", false
	}
	subject := state.VerifiedChains[0][0].Subject
	for _, group := range []string{GroupAgents, GroupAdmins} {
		if slices.Contains(subject.Organization, group) {
			return subject.CommonName, group, true
		}
	}
	return "", "", false
}

// PeerIsServer tells whether the caller is the agent of a server.
func PeerIsServer(state *tls.ConnectionState) bool {
	_, group, ok := Peer(state)
	return ok && group == GroupAgents && slices.Contains(state.VerifiedChains[0][0].Subject.Organization, GroupServers)
}

// AgentNode is the node whose agent has a certificate of that common name, or
// nothing.
func AgentNode(commonName string) string {
	name, ok := strings.CutPrefix(commonName, userAgentPrefix)
	if !ok {
		return ""
	}
	return name
}

// verifyAgentPeer runs after the chain was verified, on resumed sessions too.
// The agents' authority signs for nobody but agents and admins; that the
// certificate says so as well keeps a mistake in one place from opening the
// agents. It guards both directions.
func verifyAgentPeer(state tls.ConnectionState) error {
	if len(state.VerifiedChains) == 0 {
		return errors.New("the peer has no verified certificate")
	}
	if _, _, ok := Peer(&state); ok {
		return nil
	}
	return fmt.Errorf("%q is neither an agent nor an admin: its certificate needs the organization %s or %s",
		state.VerifiedChains[0][0].Subject.CommonName, GroupAgents, GroupAdmins)
}
