package vrrp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"

	"kuorum/internal/host"
)

const (
	control    = 0xc0 // the traffic class of routing protocols (CS6), RFC 4594 section 3.2
	maxMessage = headerSize + 255*16
)

// errLinkGone says that a wire will never work again: a new link of the same
// name is another one.
var errLinkGone = errors.New("the link is gone")

// Open makes the wire of a router: raw sockets on its interface, which need the
// rights of root. Packets of the kernel's other interfaces do not come in.
func Open(ctx context.Context, cfg Config) (Wire, error) {
	cfg = cfg.normal()
	link, err := net.InterfaceByName(cfg.Interface)
	if err != nil {
		return nil, fmt.Errorf("cannot open the virtual router's wire: cannot find link %s: %w", cfg.Interface, err)
	}
	network, everywhere := "ip4:112", "0.0.0.0"
	if cfg.Source.Is6() {
		network, everywhere = "ip6:112", "::"
	}
	conn, err := host.ListenOn(ctx, network, everywhere, cfg.Interface)
	if err != nil {
		return nil, fmt.Errorf("cannot open the virtual router's wire: %w", err)
	}
	var group net.Addr // nil in unicast
	if cfg.Multicast {
		group = &net.IPAddr{IP: cfg.group().AsSlice()}
	}
	source := net.IP(cfg.Source.AsSlice())
	if cfg.Source.Is4() {
		w := &wire4{conn: ipv4.NewPacketConn(conn), source: source, link: link}
		if err := w.configure(group); err != nil {
			return nil, errors.Join(fmt.Errorf("cannot open the virtual router's wire on %s: %w", cfg.Interface, err), conn.Close())
		}
		return w, nil
	}
	w := &wire6{conn: ipv6.NewPacketConn(conn), source: source, link: link}
	if err := w.configure(group); err != nil {
		return nil, errors.Join(fmt.Errorf("cannot open the virtual router's wire on %s: %w", cfg.Interface, err), conn.Close())
	}
	return w, nil
}

type wire4 struct {
	conn   *ipv4.PacketConn
	source net.IP
	link   *net.Interface
}

func (w *wire4) configure(group net.Addr) error {
	err := errors.Join(
		w.conn.SetControlMessage(ipv4.FlagTTL|ipv4.FlagDst, true),
		w.conn.SetTTL(ttl), w.conn.SetTOS(control),
	)
	if group == nil {
		return err
	}
	return errors.Join(
		err, w.conn.JoinGroup(w.link, group), w.conn.SetMulticastInterface(w.link),
		w.conn.SetMulticastTTL(ttl), w.conn.SetMulticastLoopback(false),
	)
}

// Send implements Wire.
func (w *wire4) Send(data []byte, to netip.Addr) error {
	_, err := w.conn.WriteTo(data, &ipv4.ControlMessage{Src: w.source}, &net.IPAddr{IP: to.AsSlice()})
	return whetherGone(w.link, err)
}

// Receive implements Wire.
func (w *wire4) Receive() (Packet, error) {
	for data := make([]byte, maxMessage); ; {
		n, about, from, err := w.conn.ReadFrom(data)
		if err != nil {
			return Packet{}, err
		}
		if about == nil {
			continue // the kernel was asked to tell
		}
		return Packet{From: plain(from), To: address(about.Dst), TTL: about.TTL, Data: data[:n]}, nil
	}
}

// Close implements Wire.
func (w *wire4) Close() error { return w.conn.Close() }

type wire6 struct {
	conn   *ipv6.PacketConn
	source net.IP
	link   *net.Interface
}

func (w *wire6) configure(group net.Addr) error {
	err := errors.Join(
		w.conn.SetControlMessage(ipv6.FlagHopLimit|ipv6.FlagDst, true),
		w.conn.SetHopLimit(ttl), w.conn.SetTrafficClass(control),
	)
	if group == nil {
		return err
	}
	return errors.Join(
		err, w.conn.JoinGroup(w.link, group), w.conn.SetMulticastInterface(w.link),
		w.conn.SetMulticastHopLimit(ttl), w.conn.SetMulticastLoopback(false),
	)
}

// Send implements Wire.
func (w *wire6) Send(data []byte, to netip.Addr) error {
	target := &net.IPAddr{IP: to.AsSlice()}
	if to.IsLinkLocalUnicast() || to.IsMulticast() {
		target.Zone = w.link.Name
	}
	_, err := w.conn.WriteTo(data, &ipv6.ControlMessage{Src: w.source, IfIndex: w.link.Index}, target)
	return whetherGone(w.link, err)
}

// Receive implements Wire.
func (w *wire6) Receive() (Packet, error) {
	for data := make([]byte, maxMessage); ; {
		n, about, from, err := w.conn.ReadFrom(data)
		if err != nil {
			return Packet{}, err
		}
		if about == nil {
			continue // the kernel was asked to tell
		}
		return Packet{From: plain(from), To: address(about.Dst), TTL: about.HopLimit, Data: data[:n]}, nil
	}
}

// Close implements Wire.
func (w *wire6) Close() error { return w.conn.Close() }

// whetherGone looks after an error whether the link is there.
func whetherGone(link *net.Interface, err error) error {
	if err == nil {
		return nil
	}
	if _, missing := net.InterfaceByIndex(link.Index); missing != nil {
		return fmt.Errorf("%w: %w", errLinkGone, err)
	}
	return err
}

// plain is an address without its zone: there is one link only.
func plain(a net.Addr) netip.Addr {
	if ip, ok := a.(*net.IPAddr); ok {
		return address(ip.IP)
	}
	return netip.Addr{}
}

func address(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}
