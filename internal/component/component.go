// Package component knows the programs of a node: for each its flags, its
// configuration files and how to tell that it is ready. It decides and
// renders only; the node package writes the files and supervise runs the
// programs.
package component

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"kuorum/internal/cluster"
)

// Where a node keeps its files. People who come from kubeadm find
// /var/lib/kubelet and /run/containerd where they expect them.
const (
	EtcDir = "/etc/kuorum"
	VarDir = "/var/lib/kuorum"
	RunDir = "/run/kuorum"
	LogDir = "/var/log/kuorum"
)

// Ports of a node beside upstream's own.
const (
	PortAPI       = 6443 // the balancer on every node
	PortAPIServer = 6444 // kube-apiserver on servers
	PortAgent     = 9443 // the node agent's mTLS API
	portStatus    = 6442 // the balancer's own state, loopback only
)

// AgentLog is the agent's own log in LogDir.
const AgentLog = "agent.log"

// ContainerdSocket is where containerd listens, as kubeadm has it.
const ContainerdSocket = "/run/containerd/containerd.sock"

// SubnetFile is where flannel writes the node's own range of pod addresses.
const SubnetFile = "/run/flannel/subnet.env"

// ImagesFile exists once containerd holds the images of the bundle; it is on
// a file system that every boot empties.
const ImagesFile = RunDir + "/images-imported"

// BundleLink leads to the unpacked bundle that this machine's components use.
// It exists only while a node's agent has run since the machine started.
const BundleLink = RunDir + "/bundle"

// SmallHeap makes a Go program collect garbage when its heap has grown by a
// fifth instead of by its own size: on three idle servers that takes a fifth
// off their memory (docs/benchmarks.md) for a few percent of a start's CPU time.
const SmallHeap = "GOGC=20"

// Machine is what a component must know about where it runs.
type Machine struct {
	Spec   *cluster.Spec
	Node   cluster.Node
	Bundle string // directory of the unpacked bundle: bin/ and images/
	Kuorum string // path of our own program
	// CgroupV1 tells that controllers are in v1 hierarchies.
	CgroupV1 bool
	// LowerOOM tells that this machine may lower oom_score_adj
	// (CAP_SYS_RESOURCE); without it every pod sandbox would fail.
	LowerOOM bool
}

// File is one configuration file of a component.
type File struct {
	Path string
	Data []byte
	Mode fs.FileMode
}

// Component is one program of a node, ready to be written down and started.
type Component struct {
	Name  string
	Path  string   // absolute path of the program
	Args  []string // without the program's name
	Env   []string // beside PATH
	Heap  string   // GOGC=N in place of SmallHeap
	After []string // components that must have been ready before this one starts
	Files []File
	Dirs  []string // made with mode 0700 before the start
	// Ready probes the live program; nil error means it does its work now.
	Ready       func(context.Context) error
	StopTimeout time.Duration // between SIGTERM and SIGKILL
}

// For lists the components of m's role in the order people read them.
// Starting order is in After.
func For(m Machine) []Component {
	list := []Component{containerd(m)}
	if m.Node.Role == cluster.RoleServer {
		list = append(list, etcd(m), apiserver(m))
	}
	list = append(list, balancer(m))
	if m.Node.Role == cluster.RoleServer {
		list = append(list, controllerManager(m), scheduler(m))
	}
	return append(list, kubelet(m), kubeProxy(m), flannel(m), coredns(m))
}

// Digest changes whenever the program, its flags, its environment or one of
// its files changes: the sign that a running one must be restarted.
func (c Component) Digest() string {
	h := sha256.New()
	fmt.Fprintf(h, "%q %q %q", c.Path, c.Args, c.Env)
	for _, f := range c.Files {
		fmt.Fprintf(h, "%q %o %x", f.Path, f.Mode, sha256.Sum256(f.Data))
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}

// Environ is the whole environment of the program: the bundle first in PATH,
// since containerd and kubelet look up their own helpers there.
func (c Component) Environ(m Machine) []string {
	path := "PATH=" + filepath.Join(m.Bundle, "bin") + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	heap := SmallHeap
	if c.Heap != "" {
		heap = c.Heap
	}
	return append([]string{path, "HOME=/root", heap}, c.Env...)
}

func (m Machine) bin(name string) string { return filepath.Join(m.Bundle, "bin", name) }

func pki(name string) string { return filepath.Join(EtcDir, "pki", name) }

func etc(name string) string { return filepath.Join(EtcDir, name) }

func config(name string, data []byte) File {
	return File{Path: filepath.Join(EtcDir, "components", name), Data: data, Mode: 0o600}
}
