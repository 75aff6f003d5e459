package loadbalancer

import "fmt"

const haproxyHead = `# HAProxy in front of the API servers of cluster %[1]s, by "kuorum lb config haproxy".
# Try it with: haproxy -c -f haproxy.cfg
# Nodes of the cluster do not need it: each has a balancer of its own.

global
    log stdout format raw local0 info
    user haproxy
    group haproxy
    # Each connection takes two file descriptors. HAProxy does not start where
    # it may not have so many (ulimit -Hn).
    maxconn 8000
    # After a reload the old process goes on for the clients that it has, since
    # a watch lasts for minutes; but not for ever.
    hard-stop-after 1h

defaults
    # TLS passes through: API servers see their clients' certificates.
    mode tcp
    timeout connect 300ms
    # A server that refuses has its client led to another one at once.
    retries 2
    option redispatch 1
    # Watches, logs and shells are silent for long, and must not be ended for it.
    timeout client 1h
    timeout server 1h
    timeout client-fin 30s
    # Who has gone without a word is noticed all the same.
    option clitcpka
    clitcpka-idle 30s
    clitcpka-intvl 5s
    clitcpka-cnt 3
    option srvtcpka
    srvtcpka-idle 30s
    srvtcpka-intvl 5s
    srvtcpka-cnt 3

frontend kubernetes-api
    bind %[2]s
    log global
    # What fails is logged, and what goes well is not.
    option tcplog
    option dontlog-normal
    default_backend api-servers

# 200 while an API server can be reached from here: keepalived asks.
frontend health
    mode http
    bind 127.0.0.1:%[3]d
    timeout client 5s
    monitor-uri /healthz
    monitor fail if { nbsrv(api-servers) eq 0 }

backend api-servers
    log global
    option log-health-checks
    # Connections last, so the server with the fewest gets the next.
    balance leastconn
    # /readyz is what an API server says itself; a port that is open says little.
    option httpchk
    http-check connect ssl
    http-check send meth GET uri /readyz
    http-check expect status 200
    # Raise this and inter where API servers are often slower, or all are lost at once.
    timeout check %[4]s
%[5]s
    # A server that is lost loses its connections too: its clients would wait for
    # answers, up to 45 s, instead of connecting to another.
    default-server inter %[6]s fastinter %[7]s downinter %[6]s fall 2 rise 2 on-marked-down shutdown-sessions
%[8]s`

const haproxyVerified = `    # Checks know an API server by the cluster's authority and the name that all
    # of them have. Copy the file from a server (%[1]s). When
    # authorities are replaced, copy it again after "kuorum certs rotate-ca --until
    # trust", and reload, before they go on; or all servers are lost.
    default-server check verify required ca-file %[2]s verifyhost %[3]s`

const haproxyUnverified = `    # Checks believe whoever answers. Clients do not: TLS passes through, and they
    # know an API server by the cluster's authority themselves.
    default-server check verify none`

func haproxy(p Plan) []byte {
	trust := haproxyUnverified
	if p.CA != "" {
		trust = fmt.Sprintf(haproxyVerified, authority, p.CA, APIName)
	}
	return fmt.Appendf(nil, haproxyHead, p.Cluster, p.bind(), HealthPort, milliseconds(p.patience()), trust,
		milliseconds(p.Check), milliseconds(p.Check/2), p.lines("    server %s %s\n"))
}

// bind is Listen as HAProxy has it.
func (p Plan) bind() string {
	switch a := p.Listen.Addr(); {
	case !a.IsUnspecified():
		return p.Listen.String()
	case a.Is4():
		return fmt.Sprintf(":%d", p.Listen.Port())
	}
	return fmt.Sprintf("[::]:%d v4v6", p.Listen.Port())
}
