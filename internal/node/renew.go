package node

import (
	"context"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"kuorum/internal/cluster"
	"kuorum/internal/component"
	"kuorum/internal/host"
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
	if a.machine.Node.Role != cluster.RoleServer {
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
func (a *Agent) renewOnce(ctx context.Context) ([]string, error) {
	have, err := readFiles(component.EtcDir)
	if err != nil {
		return nil, err
	}
	files, err := a.renewed(ctx, have)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, f := range files {
		if err := host.WriteFile(filepath.Join(component.EtcDir, f.Path), f.Data, f.Mode); err != nil {
			return nil, err
		}
		names = append(names, f.Path)
	}
	return names, nil
}

func (a *Agent) renewed(ctx context.Context, have map[string][]byte) ([]pki.File, error) {
	spec := a.spec.Load()
	if a.machine.Node.Role != cluster.RoleServer {
		return membership.AskRenewal(ctx, a.agents, spec, a.machine.Node, have)
	}
	set, err := membership.Keys(component.EtcDir)
	if err != nil {
		return nil, err
	}
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

// readFiles reads the certificates, keys and kubeconfigs of a node by their
// paths below dir.
func readFiles(dir string) (map[string][]byte, error) {
	files := map[string][]byte{}
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !strings.Contains(".crt .key .pem .conf", filepath.Ext(path)) {
			return err
		}
		data, err := os.ReadFile(path)
		files[strings.TrimPrefix(path, dir+"/")] = data
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("cannot read the node's certificates: %w", err)
	}
	return files, nil
}
