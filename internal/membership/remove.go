package membership

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"kuorum/internal/advise"
	"kuorum/internal/agent"
	"kuorum/internal/cluster"
	"kuorum/internal/etcd"
)

// leaveLife is how long a removed server may take to stop its components.
const leaveLife = 25 * time.Second

// Remove takes a node out of the cluster: out of cluster.yaml, out of etcd's
// member list, and its object out of Kubernetes. A server that lives sees the
// first, stops all but etcd so that its clients go elsewhere in peace, and says
// so (Left); an etcd node has nothing else to stop. It refuses (exit 5) what would cost the quorum, unless forced, and
// to remove the server that is asked, since it could not tell the end.
func (s *Service) Remove(ctx context.Context, r Removal) (Removed, error) {
	spec, err := s.Register.Spec(ctx)
	if err != nil {
		return Removed{}, err
	}
	node, ok := spec.Node(r.Name)
	if !ok {
		return Removed{}, s.removeAgain(ctx, spec, r)
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
	if err != nil {
		return sums, err
	}
	sums.Behind = s.behind(ctx, spec, node)
	if r.Dry {
		return sums, nil
	}
	if sums.Behind != "" && !r.Force {
		return sums, notYet(node, sums.Behind)
	}
	parts := node.Role == cluster.RoleServer && s.Agents.Report(ctx, node).Error == ""
	l, err := s.strike(ctx, node)
	if err != nil {
		return sums, err
	}
	if node.Role == cluster.RoleBalancer {
		s.tell(ctx, node)
	}
	if parts {
		s.awaitLeft(ctx, l)
	}
	return sums, s.finishLeave(ctx, l)
}

// tell has a balancer that was removed know it before the others do: one that hears no
// others any more takes the virtual IP. One that is off cannot.
func (s *Service) tell(ctx context.Context, node cluster.Node) {
	limited, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if err := s.Agents.Call(limited, node.Address, LookPath, struct{}{}, nil); err != nil {
		s.Log.Info("a balancer is removed that cannot be told so", "node", node.Name, "reason", err)
	}
}

// behind names a server that answers and does not use etcd's nodes as they are
// now: the one that is to go may be the last of those that its API server was
// told of, which would be of no use then.
func (s *Service) behind(ctx context.Context, spec *cluster.Spec, node cluster.Node) string {
	if node.Role != cluster.RoleEtcd {
		return ""
	}
	return behindOf(spec, s.Agents.Reports(ctx, spec.Servers()))
}

func notYet(node cluster.Node, behind string) error {
	return &cluster.Problem{
		What: node.Name + " cannot be removed yet",
		Why:  fmt.Sprintf("the API server of %s does not know the other etcd nodes: it starts again in its turn", behind),
		Do:   "kuorum status, then try again", Exit: cluster.ExitRefused,
	}
}

// behindOf names a node that answers, and does not run as spec has it.
func behindOf(spec *cluster.Spec, reports []cluster.NodeReport) string {
	for _, r := range reports {
		if r.Status != nil && (r.Status.Config != spec.Digest() || len(r.Status.Stale) > 0) {
			return r.Name
		}
	}
	return ""
}

// leave is a removal that has begun. Its members are named by ID: another
// member may come to be at the node's address, and must not be taken for one.
type leave struct {
	Node    cluster.Node `json:"node"`
	Members []string     `json:"members,omitempty"`
	At      time.Time    `json:"at"`
}

// strike takes a node off the list in cluster.yaml, and notes that its member is
// still to go.
func (s *Service) strike(ctx context.Context, node cluster.Node) (leave, error) {
	members, err := s.membersOf(ctx, node)
	if err != nil {
		return leave{}, err
	}
	l := leave{Node: node, Members: members, At: time.Now().UTC()}
	note, err := encode(l)
	if err != nil {
		return leave{}, err
	}
	_, err = s.Register.edit(ctx, "remove "+node.Name+" from cluster.yaml", func(spec *cluster.Spec) (*cluster.Spec, []etcd.Change, error) {
		next, err := spec.Without(node.Name)
		return next, append(forget(node.Name), etcd.Change{Key: leavePrefix + node.Name, Value: note, Always: true}), err
	})
	return l, err
}

// awaitLeft waits until a server that lives has had its member removed. One
// that does not come to it is not waited for for ever.
func (s *Service) awaitLeft(ctx context.Context, l leave) {
	limited, cancel := context.WithTimeout(ctx, leaveLife)
	defer cancel()
	tick := time.NewTicker(settleAgain / 2)
	defer tick.Stop()
	for {
		if left, err := s.listed(limited, l.Members); err == nil && len(left) == 0 {
			return
		}
		select {
		case <-limited.Done():
			s.Log.Warn("a removed server has not stopped in time", "node", l.Node.Name)
			return
		case <-tick.C:
		}
	}
}

// Left removes the member of a server that was struck off the list and has
// stopped whatever needs it.
func (s *Service) Left(ctx context.Context, r LeftReport) error {
	l, err := s.leave(ctx, r.Name)
	if err != nil {
		return err
	}
	if l.Node.Name == "" {
		return &cluster.Problem{What: r.Name + " is not being removed", Exit: cluster.ExitRefused}
	}
	return s.removeMembers(ctx, l.Node, l.Members)
}

// leave is the removal of that name that has begun; without a node: none.
func (s *Service) leave(ctx context.Context, name string) (leave, error) {
	var l leave
	record, err := s.Etcd.Record(ctx, leavePrefix+name)
	if err != nil || record.Revision == 0 {
		return leave{}, err
	}
	if err := json.Unmarshal(record.Value, &l); err != nil {
		return leave{}, fmt.Errorf("cannot read %s in etcd: %w", record.Key, err)
	}
	return l, nil
}

// removeAgain goes on with a removal that was interrupted.
func (s *Service) removeAgain(ctx context.Context, spec *cluster.Spec, r Removal) error {
	l, err := s.leave(ctx, r.Name)
	if err != nil {
		return err
	}
	if l.Node.Name == "" {
		return unknownNode(spec, r.Name)
	}
	if r.Dry {
		return nil
	}
	return s.finishLeave(ctx, l)
}

// endLeave finishes an interrupted removal of that name, if there is one, so
// that it cannot meet a node that joins under it.
func (s *Service) endLeave(ctx context.Context, name string) error {
	l, err := s.leave(ctx, name)
	if err != nil || l.Node.Name == "" {
		return err
	}
	return s.finishLeave(ctx, l)
}

// finishLeave removes what is left of a node that was struck off the list. A
// node that has joined under its name meanwhile is left alone.
func (s *Service) finishLeave(ctx context.Context, l leave) error {
	if err := s.removeMembers(ctx, l.Node, l.Members); err != nil {
		return err
	}
	_, err := s.Etcd.Commit(ctx, "finish the removal of "+l.Node.Name,
		etcd.Change{Key: leavePrefix + l.Node.Name, Always: true}, etcd.Change{Key: markPrefix + l.Node.Name, Always: true})
	if err != nil {
		return err
	}
	s.Log.Info("a node was removed", "node", l.Node.Name)
	spec, err := s.Register.Spec(ctx)
	if err != nil {
		return err
	}
	if _, back := spec.Node(l.Node.Name); back {
		return nil
	}
	return s.deleteNode(ctx, l.Node.Name, l.Node.Role)
}

// sweepLeaves finishes removals that nobody works on any more.
func (s *Service) sweepLeaves(ctx context.Context, now time.Time) error {
	records, err := s.Etcd.Records(ctx, leavePrefix)
	if err != nil {
		return err
	}
	for _, record := range records {
		var l leave
		if err := json.Unmarshal(record.Value, &l); err != nil {
			return fmt.Errorf("cannot read %s in etcd: %w", record.Key, err)
		}
		if now.Sub(l.At).Abs() > 2*leaveLife {
			err = errors.Join(err, s.finishLeave(ctx, l))
		}
	}
	return err
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
	look := func(ctx context.Context) ([]cluster.Voter, error) {
		return advise.Voters(spec, s.Agents.Reports(ctx, spec.Spec.Nodes)), nil
	}
	if !force && spec.HasMember(node) {
		once := look
		look = func(ctx context.Context) ([]cluster.Voter, error) { return agent.Settled(ctx, once) }
	}
	voters, err := look(ctx)
	if err != nil {
		return Removed{}, err
	}
	sums := Removed{Before: cluster.SumOf(voters), After: cluster.Removed(voters, node.Name)}
	if !spec.HasMember(node) { // a voter of that name would be somebody else's
		sums.After = sums.Before
	}
	if force || !spec.HasMember(node) {
		return sums, nil
	}
	return sums, cluster.GuardQuorum("remove "+node.Name, sums.Before, sums.After)
}

// removeMember takes a node's members off etcd's list.
func (s *Service) removeMember(ctx context.Context, node cluster.Node) error {
	ids, err := s.membersOf(ctx, node)
	if err != nil {
		return err
	}
	return s.removeMembers(ctx, node, ids)
}

// membersOf lists the IDs of a node's members; a worker has none, and members that
// somebody else runs are nobody's.
func (s *Service) membersOf(ctx context.Context, node cluster.Node) ([]string, error) {
	if !node.Role.MayVote() || s.External {
		return nil, nil
	}
	members, err := s.Etcd.Members(ctx)
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, m := range members {
		if belongs(m, node) {
			ids = append(ids, m.ID)
		}
	}
	return ids, nil
}

// listed is which of these members are still on etcd's list.
func (s *Service) listed(ctx context.Context, ids []string) ([]string, error) {
	members, err := s.Etcd.Members(ctx)
	if err != nil {
		return nil, err
	}
	var left []string
	for _, m := range members {
		if slices.Contains(ids, m.ID) {
			left = append(left, m.ID)
		}
	}
	return left, nil
}

// removeMembers takes these members of a node off etcd's list; those that are
// gone are no error. A leader hands over first, which costs milliseconds
// instead of an election.
func (s *Service) removeMembers(ctx context.Context, node cluster.Node, ids []string) error {
	left, err := s.listed(ctx, ids)
	if err != nil {
		return err
	}
	leader, heir := succession(s.Statuses(ctx), left)
	for _, id := range left {
		if id == leader && heir != "" {
			if err := s.handOver(ctx, node, heir); err != nil {
				return err
			}
		}
		if err := s.removeSettled(ctx, id); err != nil && !errors.Is(err, etcd.ErrNoMember) {
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

// succession is who leads now, by those that were asked, and who of them could
// once some members have gone: the first voter that follows. Without one the
// heir is empty.
func succession(statuses []cluster.EtcdStatus, going []string) (leader, heir string) {
	leader = etcd.Newest(statuses).Leader
	for _, st := range statuses {
		if st.Error == "" && !st.Learner && leader != "" && st.Leader == leader && !slices.Contains(going, st.ID) {
			return leader, st.ID
		}
	}
	return leader, ""
}

// handOver makes heir the leader in place of the member of node, which alone can
// order it. A node that does not answer is left to the election.
func (s *Service) handOver(ctx context.Context, node cluster.Node, heir string) error {
	leader, err := s.Etcd.At(clientURL(node))
	if err != nil {
		return err
	}
	defer func() { _ = leader.Close() }() // nothing was written
	limited, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	if err := leader.MoveLeader(limited, heir); err != nil {
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
