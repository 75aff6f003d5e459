//go:build lab

package lab_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"testing"
	"time"
)

// turnClock starts everything on a machine anew with another time of day: its
// programs are copies that ask the kernel for it, and otherclock answers.
const turnClock = `
	bundle=$(dirname "$(readlink -f /run/kuorum/bundle/bin/etcd)")
	mkdir -p /var/turned/bin
	for program in "$bundle"/*; do /var/turned/otherclock hide "$program" "/var/turned/bin/${program##*/}"; done
	/var/turned/otherclock hide /usr/local/bin/kuorum /var/turned/kuorum
	printf '#!/bin/sh\nexec /var/turned/otherclock %s /var/turned/kuorum "$@"\n' "$1" > /var/turned/run
	chmod 755 /var/turned/run
	mount --bind /var/turned/bin "$bundle"
	mount --bind /var/turned/run /usr/local/bin/kuorum
	pkill -KILL -f '^/usr/local/bin/kuorum agent'
	pkill -KILL -f "^$bundle/(containerd|kubelet|kube-|flanneld|coredns) "
	pkill -KILL -f "^$bundle/(kube-apiserver|etcd) "`

// TestClockOfOneServerIsOff: one server's clock is ten minutes behind. Nothing
// that was acknowledged is lost, the status names it, everything on it works,
// also with certificates that are made meanwhile; and it comes back.
func TestClockOfOneServerIsOff(t *testing.T) {
	l := threeServers(t)
	w, end := l.underWrites(t, "clock")
	const victim = "cp2"
	if err := os.MkdirAll(l.disk(victim, "var/turned"), 0o755); err != nil {
		t.Fatal(err)
	}
	build := exec.CommandContext(t.Context(), "go", "build", "-tags=lab", "-o", l.disk(victim, "var/turned/otherclock"), "./otherclock")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Cleanup(func() {
		l.run(t, "lab", "stop", "--power", victim) // the mounts go with it
		if err := os.RemoveAll(l.disk(victim, "var/turned")); err != nil {
			t.Error(err)
		}
		l.run(t, "lab", "start", victim)
		l.awaitReady(t)
	})
	l.on(t, victim, "sh", "-ec", turnClock, "sh", "-10m")
	tenMinutes := regexp.MustCompile(`(9m59|10m0)\S*s behind`)
	behind := func() error {
		for _, f := range l.status(t).Findings {
			if f.Code == "clock-off" && f.Node == victim && tenMinutes.MatchString(f.Why) {
				return nil
			}
		}
		return fmt.Errorf("the status has %+v", l.status(t).Findings)
	}
	eventually(t, 30*time.Second, behind)
	l.awaitReady(t)
	if s := l.status(t); s.Quorum.Healthy != 3 || !slices.Equal(s.causes(), []string{"clock-off " + victim}) {
		t.Errorf("the status has %+v, %q", s.Quorum, s.causes())
	}

	l.run(t, "certs", "renew") // to cp2 they are of the future
	for i := range 3 {
		l.on(t, fmt.Sprintf("cp%d", i+1), "pkill", "-KILL", "-f", "bin/etcd ") // all connections are made anew
		eventually(t, time.Minute, func() error {
			if s := l.etcd(t); s.State != "healthy" {
				return fmt.Errorf("etcd is %s: %+v", s.State, s)
			}
			return nil
		})
	}
	l.awaitReady(t)
	if err := behind(); err != nil {
		t.Error(err)
	}
	eventually(t, 15*time.Second, func() error {
		if r := l.tryOn(t, victim, "kuorum", "kubectl", "get", "--server=https://198.18.0.12:6444", "configmaps"); r.code != 0 {
			return errors.New(r.talk) // through its own API server
		}
		return nil
	})
	have := w.count()
	eventually(t, 15*time.Second, func() error { return atLeast(w, have+20) })
	end()
}
