package pki

import (
	"bytes"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"time"

	"kuorum/internal/cluster"
)

// fileSigner has the cluster's signing authority alone, while its own file has
// others beside it: the controller-manager takes no more than one to sign with.
const fileSigner = "cluster-signing.crt"

// Bundle is the certificates of all who are trusted in the authority's place,
// PEM, its own first; the caller must not change the bytes.
func (a *Authority) Bundle() []byte { return encodeAll(a.trusted()) }

func (a *Authority) trusted() []*x509.Certificate {
	return append([]*x509.Certificate{a.cert}, a.also...)
}

// Trusting is the authority, beside which those of other are trusted as well.
// It signs as before. Those that it trusts already are not trusted twice.
func (a *Authority) Trusting(other *Authority) *Authority {
	both := *a
	both.also = slices.Clone(a.also)
	for _, cert := range other.trusted() {
		if !slices.ContainsFunc(both.trusted(), sameKeyAs(cert)) {
			both.also = append(both.also, cert)
		}
	}
	return &both
}

// Alone is the authority without any that is trusted beside it.
func (a *Authority) Alone() *Authority {
	alone := *a
	alone.also = nil
	return &alone
}

// ParseTrusted reads back what Bundle returned, and the key. The authority that
// the key belongs to signs, wherever it stands in the bundle: so a key that was
// replaced before its bundle, or after it, is still one of a pair.
func ParseTrusted(bundlePEM, keyPEM []byte) (*Authority, error) {
	bundle, err := parseBundle(bundlePEM)
	if err != nil {
		return nil, fmt.Errorf("cannot parse authority: %w", err)
	}
	key, err := parseKey(keyPEM)
	if err != nil {
		return nil, fmt.Errorf("cannot parse authority %q: %w", bundle[0].Subject.CommonName, err)
	}
	at := max(0, slices.IndexFunc(bundle, func(cert *x509.Certificate) bool { return samePublicKey(cert.PublicKey, key.Public()) }))
	a, err := ParseAuthority(encode(blockCertificate, bundle[at].Raw), keyPEM)
	if err != nil {
		return nil, err
	}
	a.also = slices.Delete(bundle, at, at+1)
	return a, nil
}

// parseBundle takes the certificates of one or more authorities, each of them a
// root of its own key, and nothing beside them.
func parseBundle(data []byte) ([]*x509.Certificate, error) {
	var bundle []*x509.Certificate
	for rest := bytes.TrimSpace(data); len(rest) > 0 || bundle == nil; rest = bytes.TrimSpace(rest) {
		block, after := pem.Decode(rest)
		if block == nil {
			return nil, errors.New("cannot read certificate: there is no PEM block")
		}
		ca, err := parseRoot(rest[:len(rest)-len(after)])
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(bundle, sameKeyAs(ca)) {
			return nil, fmt.Errorf("%q is there twice, or another has its key", ca.Subject.CommonName)
		}
		bundle, rest = append(bundle, ca), after
	}
	return bundle, nil
}

func sameKeyAs(cert *x509.Certificate) func(*x509.Certificate) bool {
	return func(other *x509.Certificate) bool { return samePublicKey(cert.PublicKey, other.PublicKey) }
}

func encodeAll(certs []*x509.Certificate) []byte {
	var all []byte
	for _, cert := range certs {
		all = append(all, encode(blockCertificate, cert.Raw)...)
	}
	return all
}

// Successor is the set with four new authorities, which live as those of NewSet
// do. The key of service accounts and that of secrets at rest stay.
func (s *Set) Successor(now time.Time) (*Set, error) {
	fresh, err := NewSet(now)
	if err != nil {
		return nil, err
	}
	fresh.ServiceAccount, fresh.EncryptionKey = s.ServiceAccount, s.EncryptionKey
	fresh.External, fresh.LeafLife = s.External, s.LeafLife
	return fresh, nil
}

// Trusting is the set, whose authorities sign as before; those of other are
// trusted as well.
func (s *Set) Trusting(other *Set) *Set {
	both := *s
	both.Cluster, both.Agents = s.Cluster.Trusting(other.Cluster), s.Agents.Trusting(other.Agents)
	both.Etcd, both.FrontProxy = s.Etcd.Trusting(other.Etcd), s.FrontProxy.Trusting(other.FrontProxy)
	return &both
}

// Alone is the set that trusts only the authorities that sign.
func (s *Set) Alone() *Set {
	alone := *s
	alone.Cluster, alone.Agents, alone.Etcd, alone.FrontProxy = s.Cluster.Alone(), s.Agents.Alone(), s.Etcd.Alone(), s.FrontProxy.Alone()
	return &alone
}

// SameSigners tells whether the same authorities sign for both.
func (s *Set) SameSigners(other *Set) bool {
	mine, theirs := s.Signers(), other.Signers()
	for file, key := range mine {
		if theirs[file] != key {
			return false
		}
	}
	return true
}

// AuthorityPaths are the paths below /etc/kuorum/pki of the authorities'
// certificates that a node of a role has. A server has all that there are.
func AuthorityPaths(role cluster.Role) []string {
	if role == cluster.RoleServer {
		return []string{fileCACert, fileAgentCert, fileEtcdCert, fileFrontProxyCert}
	}
	return trusted(role)
}

// LeafPaths are the paths below /etc/kuorum of what a node of a role has signed
// by the authorities. A server has those of an etcd member only where it has one.
func LeafPaths(role cluster.Role) []string {
	var paths []string
	for _, i := range (&plan{role: role, member: role == cluster.RoleServer || role == cluster.RoleEtcd}).items() {
		switch {
		case i.server == "":
			paths = append(paths, i.path+".crt")
		case i.whole():
			paths = append(paths, i.path)
		default:
			paths = append(paths, i.pem())
		}
	}
	return paths
}

// Signers names the keys of the authorities that sign, as Certificate.Key does,
// by the paths of AuthorityPaths.
func (s *Set) Signers() map[string]string {
	return map[string]string{
		fileCACert: keyText(s.Cluster.cert), fileAgentCert: keyText(s.Agents.cert),
		fileEtcdCert: keyText(s.Etcd.cert), fileFrontProxyCert: keyText(s.FrontProxy.cert),
	}
}

// AuthorityFiles are the files of the authorities on a server, with their keys.
func (s *Set) AuthorityFiles() []File {
	var files []File
	all := s.Files()
	for _, name := range []string{
		fileCACert, fileCAKey, fileAgentCert, fileAgentKey, fileEtcdCert, fileEtcdKey, fileFrontProxyCert, fileFrontProxyKey,
	} {
		files = append(files, newFile("pki/"+name, all[name]))
	}
	return append(files, s.signer()...)
}

// signer is the file for those who take one authority only, if there are more.
func (s *Set) signer() []File {
	if len(s.Cluster.also) == 0 {
		return nil
	}
	return []File{newFile("pki/"+fileSigner, s.Cluster.pair.Cert)}
}

// Authorities names the keys of the authorities of a bundle, as Certificate.Key
// does, in its order: the first is the one that signs.
func Authorities(bundlePEM []byte) ([]string, error) {
	bundle, err := parseBundle(bundlePEM)
	if err != nil {
		return nil, err
	}
	var keys []string
	for _, cert := range bundle {
		keys = append(keys, keyText(cert))
	}
	return keys, nil
}

func keyText(cert *x509.Certificate) string { return hex.EncodeToString(cert.SubjectKeyId) }
