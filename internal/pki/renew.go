package pki

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"time"

	"sigs.k8s.io/yaml"

	"kuorum/internal/cluster"
)

// Renew makes anew what a server has outgrown of its certificates: it looks at
// have, the server's files by the paths of NodeFiles, and returns, sorted by
// path, the pairs (always both files) and kubeconfigs that are missing,
// unreadable, not of the present authority, past two thirds of their life or
// not valid yet, or that say something else than spec and node say now. Of a
// kubeconfig that is right itself only the file that it refers to is returned.
// What is good is not returned; nothing is changed of the set's own files, nor
// of any that is no certificate. The new ones live for LeafLife.
//
// Near the end of its authority a certificate that already lives as long as
// that is left alone until then, and afterwards Renew fails with ErrExpired.
// A node that is no server has no authority to renew by, and is refused: see
// SignRequests.
func (s *Set) Renew(spec *cluster.Spec, node cluster.Node, have map[string][]byte, now time.Time) ([]File, error) {
	files, err := s.renew(spec, node, have, now)
	if err != nil {
		return nil, fmt.Errorf("cannot renew the certificates of node %q: %w", node.Name, err)
	}
	return files, nil
}

func (s *Set) renew(spec *cluster.Spec, node cluster.Node, have map[string][]byte, now time.Time) ([]File, error) {
	p, err := newPlan(spec, node)
	if err != nil {
		return nil, err
	}
	if p.role != cluster.RoleServer {
		return nil, fmt.Errorf("it is a %s, and only a %s can sign for itself", p.role, cluster.RoleServer)
	}
	var files []File
	for _, i := range p.items() {
		if s.stale(i, p.context, have, now) == nil {
			continue
		}
		made, err := s.makeItem(i, p.context, now)
		if err != nil {
			return nil, err
		}
		made = slices.DeleteFunc(made, func(f File) bool { return bytes.Equal(f.Data, have[f.Path]) })
		files = append(files, made...)
	}
	return sorted(files), nil
}

// stale says why an item must be made anew; nil means that it is good.
func (s *Set) stale(i item, context string, have map[string][]byte, now time.Time) error {
	pair, err := s.readItem(i, context, have)
	if err != nil {
		return err
	}
	cert, err := parseCertificate(pair.Cert)
	if err != nil {
		return err
	}
	key, err := parseKey(pair.Key)
	if err != nil {
		return err
	}
	by := s.authority(i.by).cert
	if err := i.check(cert, key.Public(), by); err != nil {
		return err
	}
	return checkAge(cert, by.NotAfter, now)
}

// checkAge leaves a third of the life for whatever may keep a renewal from
// happening; the life counts from the first use, so that even one of a minute
// is not old when it begins. A new certificate cannot outlive the authority: when that is what
// ends the present one, there is nothing to gain, and without this rule ever
// shorter lives would be renewed ever more often.
func checkAge(cert *x509.Certificate, authorityEnd, now time.Time) error {
	if now.Before(cert.NotBefore) {
		return fmt.Errorf("it is not valid before %s", cert.NotBefore.Format(time.RFC3339))
	}
	end := cert.NotAfter
	if end.Before(authorityEnd) {
		end = renewAt(cert.NotBefore, cert.NotAfter)
	}
	if now.Before(end) {
		return nil
	}
	return fmt.Errorf("it ends at %s", cert.NotAfter.Format(time.RFC3339))
}

// readItem finds the certificate and key of an item among the files. All else
// that a kubeconfig says must be as it would be written now.
func (s *Set) readItem(i item, context string, have map[string][]byte) (Pair, error) {
	if i.server == "" {
		return Pair{Cert: have[i.path+".crt"], Key: have[i.path+".key"]}, nil
	}
	if !i.whole() {
		return i.readReferred(context, have)
	}
	var got kubeconfig
	if err := yaml.Unmarshal(have[i.path], &got); err != nil {
		return Pair{}, fmt.Errorf("cannot read kubeconfig: %w", err)
	}
	if len(got.Users) != 1 {
		return Pair{}, errors.New("the kubeconfig is not for one user")
	}
	pair := Pair{Cert: got.Users[0].User.Cert, Key: got.Users[0].User.Key}
	if !reflect.DeepEqual(got, newKubeconfig(i.server, context, pair, s.Cluster.Bundle())) {
		return Pair{}, errors.New("the kubeconfig leads elsewhere")
	}
	return pair, nil
}

// readReferred reads a kubeconfig that refers to the file with the pair.
func (i item) readReferred(context string, have map[string][]byte) (Pair, error) {
	want, err := referringKubeconfig(i.server, context, i.pem(), "pki/"+fileCACert)
	if err != nil {
		return Pair{}, err
	}
	if !bytes.Equal(have[i.path], want) {
		return Pair{}, errors.New("the kubeconfig leads elsewhere")
	}
	return splitPair(have[i.pem()])
}

// splitPair takes a file with a certificate and its key apart.
func splitPair(data []byte) (Pair, error) {
	cert, rest := pem.Decode(data)
	if cert == nil {
		return Pair{}, errors.New("it holds no certificate")
	}
	return Pair{Cert: pem.EncodeToMemory(cert), Key: rest}, nil
}
