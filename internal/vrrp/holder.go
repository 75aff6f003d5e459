package vrrp

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"kuorum/internal/host"
)

// machine holds addresses on a link of this machine.
type machine struct {
	link      string
	source    netip.Addr
	addresses []netip.Addr
}

// NewHolder is the Holder of this machine: netlink, and raw packets to the
// neighbours. It needs the rights of root.
func NewHolder(cfg Config) Holder {
	return machine{cfg.Interface, cfg.Source, slices.Clone(cfg.Addresses)}
}

// Take implements Holder. A machine that has lost its own address, or whose link is
// down, hears nobody, and is heard by nobody: it must not take others.
func (m machine) Take() error {
	on, err := net.InterfaceByName(m.link)
	if err != nil {
		return fmt.Errorf("cannot hold addresses on %s: cannot find the link: %w", m.link, err)
	}
	if on.Flags&net.FlagUp == 0 {
		return fmt.Errorf("cannot hold addresses on %s: the link is down; set it up: ip link set %s up", m.link, m.link)
	}
	if link, err := host.LinkOf(m.source); err != nil || link != m.link {
		return errors.Join(err, fmt.Errorf("cannot hold addresses on %s: this machine's own, %s, is not there", m.link, m.source))
	}
	return m.each(host.AddAddress)
}

// GiveUp implements Holder.
func (m machine) GiveUp() error { return m.each(host.RemoveAddress) }

// Announce implements Holder.
func (m machine) Announce() error { return m.each(host.AnnounceAddress) }

func (m machine) each(do func(string, netip.Addr) error) error {
	var errs []error
	for _, a := range m.addresses {
		errs = append(errs, do(m.link, a))
	}
	return errors.Join(errs...)
}
