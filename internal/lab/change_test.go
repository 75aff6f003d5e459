package lab

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"kuorum/internal/cluster"
	"kuorum/internal/fault"
)

// testDaemon is a lab's process as far as it goes without namespaces: its
// machines have never been switched on.
func testDaemon(t *testing.T, servers, workers int) (Store, *daemon) {
	t.Helper()
	s := Store{Root: t.TempDir(), Exe: "/kuorum"}
	l, err := s.create(nil, newSpec(t, servers, workers), 26443, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	d := &daemon{lab: l, log: slog.New(slog.DiscardHandler)}
	if d.balancer, err = newBalancer(l, d.log); err != nil {
		t.Fatal(err)
	}
	noSwitch := func(context.Context, string) error { return errors.New("there is no switch") }
	if d.faults, err = fault.Open(l.path("faults.jsonl"), d, noSwitch, d.log); err != nil {
		t.Fatal(err)
	}
	for _, n := range l.Spec.Spec.Nodes {
		m, err := newMachine(l, n, nil)
		if err != nil {
			t.Fatal(err)
		}
		d.machines = append(d.machines, m)
	}
	return s, d
}

func (d *daemon) names() string {
	var names []string
	for _, m := range d.list() {
		names = append(names, m.Node.Name)
	}
	return strings.Join(names, " ")
}

func namesOf(spec *cluster.Spec) string {
	var names []string
	for _, n := range spec.Spec.Nodes {
		names = append(names, n.Name)
	}
	return strings.Join(names, " ")
}

// TestRemovedMachine is gone from the lab's file, its list, everybody's hosts
// and the disk; asking again is no error.
func TestRemovedMachine(t *testing.T) {
	s, d := testDaemon(t, 2, 1)
	for range 2 {
		if err := d.remove(t.Context(), "cp2"); err != nil {
			t.Fatal(err)
		}
		opened, err := s.Open("one")
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(opened.Spec, d.lab.Spec); diff != "" || namesOf(opened.Spec) != "cp1 w1" || d.names() != "cp1 w1" {
			t.Errorf("file has %s, process %s:\n%s", namesOf(opened.Spec), d.names(), diff)
		}
		for _, m := range d.list() {
			if strings.Contains(m.plan.Hosts, "cp2") || !strings.Contains(m.plan.Hosts, "w1") {
				t.Errorf("%s knows\n%s", m.Node.Name, m.plan.Hosts)
			}
		}
		if _, err := os.Stat(d.lab.machineDir("cp2")); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("its disk: %v", err)
		}
	}
	if err := d.remove(t.Context(), "cp1"); err == nil {
		t.Error("the last server was removed")
	}
	if d.names() != "cp1 w1" || namesOf(d.lab.Spec) != "cp1 w1" {
		t.Errorf("a refusal did something: %s, %s", d.names(), namesOf(d.lab.Spec))
	}
}

// TestInterruptedRemoval can be run once more: a machine whose name could not
// be taken out of the lab's file is still there to be removed.
func TestInterruptedRemoval(t *testing.T) {
	s, d := testDaemon(t, 1, 1)
	file := d.lab.path("cluster.yaml")
	if err := errors.Join(os.Rename(file, file+".away"), os.MkdirAll(filepath.Join(file, "x"), 0o755)); err != nil {
		t.Fatal(err)
	}
	if err := d.remove(t.Context(), "w1"); err == nil {
		t.Fatal("the file was written over a directory")
	}
	if err := errors.Join(os.RemoveAll(file), os.Rename(file+".away", file)); err != nil {
		t.Fatal(err)
	}
	if err := d.remove(t.Context(), "w1"); err != nil {
		t.Fatal(err)
	}
	opened, err := s.Open("one")
	if err != nil || namesOf(opened.Spec) != "cp1" || d.names() != "cp1" {
		t.Errorf("%v: file has %s, process %s", err, namesOf(opened.Spec), d.names())
	}
}

// TestRefusedAddition changes nothing.
func TestRefusedAddition(t *testing.T) {
	s, d := testDaemon(t, 1, 1)
	marker := filepath.Join(d.lab.machineDir("w1"), "marker")
	if err := os.WriteFile(marker, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, n := range []cluster.Node{
		{Name: "w1", Role: cluster.RoleWorker},
		{Name: "w2", Role: "boss"},
		{Name: "../w2", Role: cluster.RoleWorker},
		{Name: "w2", Role: cluster.RoleWorker, Address: "198.18.0.11"},
		{},
	} {
		if _, err := d.add(context.WithoutCancel(t.Context()), n); err == nil {
			t.Errorf("%+v was added", n)
		}
	}
	opened, err := s.Open("one")
	if err != nil || namesOf(opened.Spec) != "cp1 w1" || d.names() != "cp1 w1" || namesOf(d.lab.Spec) != "cp1 w1" {
		t.Errorf("%v: file has %s, process %s", err, namesOf(opened.Spec), d.names())
	}
	if _, err := os.Stat(marker); err != nil {
		t.Errorf("the disk of w1 was cleared: %v", err)
	}
}

// TestChangedLab: everybody in the lab's process goes by the new Spec, and the
// balancer refuses nothing of it.
func TestChangedLab(t *testing.T) {
	s, d := testDaemon(t, 1, 0)
	before := d.lab.Spec
	grown, err := before.With(cluster.Node{Name: "cp2", Role: cluster.RoleServer})
	if err != nil {
		t.Fatal(err)
	}
	for _, spec := range []*cluster.Spec{grown, before} {
		if err := d.change(spec); err != nil {
			t.Fatal(err)
		}
		opened, err := s.Open("one")
		if err != nil || !cmp.Equal(opened.Spec, spec) || d.lab.Spec != spec || d.list()[0].plan.Hosts != hosts(spec) {
			t.Errorf("%v: file has %s, process %s", err, namesOf(opened.Spec), namesOf(d.lab.Spec))
		}
	}
}

// TestSpares: machines that are no nodes are none of the cluster's.
func TestSpares(t *testing.T) {
	_, d := testDaemon(t, 1, 2)
	l := d.lab
	if got := namesOf(l.Nodes()); got != "cp1 w1 w2" {
		t.Errorf("nodes are %s", got)
	}
	if err := os.Remove(filepath.Join(l.machineDir("w1"), "etc/kuorum/node")); err != nil {
		t.Fatal(err)
	}
	if got := namesOf(l.Nodes()); got != "cp1 w2" {
		t.Errorf("nodes are %s", got)
	}
	if got := namesOf(l.Spec); got != "cp1 w1 w2" {
		t.Errorf("the lab forgot a machine: %s", got)
	}
	status := d.status(t.Context()) // all are off, so nobody is asked
	var node []bool
	for _, m := range status.Machines {
		node = append(node, m.Node)
		if m.Power != PowerOff {
			t.Errorf("%s is %s", m.Name, m.Power)
		}
	}
	if diff := cmp.Diff([]bool{true, false, true}, node); diff != "" {
		t.Error(diff)
	}
	status.Machines[2].Power, status.Machines[2].Error = PowerOn, "its agent does not run"
	want := []cluster.NodeReport{
		{Name: "cp1", Role: cluster.RoleServer, Address: "198.18.0.11", Error: "the machine is off"},
		{Name: "w2", Role: cluster.RoleWorker, Address: "198.18.0.102", Error: "its agent does not run"},
	}
	if diff := cmp.Diff(want, status.Reports()); diff != "" {
		t.Error(diff)
	}
}

// TestSetAddress: the next start of a machine has the address, and all in the
// lab who go by it; the node on its disk does not know.
func TestSetAddress(t *testing.T) {
	s, d := testDaemon(t, 2, 1)
	on := d.list()[0]
	on.init = exec.Command("true")
	disk := filepath.Join(d.lab.machineDir("cp2"), "etc/kuorum/cluster.yaml")
	before, err := os.ReadFile(disk)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ name, address, says string }{
		{"cp1", "198.18.0.61", "is on"},
		{"cp9", "198.18.0.61", "no machine"},
		{"cp2", "198.18.0.11", "198.18.0.11"},
		{"cp2", "198.18.0.1", "reserved"},
		{"cp2", "10.0.0.1", "198.18.0.0/24"},
		{"cp2", "there", "address"},
	} {
		if err := d.setAddress(t.Context(), test.name, test.address); err == nil || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s at %s: %v", test.name, test.address, err)
		}
	}
	unchanged, err := s.Open("one")
	if err != nil {
		t.Fatal(err)
	}
	if n, _ := unchanged.Spec.Node("cp2"); n.Address != "198.18.0.12" || d.list()[1].at().Address != n.Address {
		t.Errorf("a refusal did something: %+v", n)
	}
	if err := d.setAddress(t.Context(), "cp2", "198.18.0.62"); err != nil {
		t.Fatal(err)
	}
	opened, err := s.Open("one")
	if err != nil {
		t.Fatal(err)
	}
	n, _ := opened.Spec.Node("cp2")
	m := d.list()[1]
	if n.Address != "198.18.0.62" || m.at().Address != n.Address || m.port != "mc612003e" || !strings.Contains(d.list()[2].plan.Hosts, "198.18.0.62 cp2\n") {
		t.Errorf("it is at %s, its machine %+v, the others know\n%s", n.Address, m.at(), d.list()[2].plan.Hosts)
	}
	if after, err := os.ReadFile(disk); err != nil || string(after) != string(before) {
		t.Errorf("the node's own file has changed, %v", err)
	}
}
