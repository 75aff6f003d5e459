package lab

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"kuorum/internal/cluster"
)

// tunnelLab is a lab whose process is this one; its tunnel reaches network.
func tunnelLab(t *testing.T, network string) *Lab {
	t.Helper()
	l := &Lab{Name: "one", dir: t.TempDir()}
	held, err := lock(l.path("lab.lock"))
	if err != nil {
		t.Fatal(err)
	}
	control, err := listenControl(t.Context(), l)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{
		Handler:           tunnel{allowed: netip.MustParsePrefix(network), otherwise: http.NotFoundHandler()},
		ReadHeaderTimeout: time.Second,
	}
	done := make(chan error)
	go func() { done <- server.Serve(control) }()
	t.Cleanup(func() {
		_ = server.Close()
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
		_ = held.Close()
	})
	return l
}

// echo greets, then sends back all it gets; when the other side has ended it
// says so, and ends too.
func echo(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.WriteString(conn, "hello ")
				_, _ = io.Copy(conn, conn)
				_, _ = io.WriteString(conn, " bye")
				_ = conn.Close()
			}()
		}
	}()
	return ln.Addr().String()
}

func TestTunnelPassesBothWaysAndHalfClose(t *testing.T) {
	l, address := tunnelLab(t, "127.0.0.0/8"), echo(t)
	conn, err := l.Dial(t.Context(), address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	sent := make([]byte, 3<<20)
	for i := range sent {
		sent[i] = byte(rand.Uint32())
	}
	wrote := make(chan error)
	go func() {
		_, err := conn.Write(sent)
		wrote <- errors.Join(err, conn.(*tunnelled).CloseWrite())
	}()
	got, err := io.ReadAll(conn)
	if err := errors.Join(err, <-wrote); err != nil {
		t.Fatal(err)
	}
	if want := []byte("hello " + string(sent) + " bye"); !bytes.Equal(got, want) {
		t.Errorf("got %d bytes, want these %d", len(got), len(want))
	}
}

func TestTunnelRefuses(t *testing.T) {
	address := echo(t)
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = closed.Close()
	for name, test := range map[string]struct{ network, address, says string }{
		"another network": {"198.18.0.0/24", address, "not an address with a port in the lab's network 198.18.0.0/24"},
		"a name":          {"127.0.0.0/8", "localhost:2379", "not an address with a port"},
		"no port":         {"127.0.0.0/8", "127.0.0.1", "not an address with a port"},
		"IPv6":            {"127.0.0.0/8", "[::1]:2379", "not an address with a port"},
		"nobody":          {"127.0.0.0/8", closed.Addr().String(), "connection refused"}, // etcd.words knows it
	} {
		conn, err := tunnelLab(t, test.network).Dial(t.Context(), test.address)
		if err == nil {
			_ = conn.Close()
		}
		if err == nil || !strings.Contains(err.Error(), test.says) || !strings.Contains(err.Error(), "in lab one") {
			t.Errorf("%s: got %v, want %q", name, err, test.says)
		}
	}
}

func TestTunnelLeavesOtherRequests(t *testing.T) {
	if _, err := tunnelLab(t, "127.0.0.0/8").Status(t.Context()); err == nil || err.Error() != "404 Not Found" {
		t.Errorf("got %v", err)
	}
}

// TestDialEndsWithItsContext: a lab process that hangs holds nobody up, and a
// context that ends later does not end the connection.
func TestDialEndsWithItsContext(t *testing.T) {
	l := &Lab{Name: "one", dir: t.TempDir()}
	_, err := l.Dial(t.Context(), "127.0.0.1:1")
	if problem, ok := errors.AsType[*cluster.Problem](err); !ok || problem.ExitCode() != cluster.ExitNoQuorum {
		t.Errorf("a stopped lab: %v", err)
	}

	l = tunnelLab(t, "127.0.0.0/8")
	if err := os.Remove(l.path(controlSocket)); err != nil {
		t.Fatal(err)
	}
	silent, err := net.Listen("unix", l.path(controlSocket))
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := l.Dial(ctx, "127.0.0.1:1"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a lab process that hangs: %v", err)
	}

	ctx, cancel = context.WithCancel(t.Context())
	conn, err := tunnelLab(t, "127.0.0.0/8").Dial(ctx, echo(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	cancel()
	if _, err := io.ReadFull(conn, make([]byte, len("hello "))); err != nil {
		t.Errorf("the connection ended with the context of Dial: %v", err)
	}
}
