package membership

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"kuorum/internal/agent"
	"kuorum/internal/cluster"
	"kuorum/internal/component"
	"kuorum/internal/etcd"
	"kuorum/internal/pki"
)

const (
	// clockLimit is by how much the clock of a joining machine may differ: its
	// new certificates are valid from five minutes ago.
	clockLimit = 4 * time.Minute
	// settle is how long a server waits for etcd to take a learner: it wants
	// its voters connected for five seconds, and one learner at a time.
	settle      = 40 * time.Second
	settleAgain = 500 * time.Millisecond
)

// Service is what a server's agent does for the cluster's membership. It asks
// its own etcd member only: a server whose member is down serves nobody, and
// callers go to the next.
type Service struct {
	Self     string // the server's own name
	Register *Register
	Etcd     *etcd.Client
	Agents   *agent.Client
	Dir      string // /etc/kuorum
	Log      *slog.Logger
	// DeleteNode removes the Kubernetes object of a node; one that is not
	// there is no error.
	DeleteNode func(ctx context.Context, name string) error
}

// Check tells a machine whether it would be let in, and whom it must reach. It
// changes nothing. It calls the machine back, to see that the way in both
// directions is open.
func (s *Service) Check(ctx context.Context, r Request) (Plan, error) {
	spec, replaces, err := s.check(ctx, r)
	if err != nil {
		return Plan{}, err
	}
	if err := callBack(ctx, r); err != nil {
		return Plan{}, err
	}
	return Plan{Cluster: spec.Metadata.Name, Servers: spec.Servers(), Replaces: replaces}, nil
}

// check is everything about a request that can be decided without changing
// anything.
func (s *Service) check(ctx context.Context, r Request) (spec *cluster.Spec, replaces bool, err error) {
	now := time.Now()
	if _, _, err := s.Register.token(ctx, r.Token, r.Name, r.Role, now); err != nil {
		return nil, false, err
	}
	if off := now.Sub(r.Time); off.Abs() > clockLimit {
		return nil, false, &cluster.Problem{
			What: fmt.Sprintf("the clock of %s is off", r.Name),
			Why:  fmt.Sprintf("it differs by %v from the clock of %s, more than %v: certificates and leases would not hold", off.Abs().Round(time.Second), s.Self, clockLimit),
			Do:   "set the clocks, by NTP, then try again", Exit: cluster.ExitRefused,
		}
	}
	if spec, err = s.Register.Spec(ctx); err != nil {
		return nil, false, err
	}
	if _, err := spec.With(r.node()); err != nil {
		return nil, false, err
	}
	if known, ok := spec.Node(r.Name); ok {
		replaces = true
		if err := s.checkReplacement(ctx, known, r); err != nil {
			return nil, false, err
		}
	}
	if r.Role == cluster.RoleServer {
		return spec, replaces, s.checkVoters(ctx, spec, r.Name)
	}
	return spec, replaces, nil
}

func (r Request) node() cluster.Node {
	return cluster.Node{Name: r.Name, Role: r.Role, Address: r.Address}
}

// checkReplacement refuses to replace a node that lives, or by another kind.
func (s *Service) checkReplacement(ctx context.Context, known cluster.Node, r Request) error {
	if known.Role != r.Role {
		return &cluster.Problem{
			What: fmt.Sprintf("%s is a %s of this cluster, not a %s", r.Name, known.Role, r.Role),
			Do:   "kuorum node remove " + r.Name + ", or join under another name", Exit: cluster.ExitRefused,
		}
	}
	if report := s.Agents.Report(ctx, known); report.Error == "" {
		return &cluster.Problem{
			What: r.Name + " is a node of this cluster, and it is alive",
			Why:  "its agent answers at " + known.Address,
			Do:   "kuorum node remove " + r.Name + ", or join under another name", Exit: cluster.ExitRefused,
		}
	}
	return nil
}

// Join lets a machine in: its node is written to cluster.yaml, its etcd member
// is added as a learner, and it gets what it needs to start. Whatever fails,
// nothing is left of it; when the machine is silent for 30 s, the same.
func (s *Service) Join(ctx context.Context, r Request) (Admission, error) {
	_, replaces, err := s.check(ctx, r)
	if err != nil {
		return Admission{}, err
	}
	set, err := Keys(s.Dir)
	if err != nil {
		return Admission{}, err
	}
	if err := s.takeBack(ctx, r.Name); err != nil { // an earlier attempt
		return Admission{}, err
	}
	if replaces {
		if err := s.removeDead(ctx, r.Name); err != nil {
			return Admission{}, err
		}
	}
	admission, err := s.admit(ctx, set, r)
	if err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		return Admission{}, errors.Join(err, s.takeBack(undo, r.Name))
	}
	s.Log.Info("a machine joins", "node", r.Name, "role", r.Role, "address", r.Address)
	return admission, nil
}

func (s *Service) admit(ctx context.Context, set *pki.Set, r Request) (Admission, error) {
	lease, err := s.Etcd.Grant(ctx, joinLife)
	if err != nil {
		return Admission{}, err
	}
	spec, err := s.enter(ctx, r, lease)
	if err != nil {
		return Admission{}, err
	}
	node, _ := spec.Node(r.Name)
	set.LeafLife = time.Duration(spec.Spec.Certificates.Life)
	if r.Role != cluster.RoleServer {
		certificates, err := set.SignRequests(spec, node, r.Requests, time.Now())
		return Admission{Spec: spec, Certificates: certificates, Trust: set.Trust()}, err
	}
	if err := s.addLearner(ctx, peerURL(node), lease); err != nil {
		return Admission{}, err
	}
	members, err := s.Etcd.Members(ctx)
	if err != nil {
		return Admission{}, err
	}
	return Admission{Spec: spec, Secrets: set.Files(), Initial: initialCluster(members, node)}, nil
}

// enter writes the node and its join down, in one transaction with the use of
// its token.
func (s *Service) enter(ctx context.Context, r Request, lease int64) (*cluster.Spec, error) {
	return s.Register.edit(ctx, "let "+r.Name+" join", func(spec *cluster.Spec) (*cluster.Spec, []etcd.Change, error) {
		token, record, err := s.Register.token(ctx, r.Token, r.Name, r.Role, time.Now())
		if err != nil {
			return nil, nil, err
		}
		node := r.node()
		known, replaces := spec.Node(r.Name)
		node.Labels = known.Labels
		next, err := spec.With(node)
		if err != nil {
			return nil, nil, err
		}
		token.UsedBy = r.Name
		used, err := encode(token)
		if err != nil {
			return nil, nil, err
		}
		under, err := encode(join{
			Name: r.Name, Role: r.Role, Address: r.Address, PeerURL: peerURL(node), Token: token.ID, Lease: lease, Replaces: replaces,
		})
		if err != nil {
			return nil, nil, err
		}
		return next, []etcd.Change{
			{Key: record.Key, Value: used, If: record.Revision, KeepLease: true},
			{Key: joinPrefix + r.Name, Value: under},
			{Key: alivePrefix + r.Name, Value: []byte("{}"), Lease: lease, Always: true},
		}, nil
	})
}

// addLearner waits while etcd is not ready for it, or another one joins.
func (s *Service) addLearner(ctx context.Context, url string, lease int64) error {
	limited, cancel := context.WithTimeout(ctx, settle)
	defer cancel()
	tick := time.NewTicker(settleAgain)
	defer tick.Stop()
	for {
		if err := s.Etcd.Renew(ctx, lease); err != nil { // or the join would be taken back meanwhile
			return err
		}
		_, err := s.Etcd.AddLearner(limited, url)
		if !errors.Is(err, etcd.ErrUnsettled) && !errors.Is(err, etcd.ErrTooManyLearners) {
			return err
		}
		select {
		case <-limited.Done():
			return err
		case <-tick.C:
		}
	}
}

// peerURL is where a server's member is found by the others; a worker has none.
func peerURL(n cluster.Node) string {
	if n.Role != cluster.RoleServer {
		return ""
	}
	return component.PeerURL(n)
}

// initialCluster is what etcd wants to be told when it starts for the first
// time: the whole list, with a name for each.
func initialCluster(members []cluster.EtcdMember, joining cluster.Node) component.InitialCluster {
	var list []string
	for _, m := range members {
		name := m.Name
		if slices.Contains(m.PeerURLs, peerURL(joining)) {
			name = joining.Name
		}
		for _, url := range m.PeerURLs {
			list = append(list, cmp.Or(name, m.ID)+"="+url)
		}
	}
	return component.InitialCluster{Members: strings.Join(list, ","), State: component.InitialExisting}
}

// Cancel takes a join back that its machine gives up.
func (s *Service) Cancel(ctx context.Context, r Request) error {
	if _, _, err := s.Register.token(ctx, r.Token, r.Name, r.Role, time.Now()); err != nil {
		return err
	}
	return s.takeBack(ctx, r.Name)
}

// Progress takes a sign of life of a node that joins, and brings its join to
// its end when it can: a learner that has caught up is promoted, a worker is
// done once it is ready. A node whose join has come to its end is done.
func (s *Service) Progress(ctx context.Context, r Report) (Progress, error) {
	joins, _, err := s.Register.joins(ctx)
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
	if j.Role == cluster.RoleServer {
		if p, err := s.promote(ctx, j, r); err != nil || !p.Done {
			return p, err
		}
	} else if !r.Ready {
		return Progress{Waits: "its components are not ready"}, nil
	}
	_, err = s.Etcd.Commit(ctx, "finish the join of "+r.Name,
		etcd.Change{Key: joinPrefix + r.Name, Always: true}, etcd.Change{Key: alivePrefix + r.Name, Always: true})
	if err == nil {
		s.Log.Info("a machine has joined", "node", r.Name)
	}
	return Progress{Done: err == nil, Percent: 100}, err
}

// settled is the progress of a node that has no join under way: it is in
// cluster.yaml, or its join was taken back.
func (s *Service) settled(ctx context.Context, name string) (Progress, error) {
	spec, err := s.Register.Spec(ctx)
	if err != nil {
		return Progress{}, err
	}
	if _, ok := spec.Node(name); ok {
		return Progress{Done: true, Percent: 100}, nil
	}
	return Progress{}, &cluster.Problem{
		What: fmt.Sprintf("the join of %s was taken back", name),
		Why:  fmt.Sprintf("it gave no sign of life for %v, or the node was removed", joinLife),
		Do:   "kuorum leave --force, then join again", Exit: cluster.ExitRefused,
	}
}

// promote gives the learner its vote when it has caught up.
func (s *Service) promote(ctx context.Context, j join, r Report) (Progress, error) {
	if r.Etcd == nil || r.Etcd.Error != "" {
		return Progress{Waits: "its etcd does not answer yet"}, nil
	}
	if !r.Etcd.Learner && r.Etcd.Leader != "" {
		return Progress{Done: true}, nil
	}
	percent := etcd.CatchUp(s.Etcd.Status(ctx), *r.Etcd)
	err := s.Etcd.Promote(ctx, r.Etcd.ID)
	switch {
	case errors.Is(err, etcd.ErrNotCaughtUp):
		return Progress{Percent: percent, Waits: "it has not caught up with the leader"}, nil
	case errors.Is(err, etcd.ErrUnsettled):
		return Progress{Percent: percent, Waits: "the voters have not been connected for 5 s"}, nil
	case err != nil:
		return Progress{}, err
	}
	return Progress{Done: true}, nil
}
