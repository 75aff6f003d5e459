package pki

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"
)

const (
	authorityLife = 10 * 365 * 24 * time.Hour
	// personLife is also what a node's certificates live if nobody says otherwise.
	personLife = 365 * 24 * time.Hour
)

// Users and groups of kuorum's own making, as they appear in certificates.
// Those that call the Kubernetes API get their rights from role bindings made
// elsewhere. GroupAgents and GroupAdmins are what agents accept of each other
// and of the command line; no binding should name them.
const (
	GroupAgents = "kuorum:agents"
	GroupAdmins = "kuorum:admins"
	// GroupServers is on the certificates of servers' agents beside
	// GroupAgents: a role must not come from a name alone, which may be given
	// to another node.
	GroupServers          = "kuorum:servers"
	GroupAPIServerKubelet = "kuorum:apiserver-kubelet"

	// UserEndpoint is the balancer, which asks for /readyz and has no rights of its own.
	UserEndpoint = "kuorum:endpoint"
	UserFlannel  = "system:flannel"
	UserCoreDNS  = "system:coredns"

	userAgentPrefix = "kuorum:agent:"
	userAdminPrefix = "kuorum:admin:"

	groupMasters = "system:masters"
	groupNodes   = "system:nodes"
)

// Paths of Set.Files. Except for the last they are also the paths below
// /etc/kuorum/pki on a server.
const (
	fileCACert         = "ca.crt"
	fileCAKey          = "ca.key"
	fileAgentCert      = "agent-ca.crt"
	fileAgentKey       = "agent-ca.key"
	fileEtcdCert       = "etcd/ca.crt"
	fileEtcdKey        = "etcd/ca.key"
	fileFrontProxyCert = "front-proxy-ca.crt"
	fileFrontProxyKey  = "front-proxy-ca.key"
	fileSAPrivate      = "sa.key"
	fileSAPublic       = "sa.pub"
	fileEncryption     = "encryption.key"
)

// SigningKey is a key without a certificate: PKCS #8 and PKIX, both PEM.
type SigningKey struct {
	Private, Public []byte
}

// Set is the secrets a cluster starts with. Whoever has it owns the cluster;
// everything else that needs a key is derived from it and can be made again.
type Set struct {
	// Cluster signs everything that speaks to or for the Kubernetes API. Agents
	// signs the agents and their administrators: Kubernetes itself signs with
	// Cluster whatever somebody approves there, and that must open no agent.
	// Etcd and FrontProxy stand apart, as upstream demands. A certificate of one
	// means nothing to the others.
	Cluster, Agents, Etcd, FrontProxy *Authority
	// ServiceAccount signs the tokens of pods (ES256).
	ServiceAccount SigningKey
	// EncryptionKey is for secrets at rest in etcd (XSalsa20 and Poly1305).
	EncryptionKey [32]byte
	// External is how servers ask an etcd that somebody else runs; nil: the cluster
	// has its own.
	External *ExternalEtcd
	// LeafLife is how long the certificates of nodes live, which their agents
	// renew; 0 means a year. Those of persons, which nobody renews, and of the
	// API balancer outside live a year whatever it is. It is a setting and no
	// secret: Files does not hold it, and ParseSet leaves it 0.
	LeafLife time.Duration
}

func (s *Set) leafLife() time.Duration {
	if s.LeafLife == 0 {
		return personLife
	}
	return s.LeafLife
}

// NewSet makes the secrets of a new cluster. The authorities live ten years.
func NewSet(now time.Time) (*Set, error) {
	s := &Set{}
	for _, a := range []struct {
		name string
		to   **Authority
	}{
		{"kubernetes", &s.Cluster},
		{"kuorum-agents", &s.Agents},
		{"etcd-ca", &s.Etcd},
		{"front-proxy-ca", &s.FrontProxy},
	} {
		made, err := NewAuthority(a.name, now, authorityLife)
		if err != nil {
			return nil, err
		}
		*a.to = made
	}
	key, err := newSigningKey()
	if err != nil {
		return nil, err
	}
	s.ServiceAccount = key
	if _, err := rand.Read(s.EncryptionKey[:]); err != nil {
		return nil, fmt.Errorf("cannot draw encryption key: %w", err)
	}
	return s, nil
}

// Files returns the whole set by slash-separated relative path, for ParseSet.
// All but *.crt and *.pub are secret: keep them with mode 0600. The caller
// must not change the bytes.
func (s *Set) Files() map[string][]byte {
	files := map[string][]byte{
		fileCACert:         s.Cluster.Bundle(),
		fileCAKey:          s.Cluster.pair.Key,
		fileAgentCert:      s.Agents.Bundle(),
		fileAgentKey:       s.Agents.pair.Key,
		fileEtcdCert:       s.Etcd.Bundle(),
		fileEtcdKey:        s.Etcd.pair.Key,
		fileFrontProxyCert: s.FrontProxy.Bundle(),
		fileFrontProxyKey:  s.FrontProxy.pair.Key,
		fileSAPrivate:      s.ServiceAccount.Private,
		fileSAPublic:       s.ServiceAccount.Public,
		fileEncryption:     []byte(base64.StdEncoding.EncodeToString(s.EncryptionKey[:]) + "\n"),
	}
	if s.External != nil {
		maps.Copy(files, s.External.files())
	}
	return files
}

// ParseSet reads back what Files returned. It refuses a set that is not
// complete, has keys that do not belong together, or one authority in two
// places; files it does not know are ignored.
func ParseSet(files map[string][]byte) (*Set, error) {
	s, err := parseSet(files)
	if err != nil {
		return nil, fmt.Errorf("cannot parse cluster secrets: %w", err)
	}
	return s, nil
}

func parseSet(files map[string][]byte) (*Set, error) {
	for _, path := range []string{
		fileCACert, fileCAKey, fileAgentCert, fileAgentKey, fileEtcdCert, fileEtcdKey,
		fileFrontProxyCert, fileFrontProxyKey, fileSAPrivate, fileSAPublic, fileEncryption,
	} {
		if len(files[path]) == 0 {
			return nil, fmt.Errorf("%s is missing or empty: restore it from a snapshot or another server", path)
		}
	}
	s := &Set{}
	for _, a := range []struct {
		cert, key string
		to        **Authority
	}{
		{fileCACert, fileCAKey, &s.Cluster},
		{fileAgentCert, fileAgentKey, &s.Agents},
		{fileEtcdCert, fileEtcdKey, &s.Etcd},
		{fileFrontProxyCert, fileFrontProxyKey, &s.FrontProxy},
	} {
		parsed, err := ParseTrusted(files[a.cert], files[a.key])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", a.cert, err)
		}
		*a.to = parsed
	}
	if err := s.checkApart(); err != nil {
		return nil, err
	}
	if err := s.parseKeys(files); err != nil {
		return nil, err
	}
	var err error
	s.External, err = parseExternal(files)
	return s, err
}

// checkApart refuses authorities that share a key: a user of the API could
// then pass as the front proxy and become anybody, write to etcd, or command
// agents.
func (s *Set) checkApart() error {
	all := []*Authority{s.Cluster, s.Agents, s.Etcd, s.FrontProxy}
	var seen []*x509.Certificate
	for _, a := range all {
		for _, cert := range a.trusted() {
			if i := slices.IndexFunc(seen, sameKeyAs(cert)); i >= 0 {
				return fmt.Errorf("authorities %q and %q have the same key", seen[i].Subject.CommonName, cert.Subject.CommonName)
			}
			seen = append(seen, cert)
		}
	}
	return nil
}

func (s *Set) parseKeys(files map[string][]byte) error {
	key, err := parseSigningKey(files[fileSAPrivate], files[fileSAPublic])
	if err != nil {
		return fmt.Errorf("%s: %w", fileSAPrivate, err)
	}
	s.ServiceAccount = key
	raw, err := base64.StdEncoding.Strict().DecodeString(string(bytes.TrimSpace(files[fileEncryption])))
	if err != nil {
		return fmt.Errorf("%s: %w", fileEncryption, err)
	}
	if len(raw) != len(s.EncryptionKey) {
		return fmt.Errorf("%s: it has %d bytes instead of %d", fileEncryption, len(raw), len(s.EncryptionKey))
	}
	copy(s.EncryptionKey[:], raw)
	return nil
}

// AdminPair makes a client certificate for a person who may do everything.
// Kubernetes cannot take system:masters away again: the certificate is good
// for a year, or until the authority is replaced.
func (s *Set) AdminPair(now time.Time) (Pair, error) {
	return s.Cluster.issueFor(now, adminRequest())
}

// EtcdClientPair makes a client certificate for etcd. Etcd runs without users
// of its own, so name is only for its logs; the holder may do everything.
func (s *Set) EtcdClientPair(name string, now time.Time) (Pair, error) {
	return s.Etcd.issueFor(now, Request{CommonName: name, Client: true})
}

// EndpointPair makes a client certificate for an API balancer that runs
// elsewhere than on a node: it may ask API servers for /readyz and no more.
func (s *Set) EndpointPair(now time.Time) (Pair, error) {
	return s.Cluster.issueFor(now, client(UserEndpoint))
}

// AgentClientPair makes the client certificate with which a person's command
// line talks to agents. Name says whose it is, for the agents' logs; its
// common name is kuorum:admin:NAME.
func (s *Set) AgentClientPair(name string, now time.Time) (Pair, error) {
	if name == "" {
		return Pair{}, errors.New("cannot issue certificate for the agents: the name of its holder is empty")
	}
	return s.Agents.issueFor(now, Request{
		CommonName: userAdminPrefix + name, Organizations: []string{GroupAdmins}, Client: true,
	})
}

func adminRequest() Request {
	return Request{CommonName: "kubernetes-admin", Organizations: []string{groupMasters}, Client: true}
}

func newSigningKey() (SigningKey, error) {
	key, err := newKey()
	if err != nil {
		return SigningKey{}, fmt.Errorf("cannot make service account key: %w", err)
	}
	private, err := encodeKey(key)
	if err != nil {
		return SigningKey{}, fmt.Errorf("cannot make service account key: %w", err)
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return SigningKey{}, fmt.Errorf("cannot make service account key: %w", err)
	}
	return SigningKey{Private: private, Public: encode(blockPublicKey, der)}, nil
}

func parseSigningKey(private, public []byte) (SigningKey, error) {
	key, err := parseKey(private)
	if err != nil {
		return SigningKey{}, err
	}
	block, err := decode(public)
	if err != nil {
		return SigningKey{}, fmt.Errorf("cannot read public key: %w", err)
	}
	if block.Type != blockPublicKey {
		return SigningKey{}, fmt.Errorf("cannot read public key: the PEM block is a %q", block.Type)
	}
	pub, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return SigningKey{}, fmt.Errorf("cannot read public key: %w", err)
	}
	if !samePublicKey(key.Public(), pub) {
		return SigningKey{}, errors.New("the public key belongs to another private key")
	}
	return SigningKey{Private: private, Public: public}, nil
}
