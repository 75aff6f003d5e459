package component

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"kuorum/internal/cluster"
)

// PauseImage is the sandbox image; it is made from the bundle, never pulled.
const PauseImage = "registry.k8s.io/pause:3.10.2"

func containerd(m Machine) Component {
	return Component{
		Name:  "containerd",
		Path:  m.bin("containerd"),
		Args:  []string{"--config=" + component("containerd.toml")},
		Files: []File{config("containerd.toml", containerdConfig(m))},
		Dirs:  []string{"/var/lib/containerd", "/etc/cni/net.d"},
		// Without the sandbox image the first pods would fail and back off.
		Ready: both(socketReady(ContainerdSocket), fileReady(ImagesFile)),
		// Shims and pods outlive containerd; it has little to finish.
		StopTimeout: 10 * time.Second,
		ExactTimers: true,
	}
}

func containerdConfig(m Machine) []byte {
	return fmt.Appendf(nil, `version = 3
root = '/var/lib/containerd'
state = '/run/containerd'
# Snapshotters and services that nothing here uses; each costs memory.
disabled_plugins = [
  'io.containerd.snapshotter.v1.blockfile', 'io.containerd.snapshotter.v1.btrfs',
  'io.containerd.snapshotter.v1.devmapper', 'io.containerd.snapshotter.v1.erofs',
  'io.containerd.snapshotter.v1.zfs', 'io.containerd.differ.v1.erofs',
  'io.containerd.tracing.processor.v1.otlp', 'io.containerd.internal.v1.tracing',
  'io.containerd.nri.v1.nri',
]

[grpc]
  address = '%s'

[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = '%s'

[plugins.'io.containerd.cri.v1.images'.registry]
  config_path = '/etc/containerd/certs.d'

[plugins.'io.containerd.cri.v1.runtime']
  # Lowering oom_score_adj needs CAP_SYS_RESOURCE; without it every sandbox
  # would fail, so it is left alone there.
  restrict_oom_score_adj = %t

[plugins.'io.containerd.cri.v1.runtime'.cni]
  bin_dirs = ['%s']
  conf_dir = '/etc/cni/net.d'

[plugins.'io.containerd.cri.v1.runtime'.containerd]
  default_runtime_name = 'runc'

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = 'io.containerd.runc.v2'

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
  BinaryName = '%s'
  SystemdCgroup = false
`, ContainerdSocket, PauseImage, !m.LowerOOM, filepath.Join(m.Bundle, "bin"), m.bin("runc"))
}

func kubelet(m Machine) Component {
	return Component{
		Name: "kubelet",
		Path: m.bin("kubelet"),
		Args: []string{
			"--config=" + component("kubelet.yaml"),
			"--kubeconfig=" + etc("kubelet.conf"),
			"--hostname-override=" + m.Node.Name,
			"--node-ip=" + m.Node.Address,
			"--node-labels=" + labels(m.Node.Labels),
			"--root-dir=/var/lib/kubelet",
		},
		After:       []string{"containerd", "endpoint"},
		Files:       []File{config("kubelet.yaml", kubeletConfig(m))},
		Dirs:        []string{"/var/lib/kubelet"},
		Ready:       httpReady("http://127.0.0.1:10248/healthz"),
		StopTimeout: 10 * time.Second,
	}
}

func labels(set map[string]string) string {
	var words []string
	for _, key := range slices.Sorted(maps.Keys(set)) {
		words = append(words, key+"="+set[key])
	}
	return strings.Join(words, ",")
}

// kubeletConfig asks for webhook authorization and a certificate of every
// caller. Eviction thresholds are absolute: a percentage of a large shared
// disk would evict pods with tens of GB free. Images are not collected, since
// an imported one could not be pulled again.
func kubeletConfig(m Machine) []byte {
	k := m.Spec.Spec.Kubernetes
	text := fmt.Sprintf(`apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: %s
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: true, cacheTTL: 2m}
  x509: {clientCAFile: %s}
authorization:
  mode: Webhook
cgroupDriver: cgroupfs
failCgroupV1: false
clusterDNS: [%s]
clusterDomain: %s
containerRuntimeEndpoint: unix://%s
enableServer: true
evictionHard: {memory.available: 100Mi, nodefs.available: 500Mi, imagefs.available: 500Mi, nodefs.inodesFree: "20000"}
failSwapOn: false
healthzBindAddress: 127.0.0.1
imageGCHighThresholdPercent: 100
maxPods: %d
readOnlyPort: 0
resolvConf: /etc/resolv.conf
serializeImagePulls: false
maxParallelImagePulls: 4
shutdownGracePeriod: 0s
tlsCertFile: %s
tlsPrivateKeyFile: %s
tlsMinVersion: VersionTLS12
`, m.Node.Address, pki("ca.crt"), m.Spec.Spec.DNS.Address, m.Spec.Spec.DNS.Domain, ContainerdSocket,
		k.MaxPods, pki("kubelet.crt"), pki("kubelet.key"))
	if len(k.FeatureGates) > 0 {
		text += "featureGates:\n" + yamlGates(k.FeatureGates)
	}
	return []byte(text)
}

func yamlGates(gates map[string]bool) string {
	var text strings.Builder
	for _, name := range slices.Sorted(maps.Keys(gates)) {
		fmt.Fprintf(&text, "  %s: %t\n", name, gates[name])
	}
	return text.String()
}

// kubeProxy runs in nftables mode. The conntrack limits are the host
// kernel's, not a lab machine's: 0 leaves them as they are.
func kubeProxy(m Machine) Component {
	text := fmt.Sprintf(`apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
bindAddress: %[1]s
healthzBindAddress: %[1]s:10256
metricsBindAddress: 127.0.0.1:10249
clusterCIDR: %[2]s
hostnameOverride: %[3]s
clientConnection: {kubeconfig: %[4]s}
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
nftables: {minSyncPeriod: 100ms, syncPeriod: 30s}
`, m.Node.Address, m.Spec.Spec.Network.Pods, m.Node.Name, etc("kube-proxy.conf"))
	if gates := m.Spec.Spec.Kubernetes.FeatureGates; len(gates) > 0 {
		text += "featureGates:\n" + yamlGates(gates)
	}
	return Component{
		Name:        "kube-proxy",
		Path:        m.bin("kube-proxy"),
		Args:        []string{"--config=" + component("kube-proxy.yaml")},
		After:       []string{"endpoint", "kubelet"},
		Files:       []File{config("kube-proxy.yaml", []byte(text))},
		Ready:       httpReady("http://" + m.Node.Address + ":10256/livez"),
		StopTimeout: 5 * time.Second,
	}
}

// balancer is our own program's endpoint command: one address for the API on
// every node, so that no node depends on one API server.
func balancer(m Machine) Component {
	var backends strings.Builder
	for _, n := range m.Spec.Servers() {
		fmt.Fprintf(&backends, "- {name: %s, address: \"%s:%d\"}\n", n.Name, n.Address, PortAPIServer)
	}
	local := ""
	if m.Node.Role == cluster.RoleServer {
		local = m.Node.Name
	}
	listen, vip := virtualIP(m)
	text := fmt.Sprintf(`listen: ["127.0.0.1:%[1]d", "%[2]s:%[1]d"%[9]s]
status: 127.0.0.1:%[3]d
local: "%[4]s"
ca: %[5]s
cert: %[6]s
key: %[7]s
%[10]sbackends:
%[8]s`, PortAPI, m.Node.Address, portStatus, local, pki("ca.crt"), pki("endpoint.crt"), pki("endpoint.key"), backends.String(), listen, vip)
	// Every connection of the node goes through it: servers come and go
	// without a restart (ADR 0014).
	file := config("endpoint.yaml", []byte(text))
	file.Reread = true
	return Component{
		Name: "endpoint",
		Path: m.Kuorum,
		Args: []string{"endpoint", "--config", component("endpoint.yaml")},
		// It reads its file again but for where it listens, and what the virtual
		// IP is: then it must be another process. So must that of a kuorum whose
		// balancer understands another file, or answers otherwise.
		Env:   append([]string{balancerVersion, "KUORUM_LISTEN=" + m.Node.Address}, vipEnv(m)...),
		Files: []File{file},
		Ready: httpReady(EndpointStatus + "/healthz"),
		// 3 s for its clients, 0.3 s for their last packets, and two runs of nft.
		StopTimeout: 8 * time.Second,
	}
}

// balancerVersion is raised with each change of what the balancer's file may have, or
// of what its agent asks it: a running one is adopted by the next agent, also when that
// is another kuorum's.
const balancerVersion = "KUORUM_ENDPOINT=3"

// EndpointStatus is where a node's balancer tells how it is, to this machine alone.
const EndpointStatus = "http://127.0.0.1:6442"

// VIPSocket is where a server's balancer takes orders to move the virtual IP,
// see endpoint.MovePath. Root alone may write to it.
const VIPSocket = RunDir + "/vip.sock"

// VIPHistory is where a server's balancer remembers when it took and gave up the
// virtual IP, see endpoint.VIP.
const VIPHistory = VarDir + "/history/vip.jsonl"

// virtualIP is what the balancer of a server needs to know of the virtual IP:
// that it listens there, and who else may hold it.
func virtualIP(m Machine) (listen, section string) {
	if !mayHoldVIP(m) {
		return "", ""
	}
	e := m.Spec.Spec.Endpoint
	var peers []string
	rank := 0
	for i, n := range m.Spec.Servers() {
		if n.Name == m.Node.Name {
			rank = i
			continue
		}
		peers = append(peers, strconv.Quote(n.Address))
	}
	return fmt.Sprintf(`, "%s:%d"`, e.Address, PortAPI), fmt.Sprintf(`vip:
  address: %s
  own: %s
  peers: [%s]
  rank: %d
  id: %d
  interval: %s
  control: %s
  history: %s
`, e.Address, m.Node.Address, strings.Join(peers, ", "), rank, e.VIP.ID, e.VIP.Interval, VIPSocket, VIPHistory)
}

// vipEnv changes with what a running balancer cannot follow.
func vipEnv(m Machine) []string {
	if !mayHoldVIP(m) {
		return nil
	}
	e := m.Spec.Spec.Endpoint
	return []string{fmt.Sprintf("KUORUM_VIP=%s %d %s", e.Address, e.VIP.ID, e.VIP.Interval)}
}

func mayHoldVIP(m Machine) bool { return m.Spec.ServersHoldVIP() && m.Node.Role == cluster.RoleServer }
