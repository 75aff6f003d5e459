package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/flannel-io/flannel/pkg/backend"
	"github.com/flannel-io/flannel/pkg/ip"
	"github.com/flannel-io/flannel/pkg/ipmatch"
	"github.com/flannel-io/flannel/pkg/lease"
	"github.com/flannel-io/flannel/pkg/subnet"
	"github.com/flannel-io/flannel/pkg/subnet/kube"
	"github.com/flannel-io/flannel/pkg/trafficmngr/nftables"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/kubernetes"
	"k8s.io/klog/v2"
)

const (
	firstRetry = 250 * time.Millisecond
	lastRetry  = 2 * time.Second
	// syncLimit bounds one attempt to list the nodes: upstream's informer
	// backs off to 30 s when the API server goes away under it, a fresh one
	// does not.
	syncLimit = 10 * time.Second
	// keepEvery is how often the nftables rules are written again, in case a
	// firewall was reloaded and flushed them, and the lease is looked at.
	keepEvery = time.Minute

	annotations = "flannel.alpha.coreos.com"
)

// daemon is one run of flanneld.
type daemon struct {
	options
	network *subnet.Config
	client  kubernetes.Interface
	ready   atomic.Bool
}

// run brings the network up and keeps it until ctx ends.
func (d *daemon) run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // before wg.Wait
	var (
		nodes subnet.Manager
		pods  backend.Network
	)
	steps := []step{
		{"reach the API server", d.reachAPI},
		{"list the nodes", func(ctx context.Context) (err error) {
			nodes, err = d.listNodes(ctx)
			return err
		}},
		{"find this node's pod CIDR", d.awaitPodCIDR},
		{"register the pod network", func(ctx context.Context) (err error) {
			pods, err = d.register(ctx, nodes, &wg)
			return err
		}},
		{"write the nftables rules", func(ctx context.Context) error { return d.writeRules(ctx, pods.Lease()) }},
		{"write the subnet file", func(context.Context) error {
			l := pods.Lease()
			return nodes.HandleSubnetFile(d.subnetFile, d.network, d.masquerade, l.Subnet, l.IPv6Subnet, pods.MTU())
		}},
	}
	for _, s := range steps {
		if err := s.retry(ctx); err != nil {
			return err
		}
	}
	over := make(chan struct{})
	wg.Go(func() {
		defer close(over)
		pods.Run(ctx)
	})
	done := step{"tell the API server that the network is up", func(ctx context.Context) error {
		return nodes.CompleteLease(ctx, pods.Lease(), &wg)
	}}
	if err := done.retry(ctx); err != nil {
		return err
	}
	d.ready.Store(true)
	return d.keep(ctx, pods.Lease(), over)
}

// keep writes the rules again and again until ctx ends, the backend gives up,
// or the lease is no longer what it was. Then only a fresh start helps.
func (d *daemon) keep(ctx context.Context, l *lease.Lease, over <-chan struct{}) error {
	tick := time.NewTicker(keepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-over:
			return errors.New("the backend stopped by itself")
		case <-tick.C:
			if err := d.writeRules(ctx, l); err != nil {
				klog.Errorf("cannot write the nftables rules again: %v", err)
			}
			if err := d.checkLease(ctx, l); err != nil {
				return err
			}
		}
	}
}

// checkLease notices that the Node object was deleted and made anew: without
// flannel's annotations, the other machines would have no route to this one.
// An API server that does not answer is no reason to stop.
func (d *daemon) checkLease(ctx context.Context, l *lease.Lease) error {
	ctx, cancel := context.WithTimeout(ctx, lastRetry)
	defer cancel()
	node, err := d.client.CoreV1().Nodes().Get(ctx, d.node, metav1.GetOptions{ResourceVersion: "0"})
	if err != nil || node.Spec.PodCIDR == "" {
		return nil
	}
	if node.Annotations[annotations+"/kube-subnet-manager"] != "true" {
		return fmt.Errorf("node %q has lost its lease", d.node)
	}
	if d.network.EnableIPv4 && !slices.Contains(append(node.Spec.PodCIDRs, node.Spec.PodCIDR), l.Subnet.String()) {
		return fmt.Errorf("node %q has another pod CIDR than %s", d.node, l.Subnet)
	}
	return nil
}

// reachAPI succeeds as soon as an API server answers for this user, whether
// or not the Node object is there.
func (d *daemon) reachAPI(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, lastRetry)
	defer cancel()
	_, err := d.client.CoreV1().Nodes().Get(ctx, d.node, metav1.GetOptions{ResourceVersion: "0"})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// listNodes starts upstream's subnet manager, which lives as long as ctx.
func (d *daemon) listNodes(ctx context.Context) (subnet.Manager, error) {
	ctx, cancel := context.WithCancel(ctx)
	limit := time.AfterFunc(syncLimit, cancel)
	nodes, err := kube.NewSubnetManager(ctx, "", d.kubeconfig, annotations, d.netConf, true)
	if !limit.Stop() && err == nil {
		err = context.DeadlineExceeded
	}
	if err != nil {
		cancel()
		return nil, err
	}
	return nodes, nil
}

// awaitPodCIDR waits until the controller-manager has given this node its pod
// CIDR. It watches, because every poll interval would be added to the time a
// cluster takes to start. An object without any annotation has not been
// touched by its kubelet yet, and upstream's AcquireLease panics on it.
func (d *daemon) awaitPodCIDR(ctx context.Context) error {
	seconds := int64(60)
	w, err := d.client.CoreV1().Nodes().Watch(ctx, metav1.ListOptions{
		FieldSelector:   fields.OneTermEqualSelector("metadata.name", d.node).String(),
		ResourceVersion: "0", // what is there already comes first
		TimeoutSeconds:  &seconds,
	})
	if err != nil {
		return err
	}
	defer w.Stop()
	for event := range w.ResultChan() {
		switch o := event.Object.(type) {
		case *v1.Node:
			if o.Spec.PodCIDR != "" && len(o.Annotations) > 0 {
				return nil
			}
		case *metav1.Status:
			return apierrors.FromObject(o)
		}
	}
	return fmt.Errorf("node %q has none yet", d.node)
}

// register makes the backend's link and annotates the Node object. A link
// that an earlier run left is taken over as it is.
func (d *daemon) register(ctx context.Context, nodes subnet.Manager, wg *sync.WaitGroup) (backend.Network, error) {
	family, err := ipmatch.GetIPFamily(d.network.EnableIPv4, d.network.EnableIPv6)
	if err != nil {
		return nil, err
	}
	name := d.iface
	if name == "" {
		name = d.publicIP
	}
	link, err := ipmatch.LookupExtIface(name, "", "", family, ipmatch.PublicIPOpts{PublicIP: d.publicIP})
	if err != nil {
		return nil, err
	}
	b, err := backend.NewManager(ctx, nodes, link).GetBackend(d.network.BackendType)
	if err != nil {
		return nil, err
	}
	return b.RegisterNetwork(ctx, wg, d.network)
}

// writeRules replaces flannel's own nftables tables in one transaction each;
// connections do not notice.
func (d *daemon) writeRules(ctx context.Context, l *lease.Lease) error {
	rules := &nftables.NFTablesManager{}
	if err := rules.Init(ctx); err != nil {
		return err
	}
	rules.SetupAndEnsureForwardRules(ctx, d.network.Network, d.network.IPv6Network, 0)
	if !d.masquerade {
		return nil
	}
	// The previous networks are only asked for by the iptables manager.
	return rules.SetupAndEnsureMasqRules(ctx,
		d.network.Network, ip.IP4Net{}, ip.IP4Net{},
		d.network.IPv6Network, ip.IP6Net{}, ip.IP6Net{},
		l, 0, false)
}

// serveHealth answers /healthz until ctx ends.
func (d *daemon) serveHealth(ctx context.Context) error {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", d.health)
	if err != nil {
		return fmt.Errorf("cannot serve /healthz: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) {
		if !d.ready.Load() {
			http.Error(w, "the pod network is not up yet", http.StatusServiceUnavailable)
			return
		}
		_, _ = w.Write([]byte("ok"))
	})
	server := &http.Server{Handler: mux, ReadHeaderTimeout: lastRetry}
	context.AfterFunc(ctx, func() { _ = server.Close() })
	go func() { _ = server.Serve(l) }()
	return nil
}

// step is one thing that must succeed before the next is tried.
type step struct {
	name string
	do   func(context.Context) error
}

// retry tries until the step succeeds or ctx ends, and logs a reason only
// when it changes.
func (s step) retry(ctx context.Context) error {
	last := ""
	for delay := firstRetry; ; delay = min(2*delay, lastRetry) {
		err := s.do(ctx)
		if err == nil {
			klog.Infof("done: %s", s.name)
			return nil
		}
		if err.Error() != last {
			last = err.Error()
			klog.Warningf("cannot %s yet: %v", s.name, err)
		}
		timer := time.NewTimer(delay)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
		}
	}
}
