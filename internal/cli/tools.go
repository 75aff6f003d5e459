package cli

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"kuorum/internal/cluster"
	"kuorum/internal/component"
	"kuorum/internal/host"
	"kuorum/internal/lab"
	"kuorum/internal/membership"
)

func (a *app) toolCommand(name string) *cobra.Command {
	about := map[string]string{
		"kubectl": "The real kubectl, on the chosen cluster",
		"etcdctl": "The real etcdctl, on all etcd members of the chosen cluster",
		"etcdutl": "The real etcdutl, for snapshot files",
		"ctr":     "The real ctr, on one machine (--node NODE before its own words)",
	}
	return &cobra.Command{
		Use:                name + " ...",
		Short:              about[name],
		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if onMachine() {
				return a.toolOnMachine(name, args)
			}
			return a.tool(cmd, name, args)
		},
	}
}

// onMachine tells whether this process runs on a node itself.
func onMachine() bool {
	_, err := os.Stat(component.BundleLink)
	return err == nil
}

// toolOnMachine becomes the tool, with the node's own files.
func (a *app) toolOnMachine(name string, args []string) error {
	etc := func(file string) string { return filepath.Join(component.EtcDir, file) }
	endpoints, keys := ownEtcd(component.EtcDir)
	env := map[string]map[string]string{
		"kubectl": {"KUBECONFIG": etc("admin.conf")},
		"etcdctl": {
			"ETCDCTL_ENDPOINTS": strings.Join(endpoints, ","), "ETCDCTL_CACERT": keys.CA, "ETCDCTL_CERT": keys.Cert, "ETCDCTL_KEY": keys.Key,
		},
		"ctr": {"CONTAINERD_ADDRESS": component.ContainerdSocket, "CONTAINERD_NAMESPACE": "k8s.io"},
	}[name]
	path := filepath.Join(component.BundleLink, "bin", name)
	return become(path, append([]string{path}, args...), a.environ(env))
}

// ownEtcd is where the node whose files are below dir finds etcd, and what it shows
// it. On a machine that is none the tool says itself that nobody answers.
func ownEtcd(dir string) ([]string, component.EtcdFiles) {
	disk, err := membership.Read(dir)
	if err != nil {
		return []string{component.EtcdClient}, component.EtcdFilesOf(&cluster.Spec{}, dir)
	}
	node, _ := disk.Spec.Node(disk.Name)
	return component.EtcdEndpoints(disk.Spec, node), component.EtcdFilesOf(disk.Spec, dir)
}

func (a *app) tool(cmd *cobra.Command, name string, args []string) error {
	if name == "etcdutl" {
		return a.becomeBundled(name, args, nil)
	}
	if name == "kubectl" && len(args) > 0 && args[0] == "completion" {
		return a.becomeBundled(name, args, nil) // needs no cluster
	}
	l, err := a.open()
	if err != nil {
		return err
	}
	switch name {
	case "kubectl":
		return a.becomeBundled(name, args, map[string]string{"KUBECONFIG": l.Kubeconfig()})
	case "etcdctl":
		return a.etcdctl(l, args)
	}
	return a.ctr(cmd, l, args)
}

// etcdctl becomes the tool inside the lab's network, with every member as an
// endpoint; its files are the caller's own. An etcd that somebody else runs
// elsewhere is asked from the host's network.
func (a *app) etcdctl(l *lab.Lab, args []string) error {
	env := a.environ(map[string]string{
		"ETCDCTL_ENDPOINTS": strings.Join(component.ClientURLs(l.Nodes()), ","), "ETCDCTL_CACERT": l.Client("etcd-ca.crt"),
		"ETCDCTL_CERT": l.Client("etcd.crt"), "ETCDCTL_KEY": l.Client("etcd.key"),
	})
	if l.Spec.EtcdExternal() && !insideLab(l.Spec) {
		path, err := a.bundled("etcdctl")
		if err != nil {
			return err
		}
		return become(path, append([]string{"etcdctl"}, args...), env)
	}
	pid, ok := l.Running()
	if !ok || pid == 0 {
		return &cluster.Problem{What: fmt.Sprintf("lab %q is not running", l.Name), Do: "kuorum up " + l.Name, Exit: cluster.ExitNoQuorum}
	}
	path, err := a.bundled("etcdctl")
	if err != nil {
		return err
	}
	return host.ExecInNetwork(pid, path, append([]string{"etcdctl"}, args...), env)
}

// ctr runs on the machine itself: it needs its sockets and its files.
func (a *app) ctr(cmd *cobra.Command, l *lab.Lab, args []string) error {
	name, args, err := takeNode(args)
	if err != nil {
		return err
	}
	if name == "" {
		status, err := l.Status(cmd.Context())
		if err != nil {
			return err
		}
		m, err := someMachine(status)
		if err != nil {
			return err
		}
		name = m.Name
	}
	return a.inMachine(cmd.Context(), l, name, append([]string{"/usr/local/bin/kuorum", "ctr"}, args...))
}

// takeNode takes a leading --node NODE out of a tool's arguments.
func takeNode(args []string) (name string, rest []string, err error) {
	if len(args) == 0 {
		return "", args, nil
	}
	if value, ok := strings.CutPrefix(args[0], "--node="); ok {
		return value, args[1:], nil
	}
	if args[0] != "--node" {
		return "", args, nil
	}
	if len(args) < 2 {
		return "", nil, usage("--node needs the name of a machine")
	}
	return args[1], args[2:], nil
}

func (a *app) becomeBundled(name string, args []string, env map[string]string) error {
	path, err := a.bundled(name)
	if err != nil {
		return err
	}
	return become(path, append([]string{name}, args...), a.environ(env))
}

// bundled is the path of an unpacked program. What an earlier command
// unpacked is used as it is: `up` verifies it.
func (a *app) bundled(name string) (string, error) {
	store, err := a.store()
	if err != nil {
		return "", err
	}
	b, err := a.bundle()
	if err != nil {
		return "", err
	}
	path := filepath.Join(b.Dir(store.BundleDir()), "bin", name)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	dir, err := b.Unpack(a.context, store.BundleDir(), nil)
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "bin", name), nil
}

// environ is our environment with vars that the caller has not set himself,
// KUBECONFIG in any case. No name is there twice: programs would see the
// first, the caller's.
func (a *app) environ(vars map[string]string) []string {
	set := maps.Clone(vars)
	maps.DeleteFunc(set, func(key, _ string) bool { return a.process.Env(key) != "" && key != "KUBECONFIG" })
	var env []string
	for _, variable := range a.process.Environ {
		key, _, _ := strings.Cut(variable, "=")
		if _, ours := set[key]; !ours {
			env = append(env, variable)
		}
	}
	for key, value := range set {
		env = append(env, key+"="+value)
	}
	return env
}

func become(path string, argv, env []string) error {
	err := syscall.Exec(path, argv, env)
	if errors.Is(err, os.ErrPermission) {
		return &cluster.Problem{What: "cannot run " + path, Err: err, Do: "sudo kuorum " + argv[0] + " ..."}
	}
	return fmt.Errorf("cannot run %s: %w", path, err)
}
