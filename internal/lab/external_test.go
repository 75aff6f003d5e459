package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"kuorum/internal/cluster"
	"kuorum/internal/component"
	"kuorum/internal/etcd"
	"kuorum/internal/host"
	"kuorum/internal/keyring"
	"kuorum/internal/membership"
	"kuorum/internal/pki"
)

const etcdBinary = "../../build/bundle/bin/etcd"

// theirEtcd is an etcd that somebody else runs, and what they give for it. It is
// started by start.
type theirEtcd struct {
	address string // 127.a.b.1
	given   *pki.ExternalEtcd
	server  pki.Pair
}

func newTheirEtcd(t *testing.T) *theirEtcd {
	t.Helper()
	e := &theirEtcd{address: fmt.Sprintf("127.%d.%d.1", 2+rand.N(250), rand.N(256))}
	now := time.Now()
	ca, err := pki.NewAuthority("theirs", now, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	issue := func(r pki.Request) pki.Pair {
		r.NotBefore, r.NotAfter = now, now.Add(time.Hour)
		pair, err := ca.Issue(r)
		if err != nil {
			t.Fatal(err)
		}
		return pair
	}
	e.server = issue(pki.Request{CommonName: "etcd", IPs: []netip.Addr{netip.MustParseAddr(e.address)}, Server: true, Client: true})
	client := issue(pki.Request{CommonName: "kuorum", Client: true})
	if e.given, err = pki.NewExternalEtcd(ca.Pair().Cert, client.Cert, client.Key, now); err != nil {
		t.Fatal(err)
	}
	return e
}

func (e *theirEtcd) endpoint() string { return "https://" + e.address + ":2379" }

func (e *theirEtcd) start(t *testing.T) *etcd.Client {
	t.Helper()
	if _, err := os.Stat(etcdBinary); err != nil {
		t.Fatalf("run make bundle first: %v", err)
	}
	dir := t.TempDir()
	for name, data := range map[string][]byte{"ca.crt": e.given.CA, "server.crt": e.server.Cert, "server.key": e.server.Key} {
		if err := host.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	peer := "http://" + e.address + ":2380"
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), etcdBinary, "--name=m1", "--data-dir="+dir+"/data", "--unsafe-no-fsync",
		"--listen-client-urls="+e.endpoint(), "--advertise-client-urls="+e.endpoint(), "--listen-peer-urls="+peer,
		"--initial-advertise-peer-urls="+peer, "--initial-cluster=m1="+peer, "--heartbeat-interval=20", "--election-timeout=200",
		"--client-cert-auth", "--trusted-ca-file="+dir+"/ca.crt", "--cert-file="+dir+"/server.crt", "--key-file="+dir+"/server.key")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	config, err := pki.ExternalEtcdTLS(e.given.CA, e.given.Client)
	if err != nil {
		t.Fatal(err)
	}
	client, err := etcd.Dial(etcd.Config{Endpoints: []string{e.endpoint()}, TLS: config})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _, _ = client.Close(), cmd.Process.Kill(), cmd.Wait() })
	waiting, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := poll(waiting, 20*time.Millisecond, func() error { return membership.Vacant(waiting, client) }); err != nil {
		t.Fatal(err)
	}
	return client
}

func onTheirs(t *testing.T, e *theirEtcd) *cluster.Spec {
	t.Helper()
	spec := newSpec(t, 1, 1)
	spec.Spec.Etcd = cluster.Etcd{External: cluster.ExternalEtcd{Endpoints: []string{e.endpoint()}}}
	if err := spec.Validate(); err != nil {
		t.Fatal(err)
	}
	return spec
}

// TestCheckEtcd: a new lab takes an empty etcd, and one that nobody reaches from
// here; one with anybody's data is refused and stays as it is.
func TestCheckEtcd(t *testing.T) {
	t.Parallel()
	e := newTheirEtcd(t)
	u := &Up{Spec: onTheirs(t, e), External: e.given}
	if err := u.checkEtcd(t.Context()); err != nil {
		t.Errorf("one that does not answer: %v", err)
	}
	client := e.start(t)
	if err := u.checkEtcd(t.Context()); err != nil {
		t.Errorf("an empty one: %v", err)
	}
	for _, key := range []string{"/registry/pods/default/a", "/kuorum/cluster.yaml"} {
		put := func(value []byte) {
			if _, err := client.Commit(t.Context(), "test", etcd.Change{Key: key, Value: value, Always: true}); err != nil {
				t.Fatal(err)
			}
		}
		put([]byte("x"))
		if err := u.checkEtcd(t.Context()); !errors.Is(err, membership.ErrForeign) {
			t.Errorf("with %s: %v", key, err)
		}
		put(nil)
	}
	if err := u.checkEtcd(t.Context()); err != nil {
		t.Errorf("emptied: %v", err)
	}
}

// TestCreateOnTheirEtcd: servers and the host's clients have what was given,
// workers nothing of it, and no cluster.yaml names a file.
func TestCreateOnTheirEtcd(t *testing.T) {
	t.Parallel()
	e := newTheirEtcd(t)
	l, err := (Store{Root: t.TempDir(), Exe: "/bin/true"}).create(e.given, onTheirs(t, e), 26443, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string][]byte{
		"pki/etcd-external/client.key": e.given.Client.Key, "machines/cp1/etc/kuorum/pki/etcd-external/client.key": e.given.Client.Key,
		"machines/cp1/etc/kuorum/pki/etcd-external/ca.crt": e.given.CA, "clients/etcd-ca.crt": e.given.CA,
		"clients/etcd.crt": e.given.Client.Cert, "clients/etcd.key": e.given.Client.Key,
		"machines/w1/etc/kuorum/pki/etcd-external/ca.crt": nil, "machines/cp1/etc/kuorum/pki/etcd/peer.crt": nil,
		"machines/cp1/etc/kuorum/pki/apiserver-etcd-client.crt": nil,
	} {
		data, err := os.ReadFile(l.path(path))
		if !bytes.Equal(data, want) || (err == nil) != (want != nil) {
			t.Errorf("%s is %q, %v", path, data, err)
		}
	}
	set, err := keyring.Keys(l.path("machines/cp1/etc/kuorum"))
	if err != nil || set.External == nil || set.External.ID != e.given.ID {
		t.Errorf("a server could let no other in: %+v, %v", set, err)
	}
	if files := component.EtcdFilesOf(l.Spec, component.EtcDir); !files.External {
		t.Errorf("servers show %+v", files)
	}
}
