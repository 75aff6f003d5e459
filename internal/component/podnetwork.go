package component

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// flannel carries packets between the pods of different machines. It takes
// the node's range from the API and writes it to SubnetFile.
func flannel(m Machine) Component {
	vni := ""
	if m.Spec.Spec.Network.Backend == "vxlan" {
		vni = `, "VNI": 1, "Port": 8472`
	}
	data := fmt.Appendf(nil, `{"Network": %q, "EnableNFTables": true, "Backend": {"Type": %q%s}}`+"\n",
		m.Spec.Spec.Network.Pods, m.Spec.Spec.Network.Backend, vni)
	return Component{
		Name: "flannel",
		Path: m.bin("flanneld"),
		Args: []string{
			"--kubeconfig=" + etc("flannel.conf"),
			"--node-name=" + m.Node.Name,
			"--net-conf=" + component("flannel.json"),
			"--public-ip=" + m.Node.Address,
			"--subnet-file=" + SubnetFile,
			"--healthz-address=127.0.0.1:10247",
		},
		After:       []string{"endpoint"},
		Files:       []File{config("flannel.json", data)},
		Ready:       both(httpReady("http://127.0.0.1:10247/healthz"), fileReady(SubnetFile)),
		StopTimeout: 5 * time.Second,
	}
}

// coredns answers on every node at the same node-local address, so that a
// node's DNS cannot die with another node.
func coredns(m Machine) Component {
	dns := m.Spec.Spec.DNS
	upstream := "/etc/resolv.conf"
	if len(dns.Upstream) > 0 {
		upstream = strings.Join(dns.Upstream, " ")
	}
	text := fmt.Sprintf(`.:53 {
    bind %s
    errors
    health 127.0.0.1:8080
    ready 127.0.0.1:8181
    kubernetes %s in-addr.arpa ip6.arpa {
        kubeconfig %s
        pods insecure
        fallthrough in-addr.arpa ip6.arpa
        ttl 30
    }
    forward . %s
    cache 30
    loop
    reload 10s
    loadbalance
}
`, dns.Address, dns.Domain, etc("coredns.conf"), upstream)
	return Component{
		Name:        "coredns",
		Path:        m.bin("coredns"),
		Args:        []string{"-conf=" + component("Corefile")},
		After:       []string{"endpoint", "kubelet"},
		Files:       []File{config("Corefile", []byte(text))},
		Ready:       httpReady("http://127.0.0.1:8181/ready"),
		StopTimeout: 5 * time.Second,
	}
}

// CNI renders the configuration that containerd gives to the CNI plugins: a
// routed point-to-point link for each pod, so that all of its traffic passes
// the machine's own forwarding rules and no bridge filter is needed.
func CNI(subnet netip.Prefix, mtu int) []byte {
	return fmt.Appendf(nil, `{
  "cniVersion": "1.0.0",
  "name": "kuorum",
  "plugins": [
    {
      "type": "ptp", "mtu": %d, "ipMasq": false,
      "ipam": {"type": "host-local", "ranges": [[{"subnet": %q}]], "routes": [{"dst": "0.0.0.0/0"}]}
    },
    {"type": "portmap", "snat": true, "backend": "nftables", "capabilities": {"portMappings": true}},
    {"type": "bandwidth", "capabilities": {"bandwidth": true}}
  ]
}
`, mtu, subnet.String())
}

// ParseSubnet reads what flannel wrote to SubnetFile: the node's range of pod
// addresses and the MTU that the backend leaves to pods.
func ParseSubnet(data []byte) (netip.Prefix, int, error) {
	values := map[string]string{}
	for line := range strings.Lines(string(data)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		values[key] = value
	}
	subnet, err := netip.ParsePrefix(values["FLANNEL_SUBNET"])
	if err != nil {
		return netip.Prefix{}, 0, fmt.Errorf("cannot read FLANNEL_SUBNET: %w", err)
	}
	mtu, err := strconv.Atoi(values["FLANNEL_MTU"])
	if err != nil {
		return netip.Prefix{}, 0, fmt.Errorf("cannot read FLANNEL_MTU: %w", err)
	}
	return subnet.Masked(), mtu, nil
}
