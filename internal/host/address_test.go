package host

import (
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
)

// TestAnnouncementsOfKeepalived compares frames with what keepalived 2.2.7 sent.
func TestAnnouncementsOfKeepalived(t *testing.T) {
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 3}
	v4, v6 := netip.MustParseAddr("10.77.0.100"), netip.MustParseAddr("fd77::100")
	for want, got := range map[string][]byte{
		"ffffffffffff020000000003080600010800060400010200000000030a4d0064ffffffffffff0a4d0064": arpFrame(1, mac, v4),
		"ffffffffffff020000000003080600010800060400020200000000030a4d0064ffffffffffff0a4d0064": arpFrame(2, mac, v4),
		"33330000000102000000000386dd6000000000203afffd770000000000000000000000000100ff02000000000000" +
			"0000000000000001880057ad20000000fd7700000000000000000000000001000201020000000003": neighbourFrame(mac, v6),
	} {
		if hex.EncodeToString(got) != want {
			t.Errorf("got  %x\nwant %s", got, want)
		}
	}
}

// TestAddressComesAndGoes, of both families, any number of times; what is the
// machine's own stays.
func TestAddressComesAndGoes(t *testing.T) {
	if err := elsewhere(NetworkNamespace, func() error {
		link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "peer"}
		if err := errors.Join(netlink.LinkAdd(link), LinkUp("eth0"), LinkUp("peer")); err != nil {
			return err
		}
		for _, text := range []string{"10.1.2.3", "fd77::100"} {
			if err := comesAndGoes(netip.MustParseAddr(text)); err != nil {
				return fmt.Errorf("%s: %w", text, err)
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

func comesAndGoes(address netip.Addr) error {
	for range 2 {
		for range 2 {
			if err := errors.Join(AddAddress("eth0", address), AnnounceAddress("eth0", address)); err != nil {
				return err
			}
		}
		entry, err := find("eth0", address)
		if err != nil || entry == nil {
			return fmt.Errorf("it is not there: %w", err)
		}
		if ones, size := entry.Mask.Size(); ones != size || address.Is6() && (entry.PreferedLft != 0 || entry.ValidLft != math.MaxUint32) {
			return fmt.Errorf("it is there as %+v", entry)
		}
		for range 2 {
			if err := RemoveAddress("eth0", address); err != nil {
				return err
			}
		}
		if entry, err := find("eth0", address); err != nil || entry != nil {
			return fmt.Errorf("it is there: %v, %w", entry, err)
		}
	}
	if err := configure("eth0", netip.PrefixFrom(address, 24)); err != nil {
		return err
	}
	if err := RemoveAddress("eth0", address); err == nil || !strings.Contains(err.Error(), "the machine's own") {
		return fmt.Errorf("the machine's own address: %w", err)
	}
	if entry, err := find("eth0", address); err != nil || entry == nil {
		return fmt.Errorf("the machine's own address is gone: %w", err)
	}
	if err := AddAddress("eth9", address); err == nil || !strings.Contains(err.Error(), "cannot find link eth9") {
		return fmt.Errorf("no such link: %w", err)
	}
	return errors.Join(RemoveAddress("eth9", address), AnnounceAddress("lo", address))
}

func find(link string, address netip.Addr) (*netlink.Addr, error) {
	at, err := netlink.LinkByName(link)
	if err != nil {
		return nil, err
	}
	list, err := netlink.AddrList(at, netlink.FAMILY_ALL)
	if err != nil {
		return nil, err
	}
	for _, entry := range list {
		if entry.IP.Equal(address.AsSlice()) {
			return &entry, nil
		}
	}
	return nil, nil
}

// TestTickle compares a segment with one that was put together by hand from
// RFC 791 and RFC 9293.
func TestTickle(t *testing.T) {
	from, to := netip.MustParseAddrPort("10.78.0.100:6443"), netip.MustParseAddrPort("192.0.2.7:51234")
	want := "4500000000004000400600000a4e0064c0000207192bc822000000000000000050100400fdcd0000"
	for _, source := range []netip.AddrPort{from, netip.AddrPortFrom(netip.AddrFrom16(from.Addr().As16()), from.Port())} {
		if got, err := tickle(source, to); err != nil || hex.EncodeToString(got) != want {
			t.Errorf("got  %x, %v\nwant %s", got, err, want)
		}
	}
	if _, err := tickle(from, netip.MustParseAddrPort("[fd77::1]:51234")); err == nil {
		t.Error("a client of IPv6 is tickled")
	}
}
