package node

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"kuorum/internal/agent"
	"kuorum/internal/cluster"
	"kuorum/internal/component"
	"kuorum/internal/etcd"
	"kuorum/internal/host"
	"kuorum/internal/lease"
	"kuorum/internal/membership"
	"kuorum/internal/pki"
	"kuorum/internal/relocation"
)

const etcdBinary = "../../build/bundle/bin/etcd"

// routes is a server's API over TLS, with an etcd member that runs, and the
// certificates of those who may call.
type routes struct {
	agent *Agent
	spec  *cluster.Spec
	set   *pki.Set
	url   string
	own   pki.Pair
}

func newRoutes(t *testing.T) *routes {
	t.Helper()
	spec, err := cluster.New("demo", 2, 2)
	if err != nil {
		t.Fatal(err)
	}
	set, err := pki.NewSet(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	client := startEtcd(t)
	r := &routes{spec: spec, set: set}
	r.own = r.pair(t, spec.Spec.Nodes[0])
	dir := t.TempDir()
	for name, data := range set.Files() {
		if err := host.WriteFile(dir+"/pki/"+name, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	config, err := pki.ClientTLS(set.Agents.Pair().Cert, r.own, "")
	if err != nil {
		t.Fatal(err)
	}
	options := Options{Log: slog.New(slog.DiscardHandler)}
	s := &server{etcd: client, api: apiClient{}, address: spec.Spec.Nodes[0].Address}
	nobody := func(context.Context, string) (net.Conn, error) { return nil, syscall.ECONNREFUSED }
	machine := component.Machine{Spec: spec, Node: spec.Spec.Nodes[0]}
	s.members = newMembership(machine, options, s, agent.NewClient(config, nobody))
	s.members.Dir = dir
	s.members.DeleteNode = func(context.Context, string) error { return nil }
	r.agent = &Agent{options: options, machine: machine, server: s, removed: make(chan struct{}), complete: make(chan struct{})}
	r.agent.etc = dir
	r.agent.spec.Store(spec)
	close(r.agent.complete)
	waitSeeded(t, s.members.Register, spec)

	mux := http.NewServeMux() // as serveAPI has it
	mux.Handle("/", membersOnly(r.agent.membersAPI()))
	s.joinAPI(mux)
	web := httptest.NewUnstartedServer(mux)
	if web.TLS, err = pki.ServerTLS(set.Agents.Pair().Cert, r.own); err != nil {
		t.Fatal(err)
	}
	web.StartTLS()
	t.Cleanup(web.Close)
	r.url = web.URL
	return r
}

func startEtcd(t *testing.T) *etcd.Client {
	t.Helper()
	client, _ := startEtcdIn(t, t.TempDir())
	return client
}

// startEtcdIn gives it a data directory; it ends with the returned function, or with the test.
func startEtcdIn(t *testing.T, dir string) (client *etcd.Client, end func()) {
	t.Helper()
	if _, err := os.Stat(etcdBinary); err != nil {
		t.Fatalf("run make bundle first: %v", err)
	}
	at := fmt.Sprintf("http://127.%d.%d.1:", 2+rand.N(250), rand.N(256))
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), etcdBinary, "--name=cp1", "--data-dir="+dir, "--unsafe-no-fsync",
		"--listen-client-urls="+at+"2379", "--advertise-client-urls="+at+"2379", "--listen-peer-urls="+at+"2380",
		"--initial-advertise-peer-urls="+at+"2380", "--initial-cluster=cp1="+at+"2380", "--heartbeat-interval=20", "--election-timeout=200")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	client, err := etcd.Dial(etcd.Config{Endpoints: []string{at + "2379"}})
	if err != nil {
		t.Fatal(err)
	}
	end = func() { _, _ = cmd.Process.Kill(), cmd.Wait() }
	t.Cleanup(func() { _ = client.Close(); end() })
	return client, end
}

func waitSeeded(t *testing.T, register *membership.Register, spec *cluster.Spec) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := register.Seed(ctx, spec)
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatal(err)
		case <-tick.C:
		}
	}
}

func (r *routes) pair(t *testing.T, n cluster.Node) (pair pki.Pair) {
	t.Helper()
	files, err := r.set.NodeFiles(r.spec, n, time.Now())
	if err != nil {
		t.Fatal(err)
	}
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

// call asks with a certificate, or without one, and returns the HTTP status and
// what was said.
func (r *routes) call(t *testing.T, pair *pki.Pair, method, path string, in any) (int, string) {
	t.Helper()
	config, err := pki.ClientTLS(r.set.Agents.Pair().Cert, r.own, "")
	if err != nil {
		t.Fatal(err)
	}
	config.Certificates = nil
	if pair != nil {
		loaded, err := tls.X509KeyPair(pair.Cert, pair.Key)
		if err != nil {
			t.Fatal(err)
		}
		config.Certificates = []tls.Certificate{loaded}
	}
	body, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{TLSClientConfig: config}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), method, r.url+path, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(data)
}

// TestWhoMayCallWhat asks every route as everybody. cp9 was a server once: its
// certificate is still good, but it is no node any more.
func TestWhoMayCallWhat(t *testing.T) {
	t.Parallel()
	r := newRoutes(t)
	admin, err := r.set.AgentClientPair("somebody", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	grown, err := r.spec.With(cluster.Node{Name: "cp9", Role: cluster.RoleServer})
	if err != nil {
		t.Fatal(err)
	}
	cp9, _ := grown.Node("cp9")
	node := func(name string) *pki.Pair {
		n, ok := r.spec.Node(name)
		if !ok {
			t.Fatalf("no node %s", name)
		}
		pair := r.pair(t, n)
		return &pair
	}
	ours := r.spec
	r.spec = grown // or nobody would make files for cp9
	gone := r.pair(t, cp9)
	r.spec = ours
	callers := []struct {
		name string
		pair *pki.Pair
	}{{"stranger", nil}, {"admin", &admin}, {"cp2", node("cp2")}, {"w1", node("w1")}, {"gone", &gone}}

	const yes, who, no = http.StatusOK, http.StatusUnauthorized, http.StatusConflict
	for _, test := range []struct {
		method, path string
		in           any
		want         []int // in the order of callers
	}{
		{"GET", membership.SpecPath, nil, []int{who, yes, yes, yes, yes}},
		{"GET", membership.TokensPath, nil, []int{who, yes, yes, no, no}},
		{"POST", membership.TokensPath, membership.TokenOrder{Role: "server", Life: cluster.Duration(time.Hour)}, []int{who, yes, yes, no, no}},
		{"POST", membership.RevokePath, membership.TokenID{ID: "x"}, []int{who, 400, 400, no, no}},
		{"POST", membership.ProgressPath, membership.Report{Name: "w1"}, []int{who, yes, yes, yes, no}},
		{"POST", membership.ProgressPath, membership.Report{Name: "w2"}, []int{who, yes, yes, no, no}},
		{"GET", membership.RemovePath + membership.Removal{Name: "w1"}.Query(), nil, []int{who, yes, yes, yes, no}},
		{"GET", membership.RemovePath + membership.Removal{Name: "w2", Force: true}.Query(), nil, []int{who, yes, yes, no, no}},
		{"GET", membership.RemovePath, nil, []int{who, 400, 400, no, no}},
		{"POST", membership.RemovePath, membership.Removal{Name: "w1", Dry: true}, []int{who, yes, yes, yes, no}}, // as an older kuorum asks
		{"POST", membership.RemovePath, membership.Removal{}, []int{who, 400, 400, no, no}},
		{"POST", membership.JoinPath, membership.Request{Token: "x", Name: "w9", Role: "server"}, []int{400, 400, 400, 400, 400}},
		{"POST", membership.CheckPath, membership.Request{Token: "x", Name: "w9", Role: "server"}, []int{400, 400, 400, 400, 400}},
		{"POST", membership.CancelPath, membership.Request{Token: "x", Name: "w9", Role: "server"}, []int{400, 400, 400, 400, 400}},
		{"POST", relocation.MovePath, relocation.Order{Addresses: map[string]string{"w2": "198.18.0.64"}, Dry: true}, []int{who, yes, yes, no, no}},
		{"POST", relocation.MovePath, relocation.Order{Addresses: map[string]string{"cp1": "198.18.0.61"}, Dry: true}, []int{who, no, no, no, no}}, // it is not there
		{"POST", relocation.MovePath, relocation.Order{Addresses: map[string]string{"w2": "198.18.0.11"}}, []int{who, no, no, no, no}},
		{"POST", relocation.MovePath, relocation.Order{Addresses: map[string]string{"w7": "198.18.0.64"}}, []int{who, 400, 400, no, no}},
		{"POST", relocation.MovePath, "no object", []int{who, 400, 400, no, no}},
		{"POST", relocation.ArrivedPath, relocation.Arrival{Name: "w1", Address: "198.18.0.101"}, []int{who, no, no, yes, no}},
		{"POST", relocation.ArrivedPath, relocation.Arrival{}, []int{who, no, no, no, no}},
		{"POST", lease.MovePath, lease.Order{Program: "x"}, []int{who, 400, 400, no, no}},
		{"POST", lease.StandbyPath, lease.Order{Program: "x"}, []int{who, 400, 400, no, no}},
		{"POST", membership.ProgressPath, "no object", []int{who, 400, 400, 400, 400}},
		{"POST", membership.TokensPath, strings.Repeat("x", maxRequest), []int{who, 400, 400, 400, 400}},
		{"GET", membership.JoinPath, nil, []int{who, 404, 404, 404, 404}},
	} {
		for i, caller := range callers {
			code, said := r.call(t, caller.pair, test.method, test.path, test.in)
			if code != test.want[i] {
				t.Errorf("%s: %s %s answers %d, want %d: %.200s", caller.name, test.method, test.path, code, test.want[i], said)
			}
			if strings.Contains(said, "PRIVATE KEY") {
				t.Errorf("%s was told a key by %s", caller.name, test.path)
			}
		}
	}
}

// TestAWorkersTokenBringsNoKeys, whatever role the machine claims.
func TestAWorkersTokenBringsNoKeys(t *testing.T) {
	t.Parallel()
	r := newRoutes(t)
	code, said := r.call(t, &r.own, http.MethodPost, membership.TokensPath, membership.TokenOrder{Role: "worker", Life: cluster.Duration(time.Hour)})
	var token membership.NewToken
	if err := json.Unmarshal([]byte(said), &token); err != nil || code != http.StatusOK || token.Hash != "" || token.Server != "198.18.0.11" {
		t.Fatalf("%d %s: %v", code, said, err)
	}
	if pin, err := pki.Pin(r.set.Agents.Pair().Cert); err != nil || pin != token.Pin {
		t.Errorf("the pin is %s, want %s, %v", token.Pin, pin, err)
	}
	keys, err := pki.NewNodeKeys(cluster.RoleWorker)
	if err != nil {
		t.Fatal(err)
	}
	in := membership.Request{Token: token.Secret, Name: "w9", Role: "worker", Address: "198.18.0.150", Time: time.Now()}
	if in.Requests, err = keys.Requests(); err != nil {
		t.Fatal(err)
	}
	for role, want := range map[cluster.Role]int{"server": http.StatusConflict, "": http.StatusConflict, "worker": http.StatusOK} {
		in.Role = role
		code, said := r.call(t, nil, http.MethodPost, membership.JoinPath, in)
		if code != want || strings.Contains(said, "secrets") {
			t.Errorf("as %q: %d %.300s", role, code, said)
		}
	}
}

// TestLeave: only the node itself and administrators put it away, and they hear
// that they were understood although the agent stops at once.
func TestLeave(t *testing.T) {
	t.Parallel()
	r := newRoutes(t)
	w1, _ := r.spec.Node("w1")
	other := r.pair(t, w1)
	for _, pair := range []*pki.Pair{nil, &other} {
		if code, said := r.call(t, pair, http.MethodPost, membership.LeavePath, nil); code == http.StatusOK {
			t.Errorf("somebody else may: %s", said)
		}
	}
	select {
	case <-r.agent.removed:
		t.Fatal("it leaves")
	default:
	}
	for range 2 {
		if code, said := r.call(t, &r.own, http.MethodPost, membership.LeavePath, nil); code != http.StatusOK {
			t.Errorf("%d %s", code, said)
		}
	}
	<-r.agent.removed
}

// flushed tells whether an answer was on its way when something happened.
type flushed struct {
	*httptest.ResponseRecorder
	t       *testing.T
	removed chan struct{}
}

func (f *flushed) Flush() {
	select {
	case <-f.removed:
		f.t.Error("it leaves before it has answered")
	default:
	}
	f.ResponseRecorder.Flush()
}

func TestLeaveAnswersFirst(t *testing.T) {
	set, err := pki.NewSet(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	admin, err := set.AgentClientPair("somebody", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(admin.Cert, admin.Key)
	if err != nil {
		t.Fatal(err)
	}
	a := &Agent{removed: make(chan struct{})}
	w := &flushed{ResponseRecorder: httptest.NewRecorder(), t: t, removed: a.removed}
	r := httptest.NewRequest(http.MethodPost, membership.LeavePath, nil)
	r.TLS = &tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{pair.Leaf}}}
	a.membersAPI().ServeHTTP(w, r)
	if !w.Flushed {
		t.Error("the answer waits for the end of the handler, by when the agent may have closed the connection")
	}
	<-a.removed
}

// TestSlowStrangers: who sends a request without end is cut off, and one that
// takes long to answer is not.
func TestSlowStrangers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		read := make(chan error, 1)
		server := &http.Server{Handler: serve(func(r *http.Request, _ membership.Request) (nothing, error) {
			<-time.After(10 * requestPatience)
			read <- r.Context().Err()
			return nothing{}, nil
		})}
		listener := &oneConn{conn: ours, closed: make(chan struct{})}
		go func() { _ = server.Serve(listener) }()
		defer func() { _ = server.Close() }()
		const head = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n"
		if _, err := io.WriteString(theirs, head+"{}"); err != nil {
			t.Fatal(err)
		}
		in := bufio.NewReader(theirs)
		resp, err := http.ReadResponse(in, nil)
		if err != nil || resp.StatusCode != http.StatusOK || <-read != nil {
			t.Fatalf("a long answer: %+v, %v", resp, err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		begin := time.Now()
		if _, err := io.WriteString(theirs, head+"{"); err != nil {
			t.Fatal(err)
		}
		resp, err = http.ReadResponse(in, nil)
		if err != nil || resp.StatusCode != http.StatusBadRequest || time.Since(begin) != requestPatience {
			t.Errorf("after %v: %+v, %v", time.Since(begin), resp, err)
		}
		_ = theirs.Close()
	})
}

// oneConn is a listener of one connection.
type oneConn struct {
	conn   net.Conn
	closed chan struct{}
}

func (l *oneConn) Accept() (net.Conn, error) {
	if conn := l.conn; conn != nil {
		l.conn = nil
		return conn, nil
	}
	<-l.closed
	return nil, errors.New("closed")
}

func (l *oneConn) Close() error {
	close(l.closed)
	return nil
}

func (l *oneConn) Addr() net.Addr { return &net.TCPAddr{} }
