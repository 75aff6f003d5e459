package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"kuorum/internal/cluster"
	"kuorum/internal/lab"
	"kuorum/internal/pki"
)

// givenFiles writes what somebody gives who runs an etcd, and a cluster.yaml that
// names it; it returns the latter's path.
func givenFiles(t *testing.T) string {
	t.Helper()
	now := time.Now()
	ca, err := pki.NewAuthority("theirs", now, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := ca.Issue(pki.Request{CommonName: "kuorum", Client: true, NotBefore: now, NotAfter: now.Add(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, data := range map[string][]byte{"keys/ca.crt": ca.Pair().Cert, "keys/client.crt": pair.Cert, "keys/client.key": pair.Key, "keys/other.key": ca.Pair().Key} {
		if err := os.MkdirAll(filepath.Join(dir, "keys"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "cluster.yaml")
}

func externalSpec(t *testing.T, ca, certificate, key string) *cluster.Spec {
	t.Helper()
	spec, err := cluster.New("demo", 1, 0)
	if err != nil {
		t.Fatal(err)
	}
	spec.Spec.Etcd = cluster.Etcd{External: cluster.ExternalEtcd{Endpoints: []string{"https://10.0.0.1:2379"}, CA: ca, Certificate: certificate, Key: key}}
	if err := spec.Validate(); err != nil {
		t.Fatal(err)
	}
	return spec
}

// TestTakeEtcdFiles: relative to the file that names them, checked, and forgotten
// but for what they hold.
func TestTakeEtcdFiles(t *testing.T) {
	file := givenFiles(t)
	store := lab.Store{Root: t.TempDir()}
	given := externalSpec(t, "keys/ca.crt", filepath.Join(filepath.Dir(file), "keys/client.crt"), "keys/client.key")
	kept, external, err := takeEtcdFiles(store, file, given, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(externalSpec(t, "", "", ""), kept); diff != "" || len(external.Client.Key) == 0 || external.ID == "" {
		t.Errorf("kept (-want +got):\n%s", diff)
	}
	for _, c := range []struct {
		spec *cluster.Spec
		now  time.Time
		says string
	}{
		{externalSpec(t, "", "", ""), time.Now(), "names no files for etcd"},
		{externalSpec(t, "keys/nowhere", "keys/client.crt", "keys/client.key"), time.Now(), "cannot read spec.etcd.external.ca of " + file},
		{externalSpec(t, "keys/ca.crt", "keys/client.crt", "client.key"), time.Now(), "cannot read spec.etcd.external.key of"},
		{externalSpec(t, "keys/ca.crt", "keys/client.crt", "keys/other.key"), time.Now(), "the key does not belong to the certificate"},
		{given, time.Now().Add(2 * time.Hour), "has expired"},
	} {
		_, _, err := takeEtcdFiles(store, file, c.spec, c.now)
		if exitOf(err) != cluster.ExitUsage || !strings.Contains(err.Error(), c.says) {
			t.Errorf("got %v, want %q", err, c.says)
		}
	}
	own, err := cluster.New("demo", 1, 0)
	if err != nil {
		t.Fatal(err)
	}
	if kept, external, err := takeEtcdFiles(store, "", own, time.Now()); kept != own || external != nil || err != nil {
		t.Errorf("a cluster with its own etcd: %v, %v, %v", kept, external, err)
	}
}

func TestInsideLab(t *testing.T) {
	for endpoint, want := range map[string]bool{
		"https://198.18.0.1:2379": true, "https://198.18.1.1:2379": false, "https://10.0.0.1:2379": false, "https://etcd.example.com:2379": false,
	} {
		spec := externalSpec(t, "", "", "")
		spec.Spec.Etcd.External.Endpoints = append(spec.Spec.Etcd.External.Endpoints, endpoint)
		if got := insideLab(spec); got != want {
			t.Errorf("%s: got %v", endpoint, got)
		}
	}
}
