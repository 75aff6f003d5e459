package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"kuorum/internal/cluster"
	"kuorum/internal/component"
	"kuorum/internal/fault"
	"kuorum/internal/host"
	"kuorum/internal/supervise"
)

// stopTimeout bounds a clean shutdown of a machine, in which etcd hands its
// leadership over and the API server finishes its requests.
const stopTimeout = 90 * time.Second

// agentName is the command that an agent is, and its name among components.
const agentName = "agent"

// kubeletSysctls are the kernel settings that a kubelet insists on. Machines
// see them as set, so that the host's are not written.
func kubeletSysctls() map[string]string {
	return map[string]string{
		"vm/overcommit_memory":      "1",
		"vm/panic_on_oom":           "0",
		"kernel/panic":              "10",
		"kernel/panic_on_oops":      "1",
		"kernel/keys/root_maxkeys":  "1000000",
		"kernel/keys/root_maxbytes": "25000000",
	}
}

// blueprint is what a machine's first process is told before it becomes the
// machine's init. It goes over the socket that stays between it and the lab.
type blueprint struct {
	Root        host.Root
	Hostname    string
	Hosts       string // /etc/hosts
	Address     netip.Prefix
	Gateway     netip.Addr
	Agent       []string // argv
	Tools       []string // names that our own program is also called by
	Hierarchies []host.Hierarchy
}

// Machine is one lab machine: a set of namespaces with a disk directory that
// outlives them.
type Machine struct {
	Node cluster.Node // its address may be another now, see at

	plan  blueprint
	port  string // its end of the cable at the switch
	mtu   int
	group *host.Cgroup
	exe   string
	log   string
	// whenOff, if there is one, is told each time that the machine has gone off.
	whenOff func(name string, at time.Time)

	mu    sync.Mutex
	init  *exec.Cmd // nil while it is off
	wire  net.Conn  // to its init
	off   chan struct{}
	since time.Time
}

// Start powers the machine on. It returns when its init runs with network and
// root in place; its components start after that. A machine that is on stays
// as it is.
func (m *Machine) Start(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.init != nil {
		return nil
	}
	// What stood still when the machine, or the lab process, ended is there yet.
	limited, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	if err := m.group.Remove(limited); err != nil {
		return err
	}
	if err := m.group.Create(); err != nil {
		return err
	}
	ours, theirs, err := socketPair()
	if err != nil {
		return err
	}
	defer theirs.Close()
	cmd, err := m.spawn(ctx, theirs)
	if err != nil {
		return errors.Join(err, ours.Close())
	}
	if err := m.boot(ctx, cmd.Process.Pid, ours); err != nil {
		return errors.Join(fmt.Errorf("cannot boot machine %s: %w", m.Node.Name, err), cmd.Process.Kill(), ignoreExit(cmd.Wait()), ours.Close())
	}
	m.init, m.wire, m.off, m.since = cmd, ours, make(chan struct{}), time.Now()
	go m.wait(cmd, m.off)
	return nil
}

func (m *Machine) spawn(ctx context.Context, wire *os.File) (*exec.Cmd, error) {
	log, err := os.OpenFile(m.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		return nil, fmt.Errorf("cannot open the machine's log: %w", err)
	}
	defer log.Close()
	cmd := exec.CommandContext(context.WithoutCancel(ctx), m.exe, "machine", "wait")
	cmd.Env = append(component.Frugal(), "HOME=/root") // the agent inherits it, its components do not
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{wire}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: host.MachineNamespaces, Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("cannot start machine %s: %w", m.Node.Name, err)
	}
	return cmd, nil
}

// boot does from outside what must be done before the machine may look
// around, then lets it go on and waits until it has.
func (m *Machine) boot(ctx context.Context, pid int, wire net.Conn) error {
	if err := m.group.Add(pid); err != nil {
		return err
	}
	if err := host.Plug(m.port, pid, hardwareAddress(m.plan.Address.Addr()), m.mtu); err != nil {
		return err
	}
	deadline, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	stop := context.AfterFunc(deadline, func() { _ = wire.SetDeadline(time.Now()) })
	defer stop()
	if _, err := wire.Write([]byte{'g'}); err != nil {
		return err
	}
	if err := json.NewEncoder(wire).Encode(m.plan); err != nil {
		return err
	}
	var answer report
	if err := json.NewDecoder(wire).Decode(&answer); err != nil {
		return fmt.Errorf("it ended early (see %s): %w", m.log, err)
	}
	if answer.Error != "" {
		return errors.New(answer.Error)
	}
	return nil
}

// wait notes that the machine has gone off, for whatever reason.
func (m *Machine) wait(cmd *exec.Cmd, off chan struct{}) {
	_ = cmd.Wait() // any end is the machine's being off
	at := time.Now()
	m.mu.Lock()
	_ = m.wire.Close()
	m.init, m.wire, m.since = nil, nil, at
	close(off)
	m.mu.Unlock()
	if m.whenOff != nil {
		m.whenOff(m.Node.Name, at)
	}
}

// Stop shuts the machine down cleanly: its components stop in reverse order.
// It blocks until the machine is off, and cuts the power after stopTimeout.
func (m *Machine) Stop(ctx context.Context) error {
	m.mu.Lock()
	wire, off := m.wire, m.off
	m.mu.Unlock()
	if wire == nil {
		return nil
	}
	if err := m.group.Thaw(); err != nil {
		return err
	}
	if _, err := wire.Write([]byte("stop\n")); err == nil {
		limit := time.NewTimer(stopTimeout)
		defer limit.Stop()
		select {
		case <-off:
		case <-limit.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return m.PowerOff(ctx)
}

// PowerOff cuts the power: the kernel ends every process of the machine at
// once. It blocks until nothing of it runs; its disk stays.
func (m *Machine) PowerOff(ctx context.Context) error {
	m.mu.Lock()
	cmd, off := m.init, m.off
	m.mu.Unlock()
	if cmd != nil {
		_ = cmd.Process.Kill() // it may have ended meanwhile
		if err := m.group.Thaw(); err != nil {
			return err // frozen by v1, it would not end
		}
		select {
		case <-off:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return m.group.Remove(ctx)
}

// freeze holds every process of the machine still, its pods' too.
func (m *Machine) freeze(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.init == nil {
		return offProblem(m.Node.Name)
	}
	return m.group.Freeze(ctx)
}

// thaw lets a machine go on that stands still.
func (m *Machine) thaw() error { return m.group.Thaw() }

// signal sends sig to a component's process, also while the machine stands
// still or its agent does not run: the agent's records tell, which are on a
// file system of the machine. The error is host.ErrGone when it does not run.
func (m *Machine) signal(name string, sig syscall.Signal) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.init == nil {
		return fmt.Errorf("%w: %w", offProblem(m.Node.Name), host.ErrGone)
	}
	if name == agentName {
		pid, start, err := host.FindChild(m.init.Process.Pid, agentName)
		if err != nil {
			return err
		}
		return host.SignalOther(pid, start, sig)
	}
	records := filepath.Join("/proc", strconv.Itoa(m.init.Process.Pid), "root", component.RunDir, "components")
	if err := fault.CheckName("component of "+m.Node.Name, name, append(supervise.Recorded(records), agentName)); err != nil {
		return fmt.Errorf("%w: %w", err, host.ErrGone)
	}
	pid, start, err := supervise.Find(records, name)
	if err != nil {
		return err
	}
	return host.SignalOther(pid, start, sig)
}

// hardwareAddress goes with the machine's IP address, so that its neighbours'
// tables stay right across reboots.
func hardwareAddress(address netip.Addr) net.HardwareAddr {
	b := address.As4()
	return net.HardwareAddr{0x02, 0x6b, b[0], b[1], b[2], b[3]}
}

func socketPair() (net.Conn, *os.File, error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot make a socket pair: %w", err)
	}
	mine := os.NewFile(uintptr(fds[0]), "machine")
	defer mine.Close()
	conn, err := net.FileConn(mine)
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("cannot use a socket pair: %w", err), syscall.Close(fds[1]))
	}
	return conn, os.NewFile(uintptr(fds[1]), "init"), nil
}

func ignoreExit(err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) || errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// at is the machine's node with the address that the machine has, or will have
// when it starts.
func (m *Machine) at() cluster.Node {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.Node
	n.Address = m.plan.Address.Addr().String()
	return n
}

// setAddress gives the machine another address for its next start, and with it
// another hardware address: for its neighbours it is another machine. One that
// is on keeps its own, and it is an error.
func (m *Machine) setAddress(address netip.Addr) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.init != nil {
		return fmt.Errorf("machine %s is on: kuorum lab stop %s first", m.Node.Name, m.Node.Name)
	}
	m.plan.Address = netip.PrefixFrom(address, m.plan.Address.Bits())
	m.port = portName(address)
	return nil
}

// portName is unique in a lab, and at most 15 characters.
func portName(address netip.Addr) string { return fmt.Sprintf("m%x", address.As4()) }

// setHosts is what the machine will know of the others from its next start on.
func (m *Machine) setHosts(text string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.plan.Hosts = text
}

// hosts renders /etc/hosts: every machine knows every other by name.
func hosts(spec *cluster.Spec) string {
	var text strings.Builder
	text.WriteString("127.0.0.1 localhost\n")
	for _, n := range spec.Spec.Nodes {
		fmt.Fprintf(&text, "%s %s\n", n.Address, n.Name)
	}
	return text.String()
}

// newMachine plans the machine of one node of the lab.
func newMachine(l *Lab, node cluster.Node, hierarchies []host.Hierarchy) (*Machine, error) {
	network, err := netip.ParsePrefix(l.Spec.Spec.Network.Nodes)
	if err != nil {
		return nil, fmt.Errorf("cannot read the machines' network: %w", err)
	}
	address, err := netip.ParseAddr(node.Address)
	if err != nil {
		return nil, fmt.Errorf("cannot read the address of %s: %w", node.Name, err)
	}
	dir := l.machineDir(node.Name)
	inside := filepath.Join(component.VarDir, "bundle", filepath.Base(l.bundle))
	return &Machine{
		Node: node,
		plan: blueprint{
			Root: host.Root{
				Dir: dir,
				Own: []string{"/var", "/etc/kuorum", "/etc/cni", "/etc/containerd", "/etc/kubernetes"},
				Binds: map[string]string{
					inside:      l.bundle,
					programPath: l.exe,
				},
				Sysctls: kubeletSysctls(),
			},
			Hostname:    node.Name,
			Hosts:       hosts(l.Spec),
			Address:     netip.PrefixFrom(address, network.Bits()),
			Gateway:     network.Masked().Addr().Next(),
			Agent:       []string{programPath, agentName, "--bundle", inside, "--machines", strconv.Itoa(len(l.Spec.Spec.Nodes))},
			Tools:       Tools(),
			Hierarchies: hierarchies,
		},
		port:  portName(address),
		mtu:   l.Spec.Spec.Network.MTU,
		group: host.NewCgroup(hierarchies, l.cgroupPath(node.Name)),
		exe:   l.exe,
		log:   filepath.Join(dir, "console.log"),
		since: time.Now(),
	}, nil
}
