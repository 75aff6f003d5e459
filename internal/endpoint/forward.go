package endpoint

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
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
// of one direction is passed on as such (half-close). Short messages are copied
// through this process; of longer ones the kernel moves the bytes between two TCP
// sockets (splice(2)), at six descriptors a connection.
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
	relay relay
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
	f.relay.join(ctx, client, server)
}

// Splice copies both ways until both sides have ended, one breaks, or ctx ends.
// The end of one direction is passed on alone. It owns both connections and
// returns when they are closed.
func Splice(ctx context.Context, client, server net.Conn) {
	new(relay).join(ctx, client, server)
}

const (
	// messageSize is more than most requests and answers. To copy one costs less than
	// to have the kernel move it through a pipe.
	messageSize = 4 << 10
	// streamSize is how much is spliced before who sent more than a message is taken
	// for one who sends messages again.
	streamSize = 1 << 20
)

type message [messageSize]byte

// relay joins connections. Its zero value may be used, by several goroutines.
type relay struct {
	spare sync.Pool // of *message: a connection that says nothing holds none
}

// join is Splice.
func (r *relay) join(ctx context.Context, client, server net.Conn) {
	// Closing is also what ends the other direction's copy.
	cut := func() { closeAll(client, server) }
	defer cut()
	defer context.AfterFunc(ctx, cut)()
	var up sync.WaitGroup
	up.Go(func() { r.pump(server, client, cut) })
	r.pump(client, server, cut)
	up.Wait()
}

// pump copies from src until its end and passes the end on. A connection that
// broke, or a transport without half-close, is cut in both directions.
func (r *relay) pump(dst, src net.Conn, cut func()) {
	if err := r.copy(bare(dst), bare(src)); err != nil {
		cut()
		return
	}
	half, ok := bare(dst).(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		cut()
	}
}

// copy returns when src ends.
func (r *relay) copy(dst, src net.Conn) error {
	tcp, ok := src.(*net.TCPConn)
	if !ok {
		_, err := io.Copy(dst, src)
		return err
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return err
	}
	for {
		n, err := r.copyMessage(dst, raw)
		if n == 0 || err != nil {
			return err
		}
		if n < messageSize {
			continue
		}
		if _, err := io.CopyN(dst, src, streamSize); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// copyMessage waits until src has sent something and copies it, at most a messageSize;
// no byte and no error are src's end.
func (r *relay) copyMessage(dst io.Writer, src syscall.RawConn) (int, error) {
	var m *message
	var n int
	var failed error
	waited := src.Read(func(fd uintptr) (done bool) {
		m = r.take()
		n, failed = syscall.Read(int(fd), m[:])
		for errors.Is(failed, syscall.EINTR) {
			n, failed = syscall.Read(int(fd), m[:])
		}
		if errors.Is(failed, syscall.EAGAIN) {
			r.spare.Put(m)
			m = nil
			return false
		}
		return true
	})
	if m != nil {
		defer r.spare.Put(m)
	}
	switch {
	case waited != nil:
		return 0, waited
	case failed != nil:
		return 0, os.NewSyscallError("read", failed)
	case n == 0:
		return 0, nil
	}
	return dst.Write(m[:n])
}

func (r *relay) take() *message {
	if m, ok := r.spare.Get().(*message); ok {
		return m
	}
	return new(message)
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
