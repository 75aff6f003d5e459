//go:build lab

package relocation

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"kuorum/internal/cluster"
	"kuorum/internal/component"
	"kuorum/internal/pki"
	"kuorum/internal/testnet"
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

	machines map[string]*testnet.Machine
	etcds    map[string]*exec.Cmd
}

func newSite(t *testing.T) *site {
	t.Helper()
	set, err := pki.NewSet(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	spec := newSpec(t, 3, 0)
	s := &site{
		t: t, dir: t.TempDir(), set: set, spec: spec, init: component.Founders(spec).Members,
		machines: map[string]*testnet.Machine{}, etcds: map[string]*exec.Cmd{},
	}
	sw := testnet.New(t)
	for _, n := range spec.Servers() {
		s.machines[n.Name] = sw.Machine(n.Name)
	}
	return s
}

// start brings every machine to its address and its etcd up.
func (s *site) start() {
	s.t.Helper()
	for _, n := range s.spec.Servers() {
		m := s.machines[n.Name]
		m.Run("ip", "address", "flush", "dev", testnet.Link)
		m.Address(n.Address + "/24")
		s.certify(n)
		pki := func(name string) string { return filepath.Join(s.dir, n.Name, "pki/etcd", name) }
		cmd := m.Command(s.t.Context(), bundle+"etcd", "--name="+n.Name, "--data-dir="+filepath.Join(s.dir, n.Name, "data"), "--unsafe-no-fsync",
			"--listen-client-urls=http://127.0.0.1:2379", "--advertise-client-urls="+component.ClientURL(n),
			"--listen-peer-urls="+component.PeerURL(n), "--initial-advertise-peer-urls="+component.PeerURL(n), "--initial-cluster="+s.init,
			"--peer-client-cert-auth=true", "--peer-trusted-ca-file="+pki("ca.crt"), "--peer-cert-file="+pki("peer.crt"), "--peer-key-file="+pki("peer.key"),
			"--heartbeat-interval=50", "--election-timeout=500")
		testnet.Start(s.t, cmd)
		s.etcds[n.Name] = cmd
	}
}

func (s *site) stop() {
	for _, cmd := range s.etcds {
		testnet.End(cmd)
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
		cmd := s.machines[n.Name].Command(s.t.Context(), "nft", "-f", "-")
		cmd.Stdin = strings.NewReader(Detour(s.spec, n.Name))
		if out, err := cmd.CombinedOutput(); err != nil {
			s.t.Fatalf("%v: %s", err, out)
		}
	}
}

func (s *site) etcdctl(name string, wait time.Duration, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(s.t.Context(), wait)
	defer cancel()
	cmd := s.machines[name].Command(ctx, append([]string{bundle + "etcdctl", "--command-timeout=" + wait.String()}, args...)...)
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
