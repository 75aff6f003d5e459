// Command flanneld is flannel for a machine of kuorum. Everything that touches
// the network is upstream's packages, untouched; only the main program is
// ours, because upstream's links every cloud's SDK, gives up when the API
// server is not there yet, and knows etcd as a store. This one takes the pod
// network from a file and the leases from Node objects, masquerades through
// nftables, and waits for as long as it takes.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	_ "github.com/flannel-io/flannel/pkg/backend/hostgw"
	_ "github.com/flannel-io/flannel/pkg/backend/vxlan"
	_ "github.com/flannel-io/flannel/pkg/backend/wireguard"
	"github.com/flannel-io/flannel/pkg/subnet"
	"github.com/flannel-io/flannel/pkg/version"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
)

// options are the command line; addresses are IPv4 unless net-conf.json
// enables IPv6.
type options struct {
	kubeconfig string
	node       string
	netConf    string
	iface      string
	publicIP   string
	subnetFile string
	masquerade bool
	health     string
}

func main() {
	klog.InitFlags(nil)
	o := options{}
	flag.StringVar(&o.kubeconfig, "kubeconfig", "", "kubeconfig file, needed; its user gets, lists and watches nodes and patches nodes/status")
	flag.StringVar(&o.node, "node-name", "", "name of this machine's Node object, needed")
	flag.StringVar(&o.netConf, "net-conf", "/etc/kube-flannel/net-conf.json", "the pod network and its backend, as upstream writes it")
	flag.StringVar(&o.iface, "iface", "", "interface, or an address on it, that reaches the other machines (default: that of the public address, or of the default route)")
	flag.StringVar(&o.publicIP, "public-ip", "", "address under which the other machines reach this one (default: the interface's)")
	flag.StringVar(&o.subnetFile, "subnet-file", "/run/flannel/subnet.env", "where the lease is written for the CNI plugin")
	flag.BoolVar(&o.masquerade, "ip-masq", true, "masquerade what leaves the pod network")
	flag.StringVar(&o.health, "healthz-address", "", "ADDRESS:PORT of /healthz, which answers 200 once pods can be reached (empty: none)")
	showVersion := flag.Bool("version", false, "print the version and exit")
	flag.Parse()
	if *showVersion {
		fmt.Println(version.Version)
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, o)
	if err != nil && ctx.Err() == nil {
		fmt.Fprintln(os.Stderr, "flanneld:", err)
		os.Exit(1)
	}
	// Links, routes and rules stay: pods keep talking while flanneld restarts.
	klog.Info("stopped; links, routes and rules stay in place")
}

// run serves until ctx ends. Errors before that are such that trying again
// with the same files cannot help.
func run(ctx context.Context, o options) error {
	if o.kubeconfig == "" || o.node == "" {
		return errors.New("--kubeconfig and --node-name are needed")
	}
	text, err := os.ReadFile(o.netConf)
	if err != nil {
		return fmt.Errorf("cannot read the network configuration: %w", err)
	}
	network, err := subnet.ParseConfig(string(text))
	if err != nil {
		return fmt.Errorf("cannot parse the network configuration %s: %w", o.netConf, err)
	}
	config, err := clientcmd.BuildConfigFromFlags("", o.kubeconfig)
	if err != nil {
		return fmt.Errorf("cannot read the kubeconfig: %w", err)
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("cannot use the kubeconfig %s: %w", o.kubeconfig, err)
	}
	// Upstream's subnet manager takes the node's name from the environment.
	if err := os.Setenv("NODE_NAME", o.node); err != nil {
		return fmt.Errorf("cannot set NODE_NAME: %w", err)
	}
	d := &daemon{options: o, network: network, client: client}
	if o.health != "" {
		if err := d.serveHealth(ctx); err != nil {
			return err
		}
	}
	return d.run(ctx)
}
