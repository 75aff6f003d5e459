package pki

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"time"

	"sigs.k8s.io/yaml"

	"kuorum/internal/cluster"
)

// File is one file of a node; Path is relative to /etc/kuorum.
type File struct {
	Path string
	Data []byte
	Mode fs.FileMode
}

// NodeFiles makes every key, certificate and kubeconfig that a node needs, in
// kubeadm's layout, sorted by path. Certificates are new with each call and
// live for LeafLife, or as long as their authority if that is less. A worker gets no
// authority's key, nothing of etcd and no admin's rights; an etcd node no
// authority's key, and nothing of Kubernetes. Every file with a secret has mode 0600, the others 0644. The spec must have its defaults
// filled in, and node must be one of its nodes.
func (s *Set) NodeFiles(spec *cluster.Spec, node cluster.Node, now time.Time) ([]File, error) {
	files, err := s.nodeFiles(spec, node, now)
	if err != nil {
		return nil, fmt.Errorf("cannot make the files of node %q: %w", node.Name, err)
	}
	return files, nil
}

func (s *Set) nodeFiles(spec *cluster.Spec, node cluster.Node, now time.Time) ([]File, error) {
	p, err := newPlan(spec, node)
	if err != nil {
		return nil, err
	}
	files := s.Trust().files(p.role)
	for _, i := range p.items() {
		made, err := s.makeItem(i, p.context, now)
		if err != nil {
			return nil, err
		}
		files = append(files, made...)
	}
	if node.Role == cluster.RoleServer {
		if p.external && s.External == nil {
			return nil, errors.New("somebody else runs etcd, and the cluster's secrets have nothing to show it")
		}
		secrets, err := s.secrets()
		if err != nil {
			return nil, err
		}
		files = append(files, secrets...)
	}
	return sorted(files), nil
}

// makeItem issues a certificate and lays it out.
func (s *Set) makeItem(i item, context string, now time.Time) ([]File, error) {
	pair, err := s.authority(i.by).Issue(i.req.lasting(now, s.leafLife()))
	if err != nil {
		return nil, err
	}
	return i.files(context, pair, s.Cluster.Bundle())
}

// Trust is the certificates of the authorities that nodes trust, as PEM: of each
// kind the one that signs, then others that are trusted as well. There
// is nothing secret in it.
type Trust struct {
	// Cluster is that of the Kubernetes API, Agents that of the agents.
	Cluster, Agents []byte
	// Etcd is that of etcd, for an etcd node.
	Etcd []byte
}

// trusted lists the authorities of which a node with that role needs the
// certificates, by file name.
func trusted(role cluster.Role) []string {
	if role == cluster.RoleEtcd {
		return []string{fileAgentCert, fileEtcdCert}
	}
	return []string{fileCACert, fileAgentCert}
}

// Trust is what a joining machine needs of the set; the caller must not change
// the bytes.
func (s *Set) Trust() Trust {
	return Trust{Cluster: s.Cluster.Bundle(), Agents: s.Agents.Bundle(), Etcd: s.Etcd.Bundle()}
}

func (t Trust) files(role cluster.Role) []File {
	data := map[string][]byte{fileCACert: t.Cluster, fileAgentCert: t.Agents, fileEtcdCert: t.Etcd}
	var files []File
	for _, name := range trusted(role) {
		files = append(files, newFile("pki/"+name, data[name]))
	}
	return files
}

// authority is the one whose certificate has that file name.
func (s *Set) authority(file string) *Authority {
	return map[string]*Authority{
		fileCACert: s.Cluster, fileAgentCert: s.Agents, fileEtcdCert: s.Etcd, fileFrontProxyCert: s.FrontProxy,
	}[file]
}

// files is how the item lies on the disk. The authority ca is the one of the
// API, for a kubeconfig that holds it.
func (i item) files(context string, pair Pair, ca []byte) ([]File, error) {
	if i.server == "" {
		return []File{newFile(i.path+".crt", pair.Cert), newFile(i.path+".key", pair.Key)}, nil
	}
	if i.whole() {
		data, err := Kubeconfig(i.server, context, pair, ca)
		return []File{newFile(i.path, data)}, err
	}
	data, err := referringKubeconfig(i.server, context, i.pem(), "pki/"+fileCACert)
	return []File{newFile(i.path, data), newFile(i.pem(), slices.Concat(pair.Cert, pair.Key))}, err
}

func sorted(files []File) []File {
	slices.SortFunc(files, func(a, b File) int { return cmp.Compare(a.Path, b.Path) })
	return files
}

// newFile takes everything for secret that is not known to be public.
func newFile(name string, data []byte) File {
	mode := fs.FileMode(0o600)
	if ext := path.Ext(name); ext == ".crt" || ext == ".pub" {
		mode = 0o644
	}
	return File{Path: name, Data: data, Mode: mode}
}

// secrets is what all servers share: the set itself, with the encryption key in
// the form that the API server reads.
func (s *Set) secrets() ([]File, error) {
	var files []File
	for name, data := range s.Files() {
		// The two authorities that a worker trusts are on every node already.
		if name != fileCACert && name != fileAgentCert {
			files = append(files, newFile("pki/"+name, data))
		}
	}
	data, err := encryptionConfig(s.EncryptionKey[:])
	if err != nil {
		return nil, err
	}
	return append(append(files, newFile("encryption.yaml", data)), s.signer()...), nil
}

// encryptionConfig is an apiserver.config.k8s.io/v1 EncryptionConfiguration. The
// last provider lets the API server read secrets that were written before
// there was a key.
func encryptionConfig(key []byte) ([]byte, error) {
	type object map[string]any
	secretbox := object{"keys": []object{{"name": "key1", "secret": key}}}
	data, err := yaml.Marshal(object{
		"apiVersion": "apiserver.config.k8s.io/v1",
		"kind":       "EncryptionConfiguration",
		"resources": []object{{
			"resources": []string{"secrets"},
			"providers": []object{{"secretbox": secretbox}, {"identity": object{}}},
		}},
	})
	if err != nil {
		return nil, fmt.Errorf("cannot write encryption.yaml: %w", err)
	}
	return data, nil
}
