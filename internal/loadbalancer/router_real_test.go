//go:build lab

package loadbalancer

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// serveReady has the test binary be an API server that is ready, on this port.
const serveReady = "KUORUM_LOADBALANCER_TEST_READY"

func TestMain(m *testing.M) {
	if at := os.Getenv(serveReady); at != "" {
		if err := beReady(at); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// beReady serves until it is killed.
func beReady(at string) error {
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	s.StartTLS() // for the certificate
	defer s.Close()
	server := http.Server{Addr: at, Handler: s.Config.Handler, TLSConfig: s.TLS, ReadHeaderTimeout: time.Second}
	return server.ListenAndServeTLS("", "")
}

// network is a network namespace, which a process of it keeps.
type network struct {
	t      *testing.T
	keeper *exec.Cmd
}

// balancer is a machine in a network of its own.
type balancer struct {
	network

	name, port string // port is of the switch
	plan       Plan
	haproxy    *exec.Cmd
	log        sink // keepalived's
}

// sink keeps what a program says.
type sink struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (s *sink) Write(data []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(data)
}

func (s *sink) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

func newNetwork(t *testing.T) network {
	t.Helper()
	n := network{t, exec.CommandContext(context.WithoutCancel(t.Context()), "sleep", "600")}
	n.keeper.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	n.begin(n.keeper)
	return n
}

// newBalancers are two machines at a switch, each with an API server, HAProxy and
// keepalived.
func newBalancers(t *testing.T) (sw network, all []*balancer) {
	t.Helper()
	needRoot(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	sw = newNetwork(t)
	sw.run("ip", "link", "add", "sw0", "type", "bridge")
	sw.run("ip", "link", "set", "sw0", "up")
	addresses := []netip.Addr{netip.MustParseAddr("10.78.0.1"), netip.MustParseAddr("10.78.0.2")}
	for i, own := range addresses {
		b := &balancer{network: newNetwork(t), name: fmt.Sprintf("lb%d", i+1), port: fmt.Sprintf("m%d", i)}
		b.plan = Plan{
			Cluster: "test", Listen: netip.MustParseAddrPort("0.0.0.0:6443"),
			Servers: []Server{{"cp1", netip.MustParseAddrPort("127.0.0.1:6444")}},
			Router: Router{
				Address: netip.MustParseAddr("10.78.0.100"), Interface: "eth0", Name: b.name, Self: own, Peers: []netip.Addr{addresses[1-i]},
				Yield: filepath.Join(t.TempDir(), "yield"),
			},
		}
		sw.run("ip", "link", "add", b.port, "type", "veth", "peer", "name", "eth0", "netns", fmt.Sprint(b.keeper.Process.Pid))
		sw.run("ip", "link", "set", b.port, "master", "sw0", "up")
		b.run("ip", "address", "add", own.String()+"/24", "dev", "eth0")
		b.run("ip", "link", "set", "lo", "up")
		b.run("ip", "link", "set", "eth0", "up")
		all = append(all, b)
	}
	for _, b := range all {
		ready := b.inside(self)
		ready.Env = append(os.Environ(), serveReady+"=127.0.0.1:6444")
		b.begin(ready)
		b.startHAProxy()
		b.yield("0")
		router := b.inside("keepalived", "--vrrp", "--dont-fork", "--log-console", "--use-file="+b.file(Keepalived),
			"--pid="+filepath.Join(t.TempDir(), "pid"), "--vrrp_pid="+filepath.Join(t.TempDir(), "vrrp"))
		router.Stdout, router.Stderr = &b.log, &b.log
		b.begin(router)
	}
	return sw, all
}

// begin starts a program that ends with the test, by SIGKILL.
func (n network) begin(cmd *exec.Cmd) {
	n.t.Helper()
	if err := cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { _, _ = cmd.Process.Kill(), cmd.Wait() })
}

// inside is a program in the network; nsenter becomes it.
func (n network) inside(argv ...string) *exec.Cmd {
	cmd := exec.CommandContext(context.WithoutCancel(n.t.Context()), "nsenter", append([]string{"-t", fmt.Sprint(n.keeper.Process.Pid), "-n", "--"}, argv...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

func (n network) run(argv ...string) string {
	n.t.Helper()
	out, err := n.inside(argv...).CombinedOutput()
	if err != nil {
		n.t.Fatalf("%v: %v\n%s", argv, err, out)
	}
	return string(out)
}

// file is where the plan's file of that kind is written.
func (b *balancer) file(k Kind) string {
	b.t.Helper()
	path := filepath.Join(b.t.TempDir(), string(k))
	if err := os.WriteFile(path, []byte(render(b.t, b.plan, k)), 0o600); err != nil {
		b.t.Fatal(err)
	}
	return path
}

func (b *balancer) startHAProxy() {
	b.t.Helper()
	b.haproxy = b.inside("haproxy", "-db", "-q", "-f", b.file(HAProxy))
	b.haproxy.Stdout, b.haproxy.Stderr = io.Discard, io.Discard
	b.begin(b.haproxy)
}

// yield tells keepalived whether the address may be here.
func (b *balancer) yield(text string) {
	b.t.Helper()
	if err := os.WriteFile(b.plan.Router.Yield, []byte(text+"\n"), 0o600); err != nil {
		b.t.Fatal(err)
	}
}

// holds tells whether the machine has the virtual IP.
func (b *balancer) holds() bool {
	return strings.Contains(b.run("ip", "-o", "address", "show", "dev", "eth0"), " "+b.plan.Router.Address.String()+"/")
}

// only tells whether the virtual IP is at the holder and not at the other.
func only(holder, other *balancer) func() bool {
	return func() bool { return holder.holds() && !other.holds() }
}

// settledBalancers are two of which one has the virtual IP and both are well, or the
// other would not take it over.
func settledBalancers(t *testing.T) (sw network, holder, other *balancer) {
	t.Helper()
	sw, all := newBalancers(t)
	t.Cleanup(func() {
		if t.Failed() {
			for _, b := range all {
				t.Logf("keepalived on %s:\n%s", b.name, b.log.String())
			}
		}
	})
	until(t, "one machine has the virtual IP", func() bool {
		holder, other = all[0], all[1]
		if all[1].holds() {
			holder, other = all[1], all[0]
		}
		return only(holder, other)()
	})
	until(t, "the other one waits", func() bool { return strings.Contains(other.log.String(), "Entering BACKUP STATE") })
	return sw, holder, other
}

// TestRealVirtualIPLeaves: the virtual IP leaves the machine that is told so, and does not
// come back when it is told no more.
func TestRealVirtualIPLeaves(t *testing.T) {
	_, holder, other := settledBalancers(t)
	for range 3 {
		told := time.Now()
		holder.yield("1")
		until(t, "the other machine takes the virtual IP over", only(other, holder))
		t.Logf("told: %v", time.Since(told))
		before := strings.Count(holder.log.String(), "Entering BACKUP STATE")
		holder.yield("0")
		until(t, "the machine may have it again", func() bool { return strings.Count(holder.log.String(), "Entering BACKUP STATE") > before })
		if !only(other, holder)() {
			t.Error("the virtual IP came back")
		}
		holder, other = other, holder
	}
}

// TestRealVirtualIPFollowsHAProxy: the virtual IP leaves the machine whose HAProxy
// dies, does not come back with it, and leaves one that is not heard any more, by the files
// that are printed.
func TestRealVirtualIPFollowsHAProxy(t *testing.T) {
	sw, holder, other := settledBalancers(t)
	died := time.Now()
	if err := holder.haproxy.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	until(t, "the other machine takes the virtual IP over", only(other, holder))
	if took := time.Since(died); took > 3*time.Second {
		t.Errorf("it took %v after HAProxy had died", took)
	} else {
		t.Logf("HAProxy died: %v", took)
	}

	before := strings.Count(holder.log.String(), "Entering BACKUP STATE")
	holder.startHAProxy()
	until(t, "the machine is well again", func() bool { return strings.Count(holder.log.String(), "Entering BACKUP STATE") > before })
	holder, other = other, holder
	if !only(holder, other)() {
		t.Error("a machine that is well has lost the virtual IP to one that came back")
	}

	cut := time.Now()
	sw.run("bridge", "link", "set", "dev", holder.port, "state", "0") // nothing passes, and nobody is told
	until(t, "the virtual IP is on the machine that is heard", other.holds)
	if took := time.Since(cut); took > time.Second {
		t.Errorf("it took %v after the holder was cut off", took)
	} else {
		t.Logf("cut off: %v", took)
	}
	sw.run("bridge", "link", "set", "dev", holder.port, "state", "3")
	until(t, "one of both yields", func() bool { return holder.holds() != other.holds() })
}
