package membership

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"kuorum/internal/cluster"
	"kuorum/internal/etcd"
)

const (
	// sweepEvery is how often a server looks whether joins and removals that are
	// under way are still worked on. While there are none it asks nobody.
	sweepEvery = 5 * time.Second
	// sweeperLife is for how long one server does it, where none has the leader.
	sweeperLife = 20 * time.Second
)

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
		return next, append(changes, etcd.Change{Key: markPrefix + j.Name, Always: true}), err
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
	return s.deleteNode(ctx, j.Name, j.Role) // its kubelet may have registered already
}

// deleteNode removes the Kubernetes object of a node that may have one.
func (s *Service) deleteNode(ctx context.Context, name string, role cluster.Role) error {
	if !role.RunsPods() {
		return nil
	}
	return s.DeleteNode(ctx, name)
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

// Sweep takes joins back that nobody works on any more, and finishes such
// removals, until ctx ends. Every server runs it; one of them acts, see Acts.
func (s *Service) Sweep(ctx context.Context) {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	s.sweepAt(ctx, tick.C)
}

func (s *Service) sweepAt(ctx context.Context, ticks <-chan time.Time) {
	var noJoins, noLeaves atomic.Bool // true only while that is known
	var watches sync.WaitGroup
	defer watches.Wait()
	if !s.Apart { // a watch waits for its one member: another's may be away
		watches.Go(func() { s.watch(ctx, joinPrefix, &noJoins) })
		watches.Go(func() { s.watch(ctx, leavePrefix, &noLeaves) })
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticks:
		}
		if noJoins.Load() && noLeaves.Load() {
			continue
		}
		if err := s.sweep(ctx); err != nil && ctx.Err() == nil {
			s.Log.Warn("cannot look for joins to take back", "error", err)
		}
	}
}

// watch keeps nothing true while the server's own member has no key with the
// prefix. One that was away tells what has changed meanwhile; once a watch is
// lost nothing is known until the next one has begun.
func (s *Service) watch(ctx context.Context, prefix string, nothing *atomic.Bool) {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		err := s.Etcd.FollowCount(ctx, prefix, func(n int) { nothing.Store(n == 0) })
		nothing.Store(false)
		if ctx.Err() == nil {
			s.Log.Debug("cannot follow what is under way", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (s *Service) sweep(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, settle+5*time.Second)
	defer cancel()
	if s.External { // it may be another cluster's
		if _, err := s.Register.Spec(ctx); err != nil {
			return err
		}
	}
	if mine, err := s.Acts(ctx); err != nil || !mine {
		return err
	}
	if err := s.sweepLeaves(ctx, time.Now()); err != nil {
		return err
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

// Statuses is what the members that this server asks say of themselves: its own,
// or all.
func (s *Service) Statuses(ctx context.Context) []cluster.EtcdStatus {
	if s.Apart {
		return s.Etcd.Statuses(ctx)
	}
	return []cluster.EtcdStatus{s.Etcd.Status(ctx)}
}

// Acts tells whether it is this server that acts where one is enough: the one
// whose member leads or, where etcd is on other machines, the one that has put
// its name down, for a while. Were there two of them by mistake, nothing would be harmed: whatever
// they do is a transaction, or names a member by its ID.
func (s *Service) Acts(ctx context.Context) (bool, error) {
	if !s.Apart {
		own := s.Etcd.Status(ctx)
		return own.Error == "" && own.Leader == own.ID, nil
	}
	record, err := s.Etcd.Record(ctx, sweeperKey)
	if err != nil || record.Revision != 0 {
		return string(record.Value) == s.Self, err
	}
	lease, err := s.Etcd.Grant(ctx, sweeperLife)
	if err != nil {
		return false, err
	}
	return s.Etcd.Commit(ctx, "note who looks for joins to take back", etcd.Change{Key: sweeperKey, Value: []byte(s.Self), Lease: lease})
}
