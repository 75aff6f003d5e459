package endpoint

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"kuorum/internal/cluster"
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
