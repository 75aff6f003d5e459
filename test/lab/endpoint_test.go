//go:build lab

package lab_test

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

const virtualIP = "198.18.0.254"

// holders are the machines that have the virtual IP on a link, and so tell their
// neighbours: one that had it before may still have it on its loopback.
func (l *lab) holders(t *testing.T, among ...string) []string {
	t.Helper()
	var has []string
	for _, name := range among {
		if strings.Contains(l.on(t, name, "ip", "-brief", "-4", "address", "show", "dev", "eth0"), virtualIP+"/") {
			has = append(has, name)
		}
	}
	return has
}

// holder is the one machine that has it.
func (l *lab) holder(t *testing.T, among ...string) string {
	t.Helper()
	var has []string
	eventually(t, 10*time.Second, func() error {
		if has = l.holders(t, among...); len(has) != 1 {
			return fmt.Errorf("the virtual IP is at %q", has)
		}
		return nil
	})
	return has[0]
}

// ask asks the API for its readiness at the virtual IP, from a machine.
func (l *lab) ask(t *testing.T, machine string) error {
	t.Helper()
	r := try(t, "-c", l.name, "lab", "console", machine, "--", "curl", "-sS", "--max-time", "3", "--cacert", "/etc/kuorum/pki/ca.crt", "https://"+virtualIP+":6443/readyz")
	if r.out != "ok" {
		return fmt.Errorf("the API at the virtual IP says %q: %s", r.out, r.talk)
	}
	return nil
}

// TestVirtualIPFollowsTheLiving: when its holder loses its power another server has
// it, at once and alone, and keeps it when the first is back; the commands say so.
func TestVirtualIPFollowsTheLiving(t *testing.T) {
	l := threeServers(t)
	all := []string{"cp1", "cp2", "cp3"}
	first := l.holder(t, all...)
	if err := l.ask(t, others(first)[0]); err != nil {
		t.Fatal(err)
	}
	l.run(t, "lab", "stop", "--power", first)
	t.Cleanup(func() { l.run(t, "lab", "start", first) })
	rest := others(first)
	start := time.Now()
	eventually(t, 5*time.Second, func() error { return l.ask(t, rest[0]) })
	t.Logf("the API answers at the virtual IP after %v, as the commands take it", time.Since(start).Round(time.Millisecond))
	second := l.holder(t, rest...)
	if err := l.ask(t, second); err != nil {
		t.Errorf("from its holder: %v", err)
	}
	l.run(t, "lab", "start", first)
	l.awaitReady(t)
	if now := l.holder(t, all...); now != second {
		t.Errorf("%s took the virtual IP from %s, which is well", now, second)
	}
	if out := l.run(t, "leader"); !strings.Contains(out, "vip") || !strings.Contains(out[strings.Index(out, "vip"):], second) {
		t.Errorf("kuorum leader says\n%s", out)
	}

	l.run(t, "leader", "move", "vip", first)
	if now := l.holder(t, all...); now != first {
		t.Errorf("moved to %s, and it is at %s", first, now)
	}
	// The former holder still had the address for a moment, for its own processes too.
	asking := "for i in $(seq 40); do curl -sS --max-time 3 --cacert /etc/kuorum/pki/ca.crt https://" + virtualIP + ":6443/readyz || exit 1; done"
	if r := l.tryOn(t, second, "sh", "-c", asking); r.out != strings.Repeat("ok", 40) {
		t.Errorf("from its former holder the API says %q: %s", r.out, r.talk)
	}
	if r := try(t, "-c", l.name, "leader", "move", "vip", first); r.code != 0 || !strings.Contains(r.talk, "already") {
		t.Errorf("moving it where it is ends with %d: %s", r.code, r.talk)
	}
	if r := try(t, "-c", l.name, "leader", "move", "vip", "cp9"); r.code != 2 {
		t.Errorf("moving it to nobody ends with %d: %s", r.code, r.talk)
	}
}

// TestVirtualIPNeedsNoQuorum: the last server alone holds it, and gives it to
// nobody while all come back; a server that stops in order hands it over.
func TestVirtualIPNeedsNoQuorum(t *testing.T) {
	l := threeServers(t)
	holder := l.holder(t, "cp1", "cp2", "cp3")
	last := others(holder)[0]
	gone := others(last)
	t.Cleanup(func() {
		for _, name := range gone {
			l.run(t, "lab", "start", "--wait=false", name)
		}
		l.awaitReady(t)
	})
	for _, name := range gone {
		l.run(t, "lab", "stop", "--power", "--force-quorum-loss", name)
	}
	if at := l.holder(t, last); at != last {
		t.Errorf("without a quorum the virtual IP is at %q", at)
	}
	for _, name := range gone {
		l.run(t, "lab", "start", "--wait=false", name)
	}
	l.awaitReady(t)
	eventually(t, 10*time.Second, func() error { return l.ask(t, "cp1") })
	holder = l.holder(t, "cp1", "cp2", "cp3")
	l.run(t, "lab", "reboot", holder)
	if now := l.holder(t, "cp1", "cp2", "cp3"); now == holder {
		t.Errorf("%s was rebooted and holds the virtual IP as before", holder)
	}
}

// TestBalancersRestartTogether: the balancers of all servers die at once, and with them
// the virtual IP. What they led to goes on, and so do clients, after a moment.
func TestBalancersRestartTogether(t *testing.T) {
	l := threeServers(t)
	l.awaitReady(t)
	before := map[string]map[string]int{}
	for _, name := range others("") {
		before[name] = l.machine(t, name).pids()
	}
	w, end := l.underWrites(t, "balancers")
	var all sync.WaitGroup
	for _, name := range others("") {
		all.Go(func() {
			if r := try(t, "-c", l.name, "fault", "kill", name+"/endpoint"); r.code != 0 {
				t.Errorf("the balancer of %s is not killed: %s", name, r.talk)
			}
		})
	}
	all.Wait()
	have := w.count()
	eventually(t, 10*time.Second, func() error { return atLeast(w, have+10) })
	l.holder(t, "cp1", "cp2", "cp3")
	l.awaitReady(t)
	end()
	for _, name := range others("") {
		for program, pid := range l.machine(t, name).pids() {
			if was := before[name][program]; (was != pid) != (program == "endpoint") {
				t.Errorf("%s of %s was process %d and is %d", program, name, was, pid)
			}
		}
	}
}

// TestHalfOpenConnections: ten thousand clients that connect to the virtual IP and say
// nothing, and hundreds that say a byte now and then, are no trouble for others.
func TestHalfOpenConnections(t *testing.T) {
	const mute, slow = 10_000, 500
	l := threeServers(t)
	l.awaitReady(t)
	holder := l.holder(t, "cp1", "cp2", "cp3")
	w, end := l.underWrites(t, "half-open")
	leave := l.crowd(t, virtualIP+":6443", mute, slow)
	resident := l.memory(t, holder, "endpoint")
	open := strings.Count(l.on(t, holder, "ss", "-Htn", "state", "established", "sport", "=", ":6443"), "\n")
	t.Logf("the balancer takes %d MiB with %d connections", resident>>20, open)
	if resident > 256<<20 || open < mute {
		t.Error("that is too much, or they are too few")
	}
	have := w.count()
	for range 10 {
		if err := l.ask(t, others(holder)[0]); err != nil {
			t.Errorf("while %d clients say nothing: %v", mute, err)
		}
	}
	eventually(t, 5*time.Second, func() error { return atLeast(w, have+10) })
	leave()
	end()
	if w.gap > 2*time.Second {
		t.Errorf("writes stopped for %v", w.gap)
	}
}

// crowd connects so many clients that say nothing, and so many that say a byte each
// second, from the network of the lab's switch. They are another process, see beCrowd.
func (l *lab) crowd(t *testing.T, address string, mute, slow int) (leave func()) {
	t.Helper()
	pid, err := os.ReadFile(filepath.Join(tests.dir, "labs", l.name, "lab.pid"))
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "nsenter", "-t", strings.TrimSpace(string(pid)), "-n", self)
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %d %d", crowdVariable, address, mute, slow))
	cmd.Stderr = t.Output()
	stay, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	words, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	leave = sync.OnceFunc(func() {
		_ = stay.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("the crowd: %v", err)
		}
	})
	t.Cleanup(leave)
	if word, err := bufio.NewReader(words).ReadString('\n'); word != "here\n" {
		t.Fatalf("the crowd says %q, %v", word, err)
	}
	return leave
}

// crowdVariable has a test binary be the crowd.
const crowdVariable = "KUORUM_TEST_CROWD"

// beCrowd connects, says so, and stays until stdin ends. The slow ones begin a TLS
// handshake that they never end.
func beCrowd(order string) error {
	var address string
	var mute, slow int
	if _, err := fmt.Sscan(order, &address, &mute, &slow); err != nil {
		return err
	}
	var conns []net.Conn
	for range mute + slow {
		conn, err := net.DialTimeout("tcp", address, 5*time.Second)
		if err != nil {
			return err
		}
		conns = append(conns, conn)
	}
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		_, _ = io.Copy(io.Discard, os.Stdin)
	}()
	if _, err := os.Stdout.WriteString("here\n"); err != nil {
		return err
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for hello := []byte{22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3, 0, 0, 0, 0, 0}; ; hello = hello[min(1, len(hello)-1):] {
		for _, conn := range conns[:slow] {
			_, _ = conn.Write(hello[:1]) // it may have been closed
		}
		select {
		case <-gone:
			return nil
		case <-tick.C:
		}
	}
}

// memory is what a component of a machine has resident, in bytes.
func (l *lab) memory(t *testing.T, machine, component string) int64 {
	t.Helper()
	text := l.on(t, machine, "cat", fmt.Sprintf("/proc/%d/statm", l.machine(t, machine).pids()[component]))
	var size, resident int64
	if _, err := fmt.Sscan(text, &size, &resident); err != nil {
		t.Fatal(err)
	}
	return resident * int64(os.Getpagesize())
}

// TestVirtualIPIsAtOnePlace looks all the time at all servers while the holder is
// killed, frozen, stopped and cut off, and finds it twice never, but for a server
// that cannot know: one that is frozen or cut off.
func TestVirtualIPIsAtOnePlace(t *testing.T) {
	l := threeServers(t)
	silent := "heard nothing from the active router"
	why := map[string]string{"kill": silent, "stop": "shut down", "pause": silent, "cut": silent}
	for _, how := range [][]string{{"fault", "kill", "%s/endpoint"}, {"fault", "stop", "%s/endpoint"}, {"fault", "pause", "%s"}, {"fault", "cut", "%s"}} {
		holder := l.holder(t, "cp1", "cp2", "cp3")
		args := slices.Clone(how)
		args[2] = fmt.Sprintf(args[2], holder)
		t.Run(how[1], func(t *testing.T) {
			t.Cleanup(func() {
				l.run(t, "fault", "heal", "--all")
				l.awaitReady(t)
				l.holder(t, "cp1", "cp2", "cp3")
			})
			l.run(t, args...)
			rest := others(holder)
			eventually(t, 5*time.Second, func() error { return l.ask(t, rest[0]) })
			for range 10 {
				if has := l.holders(t, rest...); len(has) > 1 {
					t.Errorf("the virtual IP is at %q", has)
				}
			}
			l.awaitChange(t, "vip", change{From: holder, Why: why[how[1]]})
		})
	}
}

// toolsPod says something all the time, and what it is told.
const toolsPod = `apiVersion: v1
kind: Pod
metadata: {name: tools}
spec:
  restartPolicy: Never
  containers:
  - name: tools
    image: shell:1
    imagePullPolicy: Never
    stdin: true
    command: [sh, -c, 'while true; do echo tick; sleep 0.2; done & exec cat']
`

func makeTools(t *testing.T, l *lab) {
	t.Helper()
	archive := filepath.Join(t.TempDir(), "shell.tar")
	writeShellImage(t, archive)
	l.run(t, "image", "import", archive)
	manifest := filepath.Join(t.TempDir(), "tools.yaml")
	if err := os.WriteFile(manifest, []byte(toolsPod), 0o600); err != nil {
		t.Fatal(err)
	}
	l.kubectl(t, "apply", "-f", manifest)
	t.Cleanup(func() {
		l.kubectl(t, "delete", "pod", "tools", "--grace-period=0", "--force", "--wait=true", "--timeout=60s")
	})
	l.kubectl(t, "wait", "--for=condition=Ready", "pod/tools", "--timeout=60s")
}

// throughVIP is kubectl on a machine, by the virtual IP.
func throughVIP(l *lab, machine string, args ...string) []string {
	return append([]string{"-c", l.name, "lab", "console", machine, "--", "kuorum", "kubectl", "--server", "https://" + virtualIP + ":6443"}, args...)
}

// TestToolsThroughTheVirtualIP: all that kubectl does, and that is not one short
// request, from another machine through the virtual IP and a balancer.
func TestToolsThroughTheVirtualIP(t *testing.T) {
	l := threeServers(t)
	makeTools(t, l)
	client := others(l.holder(t, "cp1", "cp2", "cp3"))[0]
	through := func(args ...string) []string { return throughVIP(l, client, args...) }
	ok := func(want string, args ...string) {
		t.Helper()
		if r := try(t, through(args...)...); r.code != 0 || !strings.Contains(r.out, want) {
			t.Errorf("kubectl %q ends with %d: %s%s", args, r.code, r.out, r.talk)
		}
	}
	ok("a\nb\n", "exec", "tools", "--", "printf", `a\nb\n`)
	ok("patched", "patch", "pod", "tools", "--type=merge", "-p", `{"metadata":{"labels":{"patched":"yes"}}}`)
	ok("yes", "get", "pod", "tools", "-o", "jsonpath={.metadata.labels.patched}")

	cmd := tests.command(through("exec", "-i", "tools", "--", "tr", "a-z", "A-Z")...)
	cmd.Stdin = strings.NewReader("louder\n")
	if r := finish(t, cmd); r.out != "LOUDER\n" {
		t.Errorf("exec with input says %q: %s", r.out, r.talk)
	}
	l.on(t, client, "sh", "-c", "head -c 3000000 /dev/urandom > /tmp/there")
	if r := try(t, through("cp", "/tmp/there", "tools:/tmp/there")...); r.code != 0 {
		t.Errorf("cp to the pod ends with %d: %s", r.code, r.talk)
	}
	if r := try(t, through("cp", "tools:/tmp/there", "/tmp/back")...); r.code != 0 {
		t.Errorf("cp from the pod ends with %d: %s", r.code, r.talk)
	}
	l.on(t, client, "cmp", "/tmp/there", "/tmp/back")

	for what, args := range map[string][]string{
		"tick": {"logs", "-f", "tools"}, "ADDED": {"get", "pods", "--watch", "--output-watch-events"}, "tock": {"attach", "-i", "tools"},
	} {
		if err := untilSaid(t, through(args...), "tock\n", what); err != nil {
			t.Errorf("kubectl %q: %v", args, err)
		}
	}
	script := fmt.Sprintf(`kuorum kubectl --server https://%s:6443 port-forward pod/tools 18080:8080 >/tmp/forward 2>&1 & p=$!
kuorum kubectl exec tools -- sh -c 'mkdir -p /tmp/www; echo through > /tmp/www/index.html; httpd -p 127.0.0.1:8080 -h /tmp/www'
for i in $(seq 50); do curl -sS --max-time 2 http://127.0.0.1:18080/ 2>/dev/null && break; sleep 0.1; done; kill $p`, virtualIP)
	if out := l.on(t, client, "sh", "-c", script); !strings.Contains(out, "through") {
		t.Errorf("port-forward: %q", out)
	}
}

// TestMovesKeepConnections: a log that is followed through the virtual IP goes on, on
// the same connection, while the address moves in order, twice; and afterwards
// nothing is left of that on the servers.
func TestMovesKeepConnections(t *testing.T) {
	l := threeServers(t)
	makeTools(t, l)
	all := []string{"cp1", "cp2", "cp3"}
	holder := l.holder(t, all...)
	client, heir := others(holder)[0], others(holder)[1]
	watch := func(to string) {
		t.Helper()
		moved := false
		err := untilSaid(t, throughVIP(l, client, "logs", "-f", "--tail=1", "tools"), "", "tick", func() {
			l.run(t, "leader", "move", "vip", to)
			moved = strings.Contains(l.on(t, to, "nft", "list", "tables"), "netdev kuorum-vip")
		})
		if err != nil || !moved {
			t.Errorf("moved to %s, which passes packets on: %t; logs -f: %v", to, moved, err)
		}
		if now := l.holder(t, all...); now != to {
			t.Errorf("moved to %s, and it is at %s", to, now)
		}
	}
	watch(heir)
	watch(holder) // while the first move's packets are still passed on
	watch(heir)
	for _, name := range []string{holder, heir} {
		eventually(t, 30*time.Second, func() error { // until all know that there are no connections
			out := l.on(t, name, "nft", "list", "tables") + l.on(t, name, "ip", "address", "show", "dev", "lo")
			if strings.Contains(out, "kuorum-vip") || strings.Contains(out, virtualIP) {
				return fmt.Errorf("%s still has\n%s", name, out)
			}
			return nil
		})
	}
}

// untilSaid runs a command that has no end until its output has the word, and, with
// something to do then, thirty times more.
func untilSaid(t *testing.T, args []string, input, word string, then ...func()) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	ready := tests.command(args...)
	cmd := exec.CommandContext(ctx, ready.Path, ready.Args[1:]...)
	cmd.Env, cmd.Dir = ready.Env, ready.Dir
	in, err := cmd.StdinPipe() // open to the end: an attach ends with it
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	if _, err := in.Write([]byte(input)); err != nil {
		return err
	}
	var said bytes.Buffer
	part := make([]byte, 4096)
	for times := 1; strings.Count(said.String(), word) < times || len(then) > 0; {
		if len(then) > 0 && strings.Contains(said.String(), word) {
			then[0]()
			then, times = then[1:], strings.Count(said.String(), word)+30
			continue
		}
		n, err := out.Read(part)
		said.Write(part[:n])
		if err != nil {
			return errors.Join(fmt.Errorf("%q never came: %q: %w", word, said.String(), err), cmd.Wait())
		}
	}
	cancel()
	_ = cmd.Wait()
	return nil
}

// writeShellImage makes an image of the host's static busybox.
func writeShellImage(t *testing.T, path string) {
	t.Helper()
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	entry := func(h tar.Header, data []byte) {
		h.Size = int64(len(data))
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	entry(tar.Header{Name: "bin/", Typeflag: tar.TypeDir, Mode: 0o755}, nil)
	entry(tar.Header{Name: "tmp/", Typeflag: tar.TypeDir, Mode: 0o1777}, nil)
	entry(tar.Header{Name: "bin/busybox", Typeflag: tar.TypeReg, Mode: 0o755}, program)
	for _, name := range []string{"sh", "cat", "echo", "printf", "tr", "sleep", "tar", "mkdir", "httpd", "test", "ls"} {
		entry(tar.Header{Name: "bin/" + name, Typeflag: tar.TypeSymlink, Linkname: "busybox", Mode: 0o777}, nil)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	sum := fmt.Sprintf("sha256:%x", sha256.Sum256(layer.Bytes()))
	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux",
		"config": map[string]any{"Env": []string{"PATH=/bin"}}, "rootfs": map[string]any{"type": "layers", "diff_ids": []string{sum}},
	})
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := json.Marshal([]map[string]any{{"Config": "config.json", "RepoTags": []string{"docker.io/library/shell:1"}, "Layers": []string{"layer.tar"}}})
	if err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	w = tar.NewWriter(&archive)
	for name, data := range map[string][]byte{"manifest.json": manifest, "config.json": config, "layer.tar": layer.Bytes()} {
		entry(tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644}, data)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, archive.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
}
