// Package lab runs a cluster's machines in namespaces on one host: it boots
// and powers them off, connects them by a switch, leads the host's clients to
// their API, and removes every trace of them. The machines run the real
// program; the host's own network is never touched.
package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"kuorum/internal/cluster"
	"kuorum/internal/component"
	"kuorum/internal/host"
	"kuorum/internal/keyring"
	"kuorum/internal/membership"
	"kuorum/internal/pki"
)

// Store is where labs live on this host.
type Store struct {
	Root string // "/var/lib/kuorum"
	Exe  string // path of our own program, shown to the machines
}

// BundleDir is where bundles are unpacked.
func (s Store) BundleDir() string { return filepath.Join(s.Root, "bundle") }

func (s Store) labs() string { return filepath.Join(s.Root, "labs") }

// Lab is one lab on disk. Whether it runs is another question (Running).
type Lab struct {
	Name string
	Spec *cluster.Spec
	// State is what the lab keeps beside its Spec.
	State State

	dir    string
	exe    string
	bundle string // directory of the unpacked bundle its machines use
}

// State of a lab that is fixed for its life.
type State struct {
	Port    int       `json:"port"` // on the host's 127.0.0.1
	Created time.Time `json:"created"`
}

// ErrNoLab says that there is no lab of that name.
var ErrNoLab = errors.New("there is no such lab")

// Open reads the lab of that name. A lab whose creation was interrupted
// before it was complete counts as none (ErrNoLab).
func (s Store) Open(name string) (*Lab, error) {
	l := s.lab(name)
	data, err := os.ReadFile(l.path("state.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("cannot open lab %q: %w", name, ErrNoLab)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot open lab %q: %w", name, err)
	}
	if err := json.Unmarshal(data, &l.State); err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", l.path("state.json"), err)
	}
	text, err := os.ReadFile(l.path("cluster.yaml"))
	if err != nil {
		return nil, fmt.Errorf("cannot open lab %q: %w", name, err)
	}
	if l.Spec, err = cluster.Parse(l.path("cluster.yaml"), text); err != nil {
		return nil, err
	}
	return l, nil
}

// Names lists the labs of this host in order of name, those whose creation or
// removal was interrupted included.
func (s Store) Names() ([]string, error) {
	entries, err := os.ReadDir(s.labs())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot list labs: %w", err)
	}
	var names []string
	for _, e := range entries {
		name, _ := strings.CutSuffix(e.Name(), verbLock) // all that an early kill left
		names = append(names, name)
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// verbLock ends the name of the file, beside a lab's directory, that keeps two
// of up and down from working on it at a time.
const verbLock = ".lock"

func (s Store) lab(name string) *Lab {
	return &Lab{Name: name, dir: filepath.Join(s.labs(), name), exe: s.Exe}
}

// create writes a new lab down: its Spec, its authorities and every machine's
// own files. state.json is written last and makes the lab exist; whatever an
// interrupted creation left is replaced. external is what is shown to an etcd that
// somebody else runs; nil: the cluster has its own.
func (s Store) create(external *pki.ExternalEtcd, spec *cluster.Spec, port int, now time.Time) (*Lab, error) {
	l := s.lab(spec.Metadata.Name)
	l.Spec, l.State = spec, State{Port: port, Created: now.UTC().Truncate(time.Second)}
	if err := os.RemoveAll(l.path("machines")); err != nil {
		return nil, fmt.Errorf("cannot clear an interrupted lab: %w", err)
	}
	text, err := spec.YAML()
	if err != nil {
		return nil, err
	}
	if err := l.writeKeys(external, now); err != nil {
		return nil, fmt.Errorf("cannot make lab %q: %w", l.Name, err)
	}
	if err := host.WriteFile(l.path("cluster.yaml"), text, 0o644); err != nil {
		return nil, err
	}
	state, err := json.MarshalIndent(l.State, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("cannot write the lab's state: %w", err)
	}
	return l, host.WriteFile(l.path("state.json"), append(state, '\n'), 0o644)
}

func (l *Lab) writeKeys(external *pki.ExternalEtcd, now time.Time) error {
	set, err := pki.NewSet(now)
	if err != nil {
		return err
	}
	set.External = external
	set.LeafLife = time.Duration(l.Spec.Spec.Certificates.Life)
	if err := l.writeSet(set); err != nil {
		return err
	}
	for _, node := range l.Spec.Spec.Nodes {
		if err := l.writeNode(set, node, now); err != nil {
			return err
		}
	}
	return l.writeClients(set, now)
}

func (l *Lab) writeSet(set *pki.Set) error {
	for name, data := range set.Files() {
		if err := host.WriteFile(l.path("pki", name), data, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// FollowAuthorities takes the authorities as a server of the lab has them on
// its disk, and makes what the host's own clients use anew by them.
func (l *Lab) FollowAuthorities(now time.Time) error {
	servers := l.Nodes().Servers()
	if len(servers) == 0 {
		return fmt.Errorf("cannot follow the authorities of lab %q: it has no server", l.Name)
	}
	set, err := keyring.Keys(filepath.Join(l.Disk(servers[0].Name), "etc/kuorum"))
	if err != nil {
		return fmt.Errorf("cannot follow the authorities of lab %q: %w", l.Name, err)
	}
	return errors.Join(l.writeSet(set), l.writeClients(set, now))
}

// writeNode puts a machine's own files on its disk.
func (l *Lab) writeNode(set *pki.Set, node cluster.Node, now time.Time) error {
	files, err := set.NodeFiles(l.Spec, node, now)
	if err != nil {
		return err
	}
	etc := filepath.Join(l.machineDir(node.Name), "etc/kuorum")
	return membership.Disk{Spec: l.Spec, Name: node.Name, Files: files, Initial: component.Founders(l.Spec)}.Write(etc)
}

// writeClients makes what the host's own clients use: the administrator's
// kubeconfig, and certificates for etcd, for the agents' API and for the
// forwarder, which asks API servers how they are.
func (l *Lab) writeClients(set *pki.Set, now time.Time) error {
	admin, err := set.AdminPair(now)
	if err != nil {
		return err
	}
	kubeconfig, err := pki.Kubeconfig(l.Server(), l.Context(), admin, set.Cluster.Bundle())
	if err != nil {
		return err
	}
	etcd, err := set.EtcdClientPair("kuorum-admin", now)
	if err != nil {
		return err
	}
	etcdCA := set.Etcd.Bundle()
	if set.External != nil {
		etcd, etcdCA = set.External.Client, set.External.CA
	}
	agent, err := set.AgentClientPair("kuorum-admin", now)
	if err != nil {
		return err
	}
	endpoint, err := set.EndpointPair(now)
	if err != nil {
		return err
	}
	return errors.Join(
		host.WriteFile(l.Kubeconfig(), kubeconfig, 0o600),
		host.WriteFile(l.path("clients/ca.crt"), set.Cluster.Bundle(), 0o644),
		host.WriteFile(l.path("clients/endpoint.crt"), endpoint.Cert, 0o600),
		host.WriteFile(l.path("clients/endpoint.key"), endpoint.Key, 0o600),
		host.WriteFile(l.path("clients/etcd-ca.crt"), etcdCA, 0o644),
		host.WriteFile(l.path("clients/etcd.crt"), etcd.Cert, 0o600),
		host.WriteFile(l.path("clients/etcd.key"), etcd.Key, 0o600),
		host.WriteFile(l.path("clients/agent-ca.crt"), set.Agents.Bundle(), 0o644),
		host.WriteFile(l.path("clients/agent.crt"), agent.Cert, 0o600),
		host.WriteFile(l.path("clients/agent.key"), agent.Key, 0o600),
	)
}

// Server is the address of the API as the host's clients see it.
func (l *Lab) Server() string { return fmt.Sprintf("https://127.0.0.1:%d", l.State.Port) }

// Context is the name of the lab's context, cluster and user in kubeconfigs.
func (l *Lab) Context() string { return contextName(l.Name) }

// Kubeconfig is the path of the administrator's kubeconfig.
func (l *Lab) Kubeconfig() string { return l.path("admin.conf") }

// Client is the path of one of the host's own client files: "ca.crt" with
// "endpoint.crt" and "endpoint.key" for the API, and "etcd-ca.crt", "etcd.crt",
// "etcd.key", "agent-ca.crt", "agent.crt" and "agent.key".
func (l *Lab) Client(name string) string { return l.path("clients", name) }

// Disk is the directory below which a machine keeps its own files, such as
// etc/kuorum, also while it is off. Links in it are the machine's: on the host they
// may lead anywhere.
func (l *Lab) Disk(node string) string { return l.machineDir(node) }

// Dir is where the lab itself keeps its files.
func (l *Lab) Dir() string { return l.dir }

// LogDir is where a machine keeps its logs, readable while it is off.
func (l *Lab) LogDir(node string) string {
	return filepath.Join(l.machineDir(node), "var/log/kuorum")
}

// ConsoleLog is what a machine's init said.
func (l *Lab) ConsoleLog(node string) string {
	return filepath.Join(l.machineDir(node), "console.log")
}

func (l *Lab) path(names ...string) string {
	return filepath.Join(append([]string{l.dir}, names...)...)
}

func (l *Lab) machineDir(node string) string { return l.path("machines", node) }

func (l *Lab) cgroupPath(names ...string) string {
	return filepath.Join(append([]string{"/kuorum", l.Name}, names...)...)
}

func contextName(lab string) string { return "kuorum-" + lab }

// lock takes a lab's lock file without waiting. The kernel lets go of it when
// the holder ends, however it ends.
func lock(path string) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("cannot make the lab's directory: %w", err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot open %s: %w", path, err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("cannot lock %s: %w", path, err), f.Close())
	}
	return f, nil
}
