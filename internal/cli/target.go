package cli

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"kuorum/internal/agent"
	"kuorum/internal/cluster"
	"kuorum/internal/component"
	"kuorum/internal/pki"
)

// target is the cluster that a command works on: a lab of this host, or the
// cluster of the node that the command runs on.
type target struct {
	spec *cluster.Spec
	// reports asks the agents of all nodes now; it takes 2 s at most.
	reports func(context.Context) ([]cluster.NodeReport, error)
}

func (a *app) target() (target, error) {
	if onMachine() {
		return nodeTarget(component.EtcDir)
	}
	l, err := a.open()
	if err != nil {
		return target{}, err
	}
	return target{spec: l.Spec, reports: func(ctx context.Context) ([]cluster.NodeReport, error) {
		status, err := l.Status(ctx)
		return status.Reports(), err
	}}, nil
}

// nodeTarget is for a command on a node: it asks the other agents as the
// node's own agent does, whether that runs or not.
func nodeTarget(dir string) (target, error) {
	files := map[string][]byte{}
	for _, name := range []string{"cluster.yaml", "pki/agent-ca.crt", "pki/agent.crt", "pki/agent.key"} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return target{}, &cluster.Problem{What: "cannot read this node's own files", Err: err, Do: "sudo kuorum ..."}
		}
		files[name] = data
	}
	spec, err := cluster.Parse(filepath.Join(dir, "cluster.yaml"), files["cluster.yaml"])
	if err != nil {
		return target{}, err
	}
	config, err := pki.ClientTLS(files["pki/agent-ca.crt"], pki.Pair{Cert: files["pki/agent.crt"], Key: files["pki/agent.key"]}, "")
	if err != nil {
		return target{}, err
	}
	agents := agent.NewClient(config)
	return target{spec: spec, reports: func(ctx context.Context) ([]cluster.NodeReport, error) {
		return agents.Reports(ctx, spec.Spec.Nodes), nil
	}}, nil
}

// verdict is the exit code of a command that has printed what it found and
// has no more to say.
type verdict int

func (v verdict) Error() string { return fmt.Sprintf("exit code %d", int(v)) }

// bytesText is a size as people write it.
func bytesText(n int64) string {
	for _, unit := range []struct {
		size int64
		name string
	}{{1 << 40, "TiB"}, {1 << 30, "GiB"}, {1 << 20, "MiB"}} {
		if n >= unit.size {
			return strings.TrimSuffix(fmt.Sprintf("%.1f", float64(n)/float64(unit.size)), ".0") + " " + unit.name
		}
	}
	return fmt.Sprintf("%d KiB", n>>10)
}
