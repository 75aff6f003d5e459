package membership

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"kuorum/internal/cluster"
	"kuorum/internal/etcd"
)

// TestDeathBetweenSteps: the server that lets a machine in dies after each of
// its steps, and so does the one that takes the join back. The sweep leaves
// nothing of it.
func TestDeathBetweenSteps(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	w.livesAsLeader(t)
	s := w.service
	r := request(w.token(t, cluster.RoleServer), "cp2", cluster.RoleServer, "198.18.0.12")
	for _, steps := range []int{1, 2, 3} {
		lease, err := s.Etcd.Grant(within(t), joinLife)
		must(t, err)
		spec, err := s.enter(within(t), attempt{Request: r, lease: lease})
		must(t, err)
		cp2, _ := spec.Node("cp2")
		if steps > 1 {
			must(t, s.addLearner(within(t), peerURL(cp2), lease))
		}
		if steps > 2 {
			joins, _, err := s.Register.joins(within(t))
			must(t, err)
			_, err = s.removeLearner(within(t), joins["cp2"])
			must(t, err)
		}
		must(t, s.sweep(within(t)))
		if keys, _ := w.left(t); len(keys) != 2 {
			t.Fatalf("after step %d it was taken back while it lived: %q", steps, keys)
		}
		w.falls(t, "cp2")
		must(t, s.sweep(within(t)))
		if keys, urls := w.left(t); len(keys) != 0 || len(urls) != 1 || !cmp.Equal(w.now(t), w.spec) {
			t.Errorf("after step %d: left %q %q", steps, keys, urls)
		}
	}
}

// TestVoterStays: a join that came to its end, of which nobody wrote that down,
// is forgotten and not undone.
func TestVoterStays(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	write := func() {
		t.Helper()
		lease, err := w.service.Etcd.Grant(within(t), joinLife)
		must(t, err)
		cp1 := w.spec.Spec.Nodes[0]
		record, err := encode(join{Name: "cp1", Role: cp1.Role, Address: cp1.Address, PeerURL: peerURL(cp1), Lease: lease})
		must(t, err)
		_, err = w.service.Etcd.Commit(within(t), "test", etcd.Change{Key: joinPrefix + "cp1", Value: record})
		must(t, err)
	}
	for what, end := range map[string]func() error{
		"sweep": func() error { return w.service.sweep(within(t)) },
		"report": func() error {
			status := w.service.Etcd.Status(within(t))
			p, err := w.service.Progress(within(t), Report{Name: "cp1", Etcd: &status})
			if err == nil && !p.Done {
				err = fmt.Errorf("it waits: %s", p.Waits)
			}
			return err
		},
	} {
		write()
		if err := end(); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if keys, urls := w.left(t); len(keys) != 0 || len(urls) != 1 || !cmp.Equal(w.now(t), w.spec) {
			t.Errorf("%s: left %q %q", what, keys, urls)
		}
	}
}

// TestDeadServerIsReplaced by a machine at another address, which then does not
// arrive: it must not hear that it has joined because its name is known.
func TestDeadServerIsReplaced(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 2)
	w.livesAsLeader(t)
	_, err := w.service.Etcd.AddLearner(within(t), "https://198.18.0.12:2380") // the dead one's
	must(t, err)
	r := request(w.token(t, cluster.RoleServer), "cp2", cluster.RoleServer, "198.18.0.60")
	got, err := w.service.Join(within(t), r)
	must(t, err)
	if n, _ := got.Spec.Node("cp2"); n.Address != "198.18.0.60" || !strings.Contains(got.Initial.Members, "cp2=https://198.18.0.60:2380") || strings.Contains(got.Initial.Members, "198.18.0.12") {
		t.Errorf("got %+v, %s", n, got.Initial.Members)
	}
	w.falls(t, "cp2")
	must(t, w.service.sweep(within(t)))
	keys, urls := w.left(t)
	if diff := cmp.Diff(w.spec, w.now(t)); diff != "" || len(keys) != 0 || len(urls) != 1 {
		t.Errorf("left %q %q\n%s", keys, urls, diff)
	}
	_, err = w.service.Progress(within(t), Report{Name: "cp2", Ready: true})
	wants(t, err, cluster.ExitRefused, "the join of cp2 was taken back")
}

// TestOneTokenOneNode: of several machines with one token, all at once, one
// gets in.
func TestOneTokenOneNode(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	s, token := w.service, w.token(t, cluster.RoleWorker)
	ctx, lease := within(t), int64(0)
	lease, err := s.Etcd.Grant(ctx, joinLife)
	must(t, err)
	const machines = 5
	got := make([]error, machines)
	enterAll(ctx, s, lease, func(i int) (Request, *error) {
		return request(token, fmt.Sprintf("x%d", i), cluster.RoleWorker, fmt.Sprintf("198.18.0.%d", 120+i)), &got[i]
	}, machines)
	in := 0
	for _, err := range got {
		if err == nil {
			in++
			continue
		}
		wants(t, err, cluster.ExitRefused, "it was used by x")
	}
	joins, _, err := s.Register.joins(ctx)
	if err != nil || in != 1 || len(joins) != 1 || len(w.now(t).Workers()) != 2 {
		t.Errorf("%d were told that they are in, %d are: %v", in, len(joins), err)
	}
}

// TestOneNameOneNode: of several machines of one name, each with a token of its
// own, one gets in, and the others hear why not.
func TestOneNameOneNode(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	s, ctx := w.service, within(t)
	lease, err := s.Etcd.Grant(ctx, joinLife)
	must(t, err)
	const machines = 3
	var tokens []string
	for range machines {
		tokens = append(tokens, w.token(t, cluster.RoleWorker))
	}
	got := make([]error, machines)
	enterAll(ctx, s, lease, func(i int) (Request, *error) {
		return request(tokens[i], "x", cluster.RoleWorker, fmt.Sprintf("198.18.0.%d", 120+i)), &got[i]
	}, machines)
	in := 0
	for _, err := range got {
		if err == nil {
			in++
			continue
		}
		wants(t, err, cluster.ExitRefused, "x is joining already")
	}
	if in != 1 {
		t.Errorf("%d are in: %v", in, errors.Join(got...))
	}
}

func enterAll(ctx context.Context, s *Service, lease int64, machine func(int) (Request, *error), count int) {
	var all sync.WaitGroup
	for i := range count {
		all.Go(func() {
			r, got := machine(i)
			_, *got = s.enter(ctx, attempt{Request: r, lease: lease})
		})
	}
	all.Wait()
}
