package advise

import (
	"slices"
	"strings"
	"testing"

	"kuorum/internal/cluster"
)

// balancedWorld has three servers and the balancers lb1 and lb2. States are theirs.
func balancedWorld(t *testing.T, states ...string) *world {
	t.Helper()
	spec, err := cluster.Parse("cluster.yaml", []byte("apiVersion: kuorum.dev/v1alpha1\nkind: Cluster\nmetadata: {name: test}\nspec: {endpoint: {type: haproxy}}\n"))
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, spec: spec}
	for _, n := range spec.Spec.Nodes {
		w.reports = append(w.reports, cluster.NodeReport{Name: n.Name, Role: n.Role, Address: n.Address, Status: wellNode(spec, n)})
	}
	for i, n := range spec.Balancers() {
		s := w.node(n.Name)
		s.VIP = &cluster.VIPStatus{State: states[i]}
		if states[i] == cluster.VIPActive {
			s.VIP.Holder = n.Address
		}
		s.Components = []cluster.ComponentStatus{
			{Name: "haproxy", Phase: phaseReady, PID: 7, Since: noon()}, {Name: "keepalived", Phase: phaseReady, PID: 8, Since: noon()},
		}
	}
	return w
}

// TestVirtualIPOfBalancers: only the balancer that holds it knows where it is.
func TestVirtualIPOfBalancers(t *testing.T) {
	t.Parallel()
	const active, backup = cluster.VIPActive, cluster.VIPBackup
	for _, test := range []struct {
		name   string
		states []string
		change func(*world)
		want   []string
	}{
		{name: "at one", states: []string{backup, active}},
		{name: "at both", states: []string{active, active}, want: []string{"critical vip-twice"}},
		{name: "at none", states: []string{backup, backup}, want: []string{"critical vip-nobody"}},
		{name: "perhaps at one that is silent", states: []string{backup, backup}, change: func(w *world) { w.lose("lb2") }, want: []string{"warning node-unreachable lb2"}},
		{name: "at none, since there is no server", states: []string{backup, backup}, change: func(w *world) {
			w.phase("lb1", phaseStarting, "haproxy")
			w.phase("lb2", phaseStarting, "haproxy")
			for _, node := range []string{"cp1", "cp2", "cp3"} {
				w.phase(node, phaseStarting, "kube-apiserver")
			}
		}, want: []string{"critical component-down cp1", "critical component-down cp2", "critical component-down cp3"}},
		{name: "at one, and the other is silent", states: []string{active, backup}, change: func(w *world) { w.lose("lb2") }, want: []string{"warning node-unreachable lb2"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			w := balancedWorld(t, test.states...)
			if test.change != nil {
				test.change(w)
			}
			var got []string
			for _, f := range w.review().Findings {
				got = append(got, strings.TrimSpace(string(f.Severity)+" "+f.Code+" "+f.Node))
				if f.Code == codeVIPNobody && f.Do != "kuorum logs lb1 keepalived" {
					t.Errorf("it says to do %q", f.Do)
				}
			}
			slices.Sort(got)
			if !slices.Equal(got, test.want) {
				t.Errorf("found %q, want %q", got, test.want)
			}
		})
	}
}
