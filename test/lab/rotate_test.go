//go:build lab

package lab_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// certificate is what `kuorum certs list -o json` says of one.
type certificate struct{ Node, File, By, Key, Renew string }

func (l *lab) certificates(t *testing.T) []certificate {
	t.Helper()
	var list struct{ Items []certificate }
	if err := json.Unmarshal([]byte(l.run(t, "certs", "list", "-o", "json")), &list); err != nil {
		t.Fatal(err)
	}
	return list.Items
}

// signers are the keys by which the nodes' own certificates were signed.
func (l *lab) signers(t *testing.T) []string {
	t.Helper()
	keys := map[string]bool{}
	for _, c := range l.certificates(t) {
		if c.Renew != "" {
			keys[c.Key] = true
		}
	}
	return slices.Sorted(maps.Keys(keys))
}

// authorities are the keys that each node trusts as its cluster's authority.
func (l *lab) authorities(t *testing.T) map[string][]string {
	t.Helper()
	return l.trusted(t, "pki/ca.crt")
}

// trusted are the keys that each node has in an authority's file.
func (l *lab) trusted(t *testing.T, file string) map[string][]string {
	t.Helper()
	trusted := map[string][]string{}
	for _, c := range l.certificates(t) {
		if c.File == file {
			trusted[c.Node] = append(trusted[c.Node], c.Key)
		}
	}
	return trusted
}

// TestRotateAuthorities replaces all authorities of a lab under writes: none is
// lost, no pod is restarted, nothing of the old ones counts in the end. It stops
// in between, and is killed once: each run goes on where the last one was.
func TestRotateAuthorities(t *testing.T) {
	restShared(t)
	l := ownLab(t, "rotate", "--servers", "3", "--workers", "1", "--no-switch")
	l.kubectl(t, "create", "deployment", "calm", "--image=registry.k8s.io/pause:3.10.2", "--replicas=3")
	l.kubectl(t, "rollout", "status", "deployment/calm", "--timeout=60s")
	pods := l.pods(t)
	before := l.signers(t)
	oldConfig := l.keep(t, "admin.conf")
	oldToken := l.token(t, "worker")

	if r := try(t, "-c", l.name, "certs", "rotate-ca", "--dry-run"); r.code != 0 || !strings.Contains(r.out+r.talk, "make new authorities on cp1") {
		t.Errorf("the steps: exit code %d\n%s%s", r.code, r.out, r.talk)
	}
	_, end := l.underWrites(t, "trust") // clients know the old authorities only
	l.rotateInterrupted(t)
	l.run(t, "certs", "rotate-ca", "--until", "trust")
	end()
	if now := l.signers(t); !slices.Equal(now, before) {
		t.Errorf("after trust %q sign, before that %q", now, before)
	}
	for node, keys := range l.authorities(t) {
		if len(keys) != 2 {
			t.Errorf("after trust %s trusts %q", node, keys)
		}
	}

	_, end = l.underWrites(t, "sign") // clients know both, and show what the old ones have signed
	l.run(t, "certs", "rotate-ca", "--until", "sign")
	end()
	signed := l.signers(t)
	for _, key := range signed {
		if slices.Contains(before, key) {
			t.Errorf("after sign the old authority %s still signs", key)
		}
	}
	if r := try(t, "-c", l.name, "kubectl", "--kubeconfig", oldConfig, "get", "nodes"); r.code == 0 {
		t.Error("clients that know the old authority only trust API servers of the new one")
	}

	_, end = l.underWrites(t, "forget")
	l.run(t, "certs", "rotate-ca")
	end()
	l.awaitReady(t)
	if now := l.signers(t); !slices.Equal(now, signed) {
		t.Errorf("after forget %q sign, want %q", now, signed)
	}
	for node, keys := range l.authorities(t) {
		if len(keys) != 1 || !slices.Contains(signed, keys[0]) {
			t.Errorf("after forget %s trusts %q", node, keys)
		}
	}
	if after := l.pods(t); after != pods {
		t.Errorf("pods were\n%s\nand are\n%s", pods, after)
	}
	l.oldIsOver(t, oldConfig, oldToken)
	l.run(t, "lab", "add")
	l.run(t, "lab", "add", "--role", "worker", "w9")
	l.awaitReady(t)
	if s := l.status(t); s.Quorum.Voters != 4 || len(s.causes()) > 0 {
		t.Errorf("after all that: %+v, %q", s.Quorum, s.causes())
	}
}

// TestRotateWithEtcdNodes replaces all authorities where etcd has machines of its
// own, under writes: etcd nodes go through all phases, their etcd starts anew for
// another bundle only, and two servers do.
func TestRotateWithEtcdNodes(t *testing.T) {
	restShared(t)
	l := ownLab(t, "rotate-etcd", "--etcd", "3", "--servers", "2", "--no-switch")
	l.awaitReady(t)
	l.kubectl(t, "create", "deployment", "calm", "--image=registry.k8s.io/pause:3.10.2", "--replicas=3")
	l.kubectl(t, "rollout", "status", "deployment/calm", "--timeout=60s")
	pods := l.pods(t)
	before := l.signers(t)
	oldConfig := l.keep(t, "admin.conf")
	oldToken := l.token(t, "worker")
	members := []string{"e1", "e2", "e3"}
	for _, phase := range []struct {
		name           string
		bundle         int // authorities that a node trusts then
		etcdStartsAnew bool
	}{{"trust", 2, true}, {"sign", 2, false}, {"forget", 1, true}} {
		was := map[string]int{}
		for _, name := range members {
			was[name] = l.machine(t, name).pids()["etcd"]
		}
		_, end := l.underWrites(t, phase.name)
		l.run(t, "certs", "rotate-ca", "--until", phase.name)
		end()
		for _, file := range []string{"pki/etcd/ca.crt", "pki/agent-ca.crt"} {
			trusted := l.trusted(t, file)
			if len(trusted) != 5 {
				t.Errorf("after %s %d nodes have %s", phase.name, len(trusted), file)
			}
			for node, keys := range trusted {
				if len(keys) != phase.bundle {
					t.Errorf("after %s %s trusts %q in %s", phase.name, node, keys, file)
				}
			}
		}
		if nodes := l.authorities(t); len(nodes) != 2 {
			t.Errorf("after %s the cluster's authority is on %v", phase.name, nodes)
		}
		for _, name := range members {
			if now := l.machine(t, name).pids()["etcd"]; now == 0 || (now != was[name]) != phase.etcdStartsAnew {
				t.Errorf("in %s the etcd of %s was %d and is %d", phase.name, name, was[name], now)
			}
		}
		l.awaitVoters(t, members...)
		if causes := l.status(t).causes(); len(causes) > 0 {
			t.Errorf("after %s: %q", phase.name, causes)
		}
	}
	for _, key := range l.signers(t) {
		if slices.Contains(before, key) {
			t.Errorf("the old authority %s still signs", key)
		}
	}
	if after := l.pods(t); after != pods {
		t.Errorf("pods were\n%s\nand are\n%s", pods, after)
	}
	l.oldIsOver(t, oldConfig, oldToken)
	l.run(t, "lab", "remove", "e3")
	l.run(t, "lab", "add", "--role", "etcd") // takes the free name
	l.awaitVoters(t, members...)
	l.run(t, "lab", "add")
	l.awaitReady(t)
	if causes := l.status(t).causes(); len(causes) > 0 {
		t.Errorf("after all that: %q", causes)
	}
}

// pods are the deployment's, with what a restart would change.
func (l *lab) pods(t *testing.T) string {
	t.Helper()
	return l.kubectl(t, "get", "pods", "-l", "app=calm", "--sort-by=.metadata.name", "-o",
		"jsonpath={range .items[*]}{.metadata.name} {.status.containerStatuses[*].restartCount} {.status.containerStatuses[*].containerID}\n{end}")
}

// keep copies one of the lab's own files, as a person does.
func (l *lab) keep(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(tests.dir, "labs", l.name, name))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// rotateInterrupted kills the command as soon as a node trusts two authorities.
func (l *lab) rotateInterrupted(t *testing.T) {
	t.Helper()
	var talk bytes.Buffer
	cmd := tests.command("-c", l.name, "certs", "rotate-ca")
	cmd.Stderr = &talk
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, time.Minute, func() error {
		for _, keys := range l.authoritiesOnDisk(t) {
			if keys > 1 {
				return nil
			}
		}
		return fmt.Errorf("no node trusts two authorities\n%s", talk.String())
	})
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("it was over already")
	}
	l.awaitReady(t)
}

// authoritiesOnDisk counts those in each machine's ca.crt.
func (l *lab) authoritiesOnDisk(t *testing.T) map[string]int {
	t.Helper()
	counts := map[string]int{}
	for _, name := range []string{"cp1", "cp2", "cp3", "w1"} {
		data, err := os.ReadFile(l.disk(name, "etc/kuorum/pki/ca.crt"))
		if err != nil {
			t.Fatal(err)
		}
		counts[name] = bytes.Count(data, []byte("BEGIN CERTIFICATE"))
	}
	return counts
}

// oldIsOver: neither the old kubeconfig nor its certificate alone, nor an old
// token counts any more.
func (l *lab) oldIsOver(t *testing.T, config string, token joinToken) {
	t.Helper()
	if r := try(t, "-c", l.name, "kubectl", "--kubeconfig", config, "get", "nodes"); r.code == 0 {
		t.Error("the old admin.conf still works")
	}
	r := try(t, "-c", l.name, "kubectl", "--kubeconfig", config, "--insecure-skip-tls-verify", "get", "nodes")
	if r.code == 0 || !strings.Contains(strings.ToLower(r.talk), "unauthorized") && !strings.Contains(r.talk, "logged in") {
		t.Errorf("the certificate of the old admin.conf: exit code %d, %s", r.code, r.talk)
	}
	if out := l.run(t, "token", "list"); strings.Contains(out, token.ID) {
		t.Errorf("a token with the old pin is still there:\n%s", out)
	}
	for _, c := range l.certificates(t) {
		if strings.HasPrefix(c.File, "next/") {
			t.Errorf("%s still has %s", c.Node, c.File)
		}
	}
	l.kubectl(t, "get", "--raw", "/readyz")
	l.run(t, "etcdctl", "endpoint", "health")
	if root := l.kubectl(t, "get", "configmap", "kube-root-ca.crt", "-o", `jsonpath={.data.ca\.crt}`); strings.Count(root, "BEGIN CERTIFICATE") != 1 {
		t.Errorf("pods are given\n%s", root)
	}
}

// TestRenewNow: new certificates on demand, and no program is restarted.
func TestRenewNow(t *testing.T) {
	l := threeServers(t)
	before := l.machine(t, "cp2").pids()
	serial := l.certificate(t, "cp2", "pki/apiserver.crt").SerialNumber
	out := l.run(t, "certs", "renew", "cp2")
	if !strings.Contains(out, "cp2 pki/apiserver.crt\n") || strings.Contains(out, "ca.crt") {
		t.Errorf("it says\n%s", out)
	}
	if now := l.certificate(t, "cp2", "pki/apiserver.crt").SerialNumber; now.Cmp(serial) == 0 {
		t.Error("the API server's certificate is the old one")
	}
	deployHello(t, l)
	exec := func() {
		l.on(t, "cp2", "env", "KUBECTL_REMOTE_COMMAND_WEBSOCKETS=false", "kuorum", "kubectl", "--server=https://198.18.0.12:6444", "exec", "deployment/hello", "--", "/hello", "get", "http://127.0.0.1:8080")
	}
	for range 3 { // the API server shows kubelets another certificate each time, which it reads once a second at most
		exec()
		<-time.After(1100 * time.Millisecond)
		l.run(t, "certs", "renew", "cp2")
		exec()
		l.run(t, "certs", "renew", "cp2")
		<-time.After(1100 * time.Millisecond)
	}
	exec()
	if diff := l.machine(t, "cp2").pids(); !maps.Equal(diff, before) {
		t.Errorf("programs were restarted: %v, %v", before, diff)
	}
	l.awaitReady(t)
}
