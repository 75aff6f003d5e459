package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"kuorum/internal/agent"
	"kuorum/internal/cluster"
	"kuorum/internal/endpoint"
	"kuorum/internal/fault"
	"kuorum/internal/host"
	"kuorum/internal/supervise"
)

// Descriptors that `up` hands to the lab process.
const (
	listenerFD = 3 // the API's listener, made in the host's network namespace
	readyFD    = 4 // a pipe: one report, then closed
	lockFD     = 5 // the lab's lock, held for as long as the process lives
)

// daemon is the one background process of a lab. It lives in a network
// namespace of its own, which is the lab's switch: when it ends, however it
// ends, so do its machines, its cables and its forwarder.
type daemon struct {
	lab *Lab // its Spec changes with changing held
	log *slog.Logger

	asking     sync.Mutex
	agents     *agent.Client // see agentsNow
	agentFiles [][]byte
	named      map[string]*agent.Client // see agentOf

	balancer *endpoint.Balancer
	faults   *fault.Keeper
	changing sync.Mutex // one machine comes or goes at a time

	mu       sync.Mutex
	machines []*Machine // see list
	stop     chan struct{}
	stopOnce sync.Once
}

// Serve is the lab process: it makes the switch, powers every machine on and
// serves the control socket and the API's forwarder until it is told to stop
// or ctx ends. It must have been started by Up.
func (s Store) Serve(ctx context.Context, name, bundle string, log *slog.Logger) error {
	ready := os.NewFile(readyFD, "ready")
	d, control, err := s.prepare(ctx, name, bundle, log)
	answer := report{}
	if err != nil {
		answer.Error = err.Error()
	}
	if err := errors.Join(json.NewEncoder(ready).Encode(answer), ready.Close()); err != nil {
		log.Warn("nobody waits for this lab", "error", err)
	}
	if err != nil {
		return err
	}
	return d.run(ctx, control)
}

func (s Store) prepare(ctx context.Context, name, bundle string, log *slog.Logger) (*daemon, net.Listener, error) {
	l, err := s.Open(name)
	if err != nil {
		return nil, nil, err
	}
	l.bundle = bundle
	hierarchies, err := host.MountedHierarchies()
	if err != nil {
		return nil, nil, err
	}
	if err := joinCgroup(l, hierarchies); err != nil {
		return nil, nil, err
	}
	if err := makeSwitch(l); err != nil {
		return nil, nil, err
	}
	d := &daemon{lab: l, log: log, stop: make(chan struct{})}
	if d.faults, err = fault.Open(l.path("faults.jsonl"), d, fault.Load, log); err != nil {
		return nil, nil, err
	}
	for _, n := range l.Spec.Spec.Nodes {
		m, err := newMachine(l, n, hierarchies)
		if err != nil {
			return nil, nil, err
		}
		m.whenOff = d.faults.MachineOff
		d.machines = append(d.machines, m)
	}
	if _, err := d.agentsNow(); err != nil {
		return nil, nil, err
	}
	if d.balancer, err = newBalancer(l, log); err != nil {
		return nil, nil, err
	}
	control, err := listenControl(ctx, l)
	if err != nil {
		return nil, nil, err
	}
	return d, control, d.each(ctx, (*Machine).Start)
}

// joinCgroup puts the lab process into a group beside its machines', so that
// the lab's whole use of the host can be read in one place.
func joinCgroup(l *Lab, hierarchies []host.Hierarchy) error {
	own := host.NewCgroup(hierarchies, l.cgroupPath("lab"))
	if err := own.Create(); err != nil {
		return err
	}
	return own.Add(os.Getpid())
}

func makeSwitch(l *Lab) error {
	network, err := netip.ParsePrefix(l.Spec.Spec.Network.Nodes)
	if err != nil {
		return fmt.Errorf("cannot read the machines' network: %w", err)
	}
	address := netip.PrefixFrom(network.Masked().Addr().Next(), network.Bits())
	if err := host.MakeSwitch(address, l.Spec.Spec.Network.MTU); err != nil {
		return err
	}
	return host.ProbeLinks(l.Spec.Spec.Network.Backend)
}

func listenControl(ctx context.Context, l *Lab) (net.Listener, error) {
	path := l.path(controlSocket)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("cannot clear the old control socket: %w", err)
	}
	ln, err := (&net.ListenConfig{}).Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("cannot make the control socket: %w", err)
	}
	return ln, os.Chmod(path, 0o600)
}

func (d *daemon) run(ctx context.Context, control net.Listener) error {
	running, cancel := context.WithCancel(ctx)
	defer cancel()
	group, inner := errgroup.WithContext(running)
	network, err := netip.ParsePrefix(d.lab.Spec.Spec.Network.Nodes)
	if err != nil {
		return fmt.Errorf("cannot read the machines' network: %w", err)
	}
	server := &http.Server{Handler: tunnel{allowed: network, otherwise: d.handler()}, ReadHeaderTimeout: 5 * time.Second}
	group.Go(func() error {
		if err := server.Serve(control); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("cannot serve the control socket: %w", err)
		}
		return nil
	})
	group.Go(func() error { return d.forward(inner) })
	group.Go(func() error {
		d.faults.Run(inner)
		return nil
	})
	group.Go(func() error {
		logs := []string{d.lab.path("lab.log")}
		for _, m := range d.list() {
			logs = append(logs, m.log)
		}
		supervise.RotateLogs(inner, d.log, logs...)
		return nil
	})
	group.Go(func() error {
		select {
		case <-inner.Done():
		case <-d.stop:
		}
		cancel()
		// Shutdown lets the answer to the stop request out.
		limited, done := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer done()
		return server.Shutdown(limited)
	})
	err = group.Wait()
	off, done := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer done()
	return errors.Join(err, d.faults.Close(off), d.each(off, (*Machine).PowerOff))
}

// forward leads connections to the host's port to the API servers. It is the
// same balancer that runs on every machine, so a server that died or froze
// loses its connections here at once as well.
func (d *daemon) forward(ctx context.Context) error {
	file := os.NewFile(listenerFD, "api")
	ln, err := net.FileListener(file)
	if err != nil {
		return fmt.Errorf("cannot use the API's listener: %w", err)
	}
	if err := file.Close(); err != nil {
		return fmt.Errorf("cannot use the API's listener: %w", err)
	}
	return d.balancer.Serve(ctx, []net.Listener{ln})
}

func newBalancer(l *Lab, log *slog.Logger) (*endpoint.Balancer, error) {
	return endpoint.New(endpoint.Config{
		Listen:   []string{net.JoinHostPort("127.0.0.1", strconv.Itoa(l.State.Port))},
		Interval: cluster.Duration(time.Second), // power-offs are seen without it
		CA:       l.Client("ca.crt"), Cert: l.Client("endpoint.crt"), Key: l.Client("endpoint.key"),
		Backends: backends(l.Spec),
	}, log)
}

func (d *daemon) each(ctx context.Context, do func(*Machine, context.Context) error) error {
	var group errgroup.Group
	for _, m := range d.list() {
		group.Go(func() error { return do(m, ctx) })
	}
	return group.Wait()
}

// handler serves the control socket.
func (d *daemon) handler() http.Handler {
	mux := http.NewServeMux()
	d.faults.Handle(mux, answer)
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, r *http.Request) {
		answer(w, d.status(r.Context()), nil)
	})
	actions := map[string]func(*Machine, context.Context) error{
		"start": (*Machine).Start, "stop": (*Machine).Stop, "poweroff": (*Machine).PowerOff,
	}
	for verb, do := range actions {
		mux.HandleFunc("POST /v1/machines/{name}/"+verb, func(w http.ResponseWriter, r *http.Request) {
			d.log.Info("machine", "verb", verb, "name", r.PathValue("name"))
			answer(w, struct{}{}, d.one(r, do))
		})
	}
	mux.HandleFunc("POST /v1/machines/{name}/address", func(w http.ResponseWriter, r *http.Request) {
		name, to := r.PathValue("name"), r.URL.Query().Get("to")
		d.log.Info("machine", "verb", "address", "name", name, "to", to)
		answer(w, struct{}{}, d.setAddress(r.Context(), name, to))
	})
	mux.HandleFunc("POST /v1/machines", func(w http.ResponseWriter, r *http.Request) {
		var node cluster.Node
		err := json.Unmarshal([]byte(r.URL.Query().Get("node")), &node)
		if err == nil {
			d.log.Info("machine", "verb", "add", "name", node.Name)
			node, err = d.add(r.Context(), node)
		}
		answer(w, node, err)
	})
	mux.HandleFunc("DELETE /v1/machines/{name}", func(w http.ResponseWriter, r *http.Request) {
		d.log.Info("machine", "verb", "remove", "name", r.PathValue("name"))
		answer(w, struct{}{}, d.remove(r.Context(), r.PathValue("name")))
	})
	mux.HandleFunc("POST /v1/start", func(w http.ResponseWriter, r *http.Request) {
		answer(w, struct{}{}, d.each(r.Context(), (*Machine).Start))
	})
	mux.HandleFunc("POST /v1/stop", func(w http.ResponseWriter, r *http.Request) {
		if err := d.faults.Close(r.Context()); err != nil { // members that are cut off cannot hand over
			d.log.Warn("machines stop while something is broken", "error", err)
		}
		err := d.each(r.Context(), (*Machine).Stop)
		answer(w, struct{}{}, err)
		if err == nil {
			d.stopOnce.Do(func() { close(d.stop) })
		}
	})
	return mux
}

func (d *daemon) one(r *http.Request, do func(*Machine, context.Context) error) error {
	m, err := d.machine(r.PathValue("name"))
	if err != nil {
		return err
	}
	return do(m, r.Context())
}

func (d *daemon) machine(name string) (*Machine, error) {
	for _, m := range d.list() {
		if m.Node.Name == name {
			return m, nil
		}
	}
	return nil, fmt.Errorf("lab %s has no machine %q", d.lab.Name, name)
}

func answer(w http.ResponseWriter, value any, err error) {
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		failed := report{Error: err.Error()}
		if _, ok := errors.AsType[*cluster.Problem](err); ok {
			refused, _ := agent.Refuse(err)
			failed.Problem = &refused
		}
		w.WriteHeader(http.StatusInternalServerError)
		value = failed
	}
	_ = json.NewEncoder(w).Encode(value) // the caller has gone: nobody to tell
}

// Power of a machine.
const (
	PowerOn  = "on"
	PowerOff = "off"
)

// Status is what a lab process tells of its lab, probed when asked for.
type Status struct {
	Name     string          `json:"name"`
	PID      int             `json:"pid"`
	Server   string          `json:"server"`
	Machines []MachineStatus `json:"machines"`
}

// MachineStatus is one machine of a lab.
type MachineStatus struct {
	Name    string              `json:"name"`
	Role    cluster.Role        `json:"role"`
	Address string              `json:"address"`
	Power   string              `json:"power"`
	Node    bool                `json:"node"`            // it is a node of the cluster
	Since   time.Time           `json:"since"`           // of the power state
	PID     int                 `json:"pid,omitempty"`   // of its init, as the host sees it
	Agent   *cluster.NodeStatus `json:"agent,omitempty"` // nil when the agent does not answer
	Error   string              `json:"error,omitempty"` // why it does not
	// ClockOffset is by how much its clock is ahead of the host's.
	ClockOffset cluster.Duration `json:"clockOffset"`
}

// Reports are the lab's nodes as they answered, for advise.Review.
func (s Status) Reports() []cluster.NodeReport {
	var reports []cluster.NodeReport
	for _, m := range s.Machines {
		if !m.Node {
			continue
		}
		report := cluster.NodeReport{Name: m.Name, Role: m.Role, Address: m.Address, Error: m.Error, Status: m.Agent, ClockOffset: m.ClockOffset}
		if m.Power == PowerOff {
			report.Error = "the machine is off"
		}
		reports = append(reports, report)
	}
	return reports
}

func (d *daemon) status(ctx context.Context) Status {
	machines := d.list()
	s := Status{Name: d.lab.Name, PID: os.Getpid(), Server: d.lab.Server(), Machines: make([]MachineStatus, len(machines))}
	var all sync.WaitGroup
	for i, m := range machines {
		all.Go(func() { s.Machines[i] = d.machineStatus(ctx, m) })
	}
	all.Wait()
	return s
}

func (d *daemon) machineStatus(ctx context.Context, m *Machine) MachineStatus {
	node := m.at()
	m.mu.Lock()
	s := MachineStatus{Name: node.Name, Role: node.Role, Address: node.Address, Node: d.lab.isNode(m.Node.Name), Power: PowerOff, Since: m.since.UTC()}
	if m.init != nil {
		s.Power, s.PID = PowerOn, m.init.Process.Pid
	}
	m.mu.Unlock()
	if s.Power == PowerOff || !s.Node {
		return s
	}
	agents, err := d.agentOf(node.Name)
	if err != nil {
		s.Error = err.Error()
		return s
	}
	report := agents.Report(ctx, node)
	s.Agent, s.Error, s.ClockOffset = report.Status, report.Error, report.ClockOffset
	return s
}
