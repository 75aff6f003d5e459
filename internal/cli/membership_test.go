package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"kuorum/internal/agent"
	"kuorum/internal/cluster"
	"kuorum/internal/membership"
	"kuorum/internal/pki"
)

func TestNextName(t *testing.T) {
	spec := &cluster.Spec{Spec: cluster.Body{Nodes: []cluster.Node{{Name: "cp1"}, {Name: "cp3"}, {Name: "w2"}, {Name: "e1"}}}}
	for role, want := range map[cluster.Role]string{cluster.RoleServer: "cp2", cluster.RoleWorker: "w1", cluster.RoleEtcd: "e2"} {
		if got := nextName(spec, role); got != want {
			t.Errorf("the next %s is %s", role, got)
		}
	}
}

func TestTokenState(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for want, token := range map[string]membership.Token{
		"for 1m30s": {Expires: now.Add(90*time.Second + time.Millisecond)},
		"used":      {Expires: now.Add(time.Second), UsedBy: "w1"},
		"expired":   {Expires: now, UsedBy: "w1"},
	} {
		if got := tokenState(token, now); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// TestJoinLine: what is printed is what `kuorum join` takes.
func TestJoinLine(t *testing.T) {
	line := joinLine(membership.NewToken{
		Token: membership.Token{ID: "i", Role: cluster.RoleWorker}, Secret: "i.s", Pin: "sha256:0", Server: "10.0.0.1",
	})
	if line != "kuorum join 10.0.0.1 --role worker --token i.s --pin sha256:0" {
		t.Errorf("got %q", line)
	}
	a, _, _ := testApp(t, nil)
	cmd := a.joinCommand()
	if err := cmd.ParseFlags(strings.Fields(line)[2:]); err != nil || cmd.ValidateRequiredFlags() != nil || !slices.Equal(cmd.Flags().Args(), []string{"10.0.0.1"}) {
		t.Errorf("%v, arguments %q", err, cmd.Flags().Args())
	}
}

// TestNoAgent: whatever does not prove that nobody listens may be an agent
// whose etcd must not lose its data.
func TestNoAgent(t *testing.T) {
	for err, want := range map[error]bool{
		&net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}: true,
		fmt.Errorf("keys: %w", fs.ErrNotExist):              true,
		fmt.Errorf("keys: %w", fs.ErrPermission):            false,
		errors.New("EOF"):                                   false,
		&cluster.Problem{What: "only the node itself"}:      false,
	} {
		if got := noAgent(err); got != want {
			t.Errorf("%v: %v", err, got)
		}
	}
}

// fakeServers are agents of a cluster of three, of which each answers as it is
// told to, or not at all.
type fakeServers struct {
	target target
	mu     sync.Mutex
	asked  []string
	tells  map[string]error // nil: it does what it is asked
	answer any              // in place of its name
	// does answers instead, where it is not nil.
	does func(name string, r *http.Request) (any, error)
}

func newFakeServers(t *testing.T, live ...string) *fakeServers {
	t.Helper()
	spec, err := cluster.New("demo", 3, 1)
	if err != nil {
		t.Fatal(err)
	}
	set, err := pki.NewSet(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	local := fmt.Sprintf("127.%d.%d.", 2+rand.N(250), rand.N(256))
	for i := range spec.Spec.Nodes {
		spec.Spec.Nodes[i].Address = fmt.Sprintf("%s%d", local, 11+i)
	}
	admin, err := set.AgentClientPair("test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	config, err := pki.ClientTLS(set.Agents.Pair().Cert, admin, "")
	if err != nil {
		t.Fatal(err)
	}
	agents := agent.NewClient(config, nil)
	f := &fakeServers{target: target{spec: spec, agents: func() (*agent.Client, error) { return agents, nil }}, tells: map[string]error{}}
	for _, name := range live {
		f.serve(t, set, name)
	}
	return f
}

func (f *fakeServers) serve(t *testing.T, set *pki.Set, name string) {
	t.Helper()
	n, _ := f.target.spec.Node(name)
	files, err := set.NodeFiles(f.target.spec, n, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	var own pki.Pair
	for _, file := range files {
		switch file.Path {
		case "pki/agent.crt":
			own.Cert = file.Data
		case "pki/agent.key":
			own.Key = file.Data
		}
	}
	web := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.asked = append(f.asked, name)
		answer, err := any(name), f.tells[name]
		if err == nil && f.does != nil {
			answer, err = f.does(name, r)
		}
		if err != nil {
			refusal, code := agent.Refuse(err)
			w.WriteHeader(code)
			_ = json.NewEncoder(w).Encode(refusal) // the caller has gone
			return
		}
		if f.answer != nil {
			_ = json.NewEncoder(w).Encode(f.answer) // as above
			return
		}
		_ = json.NewEncoder(w).Encode(answer) // as above
	}))
	if err := web.Listener.Close(); err != nil {
		t.Fatal(err)
	}
	if web.Listener, err = net.Listen("tcp", fmt.Sprintf("%s:%d", n.Address, agent.Port)); err != nil {
		t.Fatal(err)
	}
	if web.TLS, err = pki.ServerTLS(set.Agents.Pair().Cert, own); err != nil {
		t.Fatal(err)
	}
	web.StartTLS()
	t.Cleanup(web.Close)
}

// TestCall: servers are asked in turn, until one does it or refuses.
func TestCall(t *testing.T) {
	t.Parallel()
	noQuorum := &cluster.Problem{What: "no quorum", Exit: cluster.ExitNoQuorum}
	refused := &cluster.Problem{What: "no", Exit: cluster.ExitRefused}
	for _, test := range []struct {
		name  string
		live  string
		tells map[string]error
		but   string
		asked string
		code  int
		says  string
	}{
		{"the first", "cp1 cp2 cp3 w1", nil, "", "cp1", 0, ""},
		{"not that one", "cp1 cp2 cp3", nil, "cp1", "cp2", 0, ""},
		{"the first is off", "cp2 cp3", nil, "", "cp2", 0, ""},
		{"without quorum", "cp1 cp2 cp3", map[string]error{"cp1": noQuorum}, "", "cp1 cp2", 0, ""},
		{"a refusal is the end", "cp1 cp2", map[string]error{"cp1": refused}, "", "cp1", cluster.ExitRefused, "no"},
		{"nobody can", "cp1 w1", map[string]error{"cp1": noQuorum}, "", "cp1", cluster.ExitNoQuorum, "cp2: the machine answers, but its agent does not run; cp3"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			f := newFakeServers(t, strings.Fields(test.live)...)
			f.tells = test.tells
			got := ""
			err := f.target.call(t.Context(), "/x", "in", &got, test.but)
			asked := strings.Join(f.asked, " ")
			if asked != test.asked || exitOf(err) != test.code || err != nil && !strings.Contains(err.Error(), test.says) {
				t.Errorf("asked %q: %v", asked, err)
			}
			if err == nil && !strings.HasSuffix(asked, got) {
				t.Errorf("%q did it, and %q answered", asked, got)
			}
		})
	}
}

// TestCallOfTheOnlyServer: what is about the only server nobody can do.
func TestCallOfTheOnlyServer(t *testing.T) {
	t.Parallel()
	f := newFakeServers(t, "cp1")
	f.target.spec.Spec.Nodes = f.target.spec.Spec.Nodes[:1]
	err := f.target.call(t.Context(), "/x", "in", nil, "cp1")
	if exitOf(err) != cluster.ExitRefused || !strings.Contains(err.Error(), "cp1 is the only server") || len(f.asked) != 0 {
		t.Errorf("asked %q: %v", f.asked, err)
	}
}
