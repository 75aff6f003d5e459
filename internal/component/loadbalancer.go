package component

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"syscall"
	"time"

	"kuorum/internal/loadbalancer"
)

// haproxy leads to the API servers. Its master stays the same process through all
// reloads, and each leaves the workers before to the connections that they have.
func haproxy(m Machine) Component {
	path := component("haproxy.cfg")
	return Component{
		Name:   "haproxy",
		Path:   loadbalancer.HAProxyPath,
		Args:   []string{"-W", "-S", filepath.Join(RunDir, "haproxy.sock"), "-f", path},
		Files:  []File{balancerFile(m, loadbalancer.HAProxy, "haproxy.cfg")},
		Reload: Reload{Signal: syscall.SIGUSR2, Check: []string{loadbalancer.HAProxyPath, "-c", "-f"}},
		Ready:  httpReady(loadbalancer.HealthURL),
		// It ends the connections that it has.
		StopTimeout: 5 * time.Second,
	}
}

// keepalived has the address here while HAProxy reaches an API server. It hands that
// over as it stops.
func keepalived(m Machine) Component {
	path := component("keepalived.conf")
	return Component{
		Name:        "keepalived",
		Path:        loadbalancer.KeepalivedPath,
		Args:        []string{"--dont-fork", "--log-console", "--log-detail", "--use-file=" + path, "--pid=" + filepath.Join(RunDir, "keepalived.pid"), "--vrrp_pid=" + filepath.Join(RunDir, "keepalived-vrrp.pid")},
		Files:       []File{balancerFile(m, loadbalancer.Keepalived, "keepalived.conf")},
		Reload:      Reload{Signal: syscall.SIGHUP, Check: []string{loadbalancer.KeepalivedPath, "-t", "-l", "-f"}},
		StopTimeout: 5 * time.Second,
	}
}

// balancerFile is what kuorum lb config prints for a balancer of one's own, and by what its
// agent moves the address. A spec that is valid has a plan that is, also while the node's
// address is on no interface: then Machine.Link is one that keepalived refuses.
func balancerFile(m Machine, kind loadbalancer.Kind, name string) File {
	files, err := loadbalancer.Render(balancerPlan(m), kind)
	if err != nil {
		panic(fmt.Sprintf("the spec of node %s is not valid: %v", m.Node.Name, err))
	}
	f := config(name, files[0].Data)
	f.Reload = true
	return f
}

// VIPYield is where a balancer's agent has keepalived leave the address to others.
const VIPYield = RunDir + "/vip-elsewhere"

// Router is what a balancer is among those that hold the address of the API in turns.
func Router(m Machine) loadbalancer.Router { return balancerPlan(m).Router }

func balancerPlan(m Machine) loadbalancer.Plan {
	address := func(text string) netip.Addr {
		a, _ := netip.ParseAddr(text) // Validate has seen to it
		return a
	}
	e := m.Spec.Spec.Endpoint
	p := loadbalancer.Plan{
		Cluster: m.Spec.Metadata.Name, CA: pki(clusterCA), Listen: netip.AddrPortFrom(netip.IPv4Unspecified(), PortAPI),
		Router: loadbalancer.Router{
			Address: address(e.Address), Interface: m.Link, Name: m.Node.Name, Self: address(m.Node.Address), Alone: true,
			Yield: VIPYield, ID: uint8(e.VIP.ID), Interval: time.Duration(e.VIP.Interval), //nolint:gosec // of 8 bits
		},
	}
	for _, n := range m.Spec.Servers() {
		p.Servers = append(p.Servers, loadbalancer.Server{Name: n.Name, Address: netip.AddrPortFrom(address(n.Address), PortAPIServer)})
	}
	for _, n := range m.Spec.Balancers() {
		if n.Name != m.Node.Name {
			p.Router.Peers = append(p.Router.Peers, address(n.Address))
		}
	}
	return p
}
