package etcd

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"kuorum/internal/cluster"
	"kuorum/internal/pki"
)

const day = 24 * time.Hour

func newAuthority(t *testing.T, now time.Time) *pki.Authority {
	t.Helper()
	ca, err := pki.NewAuthority("etcd-ca", now.Add(-10*day), 20*day)
	mustDo(t, err)
	return ca
}

// issue makes a certificate for both ends that is valid for three days, until
// until.
func issue(t *testing.T, ca *pki.Authority, s *server, until time.Time) pki.Pair {
	t.Helper()
	pair, err := ca.Issue(pki.Request{
		CommonName: "m1", IPs: []netip.Addr{ipOf(t, s)},
		Server: true, Client: true, NotBefore: until.Add(-3 * day), NotAfter: until,
	})
	mustDo(t, err)
	return pair
}

func ipOf(t *testing.T, s *server) netip.Addr {
	t.Helper()
	u, err := url.Parse(s.client)
	mustDo(t, err)
	return netip.MustParseAddrPort(u.Host).Addr()
}

// secure lets the server take only clients with a certificate of ca.
func secure(t *testing.T, s *server, ca *pki.Authority, pair pki.Pair) {
	t.Helper()
	for name, data := range map[string][]byte{"ca.crt": ca.Pair().Cert, "s.crt": pair.Cert, "s.key": pair.Key} {
		mustDo(t, os.WriteFile(filepath.Join(s.dir, name), data, 0o600))
	}
	s.client = strings.Replace(s.client, "http:", "https:", 1)
	s.flags = []string{
		"--unsafe-no-fsync", "--client-cert-auth", "--trusted-ca-file=" + filepath.Join(s.dir, "ca.crt"),
		"--cert-file=" + filepath.Join(s.dir, "s.crt"), "--key-file=" + filepath.Join(s.dir, "s.key"),
	}
}

func clientConfig(t *testing.T, trust *pki.Authority, pairs ...pki.Pair) *tls.Config {
	t.Helper()
	config := &tls.Config{RootCAs: x509.NewCertPool(), MinVersion: tls.VersionTLS12}
	config.RootCAs.AppendCertsFromPEM(trust.Pair().Cert)
	for _, p := range pairs {
		certificate, err := tls.X509KeyPair(p.Cert, p.Key)
		mustDo(t, err)
		config.Certificates = append(config.Certificates, certificate)
	}
	return config
}

func TestCertificatesAreWantedAndNamed(t *testing.T) {
	t.Parallel()
	now := time.Now()
	ca, stranger := newAuthority(t, now), newAuthority(t, now)
	s := newServer(t, "m1")
	good := issue(t, ca, s, now.Add(day))
	yesterday := now.Add(-day)
	secure(t, s, ca, good)
	s.start(t, "new", s)

	c := dialTo(t, clientConfig(t, ca, good), s)
	waitFor(t, "etcd to take our certificate", func() error {
		if got := c.Status(within(t, time.Second)); got.Error != "" || got.Leader == "" {
			return fmt.Errorf("status is %+v", got)
		}
		return nil
	})
	_, err := c.Members(within(t, patience))
	mustDo(t, err)

	// By another way than its address it must still prove that.
	tunnel := Config{TLS: clientConfig(t, ca, good), Dial: func(ctx context.Context, address string) (net.Conn, error) {
		if address != ipOf(t, s).String()+":1" {
			return nil, fmt.Errorf("dialled %s", address)
		}
		return (&net.Dialer{}).DialContext(ctx, "tcp", strings.TrimPrefix(s.client, "https://"))
	}}
	tunnel.Endpoints = []string{"https://" + ipOf(t, s).String() + ":1"}
	if got := dialWith(t, tunnel).Status(within(t, patience)); got.Error != "" {
		t.Errorf("through a dialler: %s", got.Error)
	}
	tunnel.Endpoints = []string{"https://127.255.255.254:1"}
	tunnel.Dial = func(ctx context.Context, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", strings.TrimPrefix(s.client, "https://"))
	}
	if got := dialWith(t, tunnel).Status(within(t, patience)).Error; got != "its certificate is made out to somebody else" {
		t.Errorf("somebody else's endpoint: %q", got)
	}
	tunnel.Dial = func(context.Context, string) (net.Conn, error) { return nil, syscall.ECONNREFUSED }
	if got := dialWith(t, tunnel).Status(within(t, patience)).Error; !strings.HasPrefix(got, "connection refused") {
		t.Errorf("a dialler's error: %q", got)
	}

	for name, test := range map[string]struct {
		config *tls.Config
		says   string
	}{
		"no certificate":         {clientConfig(t, ca), "wants a client certificate|closed the connection: it may want a client certificate"},
		"expired certificate":    {clientConfig(t, ca, issue(t, ca, s, yesterday)), "refuses our certificate: it expired at " + yesterday.UTC().Format("2006-01-02T")},
		"somebody's certificate": {clientConfig(t, ca, issue(t, stranger, s, now.Add(day))), "refuses our certificate|closed the connection: it may refuse our certificate"},
		"trusts somebody else":   {clientConfig(t, stranger, good), "its certificate is of another authority"},
	} {
		for range 5 { // whatever of the refusal arrives first
			got := dialTo(t, test.config, s).Status(within(t, patience)).Error
			found := false
			for says := range strings.SplitSeq(test.says, "|") {
				found = found || strings.HasPrefix(got, says)
			}
			if !found {
				t.Errorf("%s: it says %q, want %q", name, got, test.says)
			}
		}
	}
}

func TestExpiredCertificateOfEtcdIsNamed(t *testing.T) {
	t.Parallel()
	now := time.Now()
	ca := newAuthority(t, now)
	s := newServer(t, "m1")
	yesterday := now.Add(-day)
	secure(t, s, ca, issue(t, ca, s, yesterday))
	s.start(t, "new", s)
	c := dialTo(t, clientConfig(t, ca, issue(t, ca, s, now.Add(day))), s)
	waitFor(t, "etcd to listen", func() error {
		got := c.Status(within(t, time.Second)).Error
		if !strings.Contains(got, "its certificate has expired: ") || !strings.Contains(got, " is after "+yesterday.UTC().Format("2006-01-02T")) {
			return fmt.Errorf("it says %q", got)
		}
		return nil
	})
	_, err := c.Members(within(t, patience))
	if exitCode(err) != cluster.ExitNoQuorum || !strings.Contains(err.Error(), "its certificate has expired") {
		t.Errorf("members: %v", err)
	}
}
