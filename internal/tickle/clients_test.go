package tickle

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func client(n int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(n >> 8), byte(n)}), 40000)
}

func compare(want, got []netip.AddrPort) string {
	if len(want)+len(got) == 0 {
		return ""
	}
	text := cmp.Transformer("text", netip.AddrPort.String)
	got = slices.Clone(got)
	slices.SortFunc(got, netip.AddrPort.Compare)
	return cmp.Diff(want, got, text)
}

// closer counts.
type closer struct{ closed int }

func (c *closer) Close() error {
	c.closed++
	return errors.New("closed before")
}

func TestClientsComeAndGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := NewClients()
		var first, second closer
		leave := c.Add(client(1), &first)
		again := c.Add(client(1), &second) // the first has ended, and nobody has noticed yet
		before := c.Wait(t.Context(), 0)
		leave()
		after := c.Wait(t.Context(), before.Version)
		if diff := compare([]netip.AddrPort{client(1)}, after.Clients); diff != "" || after.Version == before.Version {
			t.Errorf("version %d after %d\n%s", after.Version, before.Version, diff)
		}
		leave()
		closed := c.Close()
		if diff := compare([]netip.AddrPort{client(1)}, closed); diff != "" || first.closed != 0 || second.closed != 1 {
			t.Errorf("closed the first %d times, the second %d times\n%s", first.closed, second.closed, diff)
		}
		again()
		if left := c.Wait(t.Context(), after.Version); len(left.Clients) != 0 || len(c.Close()) != 0 {
			t.Errorf("there are %v", left.Clients)
		}
	})
}

// TestWaitGathers: an answer comes 50 ms after the first change of many, and
// after 10 s without one.
func TestWaitGathers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := NewClients()
		known := c.Wait(t.Context(), 0)
		start := time.Now()
		if same := c.Wait(t.Context(), known.Version); same.Version != known.Version || time.Since(start) != Patience {
			t.Errorf("after %v version %d, was %d", time.Since(start), same.Version, known.Version)
		}
		start = time.Now()
		go func() {
			<-time.After(time.Second)
			for n := range 10 {
				c.Add(client(n), &closer{})
				<-time.After(4 * time.Millisecond)
			}
		}()
		answer := c.Wait(t.Context(), known.Version)
		// How many there are is looked at with the first change.
		if took := time.Since(start); len(answer.Clients) != 10 || took != time.Second+gathering+gatheringEach {
			t.Errorf("after %v there are %d", took, len(answer.Clients))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start = time.Now()
		if c.Wait(ctx, answer.Version); time.Since(start) != time.Second {
			t.Errorf("it waits %v after its caller has gone", time.Since(start))
		}
	})
}

// TestManyClients: the list ends somewhere, and takes longer the longer it is.
func TestManyClients(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := NewClients()
		for n := range MaxClients + 100 {
			c.Add(client(n), &closer{})
		}
		start := time.Now()
		l := c.Wait(t.Context(), 0)
		if took := time.Since(start); len(l.Clients) != MaxClients || took != gathering+MaxClients*gatheringEach {
			t.Errorf("after %v there are %d", took, len(l.Clients))
		}
	})
}

// TestVersionsDiffer between a process and the next one.
func TestVersionsDiffer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old := NewClients().Wait(t.Context(), 0)
		if l := NewClients().Wait(t.Context(), old.Version); l.Version == old.Version {
			t.Errorf("version %d twice", l.Version)
		}
	})
}
