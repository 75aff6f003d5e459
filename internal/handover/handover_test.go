package handover

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var (
	here   = Place{Link: "eth0", Own: netip.MustParseAddr("10.0.0.1"), Front: netip.MustParseAddrPort("10.0.0.9:6443")}
	former = netip.MustParseAddr("10.0.0.2")
	mac    = net.HardwareAddr{2, 0, 0, 0, 0, 2}
	start  = time.Unix(1_000_000, 0)
)

// kernel writes down what it is asked for.
type kernel struct {
	did     []string
	failing string // what fails
}

func (k *kernel) do(what string) error {
	if what == k.failing {
		return errors.New("it is broken")
	}
	k.did = append(k.did, what)
	return nil
}

func (k *kernel) Take() error     { return k.do("take") }
func (k *kernel) GiveUp() error   { return k.do("give up") }
func (k *kernel) Announce() error { return k.do("announce") }

func (k *kernel) load(_ context.Context, rules string) error {
	what := "rules:"
	for line := range strings.Lines(rules) {
		if words := strings.Fields(line); len(words) > 1 && (words[0] == "table" || words[0] == "delete") && !strings.Contains(line, "{}") {
			what += " " + words[0] + " " + words[len(words)-2]
			if words[0] == "table" {
				what = strings.Replace(what, "table "+words[len(words)-2], "table "+words[1], 1)
			}
		}
	}
	return k.do(what)
}

func (k *kernel) lo(do func(string, netip.Addr) error) error {
	name := runtime.FuncForPC(reflect.ValueOf(do).Pointer()).Name()
	return k.do("lo: " + name[strings.LastIndex(name, ".")+1:])
}

func (k *kernel) neighbour(string, netip.Addr) (net.HardwareAddr, error) {
	return mac, k.do("neighbour")
}

func (k *kernel) since() []string {
	did := k.did
	k.did = nil
	return did
}

func newSide() (*Side, *kernel) {
	k := &kernel{}
	return &Side{Holder: k, place: here, log: slog.New(slog.DiscardHandler), load: k.load, neighbour: k.neighbour, lo: k.lo}, k
}

func (k *kernel) expect(t *testing.T, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, k.since()); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// TestStay: the address is on the loopback, and silent, before it leaves the link.
func TestStay(t *testing.T) {
	s, k := newSide()
	if err := s.Take(); err != nil {
		t.Fatal(err)
	}
	s.Offer()
	if err := s.GiveUp(); err != nil || !s.Stays() {
		t.Errorf("it stays: %t, %v", s.Stays(), err)
	}
	k.expect(t, "take", "lo: AddAddress", "rules: delete arp table arp", "give up")
	if err := s.GiveUp(); err != nil || !s.Stays() { // tried again
		t.Errorf("it stays: %t, %v", s.Stays(), err)
	}
	k.expect(t, "give up")
	s.Leave()
	s.Leave()
	k.failing = "rules: delete arp"
	s.Tick(start, false)
	k.failing = ""
	s.Tick(start.Add(interval-1), false)
	k.expect(t, "lo: RemoveAddress")
	s.Tick(start.Add(interval), false) // again, since it failed
	s.Tick(start.Add(2*interval), false)
	k.expect(t, "lo: RemoveAddress", "rules: delete arp")
	if s.Stays() {
		t.Error("it stays for ever")
	}
}

// TestGone: without an offer, or after one that was withdrawn or is over, nothing stays.
func TestGone(t *testing.T) {
	for name, offers := range map[string]func(*Side){
		"none":      func(*Side) {},
		"withdrawn": func(s *Side) { s.Offer(); s.Withdraw() },
		"used":      func(s *Side) { s.Offer(); _ = s.GiveUp(); s.Leave(); _ = s.Take() },
	} {
		s, k := newSide()
		_ = s.Take()
		offers(s)
		k.since()
		if err := s.GiveUp(); err != nil || s.Stays() {
			t.Errorf("%s: it stays: %t, %v", name, s.Stays(), err)
		}
		k.expect(t, "give up")
	}
	s, k := newSide()
	s.Offer() // of what is not here
	if err := s.GiveUp(); err != nil || s.Stays() {
		t.Errorf("what it has not: %t, %v", s.Stays(), err)
	}
	k.expect(t, "give up")
}

// TestCannotStay: the address leaves the link all the same.
func TestCannotStay(t *testing.T) {
	for failing, want := range map[string][]string{
		"lo: AddAddress":              {"give up"},
		"rules: delete arp table arp": {"lo: AddAddress", "give up"},
	} {
		s, k := newSide()
		_ = s.Take()
		s.Offer()
		k.since()
		k.failing = failing
		if err := s.GiveUp(); err != nil || s.Stays() {
			t.Errorf("%s fails: it stays: %t, %v", failing, s.Stays(), err)
		}
		k.expect(t, want...)
		s.Tick(start, false)
		k.expect(t, "lo: RemoveAddress", "rules: delete arp")
	}
}

// TestComesBack: the connections that were left are ordinary ones again.
func TestComesBack(t *testing.T) {
	s, k := newSide()
	_ = s.Take()
	s.Offer()
	_ = s.GiveUp()
	k.since()
	if err := s.Take(); err != nil || s.Stays() {
		t.Errorf("it stays: %t, %v", s.Stays(), err)
	}
	k.expect(t, "take") // the router does not wait for more
	s.Tick(start, false)
	k.expect(t, "lo: RemoveAddress", "rules: delete arp")
}

// TestExpect: packets are passed on from before the address comes, for Window and a
// little longer after that; or not, when it does not come.
func TestExpect(t *testing.T) {
	s, k := newSide()
	if err := s.Expect(start, former, nil); err != nil || s.For() != former {
		t.Fatalf("passing on to %v, %v", s.For(), err)
	}
	k.expect(t, "neighbour", "rules: delete netdev table netdev")
	if err := s.Expect(start, netip.MustParseAddr("10.0.0.3"), nil); err == nil || s.For() != former {
		t.Errorf("a second one's clients: %v", err)
	}
	if s.Tick(start.Add(wait-1), true) {
		t.Error("over too soon")
	}
	if k.since(); !s.Tick(start.Add(wait+interval), false) || s.For().IsValid() || s.Tick(start.Add(time.Hour), false) {
		t.Error("it waits for ever, or ends twice")
	}
	k.expect(t, "neighbour", "rules: delete netdev")

	arrive := func() {
		t.Helper()
		if err := errors.Join(s.Expect(start, former, nil), s.Take(), s.Take()); err != nil { // again each second
			t.Fatal(err)
		}
		s.Came(start, former)
	}
	arrive()
	if s.Tick(start.Add(Window), false) || s.For() != former {
		t.Error("over before the former holder has closed what is left")
	}
	k.failing = "rules: delete netdev"
	if s.Tick(start.Add(Window+grace), false) || s.For() != former {
		t.Error("over, and the rules are still there")
	}
	if k.failing = ""; !s.Tick(start.Add(Window+grace+interval), false) || s.For().IsValid() {
		t.Error("never over")
	}
	if err := s.Expect(start, former, nil); err == nil || s.For().IsValid() {
		t.Errorf("the holder expects itself: %v", err)
	}
	_ = s.GiveUp()
	arrive()
	k.failing = "neighbour"
	if !s.Tick(start, false) || s.For().IsValid() {
		t.Error("packets go on to a machine that is not there any more")
	}
}

// TestTakenOver: an address that comes in another way than was expected, since its
// holder has died, leads nobody to the dead.
func TestTakenOver(t *testing.T) {
	third := netip.MustParseAddr("10.0.0.3")
	for name, by := range map[string]netip.Addr{"from nobody": {}, "from a third": third} {
		s, _ := newSide()
		if err := errors.Join(s.Expect(start, former, nil), s.Take()); err != nil {
			t.Fatal(err)
		}
		s.Came(start.Add(time.Second), by)
		if !s.Tick(start.Add(time.Second), false) || s.For().IsValid() {
			t.Errorf("%s: packets are passed on", name)
		}
	}
	s, _ := newSide() // given back to the first, which dies: its clients of old are still passed on to it
	_ = errors.Join(s.Expect(start, former, nil), s.Take())
	s.Came(start, former)
	s.Offer()
	_ = errors.Join(s.GiveUp(), s.Take())
	s.Came(start.Add(time.Second), netip.Addr{})
	if !s.Tick(start.Add(time.Second), false) {
		t.Error("packets are passed on to the dead")
	}
}

// TestNothingIsLeft: once the former holder has no clients, which is believed after a
// moment, nothing is passed on.
func TestNothingIsLeft(t *testing.T) {
	s, _ := newSide()
	if err := errors.Join(s.Expect(start, former, nil), s.Take()); err != nil {
		t.Fatal(err)
	}
	s.Came(start, former)
	if s.Tick(start.Add(settling-1), true) || s.Tick(start.Add(settling+interval), false) {
		t.Error("over too soon")
	}
	_ = s.GiveUp() // its own connections may still come by way of the next one
	if !s.Tick(start.Add(settling+2*interval), true) {
		t.Error("it does not end")
	}
}

func TestCannotExpect(t *testing.T) {
	for _, failing := range []string{"neighbour", "rules: delete netdev table netdev"} {
		s, k := newSide()
		k.failing = failing
		if err := s.Expect(start, former, nil); err == nil || s.For().IsValid() {
			t.Errorf("%s fails: passing: %t, %v", failing, s.For().IsValid(), err)
		}
	}
}

func TestCloseCleans(t *testing.T) {
	s, k := newSide()
	_ = s.Expect(start, former, nil)
	k.since()
	if err := s.Close(); err != nil || s.For().IsValid() || s.Tick(start.Add(time.Hour), false) {
		t.Errorf("passing: %t, %v", s.For().IsValid(), err)
	}
	k.expect(t, "rules: delete netdev", "lo: RemoveAddress", "rules: delete arp")
	if err := s.Expect(start, former, nil); err == nil || k.since() != nil {
		t.Errorf("after the end: %v", err)
	}
	s.Offer()
	if err := errors.Join(s.Take(), s.GiveUp()); err != nil || s.Stays() {
		t.Errorf("after the end it stays: %t, %v", s.Stays(), err)
	}
	var none Side // of a machine that has no router yet
	if none.Stays() || none.For().IsValid() || none.Tick(start, false) {
		t.Error("it does something")
	}
	none.Leave()
}

// TestHeirRules: what each rule is about, for both families.
func TestHeirRules(t *testing.T) {
	six := Place{Link: "eth0", Own: netip.MustParseAddr("fd00::1"), Front: netip.MustParseAddrPort("[fd00::9]:6443")}
	clients := []netip.AddrPort{netip.MustParseAddrPort("10.0.0.7:40000"), netip.MustParseAddrPort("10.0.0.8:40001")}
	for _, tc := range []struct {
		rules string
		want  []string
	}{
		{heirRules(here, former, mac, clients), []string{
			"elements = { 10.0.0.7 . 40000, 10.0.0.8 . 40001 }", "type ipv4_addr . inet_service",
			"ip daddr 10.0.0.9 tcp dport 6443 tcp flags & (syn | ack) == syn update @own { ip saddr . tcp sport } accept",
			"ip daddr 10.0.0.9 tcp dport 6443 ether saddr != 02:00:00:00:00:02 fwd ip to 10.0.0.2 device \"eth0\"",
		}},
		{heirRules(six, netip.MustParseAddr("fd00::2"), mac, nil), []string{
			"type ipv6_addr . inet_service",
			"ip6 daddr fd00::9 tcp dport 6443 ip6 saddr . tcp sport @own update @own { ip6 saddr . tcp sport } accept",
			"fwd ip6 to fd00::2 device \"eth0\"",
		}},
	} {
		for _, want := range tc.want {
			if !strings.Contains(tc.rules, want) {
				t.Errorf("no %q in\n%s", want, tc.rules)
			}
		}
	}
	if strings.Contains(heirRules(here, former, mac, nil), "elements") {
		t.Error("an empty list is no list to nft")
	}
}

// TestOwnOnce: nft gets each connection once, though there may be two of a client:
// one has ended, and nobody has noticed yet.
func TestOwnOnce(t *testing.T) {
	s, k := newSide()
	var loaded string
	s.load = func(_ context.Context, rules string) error { loaded = rules; return nil }
	client := netip.MustParseAddrPort("10.0.0.7:40000")
	own := []netip.AddrPort{client, netip.MustParseAddrPort("10.0.0.6:40000"), client}
	if err := s.Expect(start, former, own); err != nil {
		t.Fatal(err)
	}
	k.since()
	if want := "{ 10.0.0.6 . 40000, 10.0.0.7 . 40000 }"; !strings.Contains(loaded, want) || !slices.Equal(own[:1], []netip.AddrPort{client}) {
		t.Errorf("no %q in\n%s", want, loaded)
	}
}
