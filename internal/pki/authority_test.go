package pki

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var testNow = time.Date(2026, 3, 1, 12, 0, 0, 500, time.UTC)

const day = 24 * time.Hour

func newTestAuthority(t testing.TB, life time.Duration) *Authority {
	t.Helper()
	a, err := NewAuthority("test-ca", testNow, life)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func mustParse(t testing.TB, certPEM []byte) *x509.Certificate {
	t.Helper()
	cert, err := parseCertificate(certPEM)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func clientRequest() Request {
	return Request{CommonName: "somebody", Client: true, NotBefore: testNow, NotAfter: testNow.Add(day)}
}

func TestNewAuthority(t *testing.T) {
	a := newTestAuthority(t, 30*day)
	cert := mustParse(t, a.Pair().Cert)
	if !cert.IsCA || !cert.BasicConstraintsValid || cert.MaxPathLen != 0 || !cert.MaxPathLenZero {
		t.Errorf("basic constraints: CA %v, valid %v, path length %d (zero %v)",
			cert.IsCA, cert.BasicConstraintsValid, cert.MaxPathLen, cert.MaxPathLenZero)
	}
	if want := x509.KeyUsageCertSign | x509.KeyUsageCRLSign; cert.KeyUsage != want {
		t.Errorf("key usage %b, want %b", cert.KeyUsage, want)
	}
	if want := testNow.Add(-time.Hour).Truncate(time.Second); !cert.NotBefore.Equal(want) {
		t.Errorf("valid from %s, want %s", cert.NotBefore, want)
	}
	if want := testNow.Add(30 * day).Truncate(time.Second); !cert.NotAfter.Equal(want) || !a.NotAfter().Equal(want) {
		t.Errorf("valid until %s and %s, want %s", cert.NotAfter, a.NotAfter(), want)
	}
	if key, ok := cert.PublicKey.(*ecdsa.PublicKey); !ok || key.Curve != elliptic.P256() {
		t.Errorf("the public key is a %T, want ECDSA P-256", cert.PublicKey)
	}
	if len(cert.SubjectKeyId) != 20 {
		t.Errorf("the subject key id has %d bytes", len(cert.SubjectKeyId))
	}
	if !basicConstraintsCritical(cert) {
		t.Error("basic constraints are not critical")
	}
	if _, err := NewAuthority("", testNow, day); err == nil {
		t.Error("an authority without name was made")
	}
	if _, err := NewAuthority("x", testNow, 0); err == nil {
		t.Error("an authority without life was made")
	}
}

func basicConstraintsCritical(cert *x509.Certificate) bool {
	for _, e := range cert.Extensions {
		if e.Id.String() == "2.5.29.19" {
			return e.Critical
		}
	}
	return false
}

func TestIssue(t *testing.T) {
	a := newTestAuthority(t, 30*day)
	req := Request{
		CommonName: "cp1", Organizations: []string{"one", "two"}, Names: []string{"cp1", "localhost"},
		IPs:    []netip.Addr{netip.MustParseAddr("198.18.0.11"), netip.MustParseAddr("::ffff:10.0.0.1"), netip.MustParseAddr("fd00::1")},
		Server: true, Client: true, NotBefore: testNow, NotAfter: testNow.Add(day),
	}
	pair, err := a.Issue(req)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tls.X509KeyPair(pair.Cert, pair.Key); err != nil {
		t.Errorf("certificate and key do not fit: %v", err)
	}
	cert, ca := mustParse(t, pair.Cert), mustParse(t, a.Pair().Cert)
	got := describe(cert)
	want := description{
		User: "cp1", Groups: []string{"one", "two"}, Names: []string{"cp1", "localhost"},
		IPs: []string{"198.18.0.11", "10.0.0.1", "fd00::1"}, Server: true, Client: true,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("certificate (-want +got):\n%s", diff)
	}
	verifyLeaf(t, "leaf", cert, ca)
	if want := testNow.Add(-time.Hour).Truncate(time.Second); !cert.NotBefore.Equal(want) {
		t.Errorf("valid from %s, want %s", cert.NotBefore, want)
	}
	if want := testNow.Add(day).Truncate(time.Second); !cert.NotAfter.Equal(want) {
		t.Errorf("valid until %s, want %s", cert.NotAfter, want)
	}
}

// description is what a certificate says, in a form that can be compared.
type description struct {
	User           string
	Groups         []string
	Names, IPs     []string
	Server, Client bool
}

func describe(cert *x509.Certificate) description {
	d := description{User: cert.Subject.CommonName, Groups: cert.Subject.Organization, Names: cert.DNSNames}
	for _, ip := range cert.IPAddresses {
		d.IPs = append(d.IPs, ip.String())
	}
	for _, usage := range cert.ExtKeyUsage {
		d.Server = d.Server || usage == x509.ExtKeyUsageServerAuth
		d.Client = d.Client || usage == x509.ExtKeyUsageClientAuth
	}
	return d
}

// verifyLeaf checks what holds for every certificate that is not a root.
func verifyLeaf(t *testing.T, name string, cert, ca *x509.Certificate) {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	for _, at := range []time.Time{cert.NotBefore, cert.NotAfter} {
		_, err := cert.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}, CurrentTime: at})
		if err != nil {
			t.Errorf("%s does not verify at %s: %v", name, at, err)
		}
	}
	if cert.IsCA || !cert.BasicConstraintsValid || !basicConstraintsCritical(cert) {
		t.Errorf("%s: basic constraints: CA %v, valid %v", name, cert.IsCA, cert.BasicConstraintsValid)
	}
	if cert.KeyUsage != x509.KeyUsageDigitalSignature {
		t.Errorf("%s: key usage %b", name, cert.KeyUsage)
	}
	if n := len(cert.ExtKeyUsage); n == 0 || n > 2 || len(cert.UnknownExtKeyUsage) != 0 {
		t.Errorf("%s: extended key usages %v and %v", name, cert.ExtKeyUsage, cert.UnknownExtKeyUsage)
	}
	if len(cert.SubjectKeyId) != 20 || !bytes.Equal(cert.AuthorityKeyId, ca.SubjectKeyId) {
		t.Errorf("%s: key id %x, authority's %x, want %x", name, cert.SubjectKeyId, cert.AuthorityKeyId, ca.SubjectKeyId)
	}
	if bytes.Equal(cert.SubjectKeyId, ca.SubjectKeyId) {
		t.Errorf("%s has the key id of its authority", name)
	}
	if cert.NotAfter.After(ca.NotAfter) || cert.NotBefore.Before(ca.NotBefore) {
		t.Errorf("%s is valid from %s to %s, its authority from %s to %s", name, cert.NotBefore, cert.NotAfter, ca.NotBefore, ca.NotAfter)
	}
	if cert.SerialNumber.Sign() <= 0 || cert.SerialNumber.BitLen() > 128 {
		t.Errorf("%s: serial number %x", name, cert.SerialNumber)
	}
}

// A leaf that bears its authority's name must still point to its key.
func TestIssueUnderTheAuthoritysName(t *testing.T) {
	a := newTestAuthority(t, 30*day)
	req := clientRequest()
	req.CommonName = "test-ca"
	pair, err := a.Issue(req)
	if err != nil {
		t.Fatal(err)
	}
	verifyLeaf(t, "namesake", mustParse(t, pair.Cert), mustParse(t, a.Pair().Cert))
}

func TestSerialsAreRandom(t *testing.T) {
	longest, seen := 0, map[string]bool{}
	for range 64 {
		serial, err := newSerial()
		if err != nil {
			t.Fatal(err)
		}
		if serial.Sign() <= 0 || serial.BitLen() > 128 {
			t.Fatalf("serial number %x is not in 1..2^128-1", serial)
		}
		seen[serial.String()] = true
		longest = max(longest, serial.BitLen())
	}
	// 64 numbers shorter than 120 bits have a chance of 2^-512.
	if len(seen) != 64 || longest < 120 {
		t.Errorf("%d different serials of 64, the longest has %d bits", len(seen), longest)
	}
}

func TestIssueClampsToTheAuthority(t *testing.T) {
	a := newTestAuthority(t, 30*day)
	ca := mustParse(t, a.Pair().Cert)
	for _, now := range []time.Time{ca.NotBefore, testNow, testNow.Add(29 * day), ca.NotAfter.Add(-time.Second)} {
		pair, err := a.issueFor(now, Request{CommonName: "x", Client: true})
		if err != nil {
			t.Fatalf("at %s: %v", now, err)
		}
		cert := mustParse(t, pair.Cert)
		verifyLeaf(t, now.String(), cert, ca)
		if !cert.NotAfter.Equal(ca.NotAfter) {
			t.Errorf("at %s: valid until %s, want %s", now, cert.NotAfter, ca.NotAfter)
		}
	}
}

func TestIssueRefuses(t *testing.T) {
	a := newTestAuthority(t, 30*day)
	tests := map[string]struct {
		change func(*Request)
		want   string
	}{
		"no name":            {func(r *Request) { r.CommonName = "" }, "common name is empty"},
		"empty organization": {func(r *Request) { r.Organizations = []string{"a", ""} }, "organizations is empty"},
		"empty server name":  {func(r *Request) { r.Names = []string{""} }, "names is empty"},
		"no address":         {func(r *Request) { r.IPs = make([]netip.Addr, 1) }, "addresses is empty"},
		"zone":               {func(r *Request) { r.IPs = []netip.Addr{netip.MustParseAddr("fe80::1%eth0")} }, "has a zone"},
		"no use":             {func(r *Request) { r.Client = false }, "neither for a server nor for a client"},
		"nameless server":    {func(r *Request) { r.Server = true }, "needs a name or an address"},
		"ends first":         {func(r *Request) { r.NotAfter = r.NotBefore }, "before it begins"},
		"too early":          {func(r *Request) { r.NotBefore = testNow.Add(-day) }, "check the clock"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			req := clientRequest()
			test.change(&req)
			_, err := a.Issue(req)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want one with %q", err, test.want)
			}
		})
	}
}

func TestIssueRefusesWhenExpired(t *testing.T) {
	a := newTestAuthority(t, day)
	for _, now := range []time.Time{a.NotAfter(), a.NotAfter().Add(time.Hour)} {
		_, err := a.issueFor(now, Request{CommonName: "x", Client: true})
		if !errors.Is(err, ErrExpired) || !strings.Contains(err.Error(), "test-ca") || !strings.Contains(err.Error(), "2026-03-02") {
			t.Errorf("at %s: error %v, want ErrExpired with the authority's name and end", now, err)
		}
	}
}

func TestParseAuthorityRoundTrip(t *testing.T) {
	a := newTestAuthority(t, day)
	b, err := ParseAuthority(a.Pair().Cert, a.Pair().Key)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(a.Pair(), b.Pair()); diff != "" {
		t.Errorf("round trip (-want +got):\n%s", diff)
	}
	pair, err := b.Issue(clientRequest())
	if err != nil {
		t.Fatal(err)
	}
	verifyLeaf(t, "leaf", mustParse(t, pair.Cert), mustParse(t, a.Pair().Cert))
}

func TestParseAuthorityTakesSEC1(t *testing.T) {
	a := newTestAuthority(t, day)
	der, err := x509.MarshalECPrivateKey(a.key.(*ecdsa.PrivateKey))
	if err != nil {
		t.Fatal(err)
	}
	b, err := ParseAuthority(a.Pair().Cert, encode(blockECKey, der))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(a.Pair(), b.Pair()); diff != "" {
		t.Errorf("round trip (-want +got):\n%s", diff)
	}
}

func TestParseAuthorityRefuses(t *testing.T) {
	a, b := newTestAuthority(t, day), newTestAuthority(t, day)
	leaf, err := a.Issue(clientRequest())
	if err != nil {
		t.Fatal(err)
	}
	good := a.Pair()
	withHeader := pem.EncodeToMemory(&pem.Block{Type: blockKey, Headers: map[string]string{"Proc-Type": "4,ENCRYPTED"}, Bytes: []byte("x")})
	tests := map[string]struct {
		cert, key []byte
		want      string
	}{
		"nothing":            {nil, nil, "no PEM block"},
		"no key":             {good.Cert, nil, "no PEM block"},
		"swapped":            {good.Key, good.Cert, `is a "PRIVATE KEY"`},
		"certificate as key": {good.Cert, good.Cert, `is a "CERTIFICATE"`},
		"key of another":     {good.Cert, b.Pair().Key, "belongs to another certificate"},
		"two certificates":   {append(bytes.Clone(good.Cert), b.Pair().Cert...), good.Key, "more than one"},
		"leaf":               {leaf.Cert, leaf.Key, "may not sign others"},
		"intermediate":       {intermediate(t, a).Cert, intermediate(t, a).Key, `issued by "test-ca"`},
		"encrypted key":      {good.Cert, withHeader, "headers"},
		"damaged key":        {good.Cert, encode(blockKey, []byte("x")), "cannot read key"},
		"damaged cert":       {encode(blockCertificate, []byte("x")), good.Key, "cannot read certificate"},
		"other kind of key":  {good.Cert, ed25519Key(t), "belongs to another certificate"},
		"renamed":            {renamed(t, good.Cert), good.Key, "damaged or not a root"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := ParseAuthority(test.cert, test.key)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want one with %q", err, test.want)
			}
		})
	}
}

// No single flipped bit may go unnoticed in what the authority signed.
func TestParseAuthorityRefusesEveryFlippedByte(t *testing.T) {
	good := newTestAuthority(t, day).Pair()
	block, _ := pem.Decode(good.Cert)
	for i := range block.Bytes {
		der := bytes.Clone(block.Bytes)
		der[i] ^= 1 << (i % 8)
		if _, err := ParseAuthority(encode(blockCertificate, der), good.Key); err == nil {
			t.Errorf("a certificate with byte %d of %d changed was taken", i, len(der))
		}
	}
}

func renamed(t *testing.T, certPEM []byte) []byte {
	t.Helper()
	block, _ := pem.Decode(certPEM)
	der := bytes.ReplaceAll(block.Bytes, []byte("test-ca"), []byte("best-ca"))
	if bytes.Equal(der, block.Bytes) {
		t.Fatal("the certificate does not contain its name")
	}
	return encode(blockCertificate, der)
}

func ed25519Key(t *testing.T) []byte {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	data, err := encodeKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func intermediate(t *testing.T, a *Authority) Pair {
	t.Helper()
	key, err := newKey()
	if err != nil {
		t.Fatal(err)
	}
	encoded, err := encodeKey(key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := certify(&x509.Certificate{
		Subject: pkix.Name{CommonName: "middle"}, SerialNumber: big.NewInt(1),
		NotBefore: testNow, NotAfter: testNow.Add(time.Hour),
		KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true,
	}, &key.PublicKey, a.cert, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return Pair{Cert: cert, Key: encoded}
}
