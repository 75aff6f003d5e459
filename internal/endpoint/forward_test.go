package endpoint

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// forwardTo runs Forward to one address and returns where to connect.
func forwardTo(tb testing.TB, address string) string {
	tb.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	dial := func(ctx context.Context, _ net.Conn) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", address)
	}
	go func() { done <- Forward(ctx, ln, dial, slog.New(slog.DiscardHandler)) }()
	tb.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			tb.Errorf("forward: %v", err)
		}
	})
	return ln.Addr().String()
}

// serveTCP hands every connection to serve and closes it afterwards.
func serveTCP(tb testing.TB, serve func(*net.TCPConn)) string {
	tb.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			conns.Go(func() {
				defer closeAll(conn)
				serve(conn.(*net.TCPConn))
			})
		}
	})
	tb.Cleanup(func() {
		_ = ln.Close()
		conns.Wait()
	})
	return ln.Addr().String()
}

func dialTCP(tb testing.TB, address string) *net.TCPConn {
	tb.Helper()
	conn, err := net.DialTimeout("tcp", address, 30*time.Second)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(2 * time.Minute))
	return conn.(*net.TCPConn)
}

// descriptors of this process. Pipes that splice(2) used are in a sync.Pool,
// which two collections empty.
func descriptors(t *testing.T) int {
	t.Helper()
	runtime.GC()
	runtime.GC()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

func TestForwardPassesHalfClose(t *testing.T) {
	t.Run("client first", func(t *testing.T) {
		conn := dialTCP(t, forwardTo(t, serveTCP(t, func(conn *net.TCPConn) {
			request, _ := io.ReadAll(conn) // Needs the end to go on.
			_, _ = io.WriteString(conn, "answer to "+string(request))
		})))
		_, _ = io.WriteString(conn, "question")
		if err := conn.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(conn); err != nil || string(got) != "answer to question" {
			t.Errorf("read %q, %v", got, err)
		}
	})
	t.Run("server first", func(t *testing.T) {
		received := make(chan string, 1)
		conn := dialTCP(t, forwardTo(t, serveTCP(t, func(conn *net.TCPConn) {
			_, _ = io.WriteString(conn, "that was all")
			_ = conn.CloseWrite()
			rest, _ := io.ReadAll(conn)
			received <- string(rest)
		})))
		if got, err := io.ReadAll(conn); err != nil || string(got) != "that was all" {
			t.Errorf("read %q, %v", got, err)
		}
		_, _ = io.WriteString(conn, "one more thing")
		_ = conn.Close()
		if got := <-received; got != "one more thing" {
			t.Errorf("the server read %q", got)
		}
	})
}

func TestForwardBothWaysIntact(t *testing.T) {
	const size = 48 << 20
	type sum = [sha256.Size]byte
	// exchange sends and receives at the same time.
	exchange := func(conn *net.TCPConn, seed uint64) (sent, received sum) {
		var both sync.WaitGroup
		both.Go(func() {
			hash := sha256.New()
			random := rand.NewChaCha8([32]byte{byte(seed)})
			if _, err := io.CopyN(io.MultiWriter(conn, hash), random, size); err != nil {
				t.Error(err)
			}
			_ = conn.CloseWrite()
			sent = sum(hash.Sum(nil))
		})
		both.Go(func() {
			hash := sha256.New()
			if n, err := io.Copy(hash, conn); n != size || err != nil {
				t.Errorf("received %d bytes: %v", n, err)
			}
			received = sum(hash.Sum(nil))
		})
		both.Wait()
		return sent, received
	}
	type sums struct{ sent, received sum }
	server := make(chan sums, 1)
	address := forwardTo(t, serveTCP(t, func(conn *net.TCPConn) {
		var s sums
		s.sent, s.received = exchange(conn, 1)
		server <- s
	}))
	sent, received := exchange(dialTCP(t, address), 2)
	if other := <-server; sent != other.received || received != other.sent {
		t.Error("what arrived is not what was sent")
	}
}

// TestForwardMessages: questions and answers of every length around that from which on
// the kernel moves the bytes, in turn and one at a time.
func TestForwardMessages(t *testing.T) {
	conn := dialTCP(t, forwardTo(t, serveTCP(t, func(conn *net.TCPConn) {
		var size uint32
		for binary.Read(conn, binary.BigEndian, &size) == nil {
			question := make([]byte, size)
			if _, err := io.ReadFull(conn, question); err != nil {
				return
			}
			_, _ = conn.Write(question)
		}
	})))
	sizes := []int{1, messageSize - 5, messageSize - 4, messageSize - 3, messageSize, 3 * messageSize, 2, streamSize, streamSize + messageSize, 7, 0, 100}
	for round := range 3 {
		for _, size := range sizes {
			question := binary.BigEndian.AppendUint32(nil, uint32(size))
			for i := range size {
				question = append(question, byte(i%251+round))
			}
			if _, err := conn.Write(question); err != nil {
				t.Fatal(err)
			}
			answer := make([]byte, size)
			if _, err := io.ReadFull(conn, answer); err != nil || !bytes.Equal(answer, question[4:]) {
				t.Fatalf("a message of %d bytes comes back wrong, %v", size, err)
			}
		}
	}
}

func TestForwardPassesBreakOn(t *testing.T) {
	ended := make(chan struct{})
	address := forwardTo(t, serveTCP(t, func(conn *net.TCPConn) {
		_, _ = io.WriteString(conn, "x")
		_, _ = io.Copy(io.Discard, conn) // until it breaks
		close(ended)
	}))
	conn := dialTCP(t, address)
	_, _ = io.ReadFull(conn, make([]byte, 1))
	_ = conn.SetLinger(0) // Close with a reset, as a crash does.
	_ = conn.Close()
	<-ended
}

func TestForwardClosesClientWithoutPeer(t *testing.T) {
	ln := localListener(t)
	dead := ln.Addr().String()
	_ = ln.Close()
	conn := dialTCP(t, forwardTo(t, dead))
	if _, err := conn.Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
		t.Errorf("read: %v, want the end", err)
	}
}

func TestForwardEndsConnectionsWithContext(t *testing.T) {
	ln := localListener(t)
	server := serveTCP(t, func(conn *net.TCPConn) { _, _ = io.Copy(conn, conn) })
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- Forward(ctx, ln, func(ctx context.Context, _ net.Conn) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", server)
		}, slog.New(slog.DiscardHandler))
	}()
	var conns []*net.TCPConn
	for range 20 {
		conn := dialTCP(t, ln.Addr().String())
		_, _ = io.WriteString(conn, "x")
		if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		conns = append(conns, conn)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("forward: %v", err)
	}
	noGoroutineLeft(t)
	for _, conn := range conns {
		if _, err := conn.Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
			t.Errorf("read: %v, want the end", err)
		}
	}
}

// script is a listener that returns what it is told.
type script struct {
	results chan any // error or net.Conn
	closed  chan struct{}
	once    sync.Once
}

func newScript(results ...any) *script {
	s := &script{results: make(chan any, len(results)), closed: make(chan struct{})}
	for _, r := range results {
		s.results <- r
	}
	return s
}

func (s *script) Accept() (net.Conn, error) {
	select {
	case r := <-s.results:
		if err, ok := r.(error); ok {
			return nil, &net.OpError{Op: "accept", Err: err}
		}
		return r.(net.Conn), nil
	case <-s.closed:
		return nil, net.ErrClosed
	}
}

func (s *script) Close() error { s.once.Do(func() { close(s.closed) }); return nil }

func (s *script) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1} }

func TestForwardWaitsOutShortage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, client := net.Pipe()
		far, server := net.Pipe()
		ln := newScript(syscall.EMFILE, syscall.EMFILE, syscall.ENOBUFS, client)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		start := time.Now()
		var dialled time.Duration
		go func() {
			done <- Forward(ctx, ln, func(context.Context, net.Conn) (net.Conn, error) {
				dialled = time.Since(start)
				return server, nil
			}, slog.New(slog.DiscardHandler))
		}()
		go func() { _, _ = io.WriteString(near, "hello") }()
		got := make([]byte, 5)
		if _, err := io.ReadFull(far, got); err != nil || string(got) != "hello" {
			t.Errorf("read %q, %v", got, err)
		}
		if want := 35 * time.Millisecond; dialled != want {
			t.Errorf("accepted after %v, want %v (5 + 10 + 20)", dialled, want)
		}
		// A pipe cannot be half closed, so both ends go.
		_ = near.Close()
		if _, err := far.Read(got); !errors.Is(err, io.EOF) {
			t.Errorf("read at the far end: %v", err)
		}
		cancel()
		if err := <-done; err != nil {
			t.Errorf("forward: %v", err)
		}
	})
}

func TestForwardReportsBrokenListener(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		err := Forward(t.Context(), newScript(syscall.EBADF), nil, slog.New(slog.DiscardHandler))
		if !errors.Is(err, syscall.EBADF) || !strings.HasPrefix(err.Error(), "cannot accept connections on 127.0.0.1:1: ") {
			t.Errorf("error is %v", err)
		}
	})
}

func TestForwardStopsWhileItWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		results := make([]any, 1000)
		for i := range results {
			results[i] = syscall.ENFILE
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		start := time.Now()
		if err := Forward(ctx, newScript(results...), nil, slog.New(slog.DiscardHandler)); err != nil {
			t.Errorf("forward: %v", err)
		}
		if took := time.Since(start); took != 10*time.Second {
			t.Errorf("returned after %v", took)
		}
	})
}

// BenchmarkForward compares one stream through Forward with the same stream
// without it.
func BenchmarkForward(b *testing.B) {
	done := make(chan int64, 1)
	sink := serveTCP(b, func(conn *net.TCPConn) {
		n, _ := io.Copy(io.Discard, conn)
		done <- n
	})
	block := make([]byte, 256<<10)
	for name, address := range map[string]string{"direct": sink, "forwarded": forwardTo(b, sink)} {
		b.Run(name, func(b *testing.B) {
			conn := dialTCP(b, address)
			b.SetBytes(int64(len(block)))
			b.ReportAllocs()
			var want int64
			for b.Loop() {
				n, err := conn.Write(block)
				if err != nil {
					b.Fatal(err)
				}
				want += int64(n)
			}
			_ = conn.CloseWrite()
			if got := <-done; got != want {
				b.Errorf("%d bytes arrived, want %d", got, want)
			}
		})
	}
}

// TestAwaitWord: the first byte is waited for, and left to who reads it; who says
// nothing, or goes, is told apart from who breaks.
func TestAwaitWord(t *testing.T) {
	pair := func(t *testing.T) (client, here *net.TCPConn) {
		ln := localListener(t)
		client = dialTCP(t, ln.Addr().String())
		conn, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		return client, conn.(*net.TCPConn)
	}
	t.Run("speaks after a while", func(t *testing.T) {
		client, here := pair(t)
		heard := make(chan error, 1)
		go func() { heard <- awaitWord(t.Context(), here, time.Minute) }()
		select {
		case err := <-heard:
			t.Fatalf("it has said nothing: %v", err)
		case <-time.After(20 * time.Millisecond):
		}
		_, _ = io.WriteString(client, "word")
		if err := <-heard; err != nil {
			t.Fatal(err)
		}
		_ = client.CloseWrite()
		if got, err := io.ReadAll(here); err != nil || string(got) != "word" {
			t.Errorf("read %q, %v", got, err)
		}
	})
	t.Run("says nothing", func(t *testing.T) {
		_, here := pair(t)
		if err := awaitWord(t.Context(), here, 20*time.Millisecond); !errors.Is(err, errMute) {
			t.Errorf("error is %v", err)
		}
	})
	t.Run("goes", func(t *testing.T) {
		client, here := pair(t)
		_ = client.Close()
		if err := awaitWord(t.Context(), here, time.Minute); !errors.Is(err, errMute) {
			t.Errorf("error is %v", err)
		}
	})
	t.Run("the balancer stops", func(t *testing.T) {
		_, here := pair(t)
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(20*time.Millisecond, cancel)
		if err := awaitWord(ctx, here, time.Minute); !errors.Is(err, errMute) {
			t.Errorf("error is %v", err)
		}
	})
}

// TestPauseAfterALongAnswer: who has got more than a message, and nothing since, pauses.
func TestPauseAfterALongAnswer(t *testing.T) {
	ln := localListener(t)
	var there *link
	dialled := make(chan struct{})
	dial := func(ctx context.Context, _ net.Conn) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", serveTCP(t, func(conn *net.TCPConn) {
			question := make([]byte, 1)
			for {
				if _, err := io.ReadFull(conn, question); err != nil {
					return
				}
				if question[0] == '?' {
					_, _ = conn.Write(make([]byte, 2*messageSize))
				}
			}
		}))
		there = &link{Conn: conn, release: func() {}, talk: talk{began: time.Now()}}
		close(dialled)
		return there, err
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Forward(ctx, ln, dial, slog.New(slog.DiscardHandler)) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	client := dialTCP(t, ln.Addr().String())
	<-dialled
	pause := func() time.Duration { return there.talk.pause(there.Conn) }
	if got := pause(); got != 0 {
		t.Errorf("nothing was said, and it pauses for %v", got)
	}
	answer := make([]byte, 2*messageSize)
	for range 2 {
		if _, err := io.WriteString(client, "?"); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(client, answer); err != nil {
			t.Fatal(err)
		}
		eventually(t, "it pauses", func() bool { return pause() >= 50*time.Millisecond })
	}
	if there.talk.long.Load() != 1 {
		t.Error("the long answer is over")
	}
	_, _ = io.WriteString(client, "!")
	eventually(t, "it waits for an answer", func() bool { return pause() == 0 })
}
