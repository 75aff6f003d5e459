package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"kuorum/internal/cluster"
	"kuorum/internal/keyring"
	"kuorum/internal/membership"
	"kuorum/internal/pki"
	"kuorum/internal/relocation"
)

// renewEvery is how often a node looks at its certificates. They are renewed at
// two thirds of their life, so even one that lives for some minutes is in time.
const renewEvery = 20 * time.Second

// renewCertificates keeps the node's certificates young, and what they say as
// cluster.yaml has it, until ctx ends. A server signs for itself, whatever the
// others do; any other node asks one. Nothing is restarted: every program reads its
// files again.
func (a *Agent) renewCertificates(ctx context.Context) {
	tick := time.NewTicker(renewEvery)
	defer tick.Stop()
	for last := ""; ; {
		names, err := a.renewOnce(ctx)
		switch {
		case err != nil && err.Error() != last:
			last = err.Error()
			a.options.Log.Error("cannot renew certificates", "error", err)
		case len(names) > 0:
			last = ""
			a.options.Log.Info("certificates were renewed", "files", strings.Join(names, " "))
			a.showKubelets(ctx, names)
			a.follow(names)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-a.specChanged:
		}
	}
}

// renewAtStart lets a server that was off longer than its certificates' life
// come back by itself: its components start with new ones.
func (a *Agent) renewAtStart() {
	if !a.signs() {
		return // it has to ask a server, which needs a certificate that counts
	}
	names, err := a.renewOnce(context.Background()) // asks nobody
	if err != nil {
		a.options.Log.Error("cannot renew certificates", "error", err)
		return
	}
	if len(names) > 0 {
		a.options.Log.Info("certificates were renewed", "files", strings.Join(names, " "))
	}
}

// renewOnce returns the names of the files that it has written.
func (a *Agent) renewOnce(ctx context.Context) ([]string, error) { return a.replace(ctx, a.due) }

// renewAll is renewOnce for all certificates, whatever their age.
func (a *Agent) renewAll(ctx context.Context) ([]string, error) { return a.replace(ctx, a.all) }

// replace writes what choose makes in place of what the node has, and returns
// the names of the files that are others now.
func (a *Agent) replace(ctx context.Context, choose func(context.Context, map[string][]byte) ([]pki.File, error)) ([]string, error) {
	a.renewing.Lock()
	defer a.renewing.Unlock()
	have, err := keyring.Files(a.etc)
	if err != nil {
		return nil, err
	}
	files, err := choose(ctx, have)
	if err != nil {
		return nil, err
	}
	files = slices.DeleteFunc(files, func(f pki.File) bool { return bytes.Equal(f.Data, have[f.Path]) })
	if err := keyring.Write(a.etc, files); err != nil {
		return nil, err
	}
	var names []string
	for _, f := range files {
		names = append(names, f.Path)
	}
	return names, nil
}

// follow makes the node's programs know the authorities among the files that
// were renewed: a node that is no server gets with its certificates all that a
// server trusts.
func (a *Agent) follow(names []string) {
	if slices.ContainsFunc(names, func(name string) bool { return strings.HasSuffix(name, "ca.crt") }) {
		a.readAgain()
	}
}

const (
	// showPatience bounds how long a renewal waits for the API server to take its new
	// certificate for kubelets into use.
	showPatience = 5 * time.Second
	// readAtMost is how long an API server shows the certificate that it has read before
	// it reads it again (client-go transport.go), and a little.
	readAtMost = 1100 * time.Millisecond
)

// showKubelets has this server's API server connect to a kubelet, if its certificate
// for that is among the files that were renewed. It looks for a new one only when it
// connects and every 5 minutes, and drops all its connections with kubelets then,
// also the one that it is making (client-go transport/cert_rotation.go): the first
// `kubectl exec` would fail. It is made to at once, and again if it has looked just
// before. There is nothing to be had from an API server that does not answer: it reads
// the new one when it starts.
func (a *Agent) showKubelets(ctx context.Context, names []string) {
	if a.server == nil || !slices.Contains(names, pki.KubeletClientPath) {
		return
	}
	limited, cancel := context.WithTimeout(ctx, showPatience)
	defer cancel()
	kubelet := nodesPath + a.machine.Node.Name + "/proxy/healthz"
	err := a.server.api.Upgrade(limited, kubelet)
	if err == nil {
		select {
		case <-limited.Done():
		case <-time.After(readAtMost):
		}
		err = a.server.api.Upgrade(limited, kubelet)
	}
	if err != nil {
		a.options.Log.Info("the API server may drop a connection with a kubelet once", "error", err)
	}
}

func (a *Agent) due(ctx context.Context, have map[string][]byte) ([]pki.File, error) {
	if !a.signs() {
		return membership.AskRenewal(ctx, a.agents, a.spec.Load(), a.machine.Node, have)
	}
	return a.sign(have)
}

func (a *Agent) all(ctx context.Context, _ map[string][]byte) ([]pki.File, error) {
	if !a.signs() {
		return membership.AskRenewalNow(ctx, a.agents, a.spec.Load(), a.machine.Node)
	}
	return a.sign(nil)
}

// signs tells whether the node has the authorities' keys; all others ask one
// that has.
func (a *Agent) signs() bool { return a.machine.Node.Role == cluster.RoleServer }

// sign makes what a server has not, or has outgrown.
func (a *Agent) sign(have map[string][]byte) ([]pki.File, error) {
	set, err := keyring.Keys(a.etc)
	if err != nil {
		return nil, err
	}
	spec := a.spec.Load()
	set.LeafLife = time.Duration(spec.Spec.Certificates.Life)
	node, ok := spec.Node(a.machine.Node.Name)
	if !ok {
		return nil, nil // it is being removed
	}
	return set.Renew(spec, node, have, time.Now())
}

// renewOther signs for a node that is no server. One that moves gets what this
// server was told of it, if need be without a quorum: there may be none before
// the certificates of etcd's members name where they are.
func (a *Agent) renewOther(r *http.Request, in membership.Renewal) (membership.Admission, error) {
	if caller, _, _ := pki.Peer(r.TLS); in.Name == "" || pki.AgentNode(caller) != in.Name {
		return membership.Admission{}, &cluster.Problem{What: "a node renews its own certificates only", Exit: cluster.ExitRefused}
	}
	members, mine := a.server.members, a.spec.Load()
	if n, _ := mine.Node(in.Name); len(n.Moved.From) == 0 {
		return members.Renew(r.Context(), in)
	}
	limited, cancel := context.WithTimeout(r.Context(), askPatience/2) // who asks has more
	defer cancel()
	spec, err := members.Register.Spec(limited)
	if err != nil {
		return members.Sign(mine, in)
	}
	if spec, err = relocation.Record(mine, spec); err != nil {
		return membership.Admission{}, err
	}
	return members.Sign(spec, in)
}

const (
	// fetchPatience bounds what one server's agent asks of another's.
	fetchPatience = 5 * time.Second
	// turnPatience is how long an order waits for another node's turn to end. Who
	// gives it waits longer.
	turnPatience = 20 * time.Second
)

// keysAPI is about the node's keys and certificates. Each handler asks who
// calls: a worker may command no other node, and only servers see keys.
func (a *Agent) keysAPI(mux *http.ServeMux) {
	mux.HandleFunc("POST "+keyring.RenewNowPath, func(w http.ResponseWriter, r *http.Request) {
		if err := a.mayRotate(r); err != nil && a.commands(r) != nil {
			refuse(w, err)
			return
		}
		names, err := a.renewAll(r.Context())
		if err != nil {
			refuse(w, err)
			return
		}
		a.showKubelets(r.Context(), names)
		answer(w, keyring.Renewed{Files: names})
		a.follow(names)
	})
	mux.HandleFunc("POST "+keyring.RotationPath, func(w http.ResponseWriter, r *http.Request) {
		var order keyring.Order
		if err := readJSON(w, r, &order); err != nil {
			refuse(w, &cluster.Problem{What: "the request is malformed", Err: err, Exit: cluster.ExitUsage})
			return
		}
		if err := a.mayRotate(r); err != nil {
			refuse(w, err)
			return
		}
		if err := a.rotate(r.Context(), order); err != nil {
			refuse(w, err)
			return
		}
		answer(w, nothing{})
		a.readAgain()
	})
	if a.server == nil {
		return
	}
	mux.HandleFunc("POST "+keyring.BeginPath, serve(func(r *http.Request, _ nothing) (nothing, error) {
		if err := a.mayRotate(r); err != nil {
			return nothing{}, err
		}
		if err := a.settled(); err != nil {
			return nothing{}, err
		}
		a.renewing.Lock()
		defer a.renewing.Unlock()
		return nothing{}, keyring.Begin(a.etc, time.Now())
	}))
	mux.HandleFunc("POST "+keyring.NextPath, serve(func(r *http.Request, _ nothing) (keyring.Next, error) {
		if !a.fromServer(r) { // not an administrator either: the keys stay among servers
			return keyring.Next{}, &cluster.Problem{What: "only servers are told the authorities' keys", Exit: cluster.ExitRefused}
		}
		return keyring.Successors(a.etc)
	}))
}

// mayRotate is nil when the caller may command any node: an administrator, or a
// server of the cluster.
func (a *Agent) mayRotate(r *http.Request) error {
	caller, group, _ := pki.Peer(r.TLS)
	if group == pki.GroupAdmins || a.fromServer(r) {
		return nil
	}
	return &cluster.Problem{
		What: fmt.Sprintf("%s may not do that", caller), Why: "it takes an administrator, or a server of the cluster",
		Do: "run the command on a server", Exit: cluster.ExitRefused,
	}
}

// fromServer tells whether the caller is a server, by its certificate and by
// the node's own cluster.yaml.
func (a *Agent) fromServer(r *http.Request) bool {
	caller, _, _ := pki.Peer(r.TLS)
	n, ok := a.spec.Load().Node(pki.AgentNode(caller))
	return ok && n.Role == cluster.RoleServer && pki.PeerIsServer(r.TLS)
}

// settled refuses new authorities while nodes move: both would make the same
// certificates anew, and restart what needs a quorum.
func (a *Agent) settled() error {
	moving := relocation.Moving(a.spec.Load())
	if len(moving) == 0 {
		return nil
	}
	return &cluster.Problem{
		What: "the authorities are not replaced while nodes move", Why: moving[0].Name + " is moving to " + moving[0].Address,
		Do: "kuorum status, and again when its move is complete", Exit: cluster.ExitRefused,
	}
}

// rotate brings the node's files into a phase. Its programs follow in this
// node's turn, which the next agent ends.
func (a *Agent) rotate(ctx context.Context, o keyring.Order) error {
	if err := a.settled(); err != nil {
		return err
	}
	if err := a.awaitTurn(ctx); err != nil {
		return err
	}
	err := a.writePhase(ctx, o)
	if client := a.ownEtcd(); err != nil && client != nil {
		parting, cancel := context.WithTimeout(context.WithoutCancel(ctx), askPatience)
		defer cancel()
		err = errors.Join(err, membership.NewRegister(client).EndTurn(parting, a.machine.Node.Name))
	}
	return err
}

// awaitTurn takes the turn to replace components, so that no other node does so
// for a changed cluster.yaml at the same time, and after this agent has served
// what else changes the cluster. Without an answer of etcd it goes on: no other
// node gets a turn then, and a rotation may be what mends etcd.
func (a *Agent) awaitTurn(ctx context.Context) error {
	client := a.ownEtcd()
	if client == nil {
		return nil // nothing of a worker's that others need
	}
	limited, cancel := context.WithTimeout(ctx, turnPatience)
	defer cancel()
	tick := time.NewTicker(turnEvery / 4)
	defer tick.Stop()
	for why := ""; ; {
		if a.serves() > 1 { // this order is one
			why = "it serves a change of the cluster"
		} else {
			asking, done := context.WithTimeout(limited, askPatience)
			mine, err := membership.NewRegister(client).TakeTurn(asking, a.machine.Node.Name)
			done()
			if mine || err != nil && why == "" {
				return nil
			}
			why = "it is another node's turn to replace components"
		}
		select {
		case <-limited.Done():
			return &cluster.Problem{
				What: a.machine.Node.Name + " cannot change its authorities now", Why: why, Do: "kuorum status, and again when all is well", Exit: cluster.ExitRefused,
			}
		case <-tick.C:
		}
	}
}

// writePhase writes the node's files of a phase. Those of a node that is no
// server come from one: what that trusts, and who signs there, is what the phase
// means.
func (a *Agent) writePhase(ctx context.Context, o keyring.Order) error {
	if !a.signs() {
		_, err := a.renewAll(ctx)
		return err
	}
	a.renewing.Lock()
	defer a.renewing.Unlock()
	if o.Phase == keyring.PhaseTrust && !keyring.Has(a.etc, o) {
		if err := a.fetchNext(ctx, o); err != nil {
			return err
		}
	}
	spec := a.spec.Load()
	node, ok := spec.Node(a.machine.Node.Name)
	if !ok {
		return &cluster.Problem{What: a.machine.Node.Name + " is being removed", Exit: cluster.ExitRefused}
	}
	return keyring.Change(a.etc, spec, node, o.Phase)
}

// fetchNext takes the keys of the authorities to come from the server that has
// them. What it says is held against the order.
func (a *Agent) fetchNext(ctx context.Context, o keyring.Order) error {
	limited, cancel := context.WithTimeout(ctx, fetchPatience)
	defer cancel()
	var next keyring.Next
	if err := a.agents.Call(limited, o.From, keyring.NextPath, nothing{}, &next); err != nil {
		return &cluster.Problem{
			What: "the new authorities cannot be fetched from " + o.From, Err: err, Do: "kuorum certs rotate-ca    (again)", Exit: cluster.ExitNoQuorum,
		}
	}
	return keyring.Store(a.etc, next, o)
}
