package endpoint

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"kuorum/internal/cluster"
)

func TestWatchKeepsTime(t *testing.T) {
	const interval = 250 * time.Millisecond
	tests := map[string]struct {
		takes time.Duration // a check
		kick  time.Duration // sent at
		until time.Duration
		want  []time.Duration // starts of checks
	}{
		"interval from start to start": {
			takes: 100 * time.Millisecond, until: 600 * time.Millisecond,
			want: []time.Duration{0, 250 * time.Millisecond, 500 * time.Millisecond},
		},
		"no pause after a slow check": {
			takes: time.Second, until: 2500 * time.Millisecond,
			want: []time.Duration{0, time.Second, 2 * time.Second},
		},
		"kick does not wait": {
			kick: 20 * time.Millisecond, until: 300 * time.Millisecond,
			want: []time.Duration{0, 20 * time.Millisecond, 270 * time.Millisecond},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				var got []time.Duration
				kick := make(chan struct{}, 1)
				if tt.kick > 0 {
					time.AfterFunc(tt.kick, func() { kick <- struct{}{} })
				}
				ctx, cancel := context.WithTimeout(t.Context(), tt.until)
				defer cancel()
				watch(ctx, interval, kick, func(ctx context.Context) {
					got = append(got, time.Since(start))
					select {
					case <-ctx.Done():
					case <-time.After(tt.takes):
					}
				})
				if diff := cmp.Diff(tt.want, got); diff != "" {
					t.Errorf("checks at (-want +got):\n%s", diff)
				}
			})
		})
	}
}

// lone is a probe of the only backend there is.
func lone(cfg Config, s *apiServer) *probe {
	return newProbe(cfg, s.address, &pace{}, func() bool { return false })
}

func TestProbeKeepsItsConnection(t *testing.T) {
	a := newAuthority(t)
	s := newAPIServer(t, a, "s1")
	p := lone(testConfig(a, s).withDefaults(), s)
	defer p.close()
	for _, code := range []int{200, 200, 500, 200, 429, 200} {
		s.code.Store(int64(code))
		r := p.check(t.Context())
		want := unready
		if code == http.StatusOK {
			want = ready
		}
		if r.verdict != want || (r.err == nil) != (want == ready) {
			t.Fatalf("verdict for %d is %+v", code, r)
		}
	}
	if n := s.accepted.Load(); n != 1 {
		t.Errorf("six checks took %d connections, want 1", n)
	}
}

// TestProbeTellsStoppingFromIll: one that stops finishes what it has begun, one that has
// lost its etcd never does.
func TestProbeTellsStoppingFromIll(t *testing.T) {
	a := newAuthority(t)
	s := newAPIServer(t, a, "s1")
	p := lone(testConfig(a, s).withDefaults(), s)
	defer p.close()
	for body, want := range map[string]verdict{
		"[+]ping ok\n[-]etcd failed: reason withheld\n":                                               ill,
		"[+]ping ok\n[-]shutdown failed: reason withheld\n":                                           unready,
		"[-]etcd failed: reason withheld\n[-]shutdown failed: reason withheld\nreadyz check failed\n": unready,
		"who are you?": unready,
		"":             unready,
	} {
		s.body.Store(&body)
		s.code.Store(http.StatusInternalServerError)
		if r := p.check(t.Context()); r.verdict != want || !r.works.IsZero() {
			t.Errorf("%q is judged %+v, want %d", body, r, want)
		}
	}
	s.code.Store(http.StatusOK)
	if r := p.check(t.Context()); r.verdict != ready || r.works.IsZero() {
		t.Errorf("judged %+v", r)
	}
}

// A server may end an idle connection just when the next question comes.
func TestProbeSurvivesTheEndOfItsConnection(t *testing.T) {
	a := newAuthority(t)
	s := newAPIServer(t, a, "s1")
	p := lone(testConfig(a, s).withDefaults(), s)
	defer p.close()
	for range 3 {
		if r := p.check(t.Context()); r.verdict != ready {
			t.Fatalf("verdict is %+v", r)
		}
		s.kill()
		s.start()
	}
	s.kill()
	if r := p.check(t.Context()); r.verdict != refused {
		t.Errorf("verdict on a dead server is %+v", r)
	}
}

// The whole question is asked once in ReadyInterval; in between a server only
// has to answer, and one that does not is asked the whole question next.
func TestProbeAsksForReadinessOnceInAWhile(t *testing.T) {
	a := newAuthority(t)
	s := newAPIServer(t, a, "s1")
	cfg := testConfig(a, s).withDefaults()
	cfg.ReadyInterval = cluster.Duration(time.Hour)
	cfg.Timeout = cluster.Duration(100 * time.Millisecond)
	p := lone(cfg, s)
	defer p.close()
	eventually(t, "it is ready", func() bool { return p.check(t.Context()).verdict == ready })
	asked := s.checks.Load()
	s.code.Store(http.StatusInternalServerError)
	eventually(t, "it answers", func() bool { return p.check(t.Context()).verdict == ready })
	if n := s.checks.Load(); n != asked {
		t.Errorf("readiness was asked for %d times more within its interval", n-asked)
	}
	s.freeze()
	if r := p.check(t.Context()); r.verdict != lost {
		t.Errorf("verdict on a frozen server is %+v", r)
	}
	s.thaw()
	eventually(t, "it answers the whole question", func() bool { return p.check(t.Context()).verdict == unready })
}

func TestProbeGivesUpOnFrozenServer(t *testing.T) {
	a := newAuthority(t)
	s := newAPIServer(t, a, "s1")
	cfg := testConfig(a, s).withDefaults()
	cfg.Timeout = cluster.Duration(100 * time.Millisecond)
	p := lone(cfg, s)
	defer p.close()
	eventually(t, "it answers", func() bool { return p.check(t.Context()).verdict == ready })
	s.freeze()
	// On the connection it has, then on a new one that never shakes hands.
	for _, want := range []result{
		{verdict: lost, err: errors.New("no answer to a ping within 100ms")},
		{verdict: silent, err: errors.New("no answer within 100ms")},
	} {
		r := p.check(t.Context())
		if r.verdict != want.verdict || r.err == nil || r.err.Error() != want.err.Error() {
			t.Errorf("result is %+v, want %+v", r, want)
		}
		if p.conn != nil {
			t.Error("the connection is kept")
		}
	}
	s.thaw()
	eventually(t, "it answers again", func() bool { return p.check(t.Context()).verdict == ready })
}

// A frozen server is given up sooner where its clients have somewhere to go, and
// as soon as its own slowness of late allows.
func TestProbeHurriesWhereItMay(t *testing.T) {
	a := newAuthority(t)
	s := newAPIServer(t, a, "s1")
	cfg := testConfig(a, s).withDefaults()
	cfg.Timeout = cluster.Duration(time.Second)
	for _, tt := range []struct {
		hurried bool
		slowest time.Duration
		want    string
	}{
		{false, 0, "within 1s"},
		{true, 0, "within 150ms"},
		{true, 150 * time.Millisecond, "within 450ms"},
	} {
		seen := &pace{}
		seen.note(tt.slowest, time.Now())
		p := newProbe(cfg, s.address, seen, func() bool { return tt.hurried })
		eventually(t, "it answers", func() bool { return p.check(t.Context()).verdict == ready })
		s.freeze()
		if r := p.check(t.Context()); r.verdict != lost || !strings.HasSuffix(r.err.Error(), tt.want) {
			t.Errorf("%+v: result is %+v", tt, r)
		}
		s.thaw()
		p.close()
	}
}

// What is answered too late is learnt from.
func TestProbeLearnsFromLateAnswers(t *testing.T) {
	a := newAuthority(t)
	s := newAPIServer(t, a, "s1")
	cfg := testConfig(a, s).withDefaults()
	cfg.Timeout = cluster.Duration(20 * time.Second)
	seen := &pace{}
	p := newProbe(cfg, s.address, seen, func() bool { return true })
	defer p.close()
	eventually(t, "it answers", func() bool { return p.check(t.Context()).verdict == ready })
	s.freeze()
	if r := p.check(t.Context()); r.verdict != lost {
		t.Fatalf("result is %+v", r)
	}
	s.thaw()
	eventually(t, "the answer counts", func() bool { return seen.limit(time.Now(), time.Hour) >= 3*leastLimit })
}

func TestAwait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		answer := make(chan error, 1)
		start := time.Now()
		if late, _ := await(answer, time.Second); !late || time.Since(start) != time.Second {
			t.Errorf("late is %v after %v", late, time.Since(start))
		}
		answer <- nil
		if late, err := await(answer, time.Second); late || err != nil {
			t.Errorf("late is %v, error %v", late, err)
		}
	})
}

func TestProbeEndsWithItsContext(t *testing.T) {
	a := newAuthority(t)
	s := newAPIServer(t, a, "s1")
	s.freeze()
	cfg := testConfig(a, s).withDefaults()
	cfg.Timeout = 1 << 62
	p := lone(cfg, s)
	ctx, cancel := context.WithCancel(t.Context())
	var ended atomic.Bool
	go func() {
		p.check(ctx)
		ended.Store(true)
	}()
	eventually(t, "the server sees the check", func() bool { return s.accepted.Load() > 0 })
	cancel()
	eventually(t, "the check ends", ended.Load)
}

func TestFailures(t *testing.T) {
	tests := map[string]string{
		"":                                "",
		"ok":                              "",
		"[+]a ok":                         "",
		"[-]etcd failed: reason withheld": " (failed: etcd)",
		"[+]ping ok\n[-]etcd failed: x\n[-]log failed\nreadyz": " (failed: etcd, log)",
		"[-]":         " (failed: )",
		"x [-]etcd\n": "",
	}
	for body, want := range tests {
		if got := inBrackets(failures([]byte(body))); got != want {
			t.Errorf("failures(%q) is %q, want %q", body, got, want)
		}
	}
}
