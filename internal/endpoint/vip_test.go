package endpoint

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"kuorum/internal/cluster"
	"kuorum/internal/host"
	"kuorum/internal/ledger"
	"kuorum/internal/tickle"
	"kuorum/internal/vrrp"
)

func testVIP() VIP {
	return VIP{
		Address: "198.18.0.254", Own: "198.18.0.11", Peers: []string{"198.18.0.12", "198.18.0.13"},
		Rank: 1, ID: 51, Interval: cluster.Duration(100 * time.Millisecond), Control: "/run/x.sock",
	}
}

func TestVIPValidate(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*VIP)
		want   string // empty: it is valid
	}{
		"as it is":          {func(*VIP) {}, ""},
		"alone":             {func(v *VIP) { v.Peers, v.Rank = nil, 0 }, ""},
		"no address":        {func(v *VIP) { v.Address = "" }, "vip.address"},
		"own is no address": {func(v *VIP) { v.Own = "cp1" }, "vip.own"},
		"a peer is none":    {func(v *VIP) { v.Peers[1] = "cp3" }, "vip.peers[1]"},
		"itself as a peer":  {func(v *VIP) { v.Peers[1] = v.Own }, "this machine itself"},
		"no id":             {func(v *VIP) { v.ID = 0 }, "vip.id: 0"},
		"too high an id":    {func(v *VIP) { v.ID = 256 }, "vip.id: 256"},
		"an odd interval":   {func(v *VIP) { v.Interval = cluster.Duration(15 * time.Millisecond) }, "interval"},
	} {
		t.Run(name, func(t *testing.T) {
			v := testVIP()
			tt.change(&v)
			err := v.validate()
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

func TestVIPIs(t *testing.T) {
	v := testVIP()
	for address, want := range map[string]bool{"198.18.0.254:6443": true, "198.18.0.11:6443": false, "198.18.0.254": false} {
		if got := v.is(address); got != want {
			t.Errorf("%s: %v", address, got)
		}
	}
	if none := (*VIP)(nil); none.is("198.18.0.254:6443") {
		t.Error("a balancer without a virtual IP has one")
	}
}

// A machine is impaired until its balancer has found an API server, and again when
// it has found none for half a second: a shorter darkness moves nothing.
func TestKeeperFollowsTheBalancer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKeeper(testVIP(), slog.New(slog.DiscardHandler))
		start := time.Now()
		dark := func(at time.Duration) bool {
			return at < time.Second || at >= 2*time.Second && at < 2400*time.Millisecond || at >= 3*time.Second
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		go k.follow(ctx, func() bool { return !dark(time.Since(start)) })
		for _, step := range []struct {
			at   time.Duration
			want bool
		}{
			{900 * time.Millisecond, true},
			{1100 * time.Millisecond, false},
			{2300 * time.Millisecond, false},
			{3400 * time.Millisecond, false},
			{3600 * time.Millisecond, true},
		} {
			<-time.After(step.at - time.Since(start))
			synctest.Wait()
			k.mu.Lock()
			got := k.impaired
			k.mu.Unlock()
			if got != step.want {
				t.Errorf("after %v impaired is %v", step.at, got)
			}
		}
		<-ctx.Done()
		synctest.Wait()
	})
}

func TestKeeperWithoutRouter(t *testing.T) {
	k := newKeeper(testVIP(), slog.New(slog.DiscardHandler))
	for _, request := range []*http.Request{
		httptest.NewRequest(http.MethodGet, VIPPath, nil),
		httptest.NewRequest(http.MethodPost, MovePath+"?to=198.18.0.12", nil),
		httptest.NewRequest(http.MethodPost, MovePath+"?to=cp2", nil),
	} {
		w := httptest.NewRecorder()
		if request.Method == http.MethodGet {
			k.tell(w, request)
		} else {
			k.orders().ServeHTTP(w, request)
		}
		if w.Code != http.StatusServiceUnavailable && w.Code != http.StatusConflict {
			t.Errorf("%s %s answers %d", request.Method, request.URL, w.Code)
		}
	}
	changed := testVIP()
	changed.Peers, changed.Rank = changed.Peers[:1], 0
	if err := k.replace(changed); err != nil || len(k.config().Peers) != 1 {
		t.Errorf("replacing the peers: %v, %v", err, k.config())
	}
}

// lonely is the wire of a router whose test says what it hears.
type lonely struct {
	heard  chan vrrp.Packet
	closed chan struct{}
}

func (*lonely) Send([]byte, netip.Addr) error { return nil }

func (l *lonely) Receive() (vrrp.Packet, error) {
	select {
	case p := <-l.heard:
		return p, nil
	case <-l.closed:
		return vrrp.Packet{}, net.ErrClosed
	}
}

func (l *lonely) Close() error {
	close(l.closed)
	return nil
}

// pocket holds an address that is no machine's.
type pocket struct {
	mu   sync.Mutex
	here bool
}

func (p *pocket) Take() error     { return p.set(true) }
func (p *pocket) GiveUp() error   { return p.set(false) }
func (p *pocket) Announce() error { return nil }

func (p *pocket) set(here bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.here = here
	return nil
}

func (p *pocket) holds() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.here
}

// notes is a tickler that keeps account.
type notes struct {
	holder *pocket
	mu     sync.Mutex
	sent   map[netip.AddrPort]int
	from   netip.AddrPort
	here   bool // the address was, when the first was sent
}

func (n *notes) Tickle(from, to netip.AddrPort) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.sent) == 0 {
		n.here = n.holder.holds()
	}
	n.sent[to]++
	n.from = from
	return nil
}

func (*notes) Close() error { return nil }

// expect is that client alone, four times since the last time.
func (n *notes) expect(t *testing.T, after string, from netip.AddrPort, here bool, client netip.AddrPort) {
	t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.from != from || n.here != here || len(n.sent) != 1 || n.sent[client] != 4 {
		t.Errorf("after %s: from %s to %v, it is here: %v", after, n.from, n.sent, n.here)
	}
	clear(n.sent)
}

// stub closes like a connection, and notes whether the address was here still.
type stub struct {
	holder *pocket
	closed chan bool
}

func (s stub) Close() error {
	s.closed <- s.holder.holds()
	return nil
}

// TestClientsWhenTheAddressTurns: when the address comes the clients of the peers
// are tickled, and not our own; when it has gone our own are closed, and tickled.
func TestClientsWhenTheAddressTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKeeper(testVIP(), slog.New(slog.DiscardHandler))
		k.front = netip.MustParseAddrPort("198.18.0.254:6443")
		router, err := k.config().router()
		if err != nil {
			t.Fatal(err)
		}
		router.Interface = "eth0"
		wire, holder := &lonely{make(chan vrrp.Packet, 1), make(chan struct{})}, &pocket{}
		if k.runner, err = vrrp.New(router, wire, holder, k.note); err != nil {
			t.Fatal(err)
		}
		out := &notes{holder: holder, sent: map[netip.AddrPort]int{}}
		k.open = func() (tickler, error) { return out, nil }
		own := stub{holder, make(chan bool, 1)}
		theirs, mine := netip.MustParseAddrPort("192.0.2.1:40000"), netip.MustParseAddrPort("192.0.2.2:40000")
		k.others.Remember(router.Peers[0], []netip.AddrPort{theirs})

		ctx, cancel := context.WithCancel(t.Context())
		var all sync.WaitGroup
		all.Go(func() { k.react(ctx) })
		all.Go(func() {
			if err := k.runner.Run(ctx); err != nil {
				t.Error(err)
			}
		})
		<-time.After(100 * time.Millisecond) // it is a backup
		k.clients.Add(mine, own)
		<-time.After(3 * time.Second)
		synctest.Wait()
		out.expect(t, "the address has come", k.front, true, theirs)
		if len(own.closed) != 0 {
			t.Error("the holder closes its own connections")
		}

		higher := vrrp.Advertisement{VRID: router.VRID, Priority: 255, Interval: router.Interval, Addresses: router.Addresses}
		data, err := higher.Marshal(router.Peers[0], router.Source)
		if err != nil {
			t.Fatal(err)
		}
		wire.heard <- vrrp.Packet{From: router.Peers[0], To: router.Source, TTL: 255, Data: data}
		if here := <-own.closed; here {
			t.Error("our own connections are closed while the address is here still")
		}
		<-time.After(2 * time.Second)
		synctest.Wait()
		out.expect(t, "the address has gone", k.front, false, mine)
		cancel()
		all.Wait()
	})
}

// TestRemembersTheAddress: each time that the address has come and gone is in the file,
// with the reason and the other router, the end of the balancer too.
func TestRemembersTheAddress(t *testing.T) {
	cfg := testVIP()
	cfg.History = filepath.Join(t.TempDir(), "vip.jsonl")
	synctest.Test(t, func(t *testing.T) {
		k := newKeeper(cfg, slog.New(slog.DiscardHandler))
		router, err := cfg.router()
		if err != nil {
			t.Fatal(err)
		}
		router.Interface = "eth0"
		wire := &lonely{make(chan vrrp.Packet, 1), make(chan struct{})}
		runner, err := vrrp.New(router, wire, &pocket{}, k.note)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		over, done := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(done)
			k.remember(over)
		}()
		ran := make(chan error)
		go func() { ran <- runner.Run(ctx) }()
		<-time.After(3 * time.Second) // it has the address
		for _, priority := range []uint8{255, 0} {
			ad := vrrp.Advertisement{VRID: router.VRID, Priority: priority, Interval: router.Interval, Addresses: router.Addresses}
			data, err := ad.Marshal(router.Peers[0], router.Source)
			if err != nil {
				t.Fatal(err)
			}
			wire.heard <- vrrp.Packet{From: router.Peers[0], To: router.Source, TTL: 255, Data: data}
			<-time.After(router.Interval)
		}
		cancel()
		if err := <-ran; err != nil {
			t.Error(err)
		}
		close(over)
		<-done
	})
	changes, err := ledger.New[cluster.VIPChange](cfg.History, 0).All()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, c := range changes {
		got = append(got, fmt.Sprintf("%s>%s %s: %s", c.From, c.To, c.Peer, c.Reason))
	}
	const peer = "198.18.0.12"
	want := []string{
		"backup>active : there is no active router",
		"active>backup " + peer + ": another router is active with priority 255, here it is 151",
		"backup>active " + peer + ": the active router resigned",
		"active>initialize : shut down",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestControlSocket: the list of clients, as news and as told by others, over a real
// socket.
func TestControlSocket(t *testing.T) {
	cfg := testVIP()
	cfg.Control = filepath.Join(t.TempDir(), "x.sock")
	k := newKeeper(cfg, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	all.Go(func() { k.again(ctx, k.obey) })
	defer all.Wait()
	defer cancel()
	eventually(t, "the socket is there", func() bool {
		info, err := os.Stat(cfg.Control)
		return err == nil && info.Mode().Perm() == 0o600
	})
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", cfg.Control)
	}
	client := &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}
	list := func(since uint64) (l tickle.List) {
		t.Helper()
		resp, err := client.Get(fmt.Sprintf("http://endpoint%s?since=%d", ClientsPath, since))
		if err != nil {
			t.Fatal(err)
		}
		defer closeAnswer(resp)
		if err := json.NewDecoder(resp.Body).Decode(&l); err != nil {
			t.Fatal(err)
		}
		return l
	}
	post := func(body string) int {
		t.Helper()
		resp, err := client.Post("http://endpoint"+ClientsPath, "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		defer closeAnswer(resp)
		return resp.StatusCode
	}

	nobody := list(0)
	news := make(chan tickle.List)
	go func() { news <- list(nobody.Version) }()
	guest := netip.MustParseAddrPort("192.0.2.1:40000")
	k.clients.Add(guest, stub{})
	if l := <-news; len(nobody.Clients) != 0 || len(l.Clients) != 1 || l.Clients[0] != guest || l.Version == nobody.Version {
		t.Errorf("got %v and then %v", nobody, l)
	}

	for body, want := range map[string]int{
		`{"from":"198.18.0.12","clients":["192.0.2.1:1","192.0.2.2:2"]}`: http.StatusOK,
		`{"from":"198.18.0.99","clients":["192.0.2.9:9"]}`:               http.StatusConflict,
		`{"from":"","clients":["192.0.2.9:9"]}`:                          http.StatusConflict,
		`{"from":"198.18.0.13","clients":["192.0.2.9"]}`:                 http.StatusBadRequest,
	} {
		if got := post(body); got != want {
			t.Errorf("%s is answered %d", body, got)
		}
	}
	if got := k.others.Take(); len(got) != 2 {
		t.Errorf("it knows %v of others", got)
	}
	post(`{"from":"198.18.0.13","clients":["192.0.2.9:9"]}`)
	cfg.Peers, cfg.Rank = cfg.Peers[:1], 0
	if err := k.replace(cfg); err != nil {
		t.Fatal(err)
	}
	if got := k.others.Take(); len(got) != 0 {
		t.Errorf("of one that is no peer any more it knows %v", got)
	}
}

func closeAnswer(resp *http.Response) { _ = resp.Body.Close() }

// TestGuests: who is connected at the virtual IP is known as long as that is so, and
// is reset when it is closed, with its connection to the backend.
func TestGuests(t *testing.T) {
	address := serveTCP(t, func(conn *net.TCPConn) { _, _ = io.Copy(conn, conn) })
	k := newKeeper(testVIP(), slog.New(slog.DiscardHandler))
	front := localListener(t)
	ctx, cancel := context.WithCancel(t.Context())
	var ended sync.WaitGroup
	dial := func(ctx context.Context, _ net.Conn) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
		if err != nil {
			return nil, err
		}
		ended.Add(1)
		return &link{Conn: conn, release: ended.Done}, nil
	}
	done, watched := make(chan error, 1), k.watch(front)
	go func() { done <- Forward(ctx, watched, dial, slog.New(slog.DiscardHandler)) }()
	echo := func(conn net.Conn) {
		t.Helper()
		if _, err := conn.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	known := func() int { return len(k.clients.Wait(t.Context(), 0).Clients) }

	first, second := dialTCP(t, front.Addr().String()), dialTCP(t, front.Addr().String())
	echo(first)
	echo(second)
	if k.front.String() != front.Addr().String() || known() != 2 {
		t.Errorf("%d are known at %s", known(), k.front)
	}
	_ = first.Close()
	eventually(t, "one has left", func() bool { return known() == 1 })
	if l := k.clients.Wait(t.Context(), 0); l.Clients[0].String() != second.LocalAddr().String() {
		t.Errorf("%v is there, want %s", l.Clients, second.LocalAddr())
	}
	if closed := k.clients.Close(); len(closed) != 1 {
		t.Errorf("closed %v", closed)
	}
	if _, err := second.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the client reads %v", err)
	}
	ended.Wait()
	eventually(t, "nobody is left", func() bool { return known() == 0 })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestQuiet(t *testing.T) {
	for _, tc := range []struct {
		last host.Exchange
		want bool
	}{
		{host.Exchange{Sent: quiet, Received: quiet}, true},
		{host.Exchange{Sent: quiet - 1, Received: time.Hour}, false},
		{host.Exchange{Sent: time.Hour, Received: quiet - 1}, false}, // a question, perhaps
		{host.Exchange{Sent: time.Hour, Received: time.Hour, Unacknowledged: true}, false},
	} {
		if got := isQuiet(tc.last); got != tc.want {
			t.Errorf("%+v: %t", tc.last, got)
		}
	}
}
