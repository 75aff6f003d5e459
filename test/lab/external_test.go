//go:build lab

package lab_test

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"kuorum/internal/pki"
)

// theirs is an etcd of three members that somebody else runs. They live at the
// address of the lab's switch, which machines reach and the host does not.
type theirs struct {
	dir     string
	pid     string // of the lab's process, whose network they are in
	running map[string]*exec.Cmd
}

// theirAddress is the switch's.
const theirAddress = "198.18.0.1"

func theirPorts() map[string]int { return map[string]int{"m1": 12379, "m2": 22379, "m3": 32379} }

func theirURL(port int) string { return fmt.Sprintf("https://%s:%d", theirAddress, port) }

// newTheirs makes the keys, and the cluster.yaml of a lab on that etcd.
func newTheirs(t *testing.T, name string) (e *theirs, file string) {
	t.Helper()
	e = &theirs{dir: t.TempDir(), running: map[string]*exec.Cmd{}}
	now := time.Now()
	ca, err := pki.NewAuthority("their-etcd", now, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	write := func(file string, data []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(e.dir, file), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	issue := func(file string, r pki.Request) {
		t.Helper()
		r.NotBefore, r.NotAfter = now, now.Add(time.Hour)
		pair, err := ca.Issue(r)
		if err != nil {
			t.Fatal(err)
		}
		write(file+".crt", pair.Cert)
		write(file+".key", pair.Key)
	}
	write("ca.crt", ca.Pair().Cert)
	issue("member", pki.Request{CommonName: "etcd", IPs: []netip.Addr{netip.MustParseAddr(theirAddress)}, Server: true, Client: true})
	issue("client", pki.Request{CommonName: "kuorum", Client: true})
	write("cluster.yaml", fmt.Appendf(nil, `apiVersion: kuorum.dev/v1alpha1
kind: Cluster
metadata: {name: %s}
spec:
  servers: 1
  etcd:
    external:
      endpoints: ["%s", "%s", "%s"]
      ca: ca.crt
      certificate: client.crt
      key: client.key
`, name, theirURL(12379), theirURL(22379), theirURL(32379)))
	return e, filepath.Join(e.dir, "cluster.yaml")
}

// start runs members, with the data that they have.
func (e *theirs) start(t *testing.T, names ...string) {
	t.Helper()
	binaries, err := filepath.Glob(filepath.Join(tests.dir, "bundle", "*", "bin", "etcd"))
	if err != nil || len(binaries) == 0 {
		t.Fatalf("there is no etcd: %v", err)
	}
	at := func(file string) string { return filepath.Join(e.dir, file) }
	var all []string
	for name, port := range theirPorts() {
		all = append(all, name+"="+theirURL(port+1))
	}
	slices.Sort(all)
	for _, name := range names {
		client, peer := theirURL(theirPorts()[name]), theirURL(theirPorts()[name]+1)
		log, err := os.OpenFile(at(name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("nsenter", "-t", e.pid, "-n", binaries[0], "--name="+name, "--data-dir="+at(name),
			"--listen-client-urls="+client, "--advertise-client-urls="+client,
			"--listen-peer-urls="+peer, "--initial-advertise-peer-urls="+peer,
			"--initial-cluster="+strings.Join(all, ","), "--initial-cluster-state=new",
			"--client-cert-auth", "--trusted-ca-file="+at("ca.crt"), "--cert-file="+at("member.crt"), "--key-file="+at("member.key"),
			"--peer-client-cert-auth", "--peer-trusted-ca-file="+at("ca.crt"), "--peer-cert-file="+at("member.crt"), "--peer-key-file="+at("member.key"))
		cmd.Stdout, cmd.Stderr = log, log
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		err = cmd.Start()
		if err := errors.Join(err, log.Close()); err != nil {
			t.Fatal(err)
		}
		e.running[name] = cmd
	}
}

// kill ends members at once.
func (e *theirs) kill(names ...string) {
	for _, name := range names {
		if cmd := e.running[name]; cmd != nil {
			_ = cmd.Process.Kill() // it may have ended
			_ = cmd.Wait()
			delete(e.running, name)
		}
	}
}

// asTheyRunIt is what nobody but them may change: members and alarms.
func (l *lab) asTheyRunIt(t *testing.T) []string {
	t.Helper()
	members := strings.Split(strings.TrimSpace(l.run(t, "etcdctl", "member", "list")), "\n")
	slices.Sort(members)
	return append(members, "alarms: "+l.run(t, "etcdctl", "alarm", "list"))
}

// TestExternalEtcd: a lab on an etcd that somebody else runs. It starts when that
// does, tells the truth of it, survives what that survives, grows and shrinks,
// and changes nothing there but its own keys.
func TestExternalEtcd(t *testing.T) {
	e, file := newTheirs(t, "external")
	l := &lab{name: "external"}
	t.Cleanup(func() { kuorum(t, "down", l.name) })
	kuorum(t, "up", "--wait=false", "--no-switch", "-f", file)
	pid, err := os.ReadFile(filepath.Join(tests.dir, "labs", l.name, "lab.pid"))
	if err != nil {
		t.Fatal(err)
	}
	e.pid = string(bytes.TrimSpace(pid))
	t.Cleanup(func() { e.kill("m1", "m2", "m3") })
	eventually(t, time.Minute, func() error {
		if s := l.status(t); s.State != "no quorum" || !strings.Contains(fmt.Sprint(s.Findings), "connection refused") {
			return fmt.Errorf("without etcd it is %s: %+v", s.State, s.Findings)
		}
		return nil
	})

	e.start(t, "m1", "m2", "m3")
	l.awaitReady(t)
	s := l.awaitEtcd(t, "healthy")
	if len(s.voters()) != 3 || s.Quorum.Voters != 3 || s.Quorum.MayLose != 1 || s.Leader == "" {
		t.Errorf("got %+v", s)
	}
	if out := l.on(t, "cp1", "kuorum", "etcd", "members"); out != l.run(t, "etcd", "members") {
		t.Errorf("on a node the members are\n%s", out)
	}
	if out := l.on(t, "cp1", "kuorum", "etcdctl", "get", "--keys-only", "/kuorum/cluster.yaml"); !strings.Contains(out, "/kuorum/cluster.yaml") {
		t.Errorf("etcdctl on a node says %q", out)
	}
	if r := l.tryOn(t, "cp1", "pgrep", "-x", "etcd"); r.out != "" {
		t.Errorf("etcd runs on a server: %s", r.out)
	}
	kuorum(t, "up", "--wait=false", "--no-switch", "-f", file) // again is no change
	before := l.asTheyRunIt(t)
	l.kubectl(t, "create", "configmap", "theirs", "--from-literal=k=v")

	t.Run("one of theirs dies, then another", func(t *testing.T) { l.losesTheirs(t, e) })
	t.Run("nothing of theirs is changed", func(t *testing.T) {
		for _, args := range [][]string{
			{"remove", "m1"},
			{"promote", "m1"},
			{"rebuild", "cp1"},
			{"defrag"},
			{"compact"},
			{"alarms", "--disarm"},
			{"timers", "--apply"},
			{"timers", "--heartbeat", "50ms"},
		} {
			l.refused(t, 5, "this etcd is run by somebody else", args...)
		}
		for _, args := range [][]string{{"token", "create", "--role", "etcd"}, {"lab", "add", "--role", "etcd"}} {
			if r := try(t, append([]string{"-c", l.name}, args...)...); r.code != 5 {
				t.Errorf("%v ends with %d: %s%s", args, r.code, r.out, r.talk)
			}
		}
		l.run(t, "etcd", "alarms")
		l.run(t, "etcd", "timers")
	})
	t.Run("servers come and go", func(t *testing.T) {
		l.run(t, "lab", "add")
		l.kubectl(t, "wait", "node/cp2", "--for=condition=Ready", "--timeout=60s")
		l.awaitReady(t)
		w, end := l.underWrites(t, "theirs")
		l.run(t, "lab", "stop", "cp2") // takes no voter away
		w.goesOn(t)
		l.run(t, "lab", "start", "cp2")
		end()
		l.run(t, "lab", "remove", "cp2")
		l.awaitEtcd(t, "healthy")
	})
	if diff := cmp.Diff(before, l.asTheyRunIt(t)); diff != "" {
		t.Errorf("what is theirs has changed (-before +after):\n%s", diff)
	}
	if got := l.kubectl(t, "get", "configmap", "theirs", "-o", "jsonpath={.data.k}"); got != "v" {
		t.Errorf("the configmap has %q", got)
	}
}

// losesTheirs kills a follower, then another member, and starts both again.
func (l *lab) losesTheirs(t *testing.T, e *theirs) {
	leader := l.etcd(t).Leader
	followers := slices.DeleteFunc([]string{"m1", "m2", "m3"}, func(name string) bool { return name == leader })
	w, end := l.underWrites(t, "loss")
	e.kill(followers[0])
	l.awaitStatus(t, "degraded", "etcd-down ")
	s := l.status(t)
	if text := fmt.Sprint(s.Findings); !strings.Contains(text, "etcd's member "+followers[0]+" does not answer") || s.Quorum.Healthy != 2 || s.Quorum.MayLose != 0 {
		t.Errorf("%s is dead, and the status says %+v, %s", followers[0], s.Quorum, text)
	}
	w.goesOn(t)
	end()
	e.kill(followers[1])
	eventually(t, noticed, func() error {
		s := l.status(t)
		if s.State != "no quorum" || !slices.Contains(s.causes(), "no-quorum ") {
			return fmt.Errorf("two of three are dead, and it is %s: %+v", s.State, s.Findings)
		}
		for _, f := range s.Findings {
			named := strings.Contains(f.What, followers[0]) && strings.Contains(f.What, followers[1])
			if f.Code == "no-quorum" && !named {
				return fmt.Errorf("who is missing is not named: %+v", f)
			}
		}
		return nil
	})
	e.start(t, followers...)
	l.awaitEtcd(t, "healthy")
	l.awaitReady(t)
}
