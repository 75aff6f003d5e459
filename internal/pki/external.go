package pki

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"
)

// Paths of Set.Files, and below /etc/kuorum/pki on a server, of what an etcd
// that somebody else runs is asked with.
const (
	fileExternalCA   = "etcd-external/ca.crt"
	fileExternalCert = "etcd-external/client.crt"
	fileExternalKey  = "etcd-external/client.key"
	fileExternalID   = "etcd-external/id"
)

// ExternalEtcd is how a cluster asks an etcd that somebody else runs. Its
// authority is not ours: nothing of it can be renewed here.
type ExternalEtcd struct {
	// CA is the authorities that etcd's members are trusted by, PEM, one or more.
	CA []byte
	// Client is what is shown to them. Its key is as it was given, of any kind.
	Client Pair
	// ID tells this cluster's data in that etcd from another's, which may have the
	// same name, or be of an earlier life of this one.
	ID string
}

// NewExternalEtcd checks what was given for an etcd that somebody else runs, as
// PEM, and draws an ID. The certificate must belong to the key, be of one of the
// authorities, be for clients, and count now.
func NewExternalEtcd(ca, cert, key []byte, now time.Time) (*ExternalEtcd, error) {
	e := &ExternalEtcd{CA: ca, Client: Pair{Cert: cert, Key: key}, ID: rand.Text()}
	authorities, err := certificatesOf(ca)
	if err != nil {
		return nil, fmt.Errorf("the authority: %w", err)
	}
	chain, err := certificatesOf(cert)
	if err != nil {
		return nil, fmt.Errorf("the certificate: %w", err)
	}
	if block, _ := pem.Decode(key); block == nil {
		return nil, errors.New("the key: there is no PEM block")
	} else if len(block.Headers) != 0 {
		return nil, errors.New("the key is encrypted, and nobody could type its password at each start")
	}
	if _, err := tls.X509KeyPair(cert, key); err != nil {
		return nil, fmt.Errorf("the key does not belong to the certificate: %w", err)
	}
	return e, checkClient(chain, authorities, now)
}

// checkClient is nil when etcd can take the first certificate of a chain.
func checkClient(chain, authorities []*x509.Certificate, now time.Time) error {
	leaf := chain[0]
	switch {
	case now.After(leaf.NotAfter):
		return fmt.Errorf("the certificate of %q has expired: it ended at %s", leaf.Subject.CommonName, leaf.NotAfter.UTC().Format(time.RFC3339))
	case now.Before(leaf.NotBefore):
		return fmt.Errorf("the certificate of %q is not valid before %s", leaf.Subject.CommonName, leaf.NotBefore.UTC().Format(time.RFC3339))
	}
	options := x509.VerifyOptions{
		Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(), CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	for _, a := range authorities {
		options.Roots.AddCert(a)
	}
	for _, c := range chain[1:] {
		options.Intermediates.AddCert(c)
	}
	if _, err := leaf.Verify(options); err != nil {
		return fmt.Errorf("the certificate of %q is not one of a client that the authority %q has signed: %w", leaf.Subject.CommonName, authorities[0].Subject.CommonName, err)
	}
	return nil
}

// certificatesOf reads one certificate or more, and nothing else.
func certificatesOf(data []byte) ([]*x509.Certificate, error) {
	var list []*x509.Certificate
	for rest := data; len(bytes.TrimSpace(rest)) > 0; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != blockCertificate {
			return nil, fmt.Errorf("a PEM block is a %q", block.Type)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("cannot read certificate: %w", err)
		}
		list = append(list, cert)
	}
	if len(list) == 0 {
		return nil, errors.New("there is no PEM block")
	}
	return list, nil
}

func (e *ExternalEtcd) files() map[string][]byte {
	return map[string][]byte{
		fileExternalCA: e.CA, fileExternalCert: e.Client.Cert, fileExternalKey: e.Client.Key, fileExternalID: []byte(e.ID + "\n"),
	}
}

// parseExternal reads back what files has returned; nil where none of it is. The
// certificate may have ended meanwhile: etcd itself will say so.
func parseExternal(files map[string][]byte) (*ExternalEtcd, error) {
	all := slices.Sorted(maps.Keys((&ExternalEtcd{}).files()))
	missing := slices.DeleteFunc(slices.Clone(all), func(path string) bool { return len(files[path]) > 0 })
	switch len(missing) {
	case len(all):
		return nil, nil //nolint:nilnil // none is what there is
	case 0:
	default:
		return nil, fmt.Errorf("%s is missing or empty: restore it from another server", missing[0])
	}
	if _, err := certificatesOf(files[fileExternalCA]); err != nil {
		return nil, fmt.Errorf("%s: %w", fileExternalCA, err)
	}
	if _, err := tls.X509KeyPair(files[fileExternalCert], files[fileExternalKey]); err != nil {
		return nil, fmt.Errorf("%s: %w", fileExternalCert, err)
	}
	return &ExternalEtcd{
		CA: files[fileExternalCA], Client: Pair{Cert: files[fileExternalCert], Key: files[fileExternalKey]},
		ID: string(bytes.TrimSpace(files[fileExternalID])),
	}, nil
}

// ExternalEtcdTLS is for calls to an etcd that somebody else runs, by what its
// files hold. Each member must be made out to the host that is dialled.
func ExternalEtcdTLS(ca []byte, client Pair) (*tls.Config, error) {
	authorities, err := certificatesOf(ca)
	if err != nil {
		return nil, fmt.Errorf("cannot set up TLS to etcd: the authority: %w", err)
	}
	pair, err := tls.X509KeyPair(client.Cert, client.Key)
	if err != nil {
		return nil, fmt.Errorf("cannot set up TLS to etcd: certificate and key: %w", err)
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}, RootCAs: x509.NewCertPool()}
	for _, a := range authorities {
		config.RootCAs.AddCert(a)
	}
	return config, nil
}
