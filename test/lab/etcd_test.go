//go:build lab

package lab_test

import (
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

// etcdStatus is what `kuorum etcd status -o json` prints.
type etcdStatus struct {
	Kind, State, Leader string
	Quorum              struct{ Voters, Healthy, Quorum, MayLose int }
	Members             []etcdMember
	Alarms              []struct{ Member, Kind string }
	Findings            []struct{ Code string }
}

type etcdMember struct {
	ID, Name, Label, State, Why string
	Learner, Healthy            bool
	PeerURLs                    []string
	Status                      *struct {
		DBBytes, DBUsedBytes       int64
		Heartbeat, ElectionTimeout string
	}
}

// etcd runs the command once, which must say the same with its exit code.
func (l *lab) etcd(t *testing.T) etcdStatus {
	t.Helper()
	r := try(t, "-c", l.name, "etcd", "status", "-o", "json")
	var s etcdStatus
	if err := json.Unmarshal([]byte(r.out), &s); err != nil {
		t.Fatalf("%v\n%s%s", err, r.out, r.talk)
	}
	if want := map[string]int{"healthy": 0, "degraded": 3, "no quorum": 4}[s.State]; r.code != want {
		t.Errorf("exit code %d for %q", r.code, s.State)
	}
	return s
}

func (l *lab) awaitEtcd(t *testing.T, state string) etcdStatus {
	t.Helper()
	var s etcdStatus
	eventually(t, time.Minute, func() error {
		if s = l.etcd(t); s.State != state {
			return fmt.Errorf("etcd is %s: %+v", s.State, s)
		}
		return nil
	})
	return s
}

// refused runs an etcd verb that must end with the code and say why.
func (l *lab) refused(t *testing.T, code int, says string, args ...string) {
	t.Helper()
	if r := try(t, append([]string{"-c", l.name, "etcd"}, args...)...); r.code != code || !strings.Contains(r.talk, says) {
		t.Errorf("etcd %v ends with %d, want %d and %q:\n%s%s", args, r.code, code, says, r.out, r.talk)
	}
}

// TestEtcdMembers: the host and a node name the same members, with the quorum
// and while one of them is off; and then nobody may remove another.
func TestEtcdMembers(t *testing.T) {
	l := threeServers(t)
	s := l.awaitEtcd(t, "healthy")
	if s.Kind != "EtcdStatus" || s.Quorum.Voters != 3 || s.Quorum.MayLose != 1 || s.Leader == "" || len(s.Members) != 3 {
		t.Errorf("got %+v", s)
	}
	for i, m := range s.Members {
		name := fmt.Sprintf("cp%d", i+1)
		if m.Name != name || !m.Healthy || m.Learner || m.Status == nil || m.Status.DBBytes < m.Status.DBUsedBytes || (m.State == "leader") != (name == s.Leader) {
			t.Errorf("got %+v", m)
		}
		if !slices.Equal(m.PeerURLs, []string{fmt.Sprintf("https://198.18.0.%d:2380", 11+i)}) {
			t.Errorf("%s is at %v", name, m.PeerURLs)
		}
	}
	if there, here := l.on(t, "cp2", "kuorum", "etcd", "members"), l.run(t, "etcd", "members"); there != here || strings.Count(here, "\n") != 4 {
		t.Errorf("a node says\n%s\nthe host\n%s", there, here)
	}
	if r := try(t, "-c", l.name, "etcd", "promote", "cp1"); r.code != 0 || !strings.Contains(r.talk, "votes already") {
		t.Errorf("promoting a voter ends with %d: %s", r.code, r.talk)
	}
	l.refused(t, 2, "its members are cp1 ("+s.Members[0].ID+")", "remove", "cp9")
	l.on(t, "cp2", "kuorum", "etcd", "compact") // through etcd itself, also from a node
	l.run(t, "etcd", "compact")

	t.Run("one is off", func(t *testing.T) {
		l.run(t, "lab", "stop", "--power", "cp3")
		t.Cleanup(func() { l.run(t, "lab", "start", "cp3") })
		s := l.awaitEtcd(t, "degraded")
		if off := s.Members[2]; off.State != "down" || off.Healthy || !strings.Contains(off.Why, "off") {
			t.Errorf("got %+v", off)
		}
		const sum = "after this: 2 voters, 1 healthy, quorum 2, no quorum"
		l.refused(t, 5, sum, "remove", "cp1")
		l.refused(t, 5, sum, "remove", "cp1", "--dry-run")
		l.refused(t, 5, sum, "remove", s.Members[1].ID)
		l.refused(t, 5, "cp3: does not answer", "defrag", "--force")
		r := try(t, "-c", l.name, "etcd", "remove", "cp3", "--dry-run")
		if r.code != 0 || !strings.Contains(r.talk, "after this: 2 voters, quorum 2, may lose 0") || !strings.Contains(r.out, "remove member cp3 (") {
			t.Errorf("a dry run ends with %d: %s%s", r.code, r.out, r.talk)
		}
		if got := l.etcd(t); got.Quorum.Voters != 3 {
			t.Errorf("a voter is gone: %+v", got)
		}
	})
}

const smallQuota = `apiVersion: kuorum.dev/v1alpha1
kind: Cluster
metadata: {name: full}
spec: {servers: 3, etcd: {quotaMiB: 64}}
`

// put writes a value of 1 MiB into etcd, past Kubernetes.
func (l *lab) put(t *testing.T) result {
	t.Helper()
	cmd := tests.command("-c", l.name, "etcdctl", "put", "/fill")
	cmd.Stdin = strings.NewReader(strings.Repeat("x", 1<<20))
	return finish(t, cmd)
}

// TestFullDatabase fills etcd until it takes no writes, and mends it with the
// commands that the finding names; then it removes the leader for good.
func TestFullDatabase(t *testing.T) {
	file := filepath.Join(t.TempDir(), "cluster.yaml")
	if err := os.WriteFile(file, []byte(smallQuota), 0o600); err != nil {
		t.Fatal(err)
	}
	l := ownLab(t, "full", "-f", file)
	l.awaitEtcd(t, "healthy")
	last := result{}
	for i := 0; last.code == 0 && i < 130; i++ { // twice the quota
		last = l.put(t)
	}
	if !strings.Contains(last.talk, "database space exceeded") {
		t.Fatalf("the last write ended with %d: %s", last.code, last.talk)
	}
	var do string
	eventually(t, noticed, func() error {
		for _, f := range l.status(t).Findings {
			if f.Code == "etcd-nospace" {
				do = f.Do
				return nil
			}
		}
		return fmt.Errorf("no etcd-nospace: %+v", l.status(t).Findings)
	})
	if out := l.run(t, "etcd", "alarms"); !strings.Contains(out, "NOSPACE") {
		t.Errorf("alarms are\n%s", out)
	}
	l.refused(t, 5, "below 95 % of its quota", "alarms", "--disarm")
	for verb := range strings.SplitSeq(do, " && ") {
		words := strings.Fields(verb)
		if words[0] != "kuorum" || words[1] != "etcd" {
			t.Fatalf("the finding says %q", do)
		}
		r := try(t, append([]string{"-c", l.name}, words[1:]...)...)
		if r.code != 0 {
			t.Fatalf("%s: exit code %d\n%s%s", verb, r.code, r.out, r.talk)
		}
		if gave := strings.Count(r.talk, " MiB back: "); words[2] == "defrag" && gave != 3 {
			t.Errorf("%d members gave room back:\n%s", gave, r.talk)
		}
	}
	if r := l.put(t); r.code != 0 {
		t.Errorf("a write after that: %s", r.talk)
	}
	s := l.awaitEtcd(t, "healthy")
	for _, m := range s.Members {
		if len(s.Alarms) > 0 || m.Status.DBBytes > 48<<20 {
			t.Errorf("got %+v, %+v", s.Alarms, m.Status)
		}
	}
	l.awaitReady(t) // what could not renew its lease is back
	l.kubectl(t, "create", "configmap", "written", "--from-literal=k=v")

	leader := s.Leader
	l.run(t, "etcd", "remove", leader)
	eventually(t, 15*time.Second, func() error {
		if got := l.etcd(t); got.Quorum.Voters != 2 || got.Quorum.Healthy != 2 || got.Leader == "" || got.Leader == leader {
			return fmt.Errorf("after its removal: %+v", got)
		}
		return nil
	})
	l.refused(t, 2, fmt.Sprintf("etcd has no member %q, or not any more", leader), "remove", leader)
}

// TestEtcdTimers: timers are set under writes, every member runs with them, and
// nothing but etcd and the API server on it starts again.
func TestEtcdTimers(t *testing.T) {
	l := ownLab(t, "timers")
	l.awaitReady(t)
	if out := l.run(t, "etcd", "timers"); !strings.Contains(out, "possible: heartbeat ") || strings.Count(out, "100ms ") != 3 {
		t.Errorf("it shows\n%s", out)
	}
	others := func(name string) map[string]int {
		pids := l.machine(t, name).pids()
		delete(pids, "etcd")
		delete(pids, "kube-apiserver")
		return pids
	}
	before := others("cp2")
	_, end := l.underWrites(t, "timers")
	l.run(t, "etcd", "timers", "--heartbeat", "40ms")
	end()
	for _, m := range l.awaitEtcd(t, "healthy").Members {
		if m.Status == nil || m.Status.Heartbeat != "40ms" || m.Status.ElectionTimeout != "400ms" {
			t.Errorf("%s runs with %+v", m.Name, m.Status)
		}
	}
	if after := others("cp2"); !maps.Equal(before, after) {
		t.Errorf("others were restarted: %v became %v", before, after)
	}
	for _, name := range []string{"cp1", "cp2", "cp3"} {
		argv := l.on(t, name, "sh", "-c", "tr '\\0' ' ' < /proc/$(pidof -s etcd)/cmdline")
		if !strings.Contains(argv, "--heartbeat-interval=40 ") || !strings.Contains(argv, "--election-timeout=400 ") {
			t.Errorf("etcd of %s runs as %s", name, argv)
		}
	}
	l.run(t, "lab", "stop", "--power", "cp3")
	l.refused(t, 5, "the others must carry", "timers", "--heartbeat", "50ms")
}
