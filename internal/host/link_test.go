package host

import (
	"errors"
	"net/netip"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
)

// TestAddresses: those by which others may reach this machine, whether the link
// is up or not, and no others.
func TestAddresses(t *testing.T) {
	if err := elsewhere(NetworkNamespace, func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		for _, text := range []string{"198.18.0.62/24", "10.1.2.3/8", "169.254.20.10/32", "127.0.0.2/8", "fd00::1/64"} {
			address, err := netlink.ParseAddr(text)
			if err != nil {
				return err
			}
			if err := netlink.AddrAdd(lo, address); err != nil && address.IP.To4() != nil {
				return err
			}
		}
		got, err := Addresses()
		if want := []netip.Addr{netip.MustParseAddr("10.1.2.3"), netip.MustParseAddr("198.18.0.62")}; !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

// TestRemoveWhatHasGone: between the look at a cable and its removal the kernel may have
// removed it.
func TestRemoveWhatHasGone(t *testing.T) {
	if err := elsewhere(NetworkNamespace, func() error {
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "here"}, PeerName: "there"}); err != nil {
			return err
		}
		here, err := netlink.LinkByName("here")
		if err != nil {
			return err
		}
		there, err := netlink.LinkByName("there")
		if err != nil {
			return err
		}
		return errors.Join(remove(there), remove(here))
	}); err != nil {
		t.Error(err)
	}
}
