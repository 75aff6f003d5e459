package etcd

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"time"
)

const (
	fsyncEvery  = 20 * time.Second
	fsyncWindow = time.Minute
)

// FsyncWatch knows how long the fsyncs of a member's log took lately. Etcd
// counts since its start only, so that a disk which has become slow would not
// show for days: the watch keeps what it read about a minute ago.
type FsyncWatch struct {
	read func(context.Context) (FsyncHistogram, error)

	mu    sync.Mutex
	reads []fsyncRead // oldest first; the first may be older than the window
}

type fsyncRead struct {
	at        time.Time
	histogram FsyncHistogram
}

// WatchFsync prepares to read the metrics page at url, which needs no
// certificate. It asks nobody yet.
func WatchFsync(url string) *FsyncWatch {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	return &FsyncWatch{read: func(ctx context.Context) (FsyncHistogram, error) { return readFsync(ctx, client, url) }}
}

func readFsync(ctx context.Context, client *http.Client, url string) (FsyncHistogram, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return FsyncHistogram{}, fmt.Errorf("cannot read etcd's metrics: %w", err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return FsyncHistogram{}, fmt.Errorf("cannot read etcd's metrics: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return FsyncHistogram{}, fmt.Errorf("cannot read etcd's metrics: %s", resp.Status)
	}
	return ParseFsync(resp.Body)
}

// Run reads every 20 seconds until ctx ends. A member that does not answer is
// no error: there is nothing to remember of it.
func (w *FsyncWatch) Run(ctx context.Context) {
	tick := time.NewTicker(fsyncEvery)
	defer tick.Stop()
	for {
		limited, cancel := context.WithTimeout(ctx, askWait)
		if h, err := w.read(limited); err == nil {
			w.remember(fsyncRead{at: time.Now(), histogram: h})
		}
		cancel()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// remember keeps one read that is as old as the window, and all newer ones.
func (w *FsyncWatch) remember(r fsyncRead) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.reads = append(w.reads, r)
	for len(w.reads) > 1 && r.at.Sub(w.reads[1].at) >= fsyncWindow {
		w.reads = w.reads[1:]
	}
}

// P99 asks the member now, and is the time that 99 of 100 fsyncs of about the
// last minute took at most; 0 when there were none or nobody answers.
func (w *FsyncWatch) P99(ctx context.Context) time.Duration {
	now, err := w.read(ctx)
	if err != nil {
		return 0
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.reads) > 0 {
		now = now.Sub(w.reads[0].histogram)
	}
	return now.Quantile(0.99)
}
