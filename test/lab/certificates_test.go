//go:build lab

package lab_test

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"kuorum/internal/cluster"
	"kuorum/internal/pki"
)

// TestServerComesBackWithDeadCertificates: a server that was off until all of
// its certificates had ended renews them before its components start.
func TestServerComesBackWithDeadCertificates(t *testing.T) {
	l := threeServers(t)
	l.run(t, "lab", "stop", "cp3")
	defer l.awaitReady(t)
	defer l.run(t, "lab", "start", "cp3")
	end := l.writeShortLived(t, "cp3", 2*time.Second)
	eventually(t, 10*time.Second, func() error {
		if time.Now().Before(end) {
			return fmt.Errorf("its certificates live until %v", end)
		}
		return nil
	})
	l.run(t, "lab", "start", "cp3")
	for _, path := range []string{"pki/apiserver.crt", "pki/etcd/peer.crt", "pki/agent.crt", "pki/clients/kubelet.pem"} {
		if left := time.Until(l.certificate(t, "cp3", path).NotAfter); left < 300*24*time.Hour {
			t.Errorf("%s lives for %v", path, left)
		}
	}
	l.awaitReady(t)
	if s := l.status(t); s.Quorum.Healthy != 3 || len(s.causes()) > 0 {
		t.Errorf("after that: %+v, %q", s.Quorum, s.causes())
	}
}

// writeShortLived replaces all certificates of a machine that is off, and
// returns when they end.
func (l *lab) writeShortLived(t *testing.T, machine string, life time.Duration) time.Time {
	t.Helper()
	dir := filepath.Join(tests.dir, "labs", l.name)
	files := map[string][]byte{}
	err := filepath.WalkDir(filepath.Join(dir, "pki"), func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		files[strings.TrimPrefix(path, dir+"/pki/")], err = os.ReadFile(path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	set, err := pki.ParseSet(files)
	if err != nil {
		t.Fatal(err)
	}
	set.LeafLife = life
	text, err := os.ReadFile(l.disk(machine, "etc/kuorum/cluster.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	spec, err := cluster.Parse("cluster.yaml", text)
	if err != nil {
		t.Fatal(err)
	}
	node, _ := spec.Node(machine)
	made, err := set.NodeFiles(spec, node, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range made {
		if err := os.WriteFile(l.disk(machine, filepath.Join("etc/kuorum", f.Path)), f.Data, f.Mode); err != nil {
			t.Fatal(err)
		}
	}
	return l.certificate(t, machine, "pki/apiserver.crt").NotAfter
}

func (l *lab) certificate(t *testing.T, machine, path string) *x509.Certificate {
	t.Helper()
	data, err := os.ReadFile(l.disk(machine, filepath.Join("etc/kuorum", path)))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(data)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// TestCertificatesFollowTheNodes: each API server can be reached by the name of
// a node that has just joined, and nothing was restarted for that.
func TestCertificatesFollowTheNodes(t *testing.T) {
	l := threeServers(t)
	before := l.machine(t, "cp1").pids()
	l.run(t, "lab", "add", "--role", "worker", "w7")
	defer l.run(t, "lab", "remove", "w7")
	for _, name := range []string{"cp1", "cp2", "cp3"} {
		eventually(t, 30*time.Second, func() error {
			if names := l.certificate(t, name, "pki/apiserver.crt").DNSNames; !slices.Contains(names, "w7") {
				return fmt.Errorf("the API server of %s is called %q", name, names)
			}
			return nil
		})
	}
	for name, pid := range l.machine(t, "cp1").pids() {
		if before[name] != pid {
			t.Errorf("%s was restarted", name)
		}
	}
}
