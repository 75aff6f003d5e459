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
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"kuorum/internal/host"
)

const virtual = "10.78.0.100"

// TestMain makes this test binary be what runs on the machines, when it is
// called with a role.
func TestMain(m *testing.M) {
	if len(os.Args) < 3 || os.Args[1] != "role" {
		os.Exit(m.Run())
	}
	roles := map[string]func(string) error{"serve": serve, "watch": watch, "take": take, "send": send}
	if err := roles[os.Args[2]](strings.Join(os.Args[3:], " ")); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// serve echoes what clients say, at an address that may be elsewhere.
func serve(address string) error {
	ln, err := (&net.ListenConfig{Control: host.Anywhere}).Listen(context.Background(), "tcp4", address)
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
func watch(address string) error {
	conn, err := net.Dial("tcp4", address)
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
func take(link string) error {
	address := netip.MustParseAddr(virtual)
	return errors.Join(host.AddAddress(link, address), host.AnnounceAddress(link, address))
}

// send resets clients of the address and port.
func send(order string) error {
	words := strings.Fields(order)
	var others Others
	var clients []netip.AddrPort
	for _, text := range words[1:] {
		clients = append(clients, netip.MustParseAddrPort(text))
	}
	others.Remember(netip.Addr{}, clients)
	out, err := host.OpenTickler()
	if err != nil {
		return err
	}
	from := netip.MustParseAddrPort(words[0])
	r := Send(context.Background(), &others, func(to netip.AddrPort) error { return out.Tickle(from, to) })
	if r.Clients != len(clients) {
		return fmt.Errorf("it was sent to %d clients of %d", r.Clients, len(clients))
	}
	return errors.Join(r.Last, out.Close())
}

// site is machines in network namespaces on one switch.
type site struct {
	t  *testing.T
	sw *exec.Cmd
	at map[string]*exec.Cmd
}

// newSite has two servers, a with the address, and a client.
func newSite(t *testing.T) *site {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("must run as root")
	}
	s := &site{t: t, at: map[string]*exec.Cmd{}}
	s.sw = s.namespace()
	s.in(s.sw, "ip", "link", "add", "sw0", "type", "bridge")
	s.in(s.sw, "ip", "link", "set", "sw0", "up")
	for i, name := range []string{"a", "b", "client"} {
		m := s.namespace()
		s.at[name] = m
		s.in(s.sw, "ip", "link", "add", port(name), "type", "veth", "peer", "name", "eth0", "netns", fmt.Sprint(m.Process.Pid))
		s.in(s.sw, "ip", "link", "set", port(name), "master", "sw0", "up")
		s.in(m, "ip", "link", "set", "lo", "up")
		s.in(m, "ip", "link", "set", "eth0", "up")
		s.in(m, "ip", "address", "add", fmt.Sprintf("10.78.0.%d/24", i+1), "dev", "eth0")
	}
	s.run("a", "take", "eth0")
	return s
}

// port is a machine's cable on the switch.
func port(machine string) string { return "to-" + machine }

// namespace is a process in a network namespace, which ends with the test.
func (s *site) namespace() *exec.Cmd {
	s.t.Helper()
	cmd := exec.CommandContext(context.WithoutCancel(s.t.Context()), "sleep", "600")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _, _ = cmd.Process.Kill(), cmd.Wait() })
	return cmd
}

func inside(ctx context.Context, at *exec.Cmd, argv ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "nsenter", append([]string{"-t", fmt.Sprint(at.Process.Pid), "-n", "--"}, argv...)...)
}

func (s *site) in(at *exec.Cmd, argv ...string) {
	s.t.Helper()
	if out, err := inside(s.t.Context(), at, argv...).CombinedOutput(); err != nil {
		s.t.Fatalf("%v: %v\n%s", argv, err, out)
	}
}

func (s *site) role(machine string, words ...string) *exec.Cmd {
	s.t.Helper()
	self, err := os.Executable()
	if err != nil {
		s.t.Fatal(err)
	}
	return inside(s.t.Context(), s.at[machine], append([]string{self, "role"}, words...)...)
}

// run waits for its end.
func (s *site) run(machine string, words ...string) {
	s.t.Helper()
	if out, err := s.role(machine, words...).CombinedOutput(); err != nil {
		s.t.Fatalf("%s: %v: %v\n%s", machine, words, err, out)
	}
}

// process goes on, and tells line by line.
type process struct {
	*exec.Cmd
	t     *testing.T
	in    io.Writer
	lines <-chan string
	first string
}

func (s *site) start(machine string, words ...string) *process {
	s.t.Helper()
	p := &process{Cmd: s.role(machine, words...), t: s.t}
	in, err := p.StdinPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	out, err := p.StdoutPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	p.in, p.Stderr = in, s.t.Output()
	p.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _, _ = p.Process.Kill(), p.Wait() })
	lines := make(chan string, 10)
	p.lines = lines
	go func() {
		defer close(lines)
		for in := bufio.NewScanner(out); in.Scan(); {
			lines <- in.Text()
		}
	}()
	p.first = p.next(5 * time.Second)
	return p
}

// next is what it tells within that time, or nothing.
func (p *process) next(within time.Duration) string {
	p.t.Helper()
	select {
	case line := <-p.lines:
		return line
	case <-time.After(within):
		return ""
	}
}

// says has a client say something to its server, and hear it again.
func (p *process) says(what string) {
	p.t.Helper()
	fmt.Fprintln(p.in, what)
	if got := p.next(5 * time.Second); got != what {
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
			order := []string{"send", address}
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
				s.in(s.sw, "ip", "link", "set", port("a"), "nomaster")
			}
			if tt.strict {
				s.in(s.at["b"], "nft", "table inet t { chain c { type filter hook input priority 0; ct state established accept; ct state invalid drop; }; }")
			}
			s.run("b", "take", "eth0")
			if got := clients[0].next(500 * time.Millisecond); got != "" {
				t.Fatalf("without a tickle the client is told %q", got)
			}
			by := "b"
			if tt.yields {
				by = "a"
				s.in(s.at["a"], "ip", "address", "del", virtual+"/32", "dev", "eth0")
			}
			start := time.Now()
			sender := s.role(by, order...)
			sender.Stderr = t.Output()
			if err := sender.Start(); err != nil {
				t.Fatal(err)
			}
			for _, c := range clients {
				if got := c.next(time.Second - time.Since(start)); got != "reset" {
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
