package cli

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"kuorum/internal/cluster"
	"kuorum/internal/doctor"
	"kuorum/internal/lab"
	"kuorum/internal/pki"
)

// TestSupportOfALabHasNoSecret packs a lab whose disks hold everything that a
// real one has: every secret is left where it is, all that helps is there.
func TestSupportOfALabHasNoSecret(t *testing.T) {
	root := t.TempDir()
	spec, err := cluster.New("one", 1, 1)
	if err != nil {
		t.Fatal(err)
	}
	text, err := spec.YAML()
	if err != nil {
		t.Fatal(err)
	}
	set, err := pki.NewSet(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	base := filepath.Join(root, "labs/one")
	write := func(name string, data []byte) {
		t.Helper()
		path := filepath.Join(base, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, data, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	write("cluster.yaml", text)
	write("state.json", []byte(`{"port": 6443}`))
	write("lab.log", []byte("lab\n"))
	var secrets []string
	for name, data := range set.Files() {
		write("pki/"+name, data)
		if !strings.HasSuffix(name, ".crt") && !strings.HasSuffix(name, ".pub") {
			secrets = append(secrets, secretLines(data)...)
		}
	}
	for _, n := range spec.Spec.Nodes {
		machine := "machines/" + n.Name + "/"
		write(machine+"etc/kuorum/cluster.yaml", text)
		write(machine+"etc/kuorum/node", []byte(n.Name+"\n"))
		write(machine+"etc/kuorum/components/kubelet.yaml", []byte("kind: KubeletConfiguration\n"))
		write(machine+"etc/kuorum/components/surprise.yaml", []byte("not on the list\n"))
		write(machine+"var/log/kuorum/etcd.log", []byte("etcd says\n"))
		write(machine+"var/log/kuorum/audit.log", []byte("not on the list\n"))
		write(machine+"var/lib/kuorum/etcd/member/wal", []byte("not on the list\n"))
		write(machine+"console.log", []byte("booted\n"))
		files, err := set.NodeFiles(spec, n, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			write(machine+"etc/kuorum/"+f.Path, f.Data)
			if f.Mode == 0o600 {
				secrets = append(secrets, secretLines(f.Data)...)
			}
		}
	}
	if len(secrets) < 50 {
		t.Fatalf("only %d lines of secrets were made: is this test right?", len(secrets))
	}
	l, err := lab.Store{Root: root}.Open("one")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "support.tar.gz")
	p := patient{as: asHost, lab: l, spec: spec}
	a, _, _ := testApp(t, nil)
	if err := a.writeSupport(t.Context(), file, p, doctorDocument{Name: "here", Checks: []doctor.Check{{Name: "x", State: doctor.StateOK}}}); err != nil {
		t.Fatal(err)
	}
	all, names := readArchive(t, file)
	for _, s := range append(secrets, "not on the list", "PRIVATE KEY", "secretbox") {
		if strings.Contains(all, s) {
			t.Errorf("the archive has %.40q", s)
		}
	}
	for _, want := range []string{
		"doctor.json", "version.json", "README", "host/proc/version", "lab/cluster.yaml", "lab/lab.log",
		"nodes/cp1/etc/kuorum/cluster.yaml", "nodes/cp1/etc/kuorum/components/kubelet.yaml", "nodes/w1/var/log/kuorum/etcd.log", "nodes/w1/console.log",
	} {
		if !slices.Contains(names, "kuorum-support/"+want) {
			t.Errorf("the archive has no %s: %v", want, names)
		}
	}
}

// secretLines are the lines of a file by which it would be known again.
func secretLines(data []byte) []string {
	var list []string
	for line := range strings.Lines(string(data)) {
		if line = strings.TrimSpace(line); len(line) >= 40 && !strings.Contains(line, " ") {
			list = append(list, line)
		}
	}
	return list
}

func readArchive(t *testing.T, file string) (all string, names []string) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	zip, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	for r := tar.NewReader(zip); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return text.String(), names
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Name)
		if _, err := io.Copy(&text, r); err != nil {
			t.Fatal(err)
		}
	}
}

func TestWriteDoctor(t *testing.T) {
	var got strings.Builder
	writeDoctor(&got, doctorDocument{Name: "vm", As: asHost, Hint: "its machines: ...", Checks: []doctor.Check{
		{Name: "kernel", State: doctor.StateOK, Measured: "6.1", Why: "kube-proxy"},
		{Name: "fsync", State: doctor.StateWarning, Measured: "p99 12ms", What: "the disk is slow", Why: "etcd", Do: "another disk"},
		{Name: "swap", State: doctor.StateOK, Measured: "1 GiB", What: "swap is on", Why: "late"},
		{Name: "vxlan", State: doctor.StateSkipped, Measured: "needs root", Why: "flannel"},
	}})
	const want = `CHECK    STATE     MEASURED
kernel   ok        6.1
fsync    warning   p99 12ms
swap     ok        1 GiB
vxlan    skipped   needs root

warning: the disk is slow (fsync)
  why: etcd
  do:  another disk

remark: swap is on (swap)
  why: late

vm (host of labs): 2 ok, 1 warning, 1 skipped
its machines: ...
`
	if got.String() != want {
		t.Errorf("got\n%s", got.String())
	}
}
