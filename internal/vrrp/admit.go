package vrrp

import (
	"errors"
	"net/netip"
	"slices"
)

// Drop is why a packet was not heard.
type Drop string

// The reasons to drop a packet.
const (
	DropTTL         Drop = "wrong TTL"         // it has passed a router, so it is not of this network
	DropDestination Drop = "wrong destination" // neither this router nor, in multicast, the group
	DropStranger    Drop = "stranger"          // its source is no peer
	DropMalformed   Drop = "malformed"
	DropChecksum    Drop = "wrong checksum"
	DropVRID        Drop = "other VRID"
	DropAddresses   Drop = "other addresses" // of the same VRID: somebody is configured differently

	// dropOwn is not counted: it came from here.
	dropOwn Drop = "own"
)

// Packet is what a Wire has received.
type Packet struct {
	From, To netip.Addr
	TTL      int // or hop limit
	Data     []byte
}

// admit reads a packet if it is for this virtual router, from somebody who may
// say so (RFC 9568 section 7.1). An empty Drop means that it is.
func (c Config) admit(p Packet) (Advertisement, Drop) {
	from, to := p.From.WithZone(""), p.To.WithZone("")
	listed := slices.Contains(c.Peers, from) || c.Multicast && len(c.Peers) == 0
	switch {
	case from == c.Source:
		return Advertisement{}, dropOwn
	case !listed:
		return Advertisement{}, DropStranger
	case p.TTL != ttl:
		return Advertisement{}, DropTTL
	case c.Multicast && to != c.group(), !c.Multicast && to != c.Source:
		return Advertisement{}, DropDestination
	}
	ad, err := Parse(p.Data, from, to)
	switch {
	case errors.Is(err, errChecksum):
		return Advertisement{}, DropChecksum
	case err != nil:
		return Advertisement{}, DropMalformed
	case ad.VRID != c.VRID:
		return Advertisement{}, DropVRID
	case !sameSet(ad.Addresses, c.Addresses):
		return Advertisement{}, DropAddresses
	}
	return ad, ""
}

// sameSet compares lists that have nothing twice.
func sameSet(a, b []netip.Addr) bool {
	return len(a) == len(b) && !slices.ContainsFunc(a, func(x netip.Addr) bool { return !slices.Contains(b, x) })
}
