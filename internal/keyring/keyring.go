// Package keyring is a node's keys and certificates on its disk: how they are
// read, replaced as one, and how new authorities take the place of the old ones
// while everything runs.
package keyring

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"kuorum/internal/cluster"
	"kuorum/internal/pki"
)

// Keys reads a server's secrets from below dir, which is /etc/kuorum.
func Keys(dir string) (*pki.Set, error) {
	files, err := readAll(filepath.Join(dir, "pki"))
	if err != nil {
		return nil, fmt.Errorf("cannot read this server's keys: %w", err)
	}
	return pki.ParseSet(files)
}

func readAll(root string) (map[string][]byte, error) {
	files := map[string][]byte{}
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		files[strings.TrimPrefix(path, root+"/")] = data
		return err
	})
	return files, err
}

// Files reads the certificates, keys and kubeconfigs of a node by their paths
// below dir.
func Files(dir string) (map[string][]byte, error) {
	files := map[string][]byte{}
	err := walk(dir, func(name string, data []byte) { files[name] = data })
	if err != nil {
		return nil, fmt.Errorf("cannot read the node's certificates: %w", err)
	}
	return files, nil
}

func walk(dir string, see func(name string, data []byte)) error {
	return filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !slices.Contains([]string{".crt", ".key", ".pem", ".conf"}, filepath.Ext(path)) {
			return err
		}
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) { // the temporary file of somebody who writes
			return nil
		}
		see(strings.TrimPrefix(path, dir+"/"), data)
		return err
	})
}

// Certificates lists those below dir, inside kubeconfigs too, by path, an
// authority's file with all that it holds in its order. What cannot be read is
// left out: the component that uses it tells.
func Certificates(dir string) []cluster.CertificateStatus {
	var list []cluster.CertificateStatus
	_ = walk(dir, func(name string, data []byte) { // what can be read is
		read := reader(name)
		if read == nil {
			return
		}
		found, err := read(data)
		if err != nil {
			return
		}
		for _, c := range found {
			list = append(list, cluster.CertificateStatus{
				File: name, From: c.From.UTC(), Until: c.Until.UTC(), Renew: c.Renew.UTC(), By: c.By, Key: c.Key,
			})
		}
	})
	slices.SortStableFunc(list, func(a, b cluster.CertificateStatus) int { return strings.Compare(a.File, b.File) })
	return list
}

func reader(name string) func([]byte) ([]pki.Certificate, error) {
	switch filepath.Ext(name) {
	case ".crt", ".pem":
		return pki.Certificates
	case ".conf":
		return pki.KubeconfigCertificates
	}
	return nil
}

// Trust names the keys of the authorities below dir that are trusted, by the
// paths of pki.AuthorityPaths; the first of each signs. One that cannot be read
// is left out: the programs that use it tell.
func Trust(dir string) map[string][]string {
	trust := map[string][]string{}
	for _, name := range pki.AuthorityPaths(cluster.RoleServer) { // nobody has more
		data, err := os.ReadFile(filepath.Join(dir, "pki", name))
		if err != nil {
			continue
		}
		if keys, err := pki.Authorities(data); err == nil {
			trust[name] = keys
		}
	}
	return trust
}
