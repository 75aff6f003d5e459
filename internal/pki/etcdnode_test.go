package pki

import (
	"bytes"
	"encoding/base64"
	"maps"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"kuorum/internal/cluster"
)

// apartSpec is testSpec with an etcd node: its servers have no member.
func apartSpec() *cluster.Spec {
	s := testSpec()
	s.Spec.Nodes = append(s.Spec.Nodes, cluster.Node{Name: "e1", Role: cluster.RoleEtcd, Address: "198.18.0.51"})
	return s
}

var etcdPaths = []string{
	"pki/agent-ca.crt", "pki/agent.crt", "pki/agent.key",
	"pki/etcd/agent-client.crt", "pki/etcd/agent-client.key", "pki/etcd/ca.crt",
	"pki/etcd/peer.crt", "pki/etcd/peer.key", "pki/etcd/server.crt", "pki/etcd/server.key",
}

func apartFiles(t *testing.T, s *Set, name string) map[string]File {
	t.Helper()
	spec := apartSpec()
	node, ok := spec.Node(name)
	if !ok {
		t.Fatalf("no node %q", name)
	}
	files, err := s.NodeFiles(spec, node, testNow)
	if err != nil {
		t.Fatal(err)
	}
	byPath := map[string]File{}
	for _, f := range files {
		byPath[f.Path] = f
	}
	return byPath
}

// TestEtcdApartPaths: etcd's own certificates are where its members are, and
// only servers sign.
func TestEtcdApartPaths(t *testing.T) {
	s := newTestSet(t)
	server := slices.DeleteFunc(slices.Concat(workerPaths, serverPaths), func(p string) bool {
		return strings.HasPrefix(p, "pki/etcd/peer") || strings.HasPrefix(p, "pki/etcd/server")
	})
	for name, want := range map[string][]string{"e1": etcdPaths, "w1": workerPaths, "cp1": slices.Sorted(slices.Values(server))} {
		if diff := cmp.Diff(want, slices.Sorted(maps.Keys(apartFiles(t, s, name)))); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

// TestEtcdNodeGetsNoPower: no authority's key, nothing that Kubernetes takes,
// and an agent that is no server's.
func TestEtcdNodeGetsNoPower(t *testing.T) {
	s := newTestSet(t)
	files := apartFiles(t, s, "e1")
	for _, f := range files {
		for name, secret := range s.Files() {
			encoded := []byte(base64.StdEncoding.EncodeToString(secret))
			if path.Ext(name) == ".key" && (bytes.Contains(f.Data, bytes.TrimSpace(secret)) || bytes.Contains(f.Data, encoded)) {
				t.Errorf("%s holds %s", f.Path, name)
			}
		}
		for _, cert := range certificates(t, f) {
			want := "kuorum-agents"
			if strings.HasPrefix(f.Path, "pki/etcd/") {
				want = "etcd-ca"
			}
			if cert.Issuer.CommonName != want {
				t.Errorf("%s is from %q, want %q", f.Path, cert.Issuer.CommonName, want)
			}
		}
	}
	own := func(user string, groups ...string) description {
		return description{
			User: user, Groups: groups, Server: true, Client: true,
			Names: []string{"e1", "localhost"}, IPs: []string{"198.18.0.51", "127.0.0.1"},
		}
	}
	for file, want := range map[string]description{
		"pki/agent.crt":             own("kuorum:agent:e1", GroupAgents),
		"pki/etcd/server.crt":       own("e1"),
		"pki/etcd/peer.crt":         own("e1"),
		"pki/etcd/agent-client.crt": {User: "kuorum-agent", Client: true},
	} {
		certs := certificates(t, files[file])
		if len(certs) != 1 {
			t.Fatalf("%s holds %d certificates", file, len(certs))
		}
		if diff := cmp.Diff(want, describe(certs[0])); diff != "" {
			t.Errorf("%s (-want +got):\n%s", file, diff)
		}
	}
}

// TestEtcdNodesAreNoNamesOfTheAPI: nobody dials the API there, so that one more
// etcd node is no reason to renew the servers' certificates.
func TestEtcdNodesAreNoNamesOfTheAPI(t *testing.T) {
	s := newTestSet(t)
	cert := certificates(t, apartFiles(t, s, "cp1")["pki/apiserver.crt"])[0]
	if slices.Contains(cert.DNSNames, "e1") || !slices.Contains(cert.DNSNames, "w1") {
		t.Errorf("names of the API server are %v", cert.DNSNames)
	}
}

// TestJoinedEtcdNodeIsLikeAnyOther: its own keys, certificates that a server
// signed, and what it would have been given.
func TestJoinedEtcdNodeIsLikeAnyOther(t *testing.T) {
	s, spec := newTestSet(t), apartSpec()
	node, _ := spec.Node("e1")
	j := joiningAs(t, spec, node)
	certs, files := j.sign(t, s), j.files(t, s)
	given := apartFiles(t, s, "e1")
	for _, f := range files {
		want := given[f.Path]
		if f.Mode != want.Mode {
			t.Errorf("%s has mode %o, want %o", f.Path, f.Mode, want.Mode)
		}
		if path.Ext(f.Path) == ".crt" {
			if diff := cmp.Diff(describe(certificates(t, want)[0]), describe(certificates(t, f)[0])); diff != "" {
				t.Errorf("%s (-given +joined):\n%s", f.Path, diff)
			}
		}
	}
	if len(files) != len(etcdPaths) {
		t.Errorf("it has %d files, want %d", len(files), len(etcdPaths))
	}

	none := s.Trust()
	none.Etcd = nil
	if _, err := j.keys.Files(spec, node, certs, none); err == nil || !strings.Contains(err.Error(), "etcd's authority") {
		t.Errorf("without etcd's authority: %v", err)
	}
	one := s.Trust()
	one.Etcd = one.Agents
	if _, err := j.keys.Files(spec, node, certs, one); err == nil || !strings.Contains(err.Error(), "the same key") {
		t.Errorf("with one authority for both: %v", err)
	}
}

// TestRolesAskForTheirOwnOnly: a worker cannot get etcd's certificates, nor an
// etcd node a worker's, whatever they send.
func TestRolesAskForTheirOwnOnly(t *testing.T) {
	s, spec := newTestSet(t), apartSpec()
	requests := map[cluster.Role]map[string][]byte{}
	for _, role := range []cluster.Role{cluster.RoleWorker, cluster.RoleEtcd} {
		keys, err := NewNodeKeys(role)
		if err != nil {
			t.Fatal(err)
		}
		if requests[role], err = keys.Requests(); err != nil {
			t.Fatal(err)
		}
	}
	for name, with := range map[string]cluster.Role{"w1": cluster.RoleEtcd, "e1": cluster.RoleWorker, "cp1": cluster.RoleEtcd} {
		node, _ := spec.Node(name)
		if certs, err := s.SignRequests(spec, node, requests[with], testNow); err == nil {
			t.Errorf("%s got %v with the requests of a %s", name, slices.Collect(maps.Keys(certs)), with)
		}
	}
	node, _ := spec.Node("e1")
	if _, err := s.Renew(spec, node, nil, testNow); err == nil {
		t.Error("an etcd node can sign for itself")
	}
}

// TestBalancerIsLessThanAWorker: its agent's certificate is all that it has, and the
// authority of the API servers all that it knows beside its own.
func TestBalancerIsLessThanAWorker(t *testing.T) {
	s, spec := newTestSet(t), apartSpec()
	node := cluster.Node{Name: "lb1", Role: cluster.RoleBalancer, Address: "198.18.0.41"}
	spec.Spec.Nodes = append(spec.Spec.Nodes, node)
	j := joiningAs(t, spec, node)
	var paths []string
	for _, f := range j.files(t, s) {
		paths = append(paths, f.Path)
	}
	slices.Sort(paths)
	if diff := cmp.Diff([]string{"pki/agent-ca.crt", "pki/agent.crt", "pki/agent.key", "pki/ca.crt"}, paths); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"pki/agent.crt"}, LeafPaths(cluster.RoleBalancer)); diff != "" {
		t.Errorf("certificates (-want +got):\n%s", diff)
	}
	worker, _ := spec.Node("w1")
	if certs, err := s.SignRequests(spec, worker, j.requests, testNow); err == nil {
		t.Errorf("a worker got %v with a balancer's requests", certs)
	}
	cert := certificates(t, apartFiles(t, s, "cp1")["pki/apiserver.crt"])[0]
	if slices.Contains(cert.DNSNames, "lb1") {
		t.Errorf("names of the API server are %v", cert.DNSNames)
	}
}

// TestMovingEtcdNodeIsFoundTwice: while an etcd node moves, the certificates of
// its member name both addresses; a server without a member is at one place.
func TestMovingEtcdNodeIsFoundTwice(t *testing.T) {
	s := newTestSet(t)
	spec := apartSpec()
	for i, n := range spec.Spec.Nodes {
		if n.Name == "e1" || n.Name == "cp1" {
			spec.Spec.Nodes[i].Moved = cluster.Move{Times: 1, From: []string{n.Address}}
			spec.Spec.Nodes[i].Address = map[string]string{"e1": "198.18.0.64", "cp1": "198.18.0.61"}[n.Name]
		}
	}
	e1, _ := spec.Node("e1")
	found := 0
	for _, f := range joiningAs(t, spec, e1).files(t, s) {
		if f.Path != "pki/etcd/server.crt" && f.Path != "pki/etcd/peer.crt" {
			continue
		}
		found++
		if MadeOutTo(f.Data, "198.18.0.64") || !MadeOutTo(f.Data, "198.18.0.64", "198.18.0.51") || !MadeOutTo(f.Data, "198.18.0.51", "198.18.0.64") {
			t.Errorf("%s is not made out to both addresses", f.Path)
		}
	}
	if found != 2 {
		t.Errorf("%d certificates of its member, want 2", found)
	}
	cp1, _ := spec.Node("cp1")
	own, err := s.NodeFiles(spec, cp1, testNow)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range own {
		if f.Path == "pki/agent.crt" && !MadeOutTo(f.Data, "198.18.0.61") {
			t.Error("a server without a member is where it was, too")
		}
	}
}
