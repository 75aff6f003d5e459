package loadbalancer

import (
	"fmt"
	"strings"
)

const keepalivedFile = `# keepalived on %[1]s, which shares the address of the API of cluster %[2]s with others,
# by "kuorum lb config keepalived". Try it there with: keepalived -t -f keepalived.conf
# VRRP has no secrets: whoever can send from a peer's address can take the virtual IP.
# TLS passes through, so that leads clients astray, but tells nobody what they say.

global_defs {
    router_id %[1]s
    # Version 2 has no intervals below a second.
    vrrp_version 3
    # Advertisements are on time when the machine is busy, too.
    vrrp_rt_priority 50
    # Neighbours that missed where the address is now are told again after a second.
    vrrp_garp_master_delay 1
    enable_script_security
    # With any other user "keepalived -t" of version 2.2 ends itself.
    script_user root
}

# HAProxy lives and reaches an API server. Where that is not so on any machine,
# none has the address, until it is so again.
vrrp_script haproxy {
    script "/usr/bin/curl -sf -o /dev/null --max-time 0.8 http://127.0.0.1:%[3]d/healthz"
    interval 1
    timeout 1
    fall 1
    rise 2
}

%[10]svrrp_instance kubernetes_api {
    # All begin as backups, and who has the address keeps it while it is well: each
    # move of it ends the connections of all clients.
    state BACKUP
    nopreempt
    interface %[4]s
    # No other virtual router of this network may have the number.
    virtual_router_id %[5]d
    # Another one on each machine, by the order of their addresses.
    priority %[6]d
    # A machine that was silent for three of these has lost the address.
    advert_int %[7]s
%[8]s    virtual_ipaddress {
        %[9]s
    }
    track_script {
        haproxy
    }
%[11]s}
`

// What machines of neighbouring rank have between their priorities: of two that
// wait for the same silence the second waits a twenty-fifth of an interval longer.
const (
	firstPriority = 200
	priorityStep  = 10
)

func keepalived(p Plan) []byte {
	r := p.Router
	address := fmt.Sprintf("%s/%d", r.Address, r.Address.BitLen())
	var yield, track string
	if r.Yield != "" {
		yield, track = fmt.Sprintf(yieldFile, r.Yield), "    track_file {\n        elsewhere\n    }\n"
	}
	return fmt.Appendf(nil, keepalivedFile, r.Name, p.Cluster, HealthPort, r.Interface, r.ID, r.priority(),
		seconds(r.Interval), r.unicast(), address, yield, track)
}

const yieldFile = `# While this says anything but 0 the address is left to others: by it the agent
# of this machine moves the address.
track_file elsewhere {
    file "%s"
    weight 0
}

`

// priority is what this machine advertises.
func (r Router) priority() int { return firstPriority - priorityStep*r.rank() }

// unicast names the peers. Without any keepalived takes unicast words for multicast.
func (r Router) unicast() string {
	if len(r.Peers) == 0 {
		return ""
	}
	var b strings.Builder
	fmt.Fprintf(&b, "    # Some networks lose multicast. The peers are named, and nobody else is heard. A machine\n    # that has lost its own address cannot be heard itself, and gives the virtual IP up.\n    unicast_src_ip %s\n    track_src_ip\n    check_unicast_src\n    unicast_peer {\n", r.Self)
	for _, peer := range r.Peers {
		fmt.Fprintf(&b, "        %s\n", peer)
	}
	b.WriteString("    }\n")
	if r.Self.Is6() {
		// keepalived would send with the kernel's default and take 255 only.
		b.WriteString("    unicast_ttl 255\n")
	}
	return b.String()
}

// rank is the place of this machine among all, by their addresses. All machines
// come to the same order, whichever of them is Self.
func (r Router) rank() int {
	rank := 0
	for _, peer := range r.Peers {
		if peer.Less(r.Self) {
			rank++
		}
	}
	return rank
}
