package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"kuorum/internal/agent"
	"kuorum/internal/cluster"
	"kuorum/internal/component"
	"kuorum/internal/etcd"
	"kuorum/internal/host"
	"kuorum/internal/lab"
	"kuorum/internal/membership"
	"kuorum/internal/pki"
)

// target is the cluster that a command works on: a lab of this host, or the
// cluster of the node that the command runs on.
type target struct {
	spec *cluster.Spec
	// reports asks the agents of all nodes now; it takes 2 s at most.
	reports func(context.Context) ([]cluster.NodeReport, error)
	// etcd prepares to ask the members at endpoints; the caller closes it.
	etcd func(endpoints ...string) (*etcd.Client, error)
	// agents asks one agent.
	agents func() (*agent.Client, error)
}

// call asks the cluster's servers, but for the one that it is about, if there is
// one.
func (t target) call(ctx context.Context, path string, in, out any, but string) error {
	agents, err := t.agents()
	if err != nil {
		return err
	}
	servers := agent.Servers{Client: agents, Nodes: t.spec.Servers(), But: but}
	if len(servers.Nodes) == 1 && servers.Nodes[0].Name == but {
		return &cluster.Problem{
			What: but + " is the only server", Why: "no other could take its part, or tell the end",
			Do: "let another server join first: kuorum token create", Exit: cluster.ExitRefused,
		}
	}
	return servers.Call(ctx, path, in, out)
}

func (a *app) target() (target, error) {
	if onMachine() {
		return nodeTarget(component.EtcDir)
	}
	l, err := a.open()
	if err != nil {
		return target{}, err
	}
	return labTarget(l), nil
}

func labTarget(l *lab.Lab) target {
	return target{
		spec:   l.Nodes(),
		agents: l.Agents,
		reports: func(ctx context.Context) ([]cluster.NodeReport, error) {
			status, err := l.Status(ctx)
			return status.Reports(), err
		},
		etcd: func(endpoints ...string) (*etcd.Client, error) {
			return dialEtcd(etcd.Config{Endpoints: endpoints, Dial: l.Dial}, l.Client("etcd-ca.crt"), l.Client("etcd.crt"), l.Client("etcd.key"))
		},
	}
}

// dialEtcd adds to config what the files have: an authority, a certificate and
// its key.
func dialEtcd(config etcd.Config, files ...string) (*etcd.Client, error) {
	var data [][]byte
	for _, name := range files {
		content, err := os.ReadFile(name)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, &cluster.Problem{What: "cannot talk to etcd from here: only servers and etcd nodes hold its certificates", Err: err, Do: "run it on a server"}
		}
		if err != nil {
			return nil, fmt.Errorf("cannot talk to etcd: %w", err)
		}
		data = append(data, content)
	}
	var err error
	if config.TLS, err = pki.EtcdClientTLS(data[0], pki.Pair{Cert: data[1], Key: data[2]}); err != nil {
		return nil, err
	}
	return etcd.Dial(config)
}

// nodeTarget is for a command on a node: it asks the other agents as the
// node's own agent does, whether that runs or not.
func nodeTarget(dir string) (target, error) {
	unreadable := func(err error) error {
		return &cluster.Problem{What: "cannot read this node's own files", Err: err, Do: "sudo kuorum ..."}
	}
	file := filepath.Join(dir, "cluster.yaml")
	text, err := os.ReadFile(file)
	if err != nil {
		return target{}, unreadable(err)
	}
	spec, err := cluster.Parse(file, text)
	if err != nil {
		return target{}, err
	}
	agents, err := membership.NodeClient(dir)
	if err != nil {
		return target{}, unreadable(err)
	}
	keys := component.EtcdFilesOf(spec, dir)
	return target{
		spec:   spec,
		agents: func() (*agent.Client, error) { return agents, nil },
		reports: func(ctx context.Context) ([]cluster.NodeReport, error) {
			return reportsFrom(ctx, agents, spec, dir), nil
		},
		etcd: func(endpoints ...string) (*etcd.Client, error) {
			return dialEtcd(etcd.Config{Endpoints: endpoints}, keys.CA, keys.Cert, keys.Key)
		},
	}, nil
}

// reportsFrom asks all agents from the machine whose files are in dir. Its own is
// asked on the loopback when its address is not on this machine any more: it is
// the one that tells what to do.
func reportsFrom(ctx context.Context, agents *agent.Client, spec *cluster.Spec, dir string) []cluster.NodeReport {
	name, err := os.ReadFile(filepath.Join(dir, "node"))
	own := strings.TrimSpace(string(name))
	have, other := host.Addresses()
	nodes := slices.Clone(spec.Spec.Nodes)
	for i, n := range nodes {
		here := slices.ContainsFunc(have, func(a netip.Addr) bool { return a.String() == n.Address })
		if err == nil && other == nil && n.Name == own && !here {
			nodes[i].Address = "127.0.0.1"
		}
	}
	reports := agents.Reports(ctx, nodes)
	for i := range reports {
		reports[i].Address = spec.Spec.Nodes[i].Address
	}
	return reports
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
