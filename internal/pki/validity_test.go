package pki

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

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
	for name, read := range map[string]func() ([]Certificate, error){
		"certificate": func() ([]Certificate, error) { return Certificates(pair.Cert) },
		"kubeconfig":  func() ([]Certificate, error) { return KubeconfigCertificates(config) },
	} {
		got, err := read()
		want := []Certificate{{
			From: now.Add(-backdateLong), Until: now.Add(personLife), Renew: now.Add(personLife / 3 * 2),
			By: "kubernetes", Key: set.Signers()[fileCACert],
		}}
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%s: %v (-want +got)\n%s", name, err, diff)
		}
	}
	for path, f := range nodeFiles(t, set, "cp1", now) {
		for _, cert := range certificates(t, f) {
			read := Certificates
			if path == "admin.conf" {
				read = KubeconfigCertificates
			}
			got, err := read(f.Data)
			if err != nil || !cert.IsCA && (len(got) != 1 || !got[0].From.Equal(cert.NotBefore) || !got[0].Until.Equal(cert.NotAfter)) {
				t.Errorf("%s: %+v, %v", path, got, err)
			}
			if path == "admin.conf" {
				continue
			}
			if from, until, err := Validity(f.Data); err != nil || !from.Equal(got[0].From) || !until.Equal(got[0].Until) {
				t.Errorf("%s: %v to %v, %v", path, from, until, err)
			}
		}
		if !refers(path) {
			continue
		}
		if _, err := KubeconfigCertificates(f.Data); err == nil || !strings.Contains(err.Error(), "the kubeconfig holds no certificate") {
			t.Errorf("%s, which refers to a certificate: %v", path, err)
		}
	}
	backwards, torn := string(pair.Key)+string(pair.Cert), string(pair.Cert[:200])+string(pair.Key)
	for _, bad := range []string{backwards, torn, "", "x", "users: []", "users: [{user: {client-certificate-data: eA==}}]", "a: [", cluster.APIVersion} {
		if _, err := KubeconfigCertificates([]byte(bad)); err == nil {
			t.Errorf("%q has a validity", bad)
		}
		if _, err := Certificates([]byte(bad)); err == nil {
			t.Errorf("%q has certificates", bad)
		}
		if _, _, err := Validity([]byte(bad)); err == nil {
			t.Errorf("%q has a validity", bad)
		}
	}
}

// TestFirstUse: of every life it is known when it began.
func TestFirstUse(t *testing.T) {
	for _, life := range []time.Duration{
		20 * time.Minute, time.Hour, 9 * time.Hour, shortLife - time.Second, shortLife, shortLife + time.Second, day, personLife, authorityLife,
	} {
		if got := firstUse(testNow.Add(-backdate(life)), testNow.Add(life)); !got.Equal(testNow) {
			t.Errorf("a life of %v began at %v, want %v", life, got, testNow)
		}
		if backdate(life) > life/3 {
			t.Errorf("a life of %v is dated back by %v", life, backdate(life))
		}
	}
}
