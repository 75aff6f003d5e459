package lab

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"

	"kuorum/internal/cluster"
	"kuorum/internal/component"
	"kuorum/internal/keyring"
	"kuorum/internal/membership"
)

func newSpec(t *testing.T, servers, workers int) *cluster.Spec {
	const name = "one"
	t.Helper()
	spec, err := cluster.New(name, servers, workers)
	if err != nil {
		t.Fatal(err)
	}
	return spec
}

func TestStore(t *testing.T) {
	s, made := testLab(t)
	opened, err := s.Open("one")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(made.Spec, opened.Spec); diff != "" || opened.State != made.State {
		t.Errorf("what is read is not what was written: %v\n%s", opened.State, diff)
	}
	if opened.Server() != "https://127.0.0.1:26443" || opened.Context() != "kuorum-one" {
		t.Errorf("got %s, %s", opened.Server(), opened.Context())
	}
	for _, secret := range []string{"admin.conf", "clients/etcd.key", "clients/agent.key", "clients/endpoint.key", "machines/cp1/etc/kuorum/pki/apiserver.key"} {
		info, err := os.Stat(made.path(secret))
		if err != nil || info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: %v, %v", secret, info, err)
		}
	}
	if _, err := s.Open("two"); !errors.Is(err, ErrNoLab) {
		t.Errorf("a lab that does not exist: %v", err)
	}
	if got, err := s.Names(); err != nil || strings.Join(got, " ") != "one" {
		t.Errorf("got %q, %v", got, err)
	}
	if got, err := (Store{Root: t.TempDir()}).Names(); err != nil || got != nil {
		t.Errorf("an empty store has %q, %v", got, err)
	}
}

// TestClients: each of the host's own certificates is of the authority that the
// other side trusts.
func TestClients(t *testing.T) {
	_, l := testLab(t)
	l.checkClients(t)
}

func (l *Lab) checkClients(t *testing.T) {
	t.Helper()
	for pair, authority := range map[string]string{"endpoint": "ca.crt", "agent": "agent-ca.crt", "etcd": "etcd-ca.crt"} {
		loaded, err := tls.LoadX509KeyPair(l.Client(pair+".crt"), l.Client(pair+".key"))
		if err != nil {
			t.Fatal(err)
		}
		ca, err := os.ReadFile(l.Client(authority))
		if err != nil {
			t.Fatal(err)
		}
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(ca)
		_, err = loaded.Leaf.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
		if err != nil {
			t.Errorf("%s is not of %s: %v", pair, authority, err)
		}
	}
	if _, err := l.Agents(); err != nil {
		t.Error(err)
	}
}

// TestFollowAuthorities: what the host has of a lab follows the authorities that
// its servers have, through every phase, and so does the lab's own process.
func TestFollowAuthorities(t *testing.T) {
	_, l := testLab(t)
	d := &daemon{lab: l}
	last, err := d.agentsNow()
	if err != nil {
		t.Fatal(err)
	}
	if again, err := d.agentsNow(); err != nil || again != last {
		t.Errorf("another client for the same files: %v", err)
	}
	server := l.Spec.Servers()[0]
	etc := filepath.Join(l.Disk(server.Name), "etc/kuorum")
	if err := keyring.Begin(etc, time.Now()); err != nil {
		t.Fatal(err)
	}
	for _, phase := range keyring.Phases() {
		if err := keyring.Change(etc, l.Spec, server, phase); err != nil {
			t.Fatal(err)
		}
		if err := l.FollowAuthorities(time.Now()); err != nil {
			t.Fatal(err)
		}
		l.checkClients(t)
		if diff := cmp.Diff(keyring.Trust(etc), keyring.Trust(l.Dir())); diff != "" {
			t.Errorf("%s: the lab has other authorities (-server +lab):\n%s", phase, diff)
		}
		config, err := clientcmd.LoadFromFile(l.Kubeconfig())
		if err != nil {
			t.Fatal(err)
		}
		if ca := config.Clusters[l.Context()].CertificateAuthorityData; !bytes.Equal(ca, readFile(t, l.Client("ca.crt"))) {
			t.Errorf("%s: the kubeconfig trusts others", phase)
		}
		now, err := d.agentsNow()
		if err != nil || now == last {
			t.Errorf("%s: the lab's process asks as before: %v", phase, err)
		}
		last = now
	}
	if err := os.WriteFile(l.Client("agent.crt"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if now, err := d.agentsNow(); err != nil || now != last {
		t.Errorf("while the files are written it cannot ask: %v", err)
	}
	if err := os.RemoveAll(filepath.Join(etc, "pki")); err != nil {
		t.Fatal(err)
	}
	if err := l.FollowAuthorities(time.Now()); err == nil {
		t.Error("a server without keys is followed")
	}
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// TestInterruptedCreate: without state.json there is no lab, but a name that
// down can remove; creating again replaces the machines' disks.
func TestInterruptedCreate(t *testing.T) {
	s, l := testLab(t)
	stale := filepath.Join(l.machineDir("cp1"), "var", "stale")
	if err := errors.Join(os.Remove(l.path("state.json")), os.MkdirAll(stale, 0o755)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Open("one"); !errors.Is(err, ErrNoLab) {
		t.Errorf("half a lab: %v", err)
	}
	if got, err := s.Names(); err != nil || len(got) != 1 {
		t.Errorf("half a lab cannot be removed: %q, %v", got, err)
	}
	if _, err := s.create(nil, l.Spec, 26443, time.Now()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(stale); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an interrupted lab's disk was kept: %v", err)
	}
	if _, err := s.Open("one"); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(l.path("state.json"), []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Open("one"); err == nil || errors.Is(err, ErrNoLab) {
		t.Errorf("a damaged lab must not count as none: %v", err)
	}
}

// TestRunning also sees that asking makes nothing: an `up` that is refused asks as well.
func TestRunning(t *testing.T) {
	s := Store{Root: filepath.Join(t.TempDir(), "root")}
	if _, ok := s.lab("one").Running(); ok {
		t.Error("a lab that does not exist runs")
	}
	if _, err := os.Stat(s.Root); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("asking made something: %v", err)
	}
	_, l := testLab(t)
	held, err := lock(l.path("lab.lock"))
	if err != nil {
		t.Fatal(err)
	}
	for pid, want := range map[string]int{"": 0, "4711": 4711, "damaged": 0} {
		if pid != "" {
			if err := os.WriteFile(l.path("lab.pid"), []byte(pid), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if got, ok := l.Running(); !ok || got != want && pid != "" {
			t.Errorf("pid %q: got %d, %v", pid, got, ok)
		}
	}
	if err := held.Close(); err != nil {
		t.Fatal(err)
	}
	if _, ok := l.Running(); ok {
		t.Error("a lab whose process ended runs")
	}
}

func TestOneVerbAtATime(t *testing.T) {
	_, l := testLab(t)
	busy, err := lockVerb(l)
	if err != nil {
		t.Fatal(err)
	}
	_, err = lockVerb(l)
	if problem, ok := errors.AsType[*cluster.Problem](err); !ok || problem.What != `another kuorum is working on lab "one"` {
		t.Errorf("got %v", err)
	}
	if err := busy.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := lockVerb(l)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestSameSpec(t *testing.T) {
	_, l := testLab(t)
	if err := sameSpec(l, newSpec(t, 1, 0)); err != nil {
		t.Errorf("the same: %v", err)
	}
	problem, ok := errors.AsType[*cluster.Problem](sameSpec(l, newSpec(t, 3, 0)))
	if !ok || !strings.Contains(problem.Why, `you ask for "- name: cp2"`) || !strings.Contains(problem.Do, "kuorum down one") {
		t.Errorf("got %+v", problem)
	}
	for _, tc := range []struct{ have, want, text string }{
		{"a\n  b: 1\n", "a\n  b: 2\n", `it has "b: 1" where you ask for "b: 2"`},
		{"a", "a\nb", "it has 1 lines of configuration, you ask for 2"},
	} {
		if got := firstDifference(tc.have, tc.want); got != tc.text {
			t.Errorf("got %q, want %q", got, tc.text)
		}
	}
}

func TestHostsAndHardwareAddresses(t *testing.T) {
	spec := newSpec(t, 2, 1)
	if got := hosts(spec); got != "127.0.0.1 localhost\n198.18.0.11 cp1\n198.18.0.12 cp2\n198.18.0.101 w1\n" {
		t.Errorf("got %q", got)
	}
	got := hardwareAddress(netip.MustParseAddr("198.18.0.11"))
	// Locally administered and for one station (IEEE 802).
	if got.String() != "02:6b:c6:12:00:0b" || got[0]&3 != 2 {
		t.Errorf("got %s", got)
	}
}

func node(name string, status corev1.ConditionStatus, message string) corev1.Node {
	return corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{
		{Type: corev1.NodeDiskPressure, Status: corev1.ConditionFalse, Message: "not this one"},
		{Type: corev1.NodeReady, Status: status, Message: message},
	}}}
}

// asNodeList reads nodes as Kubernetes' own types write them.
func asNodeList(t *testing.T, nodes []corev1.Node) (list nodeList) {
	t.Helper()
	data, err := json.Marshal(corev1.NodeList{Items: nodes})
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &list); err != nil {
		t.Fatal(err)
	}
	return list
}

func TestMissing(t *testing.T) {
	spec := newSpec(t, 2, 1)
	ready := []corev1.Node{node("cp1", corev1.ConditionTrue, ""), node("cp2", corev1.ConditionTrue, ""), node("w1", corev1.ConditionTrue, ""), node("stranger", corev1.ConditionFalse, "")}
	if err := missing(spec, asNodeList(t, ready)); err != nil {
		t.Errorf("all are Ready: %v", err)
	}
	err := missing(spec, asNodeList(t, []corev1.Node{node("cp1", corev1.ConditionTrue, ""), node("cp2", corev1.ConditionUnknown, "no CNI")}))
	if err == nil || err.Error() != "cp2: no CNI\nw1 has not registered" {
		t.Errorf("got %v", err)
	}
}

// TestFirstPod: Kubernetes' own type must know every field of it.
func TestFirstPod(t *testing.T) {
	decoder := json.NewDecoder(strings.NewReader(firstPod))
	decoder.DisallowUnknownFields()
	var pod corev1.Pod
	if err := decoder.Decode(&pod); err != nil {
		t.Fatal(err)
	}
	no, zero := false, int64(0)
	want := corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Name: firstPodName, Namespace: metav1.NamespaceSystem},
		Spec: corev1.PodSpec{
			AutomountServiceAccountToken: &no, TerminationGracePeriodSeconds: &zero, RestartPolicy: corev1.RestartPolicyNever,
			Containers: []corev1.Container{{Name: "pause", Image: component.PauseImage, ImagePullPolicy: corev1.PullNever}},
		},
	}
	if diff := cmp.Diff(want, pod); diff != "" {
		t.Errorf("the first pod (-want +got):\n%s", diff)
	}
}

// TestMissingEtcdApart: an etcd node is not waited for, it never registers.
func TestMissingEtcdApart(t *testing.T) {
	spec, err := cluster.NewApart("one", 3, 1, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := missing(spec, asNodeList(t, []corev1.Node{node("cp1", corev1.ConditionTrue, "")})); err != nil {
		t.Error(err)
	}
	if err := missing(spec, nodeList{}); err == nil || err.Error() != "cp1 has not registered" {
		t.Errorf("got %v", err)
	}
}

// TestCreateEtcdApart: an etcd machine's disk has its own keys, the first list
// of members, and nothing of Kubernetes.
func TestCreateEtcdApart(t *testing.T) {
	spec, err := cluster.NewApart("apart", 1, 1, 0)
	if err != nil {
		t.Fatal(err)
	}
	l, err := (Store{Root: t.TempDir(), Exe: "/bin/true"}).create(nil, spec, 26443, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]bool{
		"e1/etc/kuorum/pki/etcd/peer.key": true, "e1/etc/kuorum/pki/ca.crt": false, "e1/etc/kuorum/pki/etcd/ca.key": false,
		"e1/etc/kuorum/kubelet.conf": false, "cp1/etc/kuorum/pki/etcd/peer.key": false, "cp1/etc/kuorum/pki/etcd/ca.key": true,
	} {
		if _, err := os.Stat(l.path("machines", path)); (err == nil) != want {
			t.Errorf("%s: %v", path, err)
		}
	}
	disk, err := membership.Read(l.path("machines/e1/etc/kuorum"))
	if err != nil || disk.Name != "e1" || disk.Initial.Members != "e1=https://198.18.0.51:2380" {
		t.Errorf("got %+v, %v", disk, err)
	}
}

func TestUnready(t *testing.T) {
	agent := func(phase string) *cluster.NodeStatus {
		return &cluster.NodeStatus{Components: []cluster.ComponentStatus{{Name: "etcd", Phase: phase, Message: "why"}, {Name: "kubelet", Phase: "ready"}}}
	}
	for _, tc := range []struct {
		machine MachineStatus
		want    string
	}{
		{MachineStatus{Name: "cp1", Power: PowerOn, Agent: agent("ready")}, ""},
		{MachineStatus{Name: "cp1", Power: PowerOff}, "cp1 is off"},
		{MachineStatus{Name: "cp1", Power: PowerOn, Error: "refused"}, "the agent of cp1 does not answer: refused"},
		{MachineStatus{Name: "cp1", Power: PowerOn, Agent: agent("backoff")}, "etcd is backoff why"},
	} {
		if got := fmt.Sprint(unready(tc.machine)); got != tc.want && (tc.want != "" || got != "<nil>") {
			t.Errorf("got %q, want %q", got, tc.want)
		}
	}
}

func TestPlan(t *testing.T) {
	_, l := testLab(t)
	l.bundle = "/var/lib/kuorum/bundle/abc"
	m, err := newMachine(l, l.Spec.Spec.Nodes[0], nil)
	if err != nil {
		t.Fatal(err)
	}
	if m.port != "mc612000b" || m.plan.Address.String() != "198.18.0.11/24" || m.plan.Gateway.String() != "198.18.0.1" || m.plan.Hostname != "cp1" {
		t.Errorf("got %s, %+v", m.port, m.plan)
	}
	if got := m.plan.Root.Binds["/var/lib/kuorum/bundle/abc"]; got != l.bundle {
		t.Errorf("the bundle is shown from %q", got)
	}
	if m.init != nil {
		t.Error("a machine that was never on has a process")
	}
}

// A lab of which an early kill left the lock only must be known, or nobody
// would remove it.
func TestNamesKnowWhatAnEarlyKillLeft(t *testing.T) {
	store := Store{Root: t.TempDir()}
	for _, name := range []string{"cut", "whole"} {
		held, err := lock(store.lab(name).dir + verbLock)
		if err != nil {
			t.Fatal(err)
		}
		defer held.Close()
	}
	if err := os.Mkdir(store.lab("whole").dir, 0o755); err != nil {
		t.Fatal(err)
	}
	names, err := store.Names()
	if diff := cmp.Diff([]string{"cut", "whole"}, names); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
}

func TestARefusedUpLeavesNothing(t *testing.T) {
	store := Store{Root: t.TempDir()}
	u := &Up{Store: store, Spec: newSpec(t, 1, 0)}
	var err error
	if u.busy, err = lockVerb(store.lab(u.Spec.Metadata.Name)); err != nil {
		t.Fatal(err)
	}
	if err := u.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(store.labs()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("something is left: %v", err)
	}
}

// testLab makes a lab on disk, as `up` does.
func testLab(t *testing.T) (Store, *Lab) {
	const name = "one"
	t.Helper()
	s := Store{Root: t.TempDir(), Exe: "/kuorum"}
	spec, err := cluster.New(name, 1, 0)
	if err != nil {
		t.Fatal(err)
	}
	l, err := s.create(nil, spec, 26443, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return s, l
}
