package loadbalancer

import (
	"fmt"
	"strings"
)

const envoyFile = `# Envoy in front of the API servers of cluster %[1]s, by "kuorum lb config envoy".
# Try it with: envoy --mode validate -c envoy.yaml
# Nodes of the cluster do not need it: each has a balancer of its own.

admin:
  address:
    socket_address: {address: 127.0.0.1, port_value: 9901}
static_resources:
  listeners:
  - name: kubernetes-api
    address:
      socket_address: {address: "%[2]s", port_value: %[3]d%[4]s}
    # Clients that have gone without a word are noticed after 45 s. The numbers are
    # Linux's: SO_KEEPALIVE, then TCP_KEEPIDLE, TCP_KEEPINTVL and TCP_KEEPCNT.
    socket_options:
    - {level: 1, name: 9, int_value: 1, state: STATE_PREBIND}
    - {level: 6, name: 4, int_value: 30, state: STATE_PREBIND}
    - {level: 6, name: 5, int_value: 5, state: STATE_PREBIND}
    - {level: 6, name: 6, int_value: 3, state: STATE_PREBIND}
    filter_chains:
    - filters:
      # TLS passes through: API servers see their clients' certificates.
      - name: envoy.filters.network.tcp_proxy
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: kubernetes-api
          cluster: api-servers
          # Watches, logs and shells are silent for long, and must not be ended for it.
          idle_timeout: 3600s
          # A client whose server does not take it is led to another one.
          max_connect_attempts: %[5]d
  clusters:
  - name: api-servers
    type: STATIC
    connect_timeout: 0.3s
    # Connections last, so a server with few gets the next.
    lb_policy: LEAST_REQUEST
    common_lb_config:
      # By default Envoy believes no check any more when half of the servers fail.
      # With 1 it tries all of them only when none is ready.
      healthy_panic_threshold: {value: 1}
    # A server that is lost loses its connections too: its clients would wait for
    # answers, up to 45 s, instead of connecting to another.
    close_connections_on_host_health_failure: true
    # The default is 1024.
    circuit_breakers:
      thresholds:
      - {max_connections: 8000, max_pending_requests: 8000}
    upstream_connection_options:
      tcp_keepalive: {keepalive_probes: 3, keepalive_time: 30, keepalive_interval: 5}
%[6]s%[7]s    load_assignment:
      cluster_name: api-servers
      endpoints:
      - lb_endpoints:
%[8]s`

const envoyChecks = `    # /readyz is what an API server says itself; a port that is open says little.
    health_checks:
    - timeout: %[1]ss
      interval: %[2]ss
      # Without clients Envoy would check once a minute only.
      no_traffic_interval: %[2]ss
      unhealthy_threshold: 2
      healthy_threshold: 2
      http_health_check: {path: /readyz, host: %[3]s}
      transport_socket_match_criteria: {purpose: check}
    # Checks are TLS, and only they: what clients send is encrypted already.
    transport_socket_matches:
    - name: check
      match: {purpose: check}
      transport_socket:
        name: envoy.transport_sockets.tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
          sni: %[3]s
`

const envoyVerified = `          # Checks know an API server by the cluster's authority and the name that all
          # of them have. Copy the file from a server (%[1]s). When
          # authorities are replaced, copy it again after "kuorum certs rotate-ca --until
          # trust", and reload, before they go on; or all servers are lost.
          common_tls_context:
            validation_context:
              trusted_ca: {filename: "%[2]s"}
              match_typed_subject_alt_names:
              - {san_type: DNS, matcher: {exact: %[3]s}}
`

const envoyUnverified = `          # Checks believe whoever answers. Clients do not: TLS passes through, and they
          # know an API server by the cluster's authority themselves.
          common_tls_context: {}
`

func envoy(p Plan) []byte {
	trust, compat := envoyUnverified, ""
	if p.CA != "" {
		trust = fmt.Sprintf(envoyVerified, authority, p.CA, APIName)
	}
	if a := p.Listen.Addr(); a.Is6() && a.IsUnspecified() {
		compat = ", ipv4_compat: true"
	}
	var servers strings.Builder
	for _, s := range p.Servers {
		fmt.Fprintf(&servers, "        # %s\n        - endpoint: {address: {socket_address: {address: \"%s\", port_value: %d}}}\n",
			s.Name, s.Address.Addr(), s.Address.Port())
	}
	checks := fmt.Sprintf(envoyChecks, seconds(p.patience()), seconds(p.Check), APIName)
	return fmt.Appendf(nil, envoyFile, p.Cluster, p.Listen.Addr(), p.Listen.Port(), compat, len(p.Servers), checks, trust, servers.String())
}
