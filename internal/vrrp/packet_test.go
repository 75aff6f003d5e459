package vrrp

import (
	"encoding/hex"
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func compare(x, y any) string {
	return cmp.Diff(x, y, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }))
}

func addrs(text ...string) []netip.Addr {
	var all []netip.Addr
	for _, t := range text {
		all = append(all, netip.MustParseAddr(t))
	}
	return all
}

// golden are packets as keepalived 2.2.7 sent them.
func golden() map[string]struct {
	src, dst, data string
	want           Advertisement
} {
	type packet = struct {
		src, dst, data string
		want           Advertisement
	}
	return map[string]packet{
		"unicast":   {"10.77.0.3", "10.77.0.1", "31079601000a19220a4d0064", Advertisement{7, 150, 100 * time.Millisecond, addrs("10.77.0.100")}},
		"multicast": {"10.77.0.3", "224.0.0.18", "31089602000a38a30a4d00650a4d0066", Advertisement{8, 150, 100 * time.Millisecond, addrs("10.77.0.101", "10.77.0.102")}},
		"IPv6":      {"fd77::3", "fd77::1", "31099601000a3ef7fd770000000000000000000000000100", Advertisement{9, 150, 100 * time.Millisecond, addrs("fd77::100")}},
	}
}

func TestPacketsOfKeepalived(t *testing.T) {
	for name, c := range golden() {
		src, dst := netip.MustParseAddr(c.src), netip.MustParseAddr(c.dst)
		data, err := hex.DecodeString(c.data)
		if err != nil {
			t.Fatal(err)
		}
		got, err := Parse(data, src, dst)
		if diff := compare(c.want, got); err != nil || diff != "" {
			t.Errorf("%s: %v\n%s", name, err, diff)
		}
		made, err := c.want.Marshal(src, dst)
		if diff := cmp.Diff(c.data, hex.EncodeToString(made)); err != nil || diff != "" {
			t.Errorf("%s: %v\n%s", name, err, diff)
		}
	}
}

// TestParse changes one thing each of a packet that is right.
func TestParse(t *testing.T) {
	src, dst := addr(3), addr(1)
	right := func() []byte {
		data, err := Advertisement{7, 150, time.Second, addrs("10.0.0.100", "10.0.0.101")}.Marshal(src, dst)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	// set changes bytes and makes the checksum right for it.
	set := func(at int, values ...byte) []byte {
		data := right()
		copy(data[at:], values)
		data[6], data[7] = 0, 0
		s := ^sum(pseudoHeader(src, dst, len(data)), data)
		data[6], data[7] = byte(s>>8), byte(s)
		return data
	}
	short := right()
	short[6], short[7] = 0, 0
	s := ^sum(nil, short)
	short[6], short[7] = byte(s>>8), byte(s)
	for name, c := range map[string]struct {
		data []byte
		want error
	}{
		"as it is":                        {right(), nil},
		"with RFC 9568's checksum":        {short, nil},
		"reserved bits are ignored":       {set(4, 0xf0, 100), nil},
		"priority 0":                      {set(2, 0), nil},
		"version 2":                       {set(0, 0x21), errMalformed},
		"another type":                    {set(0, 0x32), errMalformed},
		"no number":                       {set(1, 0), errMalformed},
		"no addresses":                    {set(3, 0), errMalformed},
		"fewer addresses than there are":  {set(3, 1), errMalformed},
		"more addresses than there are":   {set(3, 3), errMalformed},
		"no interval":                     {set(4, 0, 0), errMalformed},
		"cut off":                         {right()[:15], errMalformed},
		"empty":                           {nil, errMalformed},
		"bytes after it":                  {append(right(), 0, 0, 0, 0), errMalformed},
		"a bit has turned":                {append(right()[:15], 0), errChecksum},
		"another address in the checksum": {right(), errChecksum},
	} {
		to := dst
		if name == "another address in the checksum" {
			to = addr(2)
		}
		if _, err := Parse(c.data, src, to); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
	}
}

func TestMarshalRefuses(t *testing.T) {
	right := Advertisement{7, 150, time.Second, addrs("10.0.0.100")}
	for name, c := range map[string]struct {
		change func(*Advertisement)
		dst    netip.Addr
	}{
		"no number":                    {func(a *Advertisement) { a.VRID = 0 }, addr(1)},
		"no interval":                  {func(a *Advertisement) { a.Interval = 0 }, addr(1)},
		"too long an interval":         {func(a *Advertisement) { a.Interval = 41 * time.Second }, addr(1)},
		"half a centisecond":           {func(a *Advertisement) { a.Interval = 15 * time.Millisecond }, addr(1)},
		"no address":                   {func(a *Advertisement) { a.Addresses = nil }, addr(1)},
		"too many addresses":           {func(a *Advertisement) { a.Addresses = slices.Repeat(a.Addresses, 256) }, addr(1)},
		"an address of other family":   {func(a *Advertisement) { a.Addresses = addrs("fd77::1") }, addr(1)},
		"a target of the other family": {func(*Advertisement) {}, netip.MustParseAddr("fd77::1")},
	} {
		a := right
		c.change(&a)
		if data, err := a.Marshal(addr(3), c.dst); err == nil {
			t.Errorf("%s: made %x", name, data)
		}
	}
}

// FuzzParse: whatever comes, it is refused or understood whole: made again it
// is the same but for reserved bits and the form of the checksum.
func FuzzParse(f *testing.F) {
	for _, c := range golden() {
		data, err := hex.DecodeString(c.data)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data, c.src, c.dst)
	}
	f.Fuzz(func(t *testing.T, data []byte, from, to string) {
		src, err1 := netip.ParseAddr(from)
		dst, err2 := netip.ParseAddr(to)
		if err1 != nil || err2 != nil || src.Is4() != dst.Is4() || src.Is4In6() || dst.Is4In6() {
			return
		}
		got, err := Parse(data, src, dst)
		if err != nil {
			return
		}
		again, err := got.Marshal(src, dst)
		if err != nil {
			t.Fatalf("%+v cannot be made: %v", got, err)
		}
		back, err := Parse(again, src, dst)
		if diff := compare(got, back); err != nil || diff != "" {
			t.Errorf("%v\n%s", err, diff)
		}
		again[6], again[7] = data[6], data[7]
		again[4] |= data[4] & 0xf0
		if diff := cmp.Diff(hex.EncodeToString(data), hex.EncodeToString(again)); diff != "" {
			t.Error(diff)
		}
	})
}

// FuzzMarshal: what is sent is what is understood.
func FuzzMarshal(f *testing.F) {
	f.Add(uint8(7), uint8(150), uint16(10), []byte{10, 0, 0, 1}, false)
	f.Add(uint8(9), uint8(0), uint16(4095), []byte("0123456789abcdef0123456789abcdef"), true)
	f.Fuzz(func(t *testing.T, vrid, priority uint8, centiseconds uint16, raw []byte, six bool) {
		src, dst, size := addr(3), addr(1), 4
		if six {
			src, dst, size = netip.MustParseAddr("fe80::3"), netip.MustParseAddr("ff02::12"), 16
		}
		a := Advertisement{VRID: vrid, Priority: priority, Interval: time.Duration(centiseconds) * Centisecond}
		for part := range slices.Chunk(raw, size) {
			if len(part) == size {
				address, _ := netip.AddrFromSlice(part)
				a.Addresses = append(a.Addresses, address)
			}
		}
		data, err := a.Marshal(src, dst)
		if err != nil {
			return
		}
		got, err := Parse(data, src, dst)
		if diff := compare(a, got); err != nil || diff != "" {
			t.Errorf("%v\n%s", err, diff)
		}
	})
}
