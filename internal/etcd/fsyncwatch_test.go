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
func fsyncs(fast, slow uint64) FsyncHistogram {
	return FsyncHistogram{buckets: []bucket{{0.01, fast}, {1, fast + slow}, {math.Inf(1), fast + slow}}}
}

// TestFsyncWatch: a disk that was slow is seen for a minute, and not longer.
func TestFsyncWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		begin, slowUntil := time.Now(), 2*time.Minute
		w := &FsyncWatch{read: func(context.Context) (FsyncHistogram, error) {
			since := time.Since(begin)
			return fsyncs(uint64(since.Seconds()), uint64(min(since, slowUntil).Seconds())), nil
		}}
		go w.Run(ctx)
		for _, tc := range []struct {
			after time.Duration
			slow  bool
		}{{30 * time.Second, true}, {2 * time.Minute, true}, {2*time.Minute + 50*time.Second, true}, {3*time.Minute + 30*time.Second, false}, {time.Hour, false}} {
			<-time.After(tc.after - time.Since(begin))
			if got := w.P99(ctx); (got > 10*time.Millisecond) != tc.slow {
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

func TestFsyncWatchOfASilentMember(t *testing.T) {
	w := &FsyncWatch{read: func(context.Context) (FsyncHistogram, error) { return FsyncHistogram{}, errors.New("refused") }}
	if got := w.P99(t.Context()); got != 0 {
		t.Errorf("got %v", got)
	}
}

func TestReadFsync(t *testing.T) {
	code := http.StatusOK
	page := fsyncBuckets + "0.001\"} 5\n" + fsyncBuckets + "+Inf\"} 5\n"
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(code)
		_, _ = w.Write([]byte(page)) // the client may have gone
	}))
	defer server.Close()
	if got := WatchFsync(server.URL).P99(t.Context()); got <= 0 || got > time.Millisecond {
		t.Errorf("got %v", got)
	}
	code = http.StatusServiceUnavailable
	if h, err := readFsync(t.Context(), server.Client(), server.URL); err == nil {
		t.Errorf("a refusal gave %v", h)
	}
}
