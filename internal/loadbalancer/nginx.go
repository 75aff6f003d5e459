package loadbalancer

import "fmt"

const nginxFile = `# nginx in front of the API servers of cluster %[1]s, by "kuorum lb config nginx".
# Try it with: nginx -t -c /etc/nginx/nginx.conf
# Nodes of the cluster do not need it: each has a balancer of its own.
#
# nginx does not ask servers how they are (its open edition has no active checks):
# it notices one that refuses, or does not take a connection in time, when a client
# comes. One that is alive but not ready gets clients all the same, and those that
# a frozen server has stay with it until they give up. HAProxy and Envoy are better.

worker_processes auto;
worker_rlimit_nofile 18000;
pid /run/nginx.pid;
# The module "stream" is a package of its own in Debian (libnginx-mod-stream).
include /etc/nginx/modules-enabled/*.conf;

events {
    # Each client takes two: its own and one to a server.
    worker_connections 16000;
}

# TLS passes through: API servers see their clients' certificates.
stream {
    upstream api_servers {
        # All workers know what one of them has noticed.
        zone api_servers 64k;
        # Connections last, so the server with the fewest gets the next.
        least_conn;
%[2]s    }

    server {
        # Who has gone without a word is noticed after 45 s.
        listen %[3]s so_keepalive=30s:5s:3;
        proxy_pass api_servers;
        proxy_socket_keepalive on;
        # A client whose server does not take it is led to the next one.
        proxy_connect_timeout 300ms;
        proxy_next_upstream on;
        proxy_next_upstream_tries %[4]d;
        # Watches, logs and shells are silent for long, and must not be ended for it.
        proxy_timeout 1h;
    }
}
`

func nginx(p Plan) []byte {
	// A server that failed is tried again after 2 s, by one client.
	servers := p.lines("        # %s\n        server %s max_fails=1 fail_timeout=2s;\n")
	return fmt.Appendf(nil, nginxFile, p.Cluster, servers, p.nginxListen(), len(p.Servers))
}

// nginxListen is Listen as nginx has it: on all addresses of both families it
// has to be told so.
func (p Plan) nginxListen() string {
	if a := p.Listen.Addr(); a.Is6() && a.IsUnspecified() {
		return p.Listen.String() + " ipv6only=off"
	}
	return p.Listen.String()
}
