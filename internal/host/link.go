package host

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const bridgeName = "sw0"

// MakeSwitch makes this network namespace the switch of a lab: a bridge that
// holds address, and an answer ("unreachable") to packets that would leave
// the lab, so that programs inside fail at once instead of waiting.
func MakeSwitch(address netip.Prefix, mtu int) error {
	if err := LinkUp("lo"); err != nil {
		return err
	}
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridgeName, MTU: mtu}}
	if err := netlink.LinkAdd(bridge); err != nil {
		return fmt.Errorf("cannot make the lab's switch: %w", err)
	}
	if err := configure(bridgeName, address); err != nil {
		return err
	}
	if err := Sysctl("net/ipv4/ip_forward", "1"); err != nil {
		return err
	}
	nowhere := &netlink.Route{Dst: netOf(netip.MustParsePrefix("0.0.0.0/0")), Type: syscall.RTN_UNREACHABLE}
	if err := netlink.RouteAdd(nowhere); err != nil {
		return fmt.Errorf("cannot close the lab's way out: %w", err)
	}
	return nil
}

// Plug puts a cable between the switch in this namespace and the machine
// whose first process is pid: there it is called eth0 and has hardware
// address mac. port names the switch's end; a cable left there is replaced.
func Plug(port string, pid int, mac net.HardwareAddr, mtu int) error {
	if old, err := netlink.LinkByName(port); err == nil {
		if err := remove(old); err != nil {
			return fmt.Errorf("cannot pull the old cable %s: %w", port, err)
		}
	}
	bridge, err := netlink.LinkByName(bridgeName)
	if err != nil {
		return fmt.Errorf("cannot find the lab's switch: %w", err)
	}
	cable := &netlink.Veth{
		LinkAttrs:        netlink.LinkAttrs{Name: port, MTU: mtu, MasterIndex: bridge.Attrs().Index},
		PeerName:         "eth0",
		PeerHardwareAddr: mac,
		PeerMTU:          uint32(mtu),
		PeerNamespace:    netlink.NsPid(pid),
	}
	if err := netlink.LinkAdd(cable); err != nil {
		return fmt.Errorf("cannot plug a cable into %s: %w", port, err)
	}
	return LinkUp(port)
}

// ConfigureMachine gives the machine this namespace belongs to its address on
// eth0 and a default route over the switch.
func ConfigureMachine(address netip.Prefix, gateway netip.Addr) error {
	if err := errors.Join(LinkUp("lo"), configure("eth0", address)); err != nil {
		return err
	}
	if err := netlink.RouteReplace(&netlink.Route{Gw: gateway.AsSlice()}); err != nil {
		return fmt.Errorf("cannot set the default route over %s: %w", gateway, err)
	}
	return nil
}

// AddLoopbackAddress puts address on lo, for a service that every machine
// offers at the same place; it is there already is no error.
func AddLoopbackAddress(address netip.Addr) error {
	return configure("lo", netip.PrefixFrom(address, address.BitLen()))
}

func configure(name string, address netip.Prefix) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("cannot find link %s: %w", name, err)
	}
	if err := netlink.AddrReplace(link, &netlink.Addr{IPNet: netOf(address)}); err != nil {
		return fmt.Errorf("cannot put %s on %s: %w", address, name, err)
	}
	return LinkUp(name)
}

// LinkUp brings a link of this network namespace up.
func LinkUp(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("cannot find link %s: %w", name, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("cannot bring %s up: %w", name, err)
	}
	return nil
}

func netOf(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// Addresses lists the IPv4 addresses of this network namespace by which others
// may reach it, in their order, whether their links are up or not.
func Addresses() ([]netip.Addr, error) {
	list, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("cannot list this machine's addresses: %w", err)
	}
	var all []netip.Addr
	for _, entry := range list {
		prefix, err := netip.ParsePrefix(entry.String())
		if err != nil {
			continue
		}
		if a := prefix.Addr().Unmap(); a.Is4() && a.IsGlobalUnicast() {
			all = append(all, a)
		}
	}
	slices.SortFunc(all, netip.Addr.Compare)
	return slices.Compact(all), nil
}

// remove removes a link that may be going: the kernel removes a cable, some time after
// the machine at one end has ended.
func remove(link netlink.Link) error {
	if err := netlink.LinkDel(link); !errors.Is(err, unix.ENODEV) {
		return err
	}
	return nil
}

// LinkOf names the link of this network namespace that has address.
func LinkOf(address netip.Addr) (string, error) {
	links, err := net.Interfaces()
	if err != nil {
		return "", fmt.Errorf("cannot list this machine's links: %w", err)
	}
	for _, link := range links {
		entries, err := link.Addrs()
		if err != nil {
			continue // it has just gone
		}
		for _, entry := range entries {
			if prefix, err := netip.ParsePrefix(entry.String()); err == nil && prefix.Addr().Unmap() == address {
				return link.Name, nil
			}
		}
	}
	return "", fmt.Errorf("no link of this machine has the address %s", address)
}

// Anywhere is for net.ListenConfig.Control: it lets a socket listen on an
// address that is not this machine's, or not yet (ip(7), IP_FREEBIND).
func Anywhere(_, _ string, c syscall.RawConn) error {
	var failed error
	err := c.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_FREEBIND, 1) })
	return errors.Join(err, failed)
}

// Sysctl sets a kernel setting by its path below /proc/sys. Settings that
// hold the value already are not written.
func Sysctl(name, value string) error {
	path := filepath.Join("/proc/sys", name)
	old, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot set %s: this kernel does not have it", name)
	}
	if err == nil && firstLine(old) == value {
		return nil
	}
	if err := os.WriteFile(path, []byte(value), 0o644); err != nil {
		return fmt.Errorf("cannot set %s to %s: %w", name, value, err)
	}
	return nil
}

// ProbeLinks tries whether the kernel has what pods of different machines
// need: a cable, and a VXLAN link when backend is "vxlan". It leaves nothing
// behind, and must be called in a network namespace of our own.
func ProbeLinks(backend string) error {
	if backend != "vxlan" {
		return nil
	}
	link := &netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: "probe0"}, VxlanId: 4095, Port: 8472}
	if err := netlink.LinkAdd(link); err != nil {
		return fmt.Errorf("cannot make a VXLAN link: this kernel may lack it (load the module vxlan, or set network.backend to host-gw): %w", err)
	}
	if err := netlink.LinkDel(link); err != nil {
		return fmt.Errorf("cannot remove the probe link: %w", err)
	}
	return nil
}

// TryVXLAN makes a VXLAN link in a network namespace that ends with the call:
// nothing of it is seen outside. It needs root's rights.
func TryVXLAN() error {
	return elsewhere(NetworkNamespace, func() error {
		link := &netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: "try"}, VxlanId: 1, Port: 8472}
		if err := netlink.LinkAdd(link); err != nil {
			return fmt.Errorf("cannot make a VXLAN link: %w", err)
		}
		return nil
	})
}
