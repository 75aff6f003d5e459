//go:build lab

package fault

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// patient is how long a packet may take here, at the most.
const patient = 700 * time.Millisecond

// TestMain makes this test binary be what runs on the machines, when it is
// called with a role.
func TestMain(m *testing.M) {
	if len(os.Args) < 3 || os.Args[1] != "role" {
		os.Exit(m.Run())
	}
	roles := map[string]func(string) error{"serve": serve, "talk": talk, "shout": shout}
	if err := roles[os.Args[2]](os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// serve echoes what TCP connections to the ports bring, and prints what
// datagrams to the first of them bring.
func serve(ports string) error {
	list := strings.Split(ports, ",")
	packets, err := net.ListenPacket("udp4", ":"+list[0])
	if err != nil {
		return err
	}
	for _, port := range list {
		ln, err := net.Listen("tcp4", ":"+port)
		if err != nil {
			return err
		}
		go func() {
			for {
				conn, err := ln.Accept()
				if err != nil {
					return
				}
				go func() { _, _ = io.Copy(conn, conn) }()
			}
		}()
	}
	fmt.Println("ready")
	buffer := make([]byte, 100)
	for {
		n, _, err := packets.ReadFrom(buffer)
		if err != nil {
			return err
		}
		fmt.Fprintf(os.Stdout, "%s\n", buffer[:n])
	}
}

// talk sends each line of its input over one connection, and prints the echo,
// or "lost".
func talk(address string) error {
	conn, err := net.DialTimeout("tcp4", address, patient)
	if err != nil {
		fmt.Println("lost")
		return nil
	}
	back := bufio.NewReader(conn)
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		if err := conn.SetDeadline(time.Now().Add(patient)); err != nil {
			return err
		}
		fmt.Fprintln(conn, in.Text())
		line, err := back.ReadString('\n')
		if err != nil {
			line = "lost\n"
		}
		fmt.Fprint(os.Stdout, line)
	}
	return nil
}

// shout sends one datagram, "ADDRESS text".
func shout(order string) error {
	address, text, _ := strings.Cut(order, " ")
	conn, err := net.Dial("udp4", address)
	if err == nil {
		_, err = conn.Write([]byte(text))
	}
	return err
}

// wires is a switch with three machines, each a network namespace.
type wires struct {
	t       *testing.T
	sw      *exec.Cmd
	ports   map[string]string
	at      map[string]*exec.Cmd     // the namespace of each, and of the switch ("host")
	address map[string]string        // without a port
	heard   map[string]<-chan string // what datagrams said to each
}

func newWires(t *testing.T) *wires {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("must run as root")
	}
	w := &wires{
		t: t, ports: map[string]string{}, at: map[string]*exec.Cmd{}, address: map[string]string{}, heard: map[string]<-chan string{},
	}
	w.sw = w.namespace()
	w.at["host"] = w.sw
	w.in(w.sw, "ip", "link", "add", "sw0", "type", "bridge")
	w.in(w.sw, "ip", "link", "set", "sw0", "up")
	w.in(w.sw, "ip", "address", "add", "198.18.0.1/24", "dev", "sw0")
	for i, name := range []string{"cp1", "cp2", "cp3"} {
		m := w.namespace()
		port := fmt.Sprintf("m%d", i)
		w.at[name], w.ports[name], w.address[name] = m, port, fmt.Sprintf("198.18.0.%d", 11+i)
		w.in(w.sw, "ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", fmt.Sprint(m.Process.Pid))
		w.in(w.sw, "ip", "link", "set", port, "master", "sw0", "up")
		w.in(m, "ip", "link", "set", "lo", "up")
		w.in(m, "ip", "link", "set", "eth0", "up")
		w.in(m, "ip", "address", "add", w.address[name]+"/24", "dev", "eth0")
		w.serve(name)
	}
	return w
}

func (w *wires) namespace() *exec.Cmd {
	w.t.Helper()
	cmd := exec.CommandContext(context.WithoutCancel(w.t.Context()), "sleep", "600")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _, _ = cmd.Process.Kill(), cmd.Wait() })
	return cmd
}

func inside(ctx context.Context, at *exec.Cmd, argv ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "nsenter", append([]string{"-t", fmt.Sprint(at.Process.Pid), "-n", "--"}, argv...)...)
}

func (w *wires) in(at *exec.Cmd, argv ...string) {
	w.t.Helper()
	if out, err := inside(w.t.Context(), at, argv...).CombinedOutput(); err != nil {
		w.t.Fatalf("%v: %v\n%s", argv, err, out)
	}
}

// role starts this program on a machine.
func (w *wires) role(name string, words ...string) (*exec.Cmd, io.Writer, <-chan string) {
	w.t.Helper()
	cmd := inside(context.WithoutCancel(w.t.Context()), w.at[name], append([]string{os.Args[0], "role"}, words...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	if err != nil {
		w.t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		w.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	lines := make(chan string, 100)
	go func() {
		for scan := bufio.NewScanner(out); scan.Scan(); {
			lines <- scan.Text()
		}
		close(lines)
	}()
	w.t.Cleanup(func() { _, _ = cmd.Process.Kill(), cmd.Wait() })
	return cmd, in, lines
}

func (w *wires) serve(name string) {
	w.t.Helper()
	_, _, heard := w.role(name, "serve", "7000,2380")
	w.heard[name] = heard
	if line := <-heard; line != "ready" {
		w.t.Fatalf("the server of %s says %q", name, line)
	}
}

// load gives the switch the rules of these faults, as the lab process does.
func (w *wires) load(faults ...Fault) {
	w.t.Helper()
	cmd := inside(w.t.Context(), w.sw, "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(Rules(faults, w.ports))
	if out, err := cmd.CombinedOutput(); err != nil {
		w.t.Fatalf("%v: %s", err, out)
	}
}

// line is an open connection.
type line struct {
	in    io.Writer
	lines <-chan string
}

func (l line) works() bool {
	fmt.Fprintln(l.in, "hello")
	return <-l.lines == "hello"
}

func (w *wires) open(from, to, port string) line {
	w.t.Helper()
	_, in, lines := w.role(from, "talk", net.JoinHostPort(w.address[to], port))
	return line{in, lines}
}

// connects tells whether a new connection works.
func (w *wires) connects(from, to, port string) bool {
	w.t.Helper()
	return w.open(from, to, port).works()
}

// hears tells whether a datagram arrives.
func (w *wires) hears(from, to string) bool {
	w.t.Helper()
	text := fmt.Sprintf("from %s at %d", from, time.Now().UnixNano())
	cmd, _, _ := w.role(from, "shout", net.JoinHostPort(w.address[to], "7000")+" "+text)
	if err := cmd.Wait(); err != nil {
		if _, ended := errors.AsType[*exec.ExitError](err); !ended { // a local refusal is a loss
			w.t.Fatal(err)
		}
	}
	limit := time.NewTimer(patient)
	defer limit.Stop()
	for {
		select {
		case said := <-w.heard[to]:
			if said == text {
				return true
			}
		case <-limit.C:
			return false
		}
	}
}

// expect checks which new connections work: "cp1>cp2:7000" must, "!cp1>..." must not.
func (w *wires) expect(when string, ways ...string) {
	w.t.Helper()
	for _, way := range ways {
		text, no := strings.CutPrefix(way, "!")
		from, rest, _ := strings.Cut(text, ">")
		to, port, _ := strings.Cut(rest, ":")
		if got := w.connects(from, to, port); got == no {
			w.t.Errorf("%s: %s is %v", when, text, got)
		}
	}
}

// TestRealCuts: packets are lost where they are to be, new connections and old,
// nowhere else; and all is as before when it is healed.
func TestRealCuts(t *testing.T) {
	t.Parallel()
	w := newWires(t)
	all := []string{"cp1>cp2:7000", "cp2>cp1:7000", "cp1>cp3:2380", "cp3>cp1:7000", "cp2>cp3:7000", "host>cp1:7000", "host>cp3:7000"}
	w.expect("before", all...)

	old := w.open("cp1", "cp2", "7000")
	if !old.works() {
		t.Fatal("no connection to begin with")
	}
	w.load(cut(t, "cp1|cp2", false))
	w.expect("two of three", "!cp1>cp2:7000", "!cp2>cp1:7000", "cp1>cp3:2380", "cp3>cp1:7000", "cp2>cp3:7000", "host>cp1:7000")
	if old.works() {
		t.Error("a connection that was open goes on")
	}

	w.load(cut(t, "cp1|cp2", false), cut(t, "cp3", false))
	w.expect("a cable too", "!cp1>cp2:7000", "!cp3>cp1:7000", "!cp2>cp3:7000", "!host>cp3:7000", "host>cp1:7000")
	w.load(cut(t, "cp3", false))
	w.expect("the cable alone", "cp1>cp2:7000", "!cp3>cp1:7000", "!host>cp3:7000")

	w.load(cut(t, "cp1|cp2,cp3", false, 2380))
	w.expect("a port", "!cp1>cp3:2380", "!cp3>cp1:2380", "!cp1>cp2:2380", "cp2>cp3:2380", "cp1>cp3:7000", "cp3>cp1:7000", "host>cp1:2380")

	w.load()
	w.expect("healed", all...)
	out, err := inside(t.Context(), w.sw, "nft", "list", "ruleset").Output()
	if err != nil || len(out) != 0 {
		t.Errorf("left behind: %v\n%s", err, out)
	}
}

// TestRealOneWay: what goes from the left to the right is lost, the other way
// works, also without anybody's ARP entry.
func TestRealOneWay(t *testing.T) {
	t.Parallel()
	w := newWires(t)
	if !w.hears("cp1", "cp2") || !w.hears("cp2", "cp1") {
		t.Fatal("no datagrams to begin with")
	}
	w.load(cut(t, "cp1|cp2", true))
	for _, name := range []string{"cp1", "cp2"} {
		w.in(w.at[name], "ip", "neigh", "flush", "dev", "eth0")
	}
	if w.hears("cp1", "cp2") {
		t.Error("what was to be lost arrives")
	}
	if !w.hears("cp2", "cp1") || !w.hears("cp1", "cp3") || !w.hears("host", "cp2") {
		t.Error("more is lost than was asked for")
	}
	w.load(cut(t, "cp1", true))
	if w.hears("cp1", "cp3") || !w.hears("cp3", "cp1") || !w.hears("host", "cp1") {
		t.Error("a machine that only hears is not so")
	}

	w.load()
	old := w.open("cp1", "cp2", "2380")
	if !old.works() {
		t.Fatal("no connection to begin with")
	}
	w.load(cut(t, "cp2|cp1", true, 2380)) // the answers
	if old.works() {
		t.Error("an open connection gets its answers")
	}
	if !w.connects("cp2", "cp1", "7000") || !w.hears("cp2", "cp1") {
		t.Error("other ports are lost too")
	}
	w.load()
	if !w.hears("cp1", "cp2") || !w.connects("cp1", "cp2", "2380") {
		t.Error("it is not healed")
	}
}
