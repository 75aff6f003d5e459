package endpoint

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"kuorum/internal/cluster"
	"kuorum/internal/host"
)

func writeConfig(t *testing.T, cfg Config) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "endpoint.yaml")
	replaceConfig(t, path, cfg)
	return path
}

func replaceConfig(t *testing.T, path string, cfg Config) {
	t.Helper()
	data, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	replaceFile(t, path, string(data))
}

// replaceFile does what the agent does.
func replaceFile(t *testing.T, path, content string) {
	t.Helper()
	if err := host.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// What a file may say one after the other, and what the balancer makes of it.
func TestFollowerTakesWhatIsGood(t *testing.T) {
	a := newAuthority(t)
	s1, s2, s3 := Backend{"s1", "127.0.0.1:1"}, Backend{"s2", "127.0.0.1:2"}, Backend{"s3", "127.0.0.1:3"}
	base := testConfig(a)
	base.Listen, base.Backends = []string{"127.0.0.1:9"}, []Backend{s1, s2}
	with := func(local string, backends ...Backend) Config {
		cfg := base
		cfg.Backends, cfg.Local = backends, local
		return cfg
	}
	text := func(cfg Config) string {
		data, err := json.Marshal(cfg)
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	fixed := with("s1", s1)
	fixed.Listen, fixed.Fall = []string{"127.0.0.1:8"}, 7

	loop := fixed
	loop.Backends = []Backend{s2, {"s1", "127.0.0.1:9"}}
	negative := with("s1", s1)
	negative.Fall = -1

	// Beside the same bytes, which say nothing, each step logs one line.
	steps := []struct {
		name, content string // no content: no file
		logged        string
		want          []Backend
		local         string
	}{
		{"as at the start", text(base), "", []Backend{s1, s2}, ""},
		{"other bytes, nothing new", "# hello\n" + text(base), "", []Backend{s1, s2}, ""},
		{"one more, in front", text(with("", s3, s1, s2)), "backends replaced", []Backend{s3, s1, s2}, ""},
		{"no YAML", "{", "cannot parse", []Backend{s3, s1, s2}, ""},
		{"no backend", text(with("")), "want at least one", []Backend{s3, s1, s2}, ""},
		{"unknown local", text(with("s9", s1)), "there is no backend", []Backend{s3, s1, s2}, ""},
		{"bad elsewhere", text(negative), "must not be negative", []Backend{s3, s1, s2}, ""},
		{"no file", "", "cannot read", []Backend{s3, s1, s2}, ""},
		{"local", text(with("s3", s3, s1, s2)), "local=s3", []Backend{s3, s1, s2}, "s3"},
		{"empty file", "\n", "want at least one", []Backend{s3, s1, s2}, "s3"},
		{"other address", text(with("", Backend{"s1", s3.Address})), "backends replaced", []Backend{{"s1", s3.Address}}, ""},
		{"back again", text(base), "backends replaced", []Backend{s1, s2}, ""},
		{"a loop", text(with("", Backend{"s1", "127.0.0.1:9"})), "the balancer itself listens", []Backend{s1, s2}, ""},
		{"what needs a restart", text(fixed), `fields="[listen fall]"`, []Backend{s1}, "s1"},
		{"a loop with the addresses that are in use", text(loop), "the balancer itself listens", []Backend{s1}, "s1"},
	}

	log := &syncBuffer{}
	b, err := New(base, slog.New(slog.NewTextHandler(io.MultiWriter(log, t.Output()), nil)))
	if err != nil {
		t.Fatal(err)
	}
	path := writeConfig(t, base)
	f := follower{balancer: b, path: path, seen: []byte(text(base))}
	for _, step := range steps {
		before, all := log.count(step.logged), log.count("")
		if step.content == "" {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		} else {
			replaceFile(t, path, step.content)
		}
		for range 3 {
			f.look(t.Context())
		}
		if step.logged == "" && log.count("") != all || step.logged != "" && log.count(step.logged) != before+1 {
			t.Errorf("%s: want %q to be logged once", step.name, step.logged)
		}
		var got []Backend
		for _, s := range b.pool.status() {
			got = append(got, s.Backend)
		}
		if diff := cmp.Diff(step.want, got); diff != "" || b.pool.local != step.local {
			t.Errorf("%s: local is %q, want %q; backends (-want +got):\n%s", step.name, b.pool.local, step.local, diff)
		}
	}
}

// A field that is added later must not be ignored in silence.
func TestFixedChangesSeesEveryOtherField(t *testing.T) {
	a := Config{Backends: []Backend{{"s1", "a"}}, Local: "s1"}
	b := Config{
		Listen: []string{"x"}, Backends: []Backend{{"s2", "b"}}, Local: "s2", CA: "x", Cert: "x", Key: "x", ServerName: "x",
		Interval: 1, ReadyInterval: 1, Timeout: 1, Fall: 1, Rise: 1, DrainTimeout: 1, Status: "x",
	}
	want := []string{
		"listen", "ca", "cert", "key", "serverName",
		"interval", "readyInterval", "timeout", "fall", "rise", "drainTimeout", "status",
	}
	if diff := cmp.Diff(want, fixedChanges(a, b)); diff != "" {
		t.Errorf("fields (-want +got):\n%s", diff)
	}
	if got := fixedChanges(a, Config{}); got != nil {
		t.Errorf("backends and the local one need no restart, got %q", got)
	}
}

// The whole way from the file to connections, while a client stays connected.
func TestRunFollowsItsFile(t *testing.T) {
	a := newAuthority(t)
	s1, s2, s3 := newAPIServer(t, a, "s1"), newAPIServer(t, a, "s2"), newAPIServer(t, a, "s3")
	front, status := localListener(t), localListener(t)
	config := func(local string, servers ...*apiServer) Config {
		cfg := testConfig(a, servers...)
		cfg.Listen, cfg.Status, cfg.Local = []string{front.Addr().String()}, status.Addr().String(), local
		cfg.DrainTimeout = cluster.Duration(300 * time.Millisecond)
		return cfg
	}
	path := writeConfig(t, config("", s1, s2))
	_, _ = front.Close(), status.Close()

	b := &balancer{t: t, front: front.Addr().String(), status: status.Addr().String(), roots: a.pool, log: &syncBuffer{}}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, path, slog.New(slog.NewTextHandler(io.MultiWriter(b.log, t.Output()), nil))) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
		noGoroutineLeft(t)
	}()
	eventually(t, "the balancer listens", func() bool { return b.log.count("balancer started") == 1 })
	b.await(Healthy, s1, s2)
	onFirst, onSecond := b.connectTo(s1), b.connectTo(s2)

	replaceConfig(t, path, config("", s2, s3))
	eventually(t, "the new list is used", func() bool { _, ok := b.backends()["s3"]; return ok })
	b.await(Healthy, s3)
	if got := count(b.connectMany(3)); got["s1"] != 0 || got["s3"] == 0 {
		t.Errorf("new connections are %v, want some on s3 and none on s1", got)
	}
	onFirst.awaitClose()
	b.loggedOnce("closed the connections of a removed backend", "backend=s1")

	replaceFile(t, path, "backends: []")
	b.loggedOnce("going on with the one before")
	if got := onSecond.name(); got != "s2" {
		t.Errorf("the connection to s2 is one to %q", got)
	}
	replaceConfig(t, path, config("s2", s2))
	eventually(t, "a good file is used again", func() bool { return len(b.backends()) == 1 })
	if got := onSecond.name(); got != "s2" {
		t.Errorf("the connection to s2 is one to %q", got)
	}
}

// connectTo asks for connections until one is to s; all stay open.
func (b *balancer) connectTo(s *apiServer) *apiClient {
	b.t.Helper()
	var found *apiClient
	eventually(b.t, fmt.Sprintf("a connection leads to %s", s.name), func() bool {
		found = b.connect()
		return found.name() == s.name
	})
	return found
}
