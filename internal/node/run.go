package node

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"kuorum/internal/cluster"
	"kuorum/internal/component"
	"kuorum/internal/host"
	"kuorum/internal/membership"
)

// lookEvery is how often a machine that is no node looks whether it has become
// one.
const lookEvery = 200 * time.Millisecond

// hopelessStop is what the API server of a node that goes gets to end when it
// cannot finish a request, without its etcd.
const hopelessStop = time.Second

// errRemoved ends the run of a node that the cluster has removed.
var errRemoved = errors.New("the cluster has removed this node")

// errReread ends the run of an agent whose node's files are others now. Its
// components run on; the next agent adopts those that the change does not
// touch, and replaces the others in their order.
var errReread = errors.New("the files of this node have changed")

// startOverError ends the run of a node that gets a new member.
type startOverError component.InitialCluster

func (startOverError) Error() string { return "this node gets a new etcd member" }

// Run runs the node that this machine is. A machine that is none waits until
// `kuorum join` or a lab makes it one; one that the cluster removes stops its
// components, puts its state away and waits again; one whose files have changed
// reads them anew. Run blocks until ctx ends,
// which leaves the components running, or until Options.Stop is closed, which
// stops them.
func Run(ctx context.Context, options Options) error {
	var open doors
	defer func() { _ = open.close() }()
	for {
		disk, err := awaitNode(ctx, options)
		if err != nil {
			return err
		}
		if disk.Spec == nil {
			return nil
		}
		a, err := NewAgent(options, disk, &open)
		if err != nil {
			return err
		}
		err = a.Run(ctx)
		if errors.Is(err, errReread) {
			options.Log.Info("reading the node's files again")
			continue
		}
		if err := open.close(); err != nil {
			return fmt.Errorf("cannot close the agent's API: %w", err)
		}
		if initial, ok := errors.AsType[startOverError](err); ok {
			options.Log.Warn("this node gets a new etcd member: the data of the old one is put away", "in", component.VarDir+"/left")
			if err := membership.StartOver(component.EtcDir, component.VarDir, component.InitialCluster(initial)); err != nil {
				return err
			}
			continue
		}
		if !errors.Is(err, errRemoved) {
			return err
		}
		options.Log.Warn("the cluster has removed this node: its state is put away", "in", component.VarDir+"/left")
		if err := membership.Leave(component.EtcDir, component.VarDir); err != nil {
			return err
		}
	}
}

// awaitNode returns the node's files once there are some, or nothing when ctx
// ends or Options.Stop is closed first.
func awaitNode(ctx context.Context, options Options) (membership.Disk, error) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for told := false; ; told = true {
		disk, err := membership.Read(component.EtcDir)
		if err == nil {
			return disk, nil
		}
		if !errors.Is(err, membership.ErrNoNode) {
			return membership.Disk{}, fmt.Errorf("cannot start the node: %w", err)
		}
		if !told {
			options.Log.Info("this machine is no node yet: it waits for kuorum join")
		}
		select {
		case <-ctx.Done():
			return membership.Disk{}, nil
		case <-options.Stop:
			return membership.Disk{}, nil
		case <-tick.C:
		}
	}
}

const (
	// lookForAddress is how often a node looks whether its address is on its
	// machine; one that is lost must be missed gone times in a row, since
	// network managers take addresses off and put them back.
	lookForAddress = time.Second
	gone           = 5
)

// place is where a node's machine is. A node whose own address is not on it is
// astray: nothing of it can work, but it must be told where it is now.
type place struct {
	astray    bool
	addresses []string // at which the agent's API listens, beside the loopback
}

// findPlace decides where the agent listens: at the node's own address or, as
// long as the machine has not got that, at those of its addresses that are in
// the nodes' network, or at all of them.
func findPlace(spec *cluster.Spec, own string, have []netip.Addr) place {
	var all, inside []string
	network, err := netip.ParsePrefix(spec.Spec.Network.Nodes)
	for _, a := range have {
		if a.String() == own {
			return place{addresses: []string{own}}
		}
		all = append(all, a.String())
		if err == nil && network.Contains(a) {
			inside = append(inside, a.String())
		}
	}
	if len(inside) > 0 {
		all = inside
	}
	return place{astray: true, addresses: all}
}

func (p place) same(other place) bool {
	return p.astray == other.astray && slices.Equal(p.addresses, other.addresses)
}

// watchPlace makes the agent anew when its node's address comes or goes. It
// changes nothing else by itself: that another address is the node's now is for
// a person to say.
func (a *Agent) watchPlace(ctx context.Context) {
	tick := time.NewTicker(lookForAddress)
	defer tick.Stop()
	for missed := 0; ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		have, err := host.Addresses()
		if err != nil {
			continue
		}
		now := findPlace(a.machine.Spec, a.machine.Node.Address, have)
		switch {
		case now.same(a.place):
			missed = 0
			continue
		case now.astray && !a.place.astray && missed < gone:
			missed++
			continue
		}
		a.options.Log.Warn("the addresses of this machine have changed", "astray", now.astray, "addresses", now.addresses)
		a.readAgain()
		return
	}
}
