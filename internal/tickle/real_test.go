//go:build lab

package tickle

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"kuorum/internal/host"
	"kuorum/internal/testnet"
)

const virtual = "10.78.0.100"

func TestMain(m *testing.M) {
	os.Exit(testnet.Main(m, map[string]testnet.Role{"serve": serve, "watch": watch, "take": take, "send": send}))
}

// serve echoes what clients say, at an address that may be elsewhere.
func serve(args []string) error {
	ln, err := (&net.ListenConfig{Control: host.Anywhere}).Listen(context.Background(), "tcp4", args[0])
	if err != nil {
		return err
	}
	fmt.Println("ready")
	for {
		conn, err := ln.Accept()
		if err != nil {
			return err
		}
		go func() { _, _ = io.Copy(conn, conn) }()
	}
}

// watch is a client that says what it is told to, and prints what it hears and
// how the connection ended.
func watch(args []string) error {
	conn, err := net.Dial("tcp4", args[0])
	if err != nil {
		return err
	}
	fmt.Println(conn.LocalAddr())
	go func() { _, _ = io.Copy(conn, os.Stdin) }()
	back := bufio.NewReader(conn)
	for {
		line, err := back.ReadString('\n')
		switch {
		case errors.Is(err, syscall.ECONNRESET):
			fmt.Println("reset")
			return nil
		case err != nil:
			return err
		}
		fmt.Fprint(os.Stdout, line)
	}
}

// take makes this machine the holder of the address.
func take([]string) error {
	address := netip.MustParseAddr(virtual)
	return errors.Join(host.AddAddress(testnet.Link, address), host.AnnounceAddress(testnet.Link, address))
}

// send resets clients of an address and port: that first, then they.
func send(args []string) error {
	var others Others
	var clients []netip.AddrPort
	for _, text := range args[1:] {
		clients = append(clients, netip.MustParseAddrPort(text))
	}
	others.Remember(netip.Addr{}, clients)
	out, err := host.OpenTickler()
	if err != nil {
		return err
	}
	from := netip.MustParseAddrPort(args[0])
	r := Send(context.Background(), &others, func(to netip.AddrPort) error { return out.Tickle(from, to) })
	if r.Clients != len(clients) {
		return fmt.Errorf("it was sent to %d clients of %d", r.Clients, len(clients))
	}
	return errors.Join(r.Last, out.Close())
}

// site is two servers, a with the address, and a client, on one switch.
type site struct {
	t  *testing.T
	at map[string]*testnet.Machine
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{t: t, at: map[string]*testnet.Machine{}}
	sw := testnet.New(t)
	for i, name := range []string{"a", "b", "client"} {
		s.at[name] = sw.Machine("to-"+name, fmt.Sprintf("10.78.0.%d/24", i+1))
	}
	s.run("a", "take")
	return s
}

// run waits for the end of a role.
func (s *site) run(machine, role string, args ...string) {
	s.t.Helper()
	if out, err := s.at[machine].Role(role, args...).CombinedOutput(); err != nil {
		s.t.Fatalf("%s: %s %v: %v\n%s", machine, role, args, err, out)
	}
}

// process goes on, and tells line by line.
type process struct {
	*testnet.Child
	t     *testing.T
	first string
}

func (s *site) start(machine, role string, args ...string) *process {
	s.t.Helper()
	p := testnet.Talk(s.t, s.at[machine].Role(role, args...))
	return &process{p, s.t, p.Next(5 * time.Second)}
}

// says has a client say something to its server, and hear it again.
func (p *process) says(what string) {
	p.t.Helper()
	fmt.Fprintln(p.In, what)
	if got := p.Next(5 * time.Second); got != what {
		p.t.Fatalf("said %q, heard %q", what, got)
	}
}

// TestRealSilentClients: the address is taken over from a machine that resets
// nothing. Clients that wait go on waiting, until the new holder tickles them.
func TestRealSilentClients(t *testing.T) {
	for name, tt := range map[string]struct {
		frozen  bool // else its cable is cut
		listens bool // the new holder has a balancer, as it has in a cluster
		strict  bool // the new holder drops what its connection tracking finds wrong
		yields  bool // the former holder gives the address up, and sends
		within  bool // the clients are on the new holder
	}{
		"frozen holder":                  {frozen: true, listens: true},
		"frozen holder, nobody listens":  {frozen: true},
		"holder cut off":                 {listens: true},
		"holder cut off, nobody listens": {},
		"firewall":                       {frozen: true, listens: true, strict: true},
		"former holder yields":           {frozen: true, listens: true, yields: true},
		"clients on the new holder":      {frozen: true, listens: true, within: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			address := virtual + ":6443"
			former := s.start("a", "serve", address)
			if tt.listens {
				s.start("b", "serve", address)
			}
			order := []string{address}
			var clients []*process
			at := "client"
			if tt.within {
				at = "b"
			}
			for range 3 {
				c := s.start(at, "watch", address)
				c.says("hello")
				clients = append(clients, c)
				order = append(order, c.first)
			}
			if tt.frozen {
				if err := former.Process.Signal(syscall.SIGSTOP); err != nil {
					t.Fatal(err)
				}
			} else {
				s.at["a"].Cut()
			}
			if tt.strict {
				s.at["b"].Run("nft", "table inet t { chain c { type filter hook input priority 0; ct state established accept; ct state invalid drop; }; }")
			}
			s.run("b", "take")
			if got := clients[0].Next(500 * time.Millisecond); got != "" {
				t.Fatalf("without a tickle the client is told %q", got)
			}
			by := "b"
			if tt.yields {
				by = "a"
				s.at["a"].Run("ip", "address", "del", virtual+"/32", "dev", testnet.Link)
			}
			start := time.Now()
			sender := s.at[by].Role("send", order...)
			sender.Stderr = t.Output()
			if err := sender.Start(); err != nil {
				t.Fatal(err)
			}
			for _, c := range clients {
				if got := c.Next(time.Second - time.Since(start)); got != "reset" {
					t.Errorf("a second after the tickle the client is told %q", got)
				}
			}
			t.Logf("reset after %v", time.Since(start).Round(time.Millisecond))
			if err := sender.Wait(); err != nil {
				t.Error(err)
			}
			if tt.listens {
				s.start("client", "watch", address).says("hello again")
			}
		})
	}
}

// TestRealTickleIsHarmless to a connection that is in order.
func TestRealTickleIsHarmless(t *testing.T) {
	s := newSite(t)
	address := virtual + ":6443"
	s.start("a", "serve", address)
	c := s.start("client", "watch", address)
	c.says("before")
	s.run("a", "send", address, c.first)
	c.says("after")
}
