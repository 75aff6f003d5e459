package component

import (
	"encoding/json"
	"net"
	"net/url"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"kuorum/internal/cluster"
)

// The rules here do not follow from the golden files: a change of those must
// not pass in silence when it opens a door.

// flagOf is the value of --name; the flag must be there exactly once.
func flagOf(t *testing.T, c Component, name string) string {
	t.Helper()
	var values []string
	for _, arg := range c.Args {
		if value, ok := strings.CutPrefix(arg, "--"+name+"="); ok {
			values = append(values, value)
		}
	}
	if len(values) != 1 {
		t.Fatalf("%s has --%s %d times", c.Name, name, len(values))
	}
	return values[0]
}

// fileOf reads a YAML or JSON configuration file of a component.
func fileOf(t *testing.T, c Component, name string) map[string]any {
	t.Helper()
	for _, f := range c.Files {
		if strings.HasSuffix(f.Path, "/"+name) {
			var value map[string]any
			if err := yaml.Unmarshal(f.Data, &value); err != nil {
				t.Fatalf("%s: %v", f.Path, err)
			}
			return value
		}
	}
	t.Fatalf("%s has no file %s", c.Name, name)
	return nil
}

// at walks into nested maps.
func at(value map[string]any, path ...string) any {
	var now any = value
	for _, key := range path {
		inner, ok := now.(map[string]any)
		if !ok {
			return nil
		}
		now = inner[key]
	}
	return now
}

func TestEtcdWantsCertificates(t *testing.T) {
	c := find(t, testMachine(t, "cp1"), "etcd")
	for name, want := range map[string]string{
		"client-cert-auth": "true", "peer-client-cert-auth": "true", "tls-min-version": "TLS1.2",
		"trusted-ca-file": "/etc/kuorum/pki/etcd/ca.crt", "peer-trusted-ca-file": "/etc/kuorum/pki/etcd/ca.crt",
	} {
		if got := flagOf(t, c, name); got != want {
			t.Errorf("--%s is %q, want %q", name, got, want)
		}
	}
	gates := flagOf(t, c, "feature-gates")
	for _, gate := range []string{"InitialCorruptCheck=true", "CompactHashCheck=true"} {
		if !strings.Contains(gates, gate) {
			t.Errorf("a member with other data could serve: %s lacks %s", gates, gate)
		}
	}
	// Its authority is not the cluster's: a client of the API is none of etcd.
	if ca := flagOf(t, find(t, testMachine(t, "cp1"), "kube-apiserver"), "client-ca-file"); ca == flagOf(t, c, "trusted-ca-file") {
		t.Error("etcd and the API share an authority")
	}
}

func TestAPIServerIsClosed(t *testing.T) {
	c := find(t, testMachine(t, "cp1"), "kube-apiserver")
	for name, want := range map[string]string{
		"authorization-mode": "Node,RBAC", "tls-min-version": "VersionTLS12", "profiling": "false",
		"encryption-provider-config": "/etc/kuorum/encryption.yaml", "etcd-servers": "https://127.0.0.1:2379",
		"kubelet-certificate-authority": "/etc/kuorum/pki/ca.crt", "requestheader-allowed-names": "front-proxy-client",
	} {
		if got := flagOf(t, c, name); got != want {
			t.Errorf("--%s is %q, want %q", name, got, want)
		}
	}
	if got := flagOf(t, c, "enable-admission-plugins"); !slices.Contains(strings.Split(got, ","), "NodeRestriction") {
		t.Errorf("kubelets are not restricted to their own nodes: %s", got)
	}
	for _, arg := range c.Args {
		for _, bad := range []string{"--insecure", "--anonymous-auth=true", "--token-auth-file", "AlwaysAllow", "--disable-admission-plugins"} {
			if strings.Contains(arg, bad) {
				t.Errorf("%s must not be there", arg)
			}
		}
	}
	if flagOf(t, c, "audit-log-path") == "" || len(fileOf(t, c, "audit.yaml")) == 0 {
		t.Error("nothing is audited")
	}
}

func TestStrangersMayAskForHealthOnly(t *testing.T) {
	config := fileOf(t, find(t, testMachine(t, "cp1"), "kube-apiserver"), "authentication.yaml")
	conditions, ok := at(config, "anonymous", "conditions").([]any)
	if !ok || len(conditions) == 0 {
		t.Fatalf("anonymous requests have no condition: %v", config["anonymous"])
	}
	for _, c := range conditions {
		path, _ := c.(map[string]any)["path"].(string)
		if !slices.Contains([]string{"/livez", "/readyz", "/healthz", "/livez/ping"}, path) {
			t.Errorf("strangers may ask for %q", path)
		}
	}
	if config["jwt"] != nil {
		t.Error("tokens of others are accepted")
	}
}

// TestAuditKeepsNoSecrets: bodies could hold them, so no rule may record more
// than metadata; and reading secrets is recorded before reads are left out.
func TestAuditKeepsNoSecrets(t *testing.T) {
	config := fileOf(t, find(t, testMachine(t, "cp1"), "kube-apiserver"), "audit.yaml")
	rules, _ := config["rules"].([]any)
	secrets, reads := -1, -1
	for i, r := range rules {
		rule, _ := r.(map[string]any)
		if level := rule["level"]; level != "None" && level != "Metadata" {
			t.Errorf("rule %d records %v", i, level)
		}
		text, err := json.Marshal(rule)
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case rule["level"] == "Metadata" && strings.Contains(string(text), `"secrets"`):
			secrets = i
		case rule["level"] == "None" && rule["users"] == nil && strings.Contains(string(text), `"list"`):
			reads = i
		}
	}
	if secrets < 0 || reads < 0 || secrets > reads {
		t.Errorf("secrets are rule %d, reads in general rule %d", secrets, reads)
	}
	if last, _ := rules[len(rules)-1].(map[string]any); last["level"] != "Metadata" || len(last) != 1 {
		t.Errorf("the last rule must record the rest: %v", last)
	}
}

func TestPodSecurityIsTheClusters(t *testing.T) {
	m := testMachine(t, "cp1")
	m.Spec.Spec.Kubernetes.PodSecurity = "restricted"
	config := fileOf(t, find(t, m, "kube-apiserver"), "admission.yaml")
	plugins, _ := config["plugins"].([]any)
	plugin, _ := plugins[0].(map[string]any)
	if got := at(plugin, "configuration", "defaults", "enforce"); got != "restricted" {
		t.Errorf("enforced is %v", got)
	}
}

func TestKubeletIsClosed(t *testing.T) {
	for _, name := range []string{"cp1", "w1"} {
		config := fileOf(t, find(t, testMachine(t, name), "kubelet"), "kubelet.yaml")
		for _, tc := range []struct {
			want any
			path []string
		}{
			{false, []string{"authentication", "anonymous", "enabled"}},
			{true, []string{"authentication", "webhook", "enabled"}},
			{"/etc/kuorum/pki/ca.crt", []string{"authentication", "x509", "clientCAFile"}},
			{"Webhook", []string{"authorization", "mode"}},
			{float64(0), []string{"readOnlyPort"}},
			{"VersionTLS12", []string{"tlsMinVersion"}},
			{"127.0.0.1", []string{"healthzBindAddress"}},
		} {
			if got := at(config, tc.path...); got != tc.want {
				t.Errorf("%s: %s is %v, want %v", name, strings.Join(tc.path, "."), got, tc.want)
			}
		}
	}
}

func TestLeadersServeLoopbackOverTLS(t *testing.T) {
	m := testMachine(t, "cp1")
	for _, name := range []string{"kube-controller-manager", "kube-scheduler"} {
		c := find(t, m, name)
		for flag, want := range map[string]string{
			"bind-address": "127.0.0.1", "tls-min-version": "VersionTLS12", "leader-elect": "true", "profiling": "false",
		} {
			if got := flagOf(t, c, flag); got != want {
				t.Errorf("%s: --%s is %q, want %q", name, flag, got, want)
			}
		}
	}
}

// TestNothingListensElsewhere: every address that a program is told to listen
// on is the node's own, loopback, or a server's virtual IP, never all of them.
func TestNothingListensElsewhere(t *testing.T) {
	for _, name := range []string{"cp2", "w1"} {
		m := testMachine(t, name)
		var addresses []string
		for _, c := range For(m) {
			for _, arg := range c.Args {
				flag, value, _ := strings.Cut(strings.TrimLeft(arg, "-"), "=")
				if strings.Contains(flag, "bind-address") || strings.HasPrefix(flag, "listen-") || flag == "healthz-address" {
					addresses = append(addresses, strings.Split(value, ",")...)
				}
			}
			for _, f := range c.Files {
				if strings.Contains(string(f.Data), "0.0.0.0:") || strings.Contains(string(f.Data), "[::]") {
					t.Errorf("%s listens on every address: %s", c.Name, f.Path)
				}
			}
		}
		proxy := fileOf(t, find(t, m, "kube-proxy"), "kube-proxy.yaml")
		kubelet := fileOf(t, find(t, m, "kubelet"), "kubelet.yaml")
		balancer := fileOf(t, find(t, m, "endpoint"), "endpoint.yaml")
		for _, value := range []any{
			proxy["bindAddress"], proxy["healthzBindAddress"], proxy["metricsBindAddress"],
			kubelet["address"], kubelet["healthzBindAddress"], balancer["status"],
		} {
			text, _ := value.(string)
			addresses = append(addresses, text)
		}
		listen, _ := balancer["listen"].([]any)
		for _, value := range listen {
			text, _ := value.(string)
			addresses = append(addresses, text)
		}
		if len(addresses) < 9 {
			t.Errorf("%s: found only %q", name, addresses)
		}
		for _, address := range addresses {
			host := hostOf(address)
			virtual := m.Node.Role == cluster.RoleServer && host == m.Spec.Spec.Endpoint.Address
			if host != m.Node.Address && host != "127.0.0.1" && !virtual {
				t.Errorf("%s: something listens on %q", name, address)
			}
		}
	}
}

func hostOf(address string) string {
	if u, err := url.Parse(address); err == nil && u.Host != "" {
		address = u.Host
	}
	if host, _, err := net.SplitHostPort(address); err == nil {
		return host
	}
	return address
}

// TestFilesAreRootsAlone: they name keys, and some hold what keys protect.
func TestFilesAreRootsAlone(t *testing.T) {
	for _, c := range For(testMachine(t, "cp1")) {
		for _, f := range c.Files {
			if f.Mode.Perm()&0o077 != 0 {
				t.Errorf("%s of %s has mode %o", f.Path, c.Name, f.Mode)
			}
		}
	}
}
