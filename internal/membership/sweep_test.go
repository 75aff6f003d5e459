package membership

import (
	"context"
	"errors"
	"net"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"kuorum/internal/cluster"
	"kuorum/internal/etcd"
)

// wire is a way to etcd that counts what is asked, and can be cut.
type wire struct {
	dial func(context.Context, string) (net.Conn, error)

	mu    sync.Mutex
	sent  int // bytes
	cut   bool
	conns []net.Conn
}

type wireConn struct {
	net.Conn
	wire *wire
}

var errCut = errors.New("the wire is cut")

func (w *wire) Dial(ctx context.Context, address string) (net.Conn, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.cut {
		return nil, errCut
	}
	conn, err := w.dial(ctx, address)
	if err != nil {
		return nil, err
	}
	w.conns = append(w.conns, conn)
	return wireConn{conn, w}, nil
}

func (c wireConn) Write(data []byte) (int, error) {
	c.wire.mu.Lock()
	c.wire.sent += len(data)
	c.wire.mu.Unlock()
	return c.Conn.Write(data)
}

// set cuts the wire, or mends it.
func (w *wire) set(cut bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut = cut
	for _, conn := range w.conns {
		_ = conn.Close() // it is cut
	}
	w.conns = nil
}

func (w *wire) bytes() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.sent
}

// sweeper runs Sweep over a wire of its own. Each tick that it takes shows that
// it is done with the one before.
type sweeper struct {
	wire  *wire
	ticks chan time.Time
}

func (w *world) sweeper(t *testing.T) *sweeper {
	t.Helper()
	s := &sweeper{wire: &wire{dial: w.dial}, ticks: make(chan time.Time)}
	client, err := etcd.Dial(etcd.Config{Endpoints: []string{"http://" + w.spec.Spec.Nodes[0].Address + ":2379"}, Dial: s.wire.Dial})
	must(t, err)
	service := &Service{
		Self: w.service.Self, Register: NewRegister(client), Etcd: client, Agents: w.service.Agents,
		Dir: w.service.Dir, Log: w.service.Log, DeleteNode: w.service.DeleteNode,
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan struct{})
	go func() {
		service.sweepAt(ctx, s.ticks)
		close(ended)
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
		_ = client.Close()
	})
	return s
}

// tick lets it look once, and waits until it has.
func (s *sweeper) tick(t *testing.T) {
	t.Helper()
	for range 2 {
		select {
		case s.ticks <- time.Time{}:
		case <-within(t).Done():
			t.Fatal("the sweep hangs")
		}
	}
}

// rests waits until a look asks nothing, and checks that the next ones do not
// either.
func (s *sweeper) rests(t *testing.T) {
	t.Helper()
	waitFor(t, "the sweep to rest", func() error {
		before := s.wire.bytes()
		for range 5 {
			s.tick(t)
		}
		if s.wire.bytes() != before {
			return errors.New("it asks")
		}
		return nil
	})
}

// gone waits until nothing of a join is left.
func (s *sweeper) gone(t *testing.T, w *world, name string) {
	t.Helper()
	waitFor(t, "the join of "+name+" to be taken back", func() error {
		s.tick(t)
		if keys, _ := w.left(t); len(keys) > 0 {
			return errors.New(keys[0] + " is there")
		}
		return nil
	})
	if _, there := w.now(t).Node(name); there {
		t.Errorf("%s is still a node", name)
	}
}

// TestIdleSweepAsksNobody, neither before the first join nor after it.
func TestIdleSweepAsksNobody(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	s := w.sweeper(t)
	s.rests(t)
	w.workerJoins(t, "w2", "198.18.0.112")
	before := s.wire.bytes()
	waitFor(t, "the sweep to look at the join", func() error {
		s.tick(t)
		if s.wire.bytes() == before {
			return errors.New("it rests")
		}
		return nil
	})
	if keys, _ := w.left(t); len(keys) != 2 {
		t.Errorf("a join that lives was taken back: %q", keys)
	}
	w.falls(t, "w2")
	s.gone(t, w, "w2")
	s.rests(t)
}

// TestSweepFindsWhatCameUnseen: what was written while the watch was broken,
// even if etcd has forgotten the change meanwhile.
func TestSweepFindsWhatCameUnseen(t *testing.T) {
	t.Parallel()
	for name, compacted := range map[string]bool{"the watch goes on": false, "the watch cannot go on": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, 1)
			s := w.sweeper(t)
			s.rests(t)
			s.wire.set(true)
			w.workerJoins(t, "w2", "198.18.0.112")
			w.falls(t, "w2")
			must(t, w.strikes(t, "w1"))
			if compacted {
				w.compact(t)
			}
			s.tick(t)
			if keys, _ := w.left(t); len(keys) != 2 {
				t.Fatalf("swept over a wire that is cut: %q", keys)
			}
			s.wire.set(false)
			s.gone(t, w, "w2")
		})
	}
}

// strikes leaves a removal behind that was interrupted an hour ago.
func (w *world) strikes(t *testing.T, name string) error {
	t.Helper()
	n, _ := w.spec.Node(name)
	note, err := encode(leave{Node: cluster.Node{Name: n.Name, Role: n.Role, Address: n.Address}, At: time.Now().Add(-time.Hour)})
	must(t, err)
	_, err = w.service.Etcd.Commit(within(t), "test", etcd.Change{Key: leavePrefix + name, Value: note, Always: true})
	return err
}

// compact makes etcd forget every change but the last.
func (w *world) compact(t *testing.T) {
	t.Helper()
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{"http://" + w.local(w.spec.Spec.Nodes[0]) + ":2379"}})
	must(t, err)
	defer func() { _ = client.Close() }()
	got, err := client.Get(within(t), specKey)
	must(t, err)
	_, err = client.Compact(within(t), got.Header.Revision)
	must(t, err)
}
