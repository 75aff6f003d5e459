package cli

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"kuorum/internal/agent"
	"kuorum/internal/cluster"
	"kuorum/internal/pki"
	"kuorum/internal/relocation"
)

func TestParseMoves(t *testing.T) {
	got, err := parseMoves([]string{"cp1=198.18.0.61", "w1=198.18.0.64"})
	if diff := cmp.Diff(map[string]string{"cp1": "198.18.0.61", "w1": "198.18.0.64"}, got); diff != "" || err != nil {
		t.Errorf("%v\n%s", err, diff)
	}
	for _, args := range [][]string{{"cp1"}, {"=198.18.0.61"}, {"cp1="}, {"cp1=198.18.0.61", "cp1=198.18.0.62"}} {
		if problem, ok := errors.AsType[*cluster.Problem](second(parseMoves(args))); !ok || problem.ExitCode() != cluster.ExitUsage {
			t.Errorf("%q is taken", args)
		}
	}
}

func second[T any](_ T, err error) error { return err }

// movedCluster is agents that answer at some of the addresses of a network.
type movedCluster struct {
	spec *cluster.Spec
	set  *pki.Set

	mu   sync.Mutex
	at   map[string]string // addresses, and where an agent answers them
	told []string          // "NAME" for each order, "NAME?" for each check
	says map[string]error  // by name
}

func newMovedCluster(t *testing.T, spec *cluster.Spec) *movedCluster {
	t.Helper()
	c := &movedCluster{spec: spec, at: map[string]string{}, says: map[string]error{}}
	var err error
	if c.set, err = pki.NewSet(time.Now()); err != nil {
		t.Fatal(err)
	}
	return c
}

// agent starts the agent of a node at an address, with the certificate that it
// had at first.
func (c *movedCluster) agent(t *testing.T, name, address string) {
	t.Helper()
	n, _ := c.spec.Node(name)
	files, err := c.set.NodeFiles(c.spec, n, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	var pair pki.Pair
	for _, f := range files {
		switch f.Path {
		case "pki/agent.crt":
			pair.Cert = f.Data
		case "pki/agent.key":
			pair.Key = f.Data
		}
	}
	web := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { c.answer(w, r, name) }))
	if web.TLS, err = pki.ServerTLS(c.set.Agents.Pair().Cert, pair); err != nil {
		t.Fatal(err)
	}
	web.StartTLS()
	t.Cleanup(web.Close)
	c.at[address] = web.Listener.Addr().String()
}

func (c *movedCluster) answer(w http.ResponseWriter, r *http.Request, name string) {
	var order relocation.Order
	if err := json.NewDecoder(r.Body).Decode(&order); err != nil || r.URL.Path != relocation.MovePath {
		http.Error(w, "what?", http.StatusBadRequest)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if order.Dry {
		name += "?"
	}
	c.told = append(c.told, name)
	if err := c.says[name]; err != nil {
		refusal, code := agent.Refuse(err)
		w.WriteHeader(code)
		_ = json.NewEncoder(w).Encode(refusal)
		return
	}
	_ = json.NewEncoder(w).Encode(relocation.Ready{})
}

func (c *movedCluster) moves(t *testing.T, addresses map[string]string) *moves {
	t.Helper()
	admin, err := c.set.AgentClientPair("test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	config, err := pki.ClientTLS(c.set.Agents.Pair().Cert, admin, "")
	if err != nil {
		t.Fatal(err)
	}
	client := agent.NewClient(config, func(ctx context.Context, address string) (net.Conn, error) {
		host, _, err := net.SplitHostPort(address)
		if err != nil || c.at[host] == "" {
			return nil, errors.Join(err, syscall.EHOSTUNREACH)
		}
		return (&net.Dialer{}).DialContext(ctx, "tcp", c.at[host])
	})
	a, _, _ := testApp(t, nil)
	m := &moves{app: a, addresses: addresses, target: target{spec: c.spec, agents: func() (*agent.Client, error) { return client, nil }}}
	if m.next, err = relocation.Apply(c.spec, addresses); err != nil {
		t.Fatal(err)
	}
	return m
}

// TestMoveChecksAllFirst: nothing is said to anybody unless every named node
// answers as itself, none refuses, and enough servers can be told.
func TestMoveChecksAllFirst(t *testing.T) {
	all := map[string]string{"cp1": "198.18.0.61", "cp2": "198.18.0.62", "cp3": "198.18.0.63"}
	one := map[string]string{"cp2": "198.18.0.62"}
	for _, test := range []struct {
		name  string
		order map[string]string
		at    map[string]string // by the names of nodes
		says  map[string]error
		exit  int
		why   string
		told  string
	}{
		{"one server", one, map[string]string{"cp1": "198.18.0.11", "cp2": "198.18.0.62", "cp3": "198.18.0.13", "w1": "198.18.0.101"}, nil, 0, "", "cp2 cp1 cp3 w1"},
		{"all servers", all, map[string]string{"cp1": "198.18.0.61", "cp2": "198.18.0.62", "cp3": "198.18.0.63", "w1": "198.18.0.101"}, nil, 0, "", "cp3 cp2 cp1 w1"},
		{"one that has both addresses", one, map[string]string{"cp1": "198.18.0.11", "cp2": "198.18.0.12", "cp3": "198.18.0.13"}, nil, 0, "", "cp2 cp1 cp3"},
		{"a dead server and a dead worker", one, map[string]string{"cp1": "198.18.0.11", "cp2": "198.18.0.62"}, nil, 0, "", "cp2 cp1"},
		{"the named one is off", one, map[string]string{"cp1": "198.18.0.11", "cp3": "198.18.0.13"}, nil, cluster.ExitRefused, "cp2 does not answer at 198.18.0.62", ""},
		{"one of all is off", all, map[string]string{"cp1": "198.18.0.61", "cp2": "198.18.0.62"}, nil, cluster.ExitRefused, "cp3 does not answer", ""},
		{"the others are off", one, map[string]string{"cp2": "198.18.0.62", "w1": "198.18.0.101"}, nil, cluster.ExitNoQuorum, "1 of 3 servers", ""},
		{"another node is there", one, map[string]string{"cp1": "198.18.0.11", "cp3": "198.18.0.62"}, nil, cluster.ExitRefused, "certificate", ""},
		{"apart", map[string]string{"e1": "198.18.0.61"}, map[string]string{"e1": "198.18.0.61", "e2": "198.18.0.52", "cp1": "198.18.0.11"}, nil, 0, "", "e1 cp1 e2"},
		{"apart, a server moves", map[string]string{"cp1": "198.18.0.61"}, map[string]string{"cp1": "198.18.0.61", "e1": "198.18.0.51", "cp2": "198.18.0.12"}, nil, cluster.ExitNoQuorum, "1 of 3 etcd nodes", ""},
		{"apart, no server", map[string]string{"e1": "198.18.0.61"}, map[string]string{"e1": "198.18.0.61", "e2": "198.18.0.52", "e3": "198.18.0.53"}, nil, cluster.ExitNoQuorum, "no server answers", ""},
		{
			"it refuses", one,
			map[string]string{"cp1": "198.18.0.11", "cp2": "198.18.0.62", "cp3": "198.18.0.13"},
			map[string]error{"cp2?": &cluster.Problem{What: "no", Exit: cluster.ExitRefused}},
			cluster.ExitRefused, "cp2: no", "",
		},
		{
			"one that still joins refuses", one,
			map[string]string{"cp1": "198.18.0.11", "cp2": "198.18.0.62", "cp3": "198.18.0.13", "w1": "198.18.0.101"},
			map[string]error{"w1?": &cluster.Problem{What: "no", Exit: cluster.ExitRefused}},
			0, "", "cp2 cp1 cp3",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			spec, err := cluster.New("demo", 3, 1)
			if strings.HasPrefix(test.name, "apart") {
				spec, err = cluster.NewApart("demo", 3, 2, 0)
			}
			if err != nil {
				t.Fatal(err)
			}
			c := newMovedCluster(t, spec)
			for name, address := range test.at {
				c.agent(t, name, address)
			}
			c.says = test.says
			m := c.moves(t, test.order)
			err = m.check(t.Context())
			if test.exit == 0 && err == nil {
				c.told = nil
				err = m.tell(t.Context())
			}
			if problem, refused := errors.AsType[*cluster.Problem](err); refused != (test.exit != 0) || refused && (problem.ExitCode() != test.exit || !strings.Contains(problem.What+problem.Why, test.why)) {
				t.Errorf("%+v", err)
			}
			var told []string
			for _, name := range c.told {
				if !strings.HasSuffix(name, "?") {
					told = append(told, name)
				}
			}
			if diff := cmp.Diff(test.told, strings.Join(told, " ")); diff != "" {
				t.Error(diff)
			}
		})
	}
}
