//go:build lab

package vrrp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/ipv4"

	"kuorum/internal/host"
	"kuorum/internal/testnet"
)

// slack is what a busy machine may add to a take-over.
const slack = 300 * time.Millisecond

func TestMain(m *testing.M) {
	os.Exit(testnet.Main(m, map[string]testnet.Role{"router": runRouter, "strays": sendStrays, "hold": hold}))
}

// runRouter obeys lines of its input and answers each with its status.
func runRouter(args []string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	var cfg Config
	if err := json.Unmarshal([]byte(args[0]), &cfg); err != nil {
		return err
	}
	wire, err := Open(ctx, cfg)
	if err != nil {
		return err
	}
	r, err := New(cfg, wire, NewHolder(cfg), nil)
	if err != nil {
		return err
	}
	go func() {
		for in := bufio.NewScanner(os.Stdin); in.Scan(); {
			verb, arg, _ := strings.Cut(in.Text(), " ")
			answer := struct {
				Status
				Error string
			}{}
			switch verb {
			case "impaired":
				r.SetImpaired(arg == "true")
			case "move":
				if err := r.Move(ctx, netip.MustParseAddr(arg)); err != nil {
					answer.Error = err.Error()
				}
			}
			answer.Status = r.Status()
			data, _ := json.Marshal(answer)
			fmt.Println(string(data))
		}
	}()
	return r.Run(ctx)
}

// sendStrays sends advertisements of the highest priority that must not be heard.
func sendStrays(args []string) error {
	var cfg Config
	if err := json.Unmarshal([]byte(args[0]), &cfg); err != nil {
		return err
	}
	conn, err := host.ListenOn(context.Background(), "ip4:112", "0.0.0.0", cfg.Interface)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	out := ipv4.NewPacketConn(conn)
	send := func(vrid uint8, address netip.Addr, damage byte) error {
		ad := Advertisement{VRID: vrid, Priority: 254, Interval: time.Second, Addresses: []netip.Addr{address}}
		data, err := ad.Marshal(cfg.Source, cfg.Peers[0])
		if err != nil {
			return err
		}
		data[2] ^= damage
		_, err = out.WriteTo(data, &ipv4.ControlMessage{Src: cfg.Source.AsSlice()}, &net.IPAddr{IP: cfg.Peers[0].AsSlice()})
		return err
	}
	virtual := cfg.Addresses[0]
	return errors.Join(
		out.SetTTL(254), send(cfg.VRID, virtual, 0), out.SetTTL(255), send(cfg.VRID+1, virtual, 0),
		send(cfg.VRID, virtual.Next(), 0), send(cfg.VRID, virtual, 1),
	)
}

// hold is told the configuration of a holder and what it does, one after the
// other, up to the first error.
func hold(args []string) error {
	var cfg Config
	if err := json.Unmarshal([]byte(args[0]), &cfg); err != nil {
		return err
	}
	h := NewHolder(cfg)
	verbs := map[string]func() error{"take": h.Take, "announce": h.Announce, "give up": h.GiveUp}
	for _, verb := range args[1:] {
		if err := verbs[verb](); err != nil {
			return fmt.Errorf("%s: %w", verb, err)
		}
	}
	return nil
}

// site is machines on one switch.
type site struct {
	t        *testing.T
	six      bool
	machines []*testnet.Machine
}

func newSite(t *testing.T, n int, six bool) *site {
	t.Helper()
	s := &site{t: t, six: six}
	sw := testnet.New(t)
	for i := range n {
		s.machines = append(s.machines, sw.Machine(fmt.Sprintf("m%d", i),
			fmt.Sprintf("10.77.0.%d/24", i+1), fmt.Sprintf("fd77::%d/64", i+1), fmt.Sprintf("fe80::77:%d/64", i+1)))
	}
	return s
}

// own is a machine's own address, and virtual the one that they share.
func (s *site) own(i int) netip.Addr {
	if s.six {
		return netip.MustParseAddr(fmt.Sprintf("fd77::%d", i+1))
	}
	return netip.MustParseAddr(fmt.Sprintf("10.77.0.%d", i+1))
}

func (s *site) virtual() netip.Addr {
	if s.six {
		return netip.MustParseAddr("fd77::100")
	}
	return netip.MustParseAddr("10.77.0.100")
}

// config is of machine i of those in all.
func (s *site) config(i int, priority uint8, all ...int) Config {
	cfg := Config{
		Interface: testnet.Link, VRID: 7, Addresses: []netip.Addr{s.virtual()}, Source: s.own(i), Priority: priority, Interval: interval,
	}
	for _, j := range all {
		if j != i {
			cfg.Peers = append(cfg.Peers, s.own(j))
		}
	}
	return cfg
}

// holders are the machines that have the virtual address.
func (s *site) holders() []int {
	var all []int
	for i, m := range s.machines {
		if strings.Contains(m.Run("ip", "-o", "address", "show", "dev", testnet.Link), " "+s.virtual().String()+"/") {
			all = append(all, i)
		}
	}
	return all
}

// await waits until exactly machine i has the virtual address, and returns when
// that was.
func (s *site) await(i int, what string) time.Time {
	s.t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(10 * time.Second); ; {
		at := time.Now()
		got := s.holders()
		if slices.Equal(got, []int{i}) {
			return at
		}
		if at.After(end) {
			s.t.Fatalf("%s: machine %d should have the address, but %v have it", what, i, got)
		}
		<-tick.C
	}
}

// within fails if it took longer than that.
func (s *site) within(start, end time.Time, limit time.Duration, what string) {
	s.t.Helper()
	s.t.Logf("%s: %v", what, end.Sub(start).Round(time.Millisecond))
	if end.Sub(start) > limit+slack {
		s.t.Errorf("%s took %v, %v are allowed", what, end.Sub(start), limit)
	}
}

// process is a router on a machine.
type process struct {
	*testnet.Child
	t *testing.T
}

// role is one that is told cfg.
func (s *site) role(i int, name string, cfg Config, more ...string) *exec.Cmd {
	s.t.Helper()
	text, err := json.Marshal(cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	return s.machines[i].Role(name, append([]string{string(text)}, more...)...)
}

func (s *site) router(i int, cfg Config) *process {
	s.t.Helper()
	return &process{testnet.Talk(s.t, s.role(i, "router", cfg)), s.t}
}

func (p *process) kill() { testnet.End(p.Cmd) }

func (p *process) signal(sig os.Signal) {
	p.t.Helper()
	if err := p.Process.Signal(sig); err != nil {
		p.t.Fatal(err)
	}
}

// ask tells the router something and returns its status after that.
func (p *process) ask(line string) Status {
	p.t.Helper()
	if _, err := fmt.Fprintln(p.In, line); err != nil {
		p.t.Fatal(err)
	}
	text, more := <-p.Lines
	if !more {
		p.t.Fatalf("%s: no answer", line)
	}
	answer := struct {
		Status
		Error string
	}{}
	if err := json.Unmarshal([]byte(text), &answer); err != nil {
		p.t.Fatal(err)
	}
	if answer.Error != "" {
		p.t.Errorf("%s: %s", line, answer.Error)
	}
	return answer.Status
}

// families runs a test for both.
func families(t *testing.T, test func(t *testing.T, six bool)) {
	t.Run("IPv4", func(t *testing.T) { test(t, false) })
	t.Run("IPv6", func(t *testing.T) { test(t, true) })
}

const down = 3*interval + interval // Active_Down_Interval at the most

// TestRealTakeOver: the address goes from router to router, is never left at
// two, and the neighbours know where it is.
func TestRealTakeOver(t *testing.T) {
	families(t, func(t *testing.T, six bool) {
		s := newSite(t, 3, six)
		// Left by a run that was killed.
		bits := fmt.Sprint(s.virtual().BitLen())
		s.machines[1].Run("ip", "address", "add", s.virtual().String()+"/"+bits, "dev", testnet.Link, "nodad")
		a, b := s.router(0, s.config(0, 200, 0, 1)), s.router(1, s.config(1, 150, 0, 1))
		s.await(0, "the start")

		before := s.learn(2)
		s.machines[0].Run("ip", "address", "del", s.virtual().String()+"/"+bits, "dev", testnet.Link)
		s.await(0, "removed by somebody")
		start := time.Now()
		a.kill()
		s.machines[0].Run("ip", "address", "del", s.virtual().String()+"/"+bits, "dev", testnet.Link) // as a dead machine's
		s.within(start, s.await(1, "after a kill"), down, "after a kill")
		s.knows(2, before)

		a = s.router(0, s.config(0, 200, 0, 1))
		if got := a.ask("status"); got.State == Active {
			t.Error("it pre-empts a healthy one")
		}
		start = time.Now()
		b.signal(syscall.SIGTERM)
		s.within(start, s.await(0, "after a shutdown"), interval, "after a shutdown")
		if err := b.Wait(); err != nil {
			t.Errorf("it ends with %v", err)
		}

		b = s.router(1, s.config(1, 150, 0, 1))
		s.await(0, "with both")
		start = time.Now()
		a.ask("impaired true")
		s.within(start, s.await(1, "impaired"), interval, "impaired")
		a.ask("impaired false")
		start = time.Now()
		b.ask("move " + s.own(0).String())
		s.within(start, s.await(0, "a move"), interval, "a move")

		// A frozen router has the address in its kernel still; it lets go as it wakes.
		a.signal(syscall.SIGSTOP)
		s.awaitActive(b)
		a.signal(syscall.SIGCONT)
		start = time.Now()
		s.within(start, s.await(1, "after a thaw"), 0, "after a thaw")
		if got := a.ask("status"); got.State != Backup || !strings.HasPrefix(got.Reason, "was stopped for") {
			t.Errorf("it is %s: %s", got.State, got.Reason)
		}
	})
}

// awaitActive waits until a router has been active for longer than a thaw
// needs to be noticed.
func (s *site) awaitActive(p *process) {
	s.t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(10 * time.Second); ; {
		got := p.ask("status")
		if got.State == Active && time.Since(got.Since) > 2*down {
			return
		}
		if time.Now().After(end) {
			s.t.Fatalf("it is %s", got.State)
		}
		<-tick.C
	}
}

// neighbour is the hardware address that machine i knows of the virtual one.
func (s *site) neighbour(i int) string {
	s.t.Helper()
	fields := strings.Fields(s.machines[i].Run("ip", "neighbour", "show", "to", s.virtual().String(), "dev", testnet.Link))
	if at := slices.Index(fields, "lladdr"); at >= 0 {
		return fields[at+1]
	}
	return ""
}

// learn lets machine i ask for the virtual address, and returns what it knows then.
func (s *site) learn(i int) string {
	s.t.Helper()
	s.machines[i].Run("bash", "-c", "echo > /dev/udp/"+s.virtual().String()+"/9")
	return s.knows(i, "")
}

// knows waits until machine i knows another hardware address than before,
// without having asked.
func (s *site) knows(i int, before string) string {
	s.t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(5 * time.Second); ; <-tick.C {
		if got := s.neighbour(i); got != "" && got != before {
			return got
		}
		if time.Now().After(end) {
			s.t.Fatalf("machine %d knew %q and knows %q", i, before, s.neighbour(i))
		}
	}
}

// TestRealStrangers: what is not a peer's, or came over a router, is not heard.
func TestRealStrangers(t *testing.T) {
	s := newSite(t, 3, false)
	a := s.router(0, s.config(0, 200, 0, 1))
	s.await(0, "the start")
	for _, i := range []int{1, 2} {
		cfg := s.config(i, 200, i)
		cfg.Peers = []netip.Addr{s.own(0)}
		if out, err := s.role(i, "strays", cfg).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	want := map[Drop]uint64{DropStranger: 4, DropTTL: 1, DropVRID: 1, DropAddresses: 1, DropChecksum: 1}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(5 * time.Second); ; <-tick.C {
		got := a.ask("status")
		if compare(want, got.Dropped) == "" && got.State == Active {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("it is %s and dropped %v, want %v", got.State, got.Dropped, want)
		}
	}
}

// TestRealPartition: each side has the address; when they meet again the greater
// priority keeps it, and the neighbours of both learn that.
func TestRealPartition(t *testing.T) {
	s := newSite(t, 3, false)
	s.router(0, s.config(0, 200, 0, 1))
	b := s.router(1, s.config(1, 150, 0, 1))
	s.await(0, "the start")
	s.machines[0].Cut()
	s.awaitActive(b)
	if got := s.holders(); !slices.Equal(got, []int{0, 1}) {
		t.Fatalf("the address is at %v", got)
	}
	before := s.learn(2)
	s.machines[0].Restore()
	s.await(0, "together again")
	s.knows(2, before)
}

// TestRealLinkGone: a router ends when its link does, and the other takes over.
func TestRealLinkGone(t *testing.T) {
	families(t, func(t *testing.T, six bool) {
		s := newSite(t, 2, six)
		a := s.router(0, s.config(0, 200, 0, 1))
		b := s.router(1, s.config(1, 150, 0, 1))
		s.await(0, "the start")
		s.machines[0].Remove()
		if err := a.Wait(); err == nil {
			t.Error("it ends well")
		}
		s.awaitActive(b)
	})
}

// TestRealHolder: an address is taken or not, said why, and never half.
func TestRealHolder(t *testing.T) {
	for name, tt := range map[string]struct {
		before []string // done to the link; OWN and VIRTUAL are addresses with the length of their network
		verbs  []string
		says   string
		held   int // how often the link has the address afterwards
	}{
		"taken":                      {verbs: []string{"take", "announce"}, held: 1},
		"taken twice":                {verbs: []string{"take", "take", "announce"}, held: 1},
		"given up":                   {verbs: []string{"take", "give up"}},
		"given up twice":             {verbs: []string{"take", "give up", "give up"}},
		"not there":                  {verbs: []string{"give up"}},
		"left by an earlier run":     {before: []string{"ip address add BARE dev eth0"}, verbs: []string{"give up"}},
		"there already":              {before: []string{"ip address add BARE dev eth0"}, verbs: []string{"take"}, held: 1},
		"no own address":             {before: []string{"ip address del OWN dev eth0"}, verbs: []string{"take"}, says: "take: no link of this machine has the address "},
		"own address on another":     {before: []string{"ip address del OWN dev eth0", "ip link add other up type bridge", "ip address add OWN dev other"}, verbs: []string{"take"}, says: "own, IP, is not there"},
		"link is down":               {before: []string{"ip link set eth0 down"}, verbs: []string{"take"}, says: "the link is down; set it up: ip link set eth0 up"},
		"link is down, given up":     {before: []string{"ip address add BARE dev eth0", "ip link set eth0 down"}, verbs: []string{"give up"}},
		"no link":                    {before: []string{"ip link set eth0 down", "ip link set eth0 name eth1"}, verbs: []string{"take"}, says: "cannot find the link"},
		"no link, given up":          {before: []string{"ip link set eth0 down", "ip link set eth0 name eth1"}, verbs: []string{"give up"}},
		"it is the machine's own":    {before: []string{"ip address add VIRTUAL dev eth0"}, verbs: []string{"give up"}, says: "it is there as the machine's own", held: 1},
		"no link, neighbours' turn":  {before: []string{"ip link set eth0 down", "ip link set eth0 name eth1"}, verbs: []string{"announce"}, says: "announce: cannot find link eth0"},
		"no own address, given up":   {before: []string{"ip address del OWN dev eth0", "ip address add BARE dev eth0"}, verbs: []string{"give up"}},
		"refused, then given up too": {before: []string{"ip address del OWN dev eth0"}, verbs: []string{"give up", "take"}, says: "take: "},
	} {
		t.Run(name, func(t *testing.T) {
			families(t, func(t *testing.T, six bool) {
				t.Parallel()
				s := newSite(t, 1, six)
				m, bits := s.machines[0], "/24"
				if six {
					bits = "/64"
				}
				words := strings.NewReplacer("OWN", s.own(0).String()+bits, "VIRTUAL", s.virtual().String()+bits,
					"BARE", netip.PrefixFrom(s.virtual(), s.virtual().BitLen()).String(), "IP", s.own(0).String())
				for _, line := range tt.before {
					m.Run(strings.Fields(words.Replace(line))...)
				}
				out, err := s.role(0, "hold", s.config(0, 200, 0), tt.verbs...).CombinedOutput()
				if (err == nil) != (tt.says == "") || !strings.Contains(string(out), words.Replace(tt.says)) {
					t.Errorf("it says %q, %v, want %q", out, err, words.Replace(tt.says))
				}
				if got := strings.Count(m.Run("ip", "-o", "address"), " "+s.virtual().String()+"/"); got != tt.held {
					t.Errorf("the address is there %d times, want %d:\n%s", got, tt.held, m.Run("ip", "address"))
				}
			})
		})
	}
}

// variants are how keepalived is configured in each test.
type variant struct {
	name      string
	six       bool
	multicast bool
	local     bool // advertise from link-local addresses
}

// TestRealKeepalived: one of ours and one of keepalived's take over from each
// other.
func TestRealKeepalived(t *testing.T) {
	for _, v := range []variant{
		{name: "IPv4 unicast"},
		{name: "IPv4 multicast", multicast: true},
		{name: "IPv6 unicast", six: true},
		{name: "IPv6 multicast", six: true, multicast: true, local: true},
	} {
		t.Run(v.name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, 2, v.six)
			cfg := s.config(0, 150, 0, 1)
			cfg.Multicast = v.multicast
			if v.local {
				cfg.Source, cfg.Peers = netip.MustParseAddr("fe80::77:1"), nil
			}
			ours := s.router(0, cfg)
			s.await(0, "ours alone")
			s.beside(v, ours, cfg)
		})
	}
}

func (s *site) beside(v variant, ours *process, cfg Config) {
	// A lower one waits, and takes over from a dead one.
	theirs := s.keepalived(v, 120)
	if got := s.settle(ours); got.State != Active || got.Transitions != 2 {
		s.t.Fatalf("beside a lower one ours is %+v", got)
	}
	start := time.Now()
	ours.kill()
	s.machines[0].Run("ip", "address", "flush", "to", s.virtual().String(), "dev", testnet.Link)
	s.within(start, s.await(1, "theirs takes over"), down, "keepalived takes over")

	// Ours does not pre-empt, and takes over when it resigns.
	ours = s.router(0, cfg)
	got := s.settle(ours)
	if got.State != Backup || got.ActivePriority != 120 || len(got.Dropped) != 0 {
		s.t.Fatalf("beside an active one ours is %+v", got)
	}
	start = time.Now()
	theirs.signal(syscall.SIGTERM)
	s.within(start, s.await(0, "ours takes over"), down, "ours takes over from one that resigns")
	if got := ours.ask("status"); got.Reason != "the active router resigned" {
		s.t.Errorf("ours is active since %s", got.Reason)
	}
	_ = theirs.Wait()

	// A higher one pre-empts, ours takes over when nothing is heard of it.
	theirs = s.keepalived(v, 180)
	s.await(1, "theirs pre-empts")
	start = time.Now()
	s.machines[1].Cut()
	s.awaitActive(ours)
	s.within(start, ours.ask("status").Since, down, "ours takes over from one that is gone")
	s.machines[1].Restore()
	s.await(1, "theirs is back")
	theirs.kill()
	s.await(0, "ours again")

	// A move; theirs has the lower priority and would not pre-empt.
	s.keepalived(v, 120)
	s.settle(ours)
	to := s.own(1)
	if v.local {
		to = netip.MustParseAddr("fe80::77:2")
	}
	ours.ask("move " + to.String())
	s.await(1, "a move to theirs")
}

// settle waits until the router has had the time to hear the others, and
// is quiet.
func (s *site) settle(p *process) Status {
	s.t.Helper()
	<-time.After(2 * time.Second)
	return p.ask("status")
}

// keepalived runs one on machine 1.
func (s *site) keepalived(v variant, priority int) *process {
	s.t.Helper()
	unicast := ""
	switch {
	case !v.multicast:
		// For IPv6 keepalived leaves the hop limit to the kernel if it is not told.
		unicast = fmt.Sprintf(" unicast_ttl 255\n unicast_src_ip %s\n unicast_peer {\n  %s\n }\n", s.own(1), s.own(0))
	case v.local:
		unicast = " mcast_src_ip fe80::77:2\n"
	}
	text := fmt.Sprintf(`global_defs {
 vrrp_version 3
}
vrrp_instance V {
 state BACKUP
 interface eth0
 virtual_router_id 7
 priority %d
 advert_int 0.1
%s virtual_ipaddress {
  %s dev eth0
 }
}
`, priority, unicast, netip.PrefixFrom(s.virtual(), s.virtual().BitLen()))
	dir := s.t.TempDir()
	file := filepath.Join(dir, "keepalived.conf")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
	cmd := s.machines[1].Command(s.t.Context(), "keepalived", "--vrrp", "--dont-fork", "--log-console",
		"--use-file="+file, "--pid="+filepath.Join(dir, "pid"), "--vrrp_pid="+filepath.Join(dir, "vrrp"))
	cmd.Stdout, cmd.Stderr = s.t.Output(), s.t.Output()
	testnet.Start(s.t, cmd)
	return &process{&testnet.Child{Cmd: cmd}, s.t}
}
