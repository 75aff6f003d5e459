package pki

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"kuorum/internal/cluster"
)

// theirs is an authority that is not the cluster's, and a client's pair of it.
func theirs(t *testing.T, now time.Time) (*Authority, Pair) {
	t.Helper()
	ca, err := NewAuthority("their-etcd", now, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := ca.Issue(client("kuorum").lasting(now, time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	return ca, pair
}

func TestNewExternalEtcd(t *testing.T) {
	t.Parallel()
	now := time.Now()
	ca, pair := theirs(t, now)
	other, stranger := theirs(t, now)
	server, err := ca.Issue(Request{CommonName: "s", Names: []string{"s"}, Server: true}.lasting(now, time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	both := append(append([]byte{}, other.Pair().Cert...), ca.Pair().Cert...)
	for _, c := range []struct {
		name          string
		ca, cert, key []byte
		now           time.Time
		want          string // empty: it is taken
	}{
		{"all well", ca.Pair().Cert, pair.Cert, pair.Key, now, ""},
		{"two authorities", both, pair.Cert, pair.Key, now, ""},
		{"no authority", nil, pair.Cert, pair.Key, now, "the authority: there is no PEM block"},
		{"text for an authority", []byte("hello"), pair.Cert, pair.Key, now, "the authority: there is no PEM block"},
		{"a key for an authority", pair.Key, pair.Cert, pair.Key, now, `the authority: a PEM block is a "PRIVATE KEY"`},
		{"no certificate", ca.Pair().Cert, nil, pair.Key, now, "the certificate: there is no PEM block"},
		{"no key", ca.Pair().Cert, pair.Cert, nil, now, "the key: there is no PEM block"},
		{"another's key", ca.Pair().Cert, pair.Cert, stranger.Key, now, "the key does not belong to the certificate"},
		{"another's authority", other.Pair().Cert, pair.Cert, pair.Key, now, "is not one of a client that the authority"},
		{"a server's certificate", ca.Pair().Cert, server.Cert, server.Key, now, "is not one of a client"},
		{"expired", ca.Pair().Cert, pair.Cert, pair.Key, now.Add(2 * time.Hour), "has expired"},
		{"not yet", ca.Pair().Cert, pair.Cert, pair.Key, now.Add(-2 * time.Hour), "is not valid before"},
	} {
		_, err := NewExternalEtcd(c.ca, c.cert, c.key, c.now)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: got %v, want %q", c.name, err, c.want)
		}
	}
}

// externalSet is the secrets of a cluster whose etcd somebody else runs.
func externalSet(t *testing.T) (*Set, *cluster.Spec) {
	t.Helper()
	now := time.Now()
	ca, pair := theirs(t, now)
	set, err := NewSet(now)
	if err != nil {
		t.Fatal(err)
	}
	if set.External, err = NewExternalEtcd(ca.Pair().Cert, pair.Cert, pair.Key, now); err != nil {
		t.Fatal(err)
	}
	spec, err := cluster.New("demo", 2, 1)
	if err != nil {
		t.Fatal(err)
	}
	spec.Spec.Etcd = cluster.Etcd{External: cluster.ExternalEtcd{Endpoints: []string{"https://10.0.0.1:2379"}}}
	return set, spec
}

// TestExternalEtcdIsPartOfTheSet: it is written and read with the set, whole or
// not at all, and no two clusters have one ID.
func TestExternalEtcdIsPartOfTheSet(t *testing.T) {
	t.Parallel()
	set, _ := externalSet(t)
	again, err := ParseSet(set.Files())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(set.External, again.External); diff != "" {
		t.Errorf("read back (-want +got):\n%s", diff)
	}
	other, _ := externalSet(t)
	if len(set.External.ID) < 20 || set.External.ID == other.External.ID {
		t.Errorf("two clusters are %q and %q", set.External.ID, other.External.ID)
	}
	for _, path := range []string{fileExternalCA, fileExternalCert, fileExternalKey, fileExternalID} {
		files := set.Files()
		delete(files, path)
		if _, err := ParseSet(files); err == nil || !strings.Contains(err.Error(), path+" is missing") {
			t.Errorf("without %s: %v", path, err)
		}
	}
	files := set.Files()
	files[fileExternalKey] = other.External.Client.Key
	if _, err := ParseSet(files); err == nil {
		t.Error("another's key is taken")
	}
}

// TestExternalEtcdFiles: servers have what etcd is asked with and nothing that
// etcd of our own would need; a worker has none of it.
func TestExternalEtcdFiles(t *testing.T) {
	t.Parallel()
	set, spec := externalSet(t)
	for _, n := range spec.Spec.Nodes {
		files, err := set.NodeFiles(spec, n, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		have := map[string]string{}
		for _, f := range files {
			if strings.Contains(f.Path, "etcd") {
				have[f.Path] = f.Mode.String()
			}
		}
		want := map[string]string{}
		if n.Role == cluster.RoleServer {
			want = map[string]string{
				"pki/etcd/ca.crt": "-rw-r--r--", "pki/etcd/ca.key": "-rw-------",
				"pki/etcd-external/ca.crt": "-rw-r--r--", "pki/etcd-external/client.crt": "-rw-r--r--",
				"pki/etcd-external/client.key": "-rw-------", "pki/etcd-external/id": "-rw-------",
			}
		}
		if diff := cmp.Diff(want, have); diff != "" {
			t.Errorf("%s (-want +got):\n%s", n.Name, diff)
		}
	}
	set.External = nil
	if _, err := set.NodeFiles(spec, spec.Spec.Nodes[0], time.Now()); err == nil {
		t.Error("a server is made without anything to show etcd")
	}
}
