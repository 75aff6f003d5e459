//go:build lab

package lab_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

func TestThreeServersAreUp(t *testing.T) {
	l := threeServers(t)
	nodes := l.kubectl(t, "get", "nodes", "-o", `jsonpath={range .items[*]}{.metadata.name} {.status.nodeInfo.kubeletVersion} {.status.addresses[?(@.type=="InternalIP")].address}{"\n"}{end}`)
	want := "cp1 v1.36.3 198.18.0.11\ncp2 v1.36.3 198.18.0.12\ncp3 v1.36.3 198.18.0.13\n"
	if nodes != want {
		t.Errorf("nodes are\n%swant\n%s", nodes, want)
	}
	members := l.run(t, "etcdctl", "member", "list")
	if n := strings.Count(members, "started"); n != 3 || strings.Contains(members, "true") {
		t.Errorf("want three voters started, have\n%s", members)
	}
	if health := l.run(t, "etcdctl", "endpoint", "health"); strings.Count(health, "is healthy") != 3 {
		t.Errorf("etcd says\n%s", health)
	}
	if left := l.kubectl(t, "get", "pods", "-A", "-o", "name"); left != "" && !strings.Contains(left, "hello") {
		t.Errorf("the first pod was left behind: %s", left)
	}
	for _, m := range l.machines(t) {
		for _, c := range m.Agent.Components {
			if c.Phase != "ready" {
				t.Errorf("%s on %s is %s: %s", c.Name, m.Name, c.Phase, c.Message)
			}
		}
	}
	// Run again: it finds everything in place and changes nothing.
	before := l.machine(t, "cp1").pids()
	kuorum(t, "up", "three")
	for name, pid := range l.machine(t, "cp1").pids() {
		if before[name] != pid {
			t.Errorf("a second up restarted %s: pid %d became %d", name, before[name], pid)
		}
	}
}

// deployHello runs the application of the README on every machine.
func deployHello(t *testing.T, l *lab) {
	t.Helper()
	archive := filepath.Join(t.TempDir(), "hello.tar")
	buildHello(t, archive)
	out := try(t, "-c", l.name, "image", "import", archive)
	if out.code != 0 {
		t.Fatal(out.talk)
	}
	l.kubectl(t, "apply", "-f", example(t, "hello.yaml"))
	l.kubectl(t, "rollout", "status", "deployment/hello", "--timeout=60s")
	t.Cleanup(func() {
		l.kubectl(t, "delete", "-f", example(t, "hello.yaml"), "--wait=true", "--timeout=60s")
	})
}

func example(t *testing.T, name string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join("../../examples/hello", name))
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// TestPodsServicesAndDNS is the README's tour.
func TestPodsServicesAndDNS(t *testing.T) {
	l := threeServers(t)
	deployHello(t, l)
	pods := strings.Fields(l.kubectl(t, "get", "pods", "-l", "app=hello", "-o", "jsonpath={.items[*].metadata.name}"))
	addresses := strings.Fields(l.kubectl(t, "get", "pods", "-l", "app=hello", "-o", "jsonpath={.items[*].status.podIP}"))
	nodes := strings.Fields(l.kubectl(t, "get", "pods", "-l", "app=hello", "-o", "jsonpath={.items[*].spec.nodeName}"))
	if len(pods) != 3 || nodes[0] == nodes[1] || nodes[1] == nodes[2] || nodes[0] == nodes[2] {
		t.Fatalf("three pods on three nodes wanted, have %v on %v", pods, nodes)
	}
	get := func(pod, url string) string { return l.kubectl(t, "exec", pod, "--", "/hello", "get", url) }
	for _, from := range pods {
		for i, address := range addresses {
			if got := get(from, "http://"+address+":8080"); !strings.Contains(got, pods[i]) {
				t.Errorf("%s asked %s and got %q", from, pods[i], got)
			}
		}
		for _, url := range []string{"http://hello", "http://hello.default", "http://hello.default.svc.cluster.local"} {
			if got := get(from, url); !strings.HasPrefix(got, "hello from pod") {
				t.Errorf("%s asked %s and got %q", from, url, got)
			}
		}
	}
	for _, address := range []string{"198.18.0.11", "198.18.0.12", "198.18.0.13"} {
		if got := l.on(t, "cp1", "curl", "-sS", "--max-time", "5", "http://"+address+":30080"); !strings.HasPrefix(got, "hello from pod") {
			t.Errorf("NodePort at %s says %q", address, got)
		}
	}
	seen := map[string]bool{}
	eventually(t, 30*time.Second, func() error {
		seen[get(pods[0], "http://hello")] = true
		if len(seen) < 3 {
			return fmt.Errorf("the Service has led to %d of 3 pods", len(seen))
		}
		return nil
	})
}

func TestSecureFromTheStart(t *testing.T) {
	l := threeServers(t)
	curl := func(args ...string) string {
		return l.on(t, "cp2", append([]string{"curl", "-sk", "--max-time", "5", "-o", "/dev/null", "-w", "%{http_code}"}, args...)...)
	}
	for _, test := range []struct{ url, want string }{
		{"https://198.18.0.11:6444/readyz", "200"},
		{"https://198.18.0.11:6444/livez", "200"},
		{"https://198.18.0.11:6443/healthz", "200"},
		{"https://198.18.0.11:6444/version", "401"},
		{"https://198.18.0.11:6444/api", "401"},
		{"https://198.18.0.11:6444/api/v1/namespaces/kube-system/secrets", "401"},
		{"https://198.18.0.11:10250/pods", "401"},
		{"https://198.18.0.11:9443/v1/status", "401"},
		{"https://198.18.0.11:10250/metrics", "401"},
	} {
		if got := curl(test.url); got != test.want {
			t.Errorf("%s answers %s to a stranger, want %s", test.url, got, test.want)
		}
	}
	for _, url := range []string{"https://198.18.0.11:2379/health", "https://198.18.0.11:2380/version", "http://198.18.0.11:10255/pods"} {
		if r := try(t, "-c", l.name, "lab", "console", "cp2", "--", "curl", "-sk", "--max-time", "5", url); r.code == 0 && r.out != "" {
			t.Errorf("%s answers a stranger: %s", url, r.out)
		}
	}
	// A kubelet's certificate does not open other nodes' objects.
	if r := try(t, "-c", l.name, "kubectl", "--as=system:node:cp1", "--as-group=system:nodes", "label", "node", "cp2", "x=y"); r.code == 0 {
		t.Error("a node may change another node")
	}
	if r := try(t, "-c", l.name, "kubectl", "--as=system:node:cp1", "--as-group=system:nodes", "get", "secrets", "-A"); r.code == 0 {
		t.Error("a node may list all secrets")
	}
	for _, tls := range []string{"198.18.0.11:6444", "198.18.0.11:2379", "198.18.0.11:10250", "198.18.0.11:9443"} {
		if r := try(t, "-c", l.name, "lab", "console", "cp2", "--", "curl", "-sk", "--max-time", "5", "--tls-max", "1.1", "https://"+tls); r.code == 0 {
			t.Errorf("%s speaks TLS 1.1", tls)
		}
	}
}

func TestSecretsAreEncryptedAtRest(t *testing.T) {
	l := threeServers(t)
	l.kubectl(t, "create", "secret", "generic", "quiet", "--from-literal=word=plainly-readable")
	t.Cleanup(func() { l.kubectl(t, "delete", "secret", "quiet") })
	stored := l.run(t, "etcdctl", "get", "/registry/secrets/default/quiet")
	if !strings.Contains(stored, "k8s:enc:secretbox:v1:") || strings.Contains(stored, "plainly-readable") {
		t.Errorf("etcd holds the secret as %q", stored)
	}
	if got := l.kubectl(t, "get", "secret", "quiet", "-o", "jsonpath={.data.word}"); got != "cGxhaW5seS1yZWFkYWJsZQ==" {
		t.Errorf("the API gives %q", got)
	}
	var audit strings.Builder
	for _, name := range []string{"cp1", "cp2", "cp3"} {
		audit.WriteString(l.run(t, "logs", name, "audit"))
	}
	if !strings.Contains(audit.String(), `"name":"quiet"`) || strings.Contains(audit.String(), "cGxhaW5seS1yZWFkYWJsZQ") {
		t.Error("want an audit entry of the secret, without its value")
	}
}

func TestPodSecurityHolds(t *testing.T) {
	l := threeServers(t)
	r := try(t, "-c", l.name, "kubectl", "run", "bad", "--image=hello:1", "--privileged")
	if r.code == 0 || !strings.Contains(r.talk, `violates PodSecurity "baseline:latest"`) {
		t.Errorf("a privileged pod is answered with code %d: %s", r.code, r.talk)
	}
}

// TestEverybodyListensWhereTheyShould knows every listening socket of a
// server: nothing but the ports of docs/architecture.md, and no wildcard
// except kube-proxy's and kubelet's own node ports.
func TestEverybodyListensWhereTheyShould(t *testing.T) {
	l := threeServers(t)
	want := regexp.MustCompile(`^198\.18\.0\.254:6443$|^(127\.0\.0\.1|198\.18\.0\.11|169\.254\.20\.10):(53|2379|2380|2381|6442|6443|6444|8080|8181|9443|10247|10248|10249|10250|10256|10257|10259|\d{5})$`)
	for line := range strings.Lines(l.on(t, "cp1", "ss", "-Htln")) {
		fields := strings.Fields(line)
		if !want.MatchString(fields[3]) {
			t.Errorf("somebody listens at %s", fields[3])
		}
		port := fields[3][strings.LastIndex(fields[3], ":")+1:]
		if len(port) == 5 && !strings.HasPrefix(port, "102") && !strings.HasPrefix(fields[3], "127.") {
			t.Errorf("an unknown port is open to the network: %s", fields[3])
		}
	}
}

func holdsKey(text string) bool {
	return strings.Contains(text, "PRIVATE KEY") || strings.Contains(text, "client-key-data") || strings.Contains(text, "secretbox")
}

func TestPrivateKeysAreOwnersOnly(t *testing.T) {
	threeServers(t)
	root := filepath.Join(tests.dir, "labs/three")
	keys := 0
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return nil //nolint:nilerr // what vanishes meanwhile holds no key
		}
		if d.IsDir() && d.Name() == "var" {
			return filepath.SkipDir // the cluster's own data
		}
		if d.IsDir() {
			return nil
		}
		data, err := os.ReadFile(path)
		if err != nil || !holdsKey(string(data)) {
			return nil //nolint:nilerr // not a file with text
		}
		keys++
		info, err := d.Info()
		if err == nil && info.Mode().Perm() != 0o600 {
			t.Errorf("%s holds a key and has mode %v", path, info.Mode().Perm())
		}
		return err
	})
	if err != nil || keys < 40 {
		t.Errorf("looked at %d files with keys (%v)", keys, err)
	}
	kubeconfig, err := os.Stat(filepath.Join(tests.dir, "kubeconfig"))
	if err != nil || kubeconfig.Mode().Perm() != 0o600 {
		t.Errorf("the kubeconfig has mode %v (%v)", kubeconfig.Mode(), err)
	}
}
