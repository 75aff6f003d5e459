//go:build lab

package lab_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestServersMove gives servers other addresses: one of them while it is off
// and the others serve, then all while the whole cluster is off. One command
// brings each back, with its members and its data.
func TestServersMove(t *testing.T) {
	restShared(t)
	l := ownLab(t, "moves", "--servers", "3", "--no-switch")
	l.awaitReady(t)
	t.Run("one", l.oneServerMoves)
	t.Run("all", l.allServersMove)
}

func (l *lab) oneServerMoves(t *testing.T) {
	before := l.memberIDs(t)
	w, end := l.underWrites(t, "moved")
	l.run(t, "lab", "stop", "cp2")
	if r := try(t, "-c", l.name, "lab", "address", "cp1", "198.18.0.61"); r.code == 0 || !strings.Contains(r.talk, "is on") {
		t.Errorf("a machine that runs got another address: %s", r.talk)
	}
	if r := try(t, "-c", l.name, "lab", "address", "cp2", "198.18.0.13"); r.code == 0 {
		t.Error("a machine got the address of another")
	}
	l.run(t, "lab", "address", "cp2", "198.18.0.62")
	l.run(t, "lab", "start", "--wait=false", "cp2")
	l.awaitLost(t, "cp2")
	for args, code := range map[string]int{"cp3=198.18.0.63": 5, "cp2=198.18.0.62 cp1=198.18.0.61": 5, "cp2=198.18.0.11": 5, "cp9=198.18.0.69": 2} {
		r := try(t, append([]string{"-c", l.name, "node", "address"}, strings.Fields(args)...)...)
		if r.code != code {
			t.Errorf("node address %s: exit code %d, want %d: %s", args, r.code, code, r.talk)
		}
	}
	l.run(t, "node", "address", "--dry-run", "cp2=198.18.0.62")
	if spec := l.register(t); strings.Contains(spec, "198.18.0.6") {
		t.Errorf("a command that was refused did something:\n%s", spec)
	}
	have := w.count()
	l.run(t, "node", "address", "cp2=198.18.0.62")
	if w.count() == have {
		t.Error("nothing could be written while one server moved")
	}
	end()
	l.awaitMoved(t, before, map[string]string{"cp1": "198.18.0.11", "cp2": "198.18.0.62", "cp3": "198.18.0.13"})
	l.run(t, "node", "address", "cp2=198.18.0.62") // does no harm
}

func (l *lab) allServersMove(t *testing.T) {
	before := l.memberIDs(t)
	l.kubectl(t, "create", "configmap", "kept", "--from-literal=a=b")
	addresses := map[string]string{"cp1": "198.18.0.71", "cp2": "198.18.0.72", "cp3": "198.18.0.73"}
	names := slices.Sorted(maps.Keys(addresses))
	for _, name := range names {
		l.run(t, "lab", "stop", "--force-quorum-loss", name)
	}
	for _, name := range names {
		l.run(t, "lab", "address", name, addresses[name])
		l.run(t, "lab", "start", "--wait=false", name)
	}
	l.awaitLost(t, names...)
	do := ""
	for _, f := range l.status(t).Findings {
		if f.Code == "no-quorum" {
			do = f.Do
		}
	}
	if want := "kuorum node address cp1=198.18.0.71 cp2=198.18.0.72 cp3=198.18.0.73"; do != want {
		t.Fatalf("the status advises %q, want %q", do, want)
	}
	begin := time.Now()
	l.run(t, strings.Fields(do)[1:]...)
	t.Logf("etcd is back after %v", time.Since(begin).Round(100*time.Millisecond))
	l.awaitMoved(t, before, addresses)
	if got := l.kubectl(t, "get", "configmap", "kept", "-o", "jsonpath={.data.a}"); got != "b" {
		t.Errorf("what was written before is %q", got)
	}
	l.kubectl(t, "delete", "configmap", "kept")
	// It holds without the command: nothing is left that a start would need.
	l.run(t, "lab", "reboot", "cp1")
	l.awaitMoved(t, before, addresses)
}

func (l *lab) memberIDs(t *testing.T) map[string]string {
	t.Helper()
	ids := map[string]string{}
	for _, m := range l.etcd(t).Members {
		ids[m.Name] = m.ID
	}
	return ids
}

func (l *lab) register(t *testing.T) string {
	t.Helper()
	return l.run(t, "etcdctl", "get", "--print-value-only", "/kuorum/cluster.yaml")
}

// awaitLost waits until the status tells of exactly these nodes that their
// machines have other addresses.
func (l *lab) awaitLost(t *testing.T, names ...string) {
	t.Helper()
	eventually(t, 20*time.Second, func() error {
		var lost []string
		s := l.status(t)
		for _, f := range s.Findings {
			if f.Code == "address-lost" {
				lost = append(lost, f.Node)
			}
		}
		if diff := cmp.Diff(names, slices.Sorted(slices.Values(lost))); diff != "" {
			return fmt.Errorf("%s\n%q", diff, s.causes())
		}
		return nil
	})
}

// awaitMoved waits until the servers are well at their addresses: the members
// of before, and nothing left of the move.
func (l *lab) awaitMoved(t *testing.T, before, addresses map[string]string) {
	t.Helper()
	l.awaitReady(t)
	eventually(t, time.Minute, func() error {
		ids, have := map[string]string{}, map[string]string{}
		for _, m := range l.etcd(t).Members {
			if m.Healthy && !m.Learner {
				ids[m.Name] = m.ID
			}
			have[m.Name] = strings.Join(m.PeerURLs, " ")
		}
		want := map[string]string{}
		for name, address := range addresses {
			want[name] = "https://" + address + ":2380"
		}
		if diff := cmp.Diff([]map[string]string{before, want}, []map[string]string{ids, have}); diff != "" {
			return fmt.Errorf("etcd's members (-want +have):\n%s", diff)
		}
		if causes := l.status(t).causes(); len(causes) > 0 {
			return fmt.Errorf("the status has %q", causes)
		}
		if spec := l.register(t); strings.Contains(spec, "from:") {
			return fmt.Errorf("the move is not complete:\n%s", spec)
		}
		for name, address := range addresses {
			if ip := l.kubectl(t, "get", "node", name, "-o", `jsonpath={.status.addresses[?(@.type=="InternalIP")].address}`); ip != address {
				return fmt.Errorf("Kubernetes has %s at %s, want %s", name, ip, address)
			}
			if tables := l.on(t, name, "nft", "list", "tables"); strings.Contains(tables, "kuorum-moved") {
				return fmt.Errorf("%s still has a detour", name)
			}
			var ips []string
			for _, ip := range l.certificate(t, name, "pki/etcd/peer.crt").IPAddresses {
				ips = append(ips, ip.String())
			}
			if diff := cmp.Diff([]string{"127.0.0.1", address}, slices.Sorted(slices.Values(ips))); diff != "" {
				return fmt.Errorf("the certificate of %s:\n%s", name, diff)
			}
		}
		return nil
	})
}
