package relocation

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strings"

	"kuorum/internal/cluster"
	"kuorum/internal/component"
)

// table is the nftables table of our own.
const table = "kuorum-moved"

// Detour renders, for nft -f, rules that lead what this machine sends to an
// earlier address of another node's etcd to the one that it has now: etcd's
// data names the earlier ones until a leader was told better, and the flags of
// an API server without a member until it starts again. It replaces the
// table as a whole, in one transaction of the kernel. Where nobody moves it
// removes it.
func Detour(spec *cluster.Spec, self string) string {
	// Adding first: deleting what is not there is an error.
	text := fmt.Sprintf("table ip %[1]s {}\ndelete table ip %[1]s\n", table)
	var pairs []string
	for _, n := range spec.EtcdNodes() {
		if n.Name == self {
			continue
		}
		for _, old := range n.Moved.From {
			pairs = append(pairs, old+" : "+n.Address)
		}
	}
	if len(pairs) == 0 {
		return text
	}
	// -100 is dstnat, a word that older nft does not take for this hook.
	return text + fmt.Sprintf(`table ip %s {
	map moved {
		type ipv4_addr : ipv4_addr
		elements = { %s }
	}
	chain output {
		type nat hook output priority -100; policy accept;
		tcp dport { %d, %d } dnat to ip daddr map @moved
	}
}
`, table, strings.Join(pairs, ", "), component.PortEtcdClient, component.PortEtcdPeer)
}

// Load gives rules to the kernel, by the program nft. It blocks for a moment.
func Load(ctx context.Context, rules string) error {
	cmd := exec.CommandContext(ctx, "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("cannot lead the way to etcd on nodes that have moved: nft: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}
