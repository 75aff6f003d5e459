package vrrp

import (
	"net/netip"
	"strings"
	"testing"
	"time"
)

func newConfig() Config {
	return Config{
		Interface: "eth0", VRID: 7, Addresses: addrs("10.0.0.100"), Source: addr(1),
		Peers: []netip.Addr{addr(2), addr(3)}, Priority: 150, Interval: interval,
	}
}

func TestAdmit(t *testing.T) {
	group := netip.MustParseAddr("224.0.0.18")
	anybody := func(c *Config) { c.Multicast, c.Peers = true, nil }
	multicast := func(c *Config) { c.Multicast = true }
	for name, c := range map[string]struct {
		set      func(*Config)
		from, to netip.Addr
		ttl      int
		change   func(*Advertisement)
		spoil    func([]byte)
		want     Drop
	}{
		"a peer's":                        {from: addr(2)},
		"a stranger's":                    {from: addr(9), want: DropStranger},
		"one's own":                       {from: addr(1), want: dropOwn},
		"one that was routed":             {from: addr(2), ttl: 254, want: DropTTL},
		"one to somebody else":            {from: addr(2), to: addr(8), want: DropDestination},
		"one to the group":                {from: addr(2), to: group, want: DropDestination},
		"one to the virtual address":      {from: addr(2), to: addr(100), want: DropDestination},
		"damaged":                         {from: addr(2), spoil: func(b []byte) { b[2]++ }, want: DropChecksum},
		"of version 2":                    {from: addr(2), spoil: func(b []byte) { b[0] = 0x21 }, want: DropMalformed},
		"of another router":               {from: addr(2), change: func(a *Advertisement) { a.VRID = 8 }, want: DropVRID},
		"with another address":            {from: addr(2), change: func(a *Advertisement) { a.Addresses = addrs("10.0.0.101") }, want: DropAddresses},
		"with an address more":            {from: addr(2), change: func(a *Advertisement) { a.Addresses = addrs("10.0.0.100", "10.0.0.101") }, want: DropAddresses},
		"anybody's to the group":          {set: anybody, from: addr(9), to: group},
		"a peer's to the group":           {set: multicast, from: addr(2), to: group},
		"a stranger's to the group":       {set: multicast, from: addr(9), to: group, want: DropStranger},
		"unicast where all is multicast":  {set: multicast, from: addr(2), want: DropDestination},
		"anybody's where nobody is known": {set: func(c *Config) { c.Peers = nil }, from: addr(2), want: DropStranger},
	} {
		cfg := newConfig()
		if c.set != nil {
			c.set(&cfg)
		}
		a := Advertisement{VRID: 7, Priority: 120, Interval: time.Second, Addresses: addrs("10.0.0.100")}
		if c.change != nil {
			c.change(&a)
		}
		p := Packet{From: c.from, To: c.to, TTL: c.ttl}
		if !p.To.IsValid() {
			p.To = addr(1)
		}
		if p.TTL == 0 {
			p.TTL = 255
		}
		var err error
		if p.Data, err = a.Marshal(p.From, p.To); err != nil {
			t.Fatal(err)
		}
		if c.spoil != nil {
			c.spoil(p.Data)
		}
		got, drop := cfg.admit(p)
		if drop != c.want || drop == "" && compare(a, got) != "" {
			t.Errorf("%s: got %+v, dropped as %q, want %q", name, got, drop, c.want)
		}
	}
}

func TestValidate(t *testing.T) {
	for want, change := range map[string]func(*Config){
		"":                          func(*Config) {},
		"no interface":              func(c *Config) { c.Interface = "" },
		"VRID":                      func(c *Config) { c.VRID = 0 },
		"0 addresses are given":     func(c *Config) { c.Addresses = nil },
		"21 addresses are given":    func(c *Config) { c.Addresses = make([]netip.Addr, 21) },
		"own address \"invalid":     func(c *Config) { c.Source = netip.Addr{} },
		"own address \"224":         func(c *Config) { c.Source = netip.MustParseAddr("224.0.0.1") },
		"priority is 100":           func(c *Config) { c.Priority = 100 },
		"priority is 201":           func(c *Config) { c.Priority = 201 },
		"interval is 5ms":           func(c *Config) { c.Interval = 5 * time.Millisecond },
		"interval is 41s":           func(c *Config) { c.Interval = 41 * time.Second },
		"interval is 115ms":         func(c *Config) { c.Interval = 115 * time.Millisecond },
		"not an address of that":    func(c *Config) { c.Addresses = addrs("fd77::1") },
		"this machine's own":        func(c *Config) { c.Addresses = []netip.Addr{c.Source} },
		"10.0.0.100 is given":       func(c *Config) { c.Addresses = addrs("10.0.0.100", "10.0.0.100") },
		"10.0.0.2 is given twice":   func(c *Config) { c.Peers = append(c.Peers, addr(2)) },
		"this machine itself":       func(c *Config) { c.Peers = append(c.Peers, c.Source) },
		"an address of the virtual": func(c *Config) { c.Peers = append(c.Peers, addr(100)) },
		"peer \"fd77::1\"":          func(c *Config) { c.Peers = addrs("fd77::1") },
	} {
		cfg := newConfig()
		change(&cfg)
		err := cfg.Validate()
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	if cfg := (Config{}); cfg.Validate() == nil {
		t.Error("nothing at all is right")
	}
}
