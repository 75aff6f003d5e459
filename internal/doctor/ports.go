package doctor

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"

	"kuorum/internal/host"
)

// Port is one that a node's program listens on.
type Port struct {
	Network string         // "tcp" or "udp"
	Address netip.AddrPort // 0.0.0.0 for an address that is not known yet
	Program string
}

func (p Port) String() string {
	return fmt.Sprintf("%d/%s (%s)", p.Address.Port(), p.Network, p.Program)
}

// TryPorts takes every port for a moment and returns those that somebody else
// has. Nobody of kuorum may be about to start meanwhile.
func TryPorts(ctx context.Context, ports []Port) (taken []Port, err error) {
	for _, p := range ports {
		failed := host.TryListen(ctx, p.Network, p.Address.String())
		switch {
		case errors.Is(failed, syscall.EADDRINUSE):
			taken = append(taken, p)
		case failed != nil:
			return nil, fmt.Errorf("cannot try port %s: %w", p, failed)
		}
	}
	return taken, nil
}

// PortsFree judges what TryPorts found.
func PortsFree(ports, taken []Port, err error) Check {
	c := portsCheck()
	if err != nil {
		return c.unmeasured(err, "cannot find out which ports are free")
	}
	c.Measured = fmt.Sprintf("%d of %d free", len(ports)-len(taken), len(ports))
	if len(taken) > 0 {
		return c.found(StateFailed, "ports that a node needs are taken: "+names(taken), "find who has them: ss -ltunp; a node needs them for itself")
	}
	return c
}

// PortsHeld judges whether every port of a running node is held, by what the
// machine listens on.
func PortsHeld(ports []Port, listeners []host.Listener, err error) Check {
	c := portsCheck()
	if err != nil {
		return c.unmeasured(err, "cannot find out which ports are held")
	}
	missing := slices.DeleteFunc(slices.Clone(ports), func(p Port) bool {
		return slices.ContainsFunc(listeners, func(l host.Listener) bool { return holds(l, p) })
	})
	c.Measured = fmt.Sprintf("%d of %d held", len(ports)-len(missing), len(ports))
	if len(missing) > 0 {
		return c.found(StateFailed, "nobody listens on "+names(missing), "kuorum status")
	}
	return c
}

func portsCheck() Check {
	return Check{Name: "ports", State: StateOK, Why: "a node's programs, and other nodes, find each other by fixed ports"}
}

func holds(l host.Listener, p Port) bool {
	return l.Network == p.Network && l.Address.Port() == p.Address.Port() &&
		(l.Address.Addr().IsUnspecified() || p.Address.Addr().IsUnspecified() || l.Address.Addr() == p.Address.Addr())
}

func names(ports []Port) string {
	var list []string
	for _, p := range ports {
		list = append(list, p.String())
	}
	return strings.Join(slices.Compact(list), ", ")
}
