// Package node is the life of one machine of a cluster: its agent reads the
// node's state from disk, writes the configuration of its components, starts
// them in order and keeps them running. The agent needs no other machine, no
// etcd quorum and no API to do so.
package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"kuorum/internal/agent"
	"kuorum/internal/cluster"
	"kuorum/internal/component"
	"kuorum/internal/history"
	"kuorum/internal/host"
	"kuorum/internal/keyring"
	"kuorum/internal/loadbalancer"
	"kuorum/internal/membership"
	"kuorum/internal/supervise"
)

// Options are what an agent cannot read from the node's disk.
type Options struct {
	Version  string
	Kuorum   string // path of our own program, for the components that are ours
	Bundle   string // directory of the unpacked bundle
	Hostname string // the kernel's, which should be the node's; empty: it is
	// Machines of a lab share this computer, this one included; 0: it is the node's.
	Machines int
	Log      *slog.Logger
	// Stop, when closed, makes the agent stop the node's components in
	// reverse order and return. Ending the context of Run instead leaves them
	// running for the next agent.
	Stop <-chan struct{}
}

// Agent runs one node.
type Agent struct {
	options    Options
	etc        string            // the directory of the node's files
	machine    component.Machine // its Spec is that of the start, see spec
	components []component.Component
	supervisor *supervise.Supervisor
	agents     *agent.Client // asks the others
	server     *server       // nil on a node that is none
	member     *member       // nil on a node without an etcd member
	started    time.Time
	place      place
	detour     string              // the rules that were loaded last
	book       *history.Book       // who leads, as seen from here
	vip        *loadbalancer.Watch // on balancers
	loaded     map[string]string   // digests of what components read when they are told to, by their names
	refused    bool                // some did not take their files as the agent began

	adopting    sync.Mutex
	renewing    sync.Mutex
	spec        atomic.Pointer[cluster.Spec] // as the cluster has it
	stale       atomic.Pointer[[]string]     // components that run as an earlier cluster.yaml had them
	specChanged chan struct{}                // one waits there after a change
	complete    chan struct{}                // closed once the node's join is
	doors       *doors
	changes     atomic.Int32                  // requests under way that change something
	startOver   chan component.InitialCluster // with which a new member of this server starts
	reread      chan struct{}                 // one waits there when the node's files are others
	removed     chan struct{}                 // closed when the cluster has removed the node
	removedOnce sync.Once
}

// NewAgent prepares the machine for the node of disk: directories, kernel
// settings, configuration of every component. It starts nothing.
func NewAgent(options Options, disk membership.Disk, doors *doors) (*Agent, error) {
	if err := keyring.Finish(component.EtcDir); err != nil {
		return nil, err
	}
	latest, err := newMachine(options, disk)
	if err != nil {
		return nil, err
	}
	machine := latest
	machine.Spec = startedBy(startedFile, disk, latest.Node)
	if err := prepare(machine); err != nil {
		return nil, fmt.Errorf("cannot prepare node %s: %w", machine.Node.Name, err)
	}
	a := &Agent{
		options: options, etc: component.EtcDir, machine: machine, components: component.For(machine), started: time.Now(),
		complete: make(chan struct{}), removed: make(chan struct{}), specChanged: make(chan struct{}, 1),
		startOver: make(chan component.InitialCluster, 1), reread: make(chan struct{}, 1), doors: doors,
		book: history.NewBook(historyFile, component.VIPHistory, machine.Node.Name), loaded: map[string]string{},
	}
	if a.vip, err = watchVIP(options, latest); err != nil {
		return nil, err
	}
	have, err := host.Addresses()
	if err != nil {
		return nil, err
	}
	a.place = findPlace(disk.Spec, machine.Node.Address, have)
	a.spec.Store(disk.Spec)
	if !disk.Joining {
		close(a.complete)
	}
	for _, c := range a.components {
		if c.Reload.Signal != 0 {
			continue // see rewrite
		}
		if err := writeFiles(c); err != nil {
			return nil, fmt.Errorf("cannot configure %s: %w", c.Name, err)
		}
	}
	stale, err := a.writeChanged(latest)
	if err != nil {
		return nil, fmt.Errorf("cannot configure node %s: %w", machine.Node.Name, err)
	}
	a.stale.Store(&stale)
	if err := startBy(startedFile, machine.Spec); err != nil {
		return nil, err
	}
	if a.agents, err = membership.NodeClient(component.EtcDir); err != nil {
		return nil, err
	}
	a.renewAtStart() // what follows reads the new ones
	if err := a.connect(); err != nil {
		return nil, fmt.Errorf("cannot configure node %s: %w", machine.Node.Name, err)
	}
	a.supervisor, err = supervise.New(filepath.Join(component.RunDir, "components"), options.Log, a.mourn(a.holdBack(processes(machine, a.components))))
	if err != nil {
		return nil, fmt.Errorf("cannot supervise node %s: %w", machine.Node.Name, err)
	}
	return a, a.loadWritten()
}

func newMachine(options Options, disk membership.Disk) (component.Machine, error) {
	node, ok := disk.Spec.Node(disk.Name)
	if !ok {
		return component.Machine{}, fmt.Errorf("cannot find node %q in its own cluster.yaml", disk.Name)
	}
	hierarchies, err := host.MountedHierarchies()
	if err != nil {
		return component.Machine{}, err
	}
	return component.Machine{
		Spec: disk.Spec, Node: node, Link: linkOf(node), Initial: disk.Initial, Bundle: options.Bundle, Kuorum: options.Kuorum,
		CgroupV1: host.IsV1(hierarchies), LowerOOM: host.CanLowerOOMScore(),
		Trust: keyring.Trust(component.EtcDir),
		Share: component.Share{Machines: options.Machines, Processors: runtime.NumCPU()},
	}, nil
}

// startedFile holds the cluster.yaml by which the components of this machine
// were started, until it is switched off. The node's own is the newest: an agent
// that starts again must not replace what that outdates out of turn.
const startedFile = component.RunDir + "/cluster.yaml"

func startBy(file string, spec *cluster.Spec) error {
	text, err := spec.YAML()
	if err != nil {
		return err
	}
	return host.WriteFile(file, text, 0o600)
}

// startedBy is what startBy noted; what is on the disk where nothing of this
// very node runs.
func startedBy(file string, disk membership.Disk, node cluster.Node) *cluster.Spec {
	text, err := os.ReadFile(file)
	if err != nil || disk.Joining {
		return disk.Spec
	}
	spec, err := cluster.Parse(file, text)
	if err != nil {
		return disk.Spec // another version of kuorum wrote it
	}
	if own, ok := spec.Node(node.Name); !ok || own.Role != node.Role || own.Address != node.Address {
		return disk.Spec
	}
	return spec
}

// connect prepares to ask what runs on this node: its etcd member, its API
// server.
func (a *Agent) connect() error {
	var err error
	if a.machine.Spec.HasMember(a.machine.Node) {
		if a.member, err = newMember(a.machine.Spec.Spec.Etcd); err != nil {
			return err
		}
		a.member.data = a.newGuard()
	}
	if a.machine.Node.Role == cluster.RoleServer {
		latest := a.machine
		latest.Spec = a.spec.Load()
		a.server, err = newServer(latest, a.options, a.agents, a.member)
	}
	return err
}

// disconnect is for when nobody asks any more.
func (a *Agent) disconnect() {
	if a.server != nil && a.server.apart {
		_ = a.server.etcd.Close()
	}
	if a.member != nil {
		_ = a.member.etcd.Close()
	}
}

// prepare sets what the kernel must do for a node of Kubernetes: pass packets
// on, and have the cluster's DNS address on lo.
func prepare(m component.Machine) error {
	if !m.Node.Role.RunsPods() {
		return errors.Join(os.MkdirAll(component.RunDir, 0o755), link(m.Bundle, component.BundleLink))
	}
	dns, err := netip.ParseAddr(m.Spec.Spec.DNS.Address)
	if err != nil {
		return fmt.Errorf("cannot read the DNS address: %w", err)
	}
	return errors.Join(
		os.MkdirAll(component.RunDir, 0o755),
		host.Sysctl("net/ipv4/ip_forward", "1"),
		host.AddLoopbackAddress(dns),
		link(m.Bundle, component.BundleLink),
		// Where the books look for them.
		link(filepath.Join(component.EtcDir, "pki"), "/etc/kubernetes/pki"),
		link(filepath.Join(component.EtcDir, "admin.conf"), "/etc/kubernetes/admin.conf"),
	)
}

func writeFiles(c component.Component) error {
	for _, dir := range c.Dirs {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	for _, f := range c.Files {
		if err := host.WriteFile(f.Path, f.Data, f.Mode); err != nil {
			return err
		}
	}
	return nil
}

func processes(m component.Machine, components []component.Component) []supervise.Process {
	var list []supervise.Process
	for _, c := range components {
		list = append(list, supervise.Process{
			Name: c.Name, Path: c.Path, Args: c.Args, Env: c.Environ(m), After: c.After, With: c.With,
			Ready: c.Ready, Digest: c.Digest(), StopTimeout: c.StopTimeout,
			Reload: supervise.Reloading{Signal: c.Reload.Signal, Digest: c.Loaded()},
			Log:    filepath.Join(component.LogDir, c.Name+".log"), TimerSlack: c.TimerSlack,
		})
	}
	return list
}

// Run keeps the node running until ctx ends, which leaves its components
// alone, or until Options.Stop is closed, which stops them. It blocks.
func (a *Agent) Run(ctx context.Context) error {
	running, cancel := context.WithCancel(ctx)
	defer cancel()
	group, inner := errgroup.WithContext(running)
	group.Go(func() error { return a.serveAPI(inner) })
	background(group, inner, a.watchPlace, func(ctx context.Context) {
		supervise.RotateLogs(ctx, a.options.Log, filepath.Join(component.LogDir, component.AgentLog))
	})
	if a.place.astray {
		a.options.Log.Warn("the node's address is not on this machine: it waits to be told where it is",
			"address", a.machine.Node.Address, "has", a.place.addresses, "command", "kuorum node address")
	} else {
		a.work(group, inner)
	}
	stopped := false
	var end error // why the node stops, and what comes then
	group.Go(func() error {
		select {
		case <-inner.Done():
		case <-a.options.Stop:
			stopped = true
			a.yieldLeads(inner)
			cancel()
		case <-a.removed:
			end = errRemoved
			cancel()
		case initial := <-a.startOver:
			end = startOverError(initial)
			cancel()
		case <-a.reread:
			end = errReread
			cancel()
		}
		return nil
	})
	err := group.Wait()
	defer a.disconnect()
	if !stopped && end == nil {
		return err
	}
	if errors.Is(end, errReread) {
		return errors.Join(err, end)
	}
	if end != nil && !a.etcdFollows(ctx) {
		a.supervisor.SetStopTimeout("kube-apiserver", hopelessStop)
	}
	a.options.Log.Info("stopping the node's components")
	stopping, done := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer done()
	if errors.Is(end, errRemoved) {
		a.dropVIP(stopping)
	}
	if errors.Is(end, errRemoved) && a.server != nil && a.member != nil {
		a.partInPeace(stopping)
	}
	if err := errors.Join(err, a.stopComponents(stopping)); err != nil {
		return err
	}
	return end
}

// work is what a node does that is where it should be.
func (a *Agent) work(group *errgroup.Group, ctx context.Context) { //nolint:revive // the group comes first, as in errgroup
	if a.server != nil || a.member != nil {
		if err := a.keepDetour(ctx, a.spec.Load()); err != nil { // before anybody looks for etcd's members
			a.options.Log.Warn("will try again", "error", err)
		}
	}
	group.Go(func() error { return a.supervisor.Run(ctx) })
	if a.machine.Node.Role.RunsPods() {
		group.Go(func() error { return a.importImages(ctx) })
		group.Go(func() error { return a.keepCNI(ctx) })
	}
	background(group, ctx, a.followSpec, a.finishJoin, a.renewCertificates, a.followMoves, a.takeTurns, a.keepHistory)
	if a.member != nil {
		background(group, ctx, a.member.metrics.Run, a.keepMarks)
	}
	if a.vip != nil {
		background(group, ctx, a.vip.Run)
	}
	if a.server != nil {
		group.Go(func() error { return a.applyObjects(ctx) })
		background(group, ctx, a.server.members.Sweep, a.seed, a.learnClients, a.keepService)
	}
	if a.server != nil && a.member != nil {
		background(group, ctx, a.watchSpec)
	}
}

// partInPeace stops what needs the server's etcd while that is still a member,
// so that clients are told to go elsewhere, and then lets the others remove the
// member. What fails here is done without by those who come after.
func (a *Agent) partInPeace(ctx context.Context) {
	if err := a.supervisor.Stop(ctx, "etcd"); err != nil {
		a.options.Log.Warn("cannot stop the components of a removed server", "error", err)
	}
	if err := membership.ReportLeft(ctx, a.agents, a.spec.Load().Servers(), a.machine.Node.Name); err != nil {
		a.options.Log.Warn("cannot say that this server has stopped", "error", err)
	}
}

// background runs what has no end of its own and nothing to say at the end.
func background(group *errgroup.Group, ctx context.Context, tasks ...func(context.Context)) { //nolint:revive // the group comes first, as in errgroup
	for _, task := range tasks {
		group.Go(func() error {
			task(ctx)
			return nil
		})
	}
}

// retry calls do until it succeeds or ctx ends, which is no error. Attempts
// are spaced 250 ms at first, 5 s at last; what keeps failing is logged once
// and again when the reason changes.
func (a *Agent) retry(ctx context.Context, what string, do func(context.Context) error) {
	last := ""
	for wait := 250 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		err := do(ctx)
		if err == nil {
			a.options.Log.Info("done", "step", what)
			return
		}
		if text := err.Error(); text != last && ctx.Err() == nil {
			last = text
			a.options.Log.Warn("will try again", "step", what, "error", text)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}
