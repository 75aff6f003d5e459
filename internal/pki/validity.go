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

	"sigs.k8s.io/yaml"
)

// Certificate is what people, and those who decide, must know of one.
type Certificate struct {
	From, Until time.Time
	// Renew is when a node makes it anew; zero for an authority.
	Renew time.Time
	// By is the name of the authority that signed it, Key names that
	// authority's key: 40 hexadecimal digits. An authority has signed itself.
	By, Key string
}

// Certificates reads a PEM file: the certificate at its beginning, or all of an
// authority's file. Keys are passed over.
func Certificates(data []byte) ([]Certificate, error) {
	var list []Certificate
	for rest := bytes.TrimSpace(data); len(rest) > 0; {
		block, after := pem.Decode(rest)
		if block == nil {
			return nil, errors.New("cannot read certificate: there is no PEM block")
		}
		rest = after
		if block.Type != blockCertificate {
			if list == nil {
				return nil, errors.New("it does not begin with a certificate")
			}
			continue // its key
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("cannot read certificate: %w", err)
		}
		list = append(list, certificateOf(cert))
	}
	if list == nil {
		return nil, errors.New("it holds no certificate")
	}
	return list, nil
}

func certificateOf(cert *x509.Certificate) Certificate {
	c := Certificate{From: cert.NotBefore, Until: cert.NotAfter, By: cert.Issuer.CommonName, Key: hex.EncodeToString(cert.AuthorityKeyId)}
	if cert.IsCA {
		c.Key = keyText(cert)
		return c
	}
	c.Renew = renewAt(cert.NotBefore, cert.NotAfter)
	return c
}

// KubeconfigCertificates is Certificates of the client certificate inside a
// kubeconfig. One that refers to a file has none: see there.
func KubeconfigCertificates(data []byte) ([]Certificate, error) {
	var config kubeconfig
	if err := yaml.Unmarshal(data, &config); err != nil {
		return nil, fmt.Errorf("cannot read kubeconfig: %w", err)
	}
	if len(config.Users) == 0 || len(config.Users[0].User.Cert) == 0 {
		return nil, errors.New("the kubeconfig holds no certificate")
	}
	return Certificates(config.Users[0].User.Cert)
}

// Validity is from when until when the certificate at the beginning of a PEM
// file counts; its key may follow.
func Validity(data []byte) (from, until time.Time, err error) {
	pair, err := splitPair(data)
	if err != nil {
		return time.Time{}, time.Time{}, err
	}
	cert, err := parseCertificate(pair.Cert)
	if err != nil {
		return time.Time{}, time.Time{}, err
	}
	return cert.NotBefore, cert.NotAfter, nil
}

// MadeOutTo tells whether the certificate at the beginning of a PEM file names
// an IP address, and no other but the loopback's and those of also.
func MadeOutTo(data []byte, address string, also ...string) bool {
	pair, err := splitPair(data)
	if err != nil {
		return false
	}
	cert, err := parseCertificate(pair.Cert)
	if err != nil {
		return false
	}
	named := false
	for _, ip := range cert.IPAddresses {
		named = named || ip.String() == address
		if ip.String() != address && !ip.IsLoopback() && !slices.Contains(also, ip.String()) {
			return false
		}
	}
	return named
}

// Due tells whether a certificate that counts from from until until should be
// renewed: two thirds of its life are over, as for Renew, or it does not count
// yet.
func Due(from, until, now time.Time) bool {
	return now.Before(from) || !now.Before(renewAt(from, until))
}

// renewAt is when two thirds of a life are over, which counts from the first
// use.
func renewAt(from, until time.Time) time.Time {
	begin := firstUse(from, until)
	return begin.Add(until.Sub(begin) / 3 * 2)
}

// A certificate becomes valid some time before its first use, so that a machine
// whose clock is behind by less accepts it at once; one that lives for less than
// ten hours is dated back by less, or that would be most of its life.
const (
	backdateLong  = time.Hour
	backdateShort = 5 * time.Minute
	shortLife     = 10 * time.Hour
)

// backdate is by how much one is dated back that then lives for life.
func backdate(life time.Duration) time.Duration {
	if life < shortLife {
		return backdateShort
	}
	return backdateLong
}

// firstUse is when a certificate with these dates was made.
func firstUse(from, until time.Time) time.Time {
	if until.Sub(from) < shortLife+backdateLong {
		return from.Add(backdateShort)
	}
	return from.Add(backdateLong)
}
