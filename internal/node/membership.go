package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"kuorum/internal/agent"
	"kuorum/internal/cluster"
	"kuorum/internal/component"
	"kuorum/internal/kubeapi"
	"kuorum/internal/membership"
	"kuorum/internal/pki"
	"kuorum/internal/relocation"
)

const (
	// maxRequest bounds what a caller may send, requestPatience how long that
	// may take: some of them are strangers.
	maxRequest      = 1 << 20
	requestPatience = 10 * time.Second
)

// joinAPI is for machines that have a token and no certificate yet.
func (s *server) joinAPI(mux *http.ServeMux) {
	handle := func(path string, h http.Handler) { mux.Handle("POST "+path, s.owned(h)) }
	handle(membership.CheckPath, serve(func(r *http.Request, in membership.Request) (membership.Plan, error) {
		return s.members.Check(r.Context(), in)
	}))
	handle(membership.JoinPath, serve(func(r *http.Request, in membership.Request) (membership.Admission, error) {
		s.joins.Add(1)
		defer s.joins.Add(-1)
		return s.members.Join(r.Context(), in)
	}))
	handle(membership.CancelPath, serve(func(r *http.Request, in membership.Request) (nothing, error) {
		return nothing{}, s.members.Cancel(r.Context(), in)
	}))
}

// nothing is an answer without content.
type nothing struct{}

// memberAPI is for nodes and administrators. A node that is no server may only
// speak for itself.
func (s *server) memberAPI(mux *http.ServeMux) {
	mux.HandleFunc("GET "+membership.SpecPath, serve(func(r *http.Request, _ nothing) (*cluster.Spec, error) {
		return s.members.Register.Spec(r.Context())
	}))
	mux.HandleFunc("POST "+membership.ProgressPath, serve(func(r *http.Request, in membership.Report) (membership.Progress, error) {
		if err := s.speaksFor(r, in.Name); err != nil {
			return membership.Progress{}, err
		}
		return s.members.Progress(r.Context(), in)
	}))
	remove := func(r *http.Request, in membership.Removal) (membership.Removed, error) {
		if err := s.speaksFor(r, in.Name); err != nil {
			return membership.Removed{}, err
		}
		return s.members.Remove(r.Context(), in)
	}
	mux.HandleFunc("POST "+membership.RemovePath, serve(remove))
	mux.HandleFunc("GET "+membership.RemovePath, serve(func(r *http.Request, _ nothing) (membership.Removed, error) {
		return remove(r, membership.RemovalOf(r.URL.Query()))
	}))
	mux.HandleFunc("POST "+membership.LeftPath, serve(func(r *http.Request, in membership.LeftReport) (nothing, error) {
		if caller, _, _ := pki.Peer(r.TLS); in.Name == "" || pki.AgentNode(caller) != in.Name {
			return nothing{}, &cluster.Problem{What: "a server speaks of its own removal only", Exit: cluster.ExitRefused}
		}
		return nothing{}, s.members.Left(r.Context(), in)
	}))
	mux.HandleFunc("POST "+membership.RejoinPath, serve(func(r *http.Request, in membership.RejoinRequest) (component.InitialCluster, error) {
		if caller, _, _ := pki.Peer(r.TLS); in.Name == "" || pki.AgentNode(caller) != in.Name {
			return component.InitialCluster{}, &cluster.Problem{What: "a node asks for its own member only", Exit: cluster.ExitRefused}
		}
		return s.members.Rejoin(r.Context(), in)
	}))
	mux.HandleFunc("POST "+relocation.ArrivedPath, serve(s.arrive))
	mux.HandleFunc("GET "+membership.TokensPath, serve(func(r *http.Request, _ nothing) ([]membership.Token, error) {
		if err := s.speaksFor(r, ""); err != nil {
			return nil, err
		}
		return s.members.Register.Tokens(r.Context())
	}))
	mux.HandleFunc("POST "+membership.TokensPath, serve(func(r *http.Request, in membership.TokenOrder) (membership.NewToken, error) {
		if err := s.speaksFor(r, ""); err != nil {
			return membership.NewToken{}, err
		}
		return s.newToken(r.Context(), in)
	}))
	mux.HandleFunc("POST "+membership.RevokePath, serve(func(r *http.Request, in membership.TokenID) (nothing, error) {
		if err := s.speaksFor(r, ""); err != nil {
			return nothing{}, err
		}
		return nothing{}, s.members.Register.DeleteToken(r.Context(), in.ID)
	}))
}

// speaksFor is nil when the caller may ask for something about that node: an
// administrator, a server, or the node itself.
func (s *server) speaksFor(r *http.Request, name string) error {
	caller, group, _ := pki.Peer(r.TLS)
	if group == pki.GroupAdmins {
		return nil
	}
	node := pki.AgentNode(caller)
	if node != "" && node == name {
		return nil
	}
	spec, err := s.members.Register.Spec(r.Context())
	if err != nil {
		return err
	}
	if n, ok := spec.Node(node); ok && n.Role == cluster.RoleServer && pki.PeerIsServer(r.TLS) {
		return nil
	}
	return &cluster.Problem{
		What: fmt.Sprintf("%s may not do that", caller),
		Why:  "it takes an administrator, or a server of the cluster",
		Do:   "run the command on a server", Exit: cluster.ExitRefused,
	}
}

func (s *server) newToken(ctx context.Context, order membership.TokenOrder) (membership.NewToken, error) {
	authority, err := os.ReadFile(filepath.Join(s.members.Dir, "pki", "agent-ca.crt"))
	if err != nil {
		return membership.NewToken{}, fmt.Errorf("cannot pin the authority: %w", err)
	}
	pin, err := pki.Pin(authority)
	if err != nil {
		return membership.NewToken{}, err
	}
	secret, token, err := s.members.Register.CreateToken(ctx, order.Role, time.Duration(order.Life), time.Now())
	if err != nil {
		return membership.NewToken{}, err
	}
	token.Hash = ""
	return membership.NewToken{Token: token, Secret: secret.String(), Pin: pin, Server: s.address}, nil
}

// serve reads the caller's JSON, does what is asked, and answers in JSON.
func serve[In, Out any](do func(*http.Request, In) (Out, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var in In
		if r.Method == http.MethodPost {
			if err := readJSON(w, r, &in); err != nil {
				refuse(w, &cluster.Problem{What: "the request is malformed", Err: err, Exit: cluster.ExitUsage})
				return
			}
		}
		out, err := do(r, in)
		if err != nil {
			refuse(w, err)
			return
		}
		writeJSON(w, out)
	}
}

// readJSON reads what the caller sends. Its time is limited here, since a
// server's ReadTimeout would also end requests that take long to answer.
func readJSON(w http.ResponseWriter, r *http.Request, into any) error {
	conn := http.NewResponseController(w)
	if err := conn.SetReadDeadline(time.Now().Add(requestPatience)); err != nil {
		return err
	}
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequest)).Decode(into); err != nil {
		return err
	}
	return conn.SetReadDeadline(time.Time{})
}

func refuse(w http.ResponseWriter, err error) {
	refusal, code := agent.Refuse(err)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(refusal) // the caller has gone: nobody to tell
}

// mayRebuild is nil when the caller may have this node's member replaced. A
// server asks etcd who is one; an etcd node goes by its own cluster.yaml, and so does
// a server whose member does not answer, as one that is to be replaced may not.
func (a *Agent) mayRebuild(r *http.Request) error {
	if a.server != nil {
		err := a.server.speaksFor(r, a.machine.Node.Name)
		problem, ok := errors.AsType[*cluster.Problem](err)
		if err == nil || !ok || problem.ExitCode() != cluster.ExitNoQuorum {
			return err
		}
	}
	if a.fromServer(r) {
		return nil
	}
	return a.commands(r)
}

// rebuild has another server replace this node's member, then starts the
// node over with it. It returns when the others have done their part; the rest
// follows, whoever waits for it.
func (a *Agent) rebuild(ctx context.Context) (nothing, error) {
	if !a.joined() {
		return nothing{}, &cluster.Problem{What: a.machine.Node.Name + " is joining already", Do: "kuorum status", Exit: cluster.ExitRefused}
	}
	initial, err := membership.AskRejoin(ctx, a.agents, a.spec.Load().Servers(), a.machine.Node.Name)
	if err != nil {
		return nothing{}, err
	}
	a.startOver <- initial
	return nothing{}, nil
}

// seed writes the cluster.yaml of a new cluster to etcd.
func (a *Agent) seed(ctx context.Context) {
	if a.server.external != nil {
		a.claim(ctx)
		return
	}
	if !a.joined() {
		return // it came from there
	}
	a.retry(ctx, "write cluster.yaml to etcd", func(ctx context.Context) error {
		limited, cancel := context.WithTimeout(ctx, askPatience)
		defer cancel()
		return a.server.members.Register.Seed(limited, a.spec.Load())
	})
}

// deleteNode removes a node's object from Kubernetes.
func (c apiClient) deleteNode(ctx context.Context, name string) error {
	err := c.Delete(ctx, nodesPath+name)
	if err == nil || errors.Is(err, kubeapi.ErrNotFound) {
		return nil
	}
	return &cluster.Problem{
		What: name + " is removed, but its object in Kubernetes is still there", Err: err,
		Do: "kuorum kubectl delete node " + name,
	}
}

// newMembership is the part of a server's agent that lets others join.
func newMembership(m component.Machine, options Options, s *server, agents *agent.Client) *membership.Service {
	register := membership.NewRegister(s.etcd)
	if s.external != nil {
		register = membership.NewSharedRegister(s.etcd, s.external.id)
	}
	return &membership.Service{
		Self: m.Node.Name, Register: register, Etcd: s.etcd, Apart: s.apart, External: s.external != nil, Agents: agents,
		Dir: component.EtcDir, Log: options.Log, DeleteNode: s.api.deleteNode,
	}
}
