//go:build lab

package lab_test

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"kuorum/internal/doctor"
	"kuorum/internal/host"
)

func buildHello(t *testing.T, archive string) {
	t.Helper()
	if out, err := exec.Command("sh", example(t, "build.sh"), archive).CombinedOutput(); err != nil {
		t.Fatalf("cannot build the example: %v\n%s", err, out)
	}
}

// TestHostIsUntouched compares the host's network, kernel settings and mounts
// before, during and after a lab.
func TestHostIsUntouched(t *testing.T) {
	before, err := takeSnapshot()
	if err != nil {
		t.Fatal(err)
	}
	ownLab(t, "quiet", "--servers", "1", "--workers", "1")
	during, err := takeSnapshot()
	if err != nil {
		t.Fatal(err)
	}
	if diff := before.network().diff(during.network()); diff != "" {
		t.Errorf("a running lab changed the host (-before +during):\n%s", diff)
	}
}

// TestDownLeavesNothing compares everything a lab could leave behind.
func TestDownLeavesNothing(t *testing.T) {
	other := filepath.Join(tests.dir, "kubeconfig")
	kubeconfigBefore, _ := os.ReadFile(other)
	before, err := takeSnapshot()
	if err != nil {
		t.Fatal(err)
	}
	kuorum(t, "up", "gone", "--servers", "1", "--no-switch")
	kuorum(t, "down", "gone")
	assertNothingLeft(t, "gone", before)
	kubeconfigAfter, _ := os.ReadFile(other)
	if len(kubeconfigBefore) > 0 && string(kubeconfigBefore) != string(kubeconfigAfter) {
		t.Error("the kubeconfig is not what it was")
	}
}

func assertNothingLeft(t *testing.T, name string, before snapshot) {
	t.Helper()
	after, err := takeSnapshot()
	if err != nil {
		t.Fatal(err)
	}
	if diff := before.diff(after); diff != "" {
		t.Errorf("something is left (-before +after):\n%s", diff)
	}
	left, _ := filepath.Glob(filepath.Join(tests.dir, "labs", name+"*"))
	if len(left) > 0 {
		t.Errorf("files are left: %v", left)
	}
	data, _ := os.ReadFile(filepath.Join(tests.dir, "kubeconfig"))
	if strings.Contains(string(data), "kuorum-"+name) {
		t.Error("its entries are left in the kubeconfig")
	}
}

// killAfter starts a command and kills it after a while; a command that ended
// by itself before is fine.
func killAfter(t *testing.T, wait time.Duration, signal syscall.Signal, args ...string) int {
	t.Helper()
	cmd := tests.command(args...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(wait, func() { _ = cmd.Process.Signal(signal) })
	defer timer.Stop()
	_ = cmd.Wait()
	return cmd.ProcessState.ExitCode()
}

// TestInterruptedUpAndDown kills up and down at many moments; the next one
// completes.
func TestInterruptedUpAndDown(t *testing.T) {
	before, err := takeSnapshot()
	if err != nil {
		t.Fatal(err)
	}
	up := []string{"up", "cut", "--servers", "1"}
	for _, wait := range []time.Duration{20, 100, 400, 700, 1000, 1500, 3000} {
		t.Run(fmt.Sprintf("up killed after %d ms", wait), func(t *testing.T) {
			killAfter(t, wait*time.Millisecond, syscall.SIGKILL, up...)
			try(t, "down", "cut") // 2 when it was killed before it made anything
			assertNothingLeft(t, "cut", before)
		})
	}
	t.Run("up completes an interrupted up", func(t *testing.T) {
		killAfter(t, 600*time.Millisecond, syscall.SIGKILL, up...)
		if code := killAfter(t, 1500*time.Millisecond, syscall.SIGINT, up...); code != 130 {
			t.Errorf("^C ends up with code %d, want 130", code)
		}
		kuorum(t, up...)
	})
	for _, wait := range []time.Duration{5, 20, 50, 100} {
		t.Run(fmt.Sprintf("down killed after %d ms", wait), func(t *testing.T) {
			kuorum(t, append(up, "--wait=false")...)
			killAfter(t, wait*time.Millisecond, syscall.SIGKILL, "down", "cut")
			try(t, "down", "cut") // 2 when the first one was quicker than its end
			assertNothingLeft(t, "cut", before)
		})
	}
	t.Run("the lab process is killed", func(t *testing.T) {
		kuorum(t, append(up, "--wait=false")...)
		if out, err := exec.Command("pkill", "-KILL", "-f", "lab process.* cut$").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		eventually(t, 10*time.Second, func() error {
			if left := processesOf("cut"); left != "" {
				return fmt.Errorf("still there: %s", left)
			}
			return nil
		})
		kuorum(t, up...)
		kuorum(t, "down", "cut")
		assertNothingLeft(t, "cut", before)
	})
}

func TestPortTaken(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	port := ln.Addr().(*net.TCPAddr).Port
	file := filepath.Join(t.TempDir(), "cluster.yaml")
	text := fmt.Sprintf("apiVersion: kuorum.dev/v1alpha1\nkind: Cluster\nmetadata: {name: busy}\nspec: {servers: 1, lab: {port: %d}}\n", port)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	r := try(t, "up", "-f", file)
	if r.code != 1 || !strings.Contains(r.talk, fmt.Sprintf("cannot listen on 127.0.0.1:%d", port)) || !strings.Contains(r.talk, "ss -ltnp") {
		t.Errorf("code %d: %s", r.code, r.talk)
	}
	if left, _ := filepath.Glob(filepath.Join(tests.dir, "labs/busy*")); len(left) > 0 {
		t.Errorf("it left %v", left)
	}
	if names := try(t, "list", "-q"); strings.Contains(names.out, "busy") {
		t.Error("it left half a lab")
	}
}

const customCluster = `apiVersion: kuorum.dev/v1alpha1
kind: Cluster
metadata: {name: custom}
spec:
  nodes:
  - {name: alpha, role: server, address: 198.19.7.20}
  - {name: beta, role: worker, labels: {disktype: ssd}}
  network: {nodes: 198.19.7.0/24, pods: 10.9.0.0/20, podPrefix: 25, services: 10.99.0.0/16, backend: host-gw}
  dns: {domain: example.internal}
  kubernetes: {maxPods: 40, podSecurity: restricted}
`

// TestUpFromFile brings up what a file says, down to the last field.
func TestUpFromFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "cluster.yaml")
	if err := os.WriteFile(file, []byte(customCluster), 0o600); err != nil {
		t.Fatal(err)
	}
	l := ownLab(t, "custom", "-f", file)
	got := l.kubectl(t, "get", "nodes", "-o", `jsonpath={range .items[*]}{.metadata.name} {.metadata.labels.disktype} {.spec.podCIDR} {.status.capacity.pods} {.status.addresses[0].address}{"\n"}{end}`)
	for _, want := range []string{"alpha  10.9.", "beta ssd 10.9.", "/25 40 198.19.7.20", "/25 40 198.19.7.101"} {
		if !strings.Contains(got, want) {
			t.Errorf("nodes are\n%swant %q among them", got, want)
		}
	}
	if ip := l.kubectl(t, "get", "service", "kubernetes", "-o", "jsonpath={.spec.clusterIP}"); ip != "10.99.0.1" {
		t.Errorf("the API's Service is at %s", ip)
	}
	if r := try(t, "-c", "custom", "kubectl", "run", "x", "--image=hello:1"); r.code == 0 || !strings.Contains(r.talk, "restricted:latest") {
		t.Errorf("podSecurity is not restricted: %s", r.talk)
	}
	for _, c := range l.machine(t, "beta").Agent.Components {
		if c.Name == "etcd" || strings.HasPrefix(c.Name, "kube-api") {
			t.Errorf("a worker runs %s", c.Name)
		}
	}
	for _, name := range []string{"ca.key", "agent-ca.key"} {
		if _, err := os.Stat(filepath.Join(tests.dir, "labs/custom/machines/beta/etc/kuorum/pki", name)); err == nil {
			t.Errorf("a worker has an authority's key: %s", name)
		}
	}
	if shown := kuorum(t, "config", "show", "custom"); !strings.Contains(shown, "backend: host-gw") || !strings.Contains(shown, "quotaMiB: 2048") {
		t.Errorf("config show prints\n%s", shown)
	}
	r := try(t, "up", "custom", "--servers", "3")
	if r.code == 0 || !strings.Contains(r.talk, `lab "custom" exists and is not what you ask for`) {
		t.Errorf("another shape for a lab that exists: code %d: %s", r.code, r.talk)
	}
}

// TestTwoLabsSideBySide: the same addresses in both, and neither sees the other.
func TestTwoLabsSideBySide(t *testing.T) {
	main := threeServers(t)
	side := ownLab(t, "side", "--servers", "1", "--no-switch")
	if n := strings.Count(side.kubectl(t, "get", "nodes", "-o", "name"), "node/"); n != 1 {
		t.Errorf("lab side has %d nodes", n)
	}
	if n := strings.Count(main.kubectl(t, "get", "nodes", "-o", "name"), "node/"); n != 3 {
		t.Errorf("lab three has %d nodes", n)
	}
	cmd := tests.command("kubectl", "get", "nodes")
	cmd.Env = append(cmd.Env, "KUBECONFIG="+filepath.Join(t.TempDir(), "none"))
	if r := finish(t, cmd); r.code != 2 || !strings.Contains(r.talk, "no cluster is chosen") {
		t.Errorf("with two labs and none chosen: code %d: %s", r.code, r.talk)
	}
}

// TestInotifyLimitIsRaised: a lab comes up whole on a host whose limit of inotify
// instances is too low for it, and takes no more of them than `up` reckons with.
func TestInotifyLimitIsRaised(t *testing.T) {
	used, limit, err := host.Inotify()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, now, err := host.Inotify(); err != nil || host.LimitInotify(max(limit, now)) != nil {
			t.Errorf("the limit is %d, and was %d: %v", now, limit, err)
		}
	})
	if err := host.LimitInotify(used + 10); err != nil {
		t.Fatal(err)
	}
	l := ownLab(t, "limits", "--servers", "1")
	l.awaitReady(t)
	if after, _, err := host.Inotify(); err != nil || after-used > doctor.ServerNeed().Inotify {
		t.Errorf("a server holds %d instances, not %d: %v", after-used, doctor.ServerNeed().Inotify, err)
	}
}

// TestImageImport refuses a damaged archive and gives a whole one to every machine.
func TestImageImport(t *testing.T) {
	l := threeServers(t)
	archive := filepath.Join(t.TempDir(), "hello.tar")
	buildHello(t, archive)
	data, err := os.ReadFile(archive)
	if err != nil {
		t.Fatal(err)
	}
	short := filepath.Join(t.TempDir(), "short.tar")
	if err := os.WriteFile(short, data[:len(data)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	if r := try(t, "-c", l.name, "image", "import", short); r.code != 1 || !strings.Contains(r.talk, "cut short") {
		t.Errorf("a short archive: code %d: %s", r.code, r.talk)
	}
	r := try(t, "-c", l.name, "image", "import", archive)
	if r.code != 0 {
		t.Fatal(r.talk)
	}
	for _, m := range []string{"cp1", "cp2", "cp3"} {
		if got := l.run(t, "ctr", "--node", m, "images", "list", "-q"); !strings.Contains(got, "docker.io/library/hello:1") {
			t.Errorf("%s has only\n%s", m, got)
		}
		if !strings.Contains(r.talk, m) {
			t.Errorf("import does not say what it did on %s: %s", m, r.talk)
		}
	}
}
