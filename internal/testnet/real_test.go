//go:build lab

package testnet

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestMain(m *testing.M) {
	os.Exit(Main(m, map[string]Role{"echo": echo, "ask": ask}))
}

// echo answers what it hears at its port.
func echo([]string) error {
	ln, err := net.Listen("tcp", ":7000")
	if err != nil {
		return err
	}
	fmt.Println("ready")
	for {
		conn, err := ln.Accept()
		if err != nil {
			return err
		}
		go func() { _, _ = io.Copy(conn, conn) }()
	}
}

// ask says a word to the echo at an address, and prints what it hears.
func ask(args []string) error {
	conn, err := net.DialTimeout("tcp", net.JoinHostPort(args[0], "7000"), 700*time.Millisecond)
	if err != nil {
		return err
	}
	if _, err := conn.Write([]byte("hello\n")); err != nil {
		return err
	}
	heard := make([]byte, 6)
	_, err = io.ReadFull(conn, heard)
	fmt.Fprint(os.Stdout, string(heard))
	return err
}

// TestRealSwitch: machines hear each other by both families, but for one whose
// cable is out; the host knows nothing of it, and nothing is left.
func TestRealSwitch(t *testing.T) {
	before := children(t)
	if ok := t.Run("switch", connects); !ok {
		return
	}
	if diff := cmp.Diff(before, children(t)); diff != "" {
		t.Errorf("the processes of this one (-before +after):\n%s", diff)
	}
}

func connects(t *testing.T) {
	sw := New(t)
	sw.Address("10.79.0.254/24")
	a := sw.Machine("testnet-a", "10.79.0.1/24", "fd79::1/64")
	b := sw.Machine("testnet-b", "10.79.0.2/24", "fd79::2/64")
	if got := Talk(t, a.Role("echo")).Next(10 * time.Second); got != "ready" {
		t.Fatalf("the echo says %q", got)
	}
	hears := func(n Namespace, address string) bool {
		out, err := n.Role("ask", address).Output()
		if _, refused := errors.AsType[*exec.ExitError](err); err != nil && !refused {
			t.Fatal(err)
		}
		return string(out) == "hello\n"
	}
	for what, got := range map[string]bool{
		"by IPv4": hears(b.Namespace, "10.79.0.1"), "by IPv6": hears(b.Namespace, "fd79::1"),
		"from the switch": hears(sw.Namespace, "10.79.0.1"), "on the loopback": hears(a.Namespace, "127.0.0.1"),
	} {
		if !got {
			t.Errorf("nothing is heard %s", what)
		}
	}
	if _, err := net.InterfaceByName(a.Port); err == nil {
		t.Error("the host has a port of the switch")
	}
	if len(children(t)) < 4 {
		t.Error("its processes are not found, so it is not known whether they end")
	}
	a.Cut()
	if hears(b.Namespace, "10.79.0.1") {
		t.Error("a machine is heard whose cable is out")
	}
	if !strings.Contains(a.Run("ip", "link", "show", Link), "LOWER_UP") {
		t.Error("it notices")
	}
	a.Restore()
	if !hears(b.Namespace, "10.79.0.1") {
		t.Error("nothing is heard with the cable in again")
	}
	a.Remove()
	if out, err := a.Command(t.Context(), "ip", "link", "show", Link).CombinedOutput(); err == nil {
		t.Errorf("the link is there still: %s", out)
	}
	if err := b.Role("nobody").Run(); err == nil {
		t.Error("a role that does not exist ends well")
	}
}

// children are the processes that this one has started.
func children(t *testing.T) (pids []string) {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		text, _ := os.ReadFile(file) // it may have ended
		_, rest, _ := strings.Cut(string(text), ") ")
		if fields := strings.Fields(rest); len(fields) > 1 && fields[1] == strconv.Itoa(os.Getpid()) {
			pids = append(pids, file)
		}
	}
	return pids
}
