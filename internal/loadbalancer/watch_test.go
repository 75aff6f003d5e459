package loadbalancer

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"kuorum/internal/cluster"
)

// memory is a Book.
type memory struct {
	changes []cluster.VIPChange
	err     error
}

func (m *memory) Add(c cluster.VIPChange) error {
	if m.err == nil {
		m.changes = append(m.changes, c)
	}
	return m.err
}

func (m *memory) All() ([]cluster.VIPChange, error) { return slices.Clone(m.changes), nil }

// machine is one with a keepalived.
type machine struct {
	*Watch
	book    *memory
	here    bool
	haproxy atomic.Pointer[error]
}

var lb1, lb2 = netip.MustParseAddr("198.18.0.41"), netip.MustParseAddr("198.18.0.42")

func newMachine(t *testing.T) *machine {
	t.Helper()
	m := &machine{book: &memory{}}
	m.haproxy.Store(new(error))
	m.Watch = &Watch{
		Router:  Router{Address: netip.MustParseAddr("198.18.0.254"), Self: lb1, Peers: []netip.Addr{lb2}, Yield: filepath.Join(t.TempDir(), "yield")},
		Here:    func(netip.Addr) (bool, error) { return m.here, nil },
		Reaches: func(context.Context) error { return *m.haproxy.Load() },
		Book:    m.book, Log: slog.New(slog.DiscardHandler),
	}
	return m
}

// reasons are those of the changes that are written down.
func (m *machine) reasons() []string {
	var all []string
	for _, c := range m.book.changes {
		all = append(all, strings.Join([]string{c.From, c.To, c.Reason, c.Peer}, "|"))
	}
	return all
}

func (m *machine) yields(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(m.Router.Yield)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

// TestWatchTellsWhatIs: each change is written down once, with what can be said of it.
func TestWatchTellsWhatIs(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	synctest.Test(t, func(t *testing.T) {
		ctx, end := context.WithCancel(t.Context())
		go m.Run(ctx)
		turn := func(here bool, haproxy error) cluster.VIPStatus {
			m.mu.Lock()
			m.here = here
			m.mu.Unlock()
			m.haproxy.Store(&haproxy)
			<-time.After(time.Minute)
			synctest.Wait()
			return m.Status(ctx)
		}
		if s := turn(false, nil); s.State != cluster.VIPBackup || s.Holder != "" || s.Impaired || s.Priority != firstPriority {
			t.Errorf("at first %+v", s)
		}
		begun := time.Now()
		s := turn(true, nil)
		if s.State != cluster.VIPActive || s.Holder != lb1.String() || s.Since.Before(begun) || s.Since.After(begun.Add(watchEvery)) {
			t.Errorf("with the address %+v", s)
		}
		if s := turn(false, errors.New("refused")); s.State != cluster.VIPBackup || !s.Impaired || len(s.Changes) != 3 {
			t.Errorf("without HAProxy %+v", s)
		}
		turn(true, nil)
		turn(false, nil)
		end()
		synctest.Wait()
	})
	want := []string{
		"backup|backup|keepalived waits for it|", "backup|active|keepalived has taken it|",
		"active|backup|HAProxy reaches no API server: refused|", "backup|active|keepalived has taken it|", "active|backup|keepalived has given it up|",
	}
	if got := m.reasons(); !slices.Equal(got, want) {
		t.Errorf("written down is %q", got)
	}
}

// TestWatchGoesOn: the next agent finds what is written down, and adds nothing.
func TestWatchGoesOn(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.here = true
	before := m.Status(t.Context())
	next := newMachine(t)
	next.book, next.here = m.book, true
	next.Book = m.book
	if s := next.Status(t.Context()); s.State != cluster.VIPActive || !s.Since.Equal(before.Since) || len(m.book.changes) != 1 {
		t.Errorf("it was %+v and is %+v", before, s)
	}
	m.book.err = errors.New("no room")
	next.here = false
	if s := next.Status(t.Context()); !strings.Contains(s.Error, "no room") || s.State != "" {
		t.Errorf("with a full disk it says %+v", s)
	}
	m.book.err = nil
	if s := next.Status(t.Context()); s.State != cluster.VIPBackup || len(m.book.changes) != 2 {
		t.Errorf("with room again it says %+v", s)
	}
}

// TestHandoverIsNamed: an order is the reason of the change that follows it, at both.
func TestHandoverIsNamed(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.here = true
	m.Status(t.Context())
	refused := errors.New("nobody took it")
	h := Handover{From: lb1, To: lb2}
	err := m.Leave(t.Context(), h, func(ctx context.Context) error {
		if m.yields(t) != "1" {
			t.Errorf("keepalived reads %q", m.yields(t))
		}
		m.here = false
		m.Status(ctx)
		return m.Leave(ctx, h, func(context.Context) error {
			if m.yields(t) != "2" {
				t.Errorf("keepalived reads %q", m.yields(t))
			}
			return refused
		})
	})
	if !errors.Is(err, refused) || m.yields(t) != "0" {
		t.Errorf("the end is %v, and keepalived reads %q", err, m.yields(t))
	}
	m.Expect(Handover{From: lb2, To: lb1})
	m.here = true
	m.Status(t.Context())
	want := []string{"backup|active|keepalived has taken it|", "active|backup|handed over by order|" + lb2.String(), "backup|active|handed over by order|" + lb2.String()}
	if got := m.reasons(); !slices.Equal(got, want) {
		t.Errorf("written down is %q", got)
	}
}

// TestOldOrderIsNoReason: what happens long after an order is not its doing.
func TestOldOrderIsNoReason(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	synctest.Test(t, func(t *testing.T) {
		m.Status(t.Context())
		m.Expect(Handover{From: lb2, To: lb1})
		<-time.After(handoverCounts)
		m.here = true
		m.Status(t.Context())
	})
	if got := m.reasons(); !slices.Equal(got[1:], []string{"backup|active|keepalived has taken it|"}) {
		t.Errorf("written down is %q", got)
	}
}
