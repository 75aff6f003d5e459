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

	"kuorum/internal/host"
)

const (
	acceptDelayMin = 5 * time.Millisecond
	acceptDelayMax = time.Second
)

// Dial gets a peer for a client's connection, of which it may wait for the first bytes.
type Dial func(ctx context.Context, client net.Conn) (net.Conn, error)

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
// connection is closed; only the first failure in a row is logged, and none with a
// client that says nothing.
func Forward(ctx context.Context, ln net.Listener, dial Dial, log *slog.Logger) error {
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
	dial  Dial
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
	server, err := f.dial(ctx, client)
	if err != nil {
		closeAll(client)
		if ctx.Err() == nil && !errors.Is(err, errMute) && !f.stuck.Swap(true) {
			f.log.WarnContext(ctx, "cannot connect a client", "client", client.RemoteAddr().String(), "error", err)
		}
		return
	}
	f.stuck.Store(false)
	f.relay.join(ctx, client, server)
}

// muteFor is how long a client may be connected and say nothing: as long as client-go
// waits for a server in a TLS handshake.
const muteFor = 10 * time.Second

// errMute says that a client has said nothing.
var errMute = errors.New("the client says nothing")

// awaitWord waits for the first byte of a client, which it leaves there, for that long. Clients of TLS
// speak first (RFC 8446, 2). One that does not costs a descriptor, and no backend
// anything.
func awaitWord(ctx context.Context, client net.Conn, limit time.Duration) error {
	tcp, ok := bare(client).(*net.TCPConn)
	if !ok {
		return nil
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return err
	}
	if err := tcp.SetReadDeadline(time.Now().Add(limit)); err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { _ = tcp.SetReadDeadline(time.Unix(0, 1)) })()
	if ended, err := host.Await(raw); ended || err != nil {
		return errors.Join(errMute, err)
	}
	return tcp.SetReadDeadline(time.Time{})
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
	var t *talk
	if l, ok := server.(*link); ok {
		t = &l.talk
	}
	var up sync.WaitGroup
	up.Go(func() { r.pump(server, client, t.client(), cut) })
	r.pump(client, server, t.backend(), cut)
	up.Wait()
}

// talk is what is known of what goes on between a client and a backend. Only the two
// of them know the requests that are under way; but as a rule there are none when the
// backend was the last to say something, some time ago.
type talk struct {
	began           time.Time
	asked, answered atomic.Int64 // when somebody last said something, in ns after began
	long            atomic.Int32 // how many of the two are saying more than a message
}

// voice is one of the two who talk; without a talk nobody listens.
type voice struct {
	talk *talk
	last *atomic.Int64
	asks bool // it is the client's
}

func (t *talk) client() voice {
	if t == nil {
		return voice{}
	}
	return voice{t, &t.asked, true}
}

func (t *talk) backend() voice {
	if t == nil {
		return voice{}
	}
	return voice{t, &t.answered, false}
}

func (v voice) says() {
	if v.talk != nil {
		v.last.Store(max(1, int64(time.Since(v.talk.began)))) // zero is never
	}
}

// saysMuch copies many bytes.
func (v voice) saysMuch(dst io.Writer, src io.Reader) error {
	if v.talk != nil {
		v.talk.long.Add(1)
		defer v.talk.long.Add(-1)
	}
	_, err := io.CopyN(dst, src, streamSize)
	v.says()
	return err
}

// pause is for how long nothing has been said since an answer; zero while that is not
// known, or there is none. Of those who say more than a message the kernel knows when
// the last bytes came and went.
func (t *talk) pause(backend net.Conn) time.Duration {
	asked, answered := time.Duration(t.asked.Load()), time.Duration(t.answered.Load())
	if answered == 0 {
		return 0
	}
	if t.long.Load() == 0 {
		return pauseOf(asked, answered, time.Since(t.began))
	}
	tcp, ok := backend.(syscall.Conn)
	if !ok {
		return 0
	}
	last, err := host.LastExchange(tcp)
	if err != nil {
		return 0
	}
	return pauseOf(-last.Sent, -last.Received, 0)
}

func pauseOf(asked, answered, now time.Duration) time.Duration {
	if answered < asked {
		return 0
	}
	return now - answered
}

// pump copies from src until its end and passes the end on. A connection that
// broke, or a transport without half-close, is cut in both directions.
func (r *relay) pump(dst, src net.Conn, v voice, cut func()) {
	if err := r.copy(bare(dst), bare(src), v); err != nil {
		cut()
		return
	}
	half, ok := bare(dst).(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		cut()
	}
}

// copy returns when src ends.
func (r *relay) copy(dst, src net.Conn, v voice) error {
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
		n, err := r.copyMessage(dst, raw, v)
		if n == 0 || err != nil {
			return err
		}
		if n < messageSize {
			continue
		}
		if err := v.saysMuch(dst, src); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// copyMessage waits until src has sent something and copies it, at most a messageSize;
// no byte and no error are src's end.
func (r *relay) copyMessage(dst io.Writer, src syscall.RawConn, v voice) (int, error) {
	data, err := host.Receive(src, r.take, r.give)
	if err != nil {
		return 0, err
	}
	defer r.give(data)
	if len(data) == 0 {
		return 0, nil
	}
	if v.asks {
		v.says() // who has begun to ask waits for an answer, also if the other is slow to hear it
	}
	n, err := dst.Write(data)
	v.says()
	return n, err
}

func (r *relay) take() []byte {
	if m, ok := r.spare.Get().(*message); ok {
		return m[:]
	}
	return new(message)[:]
}

func (r *relay) give(b []byte) { r.spare.Put((*message)(b[:messageSize])) }

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
