package vrrp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

const (
	protocol   = 112 // of IP, RFC 9568 section 5.1.1.4
	ttl        = 255 // of each advertisement: no router has passed it on, section 5.1.1.3
	version    = 3
	kindAdvert = 1
	headerSize = 8

	// Centisecond is the unit of intervals on the wire.
	Centisecond = 10 * time.Millisecond
	maxInterval = 4095 * Centisecond // 12 bits
)

var (
	errMalformed = errors.New("not an advertisement of VRRP version 3")
	errChecksum  = errors.New("wrong checksum")
)

// Advertisement is the only message of VRRPv3 (RFC 9568 section 5.2).
type Advertisement struct {
	VRID     uint8 // 1..255
	Priority uint8 // 0: its sender gives the addresses up
	// Interval is the time between two advertisements of the sender: whole
	// centiseconds, 10 ms to 40.95 s.
	Interval  time.Duration
	Addresses []netip.Addr // 1..255 of one family, without zones
}

// Marshal makes the bytes that follow the IP header of a packet from src to
// dst, which the checksum covers. It fails when a field does not fit in.
//
// The checksum of IPv4 includes the pseudo-header of src and dst, which RFC
// 5798 was read to want. RFC 9568 (section 5.2.8) leaves it out; but keepalived
// up to 2.4 sends and accepts the other form only.
func (a Advertisement) Marshal(src, dst netip.Addr) ([]byte, error) {
	if a.VRID == 0 {
		return nil, errors.New("cannot make an advertisement: its virtual router has no number")
	}
	if a.Interval < Centisecond || a.Interval > maxInterval || a.Interval%Centisecond != 0 {
		return nil, fmt.Errorf("cannot make an advertisement: its interval is %v, not whole centiseconds up to %v", a.Interval, maxInterval)
	}
	if len(a.Addresses) == 0 || len(a.Addresses) > 255 {
		return nil, fmt.Errorf("cannot make an advertisement of %d addresses: it has 1 to 255", len(a.Addresses))
	}
	data := []byte{version<<4 | kindAdvert, a.VRID, a.Priority, uint8(len(a.Addresses))} //nolint:gosec // at most 255
	data = binary.BigEndian.AppendUint16(data, uint16(a.Interval/Centisecond))
	data = append(data, 0, 0)
	for _, address := range append([]netip.Addr{dst}, a.Addresses...) {
		if address.Is4() != src.Is4() {
			return nil, fmt.Errorf("cannot make an advertisement from %s: %s is of the other family", src, address)
		}
	}
	for _, address := range a.Addresses {
		data = append(data, address.AsSlice()...)
	}
	binary.BigEndian.PutUint16(data[6:], ^sum(pseudoHeader(src, dst, len(data)), data))
	return data, nil
}

// Parse reads what follows the IP header of a packet from src to dst. Bits that
// RFC 9568 reserves are ignored; both checksums of IPv4 are taken, see Marshal.
func Parse(data []byte, src, dst netip.Addr) (Advertisement, error) {
	if len(data) < headerSize || data[0] != version<<4|kindAdvert {
		return Advertisement{}, errMalformed
	}
	size := 16
	if src.Is4() {
		size = 4
	}
	a := Advertisement{
		VRID: data[1], Priority: data[2],
		Interval: time.Duration(binary.BigEndian.Uint16(data[4:])&0x0fff) * Centisecond,
	}
	// An interval of 0 would make every timer fire at once.
	if count := int(data[3]); a.VRID == 0 || a.Interval == 0 || count == 0 || len(data) != headerSize+count*size {
		return Advertisement{}, errMalformed
	}
	short := src.Is4() && sum(nil, data) == 0xffff
	if !short && sum(pseudoHeader(src, dst, len(data)), data) != 0xffff {
		return Advertisement{}, errChecksum
	}
	for raw := range slices.Chunk(data[headerSize:], size) {
		address, _ := netip.AddrFromSlice(raw)
		a.Addresses = append(a.Addresses, address)
	}
	return a, nil
}

// pseudoHeader is what the checksum covers beside the message: RFC 8200
// section 8.1, and its older form for IPv4.
func pseudoHeader(src, dst netip.Addr, length int) []byte {
	header := slices.Concat(src.AsSlice(), dst.AsSlice())
	if src.Is4() {
		return append(header, 0, protocol, byte(length>>8), byte(length))
	}
	return append(header, 0, 0, byte(length>>8), byte(length), 0, 0, 0, protocol)
}

// sum is the ones' complement sum of RFC 1071. The first part is of even length.
func sum(parts ...[]byte) uint16 {
	var total uint32
	for _, part := range parts {
		for i, b := range part {
			if i%2 == 0 {
				total += uint32(b) << 8
			} else {
				total += uint32(b)
			}
		}
	}
	for total > 0xffff {
		total = total>>16 + total&0xffff
	}
	return uint16(total)
}
