package pki

import (
	"errors"
	"fmt"
	"time"

	"sigs.k8s.io/yaml"
)

// Validity is from when until when the first certificate in a PEM file counts.
func Validity(data []byte) (from, until time.Time, err error) {
	cert, err := parseCertificate(data)
	if err != nil {
		return time.Time{}, time.Time{}, err
	}
	return cert.NotBefore, cert.NotAfter, nil
}

// KubeconfigValidity is from when until when the client certificate inside a
// kubeconfig counts.
func KubeconfigValidity(data []byte) (from, until time.Time, err error) {
	var config kubeconfig
	if err := yaml.Unmarshal(data, &config); err != nil {
		return time.Time{}, time.Time{}, fmt.Errorf("cannot read kubeconfig: %w", err)
	}
	if len(config.Users) == 0 {
		return time.Time{}, time.Time{}, errors.New("cannot read kubeconfig: it has no user")
	}
	return Validity(config.Users[0].User.Cert)
}
