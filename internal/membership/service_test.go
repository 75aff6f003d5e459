package membership

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"kuorum/internal/cluster"
	"kuorum/internal/component"
	"kuorum/internal/etcd"
	"kuorum/internal/pki"
)

func request(token, name string, role cluster.Role, address string) Request {
	return Request{Token: token, Name: name, Role: role, Address: address, Time: time.Now()}
}

// TestEditsAreNotLost: many edits at once, from one Seed, all arrive.
func TestEditsAreNotLost(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	r := w.service.Register
	other, err := cluster.New("other", 1, 0)
	must(t, err)
	must(t, r.Seed(within(t), other)) // another founder's, too late
	if got := w.now(t); got.Metadata.Name != "demo" {
		t.Fatalf("a second seed replaced the first: %s", got.Metadata.Name)
	}
	ctx := within(t)
	const writers = 4
	failed := make([]error, writers)
	var all sync.WaitGroup
	for i := range writers {
		all.Go(func() {
			_, failed[i] = r.edit(ctx, "test", func(spec *cluster.Spec) (*cluster.Spec, []etcd.Change, error) {
				next, err := spec.With(cluster.Node{Name: fmt.Sprintf("x%d", i), Role: cluster.RoleWorker})
				return next, []etcd.Change{{Key: fmt.Sprintf("/kuorum/test/%d", i), Value: []byte("x")}}, err
			})
		})
	}
	all.Wait()
	must(t, errors.Join(failed...))
	records, err := w.service.Etcd.Records(ctx, "/kuorum/test/")
	must(t, err)
	if got := w.now(t); len(got.Workers()) != 1+writers || len(records) != writers {
		t.Errorf("%d workers and %d records", len(got.Workers()), len(records))
	}

	// One whose condition never holds gives up, and has changed nothing.
	calls := 0
	_, err = r.edit(ctx, "do the impossible", func(spec *cluster.Spec) (*cluster.Spec, []etcd.Change, error) {
		calls++
		next, err := spec.Without("x1")
		return next, []etcd.Change{{Key: "/kuorum/test/0", Value: []byte("y")}}, err
	})
	wants(t, err, cluster.ExitError, "cannot do the impossible: other changes")
	if _, ok := w.now(t).Node("x1"); !ok || calls != tries {
		t.Errorf("after %d calls: %v", calls, ok)
	}
}

// TestChange writes what is different, and nothing else.
func TestChange(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 2)
	r := w.service.Register
	revision := func() int64 {
		t.Helper()
		record, err := w.service.Etcd.Record(within(t), specKey)
		must(t, err)
		return record.Revision
	}
	before := revision()
	must(t, r.Change(within(t), "test", func(spec *cluster.Spec) (*cluster.Spec, error) { return spec, nil }))
	failed := r.Change(within(t), "test", func(*cluster.Spec) (*cluster.Spec, error) { return nil, errBusy })
	if !errors.Is(failed, errBusy) || revision() != before {
		t.Errorf("%v, and the revision is %d after %d", failed, revision(), before)
	}
	must(t, r.Change(within(t), "test", func(spec *cluster.Spec) (*cluster.Spec, error) { return spec.Without("w1") }))
	if _, ok := w.now(t).Node("w1"); ok || revision() == before {
		t.Error("w1 is still there")
	}
}

func TestTokensInEtcd(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	ctx, r := within(t), w.service.Register
	now := time.Date(2026, 1, 2, 3, 4, 5, 600, time.UTC)
	for _, bad := range []struct {
		role cluster.Role
		life time.Duration
	}{{"boss", time.Hour}, {"", time.Hour}, {cluster.RoleServer, 0}, {cluster.RoleServer, MaxTokenLife + 1}} {
		_, _, err := r.CreateToken(ctx, bad.role, bad.life, now)
		wants(t, err, cluster.ExitUsage, "")
	}
	young, one, err := r.CreateToken(ctx, cluster.RoleWorker, time.Minute, now.Add(time.Hour))
	must(t, err)
	old, two, err := r.CreateToken(ctx, cluster.RoleServer, time.Minute, now)
	must(t, err)
	listed, err := r.Tokens(ctx)
	must(t, err)
	one.Hash, two.Hash = "", ""
	if diff := cmp.Diff([]Token{two, one}, listed); diff != "" {
		t.Error(diff)
	}
	records, err := w.service.Etcd.Records(ctx, tokenPrefix)
	must(t, err)
	for _, record := range records {
		if strings.Contains(string(record.Value), young.Secret) || strings.Contains(string(record.Value), old.Secret) {
			t.Error("the cluster keeps the secret")
		}
	}

	admitted := func(text string) error {
		_, _, err := r.token(ctx, text, "w9", cluster.RoleWorker, now.Add(time.Hour))
		return err
	}
	must(t, admitted(young.String()))
	wants(t, admitted("rubbish"), cluster.ExitUsage, "not a join token")
	must(t, r.DeleteToken(ctx, one.ID))
	wants(t, admitted(young.String()), cluster.ExitRefused, "not known here")
	wants(t, r.DeleteToken(ctx, one.ID), cluster.ExitUsage, "there is no token")
	wants(t, r.DeleteToken(ctx, ""), cluster.ExitUsage, "there is no token")
}

func TestCheck(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	w.livesAsLeader(t)
	server, worker := w.token(t, cluster.RoleServer), w.token(t, cluster.RoleWorker)
	late := request(server, "cp2", cluster.RoleServer, "198.18.0.12")
	late.Time = time.Now().Add(-clockLimit - time.Minute)
	for _, test := range []struct {
		name string
		r    Request
		code int
		says string
	}{
		{"a server with a worker's token", request(worker, "cp2", cluster.RoleServer, "198.18.0.12"), cluster.ExitRefused, "it is for a worker, not for a server"},
		{"a stranger's clock is nobody's business", Request{Token: "x"}, cluster.ExitUsage, "not a join token"},
		{"clock", late, cluster.ExitRefused, "the clock of cp2 is off"},
		{"no address", request(server, "cp2", cluster.RoleServer, ""), cluster.ExitUsage, "no address"},
		{"address taken", request(worker, "w2", cluster.RoleWorker, "198.18.0.11"), cluster.ExitUsage, "198.18.0.11"},
		{"address outside", request(worker, "w2", cluster.RoleWorker, "10.0.0.1"), cluster.ExitUsage, "10.0.0.1"},
		{"name", request(worker, "../w2", cluster.RoleWorker, "198.18.0.112"), cluster.ExitUsage, "name"},
		{"role of a known node", request(worker, "cp1", cluster.RoleWorker, "198.18.0.11"), cluster.ExitRefused, "is a server of this cluster, not a worker"},
		{"a node that lives", request(server, "cp1", cluster.RoleServer, "198.18.0.11"), cluster.ExitRefused, "it is alive"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, _, err := w.service.check(within(t), test.r)
			wants(t, err, test.code, test.says)
			_, err = w.service.Join(within(t), test.r)
			wants(t, err, test.code, test.says)
		})
	}
	if _, replaces, err := w.service.check(within(t), request(worker, "w1", cluster.RoleWorker, "198.18.0.150")); err != nil || !replaces {
		t.Errorf("a dead worker cannot be replaced: %v, %v", replaces, err)
	}
	_, err := w.service.Check(within(t), request(worker, "w2", cluster.RoleWorker, "198.18.0.112"))
	wants(t, err, cluster.ExitUsage, "no nonce")
	if keys, urls := w.left(t); len(keys) != 0 || len(urls) != 1 || !cmp.Equal(w.now(t), w.spec) {
		t.Errorf("questions changed something: %q %q", keys, urls)
	}
}

// TestNoServerJoinsWhileOneIsMissing: nobody answers for cp2, which votes as
// far as anybody knows.
func TestNoServerJoinsWhileOneIsMissing(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1) // cp1's agent does not answer
	_, err := w.service.Join(within(t), request(w.token(t, cluster.RoleServer), "cp2", cluster.RoleServer, "198.18.0.12"))
	wants(t, err, cluster.ExitRefused, "while a voter is missing: cp1")
}

// TestWorkerJoins from its first word to its end. It gets certificates that its
// own keys fit, and no secret of anybody.
func TestWorkerJoins(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	token := w.token(t, cluster.RoleWorker)
	keys, err := pki.NewNodeKeys(cluster.RoleWorker)
	must(t, err)
	r := request(token, "w2", cluster.RoleWorker, "198.18.0.112")
	if r.Requests, err = keys.Requests(); err != nil {
		t.Fatal(err)
	}
	got, err := w.service.Join(within(t), r)
	must(t, err)
	node, ok := got.Spec.Node("w2")
	if !ok || node.Address != r.Address || len(got.Secrets) != 0 || got.Initial != (component.InitialCluster{}) {
		t.Fatalf("got %+v, %d secrets, %+v", node, len(got.Secrets), got.Initial)
	}
	if _, err := keys.Files(got.Spec, node, got.Certificates, got.Trust); err != nil {
		t.Errorf("what a worker gets is of no use to it: %v", err)
	}
	tokens, err := w.service.Register.Tokens(within(t))
	if err != nil || tokens[0].UsedBy != "w2" {
		t.Errorf("the token: %+v, %v", tokens, err)
	}
	_, err = w.service.Join(within(t), request(token, "w3", cluster.RoleWorker, "198.18.0.113"))
	wants(t, err, cluster.ExitRefused, "it was used by w2")

	p, err := w.service.Progress(within(t), Report{Name: "w2"})
	if err != nil || p.Done || p.Waits != "its components are not ready" {
		t.Errorf("got %+v, %v", p, err)
	}
	for range 2 { // the command and the agent both ask
		if p, err = w.service.Progress(within(t), Report{Name: "w2", Ready: true}); err != nil || !p.Done {
			t.Errorf("got %+v, %v", p, err)
		}
	}
	wants(t, w.service.Cancel(within(t), r), cluster.ExitRefused, "it was used by w2") // too late
	_, err = w.service.Join(within(t), r)
	wants(t, err, cluster.ExitRefused, "it was used by w2") // a token that was shown once is worth nothing
	if left, _ := w.left(t); len(left) != 0 {
		t.Errorf("its join leaves %q", left)
	}
	if _, ok := w.now(t).Node("w2"); !ok {
		t.Error("it is no node")
	}
}

// TestBadRequestsLeaveNothing: a join that fails after it was written down is
// taken back.
func TestBadRequestsLeaveNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	r := request(w.token(t, cluster.RoleWorker), "w2", cluster.RoleWorker, "198.18.0.112")
	r.Requests = map[string][]byte{"pki/ca": []byte("x")}
	if _, err := w.service.Join(within(t), r); err == nil || !strings.Contains(err.Error(), "cannot sign") {
		t.Fatalf("got %v", err)
	}
	if keys, urls := w.left(t); len(keys) != 0 || len(urls) != 1 || !cmp.Equal(w.now(t), w.spec) {
		t.Errorf("left: %q %q", keys, urls)
	}
}

// TestServerJoins as a learner, is waited for, and gives up.
func TestServerJoins(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	w.livesAsLeader(t)
	token, stranger := w.token(t, cluster.RoleServer), w.token(t, cluster.RoleServer)
	r := request(token, "cp2", cluster.RoleServer, "198.18.0.12")
	join := func() Admission {
		t.Helper()
		got, err := w.service.Join(within(t), r)
		must(t, err)
		return got
	}
	got := join()
	want := component.InitialCluster{Members: "cp1=https://198.18.0.11:2380,cp2=https://198.18.0.12:2380", State: component.InitialExisting}
	if parts := strings.Split(got.Initial.Members, ","); got.Initial.State != want.State || strings.Join(slices.Sorted(slices.Values(parts)), ",") != want.Members {
		t.Errorf("got %+v", got.Initial)
	}
	if diff := cmp.Diff(w.set.Files(), got.Secrets); diff != "" || got.Certificates != nil {
		t.Errorf("a server lacks secrets:\n%s", diff)
	}
	status := w.service.Etcd.Status(within(t))
	if len(status.Members) != 2 || !slices.ContainsFunc(status.Members, func(m cluster.EtcdMember) bool {
		return m.Learner && slices.Equal(m.PeerURLs, []string{"https://198.18.0.12:2380"})
	}) {
		t.Fatalf("members are %+v", status.Members)
	}
	for _, report := range []Report{{Name: "cp2"}, {Name: "cp2", Etcd: &cluster.EtcdStatus{Error: "x"}}} {
		if p, err := w.service.Progress(within(t), report); err != nil || p.Done || p.Waits != "its etcd does not answer yet" {
			t.Errorf("got %+v, %v", p, err)
		}
	}
	learner := slices.IndexFunc(status.Members, func(m cluster.EtcdMember) bool { return m.Learner })
	waiting := Report{Name: "cp2", Etcd: &cluster.EtcdStatus{ID: status.Members[learner].ID, Learner: true, Leader: status.ID, AppliedIndex: 1}}
	if p, err := w.service.Progress(within(t), waiting); err != nil || p.Done || !strings.Contains(p.Waits, "caught up") {
		t.Errorf("got %+v, %v", p, err)
	}
	claim := Report{Name: "cp2", Etcd: &cluster.EtcdStatus{ID: status.ID, Leader: status.ID}}
	if p, err := w.service.Progress(within(t), claim); err != nil || p.Done {
		t.Errorf("a learner that claims to vote is believed: %+v, %v", p, err)
	}

	// Whoever has another token cannot disturb it.
	must(t, w.service.Cancel(within(t), request(stranger, "cp2", cluster.RoleServer, "")))
	_, err := w.service.Join(within(t), request(stranger, "cp2", cluster.RoleServer, "198.18.0.66"))
	wants(t, err, cluster.ExitRefused, "cp2 is joining already")
	if keys, urls := w.left(t); len(keys) != 2 || len(urls) != 2 {
		t.Fatalf("another machine ended the join: %q %q", keys, urls)
	}

	first := got.Initial
	if again := join(); again.Initial != first { // interrupted, run once more
		t.Errorf("got %+v, before %+v", again.Initial, first)
	}
	must(t, w.service.Cancel(within(t), r))
	if keys, urls := w.left(t); len(keys) != 0 || len(urls) != 1 || !cmp.Equal(w.now(t), w.spec) {
		t.Errorf("a join that was given up leaves %q %q", keys, urls)
	}
	_, err = w.service.Progress(within(t), waiting)
	wants(t, err, cluster.ExitRefused, "the join of cp2 was taken back")
}

func TestProgressOfUnknownNames(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 2) // cp2 is in cluster.yaml, but has no member
	_, err := w.service.Progress(within(t), Report{Name: "nobody", Ready: true})
	wants(t, err, cluster.ExitRefused, "was taken back")
	_, err = w.service.Progress(within(t), Report{Name: "cp2", Ready: true})
	wants(t, err, cluster.ExitRefused, "was taken back")
	for _, name := range []string{"cp1", "w1"} {
		if p, err := w.service.Progress(within(t), Report{Name: name}); err != nil || !p.Done {
			t.Errorf("%s: %+v, %v", name, p, err)
		}
	}
}
