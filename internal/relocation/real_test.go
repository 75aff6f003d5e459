//go:build lab

package relocation

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"kuorum/internal/cluster"
	"kuorum/internal/component"
	"kuorum/internal/pki"
)

const bundle = "../../build/bundle/bin/"

// site is three servers with real etcd, each in a network namespace of its own
// on one switch, with the certificates that a node has.
type site struct {
	t    *testing.T
	dir  string
	set  *pki.Set
	spec *cluster.Spec // as the machines are
	init string        // what each etcd is told at its first start

	sw       *exec.Cmd
	machines map[string]*exec.Cmd // holds the namespace
	etcds    map[string]*exec.Cmd
}

func newSite(t *testing.T) *site {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("must run as root")
	}
	set, err := pki.NewSet(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	spec := newSpec(t, 3, 0)
	s := &site{
		t: t, dir: t.TempDir(), set: set, spec: spec, init: component.Founders(spec).Members,
		machines: map[string]*exec.Cmd{}, etcds: map[string]*exec.Cmd{},
	}
	s.sw = s.namespace()
	s.in(s.sw, "ip", "link", "add", "sw0", "type", "bridge")
	s.in(s.sw, "ip", "link", "set", "sw0", "up")
	for _, n := range spec.Servers() {
		m := s.namespace()
		s.machines[n.Name] = m
		s.in(s.sw, "ip", "link", "add", n.Name, "type", "veth", "peer", "name", "eth0", "netns", fmt.Sprint(m.Process.Pid))
		s.in(s.sw, "ip", "link", "set", n.Name, "master", "sw0", "up")
		s.in(m, "ip", "link", "set", "lo", "up")
		s.in(m, "ip", "link", "set", "eth0", "up")
	}
	return s
}

// namespace is a process in a network namespace, which ends with the test.
func (s *site) namespace() *exec.Cmd {
	s.t.Helper()
	cmd := exec.CommandContext(context.WithoutCancel(s.t.Context()), "sleep", "600")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _, _ = cmd.Process.Kill(), cmd.Wait() })
	return cmd
}

func inside(ctx context.Context, at *exec.Cmd, argv ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "nsenter", append([]string{"-t", fmt.Sprint(at.Process.Pid), "-n", "--"}, argv...)...)
}

func (s *site) in(at *exec.Cmd, argv ...string) {
	s.t.Helper()
	if out, err := inside(s.t.Context(), at, argv...).CombinedOutput(); err != nil {
		s.t.Fatalf("%v: %v\n%s", argv, err, out)
	}
}

// start brings every machine to its address and its etcd up.
func (s *site) start() {
	s.t.Helper()
	for _, n := range s.spec.Servers() {
		m := s.machines[n.Name]
		s.in(m, "ip", "address", "flush", "dev", "eth0")
		s.in(m, "ip", "address", "add", n.Address+"/24", "dev", "eth0")
		s.certify(n)
		pki := func(name string) string { return filepath.Join(s.dir, n.Name, "pki/etcd", name) }
		cmd := inside(context.WithoutCancel(s.t.Context()), m, bundle+"etcd", "--name="+n.Name, "--data-dir="+filepath.Join(s.dir, n.Name, "data"), "--unsafe-no-fsync",
			"--listen-client-urls=http://127.0.0.1:2379", "--advertise-client-urls="+component.ClientURL(n),
			"--listen-peer-urls="+component.PeerURL(n), "--initial-advertise-peer-urls="+component.PeerURL(n), "--initial-cluster="+s.init,
			"--peer-client-cert-auth=true", "--peer-trusted-ca-file="+pki("ca.crt"), "--peer-cert-file="+pki("peer.crt"), "--peer-key-file="+pki("peer.key"),
			"--heartbeat-interval=50", "--election-timeout=500")
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			s.t.Fatal(err)
		}
		s.t.Cleanup(func() { _, _ = cmd.Process.Kill(), cmd.Wait() })
		s.etcds[n.Name] = cmd
	}
}

func (s *site) stop() {
	for _, cmd := range s.etcds {
		_, _ = cmd.Process.Kill(), cmd.Wait()
	}
}

// certify writes what the node would renew of its own.
func (s *site) certify(n cluster.Node) {
	s.t.Helper()
	files, err := s.set.NodeFiles(s.spec, n, time.Now())
	if err != nil {
		s.t.Fatal(err)
	}
	for _, f := range files {
		path := filepath.Join(s.dir, n.Name, f.Path)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			s.t.Fatal(err)
		}
		if err := os.WriteFile(path, f.Data, 0o600); err != nil {
			s.t.Fatal(err)
		}
	}
}

func (s *site) detour() {
	s.t.Helper()
	for _, n := range s.spec.Servers() {
		cmd := inside(s.t.Context(), s.machines[n.Name], "nft", "-f", "-")
		cmd.Stdin = strings.NewReader(Detour(s.spec, n.Name))
		if out, err := cmd.CombinedOutput(); err != nil {
			s.t.Fatalf("%v: %s", err, out)
		}
	}
}

func (s *site) etcdctl(name string, wait time.Duration, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(s.t.Context(), wait)
	defer cancel()
	cmd := inside(ctx, s.machines[name], append([]string{bundle + "etcdctl", "--command-timeout=" + wait.String()}, args...)...)
	out, err := cmd.Output()
	return strings.TrimSpace(string(out)), err
}

// await asks until etcd has a leader and answers.
func (s *site) await(name string, args ...string) string {
	s.t.Helper()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(40 * time.Second); ; {
		out, err := s.etcdctl(name, 5*time.Second, args...)
		if err == nil {
			return out
		}
		if time.Now().After(end) {
			s.t.Fatalf("etcdctl %v on %s: %v", args, name, err)
		}
		<-tick.C
	}
}

// ids are the names and IDs of the members, whatever their URLs.
func (s *site) ids(name string) (ids []string, members map[string]string) {
	s.t.Helper()
	members = map[string]string{}
	for line := range strings.Lines(s.await(name, "member", "list")) {
		fields := strings.Split(strings.TrimSpace(line), ", ")
		ids, members[fields[2]] = append(ids, fields[2]+" "+fields[0]), fields[3]
	}
	return ids, members
}

// TestRealMembersFindEachOther changes the addresses of three real members while
// all are off. Without the detour they have no leader; with it they do, are told
// their new URLs, and go on without it, as the same members with the same data.
func TestRealMembersFindEachOther(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.start()
	s.await("cp1", "put", "before", "kept")
	before, _ := s.ids("cp1")
	s.stop()

	s.spec = mustApply(t, s.spec, map[string]string{"cp1": "198.18.0.61", "cp2": "198.18.0.62", "cp3": "198.18.0.63"})
	s.start()
	if out, err := s.etcdctl("cp1", 6*time.Second, "get", "before"); err == nil {
		t.Fatalf("they find each other without any detour, which then proves nothing: %s", out)
	}
	s.detour()
	if got := s.await("cp1", "get", "--print-value-only", "before"); got != "kept" {
		t.Errorf("what was written before is %q", got)
	}
	ids, urls := s.ids("cp2")
	var members []cluster.EtcdMember
	for _, text := range ids {
		name, id, _ := strings.Cut(text, " ")
		members = append(members, cluster.EtcdMember{ID: id, Name: name, PeerURLs: []string{urls[name]}})
	}
	corrections := Corrections(s.spec, members)
	if len(corrections) != 3 {
		t.Fatalf("there is to correct: %v", corrections)
	}
	for _, c := range corrections {
		s.await("cp3", "member", "update", c.ID, "--peer-urls="+c.PeerURL)
	}
	for name, address := range map[string]string{"cp1": "198.18.0.61", "cp2": "198.18.0.62", "cp3": "198.18.0.63"} {
		s.spec = Arrived(s.spec, Arrival{Name: name, Address: address})
	}
	s.detour() // away with it
	s.stop()
	s.start() // with certificates for the new addresses alone
	s.await("cp2", "put", "after", "too")
	if got := s.await("cp1", "get", "--print-value-only", "before"); got != "kept" {
		t.Errorf("what was written before is %q", got)
	}
	after, urls := s.ids("cp1")
	if strings.Join(before, ",") != strings.Join(after, ",") || urls["cp2"] != "https://198.18.0.62:2380" {
		t.Errorf("the members were %v and are %v at %v", before, after, urls)
	}
}
