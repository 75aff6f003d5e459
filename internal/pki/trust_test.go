package pki

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"kuorum/internal/cluster"
)

// phases are the sets of a rotation from old to fresh, in their order.
func phases(t testing.TB, old *Set) (trust, sign, forget *Set) {
	t.Helper()
	fresh, err := old.Successor(testNow)
	if err != nil {
		t.Fatal(err)
	}
	return old.Trusting(fresh), fresh.Trusting(old), fresh.Alone()
}

// TestWhoTrustsWhomInARotation: each phase begins while others are still in the
// one before, and whoever is in one of the two is trusted by both.
func TestWhoTrustsWhomInARotation(t *testing.T) {
	old := newTestSet(t)
	trust, sign, forget := phases(t, old)
	sets := []struct {
		name string
		set  *Set
	}{{"before", old}, {"trust", trust}, {"sign", sign}, {"forget", forget}}
	// Whose certificates (columns) are accepted by whom (rows).
	want := map[string]string{
		"before": "before trust", "trust": "before trust sign forget", "sign": "before trust sign forget", "forget": "sign forget",
	}
	for _, verifier := range sets {
		accepted := map[string][]string{}
		for _, holder := range sets {
			files := nodeFiles(t, holder.set, "cp1", testNow)
			for path, by := range map[string]*Authority{
				"pki/apiserver.crt": verifier.set.Cluster, "pki/agent.crt": verifier.set.Agents,
				"pki/etcd/peer.crt": verifier.set.Etcd, "pki/front-proxy-client.crt": verifier.set.FrontProxy,
			} {
				pool := x509.NewCertPool()
				pool.AppendCertsFromPEM(by.Bundle())
				leaf := mustParse(t, files[path].Data)
				_, err := leaf.Verify(x509.VerifyOptions{Roots: pool, CurrentTime: testNow, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
				if err == nil {
					accepted[path] = append(accepted[path], holder.name)
				}
			}
		}
		for path, names := range accepted {
			if got := strings.Join(names, " "); got != want[verifier.name] {
				t.Errorf("%s: %s of %q is accepted, want of %q", verifier.name, path, got, want[verifier.name])
			}
		}
		if len(accepted) != 4 {
			t.Errorf("%s accepts certificates of %d authorities only", verifier.name, len(accepted))
		}
	}
}

// TestAgentsTalkThroughARotation: every two agents whose phases meet shake
// hands, whoever calls.
func TestAgentsTalkThroughARotation(t *testing.T) {
	old := newTestSet(t)
	trust, sign, forget := phases(t, old)
	sets := []*Set{old, trust, sign, forget}
	names := []string{"before", "trust", "sign", "forget"}
	for i, a := range sets {
		for j, b := range sets {
			files, others := nodeFiles(t, a, "cp1", testNow), nodeFiles(t, b, "w1", testNow)
			server, err := ServerTLS(files["pki/agent-ca.crt"].Data, filePair(files, "pki/agent"))
			if err != nil {
				t.Fatal(err)
			}
			client, err := ClientTLS(others["pki/agent-ca.crt"].Data, filePair(others, "pki/agent"), "cp1")
			if err != nil {
				t.Fatal(err)
			}
			server.Time, client.Time = func() time.Time { return testNow }, func() time.Time { return testNow }
			serverErr, clientErr := handshake(t, server, insist(client))
			apart := i-j > 1 || j-i > 1
			if met := serverErr == nil && clientErr == nil; met == apart {
				t.Errorf("an agent in phase %s, called by one in %s: %v, %v", names[i], names[j], serverErr, clientErr)
			}
		}
	}
}

// TestPinsInARotation: a token's pin is of the authority that signs, and counts
// as long as that one does.
func TestPinsInARotation(t *testing.T) {
	old := newTestSet(t)
	trust, sign, fresh := phases(t, old)
	for _, test := range []struct {
		name     string
		set      *Set
		old, new bool
	}{{"before", old, true, false}, {"trust", trust, true, false}, {"sign", sign, false, true}, {"forget", fresh, false, true}} {
		files := nodeFiles(t, test.set, "cp1", testNow)
		pin, err := Pin(files["pki/agent-ca.crt"].Data)
		if err != nil || (pin == mustPin(t, old.Agents)) != test.old || (pin == mustPin(t, fresh.Agents)) != test.new {
			t.Errorf("%s: tokens have the pin %s, %v", test.name, pin, err)
		}
		for _, c := range []struct {
			by   *Authority
			good bool
		}{{old.Agents, test.old}, {fresh.Agents, test.new}} {
			server, err := ServerTLS(files["pki/agent-ca.crt"].Data, filePair(files, "pki/agent"))
			if err != nil {
				t.Fatal(err)
			}
			client, err := JoinTLS(mustPin(t, c.by), "cp1")
			if err != nil {
				t.Fatal(err)
			}
			server.Time, client.Time = func() time.Time { return testNow }, func() time.Time { return testNow }
			if _, clientErr := handshake(t, server, client); (clientErr == nil) != c.good {
				t.Errorf("%s: a machine with the pin of %s: %v", test.name, mustPin(t, c.by), clientErr)
			}
		}
	}
}

// TestForgedChain: a certificate of somebody else is not better for being sent
// beside the authority that has the pin.
func TestForgedChain(t *testing.T) {
	s, forger := newTestSet(t), newTestSet(t)
	files := nodeFiles(t, forger, "cp1", testNow)
	pair := filePair(files, "pki/agent")
	cert, err := tls.X509KeyPair(pair.Cert, pair.Key)
	if err != nil {
		t.Fatal(err)
	}
	cert.Certificate = append(cert.Certificate, forger.Agents.cert.Raw, s.Agents.cert.Raw)
	client, err := JoinTLS(mustPin(t, s.Agents), "cp1")
	if err != nil {
		t.Fatal(err)
	}
	client.Time = func() time.Time { return testNow }
	server := &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}}
	if _, clientErr := handshake(t, server, client); clientErr == nil {
		t.Error("a forged chain is taken")
	}
}

// TestRenewInARotation: in each phase Renew asks for what that phase changes,
// and for nothing after it was written.
func TestRenewInARotation(t *testing.T) {
	old := newTestSet(t)
	trust, sign, forget := phases(t, old)
	have := contents(nodeFiles(t, old, "cp1", testNow))
	for _, test := range []struct {
		name string
		set  *Set
		want []string
	}{
		{"trust", trust, []string{"admin.conf"}}, // holds the authority
		{"sign", sign, agedPaths()},
		{"forget", forget, []string{"admin.conf"}},
	} {
		for _, f := range test.set.AuthorityFiles() {
			have[f.Path] = f.Data
		}
		parsed, err := ParseSet(cutPrefix(have, "pki/"))
		if err != nil {
			t.Fatalf("%s: %v", test.name, err)
		}
		got := renew(t, parsed, testSpec(), have, testNow)
		if diff := cmp.Diff(test.want, paths(got)); diff != "" {
			t.Errorf("%s renews (-want +got):\n%s", test.name, diff)
		}
		for _, f := range got {
			have[f.Path] = f.Data
		}
		if again := renew(t, parsed, testSpec(), have, testNow); again != nil {
			t.Errorf("%s renews again %q", test.name, paths(again))
		}
		if _, err := Kubeconfig("https://127.0.0.1:6443", "x", filePair(nodeFiles(t, test.set, "cp1", testNow), "pki/endpoint"), test.set.Cluster.Bundle()); err != nil {
			t.Errorf("%s: %v", test.name, err)
		}
	}
}

func cutPrefix(files map[string][]byte, prefix string) map[string][]byte {
	cut := map[string][]byte{}
	for path, data := range files {
		cut[strings.TrimPrefix(path, prefix)] = data
	}
	return cut
}

// TestTrustedSetRoundTrip: files bring back who signs and who is trusted, also
// while a key was replaced and its bundle was not.
func TestTrustedSetRoundTrip(t *testing.T) {
	old := newTestSet(t)
	trust, sign, fresh := phases(t, old)
	for name, want := range map[string]*Set{"before": old, "trust": trust, "sign": sign} {
		got, err := ParseSet(want.Files())
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if diff := cmp.Diff(want.Files(), got.Files()); diff != "" {
			t.Errorf("%s comes back as another (-want +got):\n%s", name, diff)
		}
	}
	between := trust.Files()
	keys := sign.Files()
	for path := range between {
		if strings.HasSuffix(path, "ca.key") {
			between[path] = keys[path]
		}
	}
	got, err := ParseSet(between)
	if err != nil || !got.SameSigners(fresh) || got.SameSigners(old) {
		t.Errorf("new keys beside bundles that begin with the old: %v", err)
	}
	if diff := cmp.Diff(sign.Files(), got.Files()); diff != "" {
		t.Errorf("they are not put in order (-want +got):\n%s", diff)
	}
	if again := trust.Trusting(fresh); !bytes.Equal(again.Cluster.Bundle(), trust.Cluster.Bundle()) {
		t.Error("trusting twice is not trusting once")
	}
	if !bytes.Equal(fresh.ServiceAccount.Private, old.ServiceAccount.Private) || fresh.EncryptionKey != old.EncryptionKey {
		t.Error("the keys of tokens and secrets are others")
	}
}

// TestSignerStandsAlone: the controller-manager refuses a bundle to sign with.
func TestSignerStandsAlone(t *testing.T) {
	old := newTestSet(t)
	trust, sign, forget := phases(t, old)
	for name, test := range map[string]struct {
		set  *Set
		want []byte
	}{"before": {old, nil}, "trust": {trust, old.Cluster.Pair().Cert}, "sign": {sign, sign.Cluster.Pair().Cert}, "forget": {forget, nil}} {
		files := nodeFiles(t, test.set, "cp1", testNow)
		if got := files["pki/"+fileSigner].Data; !bytes.Equal(got, test.want) {
			t.Errorf("%s: it has %q", name, got)
		}
		listed := map[string][]byte{}
		for _, f := range test.set.AuthorityFiles() {
			listed[f.Path] = f.Data
		}
		whole := map[string][]byte{}
		for path := range listed {
			whole[path] = files[path].Data
		}
		if diff := cmp.Diff(whole, listed); diff != "" {
			t.Errorf("%s: a node has others (-node +authority files):\n%s", name, diff)
		}
		if worker := nodeFiles(t, test.set, "w1", testNow); worker["pki/"+fileSigner].Data != nil {
			t.Errorf("%s: a worker has the signer", name)
		}
	}
}

// TestLeafPaths are all files of a node with a certificate that is no authority's.
func TestLeafPaths(t *testing.T) {
	s := newTestSet(t)
	for name, role := range map[string]cluster.Role{"cp1": cluster.RoleServer, "w1": cluster.RoleWorker} {
		var want []string
		for path, f := range nodeFiles(t, s, name, testNow) {
			if slices.ContainsFunc(certificates(t, f), func(cert *x509.Certificate) bool { return !cert.IsCA }) {
				want = append(want, path)
			}
		}
		slices.Sort(want)
		if diff := cmp.Diff(want, slices.Sorted(slices.Values(LeafPaths(role)))); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	var want []string
	for path, f := range apartFiles(t, s, "e1") {
		if slices.ContainsFunc(certificates(t, f), func(cert *x509.Certificate) bool { return !cert.IsCA }) {
			want = append(want, path)
		}
	}
	slices.Sort(want)
	if diff := cmp.Diff(want, slices.Sorted(slices.Values(LeafPaths(cluster.RoleEtcd)))); diff != "" {
		t.Errorf("e1 (-want +got):\n%s", diff)
	}
}

func TestParseBundleRefuses(t *testing.T) {
	s, other := newTestSet(t), newTestSet(t)
	one, two := s.Cluster.Pair(), other.Cluster.Pair()
	leaf := filePair(nodeFiles(t, s, "cp1", testNow), "pki/kubelet").Cert
	for name, bundle := range map[string][]byte{
		"nothing": nil, "text": []byte("x"), "text after": append(slices.Clone(one.Cert), "x"...),
		"twice": slices.Concat(one.Cert, one.Cert), "a leaf": slices.Concat(one.Cert, leaf), "a key": slices.Concat(one.Cert, one.Key),
		"torn": append(slices.Clone(one.Cert), two.Cert[:100]...),
	} {
		if got, err := Authorities(bundle); err == nil {
			t.Errorf("%s is a bundle: %q", name, got)
		}
		if _, err := ParseTrusted(bundle, one.Key); err == nil {
			t.Errorf("%s is an authority", name)
		}
	}
	if _, err := ParseTrusted(slices.Concat(one.Cert, two.Cert), s.Etcd.Pair().Key); err == nil {
		t.Error("the key of nobody in the bundle is taken")
	}
	keys, err := Authorities(slices.Concat(one.Cert, two.Cert))
	if diff := cmp.Diff([]string{s.Signers()[fileCACert], other.Signers()[fileCACert]}, keys); err != nil || diff != "" {
		t.Errorf("%v (-want +got)\n%s", err, diff)
	}
	// An authority in two places, though in one of them it does not sign.
	files := s.Files()
	files[fileEtcdCert] = slices.Concat(files[fileEtcdCert], files[fileCACert])
	if _, err := ParseSet(files); err == nil {
		t.Error("etcd trusts the cluster's authority")
	}
	if got := slices.Sorted(maps.Keys(s.Signers())); !slices.Equal(got, []string{fileAgentCert, fileCACert, fileEtcdCert, fileFrontProxyCert}) {
		t.Errorf("the signers are %q", got)
	}
}

// TestWorkerInARotation: a worker takes what a server in any phase signs, with
// all that the server trusts.
func TestWorkerInARotation(t *testing.T) {
	old := newTestSet(t)
	trust, sign, forget := phases(t, old)
	for name, set := range map[string]*Set{"trust": trust, "sign": sign, "forget": forget} {
		j := newJoining(t)
		files, err := j.keys.Files(testSpec(), j.node, j.sign(t, set), set.Trust())
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for _, f := range files {
			if f.Path == "pki/ca.crt" && !bytes.Equal(f.Data, set.Cluster.Bundle()) || f.Path == "pki/agent-ca.crt" && !bytes.Equal(f.Data, set.Agents.Bundle()) {
				t.Errorf("%s: the worker trusts others", name)
			}
		}
	}
	j := newJoining(t)
	if _, err := j.keys.Files(testSpec(), j.node, j.sign(t, old), sign.Trust()); err == nil {
		t.Error("certificates of an authority that signs no more are taken")
	}
}

// TestEtcdNodeInARotation: as a worker, with etcd's authority in place of the
// cluster's; one of etcd's that signs no more is not taken.
func TestEtcdNodeInARotation(t *testing.T) {
	old, spec := newTestSet(t), apartSpec()
	trust, sign, forget := phases(t, old)
	node, _ := spec.Node("e1")
	files := func(set *Set, by Trust) (map[string][]byte, error) {
		keys, err := NewNodeKeys(node.Role)
		if err != nil {
			t.Fatal(err)
		}
		requests, err := keys.Requests()
		if err != nil {
			t.Fatal(err)
		}
		certs, err := set.SignRequests(spec, node, requests, testNow)
		if err != nil {
			t.Fatal(err)
		}
		made, err := keys.Files(spec, node, certs, by)
		byPath := map[string][]byte{}
		for _, f := range made {
			byPath[f.Path] = f.Data
		}
		return byPath, err
	}
	for name, set := range map[string]*Set{"trust": trust, "sign": sign, "forget": forget} {
		got, err := files(set, set.Trust())
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if diff := cmp.Diff(etcdPaths, slices.Sorted(maps.Keys(got))); diff != "" {
			t.Errorf("%s: files (-want +got):\n%s", name, diff)
		}
		if !bytes.Equal(got["pki/etcd/ca.crt"], set.Etcd.Bundle()) || !bytes.Equal(got["pki/agent-ca.crt"], set.Agents.Bundle()) {
			t.Errorf("%s: the etcd node trusts others", name)
		}
	}
	mixed := sign.Trust()
	mixed.Etcd = trust.Trust().Etcd // the old one signs
	if _, err := files(sign, mixed); err == nil {
		t.Error("certificates of an authority that does not sign are taken")
	}
	shared := sign.Trust()
	shared.Etcd = slices.Concat(shared.Etcd, old.Agents.Bundle())
	if _, err := files(sign, shared); err == nil {
		t.Error("etcd trusts an authority of the agents")
	}
}
