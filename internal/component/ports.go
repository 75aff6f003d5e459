package component

import (
	"net/netip"

	"kuorum/internal/agent"
	"kuorum/internal/cluster"
	"kuorum/internal/loadbalancer"
)

// Port is one that a program of a node listens on.
type Port struct {
	Network string // "tcp" or "udp"
	Address netip.AddrPort
	Program string
}

// Ports lists every port that a node listens on, the kernel's and the agent's
// included, as the table in docs/architecture.md does. Without an address of its own the
// node listens on all of them.
func Ports(spec *cluster.Spec, node cluster.Node) []Port {
	loopback := netip.MustParseAddr("127.0.0.1")
	own, err := netip.ParseAddr(node.Address)
	if err != nil {
		own = netip.IPv4Unspecified()
	}
	var list []Port
	add := func(program string, address netip.Addr, numbers ...uint16) {
		for _, n := range numbers {
			list = append(list, Port{Network: "tcp", Address: netip.AddrPortFrom(address, n), Program: program})
		}
	}
	if spec.HasMember(node) {
		add("etcd", own, PortEtcdClient, PortEtcdPeer)
		add("etcd", loopback, PortEtcdClient, 2381)
	}
	if node.Role == cluster.RoleServer {
		add("kube-apiserver", own, PortAPIServer)
		add("kube-controller-manager", loopback, 10257)
		add("kube-scheduler", loopback, 10259)
	}
	add("agent", own, agent.Port)
	add("agent", loopback, agent.Port)
	if node.Role == cluster.RoleBalancer {
		add("haproxy", own, PortAPI)
		add("haproxy", loopback, loadbalancer.HealthPort)
	}
	if !node.Role.RunsPods() {
		return list
	}
	add("endpoint", own, PortAPI)
	add("endpoint", loopback, PortAPI, portStatus)
	add("kubelet", own, PortKubelet)
	add("kubelet", loopback, 10248)
	add("kube-proxy", own, 10256)
	add("kube-proxy", loopback, 10249)
	add("flannel", loopback, 10247)
	add("coredns", loopback, 8080, 8181)
	if dns, err := netip.ParseAddr(spec.Spec.DNS.Address); err == nil {
		add("coredns", dns, 53)
		list = append(list, Port{Network: "udp", Address: netip.AddrPortFrom(dns, 53), Program: "coredns"})
	}
	if spec.Spec.Network.Backend == "vxlan" {
		list = append(list, Port{Network: "udp", Address: netip.AddrPortFrom(own, 8472), Program: "VXLAN"})
	}
	return list
}

// SharedFiles are the files that components render into EtcDir/components,
// by name, and that hold no secret: what may be shown to others.
func SharedFiles() []string {
	return []string{
		"Corefile", "admission.yaml", "audit.yaml", "authentication.yaml", "containerd.toml",
		"endpoint.yaml", "flannel.json", "haproxy.cfg", "keepalived.conf", "kube-proxy.yaml", "kubelet.yaml",
	}
}

// Logs are the names of the logs in LogDir that may be shown to others: every
// one but the audit log.
func Logs() []string {
	return []string{
		AgentLog, "containerd.log", "coredns.log", "endpoint.log", "etcd.log", "flannel.log", "haproxy.log", "keepalived.log", "kube-apiserver.log",
		"kube-controller-manager.log", "kube-proxy.log", "kube-scheduler.log", "kubelet.log",
	}
}
