//go:build lab

package lab_test

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	discovery "k8s.io/client-go/kubernetes/typed/discovery/v1"
	"k8s.io/client-go/tools/clientcmd"
)

// left is how long the Service kubernetes may lead pods to an API server that does
// not work, on a busy host; mostly it is a second. Upstream's would make it 15 to 25 s.
const left = 3 * time.Second

// machineLeft is for one whose whole machine is gone: a balancer that nobody uses it
// by waits a second for an answer of a machine that may only have lost a packet.
const machineLeft = 4 * time.Second

// led asks where the Service kubernetes leads pods. It gives up soon: the API server
// that is asked may be the one that is broken.
func (l *lab) led(t *testing.T) func() ([]string, error) {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", filepath.Join(tests.dir, "labs", l.name, "admin.conf"))
	if err != nil {
		t.Fatal(err)
	}
	config.QPS, config.Timeout = -1, 500*time.Millisecond
	client, err := discovery.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return func() ([]string, error) {
		slice, err := client.EndpointSlices("default").Get(t.Context(), "kubernetes", metav1.GetOptions{})
		if err != nil {
			return nil, err
		}
		var all []string
		for _, e := range slice.Endpoints {
			all = append(all, e.Addresses...)
		}
		return all, nil
	}
}

// awaitLed waits until the servers' API servers are where the Service leads, and no others.
func (l *lab) awaitLed(t *testing.T, limit time.Duration, servers ...string) {
	t.Helper()
	var want []string
	for _, name := range servers {
		want = append(want, addressOf(name))
	}
	led := l.led(t)
	begin := time.Now()
	eventually(t, limit, func() error {
		if now, err := led(); err != nil || !slices.Equal(now, want) {
			return errors.Join(fmt.Errorf("the Service kubernetes leads to %q", now), err)
		}
		return nil
	})
	t.Logf("the Service kubernetes leads to %q after %v", servers, time.Since(begin).Round(time.Millisecond))
}

// addressOf is that of a server of the shared lab.
func addressOf(server string) string { return "198.18.0.1" + strings.TrimPrefix(server, "cp") }

// TestServiceFollowsTheLiving breaks an API server in each way: pods are led to it no
// longer, and again when it is back. It is not on the server that leads etcd, since
// without a leader nothing can be written.
func TestServiceFollowsTheLiving(t *testing.T) {
	l := threeServers(t)
	victim := others(l.awaitEtcd(t, "healthy").Leader)[0]
	program := victim + "/kube-apiserver"
	for name, tc := range map[string]struct {
		limit time.Duration
		how   []string
	}{
		"killed":        {left, []string{"fault", "kill", program}},
		"told to end":   {left, []string{"fault", "stop", program}},
		"frozen":        {left, []string{"fault", "pause", program}},
		"without power": {machineLeft, []string{"lab", "stop", "--power", victim}},
		"cut off":       {machineLeft, []string{"fault", "cut", victim}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Cleanup(func() {
				l.run(t, "fault", "heal", "--all")
				l.run(t, "lab", "start", victim)
				l.awaitReady(t)
			})
			l.awaitReady(t)
			l.awaitLed(t, 15*time.Second, "cp1", "cp2", "cp3")
			l.run(t, tc.how...)
			l.awaitLed(t, tc.limit, others(victim)...)
		})
	}
	l.awaitLed(t, 15*time.Second, "cp1", "cp2", "cp3")
	const want = "198.18.0.11 198.18.0.12 198.18.0.13"
	for kind, path := range map[string]string{"endpointslice": "{.endpoints[*].addresses[0]}", "endpoints": "{.subsets[*].addresses[*].ip}"} {
		if got := l.kubectl(t, "get", kind, "kubernetes", "-o", "jsonpath="+path); got != want {
			t.Errorf("the %s has %q", kind, got)
		}
	}
}

// TestStoppedServerIsOffTheListFirst: pods are led elsewhere before a server that is
// shut down in order stops anything.
func TestStoppedServerIsOffTheListFirst(t *testing.T) {
	l := threeServers(t)
	const victim = "cp2"
	l.awaitLed(t, 15*time.Second, "cp1", "cp2", "cp3")
	t.Cleanup(func() {
		l.run(t, "lab", "start", victim)
		l.awaitReady(t)
	})
	l.run(t, "lab", "stop", victim)
	l.awaitLed(t, left, "cp1", "cp3")
	log := l.run(t, "logs", victim, "agent", "--tail", "200")
	before, _, stopped := cutLast(log, "stopping the node's components")
	_, change, told := cutLast(before, "the Service kubernetes leads to other API servers")
	now, _, _ := strings.Cut(change, "before=")
	if !stopped || !told || strings.Contains(now, addressOf(victim)) || !strings.Contains(now, addressOf("cp1")) {
		t.Errorf("%s has stopped before it was off the list:\n%s", victim, log)
	}
	l.run(t, "lab", "start", victim)
	l.awaitLed(t, 15*time.Second, "cp1", "cp2", "cp3")
}

// cutLast is strings.Cut at the last place.
func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}
