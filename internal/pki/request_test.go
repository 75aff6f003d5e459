package pki

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"io/fs"
	"maps"
	"net"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"kuorum/internal/cluster"
)

// joining is a node that has made its keys and requests.
type joining struct {
	spec     *cluster.Spec
	node     cluster.Node
	keys     NodeKeys
	requests map[string][]byte
}

// newJoining is a worker.
func newJoining(t testing.TB) joining {
	t.Helper()
	spec := testSpec()
	return joiningAs(t, spec, spec.Spec.Nodes[2])
}

func joiningAs(t testing.TB, spec *cluster.Spec, node cluster.Node) joining {
	t.Helper()
	j := joining{spec: spec, node: node}
	var err error
	if j.keys, err = NewNodeKeys(j.node.Role); err != nil {
		t.Fatal(err)
	}
	if j.requests, err = j.keys.Requests(); err != nil {
		t.Fatal(err)
	}
	return j
}

func (j joining) sign(t testing.TB, s *Set) map[string][]byte {
	t.Helper()
	certs, err := s.SignRequests(j.spec, j.node, j.requests, testNow)
	if err != nil {
		t.Fatal(err)
	}
	return certs
}

// files are what it has once they are signed.
func (j joining) files(t testing.TB, s *Set) []File {
	t.Helper()
	files, err := j.keys.Files(j.spec, j.node, j.sign(t, s), s.Trust())
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestNodeKeys(t *testing.T) {
	j := newJoining(t)
	want := []string{
		"coredns.conf", "flannel.conf", "kube-proxy.conf", "kubelet.conf", "pki/agent", "pki/endpoint", "pki/kubelet",
	}
	if diff := cmp.Diff(want, slices.Sorted(maps.Keys(j.keys))); diff != "" {
		t.Errorf("keys (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(want, slices.Sorted(maps.Keys(j.requests))); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
	for path, request := range j.requests {
		block, _ := pem.Decode(request)
		parsed, err := x509.ParseCertificateRequest(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		if !j.keys[path].PublicKey.Equal(parsed.PublicKey) || parsed.Subject.String() != "" {
			t.Errorf("the request for %s has another key, or a subject %q", path, parsed.Subject)
		}
	}
	for _, role := range []cluster.Role{cluster.RoleServer, "", "king"} {
		if _, err := NewNodeKeys(role); err == nil {
			t.Errorf("role %q got keys to ask with", role)
		}
	}
}

// A worker that joins has the same files as one that was given them: in path
// and mode, and in what each certificate says.
func TestJoinedWorkerIsLikeAnyOther(t *testing.T) {
	s, j := newTestSet(t), newJoining(t)
	files, err := j.keys.Files(j.spec, j.node, j.sign(t, s), s.Trust())
	if err != nil {
		t.Fatal(err)
	}
	type face struct {
		Path  string
		Mode  fs.FileMode
		Certs []description
		Ends  []string
	}
	faces := func(files []File) []face {
		var all []face
		for _, f := range files {
			it := face{Path: f.Path, Mode: f.Mode}
			for _, cert := range certificates(t, f) {
				it.Certs = append(it.Certs, describe(cert))
				it.Ends = append(it.Ends, cert.Issuer.CommonName+" "+cert.NotBefore.String()+" "+cert.NotAfter.String())
			}
			all = append(all, it)
		}
		return all
	}
	given, err := s.NodeFiles(j.spec, j.node, testNow)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(faces(given), faces(files)); diff != "" {
		t.Errorf("files (-given +joined):\n%s", diff)
	}
	byPath := map[string]File{}
	for _, f := range files {
		byPath[f.Path] = f
	}
	for path, key := range j.keys {
		pair := filePair(byPath, path)
		if strings.HasSuffix(path, ".conf") {
			pair = configPair(t, byPath, path)
		}
		loaded, err := tls.X509KeyPair(pair.Cert, pair.Key)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		if !key.Equal(loaded.PrivateKey) {
			t.Errorf("%s has another key", path)
		}
		by := s.Cluster
		if path == "pki/agent" {
			by = s.Agents
		}
		verifyLeaf(t, path, loaded.Leaf, by.cert)
	}
	for name, ca := range map[string][]byte{"pki/ca.crt": s.Cluster.pair.Cert, "pki/agent-ca.crt": s.Agents.pair.Cert} {
		if !bytes.Equal(byPath[name].Data, ca) {
			t.Errorf("%s is not the authority's certificate", name)
		}
	}
}

func request(t testing.TB, key crypto.Signer, change func(*x509.CertificateRequest)) []byte {
	t.Helper()
	template := &x509.CertificateRequest{}
	change(template)
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		t.Fatal(err)
	}
	return encode(blockRequest, der)
}

func TestSignRequestsRefuses(t *testing.T) {
	s, j := newTestSet(t), newJoining(t)
	good := j.requests["pki/kubelet"]
	asking := func(change func(*x509.CertificateRequest)) []byte { return request(t, j.keys["pki/kubelet"], change) }
	same := func(*x509.CertificateRequest) {}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	challenge := func(r *x509.CertificateRequest) {
		//nolint:staticcheck // SA1019: deprecated, but the only way to make a request with an attribute
		r.Attributes = []pkix.AttributeTypeAndValueSET{{
			Type:  asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 7},
			Value: [][]pkix.AttributeTypeAndValue{{{Type: asn1.ObjectIdentifier{1, 2, 3}, Value: "x"}}},
		}}
	}
	usage := func(r *x509.CertificateRequest) {
		r.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 15}, Value: []byte{3, 2, 0, 4}}}
	}
	for name, test := range map[string]struct {
		request []byte
		want    string
	}{
		"nothing":       {nil, "no PEM block"},
		"too large":     {append(bytes.Repeat([]byte("\n"), 8<<10), good...), "at most 8192"},
		"two":           {append(bytes.Clone(good), good...), "more than one"},
		"a certificate": {s.Cluster.pair.Cert, `is a "CERTIFICATE"`},
		"a key":         {s.Cluster.pair.Key, `is a "PRIVATE KEY"`},
		"damaged":       {encode(blockRequest, []byte("x")), "cannot read it"},
		"other curve":   {request(t, p384, same), "not ECDSA P-256"},
		"RSA":           {request(t, rsaKey, same), "its key is RSA, and not ECDSA P-256"},
		"Ed25519":       {request(t, edKey, same), "not ECDSA P-256"},
		"key of another": {
			stolen(t, good, j.requests["kubelet.conf"]), "not signed by its own key",
		},
		"other hash": {
			asking(func(r *x509.CertificateRequest) { r.SignatureAlgorithm = x509.ECDSAWithSHA512 }), "signed with ECDSA-SHA512",
		},
		"subject": {
			asking(func(r *x509.CertificateRequest) { r.Subject = pkix.Name{Organization: []string{"system:masters"}} }), "a subject",
		},
		"names":     {asking(func(r *x509.CertificateRequest) { r.DNSNames = []string{"cp1"} }), "DNS names"},
		"addresses": {asking(func(r *x509.CertificateRequest) { r.IPAddresses = []net.IP{net.IPv6loopback} }), "IP addresses"},
		"mail":      {asking(func(r *x509.CertificateRequest) { r.EmailAddresses = []string{"a@b"} }), "e-mail addresses"},
		"URI":       {asking(func(r *x509.CertificateRequest) { r.URIs = []*url.URL{{Scheme: "spiffe", Host: "x"}} }), "URIs"},
		"key usage": {asking(usage), "extensions"},
		"attribute": {asking(challenge), "attributes"},
		"same key":  {request(t, j.keys["kubelet.conf"], same), "kubelet.conf and pki/kubelet have the same key"},
	} {
		t.Run(name, func(t *testing.T) {
			requests := maps.Clone(j.requests)
			requests["pki/kubelet"] = test.request
			certs, err := s.SignRequests(j.spec, j.node, requests, testNow)
			if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), "pki/kubelet") || certs != nil {
				t.Errorf("error %v, want one with pki/kubelet and %q", err, test.want)
			}
		})
	}
}

// stolen is the request of one key with the signature of another.
func stolen(t testing.TB, body, signature []byte) []byte {
	t.Helper()
	type parts struct {
		Body, Algorithm asn1.RawValue
		Signature       asn1.BitString
	}
	var a, b parts
	for data, to := range map[*parts][]byte{&a: body, &b: signature} {
		block, _ := pem.Decode(to)
		if _, err := asn1.Unmarshal(block.Bytes, data); err != nil {
			t.Fatal(err)
		}
	}
	a.Signature = b.Signature
	der, err := asn1.Marshal(a)
	if err != nil {
		t.Fatal(err)
	}
	return encode(blockRequest, der)
}

func TestSignRequestsGoesByThePlan(t *testing.T) {
	s, j := newTestSet(t), newJoining(t)
	for name, test := range map[string]struct {
		change func(*joining)
		want   string
	}{
		"one less":       {func(j *joining) { delete(j.requests, "pki/agent") }, "pki/agent is missing"},
		"none":           {func(j *joining) { j.requests = nil }, "is missing"},
		"one more":       {func(j *joining) { j.requests["admin.conf"] = j.requests["pki/agent"] }, `"admin.conf" is nothing that such a node has`},
		"a server":       {func(j *joining) { j.node = j.spec.Spec.Nodes[0] }, "only nodes with the role worker, etcd or balancer ask"},
		"unknown node":   {func(j *joining) { j.node.Name = "w9" }, "no such node"},
		"other's server": {func(j *joining) { j.node.Role = cluster.RoleServer }, "was asked for"},
		"other address":  {func(j *joining) { j.node.Address = "198.18.0.11" }, "was asked for"},
	} {
		t.Run(name, func(t *testing.T) {
			changed := j
			changed.requests = maps.Clone(j.requests)
			test.change(&changed)
			certs, err := s.SignRequests(changed.spec, changed.node, changed.requests, testNow)
			if err == nil || !strings.Contains(err.Error(), test.want) || certs != nil {
				t.Errorf("error %v, want one with %q", err, test.want)
			}
		})
	}
	if _, err := s.SignRequests(j.spec, j.node, j.requests, s.Cluster.NotAfter()); !errors.Is(err, ErrExpired) {
		t.Errorf("after the authority's end: %v, want ErrExpired", err)
	}
}

func TestFilesRefusesWrongCertificates(t *testing.T) {
	s, other, j := newTestSet(t), newTestSet(t), newJoining(t)
	certs := j.sign(t, s)
	forKey := func(by *Authority, path string, change func(*Request)) []byte {
		p, err := newPlan(j.spec, j.node)
		if err != nil {
			t.Fatal(err)
		}
		items := p.items()
		req := items[slices.IndexFunc(items, func(i item) bool { return i.path == path })].req.lasting(testNow, day)
		change(&req)
		cert, err := by.issueTo(&j.keys[path].PublicKey, req)
		if err != nil {
			t.Fatal(err)
		}
		return cert
	}
	same := func(*Request) {}
	type change map[string][]byte
	for name, test := range map[string]struct {
		change change
		trust  Trust
		want   string
	}{
		"swapped":         {change{"pki/kubelet": certs["kubelet.conf"], "kubelet.conf": certs["pki/kubelet"]}, s.Trust(), "another key"},
		"two in one":      {change{"pki/kubelet": append(bytes.Clone(certs["pki/kubelet"]), certs["pki/agent"]...)}, s.Trust(), "more than one"},
		"not one":         {change{"pki/kubelet": []byte("x")}, s.Trust(), "no PEM block"},
		"too many":        {change{"admin.conf": certs["pki/agent"]}, s.Trust(), "admin.conf"},
		"wrong authority": {change{"pki/agent": forKey(s.Cluster, "pki/agent", same)}, s.Trust(), `"kubernetes" instead of "kuorum-agents"`},
		"namesake":        {change{"pki/kubelet": forKey(other.Cluster, "pki/kubelet", same)}, s.Trust(), `not of the authority "kubernetes"`},
		"more rights": {
			change{"kubelet.conf": forKey(s.Cluster, "kubelet.conf", func(r *Request) { r.Organizations = []string{"system:masters"} })},
			s.Trust(), "organizations",
		},
		"other name":       {change{"pki/agent": forKey(s.Agents, "pki/agent", func(r *Request) { r.CommonName = "x" })}, s.Trust(), "common name"},
		"other trust":      {nil, other.Trust(), "not of the authority"},
		"mixed trust":      {nil, Trust{Cluster: s.Trust().Cluster, Agents: other.Trust().Agents}, `not of the authority "kuorum-agents"`},
		"one for both":     {nil, Trust{Cluster: s.Trust().Cluster, Agents: s.Trust().Cluster}, "the same key"},
		"no cluster":       {nil, Trust{Agents: s.Trust().Agents}, "the cluster's authority"},
		"leaf for agents'": {nil, Trust{Cluster: s.Trust().Cluster, Agents: certs["pki/agent"]}, "may not sign"},
	} {
		t.Run(name, func(t *testing.T) {
			changed := maps.Clone(certs)
			maps.Copy(changed, test.change)
			files, err := j.keys.Files(j.spec, j.node, changed, test.trust)
			if err == nil || !strings.Contains(err.Error(), test.want) || files != nil {
				t.Errorf("error %v, want one with %q", err, test.want)
			}
		})
	}
	missing, fewer := maps.Clone(certs), maps.Clone(j.keys)
	delete(missing, "pki/agent")
	delete(fewer, "pki/agent")
	if _, err := j.keys.Files(j.spec, j.node, missing, s.Trust()); err == nil || !strings.Contains(err.Error(), "certificates: pki/agent is missing") {
		t.Errorf("without a certificate: %v", err)
	}
	if _, err := fewer.Files(j.spec, j.node, certs, s.Trust()); err == nil || !strings.Contains(err.Error(), "keys: pki/agent is missing") {
		t.Errorf("without a key: %v", err)
	}
	if _, err := j.keys.Files(j.spec, j.spec.Spec.Nodes[0], certs, s.Trust()); err == nil {
		t.Error("a server was made of a worker's keys")
	}
}

// FuzzParseRequest checks that no input panics, and that nothing but a bare
// request is taken.
func FuzzParseRequest(f *testing.F) {
	for _, request := range newJoining(f).requests {
		f.Add(request)
	}
	f.Add(encode(blockRequest, []byte{0x30, 0x80}))
	f.Fuzz(func(t *testing.T, data []byte) {
		key, err := parseRequest(data)
		if err == nil && (key.Curve != elliptic.P256() || len(data) > maxRequest) {
			t.Error("a wrong request was taken")
		}
	})
}
