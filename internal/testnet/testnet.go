// Package testnet is a switch and machines on it, for tests: each a network
// namespace of its own on this host, whose own network has no part in it. No
// program imports it (rules_test.go). It needs the rights of root, ip and nsenter
// (iproute2, util-linux). What a test makes ends with it, also if the test is
// killed: a namespace lasts as long as the process that holds it, which ends with
// this one.
package testnet

import (
	"context"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"testing"
)

const (
	bridge = "sw0"
	// Link is what a machine's end of its cable is called.
	Link = "eth0"
)

// Namespace is a network, for the commands that are run in it. Files, processes and
// everything else are the host's.
type Namespace struct {
	t   testing.TB
	pid string // of the process that holds it
}

// newNamespace ends with the test. Its loopback is up.
func newNamespace(t testing.TB) Namespace {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("a test with networks of its own must run as root")
	}
	// For longer than any test may take.
	holder := exec.CommandContext(context.WithoutCancel(t.Context()), "sleep", "3600")
	holder.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	Start(t, holder)
	n := Namespace{t, strconv.Itoa(holder.Process.Pid)}
	n.Run("ip", "link", "set", "lo", "up")
	return n
}

// Command is exec.CommandContext in n.
func (n Namespace) Command(ctx context.Context, argv ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "nsenter", append([]string{"-t", n.pid, "-n", "--"}, argv...)...)
}

// Run waits until a command in n has ended, and returns what it printed. If it
// fails, so does the test.
func (n Namespace) Run(argv ...string) string {
	n.t.Helper()
	out, err := n.Command(n.t.Context(), argv...).CombinedOutput()
	if err != nil {
		n.t.Fatalf("%v: %v\n%s", argv, err, out)
	}
	return string(out)
}

// Switch connects machines. Its own namespace has the bridge sw0, without an
// address, and the machines' ports.
type Switch struct{ Namespace }

// New makes a switch that ends with the test. It fails the test if this is not
// root.
func New(t testing.TB) *Switch {
	t.Helper()
	s := &Switch{newNamespace(t)}
	s.Run("ip", "link", "add", bridge, "type", "bridge")
	s.Run("ip", "link", "set", bridge, "up")
	return s
}

// Address gives the switch an address with the length of its network, such as
// 192.0.2.1/24.
func (s *Switch) Address(prefix string) {
	s.t.Helper()
	s.address(bridge, prefix)
}

// Machine is connected to a switch by its link eth0.
type Machine struct {
	Namespace
	// Port is what the other end of its cable is called, on the switch.
	Port string
	sw   *Switch
}

// Machine plugs one in at port, which has 15 letters at most and is the only one of
// the name. Its addresses are as in Address.
func (s *Switch) Machine(port string, addresses ...string) *Machine {
	s.t.Helper()
	m := &Machine{newNamespace(s.t), port, s}
	s.Run("ip", "link", "add", port, "type", "veth", "peer", "name", Link, "netns", m.pid)
	s.Run("ip", "link", "set", port, "up")
	m.Restore()
	m.Run("ip", "link", "set", Link, "up")
	for _, a := range addresses {
		m.Address(a)
	}
	return m
}

// Address gives the machine one more, with the length of its network, such as
// 192.0.2.1/24 or fe80::1/64. It is good at once.
func (m *Machine) Address(prefix string) {
	m.t.Helper()
	m.address(Link, prefix)
}

// address does without the second in which IPv6 looks whether another has it.
func (n Namespace) address(link, prefix string) {
	n.t.Helper()
	p, err := netip.ParsePrefix(prefix)
	if err != nil {
		n.t.Fatal(err)
	}
	add := []string{"ip", "address", "add", prefix, "dev", link}
	if p.Addr().Is6() {
		add = append(add, "nodad")
	}
	n.Run(add...)
}

// Cut takes the machine's cable out of the switch. The machine does not notice: its
// link stays up, and what it sends is lost.
func (m *Machine) Cut() {
	m.t.Helper()
	m.sw.Run("ip", "link", "set", m.Port, "nomaster")
}

// Restore puts the cable in again.
func (m *Machine) Restore() {
	m.t.Helper()
	m.sw.Run("ip", "link", "set", m.Port, "master", bridge)
}

// Remove takes the machine's link away, on both ends and for good.
func (m *Machine) Remove() {
	m.t.Helper()
	m.sw.Run("ip", "link", "del", m.Port)
}
