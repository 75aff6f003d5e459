package endpoint

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"kuorum/internal/handover"
	"kuorum/internal/host"
	"kuorum/internal/tickle"
	"kuorum/internal/vrrp"
)

// guests is a listener whose clients are known for as long as they are connected.
type guests struct {
	net.Listener
	known *tickle.Clients
}

// Accept returns a *link, which Splice looks through.
func (g guests) Accept() (net.Conn, error) {
	conn, err := g.Listener.Accept()
	if err != nil {
		return nil, err
	}
	client, err := netip.ParseAddrPort(conn.RemoteAddr().String())
	if err != nil {
		return conn, nil //nolint:nilerr // not TCP: nobody else could know this client
	}
	return &link{Conn: conn, release: g.known.Add(client, reset{conn})}, nil
}

// reset closes a connection without a word, and without what was not sent yet:
// its packets would reach nobody.
type reset struct{ net.Conn }

func (r reset) Close() error {
	if tcp, ok := r.Conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // closed already, or it takes a while longer
	}
	return r.Conn.Close()
}

// react does for the clients what their kernels cannot know. When the address has
// come, those that another machine had are reset. When it has gone, our own
// connections with it are closed, since their packets go elsewhere now, and their
// clients are reset by whoever has the address: it may have had that all along, while
// a parted network did not show it. After a move in order their packets come here
// still, and they end by themselves; those who were another machine's answer there.
func (k *keeper) react(ctx context.Context) {
	var sending sync.WaitGroup
	defer sending.Wait()
	stop := func() {}
	defer func() { stop() }()
	for {
		select {
		case <-ctx.Done():
			return
		case <-k.turned:
		}
		var moved []*tickle.Others
		// The router tells its status when all has been done that a change asks for:
		// the address is here by then, or gone. It may have gone and come again.
		here := k.router() != nil && k.router().Status().State == vrrp.Active
		if gone := k.gone.Swap(false); gone || here {
			stop() // what an earlier move has left
			if gone && k.moves().Stays() {
				seeing, cancel := context.WithCancel(ctx)
				stop = cancel
				sending.Go(func() { k.seeOut(seeing) })
			} else if gone {
				moved = append(moved, k.closeOwn(ctx))
			}
		}
		if here {
			moved = append(moved, &k.others)
		}
		// To its end, also if the address turns again: it is no less true then.
		for _, clients := range moved {
			sending.Go(func() { k.tickle(ctx, clients) })
		}
	}
}

// closeOwn closes our own connections and returns whose they were.
func (k *keeper) closeOwn(ctx context.Context) *tickle.Others {
	var own tickle.Others
	clients := k.clients.Close()
	if len(clients) > 0 {
		k.log.InfoContext(ctx, "the virtual IP is elsewhere, closed the connections with it", "connections", len(clients))
	}
	own.Remember(k.front.Addr(), clients)
	return &own
}

// tickle has clients notice that the address has moved. An answer that comes to a
// machine with their connection does them no harm.
func (k *keeper) tickle(ctx context.Context, clients *tickle.Others) {
	if !k.front.IsValid() {
		return
	}
	out, err := k.open()
	if err != nil {
		k.log.ErrorContext(ctx, "clients of the virtual IP that only listen will not notice that it has moved", "error", err)
		return
	}
	r := tickle.Send(ctx, clients, func(client netip.AddrPort) error { return out.Tickle(k.front, client) })
	if err := errors.Join(r.Last, out.Close()); err != nil {
		k.log.WarnContext(ctx, "not all clients of the virtual IP could be told that it has moved", "failures", r.Failed, "last_error", err)
	}
	if r.Clients > 0 {
		k.log.InfoContext(ctx, "told clients that the virtual IP has moved", "clients", r.Clients)
	}
}

// moves is what this machine does in moves of the address in order.
func (k *keeper) moves() *handover.Side { return k.side.Load() }

// move hands the address over, with the connections where that is asked for.
func (k *keeper) move(r *http.Request) error {
	to, err := netip.ParseAddr(r.URL.Query().Get("to"))
	if err != nil {
		return err
	}
	runner, side := k.router(), k.moves()
	if runner == nil {
		return errNoRouter
	}
	if !k.moving.TryLock() {
		return errors.New("it is being moved already")
	}
	defer k.moving.Unlock()
	if r.URL.Query().Get("keep") == "true" {
		side.Offer()
	}
	err = runner.Move(r.Context(), to)
	if err != nil {
		side.Withdraw()
	}
	return err
}

// expect prepares this machine for a move to it.
func (k *keeper) expect(r *http.Request) error {
	from, err := netip.ParseAddr(r.URL.Query().Get("from"))
	if err != nil {
		return err
	}
	if !slices.Contains(k.config().Peers, from.String()) {
		return fmt.Errorf("%s is no peer of this machine", from)
	}
	if k.router() == nil || !k.front.IsValid() {
		return errNoRouter
	}
	return k.moves().Expect(time.Now(), from, k.clients.Now())
}

const (
	// quiet is how long nothing has gone either way on a connection that may be
	// closed. What is under way longer without a byte is closed with it.
	quiet = 5 * time.Second
	// partingTime is for the last packets of connections, which need the address.
	partingTime = 300 * time.Millisecond
)

// seeOut closes the connections that were left here when the address moved, each at
// a quiet moment, or at the end of the window. A server that stops in order ends
// those with its own API server itself: that tells its clients (GOAWAY). When ctx
// ends the address is here again, or this process ends.
func (k *keeper) seeOut(ctx context.Context) {
	side, end := k.moves(), time.Now().Add(handover.Window)
	left := k.clients.Each(func(io.Closer) {})
	k.log.InfoContext(ctx, "the virtual IP has moved, its connections stay until they end", "connections", left)
	for side.Stays() && time.Now().Before(end) {
		if !wait(ctx, 100*time.Millisecond) {
			return
		}
		if k.clients.Each(closeQuiet) > 0 {
			continue
		}
		// This machine's own processes still find the address here, and connect anew.
		if !wait(ctx, partingTime) {
			return
		}
		if k.clients.Each(func(io.Closer) {}) == 0 {
			break
		}
	}
	if side.Stays() {
		k.clients.Close()
		side.Leave()
		k.tick() // now: who connects from here must find the new holder
	}
}

// tick ends what time ends of moves.
func (k *keeper) tick() {
	if side := k.moves(); side.Tick(time.Now(), k.others.None(side.For())) {
		k.turn()
	}
}

// wait reports whether ctx goes on.
func wait(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

func closeQuiet(conn io.Closer) {
	r, ok := conn.(reset)
	if !ok {
		return
	}
	tcp, ok := r.Conn.(syscall.Conn)
	if !ok {
		return
	}
	if last, err := host.LastExchange(tcp); err == nil && isQuiet(last) {
		_ = r.Conn.Close() // in order: the client reads its end
	}
}

func isQuiet(last host.Exchange) bool {
	return min(last.Sent, last.Received) >= quiet && !last.Unacknowledged
}
