package endpoint

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/net/http2"

	"kuorum/internal/host"
)

// maxAnswer is more than any readyz answer; what is longer is cut.
const maxAnswer = 64 << 10

// watch runs check at once, then every interval from start to start, and at
// once whenever kick is sent to. A check that takes longer than the interval
// is followed by the next without a pause. It returns when ctx is done.
func watch(ctx context.Context, interval time.Duration, kick <-chan struct{}, check func(context.Context)) {
	for ctx.Err() == nil {
		next := time.NewTimer(interval)
		check(ctx)
		select {
		case <-ctx.Done():
		case <-kick:
		case <-next.C:
		}
		next.Stop()
	}
}

// probe asks one backend whether it is ready, over one HTTP/2 connection that
// is kept between checks: a TLS handshake costs both sides a hundred times what
// the question costs. Each check begins with an HTTP/2 PING (RFC 9113, 6.7),
// which a frozen backend does not answer and which costs an API server nearly
// nothing: a request passes all of its filters. One that said it is ready is
// asked that again after ReadyInterval only.
type probe struct {
	cfg     Config
	address string
	// pace is shared by all probes of a pool.
	pace *pace
	// hurried tells whether clients would be better off elsewhere. Where they
	// would not, a backend may be as slow as Timeout.
	hurried func() bool
	raw     net.Conn          // nil when there is none
	conn    *http2.ClientConn //nolint:staticcheck // net/http's own has no Ping
	// ready is when the backend last said that it is; zero after any other
	// answer, so that the next question is the whole one.
	ready time.Time
}

func newProbe(cfg Config, address string, pace *pace, hurried func() bool) *probe {
	return &probe{cfg: cfg, address: address, pace: pace, hurried: hurried}
}

// check takes at most twice the configured timeout. It is not safe for
// concurrent use.
func (p *probe) check(ctx context.Context) result {
	start := time.Now()
	v, err := p.judge(ctx)
	if v != ready {
		p.ready = time.Time{}
	}
	return result{verdict: v, err: err, latency: time.Since(start), works: p.ready}
}

func (p *probe) judge(ctx context.Context) (verdict, error) {
	if p.conn != nil {
		switch err := p.ping(ctx); {
		case errors.Is(err, errLate):
			return lost, err
		case err != nil:
			// Servers may end an idle connection at any time: ask on a new one.
			p.close()
		case time.Since(p.ready) < time.Duration(p.cfg.ReadyInterval):
			return ready, nil
		}
	}
	timeout := time.Duration(p.cfg.Timeout)
	limited, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	v, err := p.ask(limited)
	if v == silent && errors.Is(limited.Err(), context.DeadlineExceeded) {
		err = fmt.Errorf("no answer within %s", timeout)
	}
	return v, err
}

// errLate says that a backend owes the answer to a ping for too long.
var errLate = errors.New("no answer to a ping")

// ping waits for as long as pace has it, longer where this very process had to
// wait for a processor, or a packet may have been lost. The answer is waited for even after that,
// to learn from it, so the connection is given up then.
func (p *probe) ping(ctx context.Context) error {
	most := time.Duration(p.cfg.Timeout)
	asking, cancel := context.WithTimeout(ctx, most)
	conn, raw, start := p.conn, p.raw, time.Now()
	answer := make(chan error, 1)
	go func() {
		defer cancel()
		err := conn.Ping(asking)
		// What took longer was stopped, with this process or alone: nobody is that
		// slow.
		if took := time.Since(start); err == nil && took <= most {
			p.pace.note(took, time.Now())
		}
		answer <- err
	}()
	limit := most
	if p.hurried() {
		limit = p.pace.limit(start, most)
	}
	late, err := await(answer, limit)
	if late && limit < most && unacknowledged(raw) {
		limit += resending
		late, err = await(answer, resending)
	}
	switch {
	case late:
		go func() {
			<-asking.Done() // the answer may come still, and is learnt from
			closeAll(raw)
		}()
		p.raw, p.conn = nil, nil
	case err == nil:
		return nil
	case !errors.Is(asking.Err(), context.DeadlineExceeded):
		return err
	default:
		p.close()
		limit = most
	}
	return fmt.Errorf("%w within %s", errLate, limit)
}

// resending is longer than Linux takes to send a lost packet again, 200 ms at least:
// one that is lost is no reason to end all connections.
const resending = 250 * time.Millisecond

// unacknowledged tells whether the other machine has not even confirmed a question.
func unacknowledged(conn net.Conn) bool {
	if secured, ok := conn.(*tls.Conn); ok {
		conn = secured.NetConn()
	}
	tcp, ok := conn.(syscall.Conn)
	if !ok {
		return false
	}
	last, err := host.LastExchange(tcp)
	return err == nil && last.Unacknowledged
}

// await waits for an answer no longer than limit. If it is woken late this
// process is short of processor time, and the answer may be here, unread: then it
// waits once more.
func await(answer <-chan error, limit time.Duration) (late bool, err error) {
	for {
		begun := time.Now()
		select {
		case err := <-answer:
			return false, err
		case <-time.After(limit):
		}
		if time.Since(begun) <= limit+limit/4 {
			return true, nil
		}
	}
}

// ask leaves the connection open only if the next question can use it.
func (p *probe) ask(ctx context.Context) (verdict, error) {
	if p.conn == nil {
		if v, err := p.open(ctx); err != nil {
			return v, err
		}
	}
	v, err := p.exchange(ctx)
	if v == silent {
		p.close()
	}
	return v, err
}

func (p *probe) exchange(ctx context.Context) (verdict, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+p.cfg.ServerName+"/readyz", nil)
	if err != nil {
		return unready, err
	}
	req.Header.Set("User-Agent", "kuorum-endpoint")
	resp, err := p.conn.RoundTrip(req)
	if err != nil {
		return classify(err), err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return classify(err), err
	}
	if resp.StatusCode == http.StatusOK {
		p.ready = time.Now()
		return ready, nil
	}
	failed := failures(body)
	err = fmt.Errorf("/readyz says %s%s", resp.Status, inBrackets(failed))
	if len(failed) > 0 && !slices.Contains(failed, "shutdown") {
		return ill, err
	}
	return unready, err
}

func (p *probe) open(ctx context.Context) (verdict, error) {
	raw, err := (&net.Dialer{}).DialContext(ctx, "tcp", p.address)
	if err != nil {
		return classify(err), err
	}
	cfg, err := p.cfg.clientTLS()
	if err != nil {
		closeAll(raw)
		return unready, err
	}
	cfg.NextProtos = []string{http2.NextProtoTLS}
	secured := tls.Client(raw, cfg)
	if err := secured.HandshakeContext(ctx); err != nil {
		closeAll(raw)
		return classify(err), err
	}
	conn, err := (&http2.Transport{}).NewClientConn(secured) //nolint:staticcheck // as above
	if err != nil {
		closeAll(raw)
		return classify(err), err
	}
	p.raw, p.conn = secured, conn
	return ready, nil
}

func (p *probe) close() {
	closeAll(p.raw)
	p.raw, p.conn = nil, nil
}

// classify judges a failed check. An answer that is merely not trusted is no
// silence: with a wrong certificate the check says nothing about the server.
func classify(err error) verdict {
	if errors.Is(err, syscall.ECONNREFUSED) {
		return refused
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return unready
	}
	// An alert of the peer, such as "bad certificate".
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "remote error" {
		return unready
	}
	return silent
}

// failures names the parts that readyz reports as failed, in lines such as
// "[-]etcd failed: reason withheld".
func failures(body []byte) (names []string) {
	for line := range bytes.Lines(body) {
		rest, ok := bytes.CutPrefix(line, []byte("[-]"))
		if !ok {
			continue
		}
		name, _, _ := strings.Cut(string(rest), " ")
		names = append(names, strings.TrimSpace(name))
	}
	return names
}

func inBrackets(failed []string) string {
	if len(failed) == 0 {
		return ""
	}
	return " (failed: " + strings.Join(failed, ", ") + ")"
}

const (
	// leastLimit is how long a backend may owe the answer to a ping where
	// answers have been quick of late: a frozen one costs its clients that long.
	leastLimit = 150 * time.Millisecond
	// slowness is by how much an answer may take longer than the slowest of late
	// before it is taken for none.
	slowness = 3
	// lately is at least how long, and at most twice how long, an answer counts.
	lately = 30 * time.Second
)

// pace learns from the answers of all backends how long one may take:
// where the processors are busy everybody is slow, and nobody is dead. The zero
// value has seen no answer. It may be used by several goroutines.
type pace struct {
	mu           sync.Mutex
	slowest      time.Duration // since began
	slowestUntil time.Duration // in the period before
	began        time.Time
}

// note learns from an answer that took so long, even if nobody waited for it.
func (p *pace) note(took time.Duration, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.turn(now)
	p.slowest = max(p.slowest, took)
}

// limit is how long an answer may take now, never longer than most.
func (p *pace) limit(now time.Time, most time.Duration) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.turn(now)
	return min(most, max(leastLimit, slowness*max(p.slowest, p.slowestUntil)))
}

// turn begins a new period when the present one has lasted.
func (p *pace) turn(now time.Time) {
	switch age := now.Sub(p.began); {
	case age < lately:
	case age < 2*lately:
		p.slowestUntil, p.slowest, p.began = p.slowest, 0, now
	default:
		p.slowestUntil, p.slowest, p.began = 0, 0, now
	}
}
