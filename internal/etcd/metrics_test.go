package etcd

import (
	"context"
	"errors"
	"math"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"
)

// fsyncs is a histogram of so many fsyncs of at most 10 ms and of at most 1 s.
func fsyncs(fast, slow uint64) Histogram {
	return Histogram{buckets: []bucket{{0.01, fast}, {1, fast + slow}, {math.Inf(1), fast + slow}}}
}

// TestMetricsWatch: a disk that was slow is seen for a minute, and not longer.
func TestMetricsWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		begin, slowUntil := time.Now(), 2*time.Minute
		w := &MetricsWatch{read: func(context.Context) (Metrics, error) {
			since := time.Since(begin)
			return Metrics{Fsync: fsyncs(uint64(since.Seconds()), uint64(min(since, slowUntil).Seconds()))}, nil
		}}
		go w.Run(ctx)
		for _, tc := range []struct {
			after time.Duration
			slow  bool
		}{{30 * time.Second, true}, {2 * time.Minute, true}, {2*time.Minute + 50*time.Second, true}, {3*time.Minute + 30*time.Second, false}, {time.Hour, false}} {
			<-time.After(tc.after - time.Since(begin))
			if got := w.Recent(ctx).FsyncP99; (got > 10*time.Millisecond) != tc.slow {
				t.Errorf("after %v it is %v", tc.after, got)
			}
		}
		if len(w.reads) > 5 {
			t.Errorf("it keeps %d reads", len(w.reads))
		}
		cancel()
		synctest.Wait()
	})
}

func TestMetricsWatchOfASilentMember(t *testing.T) {
	w := &MetricsWatch{read: func(context.Context) (Metrics, error) { return Metrics{}, errors.New("refused") }}
	if got := w.Recent(t.Context()); got != (Recent{}) {
		t.Errorf("got %v", got)
	}
}

func TestReadMetrics(t *testing.T) {
	code := http.StatusOK
	page := fsyncBuckets + "0.001\"} 5\n" + fsyncBuckets + "+Inf\"} 5\n"
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(code)
		_, _ = w.Write([]byte(page)) // the client may have gone
	}))
	defer server.Close()
	if got := WatchMetrics(server.URL).Recent(t.Context()).FsyncP99; got <= 0 || got > time.Millisecond {
		t.Errorf("got %v", got)
	}
	code = http.StatusServiceUnavailable
	if h, err := readMetrics(t.Context(), server.Client(), server.URL); err == nil {
		t.Errorf("a refusal gave %v", h)
	}
}

// TestPeerRTT: the furthest peer counts, as it was lately; and as it was before
// when etcd has counted nothing new.
func TestPeerRTT(t *testing.T) {
	rtts := func(near, far uint64) Histogram {
		return Histogram{buckets: []bucket{{0.001, near}, {0.1, near + far}, {math.Inf(1), near + far}}}
	}
	now := Metrics{PeerRTT: map[string]Histogram{"a": rtts(10, 0), "b": rtts(5, 5)}}
	w := &MetricsWatch{read: func(context.Context) (Metrics, error) { return now, nil }}
	w.remember(metricsRead{at: time.Now(), metrics: now})
	if got := w.Recent(t.Context()).PeerRTT; got <= 50*time.Millisecond {
		t.Errorf("with nothing new it is %v", got)
	}
	now = Metrics{PeerRTT: map[string]Histogram{"a": rtts(11, 0), "b": rtts(7, 5)}}
	if got := w.Recent(t.Context()).PeerRTT; got <= 0 || got > time.Millisecond {
		t.Errorf("since then it is %v", got)
	}
	now = Metrics{}
	if got := w.Recent(t.Context()).PeerRTT; got != 0 {
		t.Errorf("without peers it is %v", got)
	}
}
