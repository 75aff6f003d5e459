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
	"strings"
	"syscall"
	"time"

	"golang.org/x/net/http2"
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
// the question costs. A backend that said it is ready is asked again after
// ReadyInterval and in between gets an HTTP/2 PING (RFC 9113, 6.7), which a
// frozen one does not answer either and which costs an API server nearly
// nothing: a request passes all of its filters.
type probe struct {
	cfg     Config
	address string
	raw     net.Conn          // nil when there is none
	conn    *http2.ClientConn //nolint:staticcheck // net/http's own has no Ping
	// ready is when the backend last said that it is; zero after any other
	// answer, so that the next question is the whole one.
	ready time.Time
}

func newProbe(cfg Config, address string) *probe {
	return &probe{cfg: cfg, address: address}
}

// check takes at most the configured timeout. It is not safe for concurrent
// use.
func (p *probe) check(ctx context.Context) result {
	timeout := time.Duration(p.cfg.Timeout)
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	start := time.Now()
	kept := p.conn != nil
	v, err := p.ask(ctx)
	if kept && v == silent && ctx.Err() == nil {
		// Servers may end an idle connection at any time: ask on a new one.
		v, err = p.ask(ctx)
	}
	if v != ready {
		p.ready = time.Time{}
	}
	if v == silent && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		err = fmt.Errorf("no answer within %s", timeout)
	}
	return result{verdict: v, err: err, latency: time.Since(start)}
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
	if time.Since(p.ready) < time.Duration(p.cfg.ReadyInterval) {
		if err := p.conn.Ping(ctx); err != nil {
			return classify(err), err
		}
		return ready, nil
	}
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
	return unready, fmt.Errorf("/readyz says %s%s", resp.Status, failures(body))
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
func failures(body []byte) string {
	var names []string
	for line := range bytes.Lines(body) {
		rest, ok := bytes.CutPrefix(line, []byte("[-]"))
		if !ok {
			continue
		}
		name, _, _ := strings.Cut(string(rest), " ")
		names = append(names, strings.TrimSpace(name))
	}
	if len(names) == 0 {
		return ""
	}
	return " (failed: " + strings.Join(names, ", ") + ")"
}
