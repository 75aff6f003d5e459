package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"kuorum/internal/agent"
	"kuorum/internal/cluster"
	"kuorum/internal/component"
	"kuorum/internal/membership"
	"kuorum/internal/pki"
	"kuorum/internal/relocation"
)

// TestAskSpec: a node leaves when a server says that the cluster has none of
// its name and address, and never because nobody answers, or because one of the
// two has not heard yet that it has moved.
func TestAskSpec(t *testing.T) {
	t.Parallel()
	spec, err := cluster.New("demo", 2, 1)
	if err != nil {
		t.Fatal(err)
	}
	set, err := pki.NewSet(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	r := &routes{spec: spec, set: set}
	cp2, _ := spec.Node("cp2")
	w1, _ := spec.Node("w1")
	local := fmt.Sprintf("127.%d.%d.", 2+rand.N(250), rand.N(256))
	dial := func(ctx context.Context, address string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", strings.Replace(address, "198.18.0.", local, 1))
	}
	var says atomic.Pointer[cluster.Spec]
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+membership.SpecPath, serve(func(*http.Request, nothing) (*cluster.Spec, error) {
		if s := says.Load(); s != nil {
			return s, nil
		}
		return nil, &cluster.Problem{What: "no quorum", Exit: cluster.ExitNoQuorum}
	}))
	web := httptest.NewUnstartedServer(mux) // cp2's; cp1 is off
	if err := web.Listener.Close(); err != nil {
		t.Fatal(err)
	}
	if web.Listener, err = net.Listen("tcp", fmt.Sprintf("%s12:%d", local, agent.Port)); err != nil {
		t.Fatal(err)
	}
	if web.TLS, err = pki.ServerTLS(set.Agents.Pair().Cert, r.pair(t, cp2)); err != nil {
		t.Fatal(err)
	}
	web.StartTLS()
	t.Cleanup(web.Close)
	config, err := pki.ClientTLS(set.Agents.Pair().Cert, r.pair(t, w1), "")
	if err != nil {
		t.Fatal(err)
	}
	moved := w1
	moved.Address = "198.18.0.150"
	replaced, err := spec.With(moved)
	without, other := spec.Without("w1")
	foreign := *without
	foreign.Metadata.Name = "shop"
	if err := errors.Join(err, other); err != nil {
		t.Fatal(err)
	}
	elsewhere, err := relocation.Apply(spec, map[string]string{"w1": "198.18.0.151", "cp1": "198.18.0.61"})
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name  string
		says  *cluster.Spec
		mine  *cluster.Spec // what the node was told
		leave bool
	}{
		{"no quorum", nil, spec, false},
		{"as before", spec, spec, false},
		{"removed", without, spec, true},
		{"replaced by another machine", replaced, spec, true},
		{"moved, and the others know of it", elsewhere, elsewhere, false},
		{"moved, and the others do not know of it", spec, elsewhere, false},
		{"moved, and replaced by another machine", replaced, elsewhere, true},
		{"another cluster, which has no such node", &foreign, spec, false},
	} {
		says.Store(test.says)
		a := &Agent{
			options: Options{Log: slog.New(slog.DiscardHandler)}, machine: component.Machine{Spec: spec, Node: w1},
			agents: agent.NewClient(config, dial), removed: make(chan struct{}),
		}
		a.spec.Store(test.mine)
		for range 2 { // twice is as good as once
			a.askSpec(t.Context())
		}
		left := false
		select {
		case <-a.removed:
			left = true
		default:
		}
		if a.spec.Load() != test.mine {
			t.Errorf("%s: it forgets where it is", test.name)
		}
		if left != test.leave {
			t.Errorf("%s: it leaves: %v", test.name, left)
		}
	}
}

// TestStartedBy: an agent that starts again knows by which cluster.yaml its
// components run, and takes it for nobody else's.
func TestStartedBy(t *testing.T) {
	old, err := cluster.New("demo", 3, 0)
	if err != nil {
		t.Fatal(err)
	}
	latest, err := old.WithTimers(20*time.Millisecond, 200*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	node := latest.Spec.Nodes[0]
	moved, other := node, node
	moved.Address, other.Role = "198.18.0.99", cluster.RoleWorker
	for _, test := range []struct {
		name    string
		write   func(file string) error
		joining bool
		node    cluster.Node
		want    *cluster.Spec
	}{
		{"it runs", func(file string) error { return startBy(file, old) }, false, node, old},
		{"first start", func(string) error { return nil }, false, node, latest},
		{"garbage", func(file string) error { return os.WriteFile(file, []byte("x: ["), 0o600) }, false, node, latest},
		{"it joins", func(file string) error { return startBy(file, old) }, true, node, latest},
		{"it has moved", func(file string) error { return startBy(file, old) }, false, moved, latest},
		{"another of its name", func(file string) error { return startBy(file, old) }, false, other, latest},
	} {
		file := filepath.Join(t.TempDir(), "cluster.yaml")
		if err := test.write(file); err != nil {
			t.Fatal(err)
		}
		if got := startedBy(file, membership.Disk{Spec: latest, Joining: test.joining}, test.node); !same(got, test.want) {
			t.Errorf("%s: got timers %v", test.name, got.Spec.Etcd)
		}
	}
}
