package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"kuorum/internal/component"
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
