package host

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// TryListen takes and leaves a port at once: a nil error says that it is free.
// network is "tcp" or "udp", address IP:PORT; the machine need not have the
// address yet.
func TryListen(ctx context.Context, network, address string) error {
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var failed error
		err := c.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_FREEBIND, 1) })
		return errors.Join(err, failed)
	}}
	if network == "udp" {
		conn, err := config.ListenPacket(ctx, "udp4", address)
		if err != nil {
			return err
		}
		return conn.Close()
	}
	ln, err := config.Listen(ctx, "tcp4", address)
	if err != nil {
		return err
	}
	return ln.Close()
}

// Listener is a port that somebody of this network namespace holds.
type Listener struct {
	Network string         // "tcp" or "udp"
	Address netip.AddrPort // 0.0.0.0 or :: for every address
}

// Listeners lists the ports of this network namespace that are held, from
// /proc: it disturbs nobody, as taking them would.
func Listeners() ([]Listener, error) {
	var all []Listener
	for _, name := range []string{"tcp", "tcp6", "udp", "udp6"} {
		data, err := os.ReadFile("/proc/net/" + name)
		if errors.Is(err, fs.ErrNotExist) {
			continue // a kernel without IPv6
		}
		if err != nil {
			return nil, fmt.Errorf("cannot list the ports that are held: %w", err)
		}
		all = append(all, parseListeners(strings.TrimSuffix(name, "6"), data)...)
	}
	return all, nil
}

// States of sockets in /proc/net: a UDP socket without a peer is closed.
const (
	stateListen = "0A"
	stateClosed = "07"
)

// parseListeners reads a /proc/net/tcp or /proc/net/udp, or one of IPv6.
func parseListeners(network string, data []byte) []Listener {
	want := stateListen
	if network == "udp" {
		want = stateClosed
	}
	var found []Listener
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if len(fields) < 4 || fields[3] != want {
			continue
		}
		if address, ok := parseProcAddress(fields[1]); ok {
			found = append(found, Listener{Network: network, Address: address})
		}
	}
	return found
}

// parseProcAddress reads "0100007F:1F90": words of 32 bits in the machine's
// own byte order, which is little-endian wherever kuorum runs.
func parseProcAddress(text string) (netip.AddrPort, bool) {
	left, right, _ := strings.Cut(text, ":")
	raw, err := hex.DecodeString(left)
	if err != nil || len(raw)%4 != 0 {
		return netip.AddrPort{}, false
	}
	port, err := strconv.ParseUint(right, 16, 16)
	if err != nil {
		return netip.AddrPort{}, false
	}
	for word := range slices.Chunk(raw, 4) {
		slices.Reverse(word)
	}
	address, ok := netip.AddrFromSlice(raw)
	return netip.AddrPortFrom(address.Unmap(), uint16(port)), ok
}
