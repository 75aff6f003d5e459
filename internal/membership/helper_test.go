package membership

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"kuorum/internal/agent"
	"kuorum/internal/cluster"
	"kuorum/internal/component"
	"kuorum/internal/etcd"
	"kuorum/internal/host"
	"kuorum/internal/pki"
)

const (
	etcdBinary = "../../build/bundle/bin/etcd"
	patience   = 20 * time.Second // of a test that waits for etcd on a busy machine
)

// world is a cluster with one etcd member that runs, and a Service on it. The
// addresses of its spec are those of a lab; whoever dials them is led to
// addresses of the loopback that are the world's own.
type world struct {
	spec    *cluster.Spec
	set     *pki.Set
	net     string // "127.a.b."
	service *Service

	mu      sync.Mutex
	deleted []string // Kubernetes objects
}

// newWorld has the named servers and one worker; only the first server's member
// runs, and no agent answers yet.
func newWorld(t *testing.T, servers int) *world {
	t.Helper()
	return newWorldApart(t, 0, servers)
}

// newWorldApart has etcd nodes too, if any; only the first member runs.
func newWorldApart(t *testing.T, etcdNodes, servers int) *world {
	t.Helper()
	if _, err := os.Stat(etcdBinary); err != nil {
		t.Fatalf("run make bundle first: %v", err)
	}
	spec, err := cluster.NewApart("demo", etcdNodes, servers, 1)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{spec: spec, net: loopbackNet()}
	if w.set, err = pki.NewSet(time.Now()); err != nil {
		t.Fatal(err)
	}
	w.startEtcd(t)
	client, err := etcd.Dial(etcd.Config{Endpoints: []string{"http://" + spec.EtcdNodes()[0].Address + ":2379"}, Dial: w.dial})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	dir := t.TempDir()
	for name, data := range w.set.Files() {
		must(t, host.WriteFile(filepath.Join(dir, "pki", name), data, 0o600))
	}
	admin, err := w.set.AgentClientPair("test", time.Now())
	must(t, err)
	config, err := pki.ClientTLS(w.set.Agents.Pair().Cert, admin, "")
	must(t, err)
	w.service = &Service{
		Self: "cp1", Register: NewRegister(client), Etcd: client, Apart: spec.EtcdApart(), Agents: agent.NewClient(config, w.dial), Dir: dir,
		Log: slog.New(slog.DiscardHandler), DeleteNode: func(_ context.Context, name string) error {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.deleted = append(w.deleted, name)
			return nil
		},
	}
	waitFor(t, "etcd to lead", func() error { return w.service.Register.Seed(within(t), spec) })
	waitFor(t, "etcd to tell its name", func() error {
		if s := client.Status(within(t)); len(s.Members) != 1 || s.Members[0].Name != spec.EtcdNodes()[0].Name {
			return fmt.Errorf("status is %+v", s)
		}
		return nil
	})
	return w
}

// loopbackNet keeps tests off each other's ports, which are fixed.
func loopbackNet() string { return fmt.Sprintf("127.%d.%d.", 2+rand.N(250), rand.N(256)) }

// dial leads from 198.18.0.N to the world's 127.a.b.N.
func (w *world) dial(ctx context.Context, address string) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, "tcp", strings.Replace(address, "198.18.0.", w.net, 1))
}

func (w *world) local(n cluster.Node) string {
	return strings.Replace(n.Address, "198.18.0.", w.net, 1)
}

func (w *world) startEtcd(t *testing.T) {
	t.Helper()
	n := w.spec.EtcdNodes()[0]
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), etcdBinary, "--name="+n.Name, "--data-dir="+t.TempDir(),
		"--listen-client-urls=http://"+w.local(n)+":2379", "--advertise-client-urls="+component.ClientURL(n),
		"--listen-peer-urls=http://"+w.local(n)+":2380", "--initial-advertise-peer-urls="+component.PeerURL(n),
		"--initial-cluster="+n.Name+"="+component.PeerURL(n), "--initial-cluster-token=test",
		"--heartbeat-interval=20", "--election-timeout=200", "--unsafe-no-fsync")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	must(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
}

// lives starts what answers as the agent of a node would.
func (w *world) lives(t *testing.T, name string, status func(context.Context) cluster.NodeStatus) {
	t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+agent.StatusPath, func(rw http.ResponseWriter, r *http.Request) {
		_ = json.NewEncoder(rw).Encode(status(r.Context())) // the caller has gone
	})
	w.answers(t, name, mux)
}

// answers starts what has the certificate and the address of a node's agent.
func (w *world) answers(t *testing.T, name string, mux *http.ServeMux) {
	t.Helper()
	n, ok := w.spec.Node(name)
	if !ok {
		t.Fatalf("no node %s", name)
	}
	own := agentPair(t, w.set, w.spec, n)
	config, err := pki.ServerTLS(w.set.Agents.Pair().Cert, own)
	must(t, err)
	server := httptest.NewUnstartedServer(mux)
	must(t, server.Listener.Close())
	if server.Listener, err = net.Listen("tcp", fmt.Sprintf("%s:%d", w.local(n), agent.Port)); err != nil {
		t.Fatal(err)
	}
	server.TLS = config
	server.StartTLS()
	t.Cleanup(server.Close)
}

// livesAsLeader starts the agent that tells of the member that runs.
func (w *world) livesAsLeader(t *testing.T) {
	t.Helper()
	n := w.spec.EtcdNodes()[0]
	w.lives(t, n.Name, func(ctx context.Context) cluster.NodeStatus {
		status := w.service.Etcd.Status(ctx)
		return cluster.NodeStatus{Name: n.Name, Role: n.Role, Etcd: &status, Time: time.Now()}
	})
}

func agentPair(t *testing.T, set *pki.Set, spec *cluster.Spec, n cluster.Node) (pair pki.Pair) {
	t.Helper()
	files, err := set.NodeFiles(spec, n, time.Now())
	must(t, err)
	for _, f := range files {
		switch f.Path {
		case "pki/agent.crt":
			pair.Cert = f.Data
		case "pki/agent.key":
			pair.Key = f.Data
		}
	}
	return pair
}

// token makes one and returns it as a machine shows it.
func (w *world) token(t *testing.T, role cluster.Role) string {
	t.Helper()
	secret, _, err := w.service.Register.CreateToken(within(t), role, time.Hour, time.Now())
	must(t, err)
	return secret.String()
}

func (w *world) now(t *testing.T) *cluster.Spec {
	t.Helper()
	spec, err := w.service.Register.Spec(within(t))
	must(t, err)
	return spec
}

// left is everything in etcd but tokens and cluster.yaml, and the peer URLs of
// all members.
func (w *world) left(t *testing.T) (keys, urls []string) {
	t.Helper()
	for _, prefix := range []string{joinPrefix, alivePrefix, leavePrefix, markPrefix} {
		records, err := w.service.Etcd.Records(within(t), prefix)
		must(t, err)
		for _, r := range records {
			keys = append(keys, r.Key)
		}
	}
	members, err := w.service.Etcd.Members(within(t))
	must(t, err)
	for _, m := range members {
		urls = append(urls, m.PeerURLs...)
	}
	return keys, urls
}

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
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

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// wants checks the exit code of an error, and what it says.
func wants(t *testing.T, err error, code int, says string) {
	t.Helper()
	problem, ok := errors.AsType[*cluster.Problem](err)
	if !ok || problem.ExitCode() != code || !strings.Contains(err.Error(), says) {
		t.Errorf("got %v, want exit code %d and %q", err, code, says)
	}
}
