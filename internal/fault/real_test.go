//go:build lab

package fault

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"kuorum/internal/testnet"
)

// patient is how long a packet may take here, at the most.
const patient = 700 * time.Millisecond

func TestMain(m *testing.M) {
	os.Exit(testnet.Main(m, map[string]testnet.Role{"serve": serve, "talk": talk, "shout": shout}))
}

// serve echoes what TCP connections to the ports bring, and prints what
// datagrams to the first of them bring.
func serve(ports []string) error {
	packets, err := net.ListenPacket("udp4", ":"+ports[0])
	if err != nil {
		return err
	}
	for _, port := range ports {
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
func talk(args []string) error {
	conn, err := net.DialTimeout("tcp4", args[0], patient)
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

// shout sends one datagram: an address, and what to say there.
func shout(args []string) error {
	conn, err := net.Dial("udp4", args[0])
	if err == nil {
		_, err = conn.Write([]byte(args[1]))
	}
	return err
}

// wires is a switch with three machines, which have servers.
type wires struct {
	t       *testing.T
	sw      *testnet.Switch
	ports   map[string]string
	at      map[string]testnet.Namespace // each machine, and the switch ("host")
	address map[string]string            // without a port
	heard   map[string]<-chan string     // what datagrams said to each
}

func newWires(t *testing.T) *wires {
	t.Helper()
	w := &wires{
		t: t, sw: testnet.New(t), ports: map[string]string{}, at: map[string]testnet.Namespace{},
		address: map[string]string{}, heard: map[string]<-chan string{},
	}
	w.at["host"] = w.sw.Namespace
	w.sw.Address("198.18.0.1/24")
	for i, name := range []string{"cp1", "cp2", "cp3"} {
		w.address[name] = fmt.Sprintf("198.18.0.%d", 11+i)
		m := w.sw.Machine(fmt.Sprintf("m%d", i), w.address[name]+"/24")
		w.at[name], w.ports[name] = m.Namespace, m.Port
		server := testnet.Talk(t, m.Role("serve", "7000", "2380"))
		w.heard[name] = server.Lines
		if line := <-server.Lines; line != "ready" {
			t.Fatalf("the server of %s says %q", name, line)
		}
	}
	return w
}

// load gives the switch the rules of these faults, as the lab process does.
func (w *wires) load(faults ...Fault) {
	w.t.Helper()
	cmd := w.sw.Command(w.t.Context(), "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(Rules(faults, w.ports))
	if out, err := cmd.CombinedOutput(); err != nil {
		w.t.Fatalf("%v: %s", err, out)
	}
}

// line is an open connection.
type line struct{ *testnet.Child }

func (l line) works() bool {
	fmt.Fprintln(l.In, "hello")
	return <-l.Lines == "hello"
}

func (w *wires) open(from, to, port string) line {
	w.t.Helper()
	return line{testnet.Talk(w.t, w.at[from].Role("talk", net.JoinHostPort(w.address[to], port)))}
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
	if err := w.at[from].Role("shout", net.JoinHostPort(w.address[to], "7000"), text).Run(); err != nil {
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
	if out := w.sw.Run("nft", "list", "ruleset"); out != "" {
		t.Errorf("left behind:\n%s", out)
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
		w.at[name].Run("ip", "neigh", "flush", "dev", testnet.Link)
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
