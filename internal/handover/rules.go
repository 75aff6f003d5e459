package handover

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
)

// table is the name of our own nftables tables, of the families netdev and arp.
const table = "kuorum-vip"

// known is how long a connection without a packet is remembered as one of the new
// holder's own: longer than connections are passed on.
const known = 2 * Window

// heirRules are the new holder's: packets with the address that belong to none of
// its own connections go on to the former holder, unless they come from there. A
// connection is its own when it saw it begin, or when it is among own, those that it
// has already. Rules of the netdev family see packets before the kernel asks whose
// the address is.
func heirRules(p Place, from netip.Addr, mac net.HardwareAddr, own []netip.AddrPort) string {
	ip, kind := "ip", "ipv4_addr"
	if p.Front.Addr().Is6() {
		ip, kind = "ip6", "ipv6_addr"
	}
	elements := ""
	if len(own) > 0 {
		list := make([]string, len(own))
		for i, client := range own {
			list[i] = fmt.Sprintf("%s . %d", client.Addr(), client.Port())
		}
		elements = "\n\t\telements = { " + strings.Join(list, ", ") + " }"
	}
	ours := fmt.Sprintf("%s daddr %s tcp dport %d", ip, p.Front.Addr(), p.Front.Port())
	return fmt.Sprintf(`table netdev %[1]s {
	set own {
		type %[2]s . inet_service
		size 65535
		flags dynamic,timeout
		timeout %[3]ds%[4]s
	}
	chain in {
		type filter hook ingress device "%[5]s" priority 0; policy accept;
		%[6]s tcp flags & (syn | ack) == syn update @own { %[7]s saddr . tcp sport } accept
		%[6]s %[7]s saddr . tcp sport @own update @own { %[7]s saddr . tcp sport } accept
		%[6]s ether saddr != %[8]s fwd %[7]s to %[9]s device "%[5]s"
	}
}
`, table, kind, int(known.Seconds()), elements, p.Link, ours, ip, mac, from)
}

// silence are the former holder's rules for IPv4: it does not say that the address
// is here, neither when asked nor as the sender of its own questions. The kernel
// itself keeps silent about IPv6 addresses of another link.
func silence(p Place) string {
	return fmt.Sprintf(`table arp %[1]s {
	chain in {
		type filter hook input priority 0; policy accept;
		arp daddr ip %[2]s drop
	}
	chain out {
		type filter hook output priority 0; policy accept;
		arp saddr ip %[2]s arp saddr ip set %[3]s
	}
}
`, table, p.Front.Addr(), p.Own)
}

// without removes a table, there or not: adding first, since deleting what is not
// there is an error.
func without(family string) string {
	return fmt.Sprintf("table %[1]s %[2]s {}\ndelete table %[1]s %[2]s\n", family, table)
}

// load gives rules to the kernel, by the program nft, in one transaction.
func load(ctx context.Context, rules string) error {
	cmd := exec.CommandContext(ctx, "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("nft: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}
