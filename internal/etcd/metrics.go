package etcd

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"
)

// How the buckets of histograms begin on etcd's metrics page. Before the upper
// bound that of the peers has the peer's ID.
const (
	fsyncBuckets = `etcd_disk_wal_fsync_duration_seconds_bucket{le="`
	rttBuckets   = `etcd_network_peer_round_trip_time_seconds_bucket{To="`
)

// Metrics is what we read of a member's metrics page, all since it started.
type Metrics struct {
	// Fsync is how long the fsyncs of its log took: what its disk makes every
	// write wait.
	Fsync Histogram
	// PeerRTT is how far the other members are, by their IDs. Etcd asks each
	// every 4 s by HTTP, and counts a running average each half a minute.
	PeerRTT map[string]Histogram
}

// ParseMetrics reads etcd's metrics page (text format of Prometheus). It fails
// when the fsyncs are not there, or something makes no sense.
func ParseMetrics(page io.Reader) (Metrics, error) {
	m := Metrics{PeerRTT: map[string]Histogram{}}
	lines := bufio.NewScanner(page)
	for lines.Scan() {
		if !bytes.HasPrefix(lines.Bytes(), []byte("etcd_")) {
			continue // of 1600 lines, some hundred are worth a string
		}
		if err := m.take(lines.Text()); err != nil {
			return Metrics{}, fmt.Errorf("cannot read etcd's metric %q: %w", lines.Text(), err)
		}
	}
	if err := lines.Err(); err != nil {
		return Metrics{}, fmt.Errorf("cannot read etcd's metrics: %w", err)
	}
	if err := m.Fsync.check(); err != nil {
		return Metrics{}, fmt.Errorf("cannot read the fsync times in etcd's metrics: %w", err)
	}
	for peer, h := range m.PeerRTT {
		if err := h.check(); err != nil {
			return Metrics{}, fmt.Errorf("cannot read the times to peer %q in etcd's metrics: %w", peer, err)
		}
	}
	return m, nil
}

// take adds a line of the page, if it is one of ours.
func (m *Metrics) take(line string) error {
	if rest, ok := strings.CutPrefix(line, fsyncBuckets); ok {
		b, err := parseBucket(rest)
		m.Fsync.buckets = append(m.Fsync.buckets, b)
		return err
	}
	rest, ok := strings.CutPrefix(line, rttBuckets)
	if !ok {
		return nil
	}
	peer, rest, _ := strings.Cut(rest, `",le="`)
	b, err := parseBucket(rest)
	m.PeerRTT[peer] = Histogram{buckets: append(m.PeerRTT[peer].buckets, b)}
	return err
}

// Recent is what a member's metrics say of about the last minute.
type Recent struct {
	// FsyncP99 is the time that 99 of 100 fsyncs of its log took at most.
	FsyncP99 time.Duration
	// PeerRTT is how far the furthest member is. Etcd counts it rarely: what is
	// older is told when there is nothing new.
	PeerRTT time.Duration
}

const (
	metricsEvery  = 30 * time.Second
	metricsWindow = time.Minute
)

// MetricsWatch knows what a member's metrics say of the last minute. Etcd
// counts since its start only, so that a disk which has become slow would not
// show for days: the watch keeps what it read about a minute ago.
type MetricsWatch struct {
	read func(context.Context) (Metrics, error)

	mu    sync.Mutex
	reads []metricsRead // oldest first; the first may be older than the window
}

type metricsRead struct {
	at      time.Time
	metrics Metrics
}

// WatchMetrics prepares to read the metrics page at url, which needs no
// certificate. It asks nobody yet.
func WatchMetrics(url string) *MetricsWatch {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	return &MetricsWatch{read: func(ctx context.Context) (Metrics, error) { return readMetrics(ctx, client, url) }}
}

func readMetrics(ctx context.Context, client *http.Client, url string) (Metrics, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return Metrics{}, fmt.Errorf("cannot read etcd's metrics: %w", err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return Metrics{}, fmt.Errorf("cannot read etcd's metrics: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return Metrics{}, fmt.Errorf("cannot read etcd's metrics: %s", resp.Status)
	}
	return ParseMetrics(resp.Body)
}

// Run reads every 30 seconds until ctx ends. A member that does not answer is
// no error: there is nothing to remember of it.
func (w *MetricsWatch) Run(ctx context.Context) {
	tick := time.NewTicker(metricsEvery)
	defer tick.Stop()
	for {
		limited, cancel := context.WithTimeout(ctx, askWait)
		if m, err := w.read(limited); err == nil {
			w.remember(metricsRead{at: time.Now(), metrics: m})
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
func (w *MetricsWatch) remember(r metricsRead) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.reads = append(w.reads, r)
	for len(w.reads) > 1 && r.at.Sub(w.reads[1].at) >= metricsWindow {
		w.reads = w.reads[1:]
	}
}

// Recent asks the member now. It is empty when nobody answers; what has no
// samples is 0.
func (w *MetricsWatch) Recent(ctx context.Context) Recent {
	now, err := w.read(ctx)
	if err != nil {
		return Recent{}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	var before Metrics
	if len(w.reads) > 0 {
		before = w.reads[0].metrics
	}
	recent := Recent{FsyncP99: now.Fsync.Sub(before.Fsync).Quantile(0.99)}
	for peer, h := range now.PeerRTT {
		rtt := h.Sub(before.PeerRTT[peer]).Quantile(0.99)
		if rtt == 0 {
			rtt = h.Quantile(0.99)
		}
		recent.PeerRTT = max(recent.PeerRTT, rtt)
	}
	return recent
}
