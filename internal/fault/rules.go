package fault

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"slices"
	"strconv"
	"strings"
)

// table is the nftables table of our own on the switch.
const table = "kuorum-fault"

// Rules renders, for nft -f, all cuts among faults. ports are the cables' ends
// at the switch by machine; a machine without one is left out. They replace
// the table as a whole, in one transaction of the kernel: packets meet the
// rules before or those after. Without a cut the table is removed.
//
// Nothing is told to the sender and nothing is remembered of connections, as
// with a cable. Rules name ports, which a machine has again when it is switched on.
func Rules(faults []Fault, ports map[string]string) string {
	// Adding first: deleting what is not there is an error.
	text := fmt.Sprintf("table bridge %[1]s {}\ndelete table bridge %[1]s\n", table)
	var c chains
	for _, f := range faults {
		if f.Kind == Cut {
			c.add(f, ports)
		}
	}
	if c.empty() {
		return text
	}
	return text + "table bridge " + table + " {\n" + hook("prerouting", c.in) + hook("forward", c.between) + hook("postrouting", c.out) + "}\n"
}

// chains are the rules at three places of the bridge: for what comes from a
// machine, what goes from one to another, and what goes to a machine. The
// first and the last also see what the switch itself, where the host's
// forwarder dials, takes and sends.
type chains struct{ in, between, out []string }

func (c *chains) empty() bool { return len(c.in)+len(c.between)+len(c.out) == 0 }

func (c *chains) add(f Fault, ports map[string]string) {
	left, right := names(f.Resolved.Left, ports), names(f.Resolved.Right, ports)
	everybody := len(f.Resolved.Right) == 0
	for _, match := range matches(f) {
		switch {
		case left == "" || right == "" && !everybody:
			return
		case everybody:
			c.in = append(c.in, "iifname "+left+match)
		default:
			c.between = append(c.between, "iifname "+left+" oifname "+right+match)
		}
		switch {
		case f.OneWay:
		case everybody:
			c.out = append(c.out, "oifname "+left+match)
		default:
			c.between = append(c.between, "iifname "+right+" oifname "+left+match)
		}
	}
}

// names is a set of ports, or nothing when no machine has one.
func names(machines []string, ports map[string]string) string {
	var list []string
	for _, m := range machines {
		if port := ports[m]; port != "" {
			list = append(list, strconv.Quote(port))
		}
	}
	if list == nil {
		return ""
	}
	return "{ " + strings.Join(list, ", ") + " }"
}

// matches limits rules to what a cut is about. A cut of ports takes what is
// asked and what is answered, or data would go on flowing that way in
// connections that exist. A cut one way leaves ARP alone: when its answers are
// lost, the other way ends as well, half a minute later.
func matches(f Fault) []string {
	if len(f.Ports) == 0 && f.OneWay {
		return []string{" ether type != arp"}
	}
	if len(f.Ports) == 0 {
		return []string{""}
	}
	var list []string
	for _, port := range slices.Compact(slices.Sorted(slices.Values(f.Ports))) {
		list = append(list, strconv.Itoa(port))
	}
	set := "{ " + strings.Join(list, ", ") + " }"
	return []string{" tcp dport " + set, " tcp sport " + set}
}

func hook(name string, rules []string) string {
	if len(rules) == 0 {
		return ""
	}
	return fmt.Sprintf("\tchain %[1]s {\n\t\ttype filter hook %[1]s priority 0; policy accept;\n\t\t%[2]s drop\n\t}\n",
		name, strings.Join(rules, " drop\n\t\t"))
}

// Load gives rules to the kernel, for the network namespace of this process,
// by the program nft. It blocks for a moment.
func Load(ctx context.Context, rules string) error {
	cmd := exec.CommandContext(ctx, "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("cannot tell the switch which packets to drop (does the kernel have nftables for bridges?): nft: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}
