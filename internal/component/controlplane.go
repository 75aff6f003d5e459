package component

import (
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"kuorum/internal/cluster"
)

// apiserver talks to its own machine's etcd only, as kubeadm's stacked
// topology does: when that member is gone, so is this API server's readiness,
// and the balancers go to another. Where etcd is on other machines it talks to
// all members, and starts at once: it waits for them itself, 20 s at a time. It
// stays out of the balancer's way with a port of its own, since 6443 is that
// one's.
func apiserver(m Machine) Component {
	s := m.Spec
	var after []string
	if s.HasMember(m.Node) {
		after = []string{"etcd"}
	}
	keys := apiserverEtcdFiles(s)
	args := []string{
		"--bind-address=" + m.Node.Address,
		"--advertise-address=" + m.Node.Address,
		"--secure-port=" + strconv.Itoa(PortAPIServer),
		"--allow-privileged=true",
		"--authorization-mode=Node,RBAC",
		"--authentication-config=" + component("authentication.yaml"),
		"--enable-admission-plugins=NodeRestriction",
		"--admission-control-config-file=" + component("admission.yaml"),
		"--enable-bootstrap-token-auth=true",
		"--encryption-provider-config=" + etc("encryption.yaml"),
		"--audit-policy-file=" + component("audit.yaml"),
		"--audit-log-path=" + filepath.Join(LogDir, "audit.log"),
		"--audit-log-maxsize=16",
		"--audit-log-maxbackup=3",
		"--client-ca-file=" + pki("ca.crt"),
		"--tls-cert-file=" + pki("apiserver.crt"),
		"--tls-private-key-file=" + pki("apiserver.key"),
		"--tls-min-version=VersionTLS12",
		"--etcd-servers=" + strings.Join(EtcdEndpoints(s, m.Node), ","),
		"--etcd-cafile=" + keys.CA,
		"--etcd-certfile=" + keys.Cert,
		"--etcd-keyfile=" + keys.Key,
		"--kubelet-certificate-authority=" + pki("ca.crt"),
		"--kubelet-client-certificate=" + pki("apiserver-kubelet-client.crt"),
		"--kubelet-client-key=" + pki("apiserver-kubelet-client.key"),
		"--kubelet-preferred-address-types=InternalIP,Hostname",
		"--proxy-client-cert-file=" + pki("front-proxy-client.crt"),
		"--proxy-client-key-file=" + pki("front-proxy-client.key"),
		"--requestheader-client-ca-file=" + pki("front-proxy-ca.crt"),
		"--requestheader-allowed-names=front-proxy-client",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--requestheader-group-headers=X-Remote-Group",
		"--requestheader-username-headers=X-Remote-User",
		"--service-account-issuer=https://kubernetes.default.svc." + s.Spec.DNS.Domain,
		"--service-account-key-file=" + pki("sa.pub"),
		"--service-account-signing-key-file=" + pki("sa.key"),
		"--service-cluster-ip-range=" + s.Spec.Network.Services,
		// The servers' agents keep what the Service kubernetes leads to.
		"--endpoint-reconciler-type=none",
		// Clients that ask often connect again now and then, to whatever API server has the
		// fewest by then: one that has come back gets its share, and who asks all the
		// time has gone when a server is about to stop (ADR 0034). They send no request
		// twice for it (kubernetes PR 88567). Upstream advises a thousandth to begin with,
		// for those behind a balancer; a single server has it too, and need not start again
		// when another one joins.
		"--goaway-chance=0.005",
		"--profiling=false",
	}
	return Component{
		Name: "kube-apiserver",
		Path: m.bin("kube-apiserver"),
		Args: append(args, featureGates(m)...),
		// One server's start waits for this program, and collecting early
		// costs 0.5 s of 3. Several servers wait for the processors.
		Heap:  "GOGC=50",
		After: after,
		// Etcd waits 7 s for the watches of an API server before it ends.
		With: after,
		Files: []File{
			config("authentication.yaml", []byte(authenticationConfig)),
			config("admission.yaml", admissionConfig(s.Spec.Kubernetes.PodSecurity)),
			config("audit.yaml", []byte(auditPolicy)),
		},
		Dirs:  []string{LogDir},
		Ready: httpsReady(httpsURL(m.Node.Address, PortAPIServer)+"/readyz", pki("ca.crt")),
		// It takes no new requests meanwhile. What is left after a while are
		// watches, which it would keep open, and which go on elsewhere.
		StopTimeout: 5 * time.Second,
	}
}

func controllerManager(m Machine) Component {
	network := m.Spec.Spec.Network
	// A planned stop must hand the lease over at once, not after 15 s; the
	// scheduler does so anyway.
	gates := featureGates(m, "ControllerManagerReleaseLeaderElectionLockOnExit=true")
	args := []string{
		"--bind-address=127.0.0.1",
		"--tls-cert-file=" + pki("local.crt"),
		"--tls-private-key-file=" + pki("local.key"),
		"--tls-min-version=VersionTLS12",
		"--kubeconfig=" + etc("controller-manager.conf"),
		"--authentication-kubeconfig=" + etc("controller-manager.conf"),
		"--authorization-kubeconfig=" + etc("controller-manager.conf"),
		"--requestheader-client-ca-file=" + pki("front-proxy-ca.crt"),
		"--leader-elect=true",
		"--use-service-account-credentials=true",
		"--controllers=*,bootstrapsigner,tokencleaner",
		// Upstream's 20 requests a second, shared by all controllers, cost 4 s
		// at each start: that is how long a fresh leader needs to begin work.
		"--kube-api-qps=100",
		"--kube-api-burst=200",
		"--allocate-node-cidrs=true",
		"--cluster-name=" + m.Spec.Metadata.Name,
		"--cluster-cidr=" + network.Pods,
		"--node-cidr-mask-size=" + strconv.Itoa(network.PodPrefix),
		"--service-cluster-ip-range=" + network.Services,
		"--root-ca-file=" + pki("ca.crt"),
		"--client-ca-file=" + pki("ca.crt"),
		"--cluster-signing-cert-file=" + pki(m.signingFile()),
		"--cluster-signing-key-file=" + pki("ca.key"),
		"--service-account-private-key-file=" + pki("sa.key"),
		"--profiling=false",
	}
	args = slices.Concat(args, election(cluster.ControllerManagerName, m.Spec.Spec.Kubernetes.ControllerManager), gates)
	return Component{
		Name:        cluster.ControllerManagerName,
		Path:        m.bin(cluster.ControllerManagerName),
		Args:        args,
		After:       []string{"kube-apiserver", "endpoint"},
		Ready:       httpsReady("https://127.0.0.1:10257/healthz", pki("ca.crt")),
		StopTimeout: 10 * time.Second,
	}
}

func scheduler(m Machine) Component {
	return Component{
		Name: cluster.SchedulerName,
		Path: m.bin(cluster.SchedulerName),
		Args: slices.Concat([]string{
			"--bind-address=127.0.0.1",
			"--tls-cert-file=" + pki("local.crt"),
			"--tls-private-key-file=" + pki("local.key"),
			"--tls-min-version=VersionTLS12",
			"--kubeconfig=" + etc("scheduler.conf"),
			"--authentication-kubeconfig=" + etc("scheduler.conf"),
			"--authorization-kubeconfig=" + etc("scheduler.conf"),
			"--leader-elect=true",
			"--profiling=false",
		}, election(cluster.SchedulerName, m.Spec.Spec.Kubernetes.Scheduler), featureGates(m)),
		After:       []string{"kube-apiserver", "endpoint"},
		Ready:       httpsReady("https://127.0.0.1:10259/readyz", pki("ca.crt")),
		StopTimeout: 10 * time.Second,
	}
}

// election renders what differs from upstream's defaults only: the flags of a
// cluster without settings of its own stay as they are.
func election(program string, chosen cluster.Elected) []string {
	l, usual := chosen.LeaderElection, cluster.DefaultElection(program)
	var flags []string
	add := func(name, value, usual string) {
		if value != usual {
			flags = append(flags, "--leader-elect-"+name+"="+value)
		}
	}
	add("lease-duration", l.LeaseDuration.String(), usual.LeaseDuration.String())
	add("renew-deadline", l.RenewDeadline.String(), usual.RenewDeadline.String())
	add("retry-period", l.RetryPeriod.String(), usual.RetryPeriod.String())
	add("resource-name", l.ResourceName, usual.ResourceName)
	add("resource-namespace", l.ResourceNamespace, usual.ResourceNamespace)
	add("resource-lock", l.ResourceLock, usual.ResourceLock)
	return flags
}

// signingFile is the certificate of the authority that signs. It must stand
// alone: the controller-manager does not start with a file that has more.
func (m Machine) signingFile() string {
	if len(m.Trust[clusterCA]) > 1 {
		return "cluster-signing.crt"
	}
	return clusterCA
}

// featureGates renders the cluster's gates and the ones that a component adds.
// Where both name one, the cluster's choice stands.
func featureGates(m Machine, more ...string) []string {
	chosen := m.Spec.Spec.Kubernetes.FeatureGates
	var words []string
	for _, gate := range more {
		if name, _, _ := strings.Cut(gate, "="); !has(chosen, name) {
			words = append(words, gate)
		}
	}
	for name, on := range chosen {
		words = append(words, fmt.Sprintf("%s=%t", name, on))
	}
	if words == nil {
		return nil
	}
	slices.Sort(words)
	return []string{"--feature-gates=" + strings.Join(words, ",")}
}

func has(gates map[string]bool, name string) bool {
	_, ok := gates[name]
	return ok
}

func component(name string) string { return config(name, nil).Path }

// authenticationConfig lets strangers ask for health and nothing else.
const authenticationConfig = `apiVersion: apiserver.config.k8s.io/v1
kind: AuthenticationConfiguration
anonymous:
  enabled: true
  conditions:
  - path: /livez
  - path: /readyz
  - path: /healthz
`

// admissionConfig sets what namespaces without a label of their own enforce.
// kube-system runs the system's own parts and is exempt.
func admissionConfig(level string) []byte {
	return fmt.Appendf(nil, `apiVersion: apiserver.config.k8s.io/v1
kind: AdmissionConfiguration
plugins:
- name: PodSecurity
  configuration:
    apiVersion: pod-security.admission.config.k8s.io/v1
    kind: PodSecurityConfiguration
    defaults:
      enforce: %s
      enforce-version: latest
      audit: restricted
      audit-version: latest
      warn: %s
      warn-version: latest
    exemptions:
      namespaces: [kube-system]
`, level, level)
}

// auditPolicy records who changed what, and who read secrets; reads of the
// rest and the system's own heartbeats are left out, since they are nearly
// all of the traffic. Bodies are never recorded: they could hold secrets.
const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: None
  resources:
  - group: coordination.k8s.io
    resources: [leases]
- level: None
  resources:
  - group: ""
    resources: [events]
  - group: events.k8s.io
    resources: [events]
- level: None
  userGroups: [system:nodes]
  verbs: [update, patch]
  resources:
  - group: ""
    resources: [nodes/status, pods/status]
- level: None
  users: [system:kube-controller-manager, system:kube-scheduler, "system:serviceaccount:kube-system:endpointslice-controller"]
  verbs: [get, update, patch]
- level: Metadata
  resources:
  - group: ""
    resources: [secrets, serviceaccounts/token, pods/exec, pods/attach, pods/portforward]
- level: None
  verbs: [get, list, watch]
- level: None
  nonResourceURLs: ["/*"]
- level: Metadata
`
