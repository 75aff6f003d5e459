package endpoint

import (
	"bufio"
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

// The questions. A ready API server is asked the first one every
// ReadyInterval and the second in between: it runs one check instead of
// fifty, which is a tenth of the work, and shows a frozen server as well.
const (
	pathReady = "/readyz"
	pathAlive = "/livez/ping"
)

// probe asks one backend whether it is ready, over one connection that is kept
// between checks: a TLS handshake costs both sides a hundred times what the
// question costs. It is written by hand because net/http hides which connection
// a request used and goes on dialling after its request has timed out.
type probe struct {
	cfg     Config
	address string
	conn    net.Conn // nil when there is none
	reader  *bufio.Reader
	// ready is when the backend last said that it is; zero after any other
	// answer, so that the next question is the whole one.
	ready time.Time
}

func newProbe(cfg Config, address string) *probe {
	return &probe{cfg: cfg, address: address}
}

func (p *probe) path() string {
	if time.Since(p.ready) < time.Duration(p.cfg.ReadyInterval) {
		return pathAlive
	}
	return pathReady
}

func (p *probe) request(path string) []byte {
	return []byte("GET " + path + " HTTP/1.1\r\nHost: " + p.cfg.ServerName + "\r\nUser-Agent: kuorum-endpoint\r\nAccept: */*\r\n\r\n")
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
	conn := p.conn
	stop := context.AfterFunc(ctx, func() { closeAll(conn) })
	v, err := p.exchange()
	if !stop() || v == silent {
		p.close()
	}
	return v, err
}

func (p *probe) exchange() (verdict, error) {
	path := p.path()
	if _, err := p.conn.Write(p.request(path)); err != nil {
		return classify(err), err
	}
	resp, err := http.ReadResponse(p.reader, nil)
	if err != nil {
		return classify(err), err
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return classify(err), err
	}
	if resp.Close || len(body) == maxAnswer {
		p.close()
	}
	if path == pathAlive {
		return ready, nil // it was, a moment ago, and any answer shows that it lives
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
	conn := tls.Client(raw, cfg)
	if err := conn.HandshakeContext(ctx); err != nil {
		closeAll(raw)
		return classify(err), err
	}
	p.conn, p.reader = conn, bufio.NewReader(conn)
	return ready, nil
}

func (p *probe) close() {
	closeAll(p.conn)
	p.conn, p.reader = nil, nil
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
