package membership

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"kuorum/internal/agent"
	"kuorum/internal/cluster"
	"kuorum/internal/component"
)

func lit(t *testing.T, role cluster.Role) (*beacon, cluster.Node) {
	t.Helper()
	n := cluster.Node{Name: "n", Role: role, Address: loopbackNet() + "1"}
	b, err := light(t.Context(), n)
	must(t, err)
	t.Cleanup(b.quench)
	return b, n
}

// TestCallBack: the cluster finds the machine itself at all of its ports, and
// says which is closed or another's.
func TestCallBack(t *testing.T) {
	t.Parallel()
	stacked := &cluster.Spec{}
	for _, role := range cluster.Roles() {
		b, n := lit(t, role)
		r := Request{Name: n.Name, Role: role, Address: n.Address, Nonce: b.nonce}
		for range 2 {
			if err := callBack(t.Context(), stacked, r); err != nil {
				t.Errorf("%s: %v", role, err)
			}
		}
		r.Nonce = rand.Text()
		wants(t, callBack(t.Context(), stacked, r), cluster.ExitRefused, "another machine answers there")
		r.Nonce = "short"
		wants(t, callBack(t.Context(), stacked, r), cluster.ExitUsage, "no nonce")
	}
	b, n := lit(t, cluster.RoleWorker)
	err := callBack(t.Context(), stacked, Request{Name: "n", Role: cluster.RoleServer, Address: n.Address, Nonce: b.nonce})
	wants(t, err, cluster.ExitRefused, "the cluster does not reach n at "+n.Address)
	for port, closed := range map[int]bool{agent.Port: false, component.PortKubelet: false, component.PortEtcdPeer: true, component.PortAPIServer: true} {
		if strings.Contains(err.Error(), fmt.Sprintf("port %d: ", port)) != closed {
			t.Errorf("port %d, closed %v: %v", port, closed, err)
		}
	}
	if strings.Contains(err.Error(), "agent") {
		t.Errorf("no agent is meant to be there: %v", err)
	}
}

// TestBeaconNeedsFreePorts, and an address of the machine's own; it lets go of
// the ports when it fails and when it is put out.
func TestBeaconNeedsFreePorts(t *testing.T) {
	t.Parallel()
	b, n := lit(t, cluster.RoleServer)
	_, err := light(t.Context(), n)
	wants(t, err, cluster.ExitRefused, "cannot listen on "+n.Address)
	if !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("got %v", err)
	}
	b.quench()
	b, err = light(t.Context(), n)
	must(t, err)
	b.quench()

	last := portsOf(&cluster.Spec{}, cluster.Node{Role: cluster.RoleServer})[3]
	ln, err := net.Listen("tcp", fmt.Sprintf("%s:%d", n.Address, last))
	must(t, err)
	_, err = light(t.Context(), n)
	wants(t, err, cluster.ExitRefused, fmt.Sprintf(":%d", last))
	must(t, ln.Close())
	b, err = light(t.Context(), n) // the first three are free again
	must(t, err)
	b.quench()

	n.Address = "192.0.2.1"
	_, err = light(t.Context(), n)
	problem, ok := errors.AsType[*cluster.Problem](err)
	if !ok || !strings.Contains(problem.Do, "--address") {
		t.Errorf("got %v", err)
	}
}

// TestHearIsBounded: a machine that talks without end costs no memory and no
// time.
func TestHearIsBounded(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer func() { _ = ln.Close() }()
	sent := make(chan int, 1)
	go func() {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		defer func() { _ = conn.Close() }()
		total := 0
		for block := make([]byte, 1<<16); ; {
			n, err := conn.Write(block)
			if total += n; err != nil {
				sent <- total
				return
			}
		}
	}()
	begin := time.Now()
	if err := hear(t.Context(), ln.Addr().String(), rand.Text()); err == nil {
		t.Error("zeros are taken for the nonce")
	}
	if took := time.Since(begin); took >= dialPatience {
		t.Errorf("it took %v", took)
	}
	if got := <-sent; got > 32<<20 {
		t.Errorf("%d bytes were taken", got)
	}
}

func TestReachServers(t *testing.T) {
	t.Parallel()
	var servers []cluster.Node
	for i := range 3 { // the third is off
		n := cluster.Node{Name: fmt.Sprintf("cp%d", i+1), Role: cluster.RoleServer, Address: loopbackNet() + "1"}
		servers = append(servers, n)
		if i == 2 {
			continue
		}
		b, err := light(t.Context(), n)
		must(t, err)
		t.Cleanup(b.quench)
	}
	off := servers[2]
	if err := reachAll(t.Context(), cluster.RoleServer, Plan{Servers: servers}, 0); err != nil {
		t.Errorf("two of three are enough: %v", err)
	}
	err := reachAll(t.Context(), cluster.RoleServer, Plan{Servers: []cluster.Node{servers[0], off}}, 0)
	wants(t, err, cluster.ExitRefused, "cp3 at "+off.Address+": port 9443: ")

	half, err := net.Listen("tcp", fmt.Sprintf("%s:%d", off.Address, agent.Port))
	must(t, err)
	defer func() { _ = half.Close() }()
	err = reachAll(t.Context(), cluster.RoleServer, Plan{Servers: servers}, 0)
	wants(t, err, cluster.ExitRefused, "port 6444: the machine answers, but refuses")
	wants(t, err, cluster.ExitRefused, "port 2380: ")
	if strings.Contains(err.Error(), "agent") || strings.Contains(err.Error(), "9443") {
		t.Errorf("its agent answers: %v", err)
	}
	// Its API server starts again while somebody joins.
	waited := make(chan error, 1)
	go func() { waited <- reachAll(t.Context(), cluster.RoleWorker, Plan{Servers: servers}, time.Minute) }()
	select {
	case err := <-waited:
		t.Fatalf("an API server that starts again is not waited for: %v", err)
	case <-time.After(2 * knockAgain):
	}
	api, err := net.Listen("tcp", fmt.Sprintf("%s:%d", off.Address, component.PortAPIServer))
	must(t, err)
	defer func() { _ = api.Close() }()
	if err := <-waited; err != nil {
		t.Errorf("the API server has started: %v", err)
	}
	if err := reachAll(t.Context(), cluster.RoleWorker, Plan{Servers: servers}, 0); err != nil {
		t.Errorf("a worker needs no etcd: %v", err)
	}
}

func TestAllTakePart(t *testing.T) {
	t.Parallel()
	server := func(name string) cluster.Node { return cluster.Node{Name: name, Role: cluster.RoleServer} }
	voters := []cluster.Voter{{Name: "cp1", Healthy: true}, {Name: "cp2"}, {Name: "cp3", Healthy: true}}
	wants(t, allTakePart(voters, server("cp4")), cluster.ExitRefused, "a voter is missing: cp2: etcd adds no member then: 3 voters, 2 healthy")
	if err := allTakePart(voters, server("cp2")); err != nil {
		t.Errorf("the dead one cannot be replaced: %v", err)
	}
	if err := allTakePart(voters[2:], server("cp4")); err != nil {
		t.Error(err)
	}
	voters[0].Healthy = false
	wants(t, allTakePart(voters, server("cp2")), cluster.ExitRefused, "missing: cp1: ")
}
