package membership

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"kuorum/internal/advise"
	"kuorum/internal/cluster"
	"kuorum/internal/etcd"
)

// sweepEvery is how often the leader's server looks for joins that nobody
// works on any more.
const sweepEvery = 5 * time.Second

// Remove takes a node out of the cluster: out of etcd's member list, out of
// cluster.yaml, and its object out of Kubernetes. Its own agent, if it lives,
// sees that and stops. It refuses (exit 5) what would cost the quorum, unless
// forced, and to remove the server that is asked, since it could not tell the
// end.
func (s *Service) Remove(ctx context.Context, r Removal) (Removed, error) {
	spec, err := s.Register.Spec(ctx)
	if err != nil {
		return Removed{}, err
	}
	node, ok := spec.Node(r.Name)
	if !ok {
		return Removed{}, unknownNode(spec, r.Name)
	}
	if r.Name == s.Self {
		return Removed{}, &cluster.Problem{
			What: r.Name + " cannot remove itself", Do: "ask another server", Exit: cluster.ExitRefused,
		}
	}
	if _, err := spec.Without(r.Name); err != nil {
		return Removed{}, err
	}
	sums, err := s.guard(ctx, spec, node, r.Force)
	if err != nil || r.Dry {
		return sums, err
	}
	if err := s.removeMember(ctx, node); err != nil {
		return sums, err
	}
	_, err = s.Register.edit(ctx, "remove "+r.Name+" from cluster.yaml", func(spec *cluster.Spec) (*cluster.Spec, []etcd.Change, error) {
		next, err := spec.Without(r.Name)
		return next, forget(r.Name), err
	})
	if err != nil {
		return sums, err
	}
	s.Log.Info("a node was removed", "node", r.Name)
	return sums, s.DeleteNode(ctx, r.Name)
}

func unknownNode(spec *cluster.Spec, name string) error {
	var names []string
	for _, n := range spec.Spec.Nodes {
		names = append(names, n.Name)
	}
	return &cluster.Problem{
		What: fmt.Sprintf("cluster %s has no node %q", spec.Metadata.Name, name),
		Why:  "its nodes are " + strings.Join(names, ", "), Exit: cluster.ExitUsage,
	}
}

// guard is the quorum before and after the removal, and an error when that
// must not be.
func (s *Service) guard(ctx context.Context, spec *cluster.Spec, node cluster.Node, force bool) (Removed, error) { //nolint:revive // the flag is the user's
	voters := advise.Voters(spec, s.Agents.Reports(ctx, spec.Spec.Nodes))
	sums := Removed{Before: cluster.SumOf(voters), After: cluster.Removed(voters, node.Name)}
	if force || node.Role != cluster.RoleServer {
		return sums, nil
	}
	return sums, cluster.GuardQuorum("remove "+node.Name, sums.Before, sums.After)
}

// removeMember takes a node's members off etcd's list. A leader hands over
// first, which costs milliseconds instead of an election.
func (s *Service) removeMember(ctx context.Context, node cluster.Node) error {
	members, err := s.Etcd.Members(ctx)
	if err != nil {
		return err
	}
	own := s.Etcd.Status(ctx)
	for _, m := range members {
		if !belongs(m, node) {
			continue
		}
		if m.ID == own.Leader {
			if err := s.takeOver(ctx, node, own.ID); err != nil {
				return err
			}
		}
		if err := s.removeSettled(ctx, m.ID); err != nil && !errors.Is(err, etcd.ErrNoMember) {
			return err
		}
	}
	return nil
}

// belongs tells whether a member is a node's: by its address, and by its name
// once it has one.
func belongs(m cluster.EtcdMember, node cluster.Node) bool {
	return m.Name == node.Name || slices.Contains(m.PeerURLs, peerURL(node))
}

// takeOver makes our own member the leader in place of that of node, which
// alone can order it. A node that does not answer is left to the election.
func (s *Service) takeOver(ctx context.Context, node cluster.Node, own string) error {
	leader, err := s.Etcd.At(clientURL(node))
	if err != nil {
		return err
	}
	defer func() { _ = leader.Close() }() // nothing was written
	limited, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	if err := leader.MoveLeader(limited, own); err != nil {
		s.Log.Warn("the leader did not hand over, an election follows", "node", node.Name, "error", err)
	}
	return nil
}

// removeSettled waits while etcd's own guard is not sure of the voters, which
// it is for five seconds after each of their starts.
func (s *Service) removeSettled(ctx context.Context, id string) error {
	limited, cancel := context.WithTimeout(ctx, settle)
	defer cancel()
	tick := time.NewTicker(settleAgain)
	defer tick.Stop()
	for {
		err := s.Etcd.Remove(limited, id)
		if !errors.Is(err, etcd.ErrUnsettled) {
			return err
		}
		select {
		case <-limited.Done():
			return err
		case <-tick.C:
		}
	}
}

// removeDead makes room for a join under the name of a node that is dead, and
// returns that node. Without a name there is none any more: it was of an earlier
// attempt.
func (s *Service) removeDead(ctx context.Context, name string) (cluster.Node, error) {
	spec, err := s.Register.Spec(ctx)
	if err != nil {
		return cluster.Node{}, err
	}
	node, _ := spec.Node(name)
	if node.Role != cluster.RoleServer {
		return node, nil
	}
	if _, err := s.guard(ctx, spec, node, false); err != nil {
		return node, err
	}
	return node, s.removeMember(ctx, node)
}

// takeBackIf undoes the join of that name if there is one and it is the one
// that is meant.
func (s *Service) takeBackIf(ctx context.Context, name string, meant func(join) bool) error {
	joins, revisions, err := s.Register.joins(ctx)
	if err != nil {
		return err
	}
	j, ok := joins[name]
	if !ok || !meant(j) {
		return nil
	}
	return s.takeBack(ctx, j, revisions[name])
}

// errSettled tells that a join has come to its end, or made room for another
// one, before it was taken back.
var errSettled = errors.New("the join has come to its end")

// takeBack undoes a join that did not come to its end: its learner goes, and
// its node, in whose place one is put back that was there before. Where the
// join's record is not the one of that revision any more there is nothing to
// undo, which is no error.
func (s *Service) takeBack(ctx context.Context, j join, revision int64) error {
	voter, err := s.removeLearner(ctx, j)
	if err != nil {
		return err
	}
	_, err = s.Register.edit(ctx, "take back the join of "+j.Name, func(spec *cluster.Spec) (*cluster.Spec, []etcd.Change, error) {
		_, revisions, err := s.Register.joins(ctx)
		if err != nil {
			return nil, nil, err
		}
		if revisions[j.Name] != revision {
			return nil, nil, errSettled
		}
		changes := forget(j.Name)
		changes[0].Always, changes[0].If = false, revision
		if voter {
			return spec, changes, nil
		}
		next, err := before(spec, j)
		return next, changes, err
	})
	if errors.Is(err, errSettled) {
		return nil
	}
	if err != nil {
		return err
	}
	s.Log.Warn("a join was taken back", "node", j.Name, "votes", voter)
	if j.Replaces != nil || voter {
		return nil
	}
	return s.DeleteNode(ctx, j.Name) // its kubelet may have registered already
}

// before is the spec without what a join changed in it.
func before(spec *cluster.Spec, j join) (*cluster.Spec, error) {
	if j.Replaces != nil {
		if next, err := spec.With(*j.Replaces); err == nil {
			return next, nil
		} // somebody has its address now
	}
	return spec.Without(j.Name)
}

// removeLearner removes the learner of a join. One that votes already stays:
// its join had come to its end, and nobody wrote that down.
func (s *Service) removeLearner(ctx context.Context, j join) (voter bool, err error) {
	if j.PeerURL == "" {
		return false, nil
	}
	members, err := s.Etcd.Members(ctx)
	if err != nil {
		return false, err
	}
	for _, m := range members {
		if !slices.Contains(m.PeerURLs, j.PeerURL) {
			continue
		}
		if !m.Learner {
			return true, nil
		}
		if err := s.removeSettled(ctx, m.ID); err != nil && !errors.Is(err, etcd.ErrNoMember) {
			return false, err
		}
	}
	return false, nil
}

// forget removes what is known of a join.
func forget(name string) []etcd.Change {
	return []etcd.Change{{Key: joinPrefix + name, Always: true}, {Key: alivePrefix + name, Always: true}}
}

// Sweep takes joins back that nobody works on any more, until ctx ends. Every
// server runs it; the one whose member leads acts.
func (s *Service) Sweep(ctx context.Context) {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := s.sweep(ctx); err != nil && ctx.Err() == nil {
			s.Log.Warn("cannot look for joins to take back", "error", err)
		}
	}
}

func (s *Service) sweep(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, settle+5*time.Second)
	defer cancel()
	if own := s.Etcd.Status(ctx); own.Error != "" || own.Leader != own.ID {
		return nil
	}
	joins, revisions, err := s.Register.joins(ctx)
	if err != nil || len(joins) == 0 {
		return err
	}
	alive, err := s.Register.alive(ctx)
	if err != nil {
		return err
	}
	for name, j := range joins {
		if !alive[name] {
			err = errors.Join(err, s.takeBack(ctx, j, revisions[name]))
		}
	}
	return err
}
