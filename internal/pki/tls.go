package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
)

// ServerTLS is for an agent's own API: it takes only clients with a certificate
// of the agents' authority, caPEM, that are agents or admins.
func ServerTLS(caPEM []byte, pair Pair) (*tls.Config, error) {
	config, pool, err := baseTLS(caPEM, pair)
	if err != nil {
		return nil, fmt.Errorf("cannot set up TLS of an agent: %w", err)
	}
	config.ClientAuth = tls.RequireAndVerifyClientCert
	config.ClientCAs = pool
	return config, nil
}

// ClientTLS is for calls to an agent, which must prove itself by a certificate
// of the agents' authority, caPEM. ServerName is the node's name or address:
// what the agent's certificate must be made out to, wherever it is dialled.
// Empty means the address that is dialled, which http.Transport and tls.Dialer
// fill in; tls.Client alone refuses an empty one.
func ClientTLS(caPEM []byte, pair Pair, serverName string) (*tls.Config, error) {
	config, pool, err := baseTLS(caPEM, pair)
	if err != nil {
		return nil, fmt.Errorf("cannot set up TLS to an agent: %w", err)
	}
	config.RootCAs = pool
	config.ServerName = serverName
	return config, nil
}

func baseTLS(caPEM []byte, pair Pair) (*tls.Config, *x509.CertPool, error) {
	ca, err := parseCertificate(caPEM)
	if err != nil {
		return nil, nil, err
	}
	cert, err := tls.X509KeyPair(pair.Cert, pair.Key)
	if err != nil {
		return nil, nil, fmt.Errorf("certificate and key: %w", err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(ca)
	return &tls.Config{
		MinVersion:       tls.VersionTLS12,
		Certificates:     []tls.Certificate{cert},
		VerifyConnection: verifyAgentPeer,
	}, pool, nil
}

// verifyAgentPeer runs after the chain was verified, on resumed sessions too.
// The agents' authority signs for nobody but agents and admins; that the
// certificate says so as well keeps a mistake in one place from opening the
// agents. It guards both directions.
func verifyAgentPeer(state tls.ConnectionState) error {
	if len(state.VerifiedChains) == 0 {
		return errors.New("the peer has no verified certificate")
	}
	subject := state.VerifiedChains[0][0].Subject
	if slices.Contains(subject.Organization, GroupAgents) || slices.Contains(subject.Organization, GroupAdmins) {
		return nil
	}
	return fmt.Errorf("%q is neither an agent nor an admin: its certificate needs the organization %s or %s",
		subject.CommonName, GroupAgents, GroupAdmins)
}
