package cli

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"kuorum/internal/cluster"
	"kuorum/internal/component"
	"kuorum/internal/host"
	"kuorum/internal/loadbalancer"
)

// foreignBalancer is what people say about a balancer of their own.
type foreignBalancer struct {
	file    string // cluster.yaml; empty: the chosen cluster's
	listen  string
	address string
	device  string
	self    string
	peers   []string
	id      uint8 // 0: the default
	ca      string
	check   time.Duration
	every   time.Duration
	dir     string
	force   bool
}

func (a *app) lbCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "lb",
		Short: "A balancer of your own in front of the API servers",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.lbConfig())
	return cmd
}

func (a *app) lbConfig() *cobra.Command {
	var b foreignBalancer
	cmd := &cobra.Command{
		Use:   "config KIND...",
		Short: "Print the files of HAProxy, keepalived, nginx or Envoy for this cluster",
		Long: `Prints what a balancer on a machine of yours is configured with, for clients that are no node of the cluster: each
node has a balancer of its own. KIND is haproxy, keepalived, nginx or envoy.

HAProxy and Envoy ask each API server ten times a second whether it is ready, and end the connections of one that is not.
nginx notices only one that refuses clients. keepalived holds a virtual IP on one of the machines that run HAProxy; its
file is another one on each of them.

The certificates of the API servers must name what clients connect to: with spec.endpoint {type: address, address: ...} in
its cluster.yaml a cluster is made for a balancer. Print the files again when servers have joined or left.`,
		Example: `  kuorum lb config haproxy > /etc/haproxy/haproxy.cfg
  kuorum lb config envoy -f cluster.yaml --listen 192.0.2.10:6443
  kuorum lb config haproxy keepalived -o lb1 --address 192.0.2.10 --interface eth0 --self lb1/192.0.2.11 --peer 192.0.2.12
  kuorum lb config haproxy keepalived -o lb2 --address 192.0.2.10 --interface eth0 --self lb2/192.0.2.12 --peer 192.0.2.11`,
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: completeBalancers,
		RunE:              func(_ *cobra.Command, args []string) error { return a.balancerFiles(b, args) },
	}
	flags := cmd.Flags()
	flags.StringVarP(&b.file, "file", "f", "", "cluster.yaml (- is stdin; default: the chosen cluster's)")
	flags.StringVar(&b.listen, "listen", "", "ADDRESS:PORT for clients (default: all addresses, and the port of spec.endpoint.address or 6443)")
	flags.StringVar(&b.ca, "ca", loadbalancer.DefaultCA, "on the balancer: file of the cluster's authorities, a copy of a server's /etc/kuorum/pki/ca.crt; empty: checks believe whoever answers")
	flags.DurationVar(&b.check, "check", loadbalancer.DefaultCheck, "time between two checks of an API server")
	flags.StringVar(&b.address, "address", "", "keepalived: the virtual IP (default: spec.endpoint.address of the type address)")
	flags.StringVar(&b.device, "interface", "", "keepalived: where the virtual IP is put")
	flags.StringVar(&b.self, "self", "", "keepalived: NAME/ADDRESS of the machine that the file is for")
	flags.StringSliceVar(&b.peers, "peer", nil, "keepalived: ADDRESS of another machine that may hold the virtual IP")
	flags.Uint8Var(&b.id, "vrid", 0, "keepalived: number of the virtual router, 1 to 255, which no other on the network has (default: 51; 52 if the cluster's own servers have that)")
	flags.DurationVar(&b.every, "interval", loadbalancer.DefaultInterval, "keepalived: time between advertisements")
	flags.StringVarP(&b.dir, "output", "o", "", "write the files into this directory")
	flags.BoolVar(&b.force, "force", false, "with -o: write over files with other content")
	return cmd
}

func completeBalancers(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	said := map[string]bool{}
	for _, arg := range args {
		said[arg] = true
	}
	var left []string
	for _, k := range loadbalancer.Kinds() {
		if !said[string(k)] {
			left = append(left, string(k))
		}
	}
	return left, cobra.ShellCompDirectiveNoFileComp
}

func (a *app) balancerFiles(b foreignBalancer, names []string) error {
	var kinds []loadbalancer.Kind
	routed := false
	for _, name := range names {
		kind, err := loadbalancer.ParseKind(name)
		if err != nil {
			return err
		}
		kinds = append(kinds, kind)
		routed = routed || kind == loadbalancer.Keepalived
	}
	spec, err := a.balancedSpec(b.file)
	if err != nil {
		return err
	}
	plan, err := b.plan(spec)
	if err != nil {
		return err
	}
	if routed {
		if err := sharesNoRouter(spec, plan.Router); err != nil {
			return err
		}
	}
	files, err := loadbalancer.Render(plan, kinds...)
	if err != nil {
		return err
	}
	if where := plan.Where(kinds...); where.IsValid() && !certified(spec, where) {
		a.talk("note: the certificates of the API servers do not name %s unless spec.endpoint.address does: clients would refuse them\n", where)
	}
	if b.dir != "" {
		return a.writeBalancerFiles(b, files)
	}
	return a.printBalancerFiles(files)
}

// certified tells whether the certificates of the API servers name an address.
func certified(spec *cluster.Spec, address netip.Addr) bool {
	return address.IsLoopback() || address.String() == spec.EndpointHost() ||
		slices.ContainsFunc(spec.KubernetesNodes(), func(n cluster.Node) bool { return n.Address == address.String() })
}

// balancedSpec is the cluster of a file, or the chosen one.
func (a *app) balancedSpec(file string) (*cluster.Spec, error) {
	if file != "" {
		return a.readSpec(file, "")
	}
	t, err := a.target()
	if err != nil {
		return nil, err
	}
	return t.spec, nil
}

// plan is what b says, with what it does not say taken from spec.
func (b foreignBalancer) plan(spec *cluster.Spec) (loadbalancer.Plan, error) {
	p := loadbalancer.Plan{Cluster: spec.Metadata.Name, CA: b.ca, Check: b.check}
	for _, n := range spec.Servers() {
		address, err := netip.ParseAddr(n.Address)
		if err != nil {
			return p, fmt.Errorf("cannot plan a balancer: the address of %s: %w", n.Name, err)
		}
		p.Servers = append(p.Servers, loadbalancer.Server{Name: n.Name, Address: netip.AddrPortFrom(address, component.PortAPIServer)})
	}
	foreign, port := foreignEndpoint(spec)
	var err error
	if p.Listen, err = listenAt(b.listen, port); err != nil {
		return p, err
	}
	p.Router, err = b.router(foreign)
	if taken := spec.Spec.Endpoint.VIP.ID; b.id == 0 && taken == loadbalancer.DefaultID {
		p.Router.ID = loadbalancer.DefaultID + 1
	}
	return p, err
}

// foreignEndpoint is the address of a balancer that spec names, if it names one
// that is no name, and the port on which clients look for the API.
func foreignEndpoint(spec *cluster.Spec) (netip.Addr, uint16) {
	if spec.Spec.Endpoint.Type != cluster.EndpointAddress {
		return netip.Addr{}, component.PortAPI
	}
	port := uint64(component.PortAPI)
	if _, text, err := net.SplitHostPort(spec.Spec.Endpoint.Address); err == nil {
		port, _ = strconv.ParseUint(text, 10, 16) // Validate has seen to it
	}
	address, _ := netip.ParseAddr(spec.EndpointHost()) // else it is a name
	return address, uint16(port)                       //nolint:gosec // of 16 bits
}

// listenAt reads --listen: ADDRESS:PORT, or :PORT for all addresses.
func listenAt(text string, port uint16) (netip.AddrPort, error) {
	if text == "" {
		return netip.AddrPortFrom(netip.IPv4Unspecified(), port), nil
	}
	full := text
	if strings.HasPrefix(text, ":") {
		full = netip.IPv4Unspecified().String() + text
	}
	at, err := netip.ParseAddrPort(full)
	if err != nil || at.Port() == 0 {
		return at, usage("--listen is %q: it is ADDRESS:PORT, such as 192.0.2.10:6443, or :6443 for all addresses", text)
	}
	return at, nil
}

func (b foreignBalancer) router(foreign netip.Addr) (loadbalancer.Router, error) {
	r := loadbalancer.Router{Address: foreign, Interface: b.device, Interval: b.every, ID: b.id}
	if b.address != "" {
		address, err := netip.ParseAddr(b.address)
		if err != nil {
			return r, usage("--address is %q: it is an IP address", b.address)
		}
		r.Address = address
	}
	if b.self != "" {
		name, text, _ := strings.Cut(b.self, "/")
		address, err := netip.ParseAddr(text)
		if err != nil || name == "" {
			return r, usage("--self is %q: it is NAME/ADDRESS, such as lb1/192.0.2.11", b.self)
		}
		r.Name, r.Self = name, address
	}
	for _, text := range b.peers {
		address, err := netip.ParseAddr(text)
		if err != nil {
			return r, usage("--peer is %q: it is an IP address", text)
		}
		r.Peers = append(r.Peers, address)
	}
	return r, nil
}

// sharesNoRouter refuses what the cluster's own nodes keep by VRRP already.
func sharesNoRouter(spec *cluster.Spec, r loadbalancer.Router) error {
	if !spec.Spec.Endpoint.HasVIP() {
		return nil
	}
	owners, why := "servers", fmt.Sprintf("spec.endpoint.type is %s: ", spec.Spec.Endpoint.Type)
	if !spec.ServersHoldVIP() {
		owners = "balancers"
	}
	if r.Address.IsValid() && r.Address.String() == spec.EndpointHost() {
		return &cluster.Problem{
			What: fmt.Sprintf("%s is kept by the cluster's own %s", r.Address, owners), Why: why + "two would answer for one address",
			Do: "take another --address, or make a cluster with spec.endpoint {type: address, address: ...}", Exit: cluster.ExitRefused,
		}
	}
	if int(r.ID) == spec.Spec.Endpoint.VIP.ID {
		return &cluster.Problem{
			What: fmt.Sprintf("the virtual router %d is the one of the cluster's own %s", r.ID, owners), Why: why + "two on one network need two numbers",
			Do: "another --vrid, or none for one that is free", Exit: cluster.ExitUsage,
		}
	}
	return nil
}

// printBalancerFiles prints one file as it is, and several below their names, as
// comments.
func (a *app) printBalancerFiles(files []loadbalancer.File) error {
	var out bytes.Buffer
	for _, f := range files {
		if len(files) > 1 {
			fmt.Fprintf(&out, "# ==> %s <==\n", f.Name)
		}
		out.Write(f.Data)
	}
	_, err := a.process.Out.Write(out.Bytes())
	return err
}

// writeBalancerFiles writes none if one of them is there with other content.
func (a *app) writeBalancerFiles(b foreignBalancer, files []loadbalancer.File) error {
	stale := map[string]bool{}
	for _, f := range files {
		path := filepath.Join(b.dir, f.Name)
		have, err := os.ReadFile(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("cannot compare with what is there: %w", err)
		}
		stale[path] = err != nil || !bytes.Equal(have, f.Data)
		if err == nil && stale[path] && !b.force {
			return &cluster.Problem{What: path + " is there, with other content", Do: "--force, or another directory", Exit: cluster.ExitRefused}
		}
	}
	for _, f := range files {
		path := filepath.Join(b.dir, f.Name)
		if !stale[path] {
			a.talk("%s is as it should be\n", path)
			continue
		}
		if err := host.WriteFile(path, f.Data, 0o644); err != nil {
			return err
		}
		a.talk("%s is written\n", path)
	}
	return nil
}
