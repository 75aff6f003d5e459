//go:build lab

package lab_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestHAProxyEndpoint: two machines with HAProxy and keepalived hold the address of the
// API, whichever of them fails, and follow the servers and the authorities by
// themselves, with the connections that they have.
func TestHAProxyEndpoint(t *testing.T) {
	file := filepath.Join(t.TempDir(), "cluster.yaml")
	text := "apiVersion: kuorum.dev/v1alpha1\nkind: Cluster\nmetadata: {name: lb}\nspec: {servers: 1, endpoint: {type: haproxy}}\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	l := ownLab(t, "lb", "-f", file)
	l.awaitReady(t)
	if err := l.ask(t, "cp1"); err != nil {
		t.Fatal(err)
	}
	t.Run("moves by order", l.movesAmongBalancers)
	for _, what := range []string{"vip/haproxy", "vip/keepalived", "vip"} {
		t.Run("loses "+what, func(t *testing.T) { l.losesBalancer(t, what) })
	}
	t.Run("a server comes and goes", l.balancersFollow)
	t.Run("a balancer comes and goes", l.balancerComesAndGoes)
	t.Run("new authorities", func(t *testing.T) {
		before := l.balancerPIDs(t)
		l.run(t, "certs", "rotate-ca")
		l.awaitReady(t)
		if err := l.ask(t, "cp1"); err != nil {
			t.Error(err)
		}
		if after := l.balancerPIDs(t); after != before {
			t.Errorf("%s became %s", before, after)
		}
		l.calm(t)
	})
}

// balancers are the machines of that lab which hold the address.
func balancers() []string { return []string{"lb1", "lb2"} }

func otherBalancer(name string) string {
	return balancers()[1-slices.Index(balancers(), name)]
}

func (l *lab) balancerPIDs(t *testing.T) string {
	t.Helper()
	return fmt.Sprint(l.machine(t, "lb1").pids(), l.machine(t, "lb2").pids())
}

// calm is when the status finds nothing wrong, but for what one server means. A lease of
// a process that was replaced lasts for up to 20 s.
func (l *lab) calm(t *testing.T) {
	t.Helper()
	eventually(t, 30*time.Second, func() error {
		for _, cause := range l.status(t).causes() {
			if !strings.HasPrefix(cause, "etcd-single") && !strings.HasPrefix(cause, "etcd-even") {
				return fmt.Errorf("the status has %q", cause)
			}
		}
		return nil
	})
}

func (l *lab) movesAmongBalancers(t *testing.T) {
	l.calm(t)
	for range 2 {
		holder := l.holder(t, balancers()...)
		heir := otherBalancer(holder)
		if out := l.run(t, "leader"); !strings.Contains(out[strings.Index(out, "vip"):], holder) {
			t.Errorf("it is at %s, and kuorum leader says\n%s", holder, out)
		}
		l.run(t, "leader", "move", "vip", heir)
		if now := l.holder(t, balancers()...); now != heir {
			t.Errorf("moved to %s, and it is at %s", heir, now)
		}
		if err := l.ask(t, "cp1"); err != nil {
			t.Error(err)
		}
		l.awaitChange(t, "vip", change{From: holder, To: heir, Why: "handed over by order"})
	}
	if r := try(t, "-c", l.name, "leader", "move", "vip", "cp1"); r.code != 2 || !strings.Contains(r.talk, "lb1, lb2") {
		t.Errorf("moving it to a server ends with %d: %s", r.code, r.talk)
	}
}

// losesBalancer takes a program, or all, from the balancer that has the address.
func (l *lab) losesBalancer(t *testing.T, what string) {
	holder := l.holder(t, balancers()...)
	l.run(t, "fault", "kill", what)
	start := time.Now()
	eventually(t, 10*time.Second, func() error { return l.ask(t, "cp1") })
	t.Logf("the API answers after %v, as the commands take it", time.Since(start).Round(time.Millisecond))
	if what == "vip" {
		if now := l.holder(t, otherBalancer(holder)); now == holder {
			t.Errorf("it is at %s", now)
		}
		l.run(t, "lab", "start", holder)
	}
	l.awaitReady(t)
	l.holder(t, balancers()...)
	l.calm(t)
}

// balancerComesAndGoes: one that joins does not take the address from the one that has
// it, and one that is removed leaves it to the others.
func (l *lab) balancerComesAndGoes(t *testing.T) {
	before, first := l.balancerPIDs(t), l.holder(t, balancers()...)
	ended := l.pastChanges(t, "vip")
	l.run(t, "lab", "add", "--role", "balancer")
	all := append(balancers(), "lb3")
	if now, moves := l.holder(t, all...), l.pastChanges(t, "vip")[len(ended):]; now != first || len(moves) > 0 {
		t.Errorf("it was at %s and is at %s, after %+v", first, now, moves)
	}
	l.run(t, "leader", "move", "vip", "lb3")
	if now := l.holder(t, all...); now != "lb3" {
		t.Errorf("it was moved to lb3 and is at %s", now)
	}
	l.run(t, "lab", "remove", "lb3")
	l.holder(t, balancers()...)
	if err := l.ask(t, "cp1"); err != nil {
		t.Error(err)
	}
	if after := l.balancerPIDs(t); after != before {
		t.Errorf("%s became %s", before, after)
	}
	l.calm(t)
}

// pastChanges are who led something before, the oldest first.
func (l *lab) pastChanges(t *testing.T, what string) []change {
	t.Helper()
	var list struct{ Items []change }
	if err := json.Unmarshal([]byte(l.run(t, "leader", "--history", what, "-o", "json")), &list); err != nil {
		t.Fatal(err)
	}
	return list.Items
}

// balancersFollow: a watch through the address goes on, on its connection, while a server
// comes; one that has gone is asked no more; and HAProxy and keepalived are the same
// processes.
func (l *lab) balancersFollow(t *testing.T) {
	before := l.balancerPIDs(t)
	leads := func(want int) {
		t.Helper()
		for _, name := range balancers() {
			eventually(t, 15*time.Second, func() error { // its agent asks every 5 s
				text := l.on(t, name, "cat", "/etc/kuorum/components/haproxy.cfg")
				if got := strings.Count(text, "\n    server cp"); got != want {
					return fmt.Errorf("HAProxy of %s leads to %d servers, want %d", name, got, want)
				}
				return nil
			})
		}
	}
	_, end := l.underWrites(t, "balancers")
	watch := throughVIP(l, "cp1", "get", "configmaps", "--watch", "--output-watch-events")
	if err := untilSaid(t, watch, "", "ADDED", func() { l.run(t, "lab", "add", "cp2") }); err != nil {
		t.Error(err)
	}
	end()
	leads(2)
	if err := l.ask(t, "cp2"); err != nil {
		t.Error(err)
	}
	l.run(t, "lab", "remove", "cp2")
	leads(1)
	for range 20 {
		if err := l.ask(t, "cp1"); err != nil {
			t.Error(err)
		}
	}
	if after := l.balancerPIDs(t); after != before {
		t.Errorf("%s became %s", before, after)
	}
	l.calm(t)
}
