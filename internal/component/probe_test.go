package component

import (
	"context"
	"encoding/pem"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	authorities "kuorum/internal/pki"
)

func TestHTTPReady(t *testing.T) {
	code, body := http.StatusOK, "ok"
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(code)
		_, _ = w.Write([]byte(body)) // the probe may have gone
	}))
	defer server.Close()
	ready := httpReady(server.URL + "/readyz")
	if err := ready(t.Context()); err != nil {
		t.Errorf("a ready program: %v", err)
	}
	code, body = http.StatusInternalServerError, "[+]ping ok\n[-]etcd failed: reason withheld\n[+]log ok\n[-]poststart failed\nreadyz check failed\n"
	err := ready(t.Context())
	if err == nil || !strings.Contains(err.Error(), "500") || !strings.HasSuffix(err.Error(), "[-]etcd failed: reason withheld, [-]poststart failed") {
		t.Errorf("what fails must be named alone: %v", err)
	}
	code, body = http.StatusServiceUnavailable, "not yet\n"
	if err := ready(t.Context()); err == nil || !strings.HasSuffix(err.Error(), ": not yet") {
		t.Errorf("got %v", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := ready(ended); err == nil {
		t.Error("a probe went on after its context had ended")
	}
	server.Close()
	if err := ready(t.Context()); err == nil {
		t.Error("a program that is gone is ready")
	}
}

func TestHTTPSReady(t *testing.T) {
	server := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer server.Close()
	dir := t.TempDir()
	ca := filepath.Join(dir, "ca.crt")
	write := func(data []byte) {
		if err := os.WriteFile(ca, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ready := httpsReady(server.URL, ca)
	if err := ready(t.Context()); err == nil || !strings.Contains(err.Error(), "cannot read the authority") {
		t.Errorf("without an authority: %v", err)
	}
	write([]byte("no certificate"))
	if err := ready(t.Context()); err == nil || !strings.Contains(err.Error(), "holds no certificate") {
		t.Errorf("with a file of nonsense: %v", err)
	}
	write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}))
	if err := ready(t.Context()); err != nil {
		t.Errorf("with the right authority: %v", err)
	}
	foreign, err := authorities.NewSet(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(dir, "other.crt")
	if err := os.WriteFile(other, foreign.Cluster.Pair().Cert, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := httpsReady(server.URL, other)(t.Context()); err == nil {
		t.Error("a server of another authority is ready")
	}
}

func TestSocketAndFileReady(t *testing.T) {
	dir, err := os.MkdirTemp("", "k") //nolint:usetesting // its paths may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	path := filepath.Join(dir, "s")
	socket, file := socketReady(path), fileReady(filepath.Join(dir, "done"))
	if socket(t.Context()) == nil || file(t.Context()) == nil || both(socket, file)(t.Context()) == nil {
		t.Error("ready before anything is there")
	}
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if err := socket(t.Context()); err != nil {
		t.Errorf("somebody listens: %v", err)
	}
	if both(socket, file)(t.Context()) == nil || both(file, socket)(t.Context()) == nil {
		t.Error("one of both is enough")
	}
	if err := os.WriteFile(filepath.Join(dir, "done"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := both(socket, file)(t.Context()); err != nil {
		t.Errorf("both are there: %v", err)
	}
}
