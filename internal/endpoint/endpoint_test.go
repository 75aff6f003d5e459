package endpoint

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"kuorum/internal/cluster"
)

// three servers behind a balancer, all healthy.
func three(t *testing.T, change func(*Config)) (*balancer, []*apiServer) {
	t.Helper()
	a := newAuthority(t)
	servers := []*apiServer{newAPIServer(t, a, "s1"), newAPIServer(t, a, "s2"), newAPIServer(t, a, "s3")}
	cfg := testConfig(a, servers...)
	if change != nil {
		change(&cfg)
	}
	b := startBalancer(t, a, cfg)
	b.await(Healthy, servers...)
	return b, servers
}

func count(clients []*apiClient) map[string]int {
	got := map[string]int{}
	for _, c := range clients {
		got[c.name()]++
	}
	return got
}

func (b *balancer) connectMany(n int) []*apiClient {
	b.t.Helper()
	clients := make([]*apiClient, n)
	for i := range clients {
		clients[i] = b.connect()
	}
	return clients
}

func TestSpreadsOverAllBackends(t *testing.T) {
	b, _ := three(t, nil)
	got := count(b.connectMany(9))
	if diff := cmp.Diff(map[string]int{"s1": 3, "s2": 3, "s3": 3}, got); diff != "" {
		t.Errorf("connections (-want +got):\n%s", diff)
	}
	for name, s := range b.backends() {
		if s.Connections != 3 {
			t.Errorf("/status says %d connections for %s, want 3", s.Connections, name)
		}
	}
}

func TestLocalBackendWinsTies(t *testing.T) {
	for _, local := range []string{"s1", "s2", "s3"} {
		t.Run(local, func(t *testing.T) {
			b, _ := three(t, func(cfg *Config) { cfg.Local = local })
			if got := b.connect().name(); got != local {
				t.Errorf("the first connection went to %s, want %s", got, local)
			}
		})
	}
}

func TestAvoidsDeadBackendUntilItIsBack(t *testing.T) {
	b, servers := three(t, nil)
	dead := servers[1]
	clients := b.connectMany(3)
	names := count(clients)
	if names[dead.name] != 1 {
		t.Fatalf("connections are %v, want one each", names)
	}
	victim := clients[0]
	for _, c := range clients {
		if c.name() == dead.name {
			victim = c
		}
	}

	dead.kill()
	victim.awaitClose()
	b.await(Refused, dead)
	more := b.connectMany(4)
	if got := count(more); got[dead.name] != 0 || got["s1"] != 2 || got["s3"] != 2 {
		t.Errorf("connections are %v, want two each on s1 and s3", got)
	}

	dead.start()
	b.await(Healthy, dead)
	if got := count(b.connectMany(3)); got[dead.name] != 3 {
		t.Errorf("connections are %v, want all on the empty backend: %+v", got, b.backends())
	}
}

// A client that comes between death and the next check must not notice.
func TestFailedConnectMovesOnAndChecksAtOnce(t *testing.T) {
	b, servers := three(t, func(cfg *Config) { cfg.Interval = cluster.Duration(time.Hour) })
	servers[0].kill()
	servers[2].kill()
	if got := b.connect().name(); got != "s2" {
		t.Errorf("connected to %s, want the only one alive", got)
	}
	// At least one dead backend was tried; no regular check is due for an hour.
	eventually(t, "every dead backend is found by connecting", func() bool {
		b.connect()
		status := b.backends()
		return status["s1"].State == Refused && status["s3"].State == Refused
	})
	if got := b.backends()["s2"]; !got.Healthy {
		t.Errorf("s2 is %s, want healthy", got.State)
	}
}

func TestCutsConnectionsToFrozenBackend(t *testing.T) {
	const timeout, interval = 500 * time.Millisecond, 20 * time.Millisecond
	b, servers := three(t, func(cfg *Config) {
		cfg.Timeout, cfg.Interval = cluster.Duration(timeout), cluster.Duration(interval)
	})
	clients := b.connectMany(3)
	frozen := servers[2]
	var victim *apiClient
	var others []*apiClient
	for _, c := range clients {
		if c.name() == frozen.name {
			victim = c
		} else {
			others = append(others, c)
		}
	}
	if victim == nil {
		t.Fatal("no connection to the server to freeze")
	}
	victim.send("/slow")

	frozen.freeze()
	start := time.Now()
	victim.awaitClose()
	// The rest is for a noisy machine.
	if took := time.Since(start); took < leastLimit-interval || took > 10*time.Second {
		t.Errorf("cut after %v, want about %v", took, leastLimit+interval)
	}
	b.await(Down, frozen)
	if got := b.backends()[frozen.name].LastError; !strings.HasPrefix(got, "no answer") {
		t.Errorf("last error is %q", got)
	}
	if got := count(append(others, b.connectMany(4)...)); got[frozen.name] != 0 {
		t.Errorf("connections are %v, want none on the frozen server", got)
	}
	b.loggedOnce("backend changed", "backend=s3", "state=down", "closed_connections=1")

	frozen.thaw()
	b.await(Healthy, frozen)
	if got := b.connect().name(); got != frozen.name {
		t.Errorf("connected to %s, want the empty backend", got)
	}
}

// No check is due for an hour: that a client waits is what has it found.
func TestCutsConnectionsToBackendThatOwesAnAnswer(t *testing.T) {
	b, servers := three(t, func(cfg *Config) { cfg.Interval = cluster.Duration(time.Hour) })
	clients := b.connectMany(3)
	for _, c := range clients {
		if c.name() != "s2" {
			continue
		}
		servers[1].freeze()
		c.send("/slow")
		c.awaitClose()
		b.await(Down, servers[1])
		return
	}
	t.Fatal("no connection to s2")
}

func TestDrainsBackendThatIsNotReady(t *testing.T) {
	b, servers := three(t, func(cfg *Config) { cfg.DrainTimeout = cluster.Duration(time.Hour) })
	clients := b.connectMany(3)
	servers[0].code.Store(http.StatusInternalServerError)
	b.await(Draining, servers[0])
	if got := count(clients); got["s1"] != 1 {
		t.Errorf("connections are %v, want the old one on s1 alive", got)
	}
	if got := count(b.connectMany(4)); got["s1"] != 0 {
		t.Errorf("new connections are %v, want none on s1", got)
	}
	if got := b.backends()["s1"]; !strings.HasSuffix(got.LastError, "500 Internal Server Error (failed: etcd, shutdown)") || got.Healthy {
		t.Errorf("status is %+v", got)
	}
	servers[0].code.Store(http.StatusOK)
	b.await(Healthy, servers[0])
}

func TestCutsWhatDidNotDrainInTime(t *testing.T) {
	b, servers := three(t, func(cfg *Config) { cfg.DrainTimeout = cluster.Duration(100 * time.Millisecond) })
	for _, c := range b.connectMany(3) {
		if c.name() != "s1" {
			continue
		}
		servers[0].code.Store(http.StatusInternalServerError)
		c.awaitClose()
		b.loggedOnce("closed the connections of a backend", "backend=s1", "state=draining", "closed_connections=1")
		return
	}
	t.Fatal("no connection to s1")
}

// A server that stops gracefully closes its listener first and then finishes
// what it has begun.
func TestRefusingBackendMayFinishRequests(t *testing.T) {
	b, servers := three(t, nil)
	stopping := servers[1]
	for _, c := range b.connectMany(3) {
		if c.name() != stopping.name {
			continue
		}
		c.send("/slow")
		eventually(t, "the server works on it", func() bool { return stopping.slow.Load() == 1 })
		stopped := make(chan error, 1)
		go func() { stopped <- stopping.current().Shutdown(context.WithoutCancel(t.Context())) }()
		b.await(Refused, stopping)
		if got := b.connect().name(); got == stopping.name {
			t.Error("a new connection went to the server that stops")
		}
		close(stopping.release)
		if got := c.receive(); got != stopping.name {
			t.Errorf("the answer is %q", got)
		}
		c.awaitClose()
		if err := <-stopped; err != nil {
			t.Error(err)
		}
		return
	}
	t.Fatal("no connection to the server that stops")
}

func TestUsesUnreadyBackendsIfThereIsNothingBetter(t *testing.T) {
	b, servers := three(t, func(cfg *Config) { cfg.DrainTimeout = cluster.Duration(time.Nanosecond) })
	clients := b.connectMany(3)
	for _, s := range servers {
		s.code.Store(http.StatusInternalServerError)
	}
	eventually(t, "/healthz turns red", func() bool { _, code := b.get("/healthz"); return code == http.StatusServiceUnavailable })
	checks := servers[0].checks.Load()
	eventually(t, "more checks", func() bool { return servers[0].checks.Load() > checks+3 })
	survivors := 0
	for _, c := range append(clients, b.connectMany(3)...) {
		c.send("/name")
		if resp, err := http.ReadResponse(c.r, nil); err == nil {
			_, _ = io.Copy(io.Discard, resp.Body)
			survivors++
		}
	}
	// Until the last backend turned, the first ones had a better alternative.
	if survivors < 4 {
		t.Errorf("%d of 6 connections work", survivors)
	}
	b.loggedOnce("no backend is healthy")
}

func TestClosesClientIfNobodyAccepts(t *testing.T) {
	b, servers := three(t, nil)
	for _, s := range servers {
		s.kill()
	}
	b.await(Refused, servers...)
	for range 3 {
		if _, err := b.tryConnect(); err == nil {
			t.Fatal("connected to nobody")
		}
	}
	if _, code := b.get("/healthz"); code != http.StatusServiceUnavailable {
		t.Errorf("/healthz says %d", code)
	}
	b.loggedOnce("cannot connect a client")
	servers[1].start()
	eventually(t, "connections work again", func() bool { _, err := b.tryConnect(); return err == nil })
}

// Wrong files of the checker say nothing about the servers.
func TestUntrustedBackendStaysUsable(t *testing.T) {
	a, stranger := newAuthority(t), newAuthority(t)
	s := newAPIServer(t, a, "s1")
	cfg := testConfig(a, s)
	cfg.CA = stranger.path("ca.crt")
	b := startBalancer(t, a, cfg)
	b.await(Draining, s)
	if got := b.connect().name(); got != "s1" {
		t.Errorf("connected to %q", got)
	}
	if got := b.backends()["s1"].LastError; !strings.Contains(got, "unknown authority") {
		t.Errorf("last error is %q", got)
	}

	// The files are replaced while the balancer runs.
	pem, err := os.ReadFile(a.path("ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	stranger.write(t, "ca.crt", pem)
	b.await(Healthy, s)
}

func TestStatus(t *testing.T) {
	b, _ := three(t, nil)
	if body, code := b.get("/healthz"); code != http.StatusOK || string(body) != "ok\n" {
		t.Errorf("/healthz says %d %q", code, body)
	}
	for name, s := range b.backends() {
		if !s.Healthy || s.State != Healthy || s.LastError != "" || s.Connections != 0 {
			t.Errorf("%s: %+v", name, s)
		}
		if s.Latency <= 0 || time.Since(s.Since) < 0 || time.Since(s.Since) > time.Minute || s.Address == "" {
			t.Errorf("%s: %+v", name, s)
		}
	}
	for _, query := range []string{"", "?since=7", "?since=x"} {
		var states States
		body, code := b.get(StatesPath + query)
		if err := json.Unmarshal(body, &states); err != nil || code != http.StatusOK || states.Version == 0 || len(states.Backends) != 3 || states.Backends[2].State != Healthy {
			t.Errorf("%s%s says %d %s: %v", StatesPath, query, code, body, err)
		}
	}
	if _, code := b.get("/elsewhere"); code != http.StatusNotFound {
		t.Errorf("/elsewhere says %d", code)
	}
}

func TestThousandsOfConnectsLeakNothing(t *testing.T) {
	b, _ := three(t, nil)
	b.connect().name()
	before := descriptors(t)
	for range 2000 {
		conn, err := net.Dial("tcp", b.front)
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.Close()
	}
	eventually(t, "connections are off the books", func() bool {
		n := 0
		for _, s := range b.backends() {
			n += s.Connections
		}
		return n <= 1
	})
	eventually(t, "descriptors are closed", func() bool { return descriptors(t) <= before+20 })
}

func TestRun(t *testing.T) {
	a := newAuthority(t)
	s := newAPIServer(t, a, "s1")
	cfg := testConfig(a, s)
	front, status := localListener(t), localListener(t)
	cfg.Listen, cfg.Status = []string{front.Addr().String()}, status.Addr().String()
	log := slog.New(slog.NewTextHandler(t.Output(), nil))

	refuse := func(name, want string, cause error, change func(*Config)) {
		t.Run(name, func(t *testing.T) {
			cfg := cfg
			change(&cfg)
			err := Run(t.Context(), writeConfig(t, cfg), log)
			if err == nil || !strings.Contains(err.Error(), want) || cause != nil && !errors.Is(err, cause) {
				t.Errorf("error is %v, want it to contain %q and to be %v", err, want, cause)
			}
		})
	}
	refuse("address in use", "cannot listen on "+cfg.Listen[0]+": another process listens there", syscall.EADDRINUSE, func(*Config) {})
	refuse("address of nobody", "cannot listen on 192.0.2.1:6443: no interface of this machine has that address",
		syscall.EADDRNOTAVAIL, func(cfg *Config) { cfg.Listen = []string{"192.0.2.1:6443"} })
	refuse("invalid", "listen: want at least one", nil, func(cfg *Config) { cfg.Listen = nil })
	refuse("no CA", "cannot read the CA", os.ErrNotExist, func(cfg *Config) { cfg.CA += ".absent" })
	refuse("CA is no PEM", "holds no PEM certificate", nil, func(cfg *Config) { cfg.CA = a.path("client.key") })
	refuse("no key", "cannot load the client certificate", os.ErrNotExist, func(cfg *Config) { cfg.Key += ".absent" })

	_ = front.Close()
	refuse("status in use", "cannot listen on "+cfg.Status, syscall.EADDRINUSE, func(*Config) {})

	_ = status.Close()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	path := writeConfig(t, cfg)
	go func() { done <- Run(ctx, path, log) }()
	b := &balancer{t: t, front: cfg.Listen[0], roots: a.pool}
	var c *apiClient
	eventually(t, "the balancer listens", func() bool {
		var err error
		c, err = b.tryConnect()
		return err == nil
	})
	if got := c.name(); got != "s1" {
		t.Errorf("connected to %q", got)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("run: %v", err)
	}
	c.awaitClose()
	noGoroutineLeft(t)
}

// TestRunFinishesRequests: a balancer that is told to stop lets clients have the answers
// that they wait for, and then closes their connections.
func TestRunFinishesRequests(t *testing.T) {
	a := newAuthority(t)
	s := newAPIServer(t, a, "s1")
	cfg := testConfig(a, s)
	front := localListener(t)
	cfg.Listen = []string{front.Addr().String()}
	path := writeConfig(t, cfg)
	_ = front.Close()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, path, slog.New(slog.NewTextHandler(t.Output(), nil))) }()
	b := &balancer{t: t, front: cfg.Listen[0], roots: a.pool}
	var waits *apiClient
	eventually(t, "the balancer listens", func() bool {
		var err error
		waits, err = b.tryConnect()
		return err == nil
	})
	idle := b.connect()
	if got := idle.name(); got != "s1" {
		t.Errorf("connected to %q", got)
	}
	waits.send("/slow")
	eventually(t, "the request is under way", func() bool { return s.slow.Load() == 1 })
	cancel()
	idle.awaitClose()
	close(s.release)
	if got := waits.receive(); got != "s1" {
		t.Errorf("answered by %q", got)
	}
	waits.awaitClose()
	if err := <-done; err != nil {
		t.Errorf("run: %v", err)
	}
	noGoroutineLeft(t)
}

// TestMuteClientsCostNoBackend: who connects and says nothing holds no connection to an
// API server, which others get.
func TestMuteClientsCostNoBackend(t *testing.T) {
	a := newAuthority(t)
	s := newAPIServer(t, a, "s1")
	b := startBalancer(t, a, testConfig(a, s))
	b.await(Healthy, s)
	before := s.accepted.Load()
	for range 200 {
		_ = dialTCP(t, b.front)
	}
	if got := b.connect().name(); got != "s1" {
		t.Errorf("connected to %q", got)
	}
	if n := s.accepted.Load() - before; n > 5 { // checks may connect again
		t.Errorf("the API server has %d connections more, want 1", n)
	}
}
