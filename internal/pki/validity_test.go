package pki

import (
	"strings"
	"testing"
	"time"

	"kuorum/internal/cluster"
)

// TestValidity reads the lives of everything that a server gets, and of what
// is damaged.
func TestValidity(t *testing.T) {
	now := time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC)
	set, err := NewSet(now)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := set.AdminPair(now)
	if err != nil {
		t.Fatal(err)
	}
	config, err := Kubeconfig("https://127.0.0.1:6443", "kuorum-x", pair, set.Cluster.Pair().Cert)
	if err != nil {
		t.Fatal(err)
	}
	for name, read := range map[string]func() (time.Time, time.Time, error){
		"certificate": func() (time.Time, time.Time, error) { return Validity(pair.Cert) },
		"kubeconfig":  func() (time.Time, time.Time, error) { return KubeconfigValidity(config) },
	} {
		from, until, err := read()
		if err != nil || from.After(now) || until.Sub(now) != personLife {
			t.Errorf("%s: %v to %v, %v", name, from, until, err)
		}
	}
	for path, f := range nodeFiles(t, set, "cp1", now) {
		for _, cert := range certificates(t, f) {
			read := Validity
			if path == "admin.conf" {
				read = KubeconfigValidity
			}
			from, until, err := read(f.Data)
			if err != nil || !cert.IsCA && (!from.Equal(cert.NotBefore) || !until.Equal(cert.NotAfter)) {
				t.Errorf("%s: %v to %v, %v", path, from, until, err)
			}
		}
		if !refers(path) {
			continue
		}
		if _, _, err := KubeconfigValidity(f.Data); err == nil || !strings.Contains(err.Error(), "the kubeconfig holds no certificate") {
			t.Errorf("%s, which refers to a certificate: %v", path, err)
		}
	}
	backwards, torn := string(pair.Key)+string(pair.Cert), string(pair.Cert[:200])+string(pair.Key)
	for _, bad := range []string{backwards, torn, "", "x", "users: []", "users: [{user: {client-certificate-data: eA==}}]", "a: [", cluster.APIVersion} {
		if _, _, err := KubeconfigValidity([]byte(bad)); err == nil {
			t.Errorf("%q has a validity", bad)
		}
		if _, _, err := Validity([]byte(bad)); err == nil {
			t.Errorf("%q has a validity", bad)
		}
	}
}
