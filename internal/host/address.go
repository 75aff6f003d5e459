package host

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"slices"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// AddAddress puts address, which moves between machines, on a link; there
// already is no error. It belongs to no network there (/32, /128), is used at once
// (no duplicate address detection: the former holder may be answering still),
// and is not chosen for connections that begin here where the kernel knows how
// to avoid it (IPv6).
func AddAddress(link string, address netip.Addr) error {
	to, err := netlink.LinkByName(link)
	if err != nil {
		return fmt.Errorf("cannot find link %s: %w", link, err)
	}
	entry := &netlink.Addr{IPNet: netOf(single(address))}
	if address.Is6() {
		// Valid for ever, preferred never: RFC 6724 section 5, rule 3.
		entry.Flags, entry.ValidLft = unix.IFA_F_NODAD, math.MaxUint32
	}
	if err := netlink.AddrAdd(to, entry); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("cannot put %s on %s: %w", address, link, err)
	}
	return nil
}

// RemoveAddress takes off a link what AddAddress has put there, now or in an
// earlier run; not there, with the link or without, is no error. The address as
// the machine's own, with a network, is refused and left.
func RemoveAddress(link string, address netip.Addr) error {
	from, err := netlink.LinkByName(link)
	if missing := new(netlink.LinkNotFoundError); errors.As(err, missing) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot find link %s: %w", link, err)
	}
	family := netlink.FAMILY_V4
	if address.Is6() {
		family = netlink.FAMILY_V6
	}
	list, err := netlink.AddrList(from, family)
	if err != nil {
		return fmt.Errorf("cannot list the addresses of %s: %w", link, err)
	}
	for _, entry := range list {
		if !entry.IP.Equal(address.AsSlice()) {
			continue
		}
		if ones, size := entry.Mask.Size(); ones != size {
			return fmt.Errorf("cannot remove %s from %s: it is there as the machine's own %s; choose another, or remove it yourself", address, link, entry.IPNet)
		}
		err := netlink.AddrDel(from, &netlink.Addr{IPNet: netOf(single(address))})
		if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("cannot remove %s from %s: %w", address, link, err)
		}
	}
	return nil
}

func single(address netip.Addr) netip.Prefix { return netip.PrefixFrom(address, address.BitLen()) }

// AnnounceAddress tells the neighbours on a link once that address is here, so
// that they and the switches between forget where it was: for IPv4 a gratuitous
// ARP request and a reply, as some listen to one of them only (RFC 5227 section
// 3), for IPv6 an unsolicited neighbour advertisement (RFC 4861 section 7.2.6).
// Links without hardware addresses of Ethernet need none.
func AnnounceAddress(link string, address netip.Addr) error {
	to, err := net.InterfaceByName(link)
	if err != nil {
		return fmt.Errorf("cannot find link %s: %w", link, err)
	}
	if len(to.HardwareAddr) != 6 || to.Flags&net.FlagLoopback != 0 {
		return nil
	}
	kind := uint16(unix.ETH_P_IPV6)
	frames := [][]byte{neighbourFrame(to.HardwareAddr, address)}
	if address.Is4() {
		kind = unix.ETH_P_ARP
		frames = [][]byte{arpFrame(1, to.HardwareAddr, address), arpFrame(2, to.HardwareAddr, address)}
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("cannot announce %s on %s: %w", address, link, err)
	}
	at := &unix.SockaddrLinklayer{Protocol: kind<<8 | kind>>8, Ifindex: to.Index}
	for _, frame := range frames {
		err = errors.Join(err, unix.Sendto(fd, frame, 0, at))
	}
	if err := errors.Join(err, unix.Close(fd)); err != nil {
		return fmt.Errorf("cannot announce %s on %s: %w", address, link, err)
	}
	return nil
}

// Neighbour is the hardware address by which a link reaches a neighbour that this
// machine has talked with lately; an error says that the kernel does not know it.
func Neighbour(link string, address netip.Addr) (net.HardwareAddr, error) {
	to, err := netlink.LinkByName(link)
	if err != nil {
		return nil, fmt.Errorf("cannot find link %s: %w", link, err)
	}
	list, err := netlink.NeighList(to.Attrs().Index, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("cannot list the neighbours on %s: %w", link, err)
	}
	for _, n := range list {
		if n.IP.Equal(address.AsSlice()) && len(n.HardwareAddr) == 6 {
			return n.HardwareAddr, nil
		}
	}
	return nil, fmt.Errorf("%s is no known neighbour on %s", address, link)
}

// arpFrame is a gratuitous ARP message (RFC 826), of operation 1 a request and of 2
// a reply.
func arpFrame(operation byte, mac net.HardwareAddr, address netip.Addr) []byte {
	all := []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	return slices.Concat(all, mac, []byte{0x08, 0x06, 0, 1, 0x08, 0x00, 6, 4, 0, operation},
		mac, address.AsSlice(), all, address.AsSlice())
}

// neighbourFrame is a neighbour advertisement to all nodes that overrides what
// they know.
func neighbourFrame(mac net.HardwareAddr, address netip.Addr) []byte {
	const override = 0x20
	message := slices.Concat([]byte{136, 0, 0, 0, override, 0, 0, 0}, address.AsSlice(), []byte{2, 1}, mac)
	nodes := netip.MustParseAddr("ff02::1").AsSlice()
	ends := slices.Concat(address.AsSlice(), nodes)
	length := []byte{0, byte(len(message))}
	binary.BigEndian.PutUint16(message[2:], internetSum(ends, length, []byte{0, unix.IPPROTO_ICMPV6}, message))
	return slices.Concat([]byte{0x33, 0x33, 0, 0, 0, 1}, mac, []byte{0x86, 0xdd, 0x60, 0, 0, 0},
		length, []byte{unix.IPPROTO_ICMPV6, 255}, ends, message)
}

// ListenOn opens a socket, of a network as net.ListenPacket knows them, on one
// link: what comes by others is not heard, and what is sent goes out there, before
// all other traffic. It needs the rights of root.
func ListenOn(ctx context.Context, network, address, link string) (net.PacketConn, error) {
	const first = 7 // TC_PRIO_CONTROL
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var failed error
		err := c.Control(func(fd uintptr) {
			failed = errors.Join(unix.BindToDevice(int(fd), link), unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PRIORITY, first))
		})
		return errors.Join(err, failed)
	}}
	conn, err := config.ListenPacket(ctx, network, address)
	if err != nil {
		return nil, fmt.Errorf("cannot listen on %s: %w", link, err)
	}
	return conn, nil
}

// Tickler sends bare TCP segments in the name of connections whose socket was on
// another machine. It may be used by one goroutine at a time; Close it.
type Tickler struct{ fd int }

// OpenTickler needs the rights of root.
func OpenTickler() (*Tickler, error) {
	// Packets wait for the neighbour's hardware address in this room.
	const room = 16 << 20
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_RAW)
	if err != nil {
		return nil, fmt.Errorf("cannot open a raw socket: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, room); err != nil {
		return nil, errors.Join(fmt.Errorf("cannot give a raw socket room: %w", err), unix.Close(fd))
	}
	return &Tickler{fd}, nil
}

// Tickle makes the machine of to show where its connection with from has got to:
// an acknowledgement of nothing, which is out of every window but by chance, must
// be answered with one that has the right numbers (RFC 9293 section 3.10.7.4).
// Where from has no such connection, its machine answers that with a reset, which
// to accepts. A connection that is in order is not harmed. Both are of IPv4. It
// does not block: an error may be that there is no room at the moment.
func (t *Tickler) Tickle(from, to netip.AddrPort) error {
	packet, err := tickle(from, to)
	if err == nil {
		err = unix.Sendto(t.fd, packet, 0, &unix.SockaddrInet4{Addr: to.Addr().Unmap().As4()})
	}
	if err != nil {
		return fmt.Errorf("cannot tickle %s: %w", to, err)
	}
	return nil
}

// Close is called once.
func (t *Tickler) Close() error { return unix.Close(t.fd) }

// tickle is the segment with its header of IPv4 (RFC 791), of which the kernel
// fills in identification, length and checksum.
func tickle(from, to netip.AddrPort) ([]byte, error) {
	const headerWords, acknowledge, window, hops = 5, 0x10, 1024, 64
	from, to = netip.AddrPortFrom(from.Addr().Unmap(), from.Port()), netip.AddrPortFrom(to.Addr().Unmap(), to.Port())
	if !from.Addr().Is4() || !to.Addr().Is4() {
		return nil, fmt.Errorf("%s or %s is not of IPv4", from, to)
	}
	segment := make([]byte, 4*headerWords) // sequence and acknowledgement are 0
	binary.BigEndian.PutUint16(segment, from.Port())
	binary.BigEndian.PutUint16(segment[2:], to.Port())
	segment[12], segment[13] = headerWords<<4, acknowledge
	binary.BigEndian.PutUint16(segment[14:], window)
	ends := slices.Concat(from.Addr().AsSlice(), to.Addr().AsSlice())
	pseudo := slices.Concat(ends, []byte{0, unix.IPPROTO_TCP, 0, byte(len(segment))})
	binary.BigEndian.PutUint16(segment[16:], internetSum(pseudo, segment))
	header := []byte{4<<4 | headerWords, 0, 0, 0, 0, 0, 0x40, 0, hops, unix.IPPROTO_TCP, 0, 0} // not to be cut in pieces
	return slices.Concat(header, ends, segment), nil
}

// internetSum is the checksum of RFC 1071, of parts with an even length each.
func internetSum(parts ...[]byte) uint16 {
	var sum uint32
	for _, part := range parts {
		for pair := range slices.Chunk(part, 2) {
			sum += uint32(binary.BigEndian.Uint16(pair))
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum) //nolint:gosec // folded above
}
