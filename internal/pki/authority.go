// Package pki makes the keys and certificates of a cluster: its authorities,
// what they sign for each node, and the kubeconfigs and TLS settings built
// from them. Everything goes in and out as bytes: the package touches no disk
// and no clock.
package pki

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"slices"
	"time"
)

const (
	blockCertificate = "CERTIFICATE"
	blockKey         = "PRIVATE KEY"
	blockECKey       = "EC PRIVATE KEY"
	blockPublicKey   = "PUBLIC KEY"
)

// ErrExpired means that an authority can sign nothing any more: its own
// certificate has ended.
var ErrExpired = errors.New("the authority has expired")

// Pair is a certificate and its private key, both PEM; the key is PKCS #8.
type Pair struct {
	Cert, Key []byte
}

// Authority signs certificates. It is always a self-signed root: kuorum has no
// intermediate authorities, and gives its own a path length of 0.
type Authority struct {
	cert *x509.Certificate
	key  crypto.Signer
	pair Pair
	also []*x509.Certificate // trusted beside it, see Trusting
}

// Request says what certificate to issue.
type Request struct {
	// CommonName is the user name that Kubernetes sees; Organizations are the
	// groups.
	CommonName    string
	Organizations []string
	// Names and IPs are what a server may be called by its clients; a server
	// needs at least one of them.
	Names []string
	IPs   []netip.Addr
	// Server and Client are what the certificate may be used as; at least one.
	Server, Client bool
	// NotBefore is the moment of first use (the present, as a rule); the
	// certificate is valid from five minutes earlier. NotAfter is its end.
	// Both are clamped to the life of the authority.
	NotBefore, NotAfter time.Time
}

// NewAuthority makes a root with a new ECDSA P-256 key that is valid from
// an hour before now, five minutes if it lives for less than ten hours, until now
// plus life.
func NewAuthority(name string, now time.Time, life time.Duration) (*Authority, error) {
	if name == "" {
		return nil, errors.New("cannot make authority: its name is empty")
	}
	if life <= 0 {
		return nil, fmt.Errorf("cannot make authority %q: its life of %s is not positive", name, life)
	}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             now.Add(-backdate(life)),
		NotAfter:              now.Add(life),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	key, err := newKey()
	if err != nil {
		return nil, fmt.Errorf("cannot make authority %q: %w", name, err)
	}
	cert, err := certify(template, &key.PublicKey, template, key)
	if err != nil {
		return nil, fmt.Errorf("cannot make authority %q: %w", name, err)
	}
	encoded, err := encodeKey(key)
	if err != nil {
		return nil, fmt.Errorf("cannot make authority %q: %w", name, err)
	}
	return ParseAuthority(cert, encoded)
}

// ParseAuthority reads an authority back. It takes exactly one self-signed
// root and the key that belongs to it (PKCS #8 or SEC 1), and refuses
// everything else: a certificate that was changed, the key of another one, a
// leaf, an intermediate. It does not know the time: Issue refuses an authority
// that has expired.
func ParseAuthority(certPEM, keyPEM []byte) (*Authority, error) {
	cert, err := parseCertificate(certPEM)
	if err != nil {
		return nil, fmt.Errorf("cannot parse authority: %w", err)
	}
	if err := checkRoot(cert); err != nil {
		return nil, fmt.Errorf("cannot parse authority %q: %w", cert.Subject.CommonName, err)
	}
	key, err := parseKey(keyPEM)
	if err != nil {
		return nil, fmt.Errorf("cannot parse authority %q: %w", cert.Subject.CommonName, err)
	}
	if !samePublicKey(key.Public(), cert.PublicKey) {
		return nil, fmt.Errorf("cannot parse authority %q: the key belongs to another certificate", cert.Subject.CommonName)
	}
	encoded, err := encodeKey(key)
	if err != nil {
		return nil, fmt.Errorf("cannot parse authority %q: %w", cert.Subject.CommonName, err)
	}
	return &Authority{cert: cert, key: key, pair: Pair{Cert: encode(blockCertificate, cert.Raw), Key: encoded}}, nil
}

// Pair returns the certificate and key of the authority itself; the caller
// must not change the bytes.
func (a *Authority) Pair() Pair { return a.pair }

// NotAfter is the last second at which anything the authority signed is valid.
func (a *Authority) NotAfter() time.Time { return a.cert.NotAfter }

// Issue makes a new ECDSA P-256 key and signs a certificate for it. No
// certificate outlives its authority: a later NotAfter is cut, without an
// error, to the authority's own. A NotBefore at or after the authority's end
// is refused with ErrExpired.
func (a *Authority) Issue(req Request) (Pair, error) {
	key, err := newKey()
	if err != nil {
		return Pair{}, fmt.Errorf("cannot issue certificate %q: %w", req.CommonName, err)
	}
	encoded, err := encodeKey(key)
	if err != nil {
		return Pair{}, fmt.Errorf("cannot issue certificate %q: %w", req.CommonName, err)
	}
	cert, err := a.issueTo(&key.PublicKey, req)
	if err != nil {
		return Pair{}, err
	}
	return Pair{Cert: cert, Key: encoded}, nil
}

// issueTo is Issue for a key that somebody else has.
func (a *Authority) issueTo(key *ecdsa.PublicKey, req Request) ([]byte, error) {
	if err := req.check(); err != nil {
		return nil, fmt.Errorf("cannot issue certificate %q: %w", req.CommonName, err)
	}
	if err := a.checkTime(req.NotBefore); err != nil {
		return nil, fmt.Errorf("cannot issue certificate %q: %w", req.CommonName, err)
	}
	cert, err := certify(a.template(req), key, a.cert, a.key)
	if err != nil {
		return nil, fmt.Errorf("cannot issue certificate %q: %w", req.CommonName, err)
	}
	return cert, nil
}

// issueFor issues a certificate to somebody who has to come again for another.
func (a *Authority) issueFor(now time.Time, req Request) (Pair, error) {
	return a.Issue(req.lasting(now, personLife))
}

// lasting is the request for a certificate that is valid from now for life.
func (r Request) lasting(now time.Time, life time.Duration) Request {
	r.NotBefore, r.NotAfter = now, now.Add(life)
	return r
}

func (a *Authority) checkTime(now time.Time) error {
	if !now.Before(a.cert.NotAfter) {
		return fmt.Errorf("%w: %q ended at %s: check the clock of this machine, or make the cluster anew",
			ErrExpired, a.cert.Subject.CommonName, a.cert.NotAfter.Format(time.RFC3339))
	}
	if now.Before(a.cert.NotBefore) {
		return fmt.Errorf("authority %q is not valid before %s: check the clock of this machine",
			a.cert.Subject.CommonName, a.cert.NotBefore.Format(time.RFC3339))
	}
	return nil
}

func (a *Authority) template(req Request) *x509.Certificate {
	template := &x509.Certificate{
		Subject:   pkix.Name{CommonName: req.CommonName, Organization: req.Organizations},
		DNSNames:  req.Names,
		NotBefore: latest(req.NotBefore.Add(-backdate(req.NotAfter.Sub(req.NotBefore))), a.cert.NotBefore),
		NotAfter:  earliest(req.NotAfter, a.cert.NotAfter),
		// An ECDSA key can only sign; key encipherment is for RSA.
		KeyUsage:              x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true,
		// Said here because crypto/x509 leaves it out when the name happens to be
		// the authority's own, which makes others take the leaf for a root.
		AuthorityKeyId: a.cert.SubjectKeyId,
	}
	for _, ip := range req.IPs {
		template.IPAddresses = append(template.IPAddresses, net.IP(ip.Unmap().AsSlice()))
	}
	if req.Server {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	if req.Client {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
	}
	return template
}

func (r Request) check() error {
	switch {
	case r.CommonName == "":
		return errors.New("its common name is empty")
	case slices.Contains(r.Organizations, ""):
		return errors.New("one of its organizations is empty")
	case slices.Contains(r.Names, ""):
		return errors.New("one of its names is empty")
	case slices.ContainsFunc(r.IPs, func(ip netip.Addr) bool { return !ip.IsValid() || ip.Zone() != "" }):
		return errors.New("one of its addresses is empty or has a zone")
	case !r.Server && !r.Client:
		return errors.New("it is neither for a server nor for a client")
	case r.Server && len(r.Names)+len(r.IPs) == 0:
		return errors.New("a server needs a name or an address")
	case !r.NotBefore.Before(r.NotAfter):
		return fmt.Errorf("it would end at %s, before it begins", r.NotAfter.Format(time.RFC3339))
	}
	return nil
}

func newKey() (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("cannot make key: %w", err)
	}
	return key, nil
}

// certify completes the template with what every certificate has, and signs it
// for key. For a root the parent is the template itself.
func certify(template *x509.Certificate, key *ecdsa.PublicKey, parent *x509.Certificate, by crypto.Signer) ([]byte, error) {
	var err error
	if template.SubjectKeyId, err = keyID(key); err != nil {
		return nil, err
	}
	if template.SerialNumber, err = newSerial(); err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key, by)
	if err != nil {
		return nil, fmt.Errorf("cannot sign: %w", err)
	}
	return encode(blockCertificate, der), nil
}

// keyID names a public key as RFC 7093 section 2, method 1, does.
func keyID(key *ecdsa.PublicKey) ([]byte, error) {
	point, err := key.Bytes()
	if err != nil {
		return nil, fmt.Errorf("cannot name public key: %w", err)
	}
	sum := sha256.Sum256(point)
	return sum[:20], nil
}

// newSerial draws from 1 to 2^128 - 1; RFC 5280 section 4.1.2.2 wants serials
// to be positive.
func newSerial() (*big.Int, error) {
	top := new(big.Int).Lsh(big.NewInt(1), 128)
	serial, err := rand.Int(rand.Reader, top.Sub(top, big.NewInt(1)))
	if err != nil {
		return nil, fmt.Errorf("cannot draw serial number: %w", err)
	}
	return serial.Add(serial, big.NewInt(1)), nil
}

func checkRoot(cert *x509.Certificate) error {
	if !cert.BasicConstraintsValid || !cert.IsCA || cert.KeyUsage&x509.KeyUsageCertSign == 0 {
		return errors.New("the certificate may not sign others")
	}
	if !bytes.Equal(cert.RawIssuer, cert.RawSubject) {
		return fmt.Errorf("the certificate was issued by %q, a root is needed", cert.Issuer.CommonName)
	}
	if err := cert.CheckSignatureFrom(cert); err != nil {
		return fmt.Errorf("the certificate is damaged or not a root: %w", err)
	}
	return nil
}

func samePublicKey(a, b crypto.PublicKey) bool {
	key, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && key.Equal(b)
}

func encode(block string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: block, Bytes: der})
}

func encodeKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("cannot encode key: %w", err)
	}
	return encode(blockKey, der), nil
}

// decode takes exactly one block. Headers are refused because crypto/x509
// skips such blocks without a word, and trailing text because it may be a
// second certificate that nobody looked at.
func decode(data []byte) (*pem.Block, error) {
	block, rest := pem.Decode(data)
	switch {
	case block == nil:
		return nil, errors.New("there is no PEM block")
	case len(block.Headers) != 0:
		return nil, errors.New("the PEM block has headers (an encrypted key?)")
	case len(bytes.TrimSpace(rest)) != 0:
		return nil, errors.New("there is more than one PEM block")
	}
	return block, nil
}

func parseCertificate(data []byte) (*x509.Certificate, error) {
	block, err := decode(data)
	if err != nil {
		return nil, fmt.Errorf("cannot read certificate: %w", err)
	}
	if block.Type != blockCertificate {
		return nil, fmt.Errorf("cannot read certificate: the PEM block is a %q", block.Type)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("cannot read certificate: %w", err)
	}
	return cert, nil
}

// parseRoot takes the certificate of an authority, without its key.
func parseRoot(data []byte) (*x509.Certificate, error) {
	cert, err := parseCertificate(data)
	if err != nil {
		return nil, err
	}
	if err := checkRoot(cert); err != nil {
		return nil, fmt.Errorf("%q: %w", cert.Subject.CommonName, err)
	}
	return cert, nil
}

func parseKey(data []byte) (crypto.Signer, error) {
	block, err := decode(data)
	if err != nil {
		return nil, fmt.Errorf("cannot read key: %w", err)
	}
	var key any
	switch block.Type {
	case blockKey:
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case blockECKey:
		key, err = x509.ParseECPrivateKey(block.Bytes)
	default:
		return nil, fmt.Errorf("cannot read key: the PEM block is a %q", block.Type)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read key: %w", err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("cannot read key: a %T cannot sign", key)
	}
	return signer, nil
}

func earliest(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func latest(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}
