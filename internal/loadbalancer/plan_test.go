package loadbalancer

import (
	"errors"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"kuorum/internal/cluster"
)

// plan is two machines with a virtual IP in front of three servers.
func plan() Plan {
	return Plan{
		Cluster: "shop",
		Servers: []Server{
			{"cp1", netip.MustParseAddrPort("198.18.0.11:6444")},
			{"cp2", netip.MustParseAddrPort("198.18.0.12:6444")},
			{"cp3", netip.MustParseAddrPort("198.18.0.13:6444")},
		},
		Listen: netip.MustParseAddrPort("0.0.0.0:6443"),
		CA:     DefaultCA,
		Router: Router{
			Address: netip.MustParseAddr("198.18.0.253"), Interface: "eth0",
			Name: "lb1", Self: netip.MustParseAddr("198.18.0.31"), Peers: []netip.Addr{netip.MustParseAddr("198.18.0.32")},
		},
	}
}

// six is plan with IPv6, another pace, and checks that trust everybody.
func six() Plan {
	p := plan()
	for i := range p.Servers {
		p.Servers[i].Address = netip.AddrPortFrom(netip.MustParseAddr("fd00::10").Next(), uint16(6444+i))
	}
	p.Listen = netip.MustParseAddrPort("[::]:8443")
	p.CA, p.Check = "", time.Second
	p.Router = Router{
		Address: netip.MustParseAddr("fd00::fd"), Interface: "bond0.7", Name: "lb3", Self: netip.MustParseAddr("fd00::33"),
		Peers: []netip.Addr{netip.MustParseAddr("fd00::31"), netip.MustParseAddr("fd00::9")}, ID: 77, Interval: 1500 * time.Millisecond,
	}
	return p
}

var update = flag.Bool("update", false, "write the golden files anew")

// TestGolden compares with testdata.
func TestGolden(t *testing.T) {
	for dir, p := range map[string]Plan{"four": plan(), "six": six()} {
		files, err := Render(p, Kinds()...)
		if err != nil {
			t.Fatal(err)
		}
		if len(files) != len(Kinds()) {
			t.Fatalf("%d files for %d kinds", len(files), len(Kinds()))
		}
		for _, f := range files {
			golden := filepath.Join("testdata", dir, f.Name)
			if *update {
				if err := errors.Join(os.MkdirAll(filepath.Dir(golden), 0o755), os.WriteFile(golden, f.Data, 0o600)); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), string(f.Data)); diff != "" {
				t.Errorf("%s (-want +got):\n%s", golden, diff)
			}
			if text := string(f.Data); strings.Contains(text, "%!") || strings.Contains(text, "\t") || !strings.HasSuffix(text, "\n") {
				t.Errorf("%s is not well written:\n%s", golden, text)
			}
		}
	}
}

func render(t *testing.T, p Plan, k Kind) string {
	t.Helper()
	files, err := Render(p, k)
	if err != nil {
		t.Fatal(err)
	}
	return string(files[0].Data)
}

func TestEveryKindLeadsToEveryServer(t *testing.T) {
	for _, k := range []Kind{HAProxy, NGINX, Envoy} {
		text := render(t, plan(), k)
		for _, s := range plan().Servers {
			if !strings.Contains(text, s.Name) || !strings.Contains(text, s.Address.Addr().String()) {
				t.Errorf("%s does not know %v", k, s)
			}
		}
	}
}

// TestPaceIsThePlan: each time is what its unit says.
func TestPaceIsThePlan(t *testing.T) {
	p := plan()
	p.Check, p.Router.Interval = 40*time.Millisecond, 20*time.Millisecond
	for kind, words := range map[Kind][]string{
		HAProxy:    {"timeout check 60ms\n", "inter 40ms fastinter 20ms downinter 40ms "},
		Envoy:      {"- timeout: 0.06s\n", " interval: 0.04s\n", "no_traffic_interval: 0.04s\n"},
		Keepalived: {"advert_int 0.02\n"},
	} {
		for _, word := range words {
			if text := render(t, p, kind); !strings.Contains(text, word) {
				t.Errorf("%s has no %q:\n%s", kind, word, text)
			}
		}
	}
}

// TestRoutersHaveTheirOwnPriority: whoever asks for its file, all machines agree
// on the order, and none has another's priority.
func TestRoutersHaveTheirOwnPriority(t *testing.T) {
	var all []netip.Addr
	for a := netip.MustParseAddr("198.18.0.31"); len(all) < maxRouters; a = a.Next() {
		all = append(all, a)
	}
	seen := map[string]netip.Addr{}
	for i, self := range all {
		p := plan()
		p.Router.Self, p.Router.Peers = self, slices.Concat(all[i+1:], all[:i])
		text := render(t, p, Keepalived)
		_, after, _ := strings.Cut(text, "\n    priority ")
		priority, _, _ := strings.Cut(after, "\n")
		if other, taken := seen[priority]; taken || priority == "" {
			t.Errorf("%s and %s have the priority %q", other, self, priority)
		}
		seen[priority] = self
		if !strings.Contains(text, "unicast_src_ip "+self.String()+"\n") {
			t.Errorf("%s does not send from its address:\n%s", self, text)
		}
	}
	if seen["200"] != all[0] || seen["50"] != all[maxRouters-1] {
		t.Errorf("the order is not that of the addresses: %v", seen)
	}
}

func TestWrongPlans(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*Plan)
		says   string
		kinds  []Kind // none: all of them
	}{
		"no servers":          {func(p *Plan) { p.Servers = nil }, "no API server", []Kind{NGINX}},
		"a name twice":        {func(p *Plan) { p.Servers[1].Name = "cp1" }, "server cp1 is there twice", nil},
		"an address twice":    {func(p *Plan) { p.Servers[1].Address = p.Servers[0].Address }, "server cp2 is there twice", nil},
		"no address":          {func(p *Plan) { p.Servers[1].Address = netip.AddrPort{} }, "server cp2 has no address", nil},
		"a name of two words": {func(p *Plan) { p.Servers[1].Name = "cp 2" }, `"cp 2" is no name`, nil},
		"no place to listen":  {func(p *Plan) { p.Listen = netip.AddrPort{} }, "no address and port to listen at", nil},
		"a loop":              {func(p *Plan) { p.Listen = p.Servers[2].Address }, "where API server cp3 is", nil},
		"checks too fast":     {func(p *Plan) { p.Check = time.Millisecond }, "checks are every 1ms", nil},
		"a relative file":     {func(p *Plan) { p.CA = "ca.crt" }, `"ca.crt", must be an absolute path`, nil},
		"a file that injects": {func(p *Plan) { p.CA = "/ca\n    server evil 1.2.3.4:1" }, "must be an absolute path", nil},
		"the health's port":   {func(p *Plan) { p.Listen = netip.MustParseAddrPort("0.0.0.0:6441") }, "HAProxy tells keepalived", []Kind{HAProxy}},
		"no virtual IP":       {func(p *Plan) { p.Router.Address = netip.Addr{} }, "--address", nil},
		"no interface":        {func(p *Plan) { p.Router.Interface = "" }, "--interface", nil},
		"nobody":              {func(p *Plan) { p.Router.Self = netip.Addr{} }, "--self NAME/ADDRESS", nil},
		"no name":             {func(p *Plan) { p.Router.Name = "" }, "--self NAME/ADDRESS", nil},
		"no peer":             {func(p *Plan) { p.Router.Peers = nil }, "--peer", nil},
		"its own peer":        {func(p *Plan) { p.Router.Peers[0] = p.Router.Self }, "peer 198.18.0.31 is there twice", nil},
		"families":            {func(p *Plan) { p.Router.Peers[0] = netip.MustParseAddr("fd00::1") }, "not an address of the family", nil},
		"the VIP's family":    {func(p *Plan) { p.Router.Address = netip.MustParseAddr("fd00::1") }, "is not of the family", nil},
		"a server's address":  {func(p *Plan) { p.Router.Address = p.Servers[0].Address.Addr() }, "is the address of API server cp1", nil},
		"its own address":     {func(p *Plan) { p.Router.Address = p.Router.Self }, "is this machine's own address", nil},
		"a peer's address":    {func(p *Plan) { p.Router.Address = p.Router.Peers[0] }, "is the address of a peer", nil},
		"at the VIP alone":    {func(p *Plan) { p.Listen = netip.MustParseAddrPort("198.18.0.253:6443") }, "listen at all addresses", nil},
		"an odd interval":     {func(p *Plan) { p.Router.Interval = 15 * time.Millisecond }, "the interval is 15ms", nil},
		"a long interval":     {func(p *Plan) { p.Router.Interval = time.Minute }, "the interval is 1m0s", nil},
		"too many": {func(p *Plan) {
			for len(p.Router.Peers) < maxRouters {
				p.Router.Peers = append(p.Router.Peers, p.Router.Peers[len(p.Router.Peers)-1].Next())
			}
		}, "17 machines share", nil},
	} {
		p := plan()
		tc.change(&p)
		kinds := tc.kinds
		if kinds == nil {
			kinds = Kinds()
		}
		files, err := Render(p, kinds...)
		problem, ok := errors.AsType[*cluster.Problem](err)
		if !ok || !strings.Contains(problem.Why, tc.says) || problem.ExitCode() != cluster.ExitUsage || files != nil {
			t.Errorf("%s: want %q, got %v", name, tc.says, err)
		}
	}
}

// TestOthersNeedNoRouter: a plan without a virtual IP is whole for all but keepalived.
func TestOthersNeedNoRouter(t *testing.T) {
	p := plan()
	p.Router = Router{}
	if _, err := Render(p, HAProxy, NGINX, Envoy); err != nil {
		t.Error(err)
	}
	if _, err := Render(p, Keepalived); err == nil {
		t.Error("keepalived without a virtual IP")
	}
}

func TestParseKind(t *testing.T) {
	for _, k := range Kinds() {
		if got, err := ParseKind(string(k)); got != k || err != nil {
			t.Errorf("got %q, %v", got, err)
		}
	}
	for name, says := range map[string]string{"haprox": "did you mean haproxy? there are haproxy, keepalived, nginx, envoy", "apache": "there are haproxy, keepalived, nginx, envoy", "": "there are "} {
		_, err := ParseKind(name)
		if problem, ok := errors.AsType[*cluster.Problem](err); !ok || !strings.HasPrefix(problem.Why, says) || problem.ExitCode() != cluster.ExitUsage {
			t.Errorf("%q: got %v", name, err)
		}
	}
	if _, err := Render(plan(), "apache"); err == nil {
		t.Error("a file for apache")
	}
}

// The parts of Envoy's API v3 that the file has. Nothing of it may be unknown.
type envoyConfig struct {
	Admin struct {
		Address envoyAddress `json:"address"`
	} `json:"admin"`
	StaticResources struct {
		Listeners []struct {
			Name          string       `json:"name"`
			Address       envoyAddress `json:"address"`
			SocketOptions []struct {
				Level    int    `json:"level"`
				Name     int    `json:"name"`
				IntValue int    `json:"int_value"`
				State    string `json:"state"`
			} `json:"socket_options"`
			FilterChains []struct {
				Filters []struct {
					Name        string `json:"name"`
					TypedConfig struct {
						Type               string `json:"@type"`
						StatPrefix         string `json:"stat_prefix"`
						Cluster            string `json:"cluster"`
						IdleTimeout        string `json:"idle_timeout"`
						MaxConnectAttempts int    `json:"max_connect_attempts"`
					} `json:"typed_config"`
				} `json:"filters"`
			} `json:"filter_chains"`
		} `json:"listeners"`
		Clusters []envoyCluster `json:"clusters"`
	} `json:"static_resources"`
}

type envoyAddress struct {
	SocketAddress struct {
		Address    string `json:"address"`
		PortValue  uint16 `json:"port_value"`
		IPv4Compat bool   `json:"ipv4_compat"`
	} `json:"socket_address"`
}

type envoyCluster struct {
	Name           string `json:"name"`
	Type           string `json:"type"`
	ConnectTimeout string `json:"connect_timeout"`
	Policy         string `json:"lb_policy"`
	CommonLbConfig struct {
		HealthyPanicThreshold struct {
			Value float64 `json:"value"`
		} `json:"healthy_panic_threshold"`
	} `json:"common_lb_config"`
	CloseConnections bool `json:"close_connections_on_host_health_failure"`
	CircuitBreakers  struct {
		Thresholds []struct {
			MaxConnections     int `json:"max_connections"`
			MaxPendingRequests int `json:"max_pending_requests"`
		} `json:"thresholds"`
	} `json:"circuit_breakers"`
	UpstreamConnectionOptions struct {
		TCPKeepalive struct {
			Probes   int `json:"keepalive_probes"`
			Time     int `json:"keepalive_time"`
			Interval int `json:"keepalive_interval"`
		} `json:"tcp_keepalive"`
	} `json:"upstream_connection_options"`
	HealthChecks []struct {
		Timeout            string `json:"timeout"`
		Interval           string `json:"interval"`
		NoTrafficInterval  string `json:"no_traffic_interval"`
		UnhealthyThreshold int    `json:"unhealthy_threshold"`
		HealthyThreshold   int    `json:"healthy_threshold"`
		HTTPHealthCheck    struct {
			Path string `json:"path"`
			Host string `json:"host"`
		} `json:"http_health_check"`
		Criteria map[string]string `json:"transport_socket_match_criteria"`
	} `json:"health_checks"`
	TransportSocketMatches []struct {
		Name            string            `json:"name"`
		Match           map[string]string `json:"match"`
		TransportSocket struct {
			Name        string `json:"name"`
			TypedConfig struct {
				Type             string `json:"@type"`
				SNI              string `json:"sni"`
				CommonTLSContext struct {
					ValidationContext *struct {
						TrustedCA struct {
							Filename string `json:"filename"`
						} `json:"trusted_ca"`
						Names []struct {
							SANType string `json:"san_type"`
							Matcher struct {
								Exact string `json:"exact"`
							} `json:"matcher"`
						} `json:"match_typed_subject_alt_names"`
					} `json:"validation_context"`
				} `json:"common_tls_context"`
			} `json:"typed_config"`
		} `json:"transport_socket"`
	} `json:"transport_socket_matches"`
	LoadAssignment struct {
		ClusterName string `json:"cluster_name"`
		Endpoints   []struct {
			LbEndpoints []struct {
				Endpoint struct {
					Address envoyAddress `json:"address"`
				} `json:"endpoint"`
			} `json:"lb_endpoints"`
		} `json:"endpoints"`
	} `json:"load_assignment"`
}

func decodeEnvoy(t *testing.T, p Plan) envoyConfig {
	t.Helper()
	var c envoyConfig
	text := render(t, p, Envoy)
	if err := yaml.UnmarshalStrict([]byte(text), &c); err != nil {
		t.Fatalf("%v:\n%s", err, text)
	}
	if len(c.StaticResources.Listeners) != 1 || len(c.StaticResources.Clusters) != 1 {
		t.Fatalf("there is not one listener and one cluster:\n%s", text)
	}
	return c
}

// TestEnvoyIsWhole reads the file strictly: what refers to something must find it.
func TestEnvoyIsWhole(t *testing.T) {
	c := decodeEnvoy(t, plan())
	l, upstream := c.StaticResources.Listeners[0], c.StaticResources.Clusters[0]
	proxy := l.FilterChains[0].Filters[0].TypedConfig
	if proxy.Cluster != upstream.Name || upstream.LoadAssignment.ClusterName != upstream.Name {
		t.Errorf("%q is led to %q, which has the servers of %q", l.Name, proxy.Cluster, upstream.LoadAssignment.ClusterName)
	}
	if got := l.Address.SocketAddress; got.Address != "0.0.0.0" || got.PortValue != 6443 || got.IPv4Compat {
		t.Errorf("it listens at %+v", got)
	}
	if c.Admin.Address.SocketAddress.Address != "127.0.0.1" {
		t.Errorf("strangers may administrate it: %+v", c.Admin)
	}
	var servers []Server
	for i, e := range upstream.LoadAssignment.Endpoints[0].LbEndpoints {
		a := e.Endpoint.Address.SocketAddress
		servers = append(servers, Server{plan().Servers[i].Name, netip.AddrPortFrom(netip.MustParseAddr(a.Address), a.PortValue)})
	}
	if diff := cmp.Diff(plan().Servers, servers, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
		t.Errorf("servers (-want +got):\n%s", diff)
	}
	check, tls := upstream.HealthChecks[0], upstream.TransportSocketMatches[0]
	if diff := cmp.Diff(tls.Match, check.Criteria); diff != "" || len(tls.Match) == 0 {
		t.Errorf("checks do not find their TLS:\n%s", diff)
	}
	if check.HTTPHealthCheck.Path != "/readyz" || check.Timeout != "0.15s" || check.Interval != "0.1s" {
		t.Errorf("checks are %+v", check)
	}
	trust := tls.TransportSocket.TypedConfig.CommonTLSContext.ValidationContext
	if trust == nil || trust.TrustedCA.Filename != DefaultCA || trust.Names[0].SANType != "DNS" || trust.Names[0].Matcher.Exact != APIName {
		t.Errorf("checks believe %+v", trust)
	}
	if !upstream.CloseConnections || upstream.CircuitBreakers.Thresholds[0].MaxConnections < 1024 {
		t.Errorf("the cluster is %+v", upstream)
	}
}

func TestEnvoyWithoutAuthority(t *testing.T) {
	c := decodeEnvoy(t, six())
	if got := c.StaticResources.Listeners[0].Address.SocketAddress; got.Address != "::" || got.PortValue != 8443 || !got.IPv4Compat {
		t.Errorf("it listens at %+v", got)
	}
	if trust := c.StaticResources.Clusters[0].TransportSocketMatches[0].TransportSocket.TypedConfig.CommonTLSContext.ValidationContext; trust != nil {
		t.Errorf("checks believe %+v", trust)
	}
}

// FuzzRender: what a plan accepts stands in the files as it is, and nothing of
// it is a line of its own.
func FuzzRender(f *testing.F) {
	f.Add("shop", "cp1", "/etc/ssl/ca.crt", "eth0", "lb1")
	f.Add("shop", "cp1\n", "/a b", "eth0; }", "lb1 }\nvrrp_script x {")
	f.Fuzz(func(t *testing.T, name, server, ca, link, self string) {
		p := plan()
		p.Cluster, p.Servers[0].Name, p.CA, p.Router.Interface, p.Router.Name = name, server, ca, link, self
		files, err := Render(p, Kinds()...)
		if err != nil {
			return
		}
		for i, f := range files {
			want := render(t, plan(), Kinds()[i])
			if ca == "" && (Kinds()[i] == HAProxy || Kinds()[i] == Envoy) {
				continue // has other lines
			}
			if got := strings.Count(string(f.Data), "\n"); got != strings.Count(want, "\n") {
				t.Errorf("%s has %d lines:\n%s", f.Name, got, f.Data)
			}
		}
	})
}
