package pki

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func newTestSet(t testing.TB) *Set {
	t.Helper()
	s, err := NewSet(testNow)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestNewSet(t *testing.T) {
	a, b := newTestSet(t), newTestSet(t)
	for name, authority := range map[string]*Authority{
		"kubernetes": a.Cluster, "kuorum-agents": a.Agents, "etcd-ca": a.Etcd, "front-proxy-ca": a.FrontProxy,
	} {
		if authority.cert.Subject.CommonName != name {
			t.Errorf("authority %q is called %q", name, authority.cert.Subject.CommonName)
		}
		if want := testNow.Add(3650 * day).Truncate(time.Second); !authority.NotAfter().Equal(want) {
			t.Errorf("%s lives until %s, want %s", name, authority.NotAfter(), want)
		}
	}
	if a.EncryptionKey == b.EncryptionKey || a.EncryptionKey == [32]byte{} {
		t.Error("encryption keys are not random")
	}
	block, _ := pem.Decode(a.ServiceAccount.Public)
	if block == nil || block.Type != "PUBLIC KEY" {
		t.Fatalf("the service accounts' public key is not a PUBLIC KEY: %s", a.ServiceAccount.Public)
	}
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if public, ok := key.(*ecdsa.PublicKey); !ok || public.Curve != elliptic.P256() {
		t.Errorf("the service accounts' key is a %T, want ECDSA P-256", key)
	}
}

func TestSetRoundTrip(t *testing.T) {
	s := newTestSet(t)
	files := s.Files()
	want := []string{
		"agent-ca.crt", "agent-ca.key", "ca.crt", "ca.key", "encryption.key", "etcd/ca.crt", "etcd/ca.key",
		"front-proxy-ca.crt", "front-proxy-ca.key", "sa.key", "sa.pub",
	}
	if diff := cmp.Diff(want, slices.Sorted(maps.Keys(files))); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	files["note.txt"] = []byte("not ours")
	back, err := ParseSet(files)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(s.Files(), back.Files()); diff != "" {
		t.Errorf("round trip (-want +got):\n%s", diff)
	}
	if back.EncryptionKey != s.EncryptionKey {
		t.Error("the encryption key changed")
	}
}

func TestParseSetRefuses(t *testing.T) {
	s, other := newTestSet(t), newTestSet(t)
	short := []byte(base64.StdEncoding.EncodeToString(make([]byte, 16)))
	type change map[string][]byte
	tests := map[string]struct {
		change change
		want   string
	}{
		"authority of another cluster": {change{"ca.crt": other.Cluster.pair.Cert}, "ca.crt"},
		"swapped keys":                 {change{"ca.key": s.Etcd.pair.Key, "etcd/ca.key": s.Cluster.pair.Key}, "another certificate"},
		"one authority twice": {
			change{"etcd/ca.crt": s.Cluster.pair.Cert, "etcd/ca.key": s.Cluster.pair.Key}, "have the same key",
		},
		"one authority for agents": {
			change{"agent-ca.crt": s.Cluster.pair.Cert, "agent-ca.key": s.Cluster.pair.Key}, "have the same key",
		},
		"one authority as front proxy": {
			change{"front-proxy-ca.crt": s.Etcd.pair.Cert, "front-proxy-ca.key": s.Etcd.pair.Key}, "have the same key",
		},
		"public key of another cluster": {change{"sa.pub": other.ServiceAccount.Public}, "another private key"},
		"certificate as public key":     {change{"sa.pub": s.Cluster.pair.Cert}, `is a "CERTIFICATE"`},
		"damaged public key":            {change{"sa.pub": encode(blockPublicKey, []byte("x"))}, "sa.key"},
		"damaged private key":           {change{"sa.key": []byte("x")}, "sa.key"},
		"short encryption key":          {change{"encryption.key": short}, "16 bytes instead of 32"},
		"not base64":                    {change{"encryption.key": []byte("***")}, "encryption.key"},
	}
	for path := range s.Files() {
		tests["missing "+path] = struct {
			change change
			want   string
		}{change{path: nil}, path + " is missing"}
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			files := s.Files()
			maps.Copy(files, test.change)
			_, err := ParseSet(files)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want one with %q", err, test.want)
			}
		})
	}
}

func TestPersonalPairs(t *testing.T) {
	s := newTestSet(t)
	tests := map[string]struct {
		pair func(time.Time) (Pair, error)
		by   *Authority
		want description
	}{
		"admin": {s.AdminPair, s.Cluster, description{User: "kubernetes-admin", Groups: []string{"system:masters"}, Client: true}},
		"etcd": {
			func(now time.Time) (Pair, error) { return s.EtcdClientPair("etcdctl", now) },
			s.Etcd,
			description{User: "etcdctl", Client: true},
		},
		"endpoint": {s.EndpointPair, s.Cluster, description{User: "kuorum:endpoint", Client: true}},
		"agent": {
			func(now time.Time) (Pair, error) { return s.AgentClientPair("lab", now) },
			s.Agents,
			description{User: "kuorum:admin:lab", Groups: []string{"kuorum:admins"}, Client: true},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			pair, err := test.pair(testNow)
			if err != nil {
				t.Fatal(err)
			}
			cert := mustParse(t, pair.Cert)
			verifyLeaf(t, name, cert, test.by.cert)
			if diff := cmp.Diff(test.want, describe(cert)); diff != "" {
				t.Errorf("certificate (-want +got):\n%s", diff)
			}
			if _, err := test.pair(testNow.Add(3650 * day)); !errors.Is(err, ErrExpired) {
				t.Errorf("ten years later: %v, want ErrExpired", err)
			}
		})
	}
	if _, err := s.AgentClientPair("", testNow); err == nil {
		t.Error("an agent's client without name was made")
	}
	if _, err := s.EtcdClientPair("", testNow); err == nil {
		t.Error("an etcd client without name was made")
	}
	if bytes.Equal(s.Cluster.pair.Key, s.Etcd.pair.Key) {
		t.Error("authorities share a key")
	}
}
