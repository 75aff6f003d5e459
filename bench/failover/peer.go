package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"kuorum/internal/host"
)

// peer is HAProxy and keepalived on every server, Debian's, as users run them
// beside kubeadm.
type peer struct {
	haproxy    string
	keepalived string // %s: the state and %d: the priority
}

// The values of kubeadm's guide (docs/ha-considerations.md of kubernetes/kubeadm),
// for the addresses of a lab.
const guideHAProxy = `defaults
    mode http
    option dontlognull
    option http-server-close
    option redispatch
    retries 1
    timeout http-request 10s
    timeout queue 20s
    timeout connect 5s
    timeout client 35s
    timeout server 35s
    timeout http-keep-alive 10s
    timeout check 10s
frontend apiserver
    bind *:8443
    mode tcp
    default_backend apiserverbackend
backend apiserverbackend
    option httpchk
    http-check connect ssl
    http-check send meth GET uri /healthz
    http-check expect status 200
    mode tcp
    balance roundrobin
    server cp1 198.18.0.11:6444 check verify none
    server cp2 198.18.0.12:6444 check verify none
    server cp3 198.18.0.13:6444 check verify none
`

const guideKeepalived = `global_defs {
    router_id LVS_DEVEL
    enable_script_security
    script_user root
}
vrrp_script check_apiserver {
    script "/etc/keepalived/check_apiserver.sh"
    interval 3
    weight -2
    fall 10
    rise 2
}
vrrp_instance VI_1 {
    state %s
    interface eth0
    virtual_router_id 51
    priority %d
    authentication {
        auth_type PASS
        auth_pass 42
    }
    virtual_ipaddress {
        198.18.0.253
    }
    track_script {
        check_apiserver
    }
}
`

// What can be tuned by hand: ten times quicker checks of HAProxy, which also end
// the sessions of a server that is down, and advertisements every 100 ms.
const tunedHAProxy = `defaults
    mode tcp
    option dontlognull
    option redispatch
    retries 2
    timeout connect 300ms
    timeout client 1h
    timeout server 1h
    timeout check 150ms
    default-server inter 100ms fastinter 50ms downinter 100ms fall 2 rise 2 on-marked-down shutdown-sessions
frontend apiserver
    bind *:8443
    default_backend apiserverbackend
backend apiserverbackend
    option httpchk
    http-check connect ssl
    http-check send meth GET uri /readyz
    http-check expect status 200
    balance leastconn
    server cp1 198.18.0.11:6444 check verify none
    server cp2 198.18.0.12:6444 check verify none
    server cp3 198.18.0.13:6444 check verify none
`

const tunedKeepalived = `global_defs {
    enable_script_security
    script_user root
    vrrp_version 3
    vrrp_rt_priority 50
}
vrrp_script check_balancer {
    script "/usr/bin/pgrep -x haproxy"
    interval 1
    fall 1
    rise 2
}
vrrp_instance VI_1 {
    state %s
    interface eth0
    virtual_router_id 51
    priority %d
    advert_int 0.1
    virtual_ipaddress {
        198.18.0.253
    }
    track_script {
        check_balancer
    }
}
`

const checkScript = `#!/bin/sh
curl -sfk --max-time 2 https://localhost:8443/healthz -o /dev/null
`

// start runs both programs on machines; they end with those.
func (p *peer) start(ctx context.Context, s system, machines ...string) error {
	for _, name := range machines {
		state, priority := "BACKUP", 100
		if name == "cp1" {
			state, priority = "MASTER", 101
		}
		files := map[string]string{
			"/etc/haproxy/haproxy.cfg":           p.haproxy,
			"/etc/keepalived/keepalived.conf":    fmt.Sprintf(p.keepalived, state, priority),
			"/etc/keepalived/check_apiserver.sh": checkScript,
		}
		script := []string{"set -e", "mkdir -p /etc/haproxy /etc/keepalived"}
		for path, text := range files {
			script = append(script, "cat > "+path+" <<'EOF'\n"+strings.TrimRight(text, "\n")+"\nEOF")
		}
		script = append(script,
			"chmod 755 /etc/keepalived/check_apiserver.sh; chmod 644 /etc/keepalived/keepalived.conf",
			"haproxy -c -q -f /etc/haproxy/haproxy.cfg",
			"setsid haproxy -D -f /etc/haproxy/haproxy.cfg </dev/null >/dev/null 2>&1",
			"setsid keepalived -f /etc/keepalived/keepalived.conf </dev/null >/dev/null 2>&1")
		if _, err := s.on(ctx, "lab", "console", name, "--", "sh", "-c", strings.Join(script, "\n")); err != nil {
			return err
		}
		if err := p.join(s, name); err != nil {
			return err
		}
	}
	return nil
}

// join puts the programs into the machine's control group, so that they freeze
// with it: what a console starts is in none.
func (p *peer) join(s system, machine string) error {
	hierarchies, err := host.MountedHierarchies()
	if err != nil {
		return err
	}
	group := host.NewCgroup(hierarchies, "/kuorum/"+s.lab()+"/"+machine)
	members := group.PIDs()
	if len(members) == 0 {
		return fmt.Errorf("%s has no processes", machine)
	}
	inside, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", members[0]))
	if err != nil {
		return err
	}
	found, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return err
	}
	joined := 0
	for _, dir := range found {
		name, _ := os.ReadFile(dir + "/comm") // it may have ended
		network, _ := os.Readlink(dir + "/ns/net")
		if network != inside || !slices.Contains([]string{"haproxy", "keepalived"}, strings.TrimSpace(string(name))) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			return err
		}
		if err := group.Add(pid); err != nil {
			return err
		}
		joined++
	}
	if joined < 4 { // each is a master and a worker
		return fmt.Errorf("%d processes of HAProxy and keepalived run on %s", joined, machine)
	}
	return nil
}
