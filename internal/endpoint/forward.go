package endpoint

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	acceptDelayMin = 5 * time.Millisecond
	acceptDelayMax = time.Second
)

// Forward accepts connections from ln, gets each a peer from dial and copies
// bytes both ways until both directions have ended or either breaks. The end
// of one direction is passed on as such (half-close). Between two TCP sockets
// the kernel moves the bytes (splice(2)), at six descriptors a connection.
// Nothing times out; peers that vanish are left to TCP keep-alive, which is for
// ln and dial to set.
//
// It blocks until ctx is done, then returns nil, or until ln fails for good.
// Either way it has closed ln and all connections and ended its goroutines,
// provided that dial returns when its context is done. A passing shortage
// (descriptors, memory) is waited out. When dial fails, the client's
// connection is closed; only the first failure in a row is logged.
func Forward(ctx context.Context, ln net.Listener, dial func(context.Context) (net.Conn, error), log *slog.Logger) error {
	f := &forwarder{ln: ln, dial: dial, log: log.With("listen", ln.Addr().String())}
	defer f.conns.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = ln.Close() })()
	defer func() { _ = ln.Close() }()
	for {
		conn, err := f.accept(ctx)
		if ctx.Err() != nil {
			closeAll(conn)
			return nil
		}
		if err != nil {
			return fmt.Errorf("cannot accept connections on %s: %w", ln.Addr(), err)
		}
		f.conns.Go(func() { f.serve(ctx, conn) })
	}
}

type forwarder struct {
	ln    net.Listener
	dial  func(context.Context) (net.Conn, error)
	log   *slog.Logger
	conns sync.WaitGroup
	// stuck is set while dial fails.
	stuck atomic.Bool
}

func (f *forwarder) accept(ctx context.Context) (net.Conn, error) {
	for delay := acceptDelayMin; ; delay = min(2*delay, acceptDelayMax) {
		conn, err := f.ln.Accept()
		if err == nil || !shortage(err) {
			return conn, err
		}
		f.log.WarnContext(ctx, "cannot accept a connection yet", "error", err, "retry_in", delay)
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(delay):
		}
	}
}

// shortage reports whether accepting may work again later.
func shortage(err error) bool {
	passing := []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED}
	return slices.ContainsFunc(passing, func(errno syscall.Errno) bool { return errors.Is(err, errno) })
}

func (f *forwarder) serve(ctx context.Context, client net.Conn) {
	server, err := f.dial(ctx)
	if err != nil {
		closeAll(client)
		if ctx.Err() == nil && !f.stuck.Swap(true) {
			f.log.WarnContext(ctx, "cannot connect a client", "client", client.RemoteAddr().String(), "error", err)
		}
		return
	}
	f.stuck.Store(false)
	Splice(ctx, client, server)
}

// Splice copies both ways until both sides have ended, one breaks, or ctx ends.
// The end of one direction is passed on alone. It owns both connections and
// returns when they are closed.
func Splice(ctx context.Context, client, server net.Conn) {
	// Closing is also what ends the other direction's copy.
	cut := func() { closeAll(client, server) }
	defer cut()
	defer context.AfterFunc(ctx, cut)()
	var up sync.WaitGroup
	up.Go(func() { pump(server, client, cut) })
	pump(client, server, cut)
	up.Wait()
}

// pump copies from src until its end and passes the end on. A connection that
// broke, or a transport without half-close, is cut in both directions.
func pump(dst, src net.Conn, cut func()) {
	if _, err := io.Copy(bare(dst), bare(src)); err != nil {
		cut()
		return
	}
	half, ok := bare(dst).(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		cut()
	}
}

// bare returns the connection inside a link, which io.Copy needs to see so that
// it can use splice(2). Other wrappers (TLS) change the bytes and stay.
func bare(conn net.Conn) net.Conn {
	if l, ok := conn.(*link); ok {
		return l.Conn
	}
	return conn
}

// closeAll ignores errors: a connection is closed because it is of no use.
func closeAll(conns ...net.Conn) {
	for _, conn := range conns {
		if conn != nil {
			_ = conn.Close()
		}
	}
}
