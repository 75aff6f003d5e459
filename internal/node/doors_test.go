package node

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"testing"
	"time"
)

// TestDoorsStayOpen: between two servers a caller waits and is not refused; an
// address that the second does not want is closed.
func TestDoorsStayOpen(t *testing.T) {
	var d doors
	t.Cleanup(func() {
		if err := d.close(); err != nil {
			t.Error(err)
		}
	})
	const first, second = "127.31.7.1:39443", "127.31.7.2:39443"
	serve := func(says string, addresses ...string) (end func()) {
		t.Helper()
		list, err := d.listen(t.Context(), addresses)
		if err != nil {
			t.Fatal(err)
		}
		server := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, says) // the client may have gone
		})}
		done := make(chan error, len(list))
		for _, ln := range list {
			go func() { done <- server.Serve(ln) }()
		}
		return func() {
			t.Helper()
			if err := server.Shutdown(t.Context()); err != nil {
				t.Error(err)
			}
			for range list {
				if err := <-done; !errors.Is(err, http.ErrServerClosed) {
					t.Errorf("a server ended with %v", err)
				}
			}
		}
	}
	ask := func(ctx context.Context, address string) (string, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address, nil)
		if err != nil {
			return "", err
		}
		resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		return string(text), err
	}
	end := serve("one", first, second)
	for _, address := range []string{first, second} {
		if got, err := ask(t.Context(), address); got != "one" || err != nil {
			t.Errorf("%s says %q, %v", address, got, err)
		}
	}
	end()
	waiting, err := net.DialTimeout("tcp", first, time.Second)
	if err != nil {
		t.Fatalf("between the servers: %v", err)
	}
	if err := waiting.Close(); err != nil {
		t.Error(err)
	}
	early := make(chan string, 1)
	go func() {
		got, err := ask(t.Context(), first)
		if err != nil {
			got = err.Error()
		}
		early <- got
	}()
	end = serve("two", first)
	if got := <-early; got != "two" {
		t.Errorf("who came in between heard %q", got)
	}
	if conn, err := net.DialTimeout("tcp", second, time.Second); err == nil {
		t.Errorf("%s is open still: %v", second, conn.Close())
	}
	end()
}
