package membership

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"kuorum/internal/cluster"
	"kuorum/internal/etcd"
)

// Progress takes a sign of life of a node that joins, and brings its join to
// its end when it can: a learner that has caught up is promoted, a node without
// a member is done once it is ready. A node whose join has come to its end is done.
func (s *Service) Progress(ctx context.Context, r Report) (Progress, error) {
	joins, revisions, err := s.Register.joins(ctx)
	if err != nil {
		return Progress{}, err
	}
	j, under := joins[r.Name]
	if !under {
		return s.settled(ctx, r.Name)
	}
	if err := s.Etcd.Renew(ctx, j.Lease); err != nil {
		return Progress{}, err
	}
	if j.PeerURL != "" {
		if p, err := s.promote(ctx, j, r); err != nil || !p.Done {
			return p, err
		}
	} else if !r.Ready {
		return Progress{Waits: "its components are not ready"}, nil
	}
	changes, err := s.Register.spend(ctx, j.Token)
	if err != nil {
		return Progress{}, err
	}
	done, err := s.Etcd.Commit(ctx, "finish the join of "+r.Name, append(changes,
		etcd.Change{Key: joinPrefix + r.Name, If: revisions[r.Name]}, etcd.Change{Key: alivePrefix + r.Name, Always: true})...)
	if err != nil {
		return Progress{}, err
	}
	if !done { // another report, or the sweep, came first
		return s.settled(ctx, r.Name)
	}
	s.Log.Info("a machine has joined", "node", r.Name)
	return Progress{Done: true, Percent: 100}, nil
}

// settled is the progress of a node that has no join under way: it is in
// cluster.yaml and, if it has a member, votes; or its join was taken back.
func (s *Service) settled(ctx context.Context, name string) (Progress, error) {
	spec, err := s.Register.Spec(ctx)
	if err != nil {
		return Progress{}, err
	}
	node, in := spec.Node(name)
	if in && spec.HasMember(node) { // one that it replaces may be in cluster.yaml still
		m, err := s.memberAt(ctx, peerURL(node))
		if err != nil {
			return Progress{}, err
		}
		in = m.ID != "" && !m.Learner
	}
	if !in {
		return Progress{}, takenBack(name)
	}
	return Progress{Done: true, Percent: 100}, nil
}

func takenBack(name string) error {
	return &cluster.Problem{
		What: fmt.Sprintf("the join of %s was taken back", name),
		Why:  fmt.Sprintf("it gave no sign of life for %v, or the node was removed", joinLife),
		Do:   "kuorum leave --force, then join again", Exit: cluster.ExitRefused,
	}
}

// memberAt is the member with that peer URL; without an ID there is none.
func (s *Service) memberAt(ctx context.Context, url string) (cluster.EtcdMember, error) {
	members, err := s.Etcd.Members(ctx)
	at := slices.IndexFunc(members, func(m cluster.EtcdMember) bool { return slices.Contains(m.PeerURLs, url) })
	if err != nil || at < 0 {
		return cluster.EtcdMember{}, err
	}
	return members[at], nil
}

// promote gives the learner of a join its vote when it has caught up. Which
// member that is, and whether it votes, the member list says and not the machine.
func (s *Service) promote(ctx context.Context, j join, r Report) (Progress, error) {
	if r.Etcd == nil || r.Etcd.Error != "" {
		return Progress{Waits: "its etcd does not answer yet"}, nil
	}
	m, err := s.memberAt(ctx, j.PeerURL)
	switch {
	case err != nil:
		return Progress{}, err
	case m.ID == "":
		return Progress{}, takenBack(j.Name) // somebody took its member off the list
	case !m.Learner:
		return Progress{Done: true}, nil
	}
	percent := etcd.CatchUp(etcd.Newest(s.Statuses(ctx)), *r.Etcd)
	err = s.Etcd.Promote(ctx, m.ID)
	switch {
	case errors.Is(err, etcd.ErrNotCaughtUp):
		return Progress{Percent: percent, Waits: "it has not caught up with the leader"}, nil
	case refusedByEtcd(err): // it is not sure of the voters, which passes
		return Progress{Percent: percent, Waits: err.Error()}, nil
	case err != nil:
		return Progress{}, err
	}
	return Progress{Done: true}, nil
}

// refusedByEtcd tells whether a guard of etcd's own said no.
func refusedByEtcd(err error) bool {
	problem, ok := errors.AsType[*cluster.Problem](err)
	return ok && problem.ExitCode() == cluster.ExitRefused
}
