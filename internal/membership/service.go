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
	"kuorum/internal/keyring"
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
// callers go to the next. Without a member of its own it asks all.
type Service struct {
	Self     string // the server's own name
	Register *Register
	Etcd     *etcd.Client // of its own member, or of all
	// Apart tells that etcd's members are on machines of their own, External that
	// somebody else runs them: then none is ever changed, whatever it is called.
	Apart, External bool

	Agents *agent.Client
	Dir    string // /etc/kuorum
	Log    *slog.Logger
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
	if err := callBack(ctx, spec, r); err != nil {
		return Plan{}, err
	}
	joins, _, err := s.Register.joins(ctx)
	if err != nil {
		return Plan{}, err
	}
	plan := Plan{Cluster: spec.Metadata.Name, Servers: established(spec.Servers(), joins, r.Name), Replaces: replaces}
	plan.Endpoints = spec.Spec.Etcd.External.Endpoints
	if spec.EtcdApart() {
		plan.Etcd = established(spec.EtcdNodes(), joins, r.Name)
	}
	return plan, nil
}

// established are the nodes that a joining machine must be able to reach:
// neither itself, which it may replace, nor others that still join.
func established(nodes []cluster.Node, joins map[string]join, joining string) []cluster.Node {
	return slices.DeleteFunc(nodes, func(n cluster.Node) bool {
		_, under := joins[n.Name]
		return under || n.Name == joining
	})
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
	if r.Address == "" { // With would give it one
		return nil, false, &cluster.Problem{What: "the request is malformed", Why: "it has no address of the machine", Exit: cluster.ExitUsage}
	}
	if known, ok := spec.Node(r.Name); ok {
		replaces = true
		if err := s.checkReplacement(ctx, known, r); err != nil {
			return nil, false, err
		}
	}
	if _, err := spec.With(r.node()); err != nil {
		return nil, false, err
	}
	if spec.HasMember(r.node()) {
		return spec, replaces, s.checkVoters(ctx, spec, r.node())
	}
	return spec, replaces, nil
}

func (r Request) node() cluster.Node {
	return cluster.Node{Name: r.Name, Role: r.Role, Address: r.Address}
}

// checkReplacement refuses to replace a node that lives, or by another kind.
func (s *Service) checkReplacement(ctx context.Context, known cluster.Node, r Request) error {
	if known.Role != r.Role {
		return nameTaken(fmt.Sprintf("%s is %s of this cluster, not %s", r.Name, known.Role.Noun(), r.Role.Noun()), "", r.Name)
	}
	if report := s.Agents.Report(ctx, known); report.Error == "" {
		return nameTaken(r.Name+" is a node of this cluster, and it is alive", "its agent answers at "+known.Address, r.Name)
	}
	return nil
}

func nameTaken(what, why, name string) error {
	return &cluster.Problem{
		What: what, Why: why, Do: "kuorum node remove " + name + ", or join under another name", Exit: cluster.ExitRefused,
	}
}

// Join lets a machine in: its node is written to cluster.yaml, its etcd member
// is added as a learner, and it gets what it needs to start. Whatever fails,
// nothing is left of it; when the machine is silent for 30 s, the same. An
// earlier attempt of the machine makes room, another machine's does not.
func (s *Service) Join(ctx context.Context, r Request) (Admission, error) {
	ctx, cancel := context.WithTimeout(ctx, settle) // the machine waits a little longer
	defer cancel()
	_, replaces, err := s.check(ctx, r)
	if err != nil {
		return Admission{}, err
	}
	set, err := keyring.Keys(s.Dir)
	if err != nil {
		return Admission{}, err
	}
	token, err := pki.ParseToken(r.Token)
	if err != nil {
		return Admission{}, err
	}
	earlier := func(j join) bool { return j.Token == token.ID || j.Address == r.Address }
	if err := s.takeBackIf(ctx, r.Name, earlier); err != nil {
		return Admission{}, err
	}
	if err := s.noOtherJoin(ctx, r.Name); err != nil {
		return Admission{}, err
	}
	if err := s.endLeave(ctx, r.Name); err != nil {
		return Admission{}, err
	}
	var dead cluster.Node
	if replaces {
		if dead, err = s.removeDead(ctx, r.Name); err != nil {
			return Admission{}, err
		}
	}
	lease, err := s.Etcd.Grant(ctx, joinLife)
	if err != nil {
		return Admission{}, err
	}
	admission, err := s.admit(ctx, set, attempt{Request: r, lease: lease, dead: dead})
	if err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		return Admission{}, errors.Join(err, s.takeBackIf(undo, r.Name, func(j join) bool { return j.Lease == lease }))
	}
	s.Log.Info("a machine joins", "node", r.Name, "role", r.Role, "address", r.Address)
	return admission, nil
}

// attempt is a request that was checked.
type attempt struct {
	Request
	lease int64
	dead  cluster.Node // the node that it may replace; without a name: none
}

func (s *Service) admit(ctx context.Context, set *pki.Set, a attempt) (Admission, error) {
	spec, err := s.enter(ctx, a)
	if err != nil {
		return Admission{}, err
	}
	node, _ := spec.Node(a.Name)
	set.LeafLife = time.Duration(spec.Spec.Certificates.Life)
	admission := Admission{Spec: spec}
	if a.Role == cluster.RoleServer {
		admission.Secrets = set.Files()
	} else {
		admission.Trust = set.Trust()
		if admission.Certificates, err = set.SignRequests(spec, node, a.Requests, time.Now()); err != nil {
			return Admission{}, err
		}
	}
	if !spec.HasMember(node) {
		return admission, nil
	}
	if err := s.addLearner(ctx, peerURL(node), a.lease); err != nil {
		return Admission{}, err
	}
	members, err := s.Etcd.Members(ctx)
	if err != nil {
		return Admission{}, err
	}
	admission.Initial = initialCluster(members, node)
	return admission, nil
}

// enter writes the node and its join down, in one transaction with the use of
// its token.
func (s *Service) enter(ctx context.Context, a attempt) (*cluster.Spec, error) {
	return s.Register.edit(ctx, "let "+a.Name+" join", func(spec *cluster.Spec) (*cluster.Spec, []etcd.Change, error) {
		token, record, err := s.Register.token(ctx, a.Token, a.Name, a.Role, time.Now())
		if err != nil {
			return nil, nil, err
		}
		replaced, err := s.stillFree(ctx, spec, a)
		if err != nil {
			return nil, nil, err
		}
		node := a.node()
		if replaced != nil {
			node.Labels = replaced.Labels
			node.Moved.Times = replaced.Moved.Times + 1 // younger than what others may know of the old one
		}
		next, err := spec.With(node)
		if err != nil {
			return nil, nil, err
		}
		token.UsedBy = a.Name
		used, err := encode(token)
		if err != nil {
			return nil, nil, err
		}
		note := join{Name: a.Name, Role: a.Role, Address: a.Address, Token: token.ID, Lease: a.lease, Replaces: replaced}
		if spec.HasMember(node) {
			note.PeerURL = peerURL(node)
		}
		under, err := encode(note)
		if err != nil {
			return nil, nil, err
		}
		return next, []etcd.Change{
			{Key: record.Key, Value: used, If: record.Revision, KeepLease: true},
			{Key: joinPrefix + a.Name, Value: under},
			{Key: alivePrefix + a.Name, Value: []byte("{}"), Lease: a.lease, Always: true},
		}, nil
	})
}

// stillFree refuses a name that another machine took since the request was
// checked. It returns the node that the attempt replaces, nil for none.
func (s *Service) stillFree(ctx context.Context, spec *cluster.Spec, a attempt) (*cluster.Node, error) {
	if err := s.noOtherJoin(ctx, a.Name); err != nil {
		return nil, err
	}
	known, ok := spec.Node(a.Name)
	if !ok {
		return nil, nil //nolint:nilnil // none is what was asked for
	}
	if known.Address != a.dead.Address || known.Role != a.Role {
		return nil, nameTaken(a.Name+" has just become a node of this cluster", "another machine did so, at "+known.Address, a.Name)
	}
	return &known, nil
}

func (s *Service) noOtherJoin(ctx context.Context, name string) error {
	joins, _, err := s.Register.joins(ctx)
	if err != nil {
		return err
	}
	if j, under := joins[name]; under {
		return nameTaken(name+" is joining already", "another machine does so, at "+j.Address, name)
	}
	return nil
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
		// A member's ID is made of its URL and the second: one that was just
		// removed cannot be added again within that second (ErrNoMember).
		wait := errors.Is(err, etcd.ErrUnsettled) || errors.Is(err, etcd.ErrTooManyLearners) || errors.Is(err, etcd.ErrNoMember)
		if !wait {
			return err
		}
		select {
		case <-limited.Done():
			return err
		case <-tick.C:
		}
	}
}

// peerURL is where a node's member is found by the others, if it has one; a
// worker never has.
func peerURL(n cluster.Node) string {
	if !n.Role.MayVote() {
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

// Cancel takes a join back that its machine gives up. One that was begun with
// another token is another machine's, and goes on.
func (s *Service) Cancel(ctx context.Context, r Request) error {
	token, _, err := s.Register.token(ctx, r.Token, r.Name, r.Role, time.Now())
	if err != nil {
		return err
	}
	return s.takeBackIf(ctx, r.Name, func(j join) bool { return j.Token == token.ID })
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
	if !spec.HasMember(node) {
		return node, nil
	}
	if _, err := s.guard(ctx, spec, node, false); err != nil {
		return node, err
	}
	return node, s.removeMember(ctx, node)
}
