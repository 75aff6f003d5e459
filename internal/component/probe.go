package component

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
)

// httpReady probes url: status 200 is ready. Connections are not kept, so
// that each probe is a fresh look at the program.
func httpReady(url string) func(context.Context) error {
	return httpProbe(url, &http.Transport{DisableKeepAlives: true, Proxy: nil})
}

// httpsReady is httpReady over TLS, the server's certificate checked against
// the authority in the file ca.
func httpsReady(url, ca string) func(context.Context) error {
	return func(ctx context.Context) error {
		pem, err := os.ReadFile(ca)
		if err != nil {
			return fmt.Errorf("cannot read the authority: %w", err)
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem) {
			return fmt.Errorf("cannot read the authority: %s holds no certificate", ca)
		}
		return httpProbe(url, &http.Transport{
			DisableKeepAlives: true,
			TLSClientConfig:   &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12},
		})(ctx)
	}
}

func httpProbe(url string, transport *http.Transport) func(context.Context) error {
	client := &http.Client{Transport: transport}
	return func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("%s: %s: %s", url, resp.Status, failing(string(body)))
		}
		return err
	}
}

// failing keeps the lines of a Kubernetes /readyz answer that say what fails.
func failing(body string) string {
	var lines []string
	for line := range strings.Lines(body) {
		if strings.HasPrefix(line, "[-]") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	if lines == nil {
		return strings.TrimSpace(body)
	}
	return strings.Join(lines, ", ")
}

// socketReady probes that somebody accepts connections at the unix socket.
func socketReady(path string) func(context.Context) error {
	return func(ctx context.Context) error {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
		if err != nil {
			return err
		}
		return conn.Close()
	}
}

// both is ready when a and b are.
func both(a, b func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error { return errors.Join(a(ctx), b(ctx)) }
}

// fileReady probes that path exists.
func fileReady(path string) func(context.Context) error {
	return func(context.Context) error {
		_, err := os.Stat(path)
		return err
	}
}
