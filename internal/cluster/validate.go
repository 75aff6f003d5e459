package cluster

import (
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/validate/content"
)

// Backends of the pod network.
const (
	backendVXLAN  = "vxlan"
	backendHostGW = "host-gw"
)

// Bounds of etcd's timers and database. etcd itself refuses an election
// timeout above 50 s or below five heartbeats, and warns above 8 GiB.
const (
	minHeartbeat       = 5 * time.Millisecond
	maxHeartbeat       = 5 * time.Second
	maxElectionTimeout = 50 * time.Second
	electionBeats      = 5
	minQuotaMiB        = 64
	maxQuotaMiB        = 8192
)

// featureGate has no {0,99}: that would be compiled into a hundred copies, in
// each of our processes.
var featureGate = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9]*$`)

const maxFeatureGate = 100 // characters

// validator collects what is wrong with a spec. Paths are those of Parse.
type validator struct {
	spec   *Spec
	issues []issue
}

// Validate reports everything that is wrong with a spec on which Default was
// called. The error is a *Problem with ExitUsage; its Why has a line for each
// issue.
func (s *Spec) Validate() error {
	if issues := s.issues(); len(issues) > 0 {
		return report("the cluster's spec is not valid", "", issues)
	}
	return nil
}

// Warnings are sentences about a valid spec that is probably not what its
// user wants; none of them stops a command.
func (s *Spec) Warnings() []string {
	var all []string
	if b := s.Balancers(); len(b) == 1 {
		all = append(all, b[0].Name+" is the only balancer: when it fails nobody has the address of the API, "+s.Spec.Endpoint.Address)
	}
	voters, what := len(s.EtcdNodes()), "servers"
	if voters == 0 || voters%2 == 1 {
		return all
	}
	if s.EtcdApart() {
		what = "etcd nodes"
	}
	return append(all, fmt.Sprintf(
		"%d %s need %d for a quorum and survive the loss of %d: no more than %d would; use %d or %d",
		voters, what, Quorum(voters), MayLose(voters), voters-1, voters-1, voters+1))
}

func (s *Spec) issues() []issue {
	v := &validator{spec: s}
	v.issues = append(s.missingHead(), s.foreignHead()...)
	v.name("metadata.name", s.Metadata.Name)
	v.counts()
	v.nodes()
	v.network()
	v.endpoint()
	v.dns()
	v.etcd()
	v.kubernetes()
	v.certificates()
	if port := s.Spec.Lab.Port; port != 0 {
		v.between("spec.lab.port", port, 1024, 65535)
	}
	return v.issues
}

// missingHead and foreignHead check what tells a cluster.yaml from other
// files.
func (s *Spec) missingHead() []issue {
	var issues []issue
	if s.APIVersion == "" {
		issues = append(issues, issue{paths: []string{"apiVersion"}, text: fmt.Sprintf("missing: add \"apiVersion: %s\"", APIVersion)})
	}
	if s.Kind == "" {
		issues = append(issues, issue{paths: []string{"kind"}, text: fmt.Sprintf("missing: add \"kind: %s\"", Kind)})
	}
	return issues
}

func (s *Spec) foreignHead() []issue {
	var issues []issue
	if s.APIVersion != "" && s.APIVersion != APIVersion {
		issues = append(issues, issue{paths: []string{"apiVersion"}, text: fmt.Sprintf("%s is not known, this kuorum reads %q", quote(s.APIVersion), APIVersion)})
	}
	if s.Kind != "" && s.Kind != Kind {
		issues = append(issues, issue{paths: []string{"kind"}, text: fmt.Sprintf("%s is not known, this kuorum reads %q", quote(s.Kind), Kind)})
	}
	return issues
}

// refuse records that the field at path is wrong.
func (v *validator) refuse(path, format string, args ...any) {
	v.issues = append(v.issues, issue{paths: []string{path}, text: fmt.Sprintf(format, args...)})
}

// clash records that the fields at paths do not go together.
func (v *validator) clash(paths []string, format string, args ...any) {
	v.issues = append(v.issues, issue{paths: paths, text: fmt.Sprintf(format, args...)})
}

func (v *validator) between(path string, value, least, most int) {
	if value < least || value > most {
		v.refuse(path, "%d is not between %d and %d", value, least, most)
	}
}

func (v *validator) oneOf(path, value string, known ...string) {
	if !slices.Contains(known, value) {
		v.refuse(path, "%s is not one of %s%s", quote(value), strings.Join(known, ", "), didYouMean(value, known))
	}
}

// name checks the names that become host names and parts of file names.
func (v *validator) name(path, name string) {
	switch {
	case name == "":
		v.refuse(path, "missing: a name is required")
	case len(name) > maxNameBytes:
		v.refuse(path, "%s has %d characters, at most %d are possible", quote(name), len(name), maxNameBytes)
	case len(content.IsDNS1123Label(name)) > 0:
		v.refuse(path, "%s is not a name: use lower-case letters, digits and '-', with a letter or digit at both ends", quote(name))
	case name == "localhost":
		v.refuse(path, "\"localhost\" is every machine's name for itself: use another")
	}
}

func (v *validator) etcd() {
	e := v.spec.Spec.Etcd
	if e.External.given() {
		v.external(e)
		return
	}
	heartbeat, election := time.Duration(e.Heartbeat), time.Duration(e.ElectionTimeout)
	const heartbeatPath, electionPath = "spec.etcd.heartbeat", "spec.etcd.electionTimeout"
	heartbeatOK := v.millis(heartbeatPath, heartbeat, minHeartbeat, maxHeartbeat)
	electionOK := v.millis(electionPath, election, electionBeats*minHeartbeat, maxElectionTimeout)
	if heartbeatOK && electionOK && election < electionBeats*heartbeat {
		v.clash([]string{electionPath, heartbeatPath},
			"%v is less than %d heartbeats of %v: a follower would call an election because of a few late packets; use at least %v",
			election, electionBeats, heartbeat, electionBeats*heartbeat)
	}
	v.between("spec.etcd.quotaMiB", e.QuotaMiB, minQuotaMiB, maxQuotaMiB)
}

// external checks an etcd that somebody else runs. Its files are all named, or
// none of them: so it is kept where they mean nothing.
func (v *validator) external(e Etcd) {
	const path = "spec.etcd.external"
	v.endpoints(path+".endpoints", e.External.Endpoints)
	files := []struct{ name, value string }{{"ca", e.External.CA}, {"certificate", e.External.Certificate}, {"key", e.External.Key}}
	for _, f := range files {
		if f.value == "" && (e.External.CA != "" || e.External.Certificate != "" || e.External.Key != "") {
			v.refuse(path+"."+f.name, "missing: etcd is asked with all three files, ca, certificate and key")
		}
	}
	const theirs = "whoever runs that etcd sets this, not kuorum: leave it out"
	for _, f := range []struct {
		name string
		set  bool
	}{{"heartbeat", e.Heartbeat != 0}, {"electionTimeout", e.ElectionTimeout != 0}, {"quotaMiB", e.QuotaMiB != 0}} {
		if f.set {
			v.clash([]string{"spec.etcd." + f.name, path}, "%s", theirs)
		}
	}
	for i, n := range v.spec.Spec.Nodes {
		if n.Role == RoleEtcd {
			v.clash([]string{item(nodesPath, i) + ".role", etcdNodesPath, path}, "somebody else runs etcd: no node of this cluster does")
			return
		}
	}
}

func (v *validator) endpoints(path string, endpoints []string) {
	if len(endpoints) == 0 || len(endpoints) > maxServers {
		v.refuse(path, "%d endpoints are given: name that of each member of etcd, 1 to %d", len(endpoints), maxServers)
		return
	}
	first := map[string]string{}
	for i, text := range endpoints {
		at := item(path, i)
		if !isEndpoint(text) {
			v.refuse(at, "%s is not an endpoint such as https://192.0.2.1:2379", quote(text))
			continue
		}
		if other, twice := first[text]; twice {
			v.refuse(at, "%s is %s already", quote(text), other)
			continue
		}
		first[text] = at
	}
}

// isEndpoint takes https, a host, a port, and nothing else.
func isEndpoint(text string) bool {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "https" || text != "https://"+u.Host || u.Hostname() == "" {
		return false
	}
	port, err := strconv.ParseUint(u.Port(), 10, 16)
	if err != nil || port == 0 || strconv.FormatUint(port, 10) != u.Port() {
		return false
	}
	if _, err := netip.ParseAddr(u.Hostname()); err == nil {
		return true
	}
	return len(content.IsDNS1123Subdomain(u.Hostname())) == 0
}

// millis checks a duration that etcd takes as a number of milliseconds.
func (v *validator) millis(path string, d, least, most time.Duration) bool {
	if d < least || d > most {
		v.refuse(path, "%v is not between %v and %v", d, least, most)
		return false
	}
	if d%time.Millisecond != 0 {
		v.refuse(path, "%v is not a whole number of milliseconds", d)
		return false
	}
	return true
}

// Programs look for renewed certificates every five minutes, and a third of the
// life must be longer than that.
const minCertificateLife, maxCertificateLife = 20 * time.Minute, 5 * 365 * 24 * time.Hour

func (v *validator) certificates() {
	if life := time.Duration(v.spec.Spec.Certificates.Life); life < minCertificateLife || life > maxCertificateLife {
		v.refuse("spec.certificates.life", "%v is not between %v and %v", life, minCertificateLife, maxCertificateLife)
	}
}

func (v *validator) kubernetes() {
	k := v.spec.Spec.Kubernetes
	v.oneOf("spec.kubernetes.podSecurity", k.PodSecurity, "privileged", defaultPodSecurity, "restricted")
	v.between("spec.kubernetes.maxPods", k.MaxPods, 10, 500)
	for _, gate := range slices.Sorted(maps.Keys(k.FeatureGates)) {
		if len(gate) > maxFeatureGate || !featureGate.MatchString(gate) {
			v.refuse(child("spec.kubernetes.featureGates", gate), "the name of a feature gate has letters and digits only, %d at most", maxFeatureGate)
		}
	}
	manager, scheduler := k.ControllerManager.LeaderElection, k.Scheduler.LeaderElection
	v.election(managerElection, manager)
	v.election(schedulerElection, scheduler)
	if manager.ResourceName == scheduler.ResourceName && manager.ResourceNamespace == scheduler.ResourceNamespace {
		v.clash([]string{schedulerElection + ".resourceName", managerElection + ".resourceName", schedulerElection, managerElection},
			"%s is the lease of the controller-manager and of the scheduler: only one of them would work", quote(scheduler.ResourceName))
	}
}

const (
	managerElection   = "spec.kubernetes.controllerManager.leaderElection"
	schedulerElection = "spec.kubernetes.scheduler.leaderElection"

	minLease, maxLease = time.Second, 10 * time.Minute
	minRetry           = 100 * time.Millisecond // below it the API would do little else
)

// election checks what client-go and upstream's own validation demand: a program
// that finds it otherwise does not start.
func (v *validator) election(path string, l LeaderElection) {
	lease, renew, retry := time.Duration(l.LeaseDuration), time.Duration(l.RenewDeadline), time.Duration(l.RetryPeriod)
	leasePath, renewPath, retryPath := path+".leaseDuration", path+".renewDeadline", path+".retryPeriod"
	leaseOK := v.span(leasePath, lease, minLease, maxLease)
	renewOK := v.span(renewPath, renew, minRetry, maxLease)
	retryOK := v.span(retryPath, retry, minRetry, maxLease)
	if leaseOK && lease%time.Second != 0 {
		v.refuse(leasePath, "%v is not a whole number of seconds, which is what a Lease holds", lease)
	}
	if leaseOK && renewOK && lease <= renew {
		v.clash([]string{leasePath, renewPath},
			"%v is not longer than renewDeadline, %v: another could lead while the leader still tries to renew", lease, renew)
	}
	if longest := retry + retry/5; renewOK && retryOK && renew <= longest { // client-go's JitterFactor
		v.clash([]string{renewPath, retryPath},
			"%v is not longer than 1.2 times retryPeriod, %v: the leader could not try twice", renew, longest)
	}
	v.oneOf(path+".resourceLock", l.ResourceLock, leaseLock)
	if len(content.IsDNS1123Subdomain(l.ResourceName)) > 0 {
		v.refuse(path+".resourceName", "%s is no name of a Lease: use lower-case letters, digits, '-' and '.'", quote(l.ResourceName))
	}
	if len(content.IsDNS1123Label(l.ResourceNamespace)) > 0 {
		v.refuse(path+".resourceNamespace", "%s is no name of a namespace: use lower-case letters, digits and '-'", quote(l.ResourceNamespace))
	}
}

// span checks a duration that is written as Go writes it.
func (v *validator) span(path string, d, least, most time.Duration) bool {
	if d < least || d > most {
		v.refuse(path, "%v is not between %v and %v", d, least, most)
		return false
	}
	return true
}
