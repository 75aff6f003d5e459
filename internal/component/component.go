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
	"slices"
	"strconv"
	"strings"
	"syscall"
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
	PortKubelet   = 10250
	portStatus    = 6442 // the balancer's own state, loopback only
)

// The authorities' files that programs read, below pki.
const (
	clusterCA = "ca.crt"
	etcdCA    = "etcd/ca.crt"
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
// fifth instead of by its own size.
const SmallHeap = "GOGC=20"

// Frugal is the environment of those processes of ours in a lab that mostly
// wait: its own, the machines' inits and the agents. With one processor Go's
// runtime keeps fewer threads and caches, and does not look every second how
// many there are.
func Frugal() []string {
	return []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", SmallHeap, "GOMAXPROCS=1"}
}

// lateTimers is how late the timers of a program may fire on a shared
// computer. Far below every timeout here, it lets the Go runtime's watchdog
// thread sleep: a third of the wake-ups of an idle etcd are its.
const lateTimers = 5 * time.Millisecond

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
	Initial  InitialCluster // of its etcd, if it has a member
	// Trust names the keys of the authorities in the node's files, by their paths
	// below pki, that which signs first. More than one of a kind is there only
	// while they are rotated; then programs are restarted, see holding.
	Trust map[string][]string
	// Share is set when other machines of a lab run on the same computer.
	Share Share
	// Link is the interface of the node's address; of a balancer only.
	Link string
}

// Share is a machine's part of a computer that it shares with the others of
// its lab. What idle machines use adds up, so their programs collect garbage
// early, run on a part of the processors and let their timers be a little
// late (ADR 0012). The zero Share is a machine with a computer of its own:
// upstream's defaults.
type Share struct {
	Machines   int // on this computer, this one included; 0 means no lab
	Processors int // of the computer
}

// limit is c with the settings that keep it within its share.
func (s Share) limit(c Component) Component {
	if s.Machines == 0 {
		return c
	}
	if !c.Busy {
		c.Env = append(s.environ(c), c.Env...)
	}
	if !c.ExactTimers {
		c.TimerSlack = lateTimers
	}
	return c
}

func (s Share) environ(c Component) []string {
	heap := c.Heap
	if heap == "" || s.Machines > 1 {
		heap = SmallHeap
	}
	return []string{heap, "GOMAXPROCS=" + strconv.Itoa(max(1, s.Processors/s.Machines))}
}

// File is one configuration file of a component.
type File struct {
	Path string
	Data []byte
	Mode fs.FileMode
	// Reread tells that the running program reads the file again by itself when
	// it changes, so that a change is no reason to restart it.
	Reread bool
	// Reload tells that the running program reads the file again when it is told to,
	// see Component.Reload.
	Reload bool
}

// Reload is how a program reads files again while it runs. The zero value is for one
// that does not.
type Reload struct {
	Signal syscall.Signal // that tells it to
	// Check is the command that says whether a file is good; its path comes last. A file
	// that is not must not take the place of one that is.
	Check []string
}

// Component is one program of a node, ready to be written down and started.
type Component struct {
	Name  string
	Path  string   // absolute path of the program
	Args  []string // without the program's name
	Env   []string // beside PATH
	Heap  string   // GOGC=N for a machine that is alone in its lab, in place of SmallHeap
	After []string // components that must have been ready before this one starts
	With  []string // of these, those that it ends before and starts after when they are replaced
	Files []File
	// Reload is for those of Files that say so.
	Reload Reload
	Dirs   []string // made with mode 0700 before the start
	// Ready probes the live program; nil error means it does its work now.
	Ready       func(context.Context) error
	StopTimeout time.Duration // between SIGTERM and SIGKILL
	// Trust is what the program has read of authorities when it started, and does
	// not read again; empty while there is one of each kind.
	Trust string
	// Busy is for a program that all writes go through: it collects garbage and
	// uses processors as it likes.
	Busy bool
	// ExactTimers is for a program whose children are pods: they inherit how
	// late its timers may be.
	ExactTimers bool
	TimerSlack  time.Duration // how late its timers may fire; 0 is the kernel's default of 50 us
}

// For lists the components of m's role in the order people read them.
// Starting order is in After.
func For(m Machine) []Component {
	var list []Component
	kubernetes, server := m.Node.Role.RunsPods(), m.Node.Role == cluster.RoleServer
	if kubernetes {
		list = append(list, containerd(m)) // speaks to nobody by certificate
	}
	if m.Spec.HasMember(m.Node) {
		list = append(list, m.trusting(etcd(m), etcdCA))
	}
	if server {
		list = append(list, m.holding(apiserver(m), etcdCA, clusterCA))
	}
	if kubernetes {
		list = append(list, balancer(m)) // reads its files for each check
	}
	if server {
		list = append(list, m.holding(controllerManager(m), clusterCA), m.holding(scheduler(m), clusterCA))
	}
	if kubernetes {
		// Clients of the API: client-go reads files again after five minutes at the
		// earliest, and before 1.36 never those of authorities.
		for _, c := range []Component{kubelet(m), kubeProxy(m), flannel(m), coredns(m)} {
			list = append(list, m.holding(c, clusterCA))
		}
	}
	if m.Node.Role == cluster.RoleBalancer {
		list = append(list, m.knowing(haproxy(m), []string{clusterCA}, slices.Sort), keepalived(m))
	}
	for i, c := range list {
		list[i] = m.Share.limit(c)
	}
	return list
}

// Digest changes whenever the program, its flags, its environment, one of its
// files, but those that it reads again, or the authorities that it must know
// change: the sign that a running one must be restarted.
func (c Component) Digest() string {
	h := sha256.New()
	fmt.Fprintf(h, "%q %q %q", c.Path, c.Args, c.Env)
	for _, f := range c.Files {
		if !f.Reread && !f.Reload {
			fmt.Fprintf(h, "%q %o %x", f.Path, f.Mode, sha256.Sum256(f.Data))
		}
	}
	if c.Trust != "" && c.Reload.Signal == 0 {
		fmt.Fprintf(h, "trust %q", c.Trust)
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}

// Loaded changes whenever a file changes that the program reads again when it is told
// to, or the authorities that it must know: then it must be told. Empty: never.
func (c Component) Loaded() string {
	if c.Reload.Signal == 0 {
		return ""
	}
	h := sha256.New()
	for _, f := range c.Files {
		if f.Reload {
			fmt.Fprintf(h, "%q %o %x", f.Path, f.Mode, sha256.Sum256(f.Data))
		}
	}
	fmt.Fprintf(h, "trust %q", c.Trust)
	return hex.EncodeToString(h.Sum(nil)[:8])
}

// Environ is the whole environment of the program: the bundle first in PATH,
// since containerd and kubelet look up their own helpers there.
func (c Component) Environ(m Machine) []string {
	path := "PATH=" + filepath.Join(m.Bundle, "bin") + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	return append([]string{path, "HOME=/root"}, c.Env...)
}

// trusting is c, which reads these authorities' files when it starts and not
// again. Its own certificates it reads at each handshake: it does not matter to
// it which of them signs.
func (m Machine) trusting(c Component, paths ...string) Component {
	return m.knowing(c, paths, func(keys []string) { slices.Sort(keys) })
}

// holding is trusting for a program that also keeps for minutes the certificates
// that it shows: it starts anew when another authority signs.
func (m Machine) holding(c Component, paths ...string) Component {
	return m.knowing(c, paths, func([]string) {})
}

func (m Machine) knowing(c Component, paths []string, order func([]string)) Component {
	var words []string
	for _, path := range paths {
		keys := slices.Clone(m.Trust[path])
		if len(keys) < 2 {
			continue // as most clusters are all their life: nothing to tell apart
		}
		order(keys)
		words = append(words, path+"="+strings.Join(keys, ","))
	}
	c.Trust = strings.Join(words, " ")
	return c
}

func (m Machine) bin(name string) string { return filepath.Join(m.Bundle, "bin", name) }

func pki(name string) string { return filepath.Join(EtcDir, "pki", name) }

func etc(name string) string { return filepath.Join(EtcDir, name) }

func config(name string, data []byte) File {
	return File{Path: filepath.Join(EtcDir, "components", name), Data: data, Mode: 0o600}
}
