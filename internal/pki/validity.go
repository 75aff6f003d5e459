package pki

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"sigs.k8s.io/yaml"
)

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

// KubeconfigValidity is from when until when the client certificate inside a
// kubeconfig counts. One that refers to a file has none: see there.
func KubeconfigValidity(data []byte) (from, until time.Time, err error) {
	var config kubeconfig
	if err := yaml.Unmarshal(data, &config); err != nil {
		return time.Time{}, time.Time{}, fmt.Errorf("cannot read kubeconfig: %w", err)
	}
	if len(config.Users) == 0 || len(config.Users[0].User.Cert) == 0 {
		return time.Time{}, time.Time{}, errors.New("the kubeconfig holds no certificate")
	}
	return Validity(config.Users[0].User.Cert)
}

// Due tells whether a certificate that counts from from until until should be
// renewed: two thirds of its life are over, as for Renew, or it does not count
// yet.
func Due(from, until, now time.Time) bool {
	begin := from.Add(backdate)
	return now.Before(from) || !now.Before(begin.Add(until.Sub(begin)/3*2))
}
