package node

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"kuorum/internal/agent"
	"kuorum/internal/cluster"
	"kuorum/internal/component"
	"kuorum/internal/datadir"
	"kuorum/internal/etcd"
	"kuorum/internal/membership"
	"kuorum/internal/pki"
	"kuorum/internal/supervise"
)

// TestMarker: what is noted is what is on the disk for certain, in the file always and
// in etcd when there is a quorum; the owner's word about older data ends with that.
func TestMarker(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	noQuorum := errors.New("no quorum")
	var process int
	var status cluster.EtcdStatus
	var telling error
	var told []uint64
	m := marker{
		file: filepath.Join(dir, "mark"), accept: filepath.Join(dir, "accept"),
		look: func(context.Context) (int, cluster.EtcdStatus) { return process, status },
		tell: func(_ context.Context, m datadir.Mark) error {
			if telling == nil {
				told = append(told, m.Index)
			}
			return telling
		},
	}
	if err := os.WriteFile(m.accept, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for i, step := range []struct {
		process  int
		index    uint64
		member   string
		silent   bool
		telling  error
		file     uint64 // in the file afterwards
		told     int    // how often etcd was told until then
		accepted bool   // the owner's word still counts
	}{
		{process: 7, index: 10, accepted: true},
		{process: 7, index: 10, accepted: true},
		{process: 7, index: 12, telling: noQuorum, file: 10, accepted: true},
		{process: 7, index: 12, file: 10, told: 1},
		{process: 7, index: 12, file: 10, told: 1},
		{process: 7, silent: true, file: 10, told: 1},
		{process: 0, index: 99, file: 10, told: 1}, // it was another one meanwhile
		{process: 7, index: 15, file: 12, told: 2},
		{process: 8, index: 16, file: 12, told: 2},
		{process: 8, index: 17, file: 16, told: 3},
		{process: 9, index: 4, member: "a2", file: 16, told: 3}, // rebuilt
		{process: 9, index: 5, member: "a2", file: 4, told: 4},
	} {
		process, telling = step.process, step.telling
		status = cluster.EtcdStatus{ID: "a1", Cluster: "c1", RaftIndex: step.index}
		if step.member != "" {
			status.ID = step.member
		}
		if step.silent {
			status = cluster.EtcdStatus{Error: "refused"}
		}
		if err := m.turn(t.Context()); !errors.Is(err, step.telling) {
			t.Errorf("turn %d: %v", i, err)
		}
		mark, err := datadir.ReadMark(m.file)
		if err != nil {
			t.Fatal(err)
		}
		_, err = os.Stat(m.accept)
		if mark.Index != step.file || len(told) != step.told || (err == nil) != step.accepted {
			t.Errorf("turn %d: in the file is %+v, told was %v, accepted: %v; want %+v", i, mark, told, err, step)
		}
	}
	mark, err := datadir.ReadMark(m.file)
	if err != nil || mark.Cluster != "c1" || mark.Member != "a2" || time.Since(mark.At).Abs() > time.Hour {
		t.Errorf("at last it is %+v, %v", mark, err)
	}
	if diff := cmp.Diff([]uint64{10, 12, 16, 4}, told); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// pipes is a listener whose callers come through net.Pipe.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case conn := <-p.conns:
		return conn, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error { p.once.Do(func() { close(p.closed) }); return nil }

func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

// TestOthersMarks: all others are asked at once, whoever refuses costs nothing, and
// whoever is silent no more than it may.
func TestOthersMarks(t *testing.T) {
	marks := []datadir.Mark{{Cluster: "c1", Member: "a3", Index: 7}}
	for name, test := range map[string]struct {
		how  map[string]string // of cp1, cp2: answers, refuses, silent, malformed
		want []datadir.Mark
		took time.Duration
	}{
		"both answer":             {map[string]string{"cp1": "answers", "cp2": "answers"}, append(marks, marks...), 0},
		"both refuse":             {map[string]string{"cp1": "refuses", "cp2": "refuses"}, nil, 0},
		"one refuses":             {map[string]string{"cp1": "refuses", "cp2": "answers"}, marks, 0},
		"one is off":              {map[string]string{"cp1": "silent", "cp2": "answers"}, marks, marksMore},
		"all others are off":      {map[string]string{"cp1": "silent", "cp2": "silent"}, nil, marksWait},
		"no etcd, and one is off": {map[string]string{"cp1": "no etcd", "cp2": "silent"}, nil, marksWait},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { askOthers(t, test.how, marks, test.want, test.took) })
		})
	}
}

func askOthers(t *testing.T, how map[string]string, marks, want []datadir.Mark, took time.Duration) {
	spec, err := cluster.New("demo", 3, 1)
	if err != nil {
		t.Fatal(err)
	}
	set, err := pki.NewSet(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	r := &routes{spec: spec, set: set}
	ways := map[string]func(context.Context) (net.Conn, error){}
	for _, n := range spec.Servers() {
		door := &pipes{conns: make(chan net.Conn), closed: make(chan struct{})}
		mux := http.NewServeMux()
		mux.HandleFunc("GET "+membership.MarksPath, serve(func(*http.Request, nothing) ([]datadir.Mark, error) {
			if how[n.Name] == "no etcd" {
				return nil, errors.New("cannot read /kuorum/marks/ in etcd")
			}
			return marks, nil
		}))
		config, err := pki.ServerTLS(set.Agents.Pair().Cert, r.pair(t, n))
		if err != nil {
			t.Fatal(err)
		}
		server := &http.Server{Handler: membersOnly(mux), TLSConfig: config, ReadHeaderTimeout: time.Minute, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
		go func() { _ = server.ServeTLS(door, "", "") }()
		defer func() { _ = server.Close() }()
		ways[net.JoinHostPort(n.Address, strconv.Itoa(agent.Port))] = func(ctx context.Context) (net.Conn, error) {
			switch how[n.Name] {
			case "refuses":
				return nil, syscall.ECONNREFUSED
			case "silent":
				select { // as the agents' own dialer; http does not end it with the request
				case <-ctx.Done():
				case <-time.After(1500 * time.Millisecond):
				}
				return nil, syscall.ETIMEDOUT
			}
			ours, theirs := net.Pipe()
			door.conns <- theirs
			return ours, nil
		}
	}
	cp3, _ := spec.Node("cp3")
	config, err := pki.ClientTLS(set.Agents.Pair().Cert, r.pair(t, cp3), "")
	if err != nil {
		t.Fatal(err)
	}
	a := &Agent{machine: component.Machine{Spec: spec, Node: cp3}, agents: agent.NewClient(config, func(ctx context.Context, address string) (net.Conn, error) {
		if ways[address] == nil || strings.HasPrefix(address, cp3.Address) {
			t.Errorf("%s is asked, which has no other member", address)
			return nil, syscall.ECONNREFUSED
		}
		return ways[address](ctx)
	})}
	a.spec.Store(spec)
	begin := time.Now()
	got := a.othersMarks(t.Context())
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if time.Since(begin) != took {
		t.Errorf("it took %v, want %v", time.Since(begin), took)
	}
	<-time.After(2 * time.Minute) // until idle connections are closed
}

// TestMarksAreServed to every node, as the node's own member has them, and refused at once
// when that does not run.
func TestMarksAreServed(t *testing.T) {
	t.Parallel()
	r := etcdNode(t)
	client, end := startEtcdIn(t, t.TempDir())
	register := membership.NewRegister(client)
	waitSeeded(t, register, r.spec)
	want := datadir.Mark{Cluster: "c1", Member: "a2", Index: 9, At: time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC)}
	if err := register.Mark(t.Context(), "e2", want); err != nil {
		t.Fatal(err)
	}
	r.agent.member.etcd = client
	e2, _ := r.spec.Node("e2")
	caller := r.pair(t, e2)
	code, said := r.call(t, &caller, http.MethodGet, membership.MarksPath, nil)
	var got []datadir.Mark
	if err := json.Unmarshal([]byte(said), &got); err != nil || code != http.StatusOK {
		t.Fatalf("%d, %v: %.200s", code, err, said)
	}
	if diff := cmp.Diff([]datadir.Mark{want}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if code, said := r.call(t, nil, http.MethodGet, membership.MarksPath, nil); code != http.StatusUnauthorized {
		t.Errorf("a stranger is answered with %d: %.200s", code, said)
	}
	end()
	if code, said := r.call(t, &caller, http.MethodGet, membership.MarksPath, nil); code != http.StatusInternalServerError {
		t.Errorf("without etcd the answer is %d: %.200s", code, said)
	}
}

// TestOldDataIsHeldBack: etcd does not start from less than it had, and the status tells.
func TestOldDataIsHeldBack(t *testing.T) {
	t.Parallel()
	r := etcdNode(t)
	dir := t.TempDir()
	client, end := startEtcdIn(t, dir)
	waitSeeded(t, membership.NewRegister(client), r.spec)
	had := client.Status(t.Context())
	end()
	m := r.agent.member
	m.etcd, m.metrics = client, etcd.WatchMetrics("http://127.0.0.1:1/metrics")
	m.data = r.agent.newGuard()
	m.data.Dir, m.data.Mark, m.data.Accept = dir, filepath.Join(dir, "mark"), filepath.Join(dir, "accept")
	list := r.agent.holdBack([]supervise.Process{{Name: "containerd"}, {Name: "etcd"}, {Name: "kube-apiserver"}})
	if list[0].May != nil || list[1].May == nil || list[2].May != nil {
		t.Fatalf("held back are %+v", list)
	}
	if err := list[1].May(t.Context()); err != nil || m.status(t.Context()).Old != nil {
		t.Errorf("without a mark: %v", err)
	}
	mark := datadir.Mark{Cluster: had.Cluster, Member: had.ID, Index: had.RaftIndex + 100, At: time.Now()}
	if err := datadir.WriteMark(m.data.Mark, mark); err != nil {
		t.Fatal(err)
	}
	if err := list[1].May(t.Context()); err == nil || !strings.Contains(err.Error(), "older") {
		t.Errorf("it may start from old data: %v", err)
	}
	if old := m.status(t.Context()).Old; old == nil || old.Had != mark.Index || old.Has < had.RaftIndex {
		t.Errorf("the status has %+v", old)
	}
}

// TestRebuildWithoutItsEtcd: a server whose own member does not run can ask nobody who
// is a server, and goes by its own cluster.yaml.
func TestRebuildWithoutItsEtcd(t *testing.T) {
	t.Parallel()
	r := newRoutes(t)
	dead, err := etcd.Dial(etcd.Config{Endpoints: []string{"http://127.0.0.1:1"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = dead.Close() })
	s := r.agent.server
	s.etcd, s.members.Register = dead, membership.NewRegister(dead)
	r.agent.member, r.agent.agents = &member{etcd: dead}, s.members.Agents
	r.serveAgain(t)
	admin, err := r.set.AgentClientPair("somebody", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	pair := func(name string) *pki.Pair {
		n, _ := r.spec.Node(name)
		p := r.pair(t, n)
		return &p
	}
	const asks, no = http.StatusServiceUnavailable, http.StatusConflict
	for name, caller := range map[string]struct {
		pair *pki.Pair
		want int
	}{"admin": {&admin, asks}, "itself": {&r.own, asks}, "cp2": {pair("cp2"), asks}, "w1": {pair("w1"), no}} {
		code, said := r.call(t, caller.pair, http.MethodPost, membership.RebuildPath, nothing{})
		if code != caller.want || code == asks && !strings.Contains(said, "no server of the cluster can do that now") {
			t.Errorf("%s: rebuild answers %d, want %d: %.200s", name, code, caller.want, said)
		}
	}
}
