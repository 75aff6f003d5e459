package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func mustPin(t testing.TB, a *Authority) string {
	t.Helper()
	pin, err := Pin(a.pair.Cert)
	if err != nil {
		t.Fatal(err)
	}
	return pin
}

func TestPin(t *testing.T) {
	s := newTestSet(t)
	der, err := x509.MarshalPKIXPublicKey(s.Agents.key.Public())
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(der)
	if got, want := mustPin(t, s.Agents), "sha256:"+hex.EncodeToString(sum[:]); got != want {
		t.Errorf("the pin is %s, want %s", got, want)
	}
	leaf, err := s.AgentClientPair("lab", testNow)
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct{ data, want string }{
		"nothing":   {"", "no PEM block"},
		"key":       {string(s.Agents.pair.Key), "PRIVATE KEY"},
		"leaf":      {string(leaf.Cert), "may not sign"},
		"changed":   {string(renamedTo(t, s.Agents, "kuorum-hacker")), "damaged"},
		"one twice": {string(s.Agents.pair.Cert) + string(s.Agents.pair.Cert), "twice"},
	} {
		if pin, err := Pin([]byte(test.data)); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %q and %v, want an error with %q", name, pin, err, test.want)
		}
	}
}

// renamedTo is an authority's certificate with its key and another name, which
// somebody without the private key has made.
func renamedTo(t *testing.T, a *Authority, name string) []byte {
	t.Helper()
	stranger, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, SerialNumber: big.NewInt(1),
		NotBefore: testNow.Add(-time.Hour), NotAfter: testNow.Add(36500 * day),
		KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, a.key.Public(), stranger)
	if err != nil {
		t.Fatal(err)
	}
	return encode(blockCertificate, der)
}

func TestJoinTLS(t *testing.T) {
	s, other := newTestSet(t), newTestSet(t)
	cp1 := nodeFiles(t, s, "cp1", testNow)
	agent := filePair(cp1, "pki/agent")
	issue := func(by *Authority, change func(*Request)) Pair {
		req := Request{CommonName: "kuorum:agent:cp1", Organizations: []string{GroupAgents}, Names: []string{"cp1"}, Server: true}
		change(&req)
		pair, err := by.issueFor(testNow, req)
		if err != nil {
			t.Fatal(err)
		}
		return pair
	}
	pin, otherPin := mustPin(t, s.Agents), mustPin(t, other.Agents)
	same := func(*Request) {}
	ca, otherCA := s.Agents.pair.Cert, other.Agents.pair.Cert
	tests := map[string]struct {
		server Pair
		chain  [][]byte // what is sent after the server's own certificate
		pin    string
		dialed string
		now    time.Time
		want   string // in the client's error; empty if it takes the server
	}{
		"by name":           {agent, [][]byte{ca}, pin, "cp1", testNow, ""},
		"by address":        {agent, [][]byte{ca}, pin, "198.18.0.11", testNow, ""},
		"among others":      {agent, [][]byte{otherCA, ca}, pin, "cp1", testNow, ""},
		"wrong pin":         {agent, [][]byte{ca}, otherPin, "cp1", testNow, "has the pin " + pin + ", but " + otherPin + " was given"},
		"cluster's pin":     {agent, [][]byte{ca}, mustPin(t, s.Cluster), "cp1", testNow, "was given"},
		"no authority":      {agent, nil, pin, "cp1", testNow, "does not send"},
		"other name":        {agent, [][]byte{ca}, pin, "cp2", testNow, "certificate is valid for"},
		"other address":     {agent, [][]byte{ca}, pin, "198.18.0.12", testNow, "certificate is valid for"},
		"pinned stranger":   {issue(other.Agents, same), [][]byte{ca}, pin, "cp1", testNow, "unknown authority"},
		"stranger and both": {issue(other.Agents, same), [][]byte{otherCA, ca}, pin, "cp1", testNow, "unknown authority"},
		"too late":          {agent, [][]byte{ca}, pin, "cp1", testNow.Add(366 * day), "expired"},
		"too early":         {agent, [][]byte{ca}, pin, "cp1", testNow.Add(-day), "not yet valid"},
		"altered authority": {agent, [][]byte{renamedTo(t, s.Agents, "kuorum-agents")}, pin, "cp1", testNow, "damaged"},
		"no agent": {
			issue(s.Agents, func(r *Request) { r.Organizations = nil }), [][]byte{ca}, pin, "cp1", testNow, "is not an agent",
		},
		"admin": {
			issue(s.Agents, func(r *Request) { r.Organizations = []string{GroupAdmins} }),
			[][]byte{ca},
			pin, "cp1", testNow, "is not an agent",
		},
		"client's": {
			issue(s.Agents, func(r *Request) { r.Server, r.Client = false, true }),
			[][]byte{ca},
			pin, "cp1", testNow, "incompatible key usage",
		},
		"authority itself": {s.Agents.pair, [][]byte{ca}, pin, "cp1", testNow, "certificate"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			pair, err := tls.X509KeyPair(test.server.Cert, test.server.Key)
			if err != nil {
				t.Fatal(err)
			}
			for _, cert := range test.chain {
				pair.Certificate = append(pair.Certificate, mustParse(t, cert).Raw)
			}
			client, err := JoinTLS(test.pin, test.dialed)
			if err != nil {
				t.Fatal(err)
			}
			client.Time = func() time.Time { return test.now }
			_, err = handshake(t, &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS13}, client)
			if test.want == "" && err != nil {
				t.Errorf("the client refused: %v", err)
			}
			if test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("the client's error is %v, want one with %q", err, test.want)
			}
		})
	}
}

// What ServerTLS sends is enough for a machine that has nothing but the pin,
// over HTTP as well, where the transport works with copies of the settings.
func TestJoinOverHTTP(t *testing.T) {
	s := newTestSet(t)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, _, ok := Peer(r.TLS); ok {
			t.Error("a joining machine is taken for a member")
		}
		w.WriteHeader(http.StatusTeapot)
	}))
	server.TLS = atTestNow(t)(ServerTLS(s.Agents.pair.Cert, filePair(nodeFiles(t, s, "cp1", testNow), "pki/agent")))
	server.StartTLS()
	defer server.Close()
	for serverName, want := range map[string]string{"127.0.0.1": "", "198.18.0.11": "", "198.18.0.12": "not 198.18.0.12"} {
		transport := &http.Transport{TLSClientConfig: atTestNow(t)(JoinTLS(mustPin(t, s.Agents), serverName))}
		resp, err := (&http.Client{Transport: transport}).Get(server.URL)
		transport.CloseIdleConnections()
		switch {
		case err == nil && resp.Body.Close() == nil:
			if want != "" || resp.StatusCode != http.StatusTeapot {
				t.Errorf("%s: answered %s", serverName, resp.Status)
			}
		case want == "" || !strings.Contains(err.Error(), want):
			t.Errorf("%s: %v, want %q", serverName, err, want)
		}
	}
}

func TestJoinTLSRefusesBadInput(t *testing.T) {
	pin := mustPin(t, newTestSet(t).Agents)
	if _, err := JoinTLS(pin, ""); err == nil {
		t.Error("nobody's name was taken")
	}
	for name, bad := range map[string]string{
		"nothing": "", "no hash": "sha256:", "no prefix": strings.TrimPrefix(pin, "sha256:"), "short": pin[:70],
		"other hash": "sha512" + pin[6:], "not hex": pin[:70] + "x", "upper case": "sha256:" + strings.Repeat("A", 64),
	} {
		if _, err := JoinTLS(bad, "cp1"); err == nil || !strings.Contains(err.Error(), "64 hexadecimal digits") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
