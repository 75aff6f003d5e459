package pki

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"kuorum/internal/cluster"
)

// maxRequest bounds a certificate request, which needs less than 400 bytes.
const maxRequest = 8 << 10

const blockRequest = "CERTIFICATE REQUEST"

// NodeKeys are the private keys of a node that has made them itself, by where
// their certificates belong: "pki/kubelet" for a pair of files, "kubelet.conf"
// for a kubeconfig. They never leave the machine: Requests is what is sent.
type NodeKeys map[string]*ecdsa.PrivateKey

// NewNodeKeys makes the keys of any node but a server (ECDSA P-256, one a certificate).
// A server needs none: it gets the authorities themselves, and is refused.
func NewNodeKeys(role cluster.Role) (NodeKeys, error) {
	if err := checkAsks(role); err != nil {
		return nil, fmt.Errorf("cannot make keys: %w", err)
	}
	keys := NodeKeys{}
	for _, i := range (&plan{role: role, member: role == cluster.RoleEtcd}).items() {
		key, err := newKey()
		if err != nil {
			return nil, err
		}
		keys[i.path] = key
	}
	return keys, nil
}

// checkAsks takes all roles but servers. A request for a server's certificates, among
// them those of system:masters, is never signed.
func checkAsks(role cluster.Role) error {
	switch role {
	case cluster.RoleWorker, cluster.RoleEtcd, cluster.RoleBalancer:
		return nil
	case cluster.RoleServer:
	}
	return fmt.Errorf("only nodes with the role %s, %s or %s ask others for certificates, and this is a %q",
		cluster.RoleWorker, cluster.RoleEtcd, cluster.RoleBalancer, role)
}

// Requests returns a request (PKCS #10, PEM) for each key, by the same paths,
// for SignRequests. They hold the public keys and nothing else: what the
// certificates say is for the cluster to decide.
func (k NodeKeys) Requests() (map[string][]byte, error) {
	requests := map[string][]byte{}
	for path, key := range k {
		template := &x509.CertificateRequest{SignatureAlgorithm: x509.ECDSAWithSHA256}
		der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
		if err != nil {
			return nil, fmt.Errorf("cannot request certificate for %s: %w", path, err)
		}
		requests[path] = encode(blockRequest, der)
	}
	return requests, nil
}

// Files returns all files of a node that has joined with its own keys, like
// NodeFiles: certs is
// what SignRequests returned for the keys, trust the certificates of the
// authorities. A certificate that belongs to another key, was signed by
// somebody else, or says anything but what spec and node say is refused.
func (k NodeKeys) Files(spec *cluster.Spec, node cluster.Node, certs map[string][]byte, trust Trust) ([]File, error) {
	files, err := k.files(spec, node, certs, trust)
	if err != nil {
		return nil, fmt.Errorf("cannot make the files of node %q: %w", node.Name, err)
	}
	return files, nil
}

func (k NodeKeys) files(spec *cluster.Spec, node cluster.Node, certs map[string][]byte, trust Trust) ([]File, error) {
	p, items, err := askedItems(spec, node)
	if err != nil {
		return nil, err
	}
	if err := checkPaths(items, k); err != nil {
		return nil, fmt.Errorf("the keys: %w", err)
	}
	if err := checkPaths(items, certs); err != nil {
		return nil, fmt.Errorf("the certificates: %w", err)
	}
	trust, authorities, err := trust.parse(p.role)
	if err != nil {
		return nil, err
	}
	files := trust.files(p.role)
	for _, i := range items {
		pair, err := i.join(certs[i.path], k[i.path], authorities[i.by])
		if err != nil {
			return nil, fmt.Errorf("the certificate for %s: %w", i.path, err)
		}
		made, err := i.files(p.context, pair, trust.Cluster)
		if err != nil {
			return nil, err
		}
		files = append(files, made...)
	}
	return sorted(files), nil
}

// join brings a certificate and its key together.
func (i item) join(certPEM []byte, key *ecdsa.PrivateKey, ca *x509.Certificate) (Pair, error) {
	cert, err := parseCertificate(certPEM)
	if err != nil {
		return Pair{}, err
	}
	if err := i.check(cert, key.Public(), ca); err != nil {
		return Pair{}, err
	}
	encoded, err := encodeKey(key)
	if err != nil {
		return Pair{}, err
	}
	return Pair{Cert: encode(blockCertificate, cert.Raw), Key: encoded}, nil
}

// parse checks the certificates of the authorities that a role trusts, and
// returns them as kuorum writes them, and of each kind, by file name, the one that
// signs.
func (t Trust) parse(role cluster.Role) (Trust, map[string]*x509.Certificate, error) {
	var clean Trust
	var seen []*x509.Certificate
	signers := map[string]*x509.Certificate{}
	for _, a := range []struct {
		file, whose string
		from        []byte
		into        *[]byte
	}{
		{fileCACert, "the cluster's authority", t.Cluster, &clean.Cluster},
		{fileAgentCert, "the agents' authority", t.Agents, &clean.Agents},
		{fileEtcdCert, "etcd's authority", t.Etcd, &clean.Etcd},
	} {
		if !slices.Contains(trusted(role), a.file) {
			continue
		}
		bundle, err := parseBundle(a.from)
		if err != nil {
			return Trust{}, nil, fmt.Errorf("%s: %w", a.whose, err)
		}
		for _, cert := range bundle {
			if slices.ContainsFunc(seen, sameKeyAs(cert)) {
				return Trust{}, nil, fmt.Errorf("%s and another have the same key", a.whose)
			}
		}
		seen = append(seen, bundle...)
		signers[a.file], *a.into = bundle[0], encodeAll(bundle)
	}
	return clean, signers, nil
}

// SignRequests signs what a joining worker or etcd node asks for: exactly one request (PEM,
// 8 KiB at most) for each certificate that it needs, by the paths of NodeKeys.
// A request is used for its public key alone; what the certificates say and may
// be used for comes from spec and node, and one that asks for anything is
// refused, not corrected. Certificates live as those of NodeFiles do. Whether
// the caller may be that node is for the caller of SignRequests to know.
func (s *Set) SignRequests(
	spec *cluster.Spec, node cluster.Node, requests map[string][]byte, now time.Time,
) (map[string][]byte, error) {
	certs, err := s.signRequests(spec, node, requests, now)
	if err != nil {
		return nil, fmt.Errorf("cannot sign the requests of node %q: %w", node.Name, err)
	}
	return certs, nil
}

func (s *Set) signRequests(
	spec *cluster.Spec, node cluster.Node, requests map[string][]byte, now time.Time,
) (map[string][]byte, error) {
	_, items, err := askedItems(spec, node)
	if err != nil {
		return nil, err
	}
	if err := checkPaths(items, requests); err != nil {
		return nil, err
	}
	// All are looked at before the first is signed.
	keys, err := requestedKeys(requests)
	if err != nil {
		return nil, err
	}
	certs := map[string][]byte{}
	for _, i := range items {
		cert, err := s.authority(i.by).issueTo(keys[i.path], i.req.lasting(now, s.leafLife()))
		if err != nil {
			return nil, err
		}
		certs[i.path] = cert
	}
	return certs, nil
}

func askedItems(spec *cluster.Spec, node cluster.Node) (*plan, []item, error) {
	p, err := newPlan(spec, node)
	if err != nil {
		return nil, nil, err
	}
	if err := checkAsks(p.role); err != nil {
		return nil, nil, err
	}
	return p, p.items(), nil
}

// checkPaths wants exactly the items' paths.
func checkPaths[T any](items []item, have map[string]T) error {
	known := map[string]bool{}
	for _, i := range items {
		known[i.path] = true
		if _, ok := have[i.path]; !ok {
			return fmt.Errorf("%s is missing", i.path)
		}
	}
	for _, path := range slices.Sorted(maps.Keys(have)) {
		if !known[path] {
			return fmt.Errorf("%q is nothing that such a node has", path)
		}
	}
	return nil
}

func requestedKeys(requests map[string][]byte) (map[string]*ecdsa.PublicKey, error) {
	keys, seen := map[string]*ecdsa.PublicKey{}, map[string]string{}
	for _, path := range slices.Sorted(maps.Keys(requests)) {
		key, err := parseRequest(requests[path])
		if err != nil {
			return nil, fmt.Errorf("the request for %s: %w", path, err)
		}
		id, err := keyID(key)
		if err != nil {
			return nil, fmt.Errorf("the request for %s: %w", path, err)
		}
		if other, twice := seen[string(id)]; twice {
			return nil, fmt.Errorf("the requests for %s and %s have the same key", other, path)
		}
		seen[string(id)], keys[path] = path, key
	}
	return keys, nil
}

// parseRequest returns the public key of a request, whose sender has shown that
// the private key is his.
func parseRequest(data []byte) (*ecdsa.PublicKey, error) {
	if len(data) > maxRequest {
		return nil, fmt.Errorf("it has %d bytes, at most %d are taken", len(data), maxRequest)
	}
	block, err := decode(data)
	if err != nil {
		return nil, err
	}
	if block.Type != blockRequest {
		return nil, fmt.Errorf("the PEM block is a %q", block.Type)
	}
	request, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("cannot read it: %w", err)
	}
	key, ok := request.PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, fmt.Errorf("its key is %s, and not ECDSA P-256", request.PublicKeyAlgorithm)
	}
	if request.SignatureAlgorithm != x509.ECDSAWithSHA256 {
		return nil, fmt.Errorf("it is signed with %s instead of %s", request.SignatureAlgorithm, x509.ECDSAWithSHA256)
	}
	if err := request.CheckSignature(); err != nil {
		return nil, fmt.Errorf("it is not signed by its own key: %w", err)
	}
	return key, checkBare(request)
}

// checkBare refuses a request that asks for more than a certificate for its
// key: nothing of it would be granted, and who sends it may believe it was.
func checkBare(request *x509.CertificateRequest) error {
	for _, field := range []struct {
		name string
		set  bool
	}{
		{"a subject", !bytes.Equal(request.RawSubject, emptySequence())},
		{"DNS names", len(request.DNSNames) != 0},
		{"IP addresses", len(request.IPAddresses) != 0},
		{"e-mail addresses", len(request.EmailAddresses) != 0},
		{"URIs", len(request.URIs) != 0},
		{"extensions", len(request.Extensions) != 0},
	} {
		if field.set {
			return fmt.Errorf("it has %s: a request may hold a key and nothing else", field.name)
		}
	}
	// crypto/x509 passes over attributes that it does not know. What is left of a
	// bare request has only one encoding.
	bare, err := asn1.Marshal(struct {
		Version      int
		Subject, Key asn1.RawValue
		Attributes   []asn1.RawValue `asn1:"tag:0"`
	}{
		Version: request.Version,
		Subject: asn1.RawValue{FullBytes: emptySequence()},
		Key:     asn1.RawValue{FullBytes: request.RawSubjectPublicKeyInfo},
	})
	if err != nil {
		return fmt.Errorf("cannot check it: %w", err)
	}
	if !bytes.Equal(bare, request.RawTBSCertificateRequest) {
		return errors.New("it has attributes: a request may hold a key and nothing else")
	}
	return nil
}

// emptySequence is the encoding of a name without parts.
func emptySequence() []byte { return []byte{0x30, 0} }
