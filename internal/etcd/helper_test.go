package etcd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"kuorum/internal/cluster"
)

const (
	etcdBinary = "../../build/bundle/bin/etcd"
	patience   = 20 * time.Second // of a test that waits for etcd on a busy machine
)

// server is an etcd process with an address of its own out of 127.0.0.0/8, so
// that no other test takes its ports between two starts.
type server struct {
	name   string
	client string // URL
	peer   string // URL
	dir    string
	flags  []string
	cmd    *exec.Cmd
}

func newServer(t *testing.T, name string, flags ...string) *server {
	t.Helper()
	if _, err := os.Stat(etcdBinary); err != nil {
		t.Fatalf("run make bundle first: %v", err)
	}
	n := rand.Uint32()
	ip := net.IPv4(127, byte(1+n%250), byte(n>>8), byte(1+(n>>16)%250)).String()
	s := &server{name: name, dir: t.TempDir(), flags: flags}
	s.client, s.peer = "http://"+freeAddress(t, ip), "http://"+freeAddress(t, ip)
	t.Cleanup(func() {
		s.kill()
		if t.Failed() {
			log, _ := os.ReadFile(filepath.Join(s.dir, "log"))
			t.Logf("the last of %s's log:\n%s", name, log[max(0, len(log)-4000):])
		}
	})
	return s
}

func freeAddress(t *testing.T, ip string) string {
	t.Helper()
	l, err := net.Listen("tcp", ip+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// start runs the server as one of a cluster of members; state is new or
// existing. Once it has data, etcd ignores both.
func (s *server) start(t *testing.T, state string, members ...*server) {
	t.Helper()
	var list []string
	for _, m := range members {
		list = append(list, m.name+"="+m.peer)
	}
	log, err := os.OpenFile(filepath.Join(s.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	s.cmd = exec.Command(etcdBinary, append([]string{
		"--name=" + s.name,
		"--data-dir=" + filepath.Join(s.dir, "data"),
		"--listen-client-urls=" + s.client, "--advertise-client-urls=" + s.client,
		"--listen-peer-urls=" + s.peer, "--initial-advertise-peer-urls=" + s.peer,
		"--initial-cluster=" + strings.Join(list, ","), "--initial-cluster-state=" + state,
		"--initial-cluster-token=test",
		"--heartbeat-interval=20", "--election-timeout=200",
	}, s.flags...)...)
	s.cmd.Stdout, s.cmd.Stderr = log, log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
}

func (s *server) kill() {
	if s.cmd != nil && s.cmd.ProcessState == nil {
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait()
	}
}

func (s *server) signal(t *testing.T, sig os.Signal) {
	t.Helper()
	if err := s.cmd.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
}

// freeze returns once no thread of the server runs any more.
func (s *server) freeze(t *testing.T) {
	t.Helper()
	s.signal(t, syscall.SIGSTOP)
	waitFor(t, s.name+" to freeze", func() error {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", s.cmd.Process.Pid))
		if err != nil || len(threads) == 0 {
			t.Fatalf("no threads: %v", err)
		}
		for _, thread := range threads {
			stat, err := os.ReadFile(thread)
			if err != nil {
				return err
			}
			if _, state, _ := strings.Cut(string(stat), ") "); !strings.HasPrefix(state, "T") {
				return fmt.Errorf("a thread is in state %.1s", state)
			}
		}
		return nil
	})
}

// startCluster starts n members and returns them once they have a leader.
func startCluster(t *testing.T, n int, flags ...string) []*server {
	t.Helper()
	var servers []*server
	for i := range n {
		servers = append(servers, newServer(t, fmt.Sprintf("m%d", i+1), flags...))
	}
	for _, s := range servers {
		s.start(t, "new", servers...)
	}
	for _, s := range servers {
		waitHealthy(t, s)
	}
	return servers
}

// waitHealthy waits until the server knows of a leader and has told the
// others its name, and returns what it says then.
func waitHealthy(t *testing.T, s *server) cluster.EtcdStatus {
	t.Helper()
	c := dialTo(t, nil, s)
	var got cluster.EtcdStatus
	waitFor(t, s.name+" to be healthy", func() error {
		got = c.Status(within(t, time.Second))
		named := got.Learner
		for _, m := range got.Members {
			named = named || m.Name == s.name
		}
		if got.Error != "" || got.Leader == "" || !named {
			return fmt.Errorf("status is %+v", got)
		}
		return nil
	})
	return got
}

func dialTo(t *testing.T, config *tls.Config, servers ...*server) *Client {
	t.Helper()
	return dialWith(t, Config{TLS: config}, servers...)
}

func dialWith(t *testing.T, config Config, servers ...*server) *Client {
	t.Helper()
	for _, s := range servers {
		config.Endpoints = append(config.Endpoints, s.client)
	}
	c, err := Dial(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// waitFor tries until it works; it says why it never did.
func waitFor(t *testing.T, what string, try func() error) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	end := time.Now().Add(patience)
	for {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("waited %v for %s: %v", patience, what, err)
		}
		<-tick.C
	}
}

// put writes a key, and fails the test unless it gets through.
func put(t *testing.T, c *Client, key, value string) {
	t.Helper()
	if _, err := c.members[0].client.Put(within(t, patience), key, value); err != nil {
		t.Fatalf("cannot write: %v", err)
	}
}

func mustDo(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// exitCode is what the program would end with.
func exitCode(err error) int {
	if err == nil {
		return cluster.ExitOK
	}
	if p, ok := errors.AsType[*cluster.Problem](err); ok {
		return p.ExitCode()
	}
	return cluster.ExitError
}
