package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"kuorum/internal/cluster"
	"kuorum/internal/component"
	"kuorum/internal/endpoint"
	"kuorum/internal/fault"
	"kuorum/internal/host"
)

// AddMachine gives the lab a new machine and switches it on. It is an empty
// one: no node until it joins. The lab's process gives it an address if node
// has none, so that two who add at once do not take the same; the answer has it.
func (l *Lab) AddMachine(ctx context.Context, node cluster.Node) (cluster.Node, error) {
	data, err := json.Marshal(node)
	if err != nil {
		return cluster.Node{}, fmt.Errorf("cannot ask lab %s: %w", l.Name, err)
	}
	var added cluster.Node
	err = l.call(ctx, http.MethodPost, "/v1/machines?"+url.Values{"node": {string(data)}}.Encode(), &added)
	return added, err
}

// RemoveMachine cuts a machine's power and takes it, with its disk, out of the
// lab.
func (l *Lab) RemoveMachine(ctx context.Context, name string) error {
	return l.call(ctx, http.MethodDelete, "/v1/machines/"+name, nil)
}

// Nodes is the Spec without the machines that are no nodes: they have not
// joined, or were removed from the cluster.
func (l *Lab) Nodes() *cluster.Spec {
	spec := *l.Spec
	spec.Spec.Nodes = slices.DeleteFunc(slices.Clone(l.Spec.Spec.Nodes), func(n cluster.Node) bool { return !l.isNode(n.Name) })
	return &spec
}

// isNode tells whether a machine is a node: its disk says so. Of one without a
// disk nothing else is known.
func (l *Lab) isNode(name string) bool {
	etc := filepath.Join(l.machineDir(name), "etc/kuorum")
	if _, err := os.Stat(etc); err != nil {
		return true
	}
	_, err := os.Stat(filepath.Join(etc, "node"))
	return err == nil
}

// WaitLeft blocks until a machine whose node was removed from the cluster has
// put it away, which its components end with: leases are handed over, and
// nothing is cut. A machine that is off, or does not come to it within 20 s,
// is not waited for.
func (l *Lab) WaitLeft(ctx context.Context, name string) error {
	limited, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	err := poll(limited, 50*time.Millisecond, func() error {
		if !l.isNode(name) {
			return nil
		}
		status, err := l.Status(limited)
		if err != nil {
			return err
		}
		if m, err := status.Machine(name); err != nil || m.Power == PowerOff {
			return err
		}
		return fmt.Errorf("%s still runs", name)
	})
	if ctx.Err() == nil {
		return nil
	}
	return err
}

// change replaces the lab's Spec, on disk first, and tells everybody in the lab
// process who goes by it.
func (d *daemon) change(spec *cluster.Spec) error {
	text, err := spec.YAML()
	if err != nil {
		return err
	}
	if err := host.WriteFile(d.lab.path("cluster.yaml"), text, 0o644); err != nil {
		return err
	}
	d.lab.Spec = spec
	for _, m := range d.machines {
		m.setHosts(hosts(spec))
	}
	return d.balancer.SetBackends(backends(spec), "")
}

func backends(spec *cluster.Spec) []endpoint.Backend {
	var list []endpoint.Backend
	for _, n := range spec.Servers() {
		list = append(list, endpoint.Backend{Name: n.Name, Address: net.JoinHostPort(n.Address, strconv.Itoa(component.PortAPIServer))})
	}
	return list
}

func (d *daemon) add(ctx context.Context, node cluster.Node) (cluster.Node, error) {
	d.changing.Lock()
	defer d.changing.Unlock()
	if _, exists := d.lab.Spec.Node(node.Name); exists {
		return node, fmt.Errorf("lab %s has a machine %s already", d.lab.Name, node.Name)
	}
	spec, err := d.lab.Spec.With(node)
	if err != nil {
		return node, err
	}
	node, _ = spec.Node(node.Name) // with its address
	m, err := d.plan(spec, node)
	if err != nil {
		return node, err
	}
	m.whenOff = d.faults.MachineOff
	d.setMachines(append(slices.Clone(d.list()), m))
	if err := errors.Join(d.change(spec), d.faults.Refresh(ctx), m.Start(ctx)); err != nil {
		return node, errors.Join(err, d.drop(context.WithoutCancel(ctx), m))
	}
	return node, nil
}

// plan prepares a machine of spec, with an empty disk.
func (d *daemon) plan(spec *cluster.Spec, node cluster.Node) (*Machine, error) {
	hierarchies, err := host.MountedHierarchies()
	if err != nil {
		return nil, err
	}
	if err := os.RemoveAll(d.lab.machineDir(node.Name)); err != nil { // of an interrupted removal
		return nil, fmt.Errorf("cannot clear the disk of %s: %w", node.Name, err)
	}
	if err := os.MkdirAll(filepath.Join(d.lab.machineDir(node.Name), "etc/kuorum"), 0o755); err != nil {
		return nil, fmt.Errorf("cannot make the disk of %s: %w", node.Name, err)
	}
	grown := *d.lab
	grown.Spec = spec
	return newMachine(&grown, node, hierarchies)
}

func (d *daemon) remove(ctx context.Context, name string) error {
	d.changing.Lock()
	defer d.changing.Unlock()
	for _, m := range d.list() {
		if m.Node.Name == name {
			return d.drop(ctx, m)
		}
	}
	return nil // an earlier removal was interrupted after that
}

// drop takes a machine out of the lab. The caller holds changing.
func (d *daemon) drop(ctx context.Context, m *Machine) error {
	spec, err := d.lab.Spec.Without(m.Node.Name)
	if err != nil {
		return err
	}
	if err := m.PowerOff(ctx); err != nil {
		return err
	}
	if err := d.change(spec); err != nil {
		return err // the machine is still listed, so that its removal can be asked for again
	}
	d.setMachines(slices.DeleteFunc(slices.Clone(d.list()), func(other *Machine) bool { return other == m }))
	if err := os.RemoveAll(d.lab.machineDir(m.Node.Name)); err != nil {
		return fmt.Errorf("cannot remove the disk of %s: %w", m.Node.Name, err)
	}
	return d.faults.Refresh(ctx)
}

// SetAddress gives a machine that is off another address for its next start, as
// a network would that hands addresses out. The node on its disk does not know:
// kuorum node address tells it, and the others.
func (l *Lab) SetAddress(ctx context.Context, name, address string) error {
	return l.call(ctx, http.MethodPost, "/v1/machines/"+name+"/address?"+url.Values{"to": {address}}.Encode(), nil)
}

// setAddress is the lab process's part of SetAddress. From here on the lab's
// Spec, the forwarder and the machines' names have the new address.
func (d *daemon) setAddress(ctx context.Context, name, address string) error {
	d.changing.Lock()
	defer d.changing.Unlock()
	node, ok := d.lab.Spec.Node(name)
	at := slices.IndexFunc(d.list(), func(m *Machine) bool { return m.Node.Name == name })
	if !ok || at < 0 {
		return fmt.Errorf("lab %s has no machine %q", d.lab.Name, name)
	}
	parsed, err := netip.ParseAddr(address)
	if err != nil {
		return fmt.Errorf("cannot read the address: %w", err)
	}
	node.Address = address
	spec, err := d.lab.Spec.With(node)
	if err != nil {
		return err
	}
	if err := d.list()[at].setAddress(parsed); err != nil {
		return err
	}
	return errors.Join(d.change(spec), d.faults.Refresh(ctx)) // its cable is another
}

// list is the machines at this moment; it is never changed in place.
func (d *daemon) list() []*Machine {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.machines
}

func (d *daemon) setMachines(machines []*Machine) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.machines = machines
}

// Resolve is a machine's own name, or the one that a word of fault.Words stands
// for now. For those all agents are asked, which takes 2 s at most.
func (d *daemon) Resolve(ctx context.Context, name string) (string, error) {
	var names []string
	for _, m := range d.list() {
		if m.Node.Name == name {
			return name, nil
		}
		names = append(names, m.Node.Name)
	}
	if name == fault.VIP {
		if holder := holderOf(d.status(ctx).Reports()); holder != "" {
			return holder, nil
		}
		return "", &cluster.Problem{What: "nobody holds a virtual IP now", Why: "no agent says that its node does", Do: "kuorum leader", Exit: cluster.ExitRefused}
	}
	if name != fault.Leader {
		return "", fault.CheckName("machine", name, append(names, fault.Words()...))
	}
	if leader := leaderOf(d.status(ctx).Reports()); leader != "" {
		return leader, nil
	}
	return "", &cluster.Problem{
		What: "there is no leader now", Why: "no member of etcd on the lab's machines says that it leads", Do: "kuorum etcd status", Exit: cluster.ExitNoQuorum,
	}
}

// holderOf is the node that holds the virtual IP, or nothing. One that is cut off still
// has it: the last to take it counts.
func holderOf(reports []cluster.NodeReport) string {
	holder, since := "", time.Time{}
	for _, r := range reports {
		if r.Status == nil || r.Status.VIP == nil || r.Status.VIP.State != cluster.VIPActive || r.Status.VIP.Since.Before(since) {
			continue
		}
		holder, since = r.Name, r.Status.VIP.Since
	}
	return holder
}

// leaderOf is the node whose member of etcd leads, or nothing. One that is cut
// off believes in itself until its election timeout is over: the later term
// counts.
func leaderOf(reports []cluster.NodeReport) string {
	leader, term := "", uint64(0)
	for _, r := range reports {
		if r.Status == nil || r.Status.Etcd == nil {
			continue
		}
		if e := r.Status.Etcd; e.ID != "" && e.ID == e.Leader && (leader == "" || e.Term > term) {
			leader, term = r.Name, e.Term
		}
	}
	return leader
}

// Ports are the cables' ends at the switch, by machine.
func (d *daemon) Ports() map[string]string {
	ports := map[string]string{}
	for _, m := range d.list() {
		m.mu.Lock()
		ports[m.Node.Name] = m.port
		m.mu.Unlock()
	}
	return ports
}

// PowerOff cuts a machine's power.
func (d *daemon) PowerOff(ctx context.Context, name string) error {
	m, err := d.machine(name)
	if err != nil {
		return err
	}
	return m.PowerOff(ctx)
}

// Freeze holds a machine still.
func (d *daemon) Freeze(ctx context.Context, name string) error {
	m, err := d.machine(name)
	if err != nil {
		return err
	}
	return m.freeze(ctx)
}

// Thaw lets it go on.
func (d *daemon) Thaw(name string) error {
	m, err := d.machine(name)
	if err != nil {
		return err
	}
	return m.thaw()
}

// Signal sends sig to a component of a machine, see Machine.signal.
func (d *daemon) Signal(name, component string, sig syscall.Signal) error {
	m, err := d.machine(name)
	if err != nil {
		return err
	}
	return m.signal(component, sig)
}
