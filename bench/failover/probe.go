package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// What a client does with an API server, each at its own rate and each without
// a second try. A read that the watch cache answers is on a new connection each
// time, or on one that is kept; a write needs etcd's quorum; a watch tells of
// the writes.
const (
	kindNew    = "new connection"
	kindReused = "reused connection"
	kindWrite  = "write"
	kindWatch  = "watch"
)

func kinds() []string { return []string{kindNew, kindReused, kindWrite, kindWatch} }

// attemptLimit ends what hangs; longer than any outage that is told apart.
const attemptLimit = 60 * time.Second

// Objects are written in turn: who writes one object at a time waits for nobody.
const (
	list    = "/api/v1/namespaces/default/configmaps"
	objects = 50
	watched = list + "?watch=1&labelSelector=kuorum%3Dprobe&resourceVersion="
)

func object(i int64) string { return fmt.Sprintf("%s/kuorum-probe-%d", list, i%objects) }

// trace is what happened to one kind of request.
type trace struct {
	OK     int           `json:"ok"`
	Failed int           `json:"failed"`
	Gap    time.Duration `json:"gap"` // the longest without a success
	At     time.Duration `json:"at"`  // when that began
	// Errors counts the failures by when they were, in tenths of a second, and their last words.
	Errors map[string]int `json:"errors,omitempty"`
}

// prober sends requests of every kind for a while. Attempts start at fixed
// times, whether earlier ones have ended or not: nobody waits for somebody
// else's connection.
type prober struct {
	server string // https://HOST:PORT
	tls    *tls.Config
	every  time.Duration // new connections are ten times as rare: a handshake costs that

	start time.Time
	mu    sync.Mutex
	ok    map[string][]time.Duration // since start
	bad   map[string]map[string]int
}

func newProber(kubeconfig, server string, every time.Duration) (*prober, error) {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, err
	}
	config.ServerName = "kubernetes" // whatever the address
	secured, err := rest.TLSConfigFor(config)
	if err != nil {
		return nil, err
	}
	return &prober{
		server: server, tls: secured, every: every,
		ok: map[string][]time.Duration{}, bad: map[string]map[string]int{},
	}, nil
}

// client has connections of its own.
func (p *prober) client(keep bool) *http.Client {
	return &http.Client{Transport: &http.Transport{
		TLSClientConfig: p.tls.Clone(), ForceAttemptHTTP2: true, DisableKeepAlives: !keep,
		// As client-go has it, but for its pings: they would take 45 s.
		MaxIdleConnsPerHost: 25,
	}}
}

// run probes for that long and tells what it saw.
func (p *prober) run(ctx context.Context, length time.Duration) (map[string]trace, error) {
	writer, reader := p.client(true), p.client(true)
	if err := p.makeObjects(ctx, writer); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, length)
	defer cancel()
	p.start = time.Now()
	var turn atomic.Int64
	var all sync.WaitGroup
	all.Go(func() {
		p.often(ctx, kindNew, 10*p.every, func(ctx context.Context) error {
			client := p.client(false)
			defer client.CloseIdleConnections()
			return p.do(ctx, client, http.MethodGet, object(0)+"?resourceVersion=0", "")
		})
	})
	all.Go(func() {
		p.often(ctx, kindReused, p.every, func(ctx context.Context) error {
			return p.do(ctx, reader, http.MethodGet, object(0)+"?resourceVersion=0", "")
		})
	})
	all.Go(func() {
		p.often(ctx, kindWrite, 2*p.every, func(ctx context.Context) error {
			return p.do(ctx, writer, http.MethodPatch, object(turn.Add(1)), fmt.Sprintf(`{"data":{"at":"%d"}}`, time.Now().UnixNano()))
		})
	})
	all.Go(func() { p.watch(ctx, p.client(true)) })
	all.Wait()
	return p.traces(length), nil
}

// often starts an attempt at each tick.
func (p *prober) often(ctx context.Context, kind string, every time.Duration, attempt func(context.Context) error) {
	var under sync.WaitGroup
	defer under.Wait()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		under.Go(func() {
			limited, cancel := context.WithTimeout(ctx, attemptLimit)
			defer cancel()
			err := attempt(limited)
			if ctx.Err() == nil {
				p.note(kind, err)
			}
		})
	}
}

func (p *prober) note(kind string, err error) {
	at := time.Since(p.start)
	p.mu.Lock()
	defer p.mu.Unlock()
	if err == nil {
		p.ok[kind] = append(p.ok[kind], at)
		return
	}
	if p.bad[kind] == nil {
		p.bad[kind] = map[string]int{}
	}
	p.bad[kind][fmt.Sprintf("%.1f s: %s", at.Seconds(), lastWords(err))]++
}

// lastWords leaves out addresses, which differ each time.
func lastWords(err error) string {
	text := err.Error()
	if i := strings.LastIndex(text, ": "); i >= 0 {
		text = text[i+2:]
	}
	return text
}

func (p *prober) do(ctx context.Context, client *http.Client, method, path, body string) error {
	req, err := http.NewRequestWithContext(ctx, method, p.server+path, strings.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/merge-patch+json")
	if method == http.MethodPost {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode >= 300 {
		return fmt.Errorf("%s: %s", resp.Status, bytes.TrimSpace(answer[:min(len(answer), 100)]))
	}
	return nil
}

func (p *prober) makeObjects(ctx context.Context, client *http.Client) error {
	limited, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for i := range int64(objects) {
		if p.do(limited, client, http.MethodGet, object(i), "") == nil {
			continue
		}
		body := fmt.Sprintf(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"kuorum-probe-%d","labels":{"kuorum":"probe"}}}`, i)
		if err := p.do(limited, client, http.MethodPost, list, body); err != nil {
			return err
		}
	}
	return nil
}

// watch begins again, as every client of Kubernetes does, whenever a watch ends.
func (p *prober) watch(ctx context.Context, client *http.Client) {
	version := "0"
	for ctx.Err() == nil {
		err := p.watchOnce(ctx, client, watched+version, &version)
		if ctx.Err() == nil {
			p.note(kindWatch, cmp.Or(err, errors.New("ended")))
		}
		select {
		case <-ctx.Done():
		case <-time.After(p.every):
		}
	}
}

func (p *prober) watchOnce(ctx context.Context, client *http.Client, path string, version *string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.server+path, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	events := json.NewDecoder(resp.Body)
	for {
		var event struct {
			Type   string
			Object struct {
				Metadata struct{ ResourceVersion string }
			}
		}
		if err := events.Decode(&event); err != nil {
			return err
		}
		if event.Type == "ERROR" {
			*version = "0" // compacted meanwhile
			return errors.New("the watch is too old")
		}
		*version = event.Object.Metadata.ResourceVersion
		p.note(kindWatch, nil)
	}
}

func (p *prober) traces(length time.Duration) map[string]trace {
	p.mu.Lock()
	defer p.mu.Unlock()
	result := map[string]trace{}
	for _, kind := range kinds() {
		t := trace{OK: len(p.ok[kind]), Errors: p.bad[kind]}
		for n := range maps.Values(p.bad[kind]) {
			t.Failed += n
		}
		t.At, t.Gap = longestGap(p.ok[kind], length)
		result[kind] = t
	}
	return result
}

// longestGap is the longest time without a success, from the first success on: a
// client needs a moment to begin.
func longestGap(ok []time.Duration, length time.Duration) (at, gap time.Duration) {
	slices.Sort(ok)
	if len(ok) == 0 {
		return 0, length
	}
	for i, begun := range ok {
		ended := length
		if i+1 < len(ok) {
			ended = ok[i+1]
		}
		if ended-begun > gap {
			at, gap = begun, ended-begun
		}
	}
	return at, gap
}
