package membership

import (
	"context"
	"errors"
	"fmt"

	"kuorum/internal/agent"
	"kuorum/internal/cluster"
	"kuorum/internal/component"
	"kuorum/internal/etcd"
)

const alarmCorrupt = "CORRUPT"

// Rejoin gives a node of the cluster a new member in place of its own, whose
// data it has lost or cannot trust: the old one is removed, a learner is added,
// and the node's agent takes it from there as after a join. The quorum is
// guarded as for a removal. It works while the alarm CORRUPT of that member
// stops all writes.
func (s *Service) Rejoin(ctx context.Context, r RejoinRequest) (component.InitialCluster, error) {
	disk, err := Read(s.Dir) // etcd answers no reads during the alarm
	if err != nil {
		return component.InitialCluster{}, err
	}
	node, ok := disk.Spec.Node(r.Name)
	if !ok || !disk.Spec.HasMember(node) || r.Name == s.Self {
		return component.InitialCluster{}, &cluster.Problem{
			What: fmt.Sprintf("%s is no other node of this cluster with a member of etcd", r.Name), Exit: cluster.ExitUsage,
		}
	}
	if err := s.checkVoters(ctx, disk.Spec, node); err != nil {
		return component.InitialCluster{}, err
	}
	if _, err := s.guard(ctx, disk.Spec, node, false); err != nil {
		return component.InitialCluster{}, err
	}
	if err := s.removeMember(ctx, node); err != nil {
		return component.InitialCluster{}, err
	}
	if err := s.disarmRemoved(ctx); err != nil {
		return component.InitialCluster{}, err
	}
	return s.addAgain(ctx, node)
}

// disarmRemoved takes back alarms of damage of members that are on the list no
// more; etcd keeps them, and with them every write back.
func (s *Service) disarmRemoved(ctx context.Context) error {
	members, err := s.Etcd.Members(ctx)
	if err != nil {
		return err
	}
	listed := map[string]bool{}
	for _, m := range members {
		listed[m.ID] = true
	}
	alarms, err := s.Etcd.Alarms(ctx)
	if err != nil {
		return err
	}
	for _, a := range alarms {
		if a.Kind == alarmCorrupt && !listed[a.Member] {
			err = errors.Join(err, s.Etcd.Disarm(ctx, a))
		}
	}
	return err
}

// addAgain notes a join of a node that is in cluster.yaml already, and adds its
// learner.
func (s *Service) addAgain(ctx context.Context, node cluster.Node) (component.InitialCluster, error) {
	lease, err := s.Etcd.Grant(ctx, joinLife)
	if err != nil {
		return component.InitialCluster{}, err
	}
	under, err := encode(join{Name: node.Name, Role: node.Role, Address: node.Address, PeerURL: peerURL(node), Lease: lease, Replaces: &node})
	if err != nil {
		return component.InitialCluster{}, err
	}
	_, err = s.Etcd.Commit(ctx, "note that "+node.Name+" joins again",
		etcd.Change{Key: joinPrefix + node.Name, Value: under, Always: true},
		etcd.Change{Key: alivePrefix + node.Name, Value: []byte("{}"), Lease: lease, Always: true})
	if err != nil {
		return component.InitialCluster{}, err
	}
	if err := s.addLearner(ctx, peerURL(node), lease); err != nil {
		return component.InitialCluster{}, err
	}
	members, err := s.Etcd.Members(ctx)
	if err != nil {
		return component.InitialCluster{}, err
	}
	s.Log.Info("a member joins again", "node", node.Name)
	return initialCluster(members, node), nil
}

// AskRejoin asks a server, another one than self, to let self join again.
func AskRejoin(ctx context.Context, agents *agent.Client, servers []cluster.Node, self string) (component.InitialCluster, error) {
	var initial component.InitialCluster
	others := agent.Servers{Client: agents, Nodes: servers, But: self, Patience: admitPatience}
	err := others.Call(ctx, RejoinPath, RejoinRequest{Name: self}, &initial)
	return initial, err
}

// StartOver gives the node's etcd a new beginning: its data is moved aside, and
// it starts as a learner of the cluster that initial describes. Nothing of the
// node may run.
func StartOver(dir, data string, initial component.InitialCluster) error {
	disk, err := Read(dir)
	if err != nil {
		return err
	}
	disk.Initial, disk.Joining = initial, true
	if err := disk.Write(dir); err != nil {
		return err
	}
	if err := putAway(data, etcdDir); err != nil {
		return fmt.Errorf("cannot move etcd's data aside: %w", err)
	}
	return nil
}
