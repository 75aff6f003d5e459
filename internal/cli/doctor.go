package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"kuorum/internal/agent"
	"kuorum/internal/cluster"
	"kuorum/internal/component"
	"kuorum/internal/doctor"
	"kuorum/internal/host"
	"kuorum/internal/lab"
	"kuorum/internal/membership"
)

// What doctor takes this machine for.
const (
	asNode    = "node"
	asMachine = "machine to be a server" // --pre
	asHost    = "host of labs"
)

type doctorOptions struct {
	output  string
	pre     bool
	support string
}

// doctorDocument is what -o json and yaml print.
type doctorDocument struct {
	APIVersion string         `json:"apiVersion"`
	Kind       string         `json:"kind"`
	Name       string         `json:"name"` // the machine's
	As         string         `json:"as"`   // what it was checked as
	Time       time.Time      `json:"time"`
	Checks     []doctor.Check `json:"checks"`
	Hint       string         `json:"hint,omitempty"` // what else to check, and how
}

func (a *app) doctorCommand() *cobra.Command {
	var o doctorOptions
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Measure whether this machine is good enough, and what is wrong with it",
		Long: `Measures this machine: kernel, programs, memory, disk, how long etcd would wait for it
(200 writes), clock. On a node also its ports, the way to every other server, the clocks of
all nodes, and what etcd's timers could be; with --pre whether the machine could become a
server: nothing has to be installed there but kuorum.

--support writes an archive for whoever is to help: what doctor has measured, status,
versions, configuration and the ends of the logs. It reads no key, kubeconfig, token or
audit log, and replaces lines that look like a secret. On a lab's host it has all machines.

Exit codes: 0 good, 3 something to be warned of, 1 something does not work.`,
		Example: `  kuorum doctor                          this host, or this node
  kuorum doctor --pre                    before it becomes a server
  kuorum lab console cp1 -- kuorum doctor    a machine of a lab
  kuorum doctor -o json | jq '.checks[] | select(.state != "ok")'
  kuorum doctor --support kuorum-support.tar.gz`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.doctor(cmd.Context(), o) },
	}
	outputFlag(cmd, &o.output)
	cmd.Flags().BoolVar(&o.pre, "pre", false, "check a machine that is to become a server")
	cmd.Flags().StringVar(&o.support, "support", "", "write an archive without secrets to this file (tar.gz)")
	return cmd
}

func (a *app) doctor(ctx context.Context, o doctorOptions) error {
	if !slices.Contains([]string{"table", "json", "yaml"}, o.output) {
		return usage("unknown output %q: table, json or yaml", o.output)
	}
	p, err := a.patient(o.pre)
	if err != nil {
		return err
	}
	checks, err := p.examine(ctx)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		return err
	}
	name, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("cannot find this machine's name: %w", err)
	}
	d := doctorDocument{
		APIVersion: cluster.APIVersion, Kind: "DoctorReport", Name: name, As: p.as,
		Time: time.Now().UTC(), Checks: checks, Hint: p.hint(),
	}
	if o.support != "" {
		if err := a.writeSupport(ctx, o.support, p, d); err != nil {
			return err
		}
	}
	if err := a.printDoctor(d, o.output); err != nil {
		return err
	}
	if code := doctor.ExitCode(checks); code != cluster.ExitOK {
		return verdict(code)
	}
	return nil
}

// patient is this machine, and what is known of it.
type patient struct {
	as   string
	dir  string // of kuorum's data
	need doctor.Need
	spec *cluster.Spec // of the cluster, or the default one
	self cluster.Node
	lab  *lab.Lab // on a host with one that was chosen
	ask  *target  // on a node, and where a lab runs
}

// patient finds out what this machine is.
func (a *app) patient(pre bool) (patient, error) {
	disk, err := membership.Read(component.EtcDir)
	switch {
	case errors.Is(err, membership.ErrNoNode) && pre:
		return a.machineToBe()
	case errors.Is(err, membership.ErrNoNode):
		return a.labHost()
	case err != nil:
		return patient{}, &cluster.Problem{What: "cannot read this node's own files", Err: err, Do: "sudo kuorum doctor"}
	case pre:
		return patient{}, &cluster.Problem{
			What: "--pre is for a machine that is no node yet", Why: "this one is node " + disk.Name + " of cluster " + disk.Spec.Metadata.Name,
			Do: "kuorum doctor", Exit: cluster.ExitUsage,
		}
	}
	t, err := nodeTarget(component.EtcDir)
	if err != nil {
		return patient{}, err
	}
	self, _ := disk.Spec.Node(disk.Name)
	return patient{as: asNode, dir: component.VarDir, need: doctor.RunningNeed("this node"), spec: disk.Spec, self: self, ask: &t}, nil
}

func (a *app) machineToBe() (patient, error) {
	store, err := a.store()
	if err != nil {
		return patient{}, err
	}
	spec, err := cluster.New("kuorum", 1, 0)
	return patient{as: asMachine, dir: store.Root, need: doctor.ServerNeed(), spec: spec, self: cluster.Node{Role: cluster.RoleServer}}, err
}

// labHost is a machine for labs, with the one that was chosen, or could be.
func (a *app) labHost() (patient, error) {
	store, err := a.store()
	if err != nil {
		return patient{}, err
	}
	p := patient{as: asHost, dir: store.Root}
	l, err := a.open()
	if err == nil {
		p.lab, p.spec = l, l.Nodes()
	} else if a.cluster != "" || a.process.Env("KUORUM_CLUSTER") != "" {
		return patient{}, err
	} else if p.spec, err = cluster.New("kuorum", 3, 0); err != nil {
		return patient{}, err
	}
	p.need = doctor.LabNeed(p.spec)
	if p.lab == nil {
		return p, nil
	}
	if _, running := l.Running(); running {
		t := labTarget(l)
		p.need, p.ask = doctor.RunningNeed("this lab"), &t
	}
	return p, nil
}

func (p patient) hint() string {
	if p.lab == nil || p.ask == nil {
		return ""
	}
	return fmt.Sprintf("its machines: kuorum -c %s lab console %s -- kuorum doctor", p.lab.Name, p.spec.Spec.Nodes[0].Name)
}

// examine measures everything; it blocks for seconds.
func (p patient) examine(ctx context.Context) ([]doctor.Check, error) {
	facts, err := doctor.Measure(ctx, p.dir)
	if err != nil {
		return nil, err
	}
	checks := append(facts.System(), doctor.VXLAN(host.TryVXLAN()))
	checks = append(checks, facts.Space(p.need)...)
	checks = append(checks, doctor.OverlayDisk(facts.Disk.Dir, host.TryOverlay(facts.Disk.Dir)))
	fsync, err := doctor.MeasureFsync(ctx, p.dir)
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	checks = append(checks, doctor.DiskSpeed(fsync, err, time.Duration(p.spec.Spec.Etcd.ElectionTimeout)))
	checks = append(checks, doctor.Clock(host.ReadClock()))
	checks = append(checks, facts.More(p.need)...)
	if p.needsBalancer() {
		checks = append(checks, doctor.Balancer())
	}
	switch p.as {
	case asMachine:
		ports := p.ports()
		taken, err := doctor.TryPorts(ctx, ports)
		checks = append(checks, doctor.PortsFree(ports, taken, err), facts.VirtualIP(p.spec.Spec.Endpoint))
	case asNode:
		if slices.ContainsFunc(p.spec.VIPHolders(), func(n cluster.Node) bool { return n.Name == p.self.Name }) {
			checks = append(checks, facts.VirtualIP(p.spec.Spec.Endpoint))
		}
		more, err := p.examineNode(ctx, fsync)
		return append(checks, more...), err
	}
	return checks, nil
}

// needsBalancer tells whether the machine, or one of a lab on it, is a balancer.
func (p patient) needsBalancer() bool {
	return p.self.Role == cluster.RoleBalancer || p.lab != nil && len(p.spec.Balancers()) > 0
}

// examineNode looks at what only a node has: ports that are held, and others.
func (p patient) examineNode(ctx context.Context, fsync doctor.Fsync) ([]doctor.Check, error) {
	listeners, err := host.Listeners()
	checks := []doctor.Check{doctor.PortsHeld(p.ports(), listeners, err)}
	reports, err := p.ask.reports(ctx)
	if err != nil {
		return nil, err
	}
	ways, peers := p.measureWays(ctx)
	etcd := p.spec.Spec.Etcd
	checks = append(checks, doctor.Network(ways, time.Duration(etcd.Heartbeat)), doctor.Offsets(reports, p.self.Name))
	if p.spec.HasMember(p.self) {
		checks = append(checks, doctor.Timers(etcd, doctor.LongestRTT(peers), doctor.SlowestFsync(fsync.P99, reports)))
	}
	return checks, nil
}

// measureWays goes to the servers, and to the etcd nodes where there are some.
// Those to the peers of the node's own member, if it has one, are returned once
// more: the first port of each is the one whose delay counts for etcd.
func (p patient) measureWays(ctx context.Context) (all, peers []doctor.Way) {
	others := func(nodes []cluster.Node) []cluster.Node {
		return slices.DeleteFunc(nodes, func(n cluster.Node) bool { return n.Name == p.self.Name })
	}
	servers := []int{component.PortAPIServer, agent.Port}
	switch {
	case p.self.Role == cluster.RoleEtcd: // it does not use the API
		servers = []int{agent.Port}
	case p.spec.HasMember(p.self):
		servers = []int{component.PortEtcdPeer, agent.Port, component.PortAPIServer}
	}
	ways := doctor.MeasureWays(ctx, others(p.spec.Servers()), servers)
	if p.spec.EtcdExternal() && p.self.Role == cluster.RoleServer {
		return append(ways, measureEndpoints(ctx, p.spec)...), ways
	}
	if !p.spec.EtcdApart() || !p.self.Role.MayVote() {
		return ways, ways
	}
	port := component.PortEtcdClient
	if p.self.Role == cluster.RoleEtcd {
		port = component.PortEtcdPeer
	}
	peers = doctor.MeasureWays(ctx, others(p.spec.EtcdNodes()), []int{port})
	return append(ways, peers...), peers
}

func (p patient) ports() []doctor.Port {
	var list []doctor.Port
	for _, port := range component.Ports(p.spec, p.self) {
		list = append(list, doctor.Port(port))
	}
	return list
}

func (a *app) printDoctor(d doctorDocument, output string) error {
	if output != "table" {
		return a.printData(d, output)
	}
	var text strings.Builder
	writeDoctor(&text, d)
	_, err := io.WriteString(a.process.Out, text.String())
	return err
}

func writeDoctor(w io.Writer, d doctorDocument) {
	t := tabwriter.NewWriter(w, 0, 8, 3, ' ', 0)
	fmt.Fprintln(t, "CHECK\tSTATE\tMEASURED")
	for _, c := range d.Checks {
		fmt.Fprintf(t, "%s\t%s\t%s\n", c.Name, c.State, c.Measured)
	}
	_ = t.Flush() // into memory
	for _, c := range d.Checks {
		if c.What == "" {
			continue
		}
		word := string(c.State)
		if c.State == doctor.StateOK {
			word = "remark"
		}
		fmt.Fprintf(w, "\n%s: %s (%s)\n  why: %s\n", word, c.What, c.Name, c.Why)
		if c.Do != "" {
			fmt.Fprintf(w, "  do:  %s\n", c.Do)
		}
	}
	fmt.Fprintf(w, "\n%s (%s): %s\n", d.Name, d.As, countText(d.Checks))
	if d.Hint != "" {
		fmt.Fprintln(w, d.Hint)
	}
}

func countText(checks []doctor.Check) string {
	var parts []string
	for _, state := range []doctor.State{doctor.StateOK, doctor.StateWarning, doctor.StateFailed, doctor.StateSkipped} {
		if n := doctor.Count(checks, state); n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, state))
		}
	}
	return strings.Join(parts, ", ")
}
