package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"kuorum/internal/cluster"
	"kuorum/internal/component"
	"kuorum/internal/membership"
	"kuorum/internal/pki"
)

// TestNodeTarget: a worker's own files are enough to ask all agents, and each
// of those it needs is missed.
func TestNodeTarget(t *testing.T) {
	spec, err := cluster.New("demo", 1, 1)
	if err != nil {
		t.Fatal(err)
	}
	set, err := pki.NewSet(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	files, err := set.NodeFiles(spec, spec.Spec.Nodes[1], time.Now())
	if err != nil {
		t.Fatal(err)
	}
	text, err := spec.YAML()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, f := range append(files, pki.File{Path: "cluster.yaml", Data: text, Mode: 0o644}) {
		path := filepath.Join(dir, f.Path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, f.Data, f.Mode); err != nil {
			t.Fatal(err)
		}
	}
	got, err := nodeTarget(dir)
	if err != nil || got.spec.Metadata.Name != "demo" {
		t.Fatalf("a worker cannot ask: %v", err)
	}
	for _, name := range []string{"cluster.yaml", "pki/agent-ca.crt", "pki/agent.crt", "pki/agent.key"} {
		path := filepath.Join(dir, name)
		if err := os.Rename(path, path+".away"); err != nil {
			t.Fatal(err)
		}
		if _, err := nodeTarget(dir); err == nil {
			t.Errorf("nobody misses %s", name)
		}
		if err := os.Rename(path+".away", path); err != nil {
			t.Fatal(err)
		}
	}
}

// TestOwnEtcd: etcdctl on a node asks its own member, or all where it has none.
func TestOwnEtcd(t *testing.T) {
	spec, err := cluster.NewApart("demo", 2, 1, 0)
	if err != nil {
		t.Fatal(err)
	}
	external := *spec
	external.Spec.Etcd = cluster.Etcd{External: cluster.ExternalEtcd{Endpoints: []string{"https://10.0.0.1:2379"}}}
	external.Spec.Nodes = spec.Servers()
	dir := t.TempDir()
	if err := (membership.Disk{Spec: &external, Name: "cp1"}).Write(dir); err != nil {
		t.Fatal(err)
	}
	endpoints, keys := ownEtcd(dir)
	if strings.Join(endpoints, " ") != "https://10.0.0.1:2379" || keys.Key != dir+"/pki/etcd-external/client.key" {
		t.Errorf("somebody else's etcd is asked at %v with %+v", endpoints, keys)
	}
	for name, want := range map[string]string{
		"e2": component.EtcdClient, "cp1": "https://198.18.0.51:2379 https://198.18.0.52:2379", "": component.EtcdClient,
	} {
		dir := t.TempDir()
		if name != "" {
			if err := (membership.Disk{Spec: spec, Name: name}).Write(dir); err != nil {
				t.Fatal(err)
			}
		}
		endpoints, keys := ownEtcd(dir)
		if got := strings.Join(endpoints, " "); got != want || keys.Cert != dir+"/pki/etcd/agent-client.crt" {
			t.Errorf("%q asks %s, want %s, with %+v", name, got, want, keys)
		}
	}
}
